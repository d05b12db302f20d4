"""parameterize(): every way to give the base, every error, and what a converted model survives."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from toy_models import VOCAB, Attending, Decoder, token_batches, token_loss

import mutransfer as mt
from mutransfer.errors import (
    AlreadyParameterizedError,
    ConfigError,
    MutransferError,
    RoleError,
    RuleError,
    RunError,
    ShapeError,
)

IDS = token_batches(1)[0][0]


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


@dataclasses.dataclass
class Config:
    n_embd: int = 32
    n_head: int = 4


class Configured(nn.Module):
    """nanoGPT's way: one config, and a class that takes it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config.n_embd, heads=config.n_head)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(ids)


def factors(plan: mt.Plan) -> list[tuple[float, ...]]:
    return [(p.init_std, p.multiplier, p.lr, p.eps, p.weight_decay, p.clip) for p in plan]


# --- how the base is given ---------------------------------------------------------------------------------------


def test_roles_are_proven_on_a_hand_written_decoder():
    plan = mt.plan(Decoder(32), "mup", base=16, factory=Decoder)
    roles = {line.name: line.role.value for line in plan}
    assert roles["embed.weight"] == roles["positions"] == "input"
    assert roles["blocks.1.qkv.weight"] == roles["blocks.1.down.weight"] == "hidden"
    assert roles["blocks.0.qkv.bias"] == roles["norm.weight"] == "vector"
    assert roles["readout.weight"] == "output"
    assert roles["readout.bias"] == "scalar"
    assert plan["blocks.0.down.weight"].fan_in == 144


def test_width_config_fields_and_a_saved_plan_give_the_same_plan(tmp_path):
    model = Configured(Config())
    by_width = mt.plan(model, "mup", base=16)
    by_fields = mt.plan(model, "mup", base={"n_embd": 16, "n_head": 2})
    saved = mt.Plan.load(by_width.save(tmp_path / "plan.json"))
    assert factors(by_width) == factors(by_fields) == factors(saved)
    assert by_width.diff(saved) == ""
    again = mt.plan(Configured(Config(64, 8)), "mup", base=tmp_path / "plan.json")
    assert factors(again) == factors(mt.plan(Configured(Config(64, 8)), "mup", base=16))


def test_a_base_module_without_a_constructor_gives_the_same_plan():
    torch.manual_seed(0)
    by_module = mt.plan(Decoder(64), "mup", base=Decoder(16), example_inputs=IDS)
    by_factory = mt.plan(Decoder(64), "mup", base=16, factory=Decoder, example_inputs=IDS)
    for one, other in zip(by_module, by_factory, strict=True):
        assert (one.role, one.lr, one.eps, one.m_in, one.m_out) == (
            other.role,
            other.lr,
            other.eps,
            other.m_in,
            other.m_out,
        )
        assert one.init_factor == pytest.approx(other.init_factor)


def test_a_base_module_with_a_config_may_be_on_meta():
    with torch.device("meta"):
        base = Configured(Config(16, 2))
    assert factors(mt.plan(Configured(Config()), "mup", base=base)) == factors(
        mt.plan(Configured(Config()), "mup", base=16)
    )


def test_a_base_module_with_a_config_and_the_models_own_sizes_is_a_no_op():
    plan = mt.plan(Configured(Config()), "mup", base=Configured(Config()))
    assert {line.lr for line in plan} == {1.0}
    assert plan["decoder.blocks.0.qkv.weight"].role == mt.Role.HIDDEN


def test_a_bare_meta_base_names_what_would_settle_it():
    with torch.device("meta"):
        base = Decoder(16)
    with pytest.raises(ShapeError, match=r"factory=.*real weights.*init='table'"):
        mt.plan(Decoder(64), "mup", base=base)
    table = mt.plan(Decoder(64), "mup", base=base, init="table")
    assert table["blocks.0.qkv.weight"].init_std == pytest.approx(64**-0.5)


def test_a_planned_8_times_wider_model_needs_no_memory():
    with torch.device("meta"):
        model = Decoder(1024)
    plan = mt.plan(model, "mup", base=128, factory=Decoder)
    assert plan["readout.weight"].m_in == 8


