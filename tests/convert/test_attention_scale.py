"""The softmax scale on every kind of attention: held against models whose code multiplies the logits by hand."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from attention_models import (
    BASE,
    FUSED,
    HEADS,
    KINDS,
    Attention,
    BiasApart,
    Convolved,
    Cosine,
    EveryHeadApart,
    FixedCosine,
    Gated,
    Grouped,
    OneForBoth,
    RelativePositions,
    RootMeanSquare,
    Shuffled,
    Torchs,
    Transposed,
)
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import mutransfer as mt
from mutransfer.apply.multipliers import Scaled
from mutransfer.errors import RoleError
from mutransfer.planning.data import Rows

pytestmark = pytest.mark.slow

X = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def converted(kind: type[Attention], width: int, **options) -> tuple[Attention, mt.Plan]:
    torch.manual_seed(0)
    model = kind(width).double()
    return model, mt.parameterize(model, "mup", base=BASE, factory=kind, example_inputs=X.float(), **options)


def losses(model: nn.Module, plan: mt.Plan) -> list[float]:
    """20 steps of AdamW, with decay and with clipping active."""
    optimizer = plan.make_optimizer(model, lr=2**-8, weight_decay=0.1)
    found = []
    for step in range(20):
        optimizer.zero_grad()
        loss = ((model(X * (1 + step / 20)) - X[..., :3]) ** 2).mean()
        loss.backward()
        plan.clip_grad_norm_(model, 0.1)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_where_head_dim_grows_it_trains_as_code_that_divides_by_d(kind):
    model, plan = converted(kind, 64)
    torch.manual_seed(0)
    reference = kind(64, by_hand=True).double()
    own = mt.parameterize(
        reference, "mup", base=BASE, factory=lambda w: kind(w, by_hand=True), example_inputs=X.float()
    )
    assert not any(swap.rows for swap in own.swaps), "the reference needs nothing for its softmax"
    assert all(line.carried == 1 for line in own)
    assert losses(model, plan) == pytest.approx(losses(reference, own), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_base_attn_mult_is_code_that_multiplies_the_logits(kind):
    model, plan = converted(kind, BASE, hyperparameters={"attn_mult": 3.0})
    torch.manual_seed(0)
    reference = kind(BASE, mult="3").double()
    plain = mt.parameterize(reference, "mup", base=BASE, factory=lambda w: kind(w, mult="3"), example_inputs=X.float())
    expected = losses(reference, plain)
    assert losses(model, plan) == pytest.approx(expected, rel=1e-9)
    unscaled = converted(kind, BASE)
    assert losses(*unscaled) != pytest.approx(expected, rel=1e-9), "control: the factor matters"


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_base_nothing_is_changed(kind):
    model, plan = converted(kind, BASE)
    torch.manual_seed(0)
    plain = kind(BASE).double()
    assert plan.swaps == plan.attention == ()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(model(X), plain(X))


@pytest.mark.parametrize(
    ("kind", "parameter", "rows"),
    [
        (Attention, "qkv.weight", Rows(0, (32, 64), (True, False))),
        (EveryHeadApart, "qkv.bias", Rows(0, (16, 32), (True, False))),
        (Grouped, "qkv.weight", Rows(0, (32, 32), (True, False))),
        (Transposed, "w", Rows(1, (32, 64), (True, False))),
        (Convolved, "conv.weight", Rows(0, (32, 64), (True, False))),
        (RelativePositions, "qkv.weight", Rows(0, (32, 32, 32), (False, True, False))),
        (Torchs, "core.in_proj_weight", Rows(0, (32, 64), (True, False))),
    ],
)
def test_the_plan_says_which_rows_are_multiplied_and_why(kind, parameter, rows, tmp_path):
    plan = converted(kind, 32)[1]
    swap = next(s for s in plan.swaps if f"{s.module}.{s.parameter}".removeprefix(".") == parameter)
    assert (swap.rows, swap.multiplier) == (rows, pytest.approx(2**-0.5))
    assert "for the softmax scale" in plan[parameter].why
    assert f"{rows} x 0.7071" in str(plan).replace("(", "").replace(")", "")
    assert mt.Plan.load(plan.save(tmp_path / "plan.json")).swaps == plan.swaps


@pytest.mark.parametrize("kind", FUSED)
def test_an_exported_model_is_plain_and_computes_the_same(kind):
    model, _ = converted(kind, 32)
    plain = mt.export(model.eval(), example_inputs=X)
    assert not any(isinstance(module, Scaled) for module in plain.modules())
    fresh = kind(32).double().eval()
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fresh(X), model(X))
    fresh.load_state_dict(model.state_dict())
    assert not torch.allclose(fresh(X), model(X)), "control: the values alone are another function"


class TestSurvival:
    @pytest.fixture(params=[EveryHeadApart, Torchs, BiasApart])
    def model(self, request):
        return converted(request.param, 32)[0]

    def test_copies_pickles_and_files(self, model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
        fresh = converted(type(model).plain if isinstance(model, Scaled) else type(model), 32)[0]
        fresh.load_state_dict(model.state_dict())
        for other in [*others, fresh]:
            assert torch.equal(other(X), model(X))

    def test_the_state_keeps_its_names(self, model):
        kind = type(model).plain if isinstance(model, Scaled) else type(model)
        assert list(model.state_dict()) == list(kind(32).state_dict())

    def test_it_compiles_without_a_break_and_exports_a_program(self, model):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), model(X))
        program = torch.export.export(model, (X,))
        torch.testing.assert_close(program.module()(X), model(X))

    def test_recomputed_activations_have_the_same_gradients(self, model):
        other = copy.deepcopy(model)
        model(X).square().sum().backward()
        checkpoint(other, X, use_reentrant=False).square().sum().backward()
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one.grad, two.grad)

    def test_torchs_fused_kernel_reads_the_scaled_rows(self):
        model = converted(Torchs, 32)[0].eval()
        with torch.no_grad():
            torch.testing.assert_close(model(X), model.train()(X))

    def test_from_meta_to_values(self):
        plan = mt.plan(Attention(32), "mup", base=BASE, factory=Attention, example_inputs=X.float(), init="table")
        with torch.device("meta"):
            empty = Attention(32)
        assert mt.plan(empty, "mup", base=BASE, factory=Attention, example_inputs=X.float()).swaps == plan.swaps
        made, whole = plan.apply(empty.to_empty(device="cpu")), plan.apply(Attention(32))
        assert torch.equal(made(X.float()), whole(X.float()))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # a Linear returns a view, which nothing writes to here
@pytest.mark.parametrize(("table", "form"), [("mup", "auto"), ("mup-table9", "explicit")])
def test_sharding_takes_the_parameters_themselves(table, form):
    """FSDP2 reads them by name before the first forward pass, and keeps what it gets."""
    model = Transposed(32).double()
    mt.parameterize(model, table, base=BASE, factory=Transposed, example_inputs=X.float(), form=form)
    expected = model(X)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        torch.testing.assert_close(sharded(X), expected)
    finally:
        distributed.destroy_process_group()


# --- what is refused ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Config:
    hidden_size: int = 64


class FromConfig(Gated):
    def __init__(self, config: Config) -> None:
        super().__init__(config.hidden_size)
        self.config = config


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Gated, "nothing else .it also makes what 'sigmoid'"),
        (Shuffled, "once 'index' in 'the model itself' has read them"),
        (OneForBoth, "it also makes what 'scaled_dot_product"),
    ],
)
def test_rows_that_make_anything_else_are_not_multiplied(kind, words):
    with pytest.raises(RoleError, match=words):
        converted(kind, 32)


def test_rows_cannot_be_folded():
    with pytest.raises(RoleError, match=r"part of 'qkv.bias'.*one tensor has one lr. Use form='auto'"):
        converted(Attention, 32, form="folded")


def test_the_advice_is_what_the_user_can_do():
    """More heads can only be asked for by name where a config has them; a factory must make them."""
    model = FromConfig(Config())
    with pytest.raises(RoleError, match=r"Keep head_dim fixed \(scale='heads'\)"):
        mt.plan(model, "mup", base=BASE, scale="head_dim", example_inputs=X.float())
    with pytest.raises(RoleError, match=r"Let more heads come with the width.*8 at the base, 16 here"):
        converted(Gated, 32)
    with pytest.raises(RoleError, match="Leave attn_mult at 1"):
        converted(Gated, BASE, hyperparameters={"attn_mult": 2.0})


def test_a_scale_that_was_set_cannot_be_exported_where_the_queries_do_something_else_too():
    class WithAttribute(Gated):
        def build(self, width: int) -> None:
            super().build(width)
            self.softmax_scale = (width // HEADS) ** -0.5

        def scale(self, head_dim: int) -> float:
            return self.softmax_scale

    model, plan = converted(WithAttribute, 32)
    assert [site.attribute for site in plan.attention] == ["softmax_scale"]
    with pytest.raises(RoleError, match=r"multiplied by 0.7071, its class computes its own.*makes what 'sigmoid'"):
        mt.export(model, example_inputs=X)


def test_a_scale_of_1_may_be_a_whole_number():
    """Dia's `self.scaling = 1`, which its code multiplies the logits by."""

    class Whole(Gated):
        def build(self, width: int) -> None:
            super().build(width)
            self.scaling = 1

        def scale(self, head_dim: int) -> float:
            return self.scaling

    model, plan = converted(Whole, BASE, hyperparameters={"attn_mult": 0.5})
    assert [site.attribute for site in plan.attention] == ["scaling"]
    assert model.scaling == 0.5


