"""Base shapes that mup saved are a base: the plan is that of the width they were made at."""

from __future__ import annotations

import mup
import pytest
from torch import nn
from toy_models import Decoder

import mutransfer as mt
from mutransfer.errors import AlreadyParameterizedError, RunError, ShapeError
from mutransfer.planning.bsh import read_bsh

BASE, DELTA, WIDTH = 16, 24, 64


def mlp(width: int, readout: type = nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2 * width), readout(2 * width, 3))


def decoder(width: int, readout: type = nn.Linear) -> nn.Module:
    model = Decoder(width)
    model.readout = readout(width, model.readout.out_features)
    return model


@pytest.fixture
def saved(tmp_path):
    def save(make, base=BASE, delta=DELTA):
        path = tmp_path / "base.bsh"
        mup.make_base_shapes(make(base), make(delta), savefile=str(path))
        return path

    return save


@pytest.mark.parametrize("make", [mlp, decoder])
def test_the_plan_is_that_of_the_width_and_its_groups_are_mups(make, saved):
    path = saved(lambda width: make(width, mup.MuReadout))
    model = make(WIDTH)
    plan = mt.parameterize(model, "mup", base=path, factory=make, form="explicit")
    assert not plan.diff(mt.plan(make(WIDTH), "mup", base=BASE, factory=make, form="explicit"))
    assert plan.diff(mt.plan(make(WIDTH), "mup", base=DELTA, factory=make, form="explicit")), (
        "another base, another plan"
    )
    theirs = make(WIDTH, mup.MuReadout)
    mup.set_base_shapes(theirs, str(path))
    names = {id(p): name for name, p in theirs.named_parameters()}
    for group in mup.MuAdamW(theirs.parameters(), lr=1.0, weight_decay=1.0).param_groups:
        for parameter in group["params"]:
            line = plan[names[id(parameter)]]
            assert (line.lr, line.weight_decay) == (group["lr"], group["weight_decay"])


def test_the_file_says_which_sizes_grow(saved):
    shapes = read_bsh(saved(mlp))
    assert shapes["0.weight"] == (BASE, None)
    assert shapes["2.weight"] == (2 * BASE, BASE)
    assert read_bsh(saved(lambda width: nn.DataParallel(mlp(width)))) == shapes


def test_a_model_with_a_config_needs_no_factory(saved):
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(width: int) -> nn.Module:
        config = LlamaConfig(
            hidden_size=width, intermediate_size=2 * width, num_attention_heads=width // 8, num_hidden_layers=1,
            num_key_value_heads=width // 8, vocab_size=31, tie_word_embeddings=False,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    path, model = saved(make), make(WIDTH)
    assert not mt.plan(model, "mup", base=str(path)).diff(mt.plan(model, "mup", base=BASE))


def test_sizes_alone_are_no_base(saved):
    with pytest.raises(ShapeError, match=r"base.bsh holds the base's sizes and not its init. Give factory="):
        mt.plan(mlp(WIDTH), "mup", base=saved(mlp))


def test_a_file_of_another_model_names_the_first_difference(saved):
    def other(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3 * width), nn.Linear(3 * width, 3))

    with pytest.raises(
        ShapeError, match=r"factory= makes a model fits base.bsh. At width 16, '2.bias' is \[48\] and \[32\]"
    ):
        mt.plan(other(WIDTH), "mup", base=saved(mlp), factory=other)
    with pytest.raises(ShapeError, match=r"'blocks.0.down.bias' is in the file only"):
        mt.plan(other(WIDTH), "mup", base=saved(Decoder), factory=other)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "a: 3", "a: [1.5]", "a: [x]", "!!python/object/apply:os.getcwd []", "{"]
)
def test_anything_else_is_no_base_shapes_and_is_not_run(text, tmp_path):
    path = tmp_path / "base.bsh"
    path.write_text(text)
    with pytest.raises(ShapeError, match="holds no base shapes"):
        mt.plan(mlp(WIDTH), "mup", base=path, factory=mlp)


def test_a_missing_file_is_called_that(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        mt.plan(mlp(WIDTH), "mup", base=tmp_path / "no.bsh", factory=mlp)


def test_a_model_that_is_mups_already_is_refused(saved):
    with pytest.raises(AlreadyParameterizedError, match=r"part '3' is made or scaled by microsoft/mup.*nn.Linear"):
        mt.plan(mlp(WIDTH, mup.MuReadout), "mup", base=BASE, factory=mlp)
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH))
    mup.set_base_shapes(model, None)
    with pytest.raises(AlreadyParameterizedError, match="microsoft/mup"):
        mt.plan(model, "mup", base=BASE, factory=mlp)
