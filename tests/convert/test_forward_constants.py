"""What depends on width beside the parameters is made up for, refused or listed: never passed over."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mutransfer as mt
from mutransfer.errors import RoleError

IDS = torch.ones(1, 8, dtype=torch.long)
X = torch.zeros(2, 6, 5)


class Tied(nn.Module):
    """A tied model whose embedding and readout are multiplied by what `entrance` and `exit` say of the width."""

    def __init__(self, width: int, entrance: Callable[[int], Any], exit: Callable[[int], Any], tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("entrance", torch.tensor(float(entrance(width))))
        self.exit = exit(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * self.entrance
        return self.head(self.norm(x + torch.tanh(self.hidden(x))) * self.exit)


def build(entrance: Callable[[int], Any] = lambda w: 1, exit: Callable[[int], Any] = lambda w: 1.0, tied: bool = True):
    return lambda width: Tied(width, entrance, exit, tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["auto", "explicit"])
def test_an_embedding_times_sqrt_width_enters_the_stream_at_the_size_it_has_at_the_base(tied: bool, form: str) -> None:
    """Gemma's: without a correction the RMS is 2 at four times the width."""
    factory = build(entrance=math.sqrt, tied=tied)
    sizes = []
    for width in (256, 1024):
        torch.manual_seed(0)
        model = factory(width)
        plan = mt.parameterize(model, "mup", base=256, factory=factory, example_inputs=IDS, form=form)
        sizes.append(float((model.embed(torch.arange(11)) * model.entrance).pow(2).mean().sqrt().detach()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert "makes up for a constant" in plan["embed.weight"].why


@pytest.mark.parametrize("form", ["auto", "explicit"])
def test_a_corrected_tied_model_trains_as_one_without_the_constant(form: str) -> None:
    """T5's and Gemma's constants together, against the same model that has the base's constants at every width."""
    losses = []
    for entrance, exit in ((math.sqrt, lambda w: w**-0.5), (lambda w: 4, lambda w: 0.25)):

        def factory(width: int, one=entrance, other=exit) -> nn.Module:
            return Tied(width, one, other, tied=True).double()

        torch.manual_seed(0)
        model = factory(64)
        plan = mt.parameterize(model, "mup", base=16, factory=factory, example_inputs=IDS, form=form)
        optimizer = plan.make_optimizer(model, lr=2**-6, weight_decay=0.1)
        data = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(1))
        for _ in range(20):
            loss = functional.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            plan.clip_grad_norm_(model, 0.5)
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


HARMLESS = {
    "a mean by hand": lambda h, w: h - h.sum(-1, keepdim=True) / w,
    "a norm by hand": lambda h, w: h / h.norm(dim=-1, keepdim=True) * math.sqrt(w),
    "normalize": lambda h, w: functional.normalize(h, dim=-1) * w**0.5,
    "rsqrt": lambda h, w: h * torch.rsqrt(h.pow(2).sum(-1, keepdim=True)) * w**0.5,
    "the same constant at every width": lambda h, w: h * 0.5,
}
HARMFUL = {
    "a width on a sum of two branches": lambda h, w: (h + h.flip(-1)) * w**0.5,
    "a width behind a nonlinearity": lambda h, w: torch.relu(h) * w,
    "a width behind a mean over positions": lambda h, w: h.mean(1) * w**-0.5,
    "another power of the width behind a norm": lambda h, w: functional.normalize(h, dim=-1) * w,
    "a width behind a norm to one": lambda h, w: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True)) * w**0.5,
}


class Scaled(nn.Module):
    def __init__(self, width: int, head: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.width, self.head = width, head
        self.into, self.out = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(torch.tanh(self.into(x)), self.width))


def notes_of(head: Callable[[Tensor, int], Tensor]) -> str:
    plan = mt.plan(Scaled(64, head), "mup", base=16, factory=lambda w: Scaled(w, head), example_inputs=X)
    return " ".join(note for note in plan.notes if "clip" not in note)


