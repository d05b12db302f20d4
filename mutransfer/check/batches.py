"""Small seeded batches, and the loss that a coordinate check trains on when it is given none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mutransfer.check.few import TOKENS
from mutransfer.check.measure import first_tensor
from mutransfer.errors import ConfigError
from mutransfer.planning.inputs import find_inputs

Loss = Callable[[nn.Module, Any], Tensor]
Given = Sequence[Any] | Callable[[int], Any]


@dataclass(frozen=True)
class Generated:
    """Seeded inputs; the targets are drawn from the same seed once the number of classes is seen."""

    inputs: tuple[Any, ...] | Mapping[str, Any]
    seed: int


class Batches:
    """The one batch that a seed repeats, on the model's device.

    Inputs that nobody gives are guessed by running the model, once a size: seeds differ in contents alone.

    Args:
        given: the user's batches, one per seed (used again from the start when there are fewer), or seed -> batch.
        example_inputs: the user's inputs, taken as they are; only the targets are then generated.
    """

    def __init__(self, given: Given | None, example_inputs: Any) -> None:
        self._given, self._inputs = given, example_inputs
        self._guesses: dict[int, Any] = {}

    def of(self, model: nn.Module, size: int, seed: int) -> Any:
        """The batch of a seed for a model of some size."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return _moved(self._made(model, size, seed), device)

    def _made(self, model: nn.Module, size: int, seed: int) -> Any:
        if self._given is not None:
            return self._given(seed) if callable(self._given) else _nth(self._given, seed)
        if self._inputs is not None:
            return Generated(find_inputs(model, self._inputs), seed)
        if callable(getattr(model, "example_inputs", None)):
            return Generated(_own(model, seed), seed)
        if size not in self._guesses:
            self._guesses[size] = find_inputs(model, None)
        return Generated(_redrawn(model, self._guesses[size], seed), seed)


def inputs_in(given: Given | None) -> Any:
    """What a model is called with for the first of a user's batches by `default_loss`; None where that is not known."""
    batch = None if given is None else given(0) if callable(given) else _nth(given, 0)
    if isinstance(batch, list | tuple):
        return tuple(batch[:-1]) or None
    return batch.inputs if isinstance(batch, Generated) else batch


def _nth(given: Sequence[Any], seed: int) -> Any:
    if not len(given):
        raise ConfigError("batches= is empty. Give one batch per seed, or leave it out to have them generated.")
    return given[seed % len(given)]


def _own(model: nn.Module, seed: int) -> tuple[Tensor, ...]:
    """As few examples as the model can be trained on: one sequence or image, or 8 vectors."""
    example_inputs: Any = model.example_inputs
    one = example_inputs(1, torch.Generator().manual_seed(seed))
    if one[0].is_floating_point() and one[0].ndim < 3:
        vectors: tuple[Tensor, ...] = example_inputs(TOKENS, torch.Generator().manual_seed(seed))
        return vectors
    counts = (1, 2, 4) if any(isinstance(module, _BatchNorm) for module in model.modules()) else ()
    fitting = (n for n in counts if _has_something_to_average(model, example_inputs(n, None)))
    return _cut(example_inputs(next(fitting, 1), torch.Generator().manual_seed(seed)))


def _has_something_to_average(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """BatchNorm in train mode refuses one value per channel."""
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(*(t.to(device) for t in inputs))
    except ValueError:
        return False
    return True


def _cut(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t[:, :TOKENS] if t.ndim == 2 and not t.is_floating_point() else t for t in inputs)


def _redrawn(model: nn.Module, guess: Any, seed: int) -> Any:
    """Contents for a guess that has only shapes: ids other than 0 (which is often padding), or normal draws."""
    generator = torch.Generator().manual_seed(seed)
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    vocabulary = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 2)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(precision)
        return torch.randint(1, vocabulary, value.shape, generator=generator)

    return {k: draw(v) for k, v in guess.items()} if isinstance(guess, Mapping) else tuple(draw(v) for v in guess)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Generated):
        return Generated(_moved(value.inputs, device), value.seed)
    if isinstance(value, Mapping):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_moved(v, device) for v in value)
    return value


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of the logits (the last dimension holds classes); squared error where there is only one output.

    A batch of one's own is (inputs, ..., targets), or keyword arguments of a model that returns its own `.loss`.

    Raises:
        ConfigError: a model output or batch that says no loss.
    """
    if isinstance(batch, Generated):
        inputs = batch.inputs
        logits = _logits(model(**inputs) if isinstance(inputs, Mapping) else model(*inputs))
        return _against(logits, _targets(logits, batch.seed))
    if isinstance(batch, Mapping):
        loss = getattr(model(**batch), "loss", None)
        if isinstance(loss, Tensor):
            return loss
        raise ConfigError(
            "The model returns no .loss for these batches. Pass loss=, a function (model, batch) -> scalar."
        )
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return _against(_logits(model(*batch[:-1])), batch[-1])
    raise ConfigError(
        "A batch must be (inputs, ..., targets) or keyword arguments. Or pass loss=, (model, batch) -> scalar."
    )


def _logits(out: Any) -> Tensor:
    """Of an output with several tensors, such as keypoints and their scores, the first that can be trained on."""
    logits = first_tensor(out, lambda tensor: tensor.requires_grad) if torch.is_grad_enabled() else None
    logits = first_tensor(out) if logits is None else logits
    if logits is None or logits.ndim == 0:
        raise ConfigError("The model's output holds no logits. Pass loss=, a function (model, batch) -> scalar.")
    return logits


def _targets(logits: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    if logits.shape[-1] == 1:
        return torch.randn(logits.shape, generator=generator).sign().to(logits)
    return torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator).to(logits.device)


def _against(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return F.mse_loss(logits.float(), targets.reshape(logits.shape).float())
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))


def described(batch: Any) -> str:
    """The shapes of a batch in words."""
    value = batch.inputs if isinstance(batch, Generated) else batch
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in _all_tensors(value))


def _all_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _all_tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _all_tensors(item)