def test_a_factory_may_move_its_model_to_a_device():
    moved = mt.plan(Decoder(64), "mup", base=16, factory=lambda width: Decoder(width).to("cpu"))
    assert factors(moved) == factors(mt.plan(Decoder(64), "mup", base=16, factory=Decoder))


# --- attention ----------------------------------------------------------------------------------------------------


def four_heads(width: int) -> nn.Module:
    return Decoder(width, heads=4)


def test_where_head_dim_grows_the_softmax_scale_becomes_one_over_d():
    model = four_heads(128)  # head_dim 32, base 4
    plan = mt.parameterize(model, "mup", base=16, factory=four_heads)
    assert [a.attribute for a in plan.attention] == ["softmax_scale"] * 2
    assert model.blocks[0].softmax_scale == pytest.approx(4**-0.5 * 4 / 32)


def test_where_the_number_of_heads_grows_it_is_left_alone():
    assert mt.plan(Decoder(128), "mup", base=16, factory=Decoder).attention == ()


def test_under_sp_the_scale_is_left_alone():
    assert mt.plan(four_heads(128), "sp", base=16, factory=four_heads).attention == ()


def test_attn_mult_is_a_hyperparameter_at_any_size():
    model = Decoder(16)
    mt.parameterize(model, "mup", base=16, factory=Decoder, hyperparameters={"attn_mult": 2.0})
    assert model.blocks[0].softmax_scale == pytest.approx(2 * 8**-0.5)


class Separate(nn.Module):
    """Queries of their own and a scale written into the code: the query projection must carry the factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(5, width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        q, k, v = self.q(x), *self.kv(x).chunk(2, -1)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_a_hard_coded_scale_is_carried_by_the_query_projection():
    torch.manual_seed(0)
    plain, x = Separate(64), torch.randn(2, 3, 5)
    model = copy.deepcopy(plain)
    plan = mt.parameterize(model, "sp", base=16, factory=Separate, example_inputs=x, hyperparameters={"attn_mult": 3.0})
    assert plan["q.weight"].fold == plan["q.bias"].fold == pytest.approx(3.0)
    assert plan["kv.weight"].fold == 1.0
    assert mt.plan(Separate(64), "mup", base=16, factory=Separate, example_inputs=x)["q.weight"].fold == pytest.approx(
        0.5
    )


# --- init ---------------------------------------------------------------------------------------------------------


def test_init_table_is_seeded_per_tensor_and_has_the_planned_std():
    def draw(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Decoder(64)
        plan = mt.parameterize(model, "mup", base=16, factory=Decoder, init="table")
        weight = model.blocks[0].up.weight.detach()
        assert float(weight.std()) == pytest.approx(plan["blocks.0.up.weight"].init_std, rel=0.03)
        return model

    one, same, other = draw(0), draw(0), draw(1)
    assert torch.equal(one.readout.weight, same.readout.weight)
    assert not torch.equal(one.readout.weight, other.readout.weight)
    assert not torch.equal(one.blocks[0].up.weight, one.blocks[1].up.weight)
    assert torch.equal(one.norm.weight, torch.ones(64))


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_init_keep_never_changes_the_function(form):
    torch.manual_seed(0)
    model = Decoder(64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # trained, as far as anyone can see
    expected = model(IDS)
    plan = mt.parameterize(model, "mup", base=16, factory=Decoder, init="keep", form=form)
    torch.testing.assert_close(model(IDS), expected)
    fresh = mt.plan(Decoder(64), "mup", base=16, factory=Decoder, form=form)
    assert [line.lr for line in plan] == [line.lr for line in fresh]


def test_a_trained_model_is_not_rescaled():
    model = Decoder(64)
    nn.init.normal_(model.blocks[0].up.weight, std=0.3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AlreadyParameterizedError, match=r"'blocks.0.up.weight' is not as .*init='keep'"):
        mt.parameterize(model, "mup", base=16, factory=Decoder)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_second_conversion_is_refused():
    model = Decoder(64)
    mt.parameterize(model, "mup", base=16, factory=Decoder)
    for again in (model, copy.deepcopy(model)):
        with pytest.raises(AlreadyParameterizedError, match="already carries plan 'mup'"):
            mt.parameterize(again, "sp", base=16, factory=Decoder)


# --- hyperparameters ----------------------------------------------------------------------------------------------


def test_lr_per_role_and_per_pattern_multiply():
    plan = mt.plan(
        Decoder(16), "mup", base=16, factory=Decoder, hyperparameters={"lr": {"hidden": 2.0, "blocks.0.*": 3.0}}
    )
    assert plan["blocks.0.up.weight"].lr == 6.0
    assert plan["blocks.1.up.weight"].lr == 2.0
    assert plan["blocks.0.up.bias"].lr == 3.0
    assert plan["embed.weight"].lr == 1.0


def test_init_std_leaves_gains_and_biases_alone():
    plan = mt.plan(Decoder(16), "mup", base=16, factory=Decoder, hyperparameters={"init_std": 0.5})
    assert plan["blocks.0.up.weight"].init_factor == plan["embed.weight"].init_factor == 0.5
    assert plan["blocks.0.up.bias"].init_factor == plan["norm.weight"].init_factor == 1.0


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"output_multiplier": 2.0}, ConfigError, "Did you mean 'output_mult'"),
        ({"output_mult": 0.0}, ConfigError, "must be a positive number"),
        ({"output_mult": "2"}, ConfigError, "must be a positive number"),
        ({"init_std.vector": 2.0}, ConfigError, "no init_std for 'vector'"),
        ({"lr.*.porj": 2.0}, RoleError, "matched no parameter"),
        ({"lr.hiden": 2.0}, RoleError, "Did you mean 'hidden'[?]"),
        ({"residual_mult": 2.0}, RuleError, "table of widths only"),
    ],
)
def test_bad_hyperparameters(given, error, sentence):
    with pytest.raises(error, match=sentence.replace("*", r"\*")):
        mt.plan(Decoder(16), "mup", base=16, factory=Decoder, hyperparameters=given)


# --- errors -------------------------------------------------------------------------------------------------------


class Untold(nn.Module):
    """A matrix between two widths that no op contracts, and one that is never reached."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.table = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.inp(x) + self.table.cumsum(0)[0]


