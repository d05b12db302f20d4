"""The zoo's bookkeeping: resumed, limited, summed up; and one model all the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo.command import main
from zoo.forms import compare
from zoo.from_torch import torch_subjects
from zoo.pool import append_row, read_rows, run_all
from zoo.stages import examine
from zoo.subjects import NotBuiltError, Small, Subject
from zoo.summary import merged, pattern, summary

import mutransfer as mt


def subject(name: str, make: Any = lambda: None) -> Subject:
    return Subject(name, "test", make)


def named(one: Subject) -> dict[str, Any]:
    return {"model": one.name, "source": one.source, "reason": ""}


def test_every_subject_comes_back_from_a_process_of_its_own() -> None:
    rows = list(run_all([subject(n) for n in "abc"], named, jobs=2, seconds=30))
    assert sorted(row["model"] for row in rows) == ["a", "b", "c"]


def test_one_that_hangs_or_dies_costs_only_its_own_line() -> None:
    def work(one: Subject) -> dict[str, Any]:
        if one.name == "hangs":
            time.sleep(60)
        if one.name == "dies":
            import os

            os._exit(9)
        return named(one)

    rows = {r["model"]: r for r in run_all([subject(n) for n in ("hangs", "dies", "fine")], work, jobs=3, seconds=1)}
    assert rows["hangs"]["reason"].startswith("TIME")
    assert rows["dies"]["reason"].startswith("DIED")
    assert rows["fine"]["reason"] == ""


def test_a_torn_last_line_is_forgotten_and_not_glued_to(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    append_row(path, {"model": "a"})
    path.write_text(path.read_text() + '{"model": "b", "sou')
    append_row(path, {"model": "c"})
    assert [row["model"] for row in read_rows(path)] == ["a", "c"]


def test_refusals_of_one_kind_are_counted_together() -> None:
    one, other = "The role of 'a.b' (3x4) cannot be proven", "The role of 'c' (12) cannot be proven"
    assert pattern(one) == pattern(other)
    assert pattern(one) != pattern("The base of 'a.b' (3x4) cannot be proven")


def test_the_summary_counts_what_could_have_passed() -> None:
    beside = {"source": "s", "stage": "convert"}
    rows = [
        {"model": "a", **beside, "built": True, "converted": True, "branches": 2, "terminals": 2, "reason": ""},
        {"model": "a", **beside, "stage": "check", "check": "fail", "reason": "too steep"},
        {"model": "a", **beside, "stage": "check", "check": "pass", "reason": ""},
        {"model": "b", **beside, "built": True, "converted": False, "branches": 0, "reason": "no"},
        {"model": "c", **beside, "built": True, "reason": "CRASH"},
        {"model": "d", **beside, "built": False, "reason": "incomplete"},
        {"model": "e", **beside, "reason": "TIME over 25 s"},
    ]
    lines = {line.split("  ")[0].strip(): line for line in summary(merged(rows)).splitlines() if line.strip()}
    assert "3/5" in lines["builds by itself"]
    assert "2/4" in lines["converted or a sentence"]
    assert "1/4" in lines["converted"]
    assert "1/1" in lines["terminals verified"]
    assert "1/1" in lines["width check passed"]
    assert "too steep" not in summary(merged(rows))


def test_layers_whose_branches_were_not_found_count_as_not_converted_in_depth() -> None:
    beside = {"source": "s", "stage": "convert", "built": True, "converted": True, "reason": ""}
    found = {**beside, "model": "a", "branches": 2, "terminals": 2, "completep": True}
    unknown = {**beside, "model": "b", "branches": False, "branches_reason": "CRASH KeyError: 7"}
    no_stack, no_depth = {**beside, "model": "c", "branches": 0}, {**beside, "model": "d"}
    lines = {line[:24].strip(): line for line in summary(merged([found, unknown, no_stack, no_depth])).splitlines()}
    assert "1/2" in lines["CompleteP converted"]
    assert "1/2" in lines["terminals verified"]
    of_the_rest = summary(merged([found, no_stack, no_depth]))
    assert "1/1" in next(line for line in of_the_rest.splitlines() if line.startswith("CompleteP converted"))


def test_a_model_that_does_not_build_by_itself_is_no_failure_of_ours() -> None:
    def broken() -> Small:
        raise NotBuiltError("its config is incomplete")

    row = examine(subject("broken", broken), "build")
    assert (row["built"], row["reason"]) == (False, "its config is incomplete")


def test_one_model_converts_and_its_forms_agree() -> None:
    def small() -> Small:
        def make(width: int) -> nn.Module:
            return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

        return Small(16, make, lambda seed: (torch.ones(2, 4),))

    row = examine(subject("mlp", small), "convert")
    assert row["converted"] is True
    assert row["folded_is_explicit"] is True
    assert "branches" not in row


class Halved(nn.Module):
    """Runs in evaluation mode alone, and asks for single precision inside."""

    def __init__(self, width: int, readout: int = 3) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(4, width), nn.Linear(width, readout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ValueError("too short a sequence")
        inside = nn.functional.linear(self.embed(x).float().tanh(), self.readout.weight.float())
        inside = torch.max(inside, torch.full((), torch.finfo(x.dtype).min))
        return inside.to(x.dtype) + self.readout.bias


def test_forms_are_compared_where_the_model_runs_and_in_float64_throughout() -> None:
    inputs = (torch.linspace(-1, 1, 8).reshape(2, 4),)
    plans = [
        mt.plan(Halved(32), "mup", base=16, factory=Halved, form=form, example_inputs=inputs)
        for form in ("folded", "explicit")
    ]
    assert compare(Halved(32), (plans[0], plans[1]), inputs)["folded_is_explicit"] is True
    other = mt.plan(Halved(32), "sp", base=16, factory=Halved, example_inputs=inputs)
    assert compare(Halved(32), (plans[0], other), inputs)["folded_is_explicit"] is False


def test_forms_of_a_model_without_a_gradient_are_not_compared() -> None:
    class Chooses(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(-1)

    plan = mt.plan(Chooses(4, 32), "mup", base=16, factory=lambda w: Chooses(4, w), example_inputs=torch.ones(2, 4))
    assert compare(Chooses(4, 32), (plan, plan), (torch.ones(2, 4),)) == {"forms": "no output has a gradient"}


def test_what_repeats_with_depth_is_counted_and_proven() -> None:
    text = next(one for one in torch_subjects() if one.name == "nanoGPT")
    row = examine(text, "convert")
    assert (row["branches"], row["terminals"], row["completep"]) == (2, 2, True)


def test_the_command_goes_on_where_it_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zoo.jsonl"
    arguments = ["--stage", "build", "--only", "torch.nn/*", "--limit", "2", "--out", str(path)]
    for _ in range(2):
        assert main(arguments) == 0
    names = [json.loads(line)["model"] for line in path.read_text().splitlines()]
    assert len(names) == len(set(names)) == 4
    assert main(["--summary", "--out", str(path)]) == 0
    assert "4/4" in capsys.readouterr().out