@pytest.mark.parametrize("head", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_size_that_is_divided_out_again_is_no_finding(head: Callable[[Tensor, int], Tensor]) -> None:
    assert notes_of(head) == ""


@pytest.mark.parametrize("head", HARMFUL.values(), ids=HARMFUL.keys())
def test_a_constant_that_no_parameter_can_make_up_for_is_listed(head: Callable[[Tensor, int], Tensor]) -> None:
    assert "multiplies by" in notes_of(head)


PRODUCTS = {
    "bilinear": lambda h, w: h * (h @ h.flip(-1).mT).sum(-1, keepdim=True),
    "linear attention": lambda h, w: torch.relu(h) @ (torch.relu(h.flip(1)).mT @ h),
    "multiplied and summed": lambda h, w: h * (h * h.flip(-1)).sum(-1, keepdim=True),
    "exp by hand": lambda h, w: (h @ h.mT).exp() / (h @ h.mT).exp().sum(-1, keepdim=True) @ h,
}


@pytest.mark.parametrize("head", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_product_of_activations_over_the_width_that_is_no_attention_is_listed(
    head: Callable[[Tensor, int], Tensor],
) -> None:
    assert "no rule is applied" in notes_of(head)


class Attention(nn.Module):
    """One head over the whole width, its scale given as `scale` makes it."""

    def __init__(self, width: int, scale: Callable[[Attention], Any]) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.embed = nn.Linear(5, width)
        self.q, self.k, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("root", torch.tensor(width**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(torch.softmax(self.q(h) @ self.k(h).mT * self.scale(self), -1) @ h)


@pytest.mark.parametrize("number", [lambda w: 0.0, lambda w: w - 16.0])
def test_a_constant_of_zero_is_no_factor_that_can_be_made_up_for(number: Callable[[int], float]) -> None:
    plan = mt.plan(
        build(number, lambda w: 1.0, tied=False)(64),
        "mup",
        base=16,
        factory=build(number, lambda w: 1.0, tied=False),
        example_inputs=IDS,
    )
    assert plan["embed.weight"].fold == 1


def test_a_softmax_scale_in_a_buffer_is_read_and_carried_by_the_queries() -> None:
    """muP's scale at four times the head_dim is a quarter of the base's, where the model itself has half."""
    for scale in (lambda m: m.root, lambda m: torch.rsqrt(torch.tensor(float(m.width)))):
        made = lambda w, s=scale: Attention(w, s)  # noqa: E731
        plan = mt.plan(made(64), "mup", base=16, factory=made, example_inputs=X, scale="head_dim", strict=True)
        assert plan["q.weight"].fold == pytest.approx(0.5)


def test_a_learned_temperature_is_refused_where_head_dim_grows() -> None:
    made = lambda w: Attention(w, lambda m: m.temperature)  # noqa: E731
    with pytest.raises(RoleError, match="cannot be read"):
        mt.plan(made(64), "mup", base=16, factory=made, example_inputs=X)


def test_mups_own_multipliers_reach_the_outermost_layers_alone() -> None:
    """Not a router, nor a squeeze and its expansion in the middle."""

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.squeeze, self.expand = nn.Linear(5, width), nn.Linear(width, 4), nn.Linear(4, width)
            self.router, self.head = nn.Linear(width, 2), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            h = h + self.expand(torch.relu(self.squeeze(h))) * torch.softmax(self.router(h), -1)[..., :1]
            return self.head(torch.relu(h))

    kwargs = {"base": 16, "factory": Net, "example_inputs": X}
    plain = mt.plan(Net(64), "mup", **kwargs)
    tuned = mt.plan(Net(64), "mup", hyperparameters={"output_mult": 2.0, "embedding_mult": 3.0}, **kwargs)
    ratio = {line.name: tuned[line.name].fold / line.fold for line in plain if line.name.endswith("weight")}
    assert ratio == {"embed.weight": 3, "squeeze.weight": 1, "expand.weight": 1, "router.weight": 1, "head.weight": 2}


def test_a_multiplier_that_would_reach_nothing_is_refused() -> None:
    made = lambda w: nn.Sequential(nn.Linear(5, w), nn.ReLU(), nn.Linear(w, w))  # noqa: E731
    with pytest.raises(RoleError, match="output_mult is given, but the model has no readout"):
        mt.plan(made(64), "mup", base=16, factory=made, example_inputs=X, hyperparameters={"output_mult": 2.0})


def test_a_constant_that_goes_with_width_is_refused() -> None:
    def made(width: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))
        nn.init.constant_(model[2].weight, 1 / width)
        return model

    with pytest.raises(RoleError, match=r"constant 0\.0625 at the base and 0\.01562 here"):
        mt.plan(made(64), "mup", base=16, factory=made, example_inputs=X)


def test_a_plan_with_measured_inits_is_the_same_under_every_seed_and_moves_no_random_state() -> None:
    def made(width: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(5, width), nn.Linear(width, width))
        model[1].weight.data.copy_(torch.from_numpy(numpy.random.randn(width, width) / width**0.5))
        return model

    plans = []
    for seed in (1, 2):
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 64), nn.Linear(64, 64))
        before = numpy.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
        plans.append(mt.plan(model, "mup", base=16, factory=made, example_inputs=X))
        assert (numpy.random.get_state()[1] == before[0]).all()
        assert random.getstate() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert plans[0].to_json() == plans[1].to_json()
    assert plans[0]["1.weight"].init_factor == pytest.approx(1, rel=1e-12), "1/sqrt(fan-in) is the law it was drawn by"


def test_an_embedding_with_a_padding_row_is_fresh_however_few_its_rows() -> None:
    made = lambda w: nn.Sequential(nn.Embedding(3, w, padding_idx=0), nn.Linear(w, 4))  # noqa: E731
    model = made(64)
    mt.parameterize(model, "mup", base=16, factory=made, example_inputs=torch.ones(1, 8, dtype=torch.long))
    assert not model[0].weight[0].any()


class Averaged(nn.Module):
    """A readout written as a sum of products, divided by the width or not."""

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.inner, self.v, self.divisor = nn.Linear(4, width), nn.Parameter(torch.randn(width)), width**power

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.v).sum(-1) / self.divisor


