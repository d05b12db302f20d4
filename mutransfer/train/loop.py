"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mutransfer.errors import ConfigError, RunError
from mutransfer.train import checkpoint as checkpoints
from mutransfer.train.data.protocol import Batch, Data
from mutransfer.train.precision import find_precision
from mutransfer.train.schedule import Schedule, base_lrs, set_lrs
from mutransfer.train.settings import check_positive, check_whole, read_settings

CHECK_EVERY = 10
"""Steps between two looks at the loss: reading it waits for the device."""
HISTORY = 200
"""Most entries that an outcome's history has."""
BLOWN_UP = 10.0
"""A run ends diverged above so many times the loss of its untrained model (of one nat, where that is less).

The untrained model knows nothing, so its loss is the worst that a learning rate in use can come to. A step far too
large leaves a loss that float32 often can hold still; it is no point of any valley. The factor is far outside the
noise of one batch, and being a factor it serves regression too, whose unit is the targets'. Only the end counts: a
run may spike and recover.
"""

Clip = Callable[[float], Tensor]
Metrics = Callable[[int, dict[str, float]], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainSettings:
    """The `train` section of a config.

    Attributes:
        steps: of the optimizer.
        schedule, warmup, decay, final_lr: see `Schedule`.
        clip_norm: largest gradient norm; None for no clipping.
        accumulate: parts that each batch is cut into, one after the other, to save memory.
        eval_batches: held-out batches per validation.
        eval_every, checkpoint_every: in steps; 0 for only at the end.
        compile: run the model through torch.compile.
    """

    steps: int
    schedule: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    final_lr: float = 0.0
    clip_norm: float | None = 1.0
    accumulate: int = 1
    eval_batches: int = 16
    eval_every: int = 0
    checkpoint_every: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        check_whole("train", self, "steps", "accumulate", "eval_batches")
        if self.clip_norm is not None:
            check_positive("train", self, "clip_norm")
        for name in ("eval_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}={getattr(self, name)}: it must be 0 (only at the end) or more.")
        self.make_schedule()

    def make_schedule(self) -> Schedule:
        return Schedule(self.steps, self.schedule, self.warmup, self.decay, self.final_lr)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        status: "done", or "diverged": a loss that is not finite, after which the run stops, or `BLOWN_UP` at the end.
        train_loss: mean over the last tenth of the steps, in nats; None where diverged.
        val_loss: held-out loss after the last step; None where diverged.
        history: (step, training loss), thinned to at most 200 entries, up to where it is not finite.
        evaluations: (step, held-out loss).
        steps: done, counting from 1; where diverged, the first one whose loss was not finite.
        tokens: trained on, over all steps (examples, where the data are not tokens).
        earlier: seconds and CPU-seconds of the sessions that this one resumed.
        unsaved: why the last checkpoint could not be written; None where it was, or none was asked for.
    """

    status: Literal["done", "diverged"]
    train_loss: float | None
    val_loss: float | None
    history: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, float], ...]
    steps: int
    tokens: int
    earlier: tuple[float, float] = field(default=(0.0, 0.0), compare=False)
    unsaved: str | None = None


def train(
    model: nn.Module,
    optimizer: Optimizer,
    data: Data,
    config: Mapping[str, Any],
    *,
    clip: Clip | None = None,
    metrics: Metrics | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Outcome:
    """Trains the model in place, on the device that its parameters are on.

    Args:
        model: gives logits for the first tensor of a batch.
        optimizer: over the model's parameters; each group's lr is its peak.
        data: gives the batches and the loss.
        config: a resolved config; the sections `train`, `precision` and `seed` are read here.
        clip: clips the gradients to a norm and returns the norm before; torch's own global norm where None.
        metrics: called every ten steps and after each validation with the step and the numbers to log.
        progress: called before the first step and every ten steps with the steps done and all steps.
        checkpoint: a file to write, every `train.checkpoint_every` steps and at the end.
        resume: go on from that file if it exists.

    Raises:
        ConfigError: settings that are out of range, or a batch that does not divide into `train.accumulate` parts.
        RunError: a checkpoint that cannot be written before the last step, or that belongs to another run.
    """
    settings = read_settings(TrainSettings, "train", config["train"])
    run = _Run(model, optimizer, data, config, settings, clip)
    if checkpoint is not None:
        checkpoints.check_room(checkpoint, model, optimizer)
    if resume and checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    if progress is not None:
        progress(run.done, settings.steps)
    while run.done < settings.steps:
        run.step()
        if run.due(CHECK_EVERY):
            if run.first_diverged() is not None:
                break
            run.report(metrics, progress)
        if run.due(settings.eval_every):
            run.evaluate(metrics)
        if checkpoint is not None and run.due(settings.checkpoint_every):
            run.save(checkpoint)
    return run.outcome()


class _Run:
    """The state of one run between two steps."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Data,
        config: Mapping[str, Any],
        settings: TrainSettings,
        clip: Clip | None,
    ) -> None:
        self.model, self.optimizer, self.data, self.config, self.settings = model, optimizer, data, config, settings
        self.clip = clip or partial(nn.utils.clip_grad_norm_, list(model.parameters()))
        self.device = next(model.parameters()).device
        self.precision = find_precision(config.get("precision", {}).get("name", "fp32"))
        self.forward = cast(nn.Module, torch.compile(model)) if settings.compile else model
        self.schedule, self.base_lrs = settings.make_schedule(), base_lrs(optimizer)
        self.losses = torch.zeros(settings.steps, device=self.device)
        self.norm = torch.zeros(())
        self.evaluations: list[tuple[int, float]] = []
        self.done = 0
        self.started, self.earlier = _clock(), (0.0, 0.0)
        self.unsaved: str | None = None
        model.train()

    def step(self) -> None:
        set_lrs(self.optimizer, self.base_lrs, self.schedule(self.done))
        batch = self.data.batch(self.done, seed=int(self.config.get("seed", 0)))
        self.losses[self.done] = self._backward(batch)
        if self.settings.clip_norm is not None:
            self.norm = self.clip(self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def _backward(self, batch: Batch) -> Tensor:
        """The batch's loss; its gradient, summed over the parts, is left on the parameters."""
        parts, total = self._parts(batch), torch.zeros((), device=self.device)
        for part in parts:
            with self.precision.context(self.device):
                loss = self.data.loss(self.forward, self._moved(part)) / len(parts)
            loss.backward()
            total += loss.detach()
        return total

    def _parts(self, batch: Batch) -> list[Batch]:
        count, size = self.settings.accumulate, len(batch[0])
        if size % count:
            raise ConfigError(
                f"train.accumulate={count} does not divide data.batch_size={size}. Choose a divisor of {size}."
            )
        return [batch] if count == 1 else list(zip(*(tensor.chunk(count) for tensor in batch), strict=True))

    def _moved(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def due(self, every: int) -> bool:
        """After every so many steps and after the last; 0: only after the last."""
        return self.done == self.settings.steps or (every > 0 and self.done % every == 0)

    def first_diverged(self) -> int | None:
        """The number of the first step whose loss is not finite."""
        bad = (~torch.isfinite(self.losses[: self.done])).nonzero()
        return int(bad[0]) + 1 if len(bad) else None

    @torch.no_grad()
    def evaluate(self, metrics: Metrics | None = None) -> None:
        self.model.eval()
        batches = self.data.validation(self.settings.eval_batches)
        with self.precision.context(self.device):
            losses = [self.data.loss(self.model, self._moved(batch)) * len(batch[0]) for batch in batches]
        self.model.train()
        mean = float(torch.stack(losses).sum()) / sum(len(batch[0]) for batch in batches)
        self.evaluations.append((self.done, mean))
        if metrics is not None:
            metrics(self.done, {"val_loss": mean})

    def report(self, metrics: Metrics | None, progress: Progress | None) -> None:
        if metrics is not None:
            loss, factor = float(self.losses[self.done - 1]), self.schedule(self.done - 1)
            metrics(self.done, {"train_loss": loss, "lr_factor": factor, "grad_norm": float(self.norm)})
        if progress is not None:
            progress(self.done, self.settings.steps)

    def save(self, path: str | Path) -> None:
        """A failure ends the run, but not after the last step: what was measured is then told with the failure."""
        spent = (before + now - start for before, now, start in zip(self.earlier, _clock(), self.started, strict=True))
        state = checkpoints.RunState(self.done, self.losses[: self.done].cpu(), tuple(self.evaluations), *spent)
        try:
            checkpoints.save(path, self.model, self.optimizer, state, config=self.config)
        except RunError as error:
            if self.done < self.settings.steps:
                raise
            self.unsaved = str(error)

    def load(self, path: str | Path) -> None:
        state = checkpoints.load(path, self.model, self.optimizer, config=self.config)
        self.done, self.evaluations = state.step, list(state.evaluations)
        self.losses[: self.done] = state.losses
        self.earlier = (state.seconds, state.cpu_seconds)

    def outcome(self) -> Outcome:
        bad = self.first_diverged()
        if bad is None and not math.isfinite(self.evaluations[-1][1]):
            bad = self.done  # the last update broke the model
        if bad is None and self._blown_up():
            bad = self.done
        steps = self.done if bad is None else bad
        losses = self.losses[:steps].tolist()
        last = losses[-self._last_tenth() :]
        return Outcome(
            status="done" if bad is None else "diverged",
            train_loss=sum(last) / len(last) if bad is None else None,
            val_loss=self.evaluations[-1][1] if bad is None else None,
            history=thin(losses if bad is None else [loss for loss in losses if math.isfinite(loss)]),
            evaluations=tuple(self.evaluations),
            steps=steps,
            tokens=steps * self._batch_tokens(),
            earlier=self.earlier,
            unsaved=self.unsaved,
        )

    def _blown_up(self) -> bool:
        worst = max(self.evaluations[-1][1], float(self.losses[self.done - self._last_tenth() : self.done].mean()))
        return worst > BLOWN_UP * max(float(self.losses[0]), 1.0)

    def _last_tenth(self) -> int:
        return max(1, self.settings.steps // 10)

    def _batch_tokens(self) -> int:
        inputs = self.data.batch(0, seed=int(self.config.get("seed", 0)))[0]
        return inputs.numel() if self.data.info.kind == "tokens" else len(inputs)


def _clock() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def thin(losses: Sequence[float], most: int = HISTORY) -> tuple[tuple[int, float], ...]:
    """(step, loss) pairs, counted from 1, evenly thinned; the last one always stays."""
    stride = -(-len(losses) // most)
    kept = range(len(losses), 0, -stride)
    return tuple((step, losses[step - 1]) for step in reversed(kept))
