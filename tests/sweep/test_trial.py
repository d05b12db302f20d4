"""A trial is a pure function of its config: same config, same numbers, whatever ran before in the same process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mutransfer.errors import MutransferError
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.key import trial_key
from mutransfer.sweep.points import expand
from mutransfer.sweep.preflight import fingerprint, gpus, preflight
from mutransfer.sweep.trial import Trials, hyperparameters, run_trial

TINY = ["model=gpt", "model.depth=1", "train.steps=4", "train.eval_batches=1", "data.batch_size=2", "data.seq_len=16"]


def configs(*overrides: str) -> list[dict[str, Any]]:
    return list(expand(Composer("sweep"), [*TINY, *overrides]).configs)


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials()


def numbers(record: Any) -> Any:
    return record.val_loss, record.train_loss, record.history


def test_the_same_config_gives_the_same_numbers_after_other_trials(trials: Trials) -> None:
    (first,), others = configs("model.width=64", "model.dropout=0.1"), configs("model.width=32,64", "seed=5,6")
    alone = numbers(run_trial(first))
    for other in others:
        trials(other)
    assert numbers(trials(first)) == alone
    assert numbers(trials(others[-1])) != alone


@pytest.mark.parametrize("hp", ["hp.lr.input=1", "hp.lr.input=8 hp.output_mult=2 hp.init_std.hidden=0.5"])
def test_trials_that_share_a_name_give_the_same_numbers(trials: Trials, hp: str) -> None:
    tables = "parameterization=mup,sp,sp-embedding,ntk,ntk-stable,mean-field,mup-table3,mup-table9,depth-mup,completep"
    shared = configs("model.width=32", tables, "base_depth=1", *hp.split())
    assert len({trial_key(config, "corpus") for config in shared}) == 1
    assert {numbers(trials(config)) for config in shared} == {numbers(trials(shared[0]))}


def test_trials_that_do_not_share_a_name_differ(trials: Trials) -> None:
    wide = configs("model.width=64", "parameterization=mup,sp,sp-embedding,ntk")
    assert len({trial_key(config, "corpus") for config in wide}) == 4
    assert len({numbers(trials(config)) for config in wide}) == 4


def test_tables_with_depth_rules_differ_away_from_the_bases_depth_and_from_each_other(trials: Trials) -> None:
    deep = configs("model.width=32", "model.depth=3", "base_depth=1", "parameterization=mup,depth-mup,completep")
    assert len({trial_key(config, "corpus") for config in deep}) == 3
    assert len({numbers(trials(config)) for config in deep}) == 3


def test_the_branches_own_multiplier_is_a_hyperparameter_of_every_depth(trials: Trials) -> None:
    for depth in (1, 3):
        pair = configs(f"model.depth={depth}", "base_depth=1", "parameterization=completep", "hp.residual_mult=1,2")
        assert len({numbers(trials(config)) for config in pair}) == 2


def test_seeds_are_paired_over_parameterizations(trials: Trials) -> None:
    mup, sp = configs("model.width=64", "parameterization=mup,sp")
    batches = [trials.data(config).batch(0, seed=config["seed"]) for config in (mup, sp)]
    assert torch.equal(batches[0][0], batches[1][0])
    draws = [trials.model(config).embedding.weight for config in (mup, sp)]
    assert torch.equal(*draws)


def test_the_record_says_what_was_run_and_where(trials: Trials) -> None:
    (config,) = configs("model.width=64")
    record = trials(config)
    assert record.status == "done"
    assert record.key == trial_key(config, fingerprint(config))
    assert "run_dir" not in record.config
    assert (record.steps, record.tokens) == (4, 4 * 2 * 16)
    assert record.parameters == sum(p.numel() for p in trials.model(config).parameters())
    assert record.cpu_seconds > 0
    assert set(record.environment) == {"python", "torch", "platform", "commit", "device", "data_sha256"}


def test_a_diverged_trial_is_a_result(trials: Trials) -> None:
    (config,) = configs("model.width=32", "optimizer=sgd", "optimizer.lr=1e30", "train.clip_norm=null")
    record = trials({**config, "train": {**config["train"], "steps": 12}})
    assert (record.status, record.val_loss) == ("diverged", None)


def test_plans_are_kept_by_all_that_they_depend_on(trials: Trials) -> None:
    def plan(*overrides: str) -> Any:
        (config,) = configs("model.width=64", *overrides)
        return trials.plan(config, trials.model(config))

    assert plan("optimizer.lr=0.5", "seed=3") is plan()
    for change in (
        "parameterization=sp",
        "hp.lr.input=2",
        "optimizer=sgd",
        "base=16",
        "parameterization=completep base_depth=1",
        "parameterization.form=explicit",
    ):
        assert plan(*change.split()) is not plan()
    deep = [plan("parameterization=completep", f"base_depth={depth}") for depth in (1, 2)]
    assert deep[0] is not deep[1]


def test_hyperparameters_are_named_as_parameterize_names_them() -> None:
    assert hyperparameters({"output_mult": 2.0, "lr": {"input": 8.0}}) == {"output_mult": 2.0, "lr.input": 8.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=cuda:99"], "device=cuda:99 cannot be used here"),
        (["device=gpu"], "device=gpu is no device. Use auto, cpu, cuda"),
        (["model=mlp", "data=stdlib"], "takes vectors or images, and this data gives tokens"),
    ],
)
def test_what_cannot_be_trained_stops_the_sweep_before_it_starts(overrides: list[str], message: str) -> None:
    impossible = expand(Composer("sweep"), overrides).configs
    with pytest.raises(MutransferError, match=message):
        preflight(impossible)


def test_every_data_set_of_a_sweep_is_held_against_the_model() -> None:
    synthetic = ["data=synthetic", "data.batch_size=2", "train.eval_batches=1"]
    mixed = expand(Composer("sweep"), ["model=gpt", "model.depth=1", *synthetic, "data.task=tokens,regression"]).configs
    for order in (mixed, mixed[::-1]):
        with pytest.raises(MutransferError, match="this data gives vectors"):
            preflight(order)
    preflight([config for config in mixed if config["data"]["task"] == "tokens"])


def test_depth_rules_for_a_model_without_residual_branches_stop_the_sweep_before_it_starts() -> None:
    deep = ["model=mlp", "parameterization=completep", "base_depth=2"]
    with pytest.raises(MutransferError, match="no residual branch was found"):
        preflight(expand(Composer("sweep"), [*deep, "model.width=64", "model.depth=2,4"]).configs)
    with pytest.raises(MutransferError, match="no residual branch was found"):  # the smallest is as deep as the base
        preflight(expand(Composer("sweep"), [*deep, "model.width=32", "model.depth=2,4"]).configs)
    preflight(expand(Composer("sweep"), [*deep, "model.width=64", "model.depth=2"]).configs)


def test_what_can_be_trained_passes_the_preflight() -> None:
    preflight(configs("model.width=32,64", "parameterization=mup,sp"))


def test_workers_are_spread_over_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mutransfer.sweep.preflight.find_device", torch.device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert gpus("cuda") == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    assert gpus("cuda") == ("4", "7", "9")
    assert gpus("cuda:1") == ("7",)
    assert gpus("cpu") == ()
