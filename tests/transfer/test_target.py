from __future__ import annotations

import math

import pytest

from mutransfer.errors import ConfigError
from mutransfer.transfer import analyze, analyze_records, points_from_records, transfer_hyperparameters


def sweep(trial, name="mup", widths=(32, 64, 128), drift=0.0):
    return [
        trial(
            name,
            w,
            lr,
            seed,
            2 + 0.05 * (lr + 6 - drift * math.log2(w / 32)) ** 2 + 0.01 * seed + 0.001 * ((lr * 7 + seed) % 3),
        )
        for w in widths
        for lr in range(-10, -2)
        for seed in (0, 1)
    ]


def test_the_override_goes_into_train(trial):
    found = transfer_hyperparameters(analyze_records(sweep(trial)), {"width": 1024})
    assert found.override.startswith("model.width=1024 base=32 parameterization=mup optimizer.lr=0.01")
    assert found.override.endswith(" hp.lr.input=8")
    assert found.command.startswith("mutransfer train model=gpt model.depth=2 model.width=1024 ")
    assert found.cautions == ()


def test_every_number_says_the_rule_and_the_measurement_behind_it(trial):
    found = transfer_hyperparameters(sweep(trial), {"model.width": 1024})
    lr = next(one for one in found.values if one.key == "optimizer.lr")
    assert lr.value == pytest.approx(2**-6, rel=0.02)
    assert "best at width 128" in lr.source
    assert found["lr of hidden"] == pytest.approx(lr.value / 32)  # Table 8: 1 / m_in
    assert found["lr of input"] == pytest.approx(lr.value * 8)
    assert found["lr of output"] == pytest.approx(lr.value)
    hidden = next(one for one in found.roles if one.key == "lr of hidden")
    assert "m_in^-1" in hidden.rule
    assert "Table 8" in hidden.source


def test_a_roles_lr_goes_with_its_multiplier_and_init(trial):
    """Table 8 at 32 times the base, with output_mult 2: typed from the paper."""
    records = [trial("mup", r.config["model"]["width"], math.log2(r.config["optimizer"]["lr"]), r.config["seed"],
                     r.val_loss, output_mult=2.0) for r in sweep(trial)]  # fmt: skip
    found = transfer_hyperparameters(records, {"width": 1024})
    numbers = {one.key: (one.multiplier, one.init) for one in found.roles}
    assert numbers["lr of output"] == (2 / 32, 1.0)
    assert numbers["lr of hidden"] == (1.0, pytest.approx(32**-0.5))
    assert numbers["lr of input"] == numbers["lr of vector"] == numbers["lr of scalar"] == (1.0, 1.0)
    assert "lr of output = 0.01558, multiplier 0.0625, init std x 1 " in str(found)
    assert "holds together with its forward multiplier" in str(found)


def test_the_forms_of_mup_differ_in_where_the_factor_stands(trial):
    by_table = {
        name: {one.key: one for one in transfer_hyperparameters(sweep(trial, name), {"width": 1024}).roles}
        for name in ("mup", "mup-table3", "mup-table9")
    }
    output = {name: roles["lr of output"] for name, roles in by_table.items()}
    effective = {name: one.multiplier * one.init for name, one in output.items()}
    assert effective == {name: pytest.approx(1 / 32) for name in by_table}
    assert len({round(one.value / output["mup"].value, 6) for one in output.values()}) == 3


def test_one_tuned_size_is_enough_and_the_caution_says_what_is_not_measured(trial):
    found = transfer_hyperparameters(sweep(trial, widths=(64,)), {"width": 1024})
    assert found["optimizer.lr"] == pytest.approx(2**-6, rel=0.02)
    assert "not measured" in found.cautions[0]


def test_one_size_tuned_over_mups_own_hyperparameter_alone(trial):
    records = [trial("mup", 64, -6, seed, 2 + 0.05 * (math.log2(value) - 1) ** 2 + 0.01 * seed, output_mult=value)
               for value in (0.5, 1.0, 2.0, 4.0, 8.0) for seed in (0, 1)]  # fmt: skip
    found = transfer_hyperparameters(records, {"width": 1024})
    assert (found["optimizer.lr"], found["hp.output_mult"]) == (2**-6, pytest.approx(2, rel=0.02))
    assert "not measured" in found.cautions[0]