def test_a_matrix_without_a_proven_contraction_raises_with_the_line_that_settles_it():
    with pytest.raises(RoleError, match=r"roles=\{'table': 'hidden'\}"):
        mt.plan(Untold(32), "mup", base=16, factory=Untold)
    settled = mt.plan(Untold(32), "mup", base=16, factory=Untold, roles={"table": "hidden"})
    assert settled["table"].lr == 0.5
    listed = mt.plan(Untold(32), "mup", base=16, factory=Untold, strict=False)
    assert any("guesses" in note for note in listed.notes)


BAD_CALLS = {
    "unknown parameterization": ({"parameterization": "mupp"}, RuleError, "Did you mean 'mup'"),
    "unknown optimizer": ({"optimizer": "lion"}, RuleError, "no rule for optimizer 'lion'"),
    "a missing column": ({"parameterization": "sp-embedding", "optimizer": "sgd"}, RuleError, "defined for: adam"),
    "unknown form": ({"form": "fold"}, ConfigError, "Did you mean 'folded'"),
    "unknown init": ({"init": "rescaled"}, ConfigError, "Did you mean 'rescale'"),
    "a pattern that matches nothing": ({"roles": {"*.porj": "hidden"}}, RoleError, "matched no parameter"),
    "an unknown role": ({"roles": {"embed.weight": "imput"}}, RoleError, "Did you mean 'input'"),
    "no base": ({"base": None}, ConfigError, "base= is missing, the size at which"),
    "a base that is no width": ({"base": 0}, ConfigError, "positive whole number"),
    "a factory of another model": ({"factory": mlp}, ShapeError, "only in the model"),
    "a factory that fails": ({"factory": lambda width: 1 / 0}, ShapeError, "factory.* failed: ZeroDivisionError"),
    "a factory without a width": ({"factory": lambda width: Decoder(32)}, ShapeError, "same model at every width"),
    "no way to another width": ({"factory": None}, ShapeError, "Give factory="),
    "another structure": ({"factory": None, "base": mlp(16)}, ShapeError, "only in the model"),
    "the same sizes and no constructor": ({"factory": None, "base": Decoder(32)}, ShapeError, "nothing shows which"),
    "a base of another vocabulary": (
        {"factory": None, "base": nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 5))}, ShapeError, "only in the model",
    ),
    "a missing plan": ({"factory": None, "base": "nowhere.json"}, RunError, "does not exist"),
    "inputs that do not fit": ({"example_inputs": torch.zeros(3)}, RoleError, "Pass example_inputs="),
    "depth of a width-only table": ({"base_depth": 4}, RuleError, "tables with depth rules"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD_CALLS))
