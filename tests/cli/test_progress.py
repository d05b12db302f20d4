"""What a person sees while a sweep runs: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from mutransfer.cli.progress import SweepProgress
from mutransfer.cli.summary import best_table, describe, power, title, varying
from mutransfer.records import TrialRecord
from mutransfer.sweep.store import Counts


def record(width: int = 32, lr: float = 2**-6, seed: int = 0, loss: float | None = 2.0, **values: Any) -> TrialRecord:
    hp = {"lr": {"input": values.pop("embedding", 8.0)}}
    model = {"name": "gpt", "width": width}
    config = {"parameterization": {"name": "mup"}, "model": model, "optimizer": {"lr": lr}, "seed": seed, "hp": hp}
    return TrialRecord(key=f"{width}{lr}{seed}", config=config, val_loss=loss, **({"status": "done"} | values))


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with SweepProgress(list, console) as progress:
        progress(Counts(pending=3, done=1), [])
        progress(Counts(pending=1, done=3), [record(seed=1), record(seed=2)])
    lines = shown(console).splitlines()
    assert lines[0] == "4 trials, 1 of them finished before."
    assert lines[1].startswith("[2/4] mup width 32, lr 2^-6, hp.lr.input=8, seed 1: val loss 2.0000")
    assert lines[2].startswith("[3/4] mup width 32, lr 2^-6, hp.lr.input=8, seed 2")
    assert len(lines) == 3


def test_a_live_table_in_a_terminal_with_the_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    seconds = iter(range(0, 1000, 10))
    with SweepProgress(lambda: [record()], console, clock=lambda: float(next(seconds))) as progress:
        progress(Counts(pending=4), [])
        progress(Counts(pending=1, running=2, done=1, failed=1, diverged=1, share=0.5), [record()])
    text = shown(console)
    assert "time left unknown" in text
    assert "2 running, 1 diverged, 1 failed" in text
    assert "about 0:" in text
    assert "2.0000" in text


def test_the_best_lr_is_of_the_mean_over_seeds_and_of_one_setting() -> None:
    records = [
        record(lr=2**-6, seed=0, loss=2.0),
        record(lr=2**-6, seed=1, loss=2.4),
        record(lr=2**-7, seed=0, loss=2.1),
        record(lr=2**-7, seed=1, loss=2.1),
        record(lr=2**-8, loss=None, status="diverged"),
        record(lr=2**-7, seed=0, loss=9.0, embedding=1.0),
        record(width=64, lr=2**-5, loss=1.5),
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(best_table(records))
    rows = [line.split() for line in shown(console).splitlines()]
    assert [" ".join(row) for row in rows[1:]] == [
        "mup 32 lr 2^-7, hp.lr.input=8 2.1000 2 of 2 6",
        "mup 64 lr 2^-5, hp.lr.input=8 1.5000 1 of 1 1",
    ]


def test_a_mean_over_the_seeds_that_survived_says_how_many() -> None:
    lost = [record(seed=0, loss=1.0), record(seed=1, loss=None, status="diverged"), record(lr=2**-7, loss=2.0)]
    console = Console(file=io.StringIO(), width=100)
    console.print(best_table(lost))
    assert shown(console).splitlines()[1].split() == ["mup", "32", "lr", "2^-6", "1.0000", "1", "of", "2", "3"]


def test_a_seed_that_failed_is_counted_among_the_seeds() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(best_table([record(seed=0, loss=1.0), record(seed=1, loss=None, status="failed")]))
    assert shown(console).splitlines()[1].split() == ["mup", "32", "lr", "2^-6", "1.0000", "1", "of", "2", "2"]


def test_a_size_where_nothing_survived_has_its_line() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(best_table([record(loss=None, status="diverged"), record(width=64)]))
    assert [line.split()[1:3] for line in shown(console).splitlines()[1:]] == [["32", "none"], ["64", "lr"]]


def test_a_trial_is_named_by_what_sets_it_apart() -> None:
    shallow, deep = record(), record(seed=1)
    shallow.config["model"]["depth"], deep.config["model"]["depth"] = 2, 4
    assert title(deep) == "mup width 32 depth 4, lr 2^-6, hp.lr.input=8, seed 1"
    shallow.config["train"], deep.config["train"] = {"steps": 4}, {"steps": 8}
    assert "hp.lr.input=8, train.steps=8" in title(deep, varying([shallow, deep]))
    assert "train.steps" not in title(deep, varying([deep, deep]))


def test_depths_have_rows_of_their_own_where_there_are_several() -> None:
    pair = [record(loss=2.0), record(loss=1.5)]
    console = Console(file=io.StringIO(), width=100)
    for depths in ((2, 4), (2, 2)):
        for one, depth in zip(pair, depths, strict=True):
            one.config["model"]["depth"] = depth
        console.print(best_table(pair))
    words = [line.split() for line in shown(console).splitlines()]
    assert words[0][:4] == ["parameterization", "width", "depth", "best"]
    assert [row[1:5] for row in words[1:3]] == [["32", "2", "lr", "2^-6"], ["32", "4", "lr", "2^-6"]]
    assert "depth" not in words[3]
    assert len(words) == 5


def test_a_loss_beyond_measure_is_short() -> None:
    assert describe(record(loss=123456789.0)).endswith("val loss 1.235e+08 (0.0 s)")
    assert "val loss 999.1235" in describe(record(loss=999.12345))


def test_a_failed_trial_says_why() -> None:
    failed = record(loss=None, status="failed", error="no luck")
    assert "seed 0: failed: no luck" in describe(failed)
    assert "seed 0: diverged" in describe(record(loss=None, status="diverged"))


def test_learning_rates_are_read_as_powers_of_two() -> None:
    assert power(2**-6) == "lr 2^-6"
    assert power(2**-6.5) == "lr 2^-6.5"
