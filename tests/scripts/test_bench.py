"""`scripts/bench.py overhead`: what it times, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import pytest
import torch
from benchmarks import overhead
from benchmarks.ratio import Ratio
from benchmarks.steps import Sizes, group_count, make_step
from torch.utils._python_dispatch import TorchDispatchMode

TINY = ["--width", "32", "--base", "16", "--depth", "1", "--vocab", "64", "--head_dim", "8", "--length", "8"]
SMALL = Sizes(width=32, base=16, depth=1, vocab=64, head_dim=8, batch=2, length=8)


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def ops_of(variant: str, *, clipping: bool = False) -> list[str]:
    step = make_step(SMALL, variant, "eager", torch.device("cpu"))[clipping]  # type: ignore[arg-type]
    step()
    with Ops() as ops:
        step()
    return ops.names


def test_a_step_is_whole_and_the_explicit_one_multiplies_more() -> None:
    plain, explicit = ops_of("plain"), ops_of("explicit")
    for part in ("embedding", "log_softmax", "backward", "fused_adamw"):
        assert any(part in name for name in plain), part
        assert any(part in name for name in explicit), part
    assert explicit.count("aten.mul.Tensor") == plain.count("aten.mul.Tensor") + 2  # forward and backward


def test_a_folded_step_is_the_plain_step_but_for_its_groups() -> None:
    def without_optimizer(names: list[str]) -> list[str]:
        return [name for name in names if "fused_adamw" not in name and "_foreach_add_" not in name]

    assert without_optimizer(ops_of("folded")) == without_optimizer(ops_of("plain"))
    assert without_optimizer(ops_of("explicit")) != without_optimizer(ops_of("plain"))
    assert group_count(SMALL, "plain") == 1 < group_count(SMALL, "folded")


@pytest.mark.parametrize("variant", ["plain", "explicit"])
def test_clipping_is_an_extra_on_both_sides(variant: str) -> None:
    assert not any("norm" in name and "layer_norm" not in name for name in ops_of(variant))
    assert any("_foreach_norm" in name for name in ops_of(variant, clipping=True))


def test_the_default_sizes_are_those_of_the_claim_and_no_multiplier_is_one() -> None:
    sizes = Sizes()
    assert (sizes.depth, sizes.width, sizes.vocab, overhead.LIMIT) == (4, 256, 8192, 1.03)
    assert sizes.base != sizes.width


def test_numbers_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "overhead.json"
    code = bench.main(["overhead", "--mode", "eager", "--pairs", "4", "--warmup", "1", *TINY, "--out", str(out)])
    written = json.loads(out.read_text())
    assert code == bench.EXIT_CODES[written["verdict"]]
    assert set(written) == {"benchmark", "environment", "config", "limit", "modes", "verdict"}
    assert {"device", "torch", "python", "commit", "threads"} <= set(written["environment"])
    assert written["config"]["pairs"] == 4
    eager = written["modes"]["eager"]
    assert set(eager["comparisons"]) >= {overhead.SUBJECT, "folded / plain", "plain / plain"}
    for values in eager["comparisons"].values():
        ratio = Ratio(**values)
        assert 0 < ratio.low <= ratio.value <= ratio.high
        assert ratio.pairs == 4
    assert overhead.SUBJECT in capsys.readouterr().out


def test_the_worst_mode_is_the_verdict() -> None:
    assert bench._worst(["pass", "pass"]) == "pass"
    assert bench._worst(["pass", "undecided"]) == "undecided"
    assert bench._worst(["undecided", "fail"]) == "fail"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["overhead", "--pairs", "1"], "'1' is not a whole number of at least 2"),
        (["overhead", "--mode", "jit"], "invalid choice: 'jit'"),
        ([], "required: verb"),
    ],
)
def test_bad_arguments_are_explained(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--width", "100"], "model.width=100 must be a multiple of model.head_dim=64"),
        (["--precision", "fp8"], "There is no precision 'fp8'"),
        (["--device", "gpu"], "device=gpu is no device"),
    ],
)
def test_impossible_sizes_are_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["overhead", "--mode", "eager", "--pairs", "2", *arguments]) == 2
    assert says in capsys.readouterr().err
