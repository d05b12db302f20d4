"""Overrides mean what Hydra's grammar says, and every mistake in them is answered before anything trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mutransfer.errors import ConfigError, MutransferError, RuleError
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.sweep.compose import Composer, config_dir, expand_numbers
from mutransfer.sweep.points import expand
from mutransfer.sweep.validate import ROOTS, SECTIONS, numeric_keys, validate


@pytest.fixture(scope="module")
def sweep() -> Composer:
    return Composer("sweep")


def fingerprint(config: object) -> str:
    return "corpus"


def test_the_grid_is_the_product_of_the_values(sweep: Composer) -> None:
    configs = expand(sweep, ["model.width=32,64", "optimizer.lr=2**-9,2**-8", "parameterization=mup,sp"]).configs
    found = {(c["model"]["width"], c["optimizer"]["lr"], c["parameterization"]["name"]) for c in configs}
    assert found == {(w, lr, p) for w in (32, 64) for lr in (2**-9, 2**-8) for p in ("mup", "sp")}


def test_hydras_own_functions_span_a_grid(sweep: Composer) -> None:
    configs = expand(sweep, ["seed=range(0,3)", "optimizer.lr=choice(2**-2,2**-1)"]).configs
    assert [(c["seed"], c["optimizer"]["lr"]) for c in configs] == [(s, lr) for s in (0, 1, 2) for lr in (0.25, 0.5)]


def test_merging_into_one_composed_config_equals_composing_every_point(sweep: Composer) -> None:
    overrides = ["model.width=32,64", "hp.lr.input=8", "optimizer.betas=[0.8,0.9]", "base=${model.width}"]
    for point in sweep.points(overrides):
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            theirs = OmegaConf.to_container(compose("sweep", overrides=point), resolve=True)
        assert sweep.config(point) == theirs


def test_the_base_follows_the_model_unless_it_is_given(sweep: Composer) -> None:
    assert sweep.config(["model.base_width=16"])["base"] == 16
    assert sweep.config(["model.base_width=16", "base=64"])["base"] == 64
    assert sweep.config(["model.base_depth=3"])["base_depth"] == 3
    assert sweep.config(["model.base_depth=3", "base_depth=4"])["base_depth"] == 4
    assert sweep.config(["model=hf"])["base_depth"] is None


def test_points_that_are_written_twice_are_one(sweep: Composer) -> None:
    assert len(expand(sweep, ["seed=0,1,1,0"]).points(fingerprint)) == 2


def test_the_demo_shares_its_base_width_trials_and_fits_its_budget(sweep: Composer) -> None:
    points = expand(sweep, ["experiment=demo"]).points(fingerprint)
    trials = {point.key: point for point in points}
    seconds = {32: 1.2, 64: 2, 128: 4.6, 256: 13.5}  # per trial, measured
    assert sum(seconds[point.config["model"]["width"]] for point in trials.values()) <= 850
    at_base = [p for p in points if p.config["model"]["width"] == 32 and p.config["hp"]["lr"]["input"] == 16]
    assert {p.config["parameterization"]["name"] for p in at_base} == {"mup", "sp", "sp-embedding"}
    by_table = {
        name: {p.key for p in at_base if p.config["parameterization"]["name"] == name} for name in ("mup", "sp")
    }
    assert by_table["sp"] < by_table["mup"]


def test_the_experiment_over_depth_shares_its_base_trials_and_fits_its_budget(sweep: Composer) -> None:
    points = expand(sweep, ["experiment=depth_transfer"]).points(fingerprint)
    trials = {point.key: point for point in points}
    seconds = {2: 1.5, 4: 2.7, 8: 5.3, 16: 10.7}  # per trial, measured
    assert sum(seconds[point.config["model"]["depth"]] for point in trials.values()) <= 25 * 60
    at_base = {p.key for p in points if p.config["model"]["depth"] == 2}
    assert len(at_base) == 5 * 3
    assert {p.config["model"]["width"] for p in points} == {64}
    for name in ("mup", "depth-mup", "completep"):
        own = [p for p in points if p.config["parameterization"]["name"] == name]
        assert {p.config["model"]["depth"] for p in own} == {2, 4, 8, 16}
        assert at_base <= {p.key for p in own}


def test_an_override_replaces_that_key_in_every_grid(sweep: Composer) -> None:
    configs = expand(sweep, ["experiment=demo", "parameterization=sp", "model.width=64"]).configs
    assert {(c["parameterization"]["name"], c["model"]["width"]) for c in configs} == {("sp", 64)}


def test_grids_may_be_written_as_text_or_as_lists(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    grids = """
search:
  grids:
    - {model.width: "32,64", optimizer.lr: [2**-3, 0.5], train.clip_norm: [null, 1], model.tied: true}
    - {seed: 7, parameterization: [sp, ntk]}
