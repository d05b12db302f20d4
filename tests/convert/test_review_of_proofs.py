"""What a second review broke in the proofs of roles and in the constants of the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from head_models import plan_of
from torch import Tensor, nn
from torch.nn import functional

import mutransfer as mt
from mutransfer.errors import RoleError

X = torch.zeros(2, 6, 5)
IDS = torch.ones(1, 6, dtype=torch.long)


def test_a_weight_times_one_over_sqrt_fan_in_keeps_the_size_that_it_has_at_the_base() -> None:
    """StyleGAN's equalized layer: drawn at std 1 and multiplied by 1/sqrt(width) = 1/8, where the base has 1/4."""
    plan = plan_of(lambda m, h: functional.linear(h, m.w * m.width**-0.5), lambda w: {"w": (w, w)})
    effective = plan["w"].init_std * 64**-0.5
    assert effective == pytest.approx(16**-0.5 * 4**-0.5), "the base's effective std, over sqrt(m)"
    assert plan["w"].lr * 64**-0.5 == pytest.approx(16**-0.5 / 4), "the base's effective lr, over m"


SUMS = {
    "weight and bias": lambda m, h: (h @ m.w + m.b) * m.width**-0.5,
    "bias in place": lambda m, h: (h @ m.w).add_(m.b) * m.width**-0.5,
}


@pytest.mark.parametrize("head", SUMS.values(), ids=SUMS.keys())
def test_all_summands_make_up_for_a_constant_on_their_sum(head: Callable[[Any, Tensor], Tensor]) -> None:
    plan = plan_of(head, lambda w: {"w": (w, w), "b": (w,)})
    assert (plan["w"].fold, plan["b"].fold) == pytest.approx((2, 2))


def test_a_sum_of_which_one_part_is_no_parameters_is_listed_and_nothing_carries() -> None:
    plan = plan_of(lambda m, h: (torch.relu(h) + m.b) * m.width**-0.5, lambda w: {"b": (w,)})
    assert plan["b"].fold == 1
    assert any("multiplies by" in note for note in plan.notes)


class Tied(nn.Module):
    def __init__(self, width: int, exit: Callable[[int], float]) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.exit = exit(width)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.norm(self.embed(ids)), self.embed.weight) * self.exit


def test_a_constant_behind_a_tied_readout_leaves_the_embedding_alone() -> None:
    """Logits times width^-1/2: half of muP's 1/4 is there already, the norm carries the other half."""
    build = lambda width: Tied(width, lambda w: w**-0.5)  # noqa: E731
    plan = mt.plan(build(64), "mup", base=16, factory=build, example_inputs=IDS)
    assert (plan["embed.weight"].fold, plan["norm.weight"].fold) == pytest.approx((1, 0.5))


def rms(t: Tensor) -> Tensor:
    return t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6)


NORMED = {
    "by hand": lambda m, h: rms(h @ m.q) @ rms(h @ m.k).mT * m.width**-0.5,
    "normalize": lambda m, h: functional.normalize(h @ m.q, dim=-1) @ functional.normalize(h @ m.k, dim=-1).mT * 10,
    "1 + w": lambda m, h: (rms(h @ m.q) * (1 + m.g)) @ (h @ m.k).mT * m.width**-0.5,
}


def plan_of_normed(kind: str) -> mt.Plan:
    softmax = lambda m, h: torch.softmax(NORMED[kind](m, h), -1) @ h  # noqa: E731
    return plan_of(softmax, lambda w: {"q": (w, w), "k": (w, w), "g": (w,)})


def test_queries_and_keys_of_unit_rms_cannot_carry_a_softmax_scale() -> None:
    with pytest.raises(RoleError, match="no parameter makes its queries and nothing else"):
        plan_of_normed("by hand")


def test_keys_that_are_not_normalized_carry_it_where_the_queries_are() -> None:
    """16^-1/2 at the base and 64^-1/2 here: the 1/d of muP lacks another 1/2."""
    plan = plan_of_normed("1 + w")
    assert [plan[name].fold for name in "qkg"] == [1, 0.5, 1]


def test_logits_of_unit_vectors_do_not_grow_with_head_dim_and_need_no_factor() -> None:
    plan = plan_of_normed("normalize")
    assert [plan[name].fold for name in "qk"] == [1, 1]


MIXED = {
    "mixed by a router": lambda m, h: torch.einsum(
        "bti,bio->bto", h, torch.einsum("bk,kio->bio", h.mean(1)[:, :3].softmax(-1), m.w)
    ),
    "overwritten in part": lambda m, h: functional.linear(h, _cleared(m.w[0])),
}


