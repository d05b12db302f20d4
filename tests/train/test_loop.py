"""The loop trains, accumulates, validates, and records what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.data import Data, build_data
from mutransfer.train.data.protocol import Batch, cross_entropy
from mutransfer.train.loop import thin, train
from mutransfer.train.models import build_model

MakeRun = Callable[..., tuple[nn.Module, torch.optim.Optimizer, Data]]


def with_train(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**config, "train": {**config["train"], **settings}}


def test_training_lowers_the_held_out_loss(make_run: MakeRun, config: dict[str, Any]) -> None:
    outcome = train(*make_run(), with_train(config, steps=60, eval_every=30))
    assert outcome.status == "done"
    assert outcome.val_loss is not None
    assert outcome.val_loss < 0.6 * math.log(10)
    assert [step for step, _ in outcome.evaluations] == [30, 60]
    assert outcome.evaluations[-1][1] == outcome.val_loss


def test_the_outcome_is_a_function_of_config_and_seed(make_run: MakeRun, config: dict[str, Any]) -> None:
    first, again = (train(*make_run(), config) for _ in range(2))
    assert first == again
    assert train(*make_run(), {**config, "seed": 1}) != first


def test_the_training_loss_is_the_mean_over_the_last_tenth(make_run: MakeRun, config: dict[str, Any]) -> None:
    outcome = train(*make_run(), with_train(config, steps=20))
    losses = [loss for _, loss in outcome.history]
    assert outcome.train_loss == pytest.approx(sum(losses[-2:]) / 2)
    assert outcome.steps == len(losses) == 20
    assert outcome.tokens == 20 * 16


def test_tokens_are_counted_where_the_data_are_tokens(config: dict[str, Any]) -> None:
    data = build_data({"name": "synthetic", "task": "tokens", "batch_size": 2, "seq_len": 8}, {"name": "gpt"})
    model = build_model({"name": "gpt", "width": 32, "depth": 1}, data.info)
    outcome = train(model, torch.optim.SGD(model.parameters(), lr=0.1), data, with_train(config, steps=3))
    assert outcome.tokens == 3 * 2 * 8


def test_accumulating_parts_gives_the_whole_batchs_gradient(make_run: MakeRun, config: dict[str, Any]) -> None:
    trained = []
    for accumulate in (1, 4):
        model, _, data = make_run()
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outcome = train(model, optimizer, _Double(data), with_train(config, accumulate=accumulate))
        trained.append((torch.cat([p.detach().flatten() for p in model.parameters()]), outcome.train_loss))
    assert torch.allclose(trained[0][0], trained[1][0], atol=1e-12, rtol=0)
    assert trained[0][1] == pytest.approx(trained[1][1], rel=1e-6)


def test_half_a_batch_gives_another_gradient(make_run: MakeRun, config: dict[str, Any]) -> None:
    whole = train(*make_run(), config)
    model, optimizer, _ = make_run()
    half = train(model, optimizer, build_data({"name": "digits", "batch_size": 8}, {"name": "mlp"}), config)
    assert half.train_loss != pytest.approx(whole.train_loss, rel=1e-6)


class _Double:
    """The same data with inputs and losses in float64."""

    def __init__(self, data: Data) -> None:
        self._data, self.info, self.sha256 = data, data.info, data.sha256

    def batch(self, step: int, *, seed: int) -> Batch:
        inputs, targets = self._data.batch(step, seed=seed)
        return inputs.double(), targets

    def validation(self, batches: int) -> list[Batch]:
        return [(inputs.double(), targets) for inputs, targets in self._data.validation(batches)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_a_batch_that_does_not_divide_into_parts_is_refused(make_run: MakeRun, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train.accumulate=3 does not divide data.batch_size=16"):
        train(*make_run(), with_train(config, accumulate=3))


def test_divergence_is_recorded_with_its_first_step_and_stops_the_run(
    make_run: MakeRun, config: dict[str, Any]
) -> None:
    model, optimizer, data = make_run()
    outcome = train(model, optimizer, _Broken(data, at=13), with_train(config, steps=1000))
    assert outcome.status == "diverged"
    assert outcome.steps == 14
    assert outcome.train_loss is None
    assert outcome.val_loss is None
    assert outcome.history[-1][0] == 13
    assert all(math.isfinite(loss) for _, loss in outcome.history)


def test_a_last_step_that_breaks_the_model_is_a_divergence_too(make_run: MakeRun, config: dict[str, Any]) -> None:
    model, _, data = make_run()
    optimizer = torch.optim.SGD(model.parameters(), lr=math.inf)
    outcome = train(model, optimizer, data, with_train(config, steps=1, warmup=0.0))
    assert all(math.isfinite(loss) for _, loss in outcome.history)
    assert outcome.status == "diverged"


def test_a_finite_loss_far_above_the_untrained_models_is_a_divergence(
    make_run: MakeRun, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = train(*make_run(lr=5.0), config)
    assert (outcome.status, outcome.val_loss, outcome.steps) == ("diverged", None, 12)
    assert len(outcome.history) == 12
    monkeypatch.setattr("mutransfer.train.loop.BLOWN_UP", float("inf"))
    assert train(*make_run(lr=5.0), config).status == "done"


def test_a_bad_learning_rate_is_no_divergence(make_run: MakeRun, config: dict[str, Any]) -> None:
    assert train(*make_run(lr=0.1), config).status == "done"


class _Broken(_Double):
    """Data whose loss is not a number from some step on."""

    def __init__(self, data: Data, at: int) -> None:
        super().__init__(data)
        self._at = at

    def batch(self, step: int, *, seed: int) -> Batch:
        inputs, targets = self._data.batch(step, seed=seed)
        return inputs * (math.nan if step >= self._at else 1.0), targets


def test_gradients_are_clipped_by_the_given_gauge(make_run: MakeRun, config: dict[str, Any]) -> None:
    model, optimizer, data = make_run()
    asked: list[float] = []

    def clip(max_norm: float) -> Tensor:
        asked.append(max_norm)
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    own = train(model, optimizer, data, with_train(config, clip_norm=0.25), clip=clip)
    assert asked == [0.25] * 12
    assert own == train(*make_run(), with_train(config, clip_norm=0.25))
    assert own != train(*make_run(), with_train(config, clip_norm=None))


def test_metrics_and_progress_are_reported(make_run: MakeRun, config: dict[str, Any]) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    seen: list[tuple[int, int]] = []
    outcome = train(
        *make_run(),
        with_train(config, steps=25),
        metrics=lambda step, values: logged.append((step, values)),
        progress=lambda step, steps: seen.append((step, steps)),
    )
    assert seen == [(0, 25), (10, 25), (20, 25), (25, 25)]
    assert [step for step, _ in logged] == [10, 20, 25, 25]
    assert logged[0][1].keys() == {"train_loss", "lr_factor", "grad_norm"}
    assert logged[0][1]["train_loss"] == pytest.approx(dict(outcome.history)[10])
    assert logged[-1][1] == {"val_loss": outcome.val_loss}


def test_bf16_changes_the_numbers_a_little_and_leaves_the_weights_in_fp32(
    make_run: MakeRun, config: dict[str, Any]
) -> None:
    model, optimizer, data = make_run()
    low = train(model, optimizer, data, {**config, "precision": {"name": "bf16"}})
    full = train(*make_run(), config)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert low.val_loss != full.val_loss
    assert low.val_loss == pytest.approx(full.val_loss, rel=0.05)
    with pytest.raises(ConfigError, match=r"no precision 'bf61'. Did you mean 'bf16'"):
        train(*make_run(), {**config, "precision": {"name": "bf61"}})


def test_the_forward_pass_of_training_is_compiled_where_asked(
    make_run: MakeRun, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model, optimizer, data = make_run()
    train(model, optimizer, data, config)
    assert compiled == []
    train(model, optimizer, data, with_train(config, compile=True))
    assert compiled == [model]


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(make_run: MakeRun, config: dict[str, Any]) -> None:
    eager, compiled = (train(*make_run(), with_train(config, compile=flag)) for flag in (False, True))
    assert compiled.val_loss == pytest.approx(eager.val_loss, rel=1e-4)


def test_a_small_last_batch_counts_by_its_size(make_run: MakeRun, config: dict[str, Any]) -> None:
    model, optimizer, data = make_run()
    outcome = train(model, optimizer, data, with_train(config, eval_batches=1000))
    inputs, targets = (torch.cat(parts) for parts in zip(*data.validation(1000), strict=True))
    assert len(inputs) % 16
    with torch.no_grad():
        assert outcome.val_loss == pytest.approx(float(data.loss(model, (inputs, targets))), rel=1e-5)


def test_batch_norm_is_validated_with_its_running_statistics(config: dict[str, Any]) -> None:
    data = build_data({"name": "digits", "batch_size": 16}, {"name": "resnet"})
    model = build_model({"name": "resnet", "width": 4}, data.info)
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), data, with_train(config, steps=3))
    assert seen == [True] * 3 + [False] * 2


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ConfigError, match=r"returned a tuple; a tensor of logits is expected"):
        cross_entropy(Pair(), (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "train.steps=0: it must be a whole number greater than 0"),
        ({"clip_norm": -1.0}, "train.clip_norm=-1.0: it must be a number greater than 0"),
        ({"eval_every": -1}, "train.eval_every=-1"),
        ({"schedule": "linear"}, "train.schedule=linear is not one of cosine, wsd, constant"),
        ({"setps": 3}, "Did you mean 'steps'"),
    ],
)
def test_wrong_train_settings_are_refused(
    make_run: MakeRun, config: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(*make_run(), with_train(config, **settings))


def test_history_is_thinned_evenly_and_keeps_the_last_step() -> None:
    kept = thin([float(i) for i in range(1, 1001)])
    assert len(kept) == 200
    assert kept[-1] == (1000, 1000.0)
    assert {b - a for (a, _), (b, _) in pairwise(kept)} == {5}
    assert thin([1.0, 2.0]) == ((1, 1.0), (2, 2.0))