"""
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + grids)
    configs = expand(Composer("sweep", tmp_path), ["experiment=mine"]).configs
    first, second = configs[:8], configs[8:]
    found = {(c["model"]["width"], c["optimizer"]["lr"], c["train"]["clip_norm"]) for c in first}
    assert found == {(width, lr, clip) for width in (32, 64) for lr in (0.125, 0.5) for clip in (None, 1.0)}
    assert all(c["model"]["tied"] for c in first)
    assert [(c["seed"], c["parameterization"]["name"]) for c in second] == [(7, "sp"), (7, "ntk")]


def test_many_points_are_composed_without_composing_each(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, calls = Composer("sweep"), []
    monkeypatch.setattr("mutransfer.sweep.compose.compose", lambda *a, **k: calls.append(a) or compose(*a, **k))
    expand(sweep, ["parameterization=mup,sp", "model.width=32,64", f"seed={','.join(map(str, range(20)))}"])
    assert len(calls) <= 3


def test_a_users_own_folder_adds_options_and_experiments(tmp_path: Path) -> None:
    folder = tmp_path / "my configs"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nrun_dir: runs/mine\nseed: 7\n")
    config = Composer("train", folder).config(["experiment=mine"])
    assert (config["run_dir"], config["seed"]) == ("runs/mine", 7)
    with pytest.raises(ConfigError, match="There is no experiment=mine"):
        Composer("train").config(["experiment=mine"])
    with pytest.raises(ConfigError, match="is not a folder"):
        Composer("train", tmp_path / "missing")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.widht=3"], "no config key 'model.widht'. Did you mean 'model.width'"),
        (["lr=3"], "no config key 'lr'. Did you mean 'optimizer.lr'"),
        (["modle=gpt"], "Did you mean 'model'"),
        (["experimnt=demo"], "Did you mean 'experiment'"),
        (["model=gtp"], "no model=gtp. Did you mean 'gpt'"),
        (["optimizer=adamm"], "no optimizer=adamm. Did you mean 'adam"),
        (["parameterization=mupp"], "no parameterization=mupp. Did you mean 'mup'"),
        (["parameterization.name=mupp"], "no parameterization 'mupp'. Did you mean 'mup'"),
        (["optimizer.name=adamm"], "no optimizer.name=adamm. Did you mean 'adam"),
        (["+model.foo=1"], "no config key 'model.foo'"),
        (["+foo=1"], "no config key 'foo'"),
        (["++hp.lr.foo=1"], "no config key 'hp.lr.foo'"),
        (["~model"], "cannot be removed"),
        (["optimizer.lr=0"], "optimizer.lr=0.0: it must be greater than 0"),
        (["optimizer.lr=-2**-3"], "optimizer.lr=-0.125: it must be greater than 0"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: a number is expected, such as"),
        (["optimizer.lr=2**"], "optimizer.lr: '2\\*\\*' is not a number"),
        (["optimizer.lr=9**9**9"], "optimizer.lr: '9\\*\\*9\\*\\*9' must be finite"),
        (["optimizer.lr=__import__('os')"], "cannot be read"),
        (["optimizer.lr="], "optimizer.lr=: a number is expected"),
        (["optimizer.lr=${foo}"], "cannot be resolved"),
        (["optimizer.betas=[0.9]"], "two numbers are needed"),
        (["optimizer.weight_decay=-1"], "must not be negative"),
        (["optimizer=adam", "optimizer.weight_decay=0.1"], "No width law is known"),
        (["optimizer=sgd", "parameterization=sp-embedding"], "has no rule for optimizer 'sgd'"),
        (["model.width=66"], "must be a multiple of model.head_dim=16, such as 64 or 80"),
        (["model.width=5"], "must be a multiple of model.head_dim=16, such as 16"),
        (["model.width=64", "base=40"], "base=40 is no width that this model can have: .*such as 32 or 48"),
        (["model.width=64", "model.base_width=40"], "base=40 is no width that this model can have"),
        (["optimizer.lr=2^-6"], r"optimizer.lr: '2\^-6' is not a number. Write a power with \*\*, as in 2\*\*-10"),
        (["base_depth=0"], "base_depth=0: it must be greater than 0"),
        (["model.base_depth=two"], "base_depth=two: a whole number is expected"),
        (["parameterization=completep", "base_depth=null"], "completep scales with depth and needs base_depth: give"),
        (
            ["parameterization=depth-mup", "model=hf", "model.type=llama"],
            "depth-mup scales with depth and needs model.depth and base_depth: give the number of blocks",
        ),
        (["hp.residual_mult=2"], "scales residual branches, and parameterization=mup has no depth rules"),
        (["model.width=64.5"], "model.width=64.5: a whole number is expected"),
        (["model.head_dim=x"], "model.head_dim=x: a whole number is expected, such as 64, or null"),
        (["base=null"], "base=null: a whole number is expected"),
        (["device=null"], "device=null: a text is expected"),
        (["train.compile=yess"], "train.compile=yess: true or false is expected"),
        (["hp.lr=3"], "hp.lr=3: a group of settings is expected: set them one by one, as in hp.lr.name=value"),
        (["optimizer.betas=0.9"], r"optimizer.betas=0.9: a list is expected, such as \[0.9,0.95\]"),
        (["optimizer.betas=[0.9,a]"], r"optimizer.betas\[1\]=a: a number is expected"),
        (["search.grids=[3]"], "search: a value in it is of another type"),
        (["seed=2**63"], r"seed=9223372036854775808: it must be at least 0 and less than 2\*\*63"),
        (["model.width=2**62"], r"model.width=4611686018427387904: it is too large. Give a whole number below 2\*\*31"),
        (["train.steps=99999999999999999999"], "train.steps=99999999999999999999: it is too large"),
        (["data=synthetic", "model=mlp", "data.teacher_seed=-1"], "data.teacher_seed=-1: it must be at least 0"),
        (["model.kwargs={...}", "model=factory"], "Write a map as 'model.kwargs={name:value,other:value}'"),
        (["model.kwargs=3", "model=factory", "model.path=a:b"], "a group of settings .* as in model.kwargs.name=value"),
        (["optimizer.betas=[0.9"], r"cannot be read. Write a list as 'optimizer.betas=\[value,value\]'"),
        (["run_dir=${nokey}"], "run_dir cannot be resolved"),
        (["train.schedule=cosin"], "train.schedule=cosin: there is no such choice. Did you mean 'cosine'"),
        (["train.warmup=2"], "between 0 and 1"),
        (["train.schedule=wsd", "train.warmup=.6", "train.decay=.6"], "leave no steps"),
        (["seed=-1"], "must be at least 0"),
        (["base=0"], "base=0: it must be greater than 0"),
        (["seed=interval(0,1)"], "Write the values out"),
        (["run_dir=a,b"], "cannot be swept"),
        (["model"], "cannot be read"),
        (["model.width=${model"], "cannot be read"),
    ],
)
def test_bad_input_gets_one_clear_sentence(sweep: Composer, overrides: list[str], message: str) -> None:
    with pytest.raises(MutransferError, match=message) as caught:
        expand(sweep, overrides)
    assert "\n" not in str(caught.value)
    assert not any(
        word in str(caught.value) for word in ("AnyNode", "ListConfig", "DictConfig", "Dict[", "object_type")
    )


def test_every_optimizer_that_a_refusal_offers_can_be_chosen(sweep: Composer) -> None:
    with pytest.raises(RuleError) as refused:
        expand(sweep, ["parameterization=sp-embedding", "optimizer=sgd"])
    offered = re.search(r"Choose (.*), or another parameterization", str(refused.value))
    assert offered is not None
    lines = [line.split() for line in offered[1].split(", ")]
    configs = [expand(sweep, ["parameterization=sp-embedding", *line]).configs[0] for line in lines]
    assert [config["optimizer"]["name"] for config in configs] == ["adam", "adamw", "adam-l2"]


def test_a_map_may_be_given_whole_or_key_by_key(sweep: Composer) -> None:
    mine = ["model=factory", "model.path=my.code:make"]
    (whole,) = expand(sweep, [*mine, "model.kwargs={size:3,mode:fast}"]).configs
    (by_key,) = expand(sweep, [*mine, "model.kwargs.size=3", "model.kwargs.mode=fast"]).configs
    assert whole["model"]["kwargs"] == by_key["model"]["kwargs"] == {"size": 3, "mode": "fast"}


def test_good_input_is_not_refused(sweep: Composer) -> None:
    good = [
        "model=gpt",
        "model.width=64",
        "optimizer=sgd",
        "optimizer.lr=2**-3",
        "hp.lr={input: 8}",
        "train.clip_norm=null",
    ]
    config = expand(sweep, good).configs[0]
    assert config["hp"]["lr"] == {"input": 8.0, "hidden": 1.0, "output": 1.0, "vector": 1.0, "scalar": 1.0}
    assert config["train"]["clip_norm"] is None


def test_arithmetic_is_for_numbers_only() -> None:
    assert expand_numbers("run_dir=2024-01-02") == "run_dir=2024-01-02"
    assert expand_numbers("optimizer.lr=1/4") == "optimizer.lr=0.25"
    assert expand_numbers("depths=[2**1,2**2,2**3]") == "depths=[2,4,8]"
    assert expand_numbers("widths=[2**6,128,2**8]") == "widths=[64,128,256]"
    assert {"model.width", "optimizer.betas", "hp.lr.input", "widths", "depths", "train.clip_norm"} <= numeric_keys()


def options() -> Iterator[tuple[str, str]]:
    for group, names in Composer("sweep").groups().items():
        yield from ((group, name) for name in names)


NEEDED = {
    "model=hf": "model.type=llama",
    "model=factory": "model.path=package.module:make",
    "data=text": "data.path=book.txt",
    "data=memmap": "data.path=tokens.bin",
    "data=hf": "data.dataset=text",
}
"""What has no default: the user's own model or data."""