@pytest.mark.parametrize(("power", "lr"), [(0.0, 1 / 4), (0.5, 1 / 2), (1.0, 1.0)])
def test_a_readout_that_is_averaged_by_hand_is_scaled_once(power: float, lr: float) -> None:
    """Table 8's readout is multiplied by 1/m_in, folded: the lr too. A division by the width has done it already."""

    def factory(width: int) -> nn.Module:
        return Averaged(width, power)

    plan = mt.plan(factory(64), "mup", base=16, factory=factory, example_inputs=torch.zeros(2, 4))
    assert (plan["v"].role.value, plan["v"].lr) == ("output", pytest.approx(lr))


class Summed(nn.Module):
    """Two hidden layers, and an end without parameters of its own."""

    def __init__(self, width: int, end: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.width, self.end = width, end
        self.inner, self.hidden, self.side = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(5, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.hidden(torch.tanh(self.inner(x)))) + 0 * self.side(x).mean()


SUMMED = {
    "sum": lambda m, h: h.sum(-1),
    "product with ones": lambda m, h: h @ torch.ones(m.width),
    "squares": lambda m, h: h.square().sum(-1),
    "norm": lambda m, h: h.norm(dim=-1),
    "product with what parameters alone make": lambda m, h: (h * m.side(torch.ones(6, 5))).sum(-1),
}
NOT_OVER_THE_WIDTH = {
    "mean": lambda m, h: h.mean(-1),
    "norm that divides": lambda m, h: functional.normalize(h, dim=-1),
    "norm by hand": lambda m, h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6),
    "sum of absolute values that divides": lambda m, h: h / h.abs().sum(-1, keepdim=True),
    "softmax": lambda m, h: h.softmax(-1),
    "positions": lambda m, h: h.sum(1),
}


def notes_of_end(end: Callable[[Any, Tensor], Tensor]) -> str:
    def factory(width: int) -> nn.Module:
        return Summed(width, end)

    return " ".join(mt.plan(factory(64), "mup", base=16, factory=factory, example_inputs=X).notes)


@pytest.mark.parametrize("end", SUMMED.values(), ids=SUMMED.keys())
def test_a_sum_over_the_width_that_no_parameter_rules_is_listed(end: Callable[[Any, Tensor], Tensor]) -> None:
    """A readout without 1/m: nothing here could carry the factor."""
    assert "go over a size that grows with width, 1 of them, in the model itself" in notes_of_end(end)


@pytest.mark.parametrize("end", NOT_OVER_THE_WIDTH.values(), ids=NOT_OVER_THE_WIDTH.keys())
def test_means_norms_and_sums_over_what_stays_are_not(end: Callable[[Any, Tensor], Tensor]) -> None:
    assert "go over a size" not in notes_of_end(end)
