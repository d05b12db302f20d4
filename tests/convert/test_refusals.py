"""A slip in a call to parameterize() gets one sentence; a base that leaves some fields as they are is read right."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import AlreadyParameterizedError, ConfigError, MutransferError, RoleError, RuleError, ShapeError


@dataclasses.dataclass
class Config:
    n_embd: int = 32
    n_head: int = 4
    vocab_size: int = 11
    n_inner: int | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError("heads do not divide the width")


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.body = nn.Sequential(nn.Linear(config.n_embd, config.n_embd), nn.ReLU())
        self.readout = nn.Linear(config.n_embd, config.vocab_size, bias=config.bias)

    def forward(self, ids: Tensor) -> Tensor:
        return self.readout(self.body(self.embed(ids)))


# --- slips --------------------------------------------------------------------------------------------------------

SLIPS = {
    "a misspelt field": ({"base": {"n_emdb": 16}}, ConfigError, "Config has no field 'n_emdb'. Did you mean 'n_embd'"),
    "a field that is no name": ({"base": {16: 16}}, ConfigError, "Config has no field 16"),
    "a width in quotes": ({"base": {"n_embd": "16"}}, ConfigError, "'n_embd' = '16' where the model has 32"),
    "a broken width": ({"base": {"n_embd": 16.5}}, ConfigError, "a positive whole number"),
    "a width of nothing": ({"base": {"n_embd": 0}}, ConfigError, "a positive whole number"),
    "a field that the model has not set": ({"base": {"n_inner": 64}}, ConfigError, "where the model has None"),
    "a base that says nothing": ({"base": {}}, ConfigError, "no width in it .it is empty"),
    "a base of another vocabulary's name alone": ({"base": {"vocab_size": 11}}, ConfigError, "no width in it"),
    "a width that the config refuses": (
        {"base": {"n_embd": 18}}, ShapeError, "Model cannot be built with n_embd 18: ValueError: heads do not divide",
    ),
    "a number for inputs": ({"example_inputs": 5}, ConfigError, "is of type int. Give a tensor, a tuple"),
    "a word for inputs": ({"example_inputs": "ids"}, ConfigError, "example_inputs= is of type str"),
    "a list of roles": ({"roles": ["hidden"]}, ConfigError, "roles= is of type list. Give a dict"),
    "a list in place of one role": ({"roles": {"*": ["hidden"]}}, RoleError, "no role .*hidden"),
    "a pattern that is no text": ({"roles": {5: "hidden"}}, RoleError, "pattern '5' matched no parameter"),
    "a list of hyperparameters": ({"hyperparameters": ["lr"]}, ConfigError, "hyperparameters= is of type list"),
    "an optimizer's class": ({"optimizer": torch.optim.AdamW}, RuleError, "'AdamW'; give a name. Did you mean 'adamw'"),
    "an optimizer's class in quotes": ({"optimizer": "AdamW"}, RuleError, "Did you mean 'adamw'"),
    "an optimizer's options": ({"optimizer": {"name": "adamw"}}, RuleError, "no rule for optimizer 'dict'"),
    "a word for strict": ({"strict": "no"}, ConfigError, "strict='no' is not a choice: True raises"),
    "no parameterization": ({"parameterization": None}, RuleError, "no parameterization None. Known: sp, .*mup"),
    "several parameterizations": ({"parameterization": ["mup"]}, RuleError, "no parameterization"),
}  # fmt: skip


@pytest.mark.parametrize("slip", sorted(SLIPS))
def test_a_slip_gets_one_sentence_and_leaves_the_model_alone(slip):
    changed, error, sentence = SLIPS[slip]
    model = Model(Config())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=sentence) as caught:
        mt.parameterize(model, **({"parameterization": "mup", "base": {"n_embd": 16}} | changed))
    assert isinstance(caught.value, MutransferError)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    mt.parameterize(model, "mup", base={"n_embd": 16}, example_inputs=[torch.ones(1, 3, dtype=torch.long)], roles={})


@pytest.mark.parametrize(
    ("own", "width", "nearest"),
    [(Config(48, 6), 20, "16 or 24"), (Config(48, 6), 4, "8"), (Config(48, 6, n_inner=100), 20, "24")],
)
def test_a_width_that_the_heads_do_not_divide_names_the_nearest_that_they_do(own, width, nearest):
    with pytest.raises(ConfigError, match=rf"At width {width}, config field '\w+' = \d+ would become .*: {nearest}\.$"):
        mt.plan(Model(own), "mup", base=width)
    for valid in map(int, nearest.split(" or ")):
        assert mt.plan(Model(own), "mup", base=valid)


# --- a base that repeats the model's own fields ------------------------------------------------------------------


def roles(plan: mt.Plan) -> dict[str, str]:
    return {line.name: line.role.value for line in plan if line.name.endswith("weight")}


PROVEN = {"embed.weight": "input", "body.0.weight": "hidden", "readout.weight": "output"}


@pytest.mark.parametrize("base", [{"n_embd": 16}, {"n_embd": 16, "n_head": 4, "vocab_size": 11, "bias": True}])
def test_a_field_that_base_and_model_share_is_no_width(base):
    plan = mt.plan(Model(Config()), "mup", base=base)
    assert roles(plan) == PROVEN
    assert plan["readout.weight"].m_in == 2


@pytest.mark.parametrize("base", [{"n_embd": 32}, {"n_embd": 32, "n_head": 4, "vocab_size": 11}])
def test_a_base_of_the_models_own_size_tells_its_widths_from_its_vocabulary(base):
    plan = mt.plan(Model(Config()), "mup", base=base, hyperparameters={"lr.output": 2.0})
    assert roles(plan) == PROVEN
    assert plan["readout.weight"].lr == 2.0


def test_a_field_of_an_unknown_name_is_a_width_where_it_is_given_as_one():
    @dataclasses.dataclass
    class Odd:
        girth: int = 32

    class OddModel(Model):
        def __init__(self, config: Odd) -> None:
            super().__init__(Config(config.girth))
            self.config = config

    for girth in (16, 32):
        assert roles(mt.plan(OddModel(Odd()), "mup", base={"girth": girth})) == PROVEN


# --- models with a converted part --------------------------------------------------------------------------------


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Sequential(nn.Linear(width, width), nn.Linear(width, 3)))


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_a_part_of_a_converted_model_and_a_model_around_one_are_refused(form):
    model = mlp(64)
    mt.parameterize(model, "mup", base=16, factory=mlp, form=form)
    head = model[2]
    with pytest.raises(AlreadyParameterizedError, match="This model already carries plan 'mup'"):
        mt.parameterize(head, "mup", base=16, factory=lambda width: mlp(width)[2], init="keep")
    with pytest.raises(AlreadyParameterizedError, match="part 'inner' already carries plan 'mup'"):
        mt.parameterize(Around(copy.deepcopy(model)), "mup", base=16, factory=lambda w: Around(mlp(w)), init="keep")
    with pytest.raises(AlreadyParameterizedError, match="part 'inner' already carries plan 'mup'"):
        mt.parameterize(Around(head), "mup", base=16, factory=lambda w: Around(mlp(w)[2]), init="keep")
    assert mt.parameterize(Around(mlp(64)), "mup", base=16, factory=lambda w: Around(mlp(w)), form=form)


ACTIVATION = nn.ReLU()


def test_an_activation_that_two_models_share_is_no_part_that_was_converted():
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, width), ACTIVATION, nn.Linear(width, 3))

    for _ in range(2):
        assert mt.parameterize(make(64), "mup", base=16, factory=make)


@pytest.mark.parametrize("given", [None, Model, "gpt2", Config()])
def test_what_is_no_model_is_called_that(given):
    with pytest.raises(ConfigError, match=r"is no nn\.Module"):
        mt.plan(given, "mup", base=16)


def test_a_converted_model_is_not_even_planned_for():
    """Its multipliers would be taken for its own."""
    model = mlp(64)
    mt.parameterize(model, "mup", base=16, factory=mlp, form="explicit")
    with pytest.raises(AlreadyParameterizedError, match="already carries plan 'mup'"):
        mt.plan(model, "mup", base=16, factory=mlp)


# --- what nothing is done to needs no proof ----------------------------------------------------------------------


class WithAMixedMatrix(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.mixed = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.mixed.cumsum(0)[0]


def test_a_frozen_and_kept_parameter_needs_no_role():
    model = WithAMixedMatrix(32)
    options = {"base": 16, "factory": WithAMixedMatrix, "example_inputs": torch.zeros(2, 4)}
    model.mixed.requires_grad_(False)
    plan = mt.plan(model, "mup", init="keep", **options)
    assert "nothing is done to it" in plan["mixed"].why
    with pytest.raises(RoleError, match="The role of 'mixed'"):
        mt.plan(model, "mup", **options)
    model.mixed.requires_grad_(True)
    with pytest.raises(RoleError, match="The role of 'mixed'"):
        mt.plan(model, "mup", init="keep", **options)


def test_the_users_word_settles_a_normalized_weight():
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.utils.parametrizations.spectral_norm(nn.Linear(width, 2)))

    options = {"base": 16, "factory": make, "example_inputs": torch.zeros(2, 4)}
    name = "1.parametrizations.weight.original"
    with pytest.raises(RoleError, match=r"is normalized .* roles="):
        mt.plan(make(32), "mup", **options)
    assert mt.plan(make(32), "mup", roles={name: "output"}, **options)[name].role.value == "output"


# --- a plan's file from others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[0].update(lr=math.nan),
        lambda lines: lines[0].update(lr=-1.0),
        lambda lines: lines[0].update(lr="<script>"),
        lambda lines: lines[0].update(eps=None),
        lambda lines: lines.append(lines[0]),
    ],
    ids=["nan", "negative", "text", "nothing", "a line twice"],
)
def test_a_saved_plan_with_a_factor_that_no_plan_has_is_refused(tmp_path, change):
    path = mt.plan(Model(Config()), "mup", base={"n_embd": 16}).save(tmp_path / "plan.json")
    assert mt.Plan.load(path)
    saved = json.loads(path.read_text())
    change(saved["params"])
    path.write_text(json.dumps(saved))
    with pytest.raises(ShapeError, match=r"plan.json is a damaged plan .* Make the plan again"):
        mt.Plan.load(path)


def test_a_function_that_builds_some_widths_only_is_told_which_are_asked_for():
    def make(width):
        if width not in (16, 32, 64):
            raise ConfigError(f"no width {width}.")
        return nn.Linear(8, width)

    asked = "no width 48. It must build the model at the base width and at two and three times that width"
    with pytest.raises(ShapeError, match=asked):
        mt.plan(make(64), "mup", base=16, factory=make)
