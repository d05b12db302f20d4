"""Two trials share a name exactly when they are the same trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.sweep.key import Point, is_at_base, sweep_id, trial_key

Config = Callable[..., dict[str, Any]]
RELATIVE = [name for name, table in PARAMETERIZATIONS.items() if table.kind == "relative"]
OF_DEPTH = [name for name, table in PARAMETERIZATIONS.items() if table.depth is not None]
OF_WIDTH = [name for name in RELATIVE if name not in OF_DEPTH]


def key(config: dict[str, Any]) -> str:
    return trial_key(config, "corpus")


@pytest.mark.parametrize("name", RELATIVE)
def test_base_width_trials_are_shared_by_all_relative_parameterizations(config: Config, name: str) -> None:
    assert key(config(**{"parameterization.name": name})) == key(config())


@pytest.mark.parametrize("name", [name for name in RELATIVE if name != "mup"])
def test_other_widths_are_not_shared(config: Config, name: str) -> None:
    wide = {"model.width": 64}
    assert key(config(**wide, **{"parameterization.name": name})) != key(config(**wide))


def test_a_width_that_is_the_base_of_another_sweep_is_not_shared(config: Config) -> None:
    changed = {"model.width": 64, "parameterization.name": "sp"}
    assert key(config(**changed, base=64)) == key(config(**{"model.width": 64}, base=64))
    assert key(config(**changed, base=64)) != key(config(**changed, base=32))


def test_there_are_tables_of_both_kinds() -> None:
    assert {"depth-mup", "completep"} == set(OF_DEPTH)
    assert {"mup", "sp"} < set(OF_WIDTH)


@pytest.mark.parametrize("name", OF_DEPTH)
def test_under_depth_rules_a_trial_is_shared_exactly_where_both_sizes_are_the_bases(config: Config, name: str) -> None:
    deep = {"parameterization.name": name}
    assert key(config(**deep)) == key(config())
    assert key(config(**deep, **{"model.depth": 4}, base_depth=4)) == key(config(**{"model.depth": 4}))
    for size in ({"model.depth": 4}, {"model.width": 64}, {"base_depth": 4}):
        assert key(config(**deep, **size)) != key(config(**size))
        assert not is_at_base(config(**deep, **size))


@pytest.mark.parametrize("name", OF_WIDTH)
@pytest.mark.parametrize("width", [32, 64])
def test_the_bases_depth_does_not_name_a_trial_of_widths_only(config: Config, name: str, width: int) -> None:
    wide = {"model.width": width, "parameterization.name": name}
    point = Point.of(config(**wide), "corpus")
    for other in ({"base_depth": 4}, {"model.base_depth": None, "base_depth": None}):
        assert Point.of(config(**wide, **other), "corpus") == point
    assert "base_depth" not in str(point.config)


@pytest.mark.parametrize("name", OF_DEPTH)
def test_the_bases_depth_names_a_trial_under_depth_rules(config: Config, name: str) -> None:
    deep = {"model.depth": 8, "parameterization.name": name}
    assert key(config(**deep, base_depth=4)) != key(config(**deep, base_depth=2))
    assert key(config(**deep, **{"model.base_depth": 4})) == key(config(**deep))


def test_a_trial_of_an_older_version_keeps_its_name(config: Config) -> None:
    """Typed from the version before there was a depth of the base: what was trained then is not trained again."""
    old = "d274958229a261978dc74e1a82647bd64f2e3f4a046e5c16ec142f2267c7aa1f"
    assert key(config(**{"model.width": 64})) == old


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_the_form_and_what_grows_change_nothing_at_the_base(config: Config, form: str) -> None:
    assert key(config(**{"parameterization.form": form, "parameterization.scale": "head_dim"})) == key(config())
    wide = {"model.width": 64}
    assert key(config(**wide, **{"parameterization.form": form})) != key(config(**wide))


@pytest.mark.parametrize(
    "change",
    [
        {"hp.output_mult": 2.0},
        {"hp.init_std.input": 0.5},
        {"hp.lr.input": 8.0},
        {"parameterization.init": "table"},
        {"optimizer.lr": 0.125},
        {"model.depth": 3},
        {"data.seq_len": 32},
        {"train.steps": 11},
        {"precision.name": "bf16"},
        {"seed": 1},
    ],
)
def test_what_changes_the_numbers_changes_the_name_at_the_base_and_elsewhere(
    config: Config, change: dict[str, Any]
) -> None:
    assert key(config(**change)) != key(config())
    assert key(config(**{"model.width": 64}, **change)) != key(config(**{"model.width": 64}))


def test_hyperparameters_of_mup_are_shared_too_at_the_base(config: Config) -> None:
    tuned = {"hp.lr.input": 8.0, "hp.output_mult": 2.0}
    assert key(config(**tuned, **{"parameterization.name": "sp"})) == key(config(**tuned))


def test_another_corpus_is_another_trial(config: Config) -> None:
    assert trial_key(config(), "other corpus") != key(config())


def test_where_it_runs_does_not_name_a_trial(config: Config) -> None:
    places = {"run_dir": "x", "resume": "never", "logger": {}, "engine": {}, "search": {}, "subject": "mup"}
    assert key({**config(device="cuda"), **places}) == key(config())


def test_an_absolute_parameterization_shares_nothing(config: Config) -> None:
    absolute = dataclasses.replace(PARAMETERIZATIONS["mup"], kind="absolute")
    assert not is_at_base(config(), {"mup": absolute})
    assert is_at_base(config())


def test_points_that_share_a_trial_stay_two_points(config: Config) -> None:
    mup, sp = (Point.of(config(**{"parameterization.name": name}), "corpus") for name in ("mup", "sp"))
    assert mup.key == sp.key
    assert mup.id != sp.id


def test_a_sweep_is_its_points_in_whatever_order(config: Config) -> None:
    points = [Point.of(config(seed=seed), "corpus") for seed in range(3)]
    assert sweep_id(points) == sweep_id(points[::-1])
    assert sweep_id(points) != sweep_id(points[:2])