# --- vectors of length 1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Cosine, FixedCosine])
@pytest.mark.parametrize("table", ["mup", "sp"])
def test_the_product_of_unit_vectors_needs_no_factor(kind: Callable[..., nn.Module], table: str):
    plan = mt.plan(kind(64), table, base=BASE, factory=kind, example_inputs=X.float())
    assert not plan.swaps
    assert all(line.carried == 1 for line in plan)


def test_control_entries_of_size_one_make_a_product_that_grows():
    with pytest.raises(RoleError, match="held in a tensor"):
        converted(RootMeanSquare, 64)


def test_a_temperature_carries_attn_mult():
    model, plan = converted(Cosine, BASE, hyperparameters={"attn_mult": 3.0})
    assert plan["temperature"].carried == 3.0
    torch.manual_seed(0)
    reference = Cosine(BASE, mult="3").double()
    own = mt.parameterize(reference, "mup", base=BASE, factory=lambda w: Cosine(w, mult="3"), example_inputs=X.float())
    assert losses(model, plan) == pytest.approx(losses(reference, own), rel=1e-9)


# --- the coordinate check agrees ----------------------------------------------------------------------------------


def checked(kind: type[Attention], **options) -> mt.CoordReport:
    return mt.coord_check(
        kind, widths=(16, 32, 64), example_inputs=X.float(), steps=2, seeds=2,
        batches=lambda seed: torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(seed)),
        loss=lambda model, x: (model(x) - x[..., :3]).square().mean(), **options,
    )  # fmt: skip


def test_the_check_counts_the_factor_in_the_rows_and_leaves_own_contributions_alone():
    report = checked(Grouped, scale="head_dim")
    assert [(s.measured, s.expected) for s in report.softmax] == [(pytest.approx(1 / 4), 1 / 4)]
    assert abs(report.slope("qkv.weight", "init").value) < 0.25


@pytest.mark.parametrize(("kind", "expected"), [(FixedCosine, 1), (Attention, 1 / 4)])
def test_the_check_knows_that_the_product_of_unit_vectors_needs_no_factor(kind, expected):
    report = checked(kind)
    assert [(s.measured, s.expected) for s in report.softmax] == [(pytest.approx(expected), expected)]