@pytest.mark.parametrize(("group", "option"), list(options()))
def test_every_option_of_every_group_composes_and_fits_its_schema(sweep: Composer, group: str, option: str) -> None:
    choice = f"{group}={option}"
    expand(sweep, [choice, *([NEEDED[choice]] if choice in NEEDED else [])])


@pytest.mark.parametrize("choice", NEEDED)
def test_what_has_no_default_is_asked_for(sweep: Composer, choice: str) -> None:
    with pytest.raises(ConfigError, match=r"(path|dataset) is missing|needs exactly one of model\.type"):
        expand(sweep, [choice])


def test_a_model_gets_data_that_it_can_take_unless_data_is_chosen(sweep: Composer) -> None:
    assert sweep.config(["model=resnet"])["data"]["name"] == "digits"
    assert sweep.config(["model=resnet", "data=synthetic"])["data"]["name"] == "synthetic"
    assert sweep.config(["model=gpt"])["data"]["name"] == "stdlib"
    assert sweep.config([])["data"]["name"] == "stdlib"


@pytest.mark.parametrize("root", list(ROOTS))
def test_every_root_composes_and_fits_its_schema(root: str) -> None:
    validate(root, Composer(root).config([]))


@pytest.mark.parametrize("root", ["train", "check", "explain"])
def test_an_experiment_serves_every_verb(root: str) -> None:
    config = validate(root, Composer(root).config(["experiment=demo"]))
    assert config["hp"]["lr"]["input"] == 16
    assert "search" not in config


def test_groups_offer_what_the_registries_hold() -> None:
    groups = Composer("sweep").groups()
    assert set(groups["parameterization"]) == set(PARAMETERIZATIONS)
    assert set(groups["optimizer"]) <= set(OPTIMIZERS)
    assert set(groups) - {"experiment"} <= set(SECTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1e400", "optimizer.lr=1e400: it must be finite"),
        ("2**-8,1e400", "optimizer.lr=1e400: it must be finite"),
        ("-inf", "optimizer.lr=-inf: it must be finite"),
        ("nan", "optimizer.lr=nan is no number: it must be greater than 0 and finite"),
        ("0x10", "optimizer.lr=0x10: a number is expected, such as 0.001"),
        ("-1", "optimizer.lr=-1.0: it must be greater than 0 and finite"),
    ],
)
def test_a_learning_rate_that_is_none_is_quoted_as_it_was_typed(text: str, said: str, sweep: Composer) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        expand(sweep, [f"optimizer.lr={text}"])


def test_digits_may_be_grouped_as_python_and_hydra_read_them(sweep: Composer) -> None:
    (config,) = expand(sweep, ["optimizer.lr=1_000"]).configs
    assert config["optimizer"]["lr"] == 1000