def test_bad_input_gets_one_sentence_and_leaves_the_model_alone(case):
    changed, error, sentence = BAD_CALLS[case]
    model = Decoder(32)
    before = copy.deepcopy(model.state_dict())
    arguments = {"parameterization": "mup", "base": 16, "factory": Decoder} | changed
    with pytest.raises(error, match=sentence) as caught:
        mt.parameterize(model, **arguments)
    assert isinstance(caught.value, MutransferError)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert type(model.readout) is nn.Linear


@pytest.mark.parametrize("call", [mt.plan, mt.parameterize])
def test_a_call_without_a_base_says_what_a_base_may_be(call):
    with pytest.raises(
        ConfigError, match=r"base= is missing.* give a width .*, a dict of config fields, a model of that"
    ):
        call(Decoder(32), "mup")


def test_a_vocabulary_that_differs_is_not_a_width():
    class Two(nn.Module):
        def __init__(self, width: int, vocabulary: int) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.embed(ids))

    with pytest.raises(ShapeError, match="does not make this model"):
        mt.plan(Two(32, 11), "mup", base=16, factory=lambda width: Two(width, 7))


def test_a_lazy_module_must_be_materialized_first():
    with pytest.raises(ShapeError, match="is lazy"):
        mt.plan(nn.Sequential(nn.LazyLinear(3)), "mup", base=16, factory=mlp)


def test_a_plan_of_another_model_is_refused():
    plan = mt.plan(Decoder(32), "mup", base=16, factory=Decoder)
    with pytest.raises(ShapeError, match="plan was made for another model"):
        plan.apply(mlp(32))
    with pytest.raises(ShapeError, match="in the plan"):
        plan.param_groups(Decoder(64), lr=0.1)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"kind": "mutransfer plan", "format": 99}', '{"kind": "mutransfer plan", "format": 1}', "{"]
)
def test_a_damaged_plan_file_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(MutransferError, match=r"plan|half-written"):
        mt.Plan.load(tmp_path / "plan.json")


# --- survival -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folded", "explicit"])
def converted(request):
    torch.manual_seed(0)
    model = Decoder(32)
    return model, mt.parameterize(model, "mup-table9", base=16, factory=Decoder, form=request.param)


def test_state_dict_keys_are_the_models_own(converted):
    assert list(converted[0].state_dict()) == list(Decoder(32).state_dict())


def test_deepcopy_pickle_and_a_state_dict_round_trip_keep_the_function(converted):
    model, plan = converted
    expected = model(IDS)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    resumed = Decoder(32)  # resume is the same call, then load_state_dict
    mt.parameterize(resumed, "mup-table9", base=16, factory=Decoder, form=plan.form)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), resumed):
        assert torch.equal(other(IDS), expected)


def test_groups_are_found_by_name_in_copies_and_under_compile(converted):
    model, plan = converted
    expected = [(g["lr"], g["param_names"]) for g in plan.param_groups(model, lr=1.0)]
    for other in (copy.deepcopy(model), torch.compile(model, backend="eager")):
        assert [(g["lr"], g["param_names"]) for g in plan.param_groups(other, lr=1.0)] == expected


def test_the_whole_model_compiles_without_a_graph_break(converted):
    model, _ = converted
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS), model(IDS))


def _ops(model: nn.Module) -> list[str]:
    from mutransfer.planning.trace import trace

    return [op.name for op in trace(model, (IDS,)).ops]