def _cleared(weight: Tensor) -> Tensor:
    copy = weight.clone()
    copy[torch.tensor([0])] = 0.0
    return copy


@pytest.mark.parametrize("head", MIXED.values(), ids=MIXED.keys())
def test_a_weight_that_is_mixed_or_overwritten_before_it_contracts_is_refused(
    head: Callable[[Any, Tensor], Tensor],
) -> None:
    with pytest.raises(RoleError, match="cannot be proven"):
        plan_of(head, lambda w: {"w": (3, w, w)})


def test_a_factor_on_a_weight_that_is_squashed_is_listed() -> None:
    squashed = plan_of(lambda m, h: functional.linear(h, torch.sign(m.w)), lambda w: {"w": (w, w)})
    plain = plan_of(lambda m, h: functional.linear(h, m.w), lambda w: {"w": (w, w)})
    assert any("nonlinear function" in note and "w" in note for note in squashed.notes)
    assert not any("nonlinear function" in note for note in plain.notes)


def test_a_constant_in_a_buffer_of_one_element_is_read() -> None:
    class Scaled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(11, width), nn.Linear(width, 3)
            self.register_buffer("root", torch.tensor([math.sqrt(width)]))

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.embed(ids) * self.root)

    assert mt.plan(Scaled(64), "mup", base=16, factory=Scaled, example_inputs=IDS)["embed.weight"].fold == 0.5


def test_a_generator_that_draws_its_own_inputs_is_traced_as_if_they_were_given() -> None:
    class Generator(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.v = nn.Linear(5, width), nn.Parameter(torch.randn(width))

        def forward(self, count: int) -> Tensor:
            return (torch.tanh(self.embed(torch.randn(count, 5))) * self.v).sum(-1)

    plan = mt.plan(Generator(64), "mup", base=16, factory=Generator, example_inputs=(4,))
    assert (plan["embed.weight"].role, plan["v"].role) == ("input", "output")


def test_a_growing_size_of_one_hides_what_is_contracted_and_is_refused() -> None:
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.Linear(width, width // 16), nn.Linear(width // 16, width))

    with pytest.raises(RoleError, match="growing dimension of size 1"):
        mt.plan(build(16), "mup", base=32, factory=build, example_inputs=X)


def test_a_channelwise_prelu_is_a_gain() -> None:
    build = lambda width: nn.Sequential(nn.Linear(5, width), nn.PReLU(width), nn.Linear(width, 3))  # noqa: E731
    assert mt.plan(build(64), "mup", base=16, factory=build, example_inputs=X[0])["1.weight"].role == "vector"


@dataclass
class Batch:
    x: Tensor


def test_inputs_and_outputs_in_dataclasses_are_seen() -> None:
    class Wrapped(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.v = nn.Linear(5, width), nn.Parameter(torch.randn(width))

        def forward(self, batch: Batch) -> Batch:
            return Batch((torch.tanh(self.embed(batch.x)) * self.v).sum(-1))

    plan = mt.plan(
        Wrapped(64), "mup", base=16, factory=Wrapped, example_inputs=(Batch(X),), hyperparameters={"output_mult": 2.0}
    )
    assert (plan["v"].role, plan["v"].fold) == ("output", pytest.approx(2 / 4))


@pytest.mark.parametrize("fused", [True, False])
def test_an_embedding_multiplier_does_not_reach_an_attention_bias(fused: bool) -> None:
    class Biased(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.heads = width // 8
            self.embed, self.qkv = nn.Embedding(11, width), nn.Linear(width, 3 * width)
            self.relative, self.out = nn.Embedding(12, self.heads), nn.Linear(width, 11)

        def forward(self, ids: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in self.qkv(self.embed(ids)).chunk(3, -1))
            at = torch.arange(ids.shape[1])
            bias = self.relative(at[:, None] - at + ids.shape[1]).permute(2, 0, 1)[None]
            if fused:
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            else:
                mixed = torch.softmax(q @ k.mT / math.sqrt(8) + bias, -1) @ v
            return self.out(mixed.transpose(1, 2).flatten(2))

    plan = mt.plan(
        Biased(64), "mup", base=16, factory=Biased, example_inputs=IDS, hyperparameters={"embedding_mult": 3.0}
    )
    assert (plan["embed.weight"].fold, plan["relative.weight"].fold) == (3, 1)