def test_what_does_not_transfer_is_cautioned(trial):
    found = transfer_hyperparameters(sweep(trial, "sp", drift=-1.0), {"width": 1024})
    assert "does not transfer" in found.cautions[0]


def test_the_largest_proxys_optimum_is_carried_over(trial):
    found = transfer_hyperparameters(sweep(trial, drift=-0.2), {"width": 1024})
    assert math.log2(found["optimizer.lr"]) == pytest.approx(-6.4, abs=0.05)


def test_a_size_without_a_rule_is_refused(trial):
    with pytest.raises(ConfigError, match=r"no rule for depth \(m_L = 4\)"):
        transfer_hyperparameters(sweep(trial), {"width": 1024, "depth": 8})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"widht": 8}, "Did you mean 'width'"),
        ({}, "no size"),
        ({"width": 0}, "positive"),
        ({"width": "big"}, "positive"),
    ],
)
def test_bad_targets(trial, target, message):
    with pytest.raises(ConfigError, match=message):
        transfer_hyperparameters(sweep(trial), target)


def test_a_parameterization_that_was_not_swept(trial):
    with pytest.raises(ConfigError, match="Did you mean 'mup'"):
        transfer_hyperparameters(analyze_records(sweep(trial)), {"width": 1024}, parameterization="mupp")


def test_a_report_of_bare_points_knows_no_settings(trial):
    with pytest.raises(ConfigError, match="analyze_records"):
        transfer_hyperparameters(analyze(points_from_records(sweep(trial))), {"width": 1024})


def test_a_target_below_the_proxy_is_cautioned(trial):
    found = transfer_hyperparameters(sweep(trial), {"width": 64})
    assert "smaller than the largest proxy" in found.cautions[0]
    assert "64" in str(found)


def test_a_report_of_one_seed_gives_the_value_without_an_interval(trial):
    found = transfer_hyperparameters([r for r in sweep(trial, widths=(64,)) if r.config["seed"] == 0], {"width": 1024})
    assert "[" not in found.values[0].source


def test_too_few_values_at_the_only_size(trial):
    few = [r for r in sweep(trial, widths=(64,)) if r.config["optimizer"]["lr"] > 2**-4.5]
    with pytest.raises(ConfigError, match="at least 3 must converge"):
        transfer_hyperparameters(few, {"width": 1024})


def test_an_optimum_at_the_edge_of_the_only_grid_is_cautioned(trial):
    edge = [r for r in sweep(trial, widths=(64,)) if r.config["optimizer"]["lr"] > 2**-6.5]
    assert "not between tried ones" in transfer_hyperparameters(edge, {"width": 1024}).cautions[1]


def test_a_table_of_ones_own_has_no_roles_to_print(trial):
    assert transfer_hyperparameters(sweep(trial, "my-table"), {"width": 1024}).roles == ()


def test_the_swept_size_stays_the_largest_proxys_where_the_target_names_another(trial):
    records = [
        trial("completep", 32, k, seed, loss=2 + 0.1 * (k + 6) ** 2 + 0.01 * seed, depth=depth, base_depth=2)
        for depth in (2, 4, 8)
        for k in range(-8, -3)
        for seed in (0, 1)
    ]
    found = transfer_hyperparameters(records, {"width": 256})
    assert "model.depth=8" in found.command
    assert "model.width=256" in found.command
    assert any("m_depth = 4" in role.rule for role in found.roles)


def test_an_optimum_at_the_edge_of_the_only_grid_has_no_interval_that_ends_there(trial):
    records = [trial("mup", 64, k, seed, loss=2 + 0.1 * (k + 3) ** 2) for k in range(-8, -3) for seed in (0, 1)]
    found = transfer_hyperparameters(records, {"width": 256})
    assert found["optimizer.lr"] == 2**-4
    assert "[" not in found.values[0].source