@pytest.mark.parametrize("tied", [False, True])
def test_the_folded_form_runs_exactly_the_plain_models_ops(tied):
    def make(width: int) -> nn.Module:
        return Decoder(width, tied=tied)

    folded, explicit = make(32), make(32)
    mt.parameterize(folded, "mup", base=16, factory=make)
    mt.parameterize(explicit, "mup", base=16, factory=make, form="explicit")
    assert _ops(folded) == _ops(make(32))
    added = len(_ops(explicit)) - len(_ops(make(32)))
    assert added == (1 if tied else 2), "one multiplication; with a bias, its addition apart"


def test_a_tied_model_refuses_tables_that_cannot_tie_and_the_folded_form_serves():
    def make(width: int) -> nn.Module:
        return Decoder(width, tied=True)

    with pytest.raises(RoleError, match=r"embed.weight.*tied.*Untie"):
        mt.plan(make(32), "mup-table3", base=16, factory=make, form="explicit")
    assert mt.plan(make(32), "mup-table3", base=16, factory=make)["norm.weight"].fold == 0.5


def test_a_tied_readout_behind_an_activation_is_swapped_instead():
    class Squashed(Decoder):
        def __init__(self, width: int) -> None:
            super().__init__(width, tied=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.readout(torch.tanh(self.norm(self.embed(ids))))

    plan = mt.plan(Squashed(32), "mup", base=16, factory=Squashed, strict=False)
    assert [(s.module, s.multiplier) for s in plan.swaps] == [("readout", 0.5)]
    with pytest.raises(RoleError, match="cannot be folded"):
        mt.plan(Squashed(32), "mup", base=16, factory=Squashed, strict=False, form="folded")


def test_explicit_multipliers_reach_a_projection_whose_forward_is_never_called():
    """nn.MultiheadAttention reads out_proj.weight itself: a swapped forward there would do nothing."""

    torch.manual_seed(0)
    one = Attending(32).double()
    other = copy.deepcopy(one)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for model, form in ((one, "folded"), (other, "explicit")):
        mt.parameterize(model, "ntk", base=16, factory=lambda w: Attending(w).double(), form=form, example_inputs=x)
    torch.testing.assert_close(one(x), other(x))


# --- the printed plan ---------------------------------------------------------------------------------------------


def test_the_printed_plan_names_every_parameter_once_and_collapses_blocks():
    text = str(mt.plan(Decoder(32), "mup", base=16, factory=Decoder))
    assert "Table 8" in text
    assert text.count("blocks.*.up.weight x2") == 1
    rows = [line.split()[0] for line in text.splitlines() if line.startswith(("embed", "blocks"))]
    assert len(rows) == 1 + 12
    assert "blocks.0.up.weight" not in rows
    assert "multiplier 0.5 folded into init and lr" in text


def test_diff_shows_what_two_parameterizations_do_differently():
    plans = [mt.plan(Decoder(32), name, base=16, factory=Decoder) for name in ("sp", "mup")]
    changes = plans[0].diff(plans[1])
    assert "parameterization: sp -> mup" in changes
    assert "blocks.0.up.weight: lr 1 -> 0.5" in changes
    assert "blocks.0.up.bias: lr" not in changes


def test_the_notebook_form_escapes_names():
    class Named(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.add_module("<script>", nn.Linear(3, width))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules["<script>"](x)

    html = mt.plan(Named(32), "mup", base=16, factory=Named)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_an_unknown_parameter_name_shows_the_nearest():
    plan = mt.plan(Decoder(32), "mup", base=16, factory=Decoder)
    with pytest.raises(KeyError, match=r"Did you mean 'blocks.0.up.weight'"):
        plan["blocks.0.upp.weight"]
    assert "embed.weight" in plan.explain("embed.weight")
    assert len(plan) == len(list(Decoder(32).parameters()))


def test_a_converted_decoder_learns():
    torch.manual_seed(0)
    model = Decoder(32)
    plan = mt.parameterize(model, "mup", base=16, factory=Decoder)
    optimizer = plan.make_optimizer(model, lr=2**-6)
    batch = token_batches(1)[0]
    first = token_loss(model, batch).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = token_loss(model, batch)
        loss.backward()
        plan.clip_grad_norm_(model, 1.0)
        optimizer.step()
    assert loss.item() < first / 2
    assert model.embed.num_embeddings == VOCAB
