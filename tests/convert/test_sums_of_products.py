"""What an activation is multiplied by or added to is contracted where the result is summed, whenever that happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head_models import Head, Shapes, plan_of
from torch import Tensor
from torch.nn import functional

from mutransfer.errors import RoleError


def roles(head: Head, shapes: Shapes, batch: int = 2) -> dict[str, str]:
    plan = plan_of(head, shapes, batch)
    return {name: plan[name].role.value for name in shapes(64)}


# --- weights that an input modulates -------------------------------------------------------------------------------


def kernels(m: Any, h: Tensor, *, demodulate: bool = False) -> Tensor:
    """StyleGAN2's: one kernel for each sample, the weight times the sample's style."""
    styled = m.w[None] * (h.mean(1) @ m.style)[:, None, :, None, None]
    return styled * torch.rsqrt(styled.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8) if demodulate else styled


def modulated(m: Any, h: Tensor, **options: bool) -> Tensor:
    batch, _, width = h.shape
    images = h.mT.reshape(1, batch * width, 2, 3)
    return functional.conv2d(images, kernels(m, h, **options).flatten(0, 1), padding=1, groups=batch)


def modulated_upwards(m: Any, h: Tensor) -> Tensor:
    batch, _, width = h.shape
    images = h.mT.reshape(1, batch * width, 2, 3)
    return functional.conv_transpose2d(images, kernels(m, h).transpose(1, 2).flatten(0, 1), groups=batch)


def modulated_layer(m: Any, h: Tensor) -> Tensor:
    return torch.bmm(h, (m.w[None] * (h.mean(1) @ m.style)[:, None]).mT)


MODULATED: dict[str, tuple[Head, tuple[int, ...]]] = {
    "a convolution": (modulated, (3, 3)),
    "a convolution of one tap": (modulated, (1, 1)),
    "a transposed convolution": (modulated_upwards, (3, 3)),
    "a layer": (modulated_layer, ()),
    "a layer that is squashed": (lambda m, h: torch.bmm(h, torch.tanh(m.w * (h.mean(1) @ m.style)[:, None]).mT), ()),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("head", "taps"), MODULATED.values(), ids=MODULATED.keys())
def test_a_weight_times_a_style_is_what_the_weight_is_at_every_batch_size(
    head: Head, taps: tuple[int, ...], batch: int
) -> None:
    found = roles(head, lambda w: {"w": (w, w, *taps), "style": (w, w)}, batch)
    assert found == {"w": "hidden", "style": "hidden"}
    found = roles(head, lambda w: {"w": (3, w, *taps), "style": (w, w)}, batch)
    assert found == {"w": "output", "style": "hidden"}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_weight_that_one_gate_for_all_samples_multiplies_is_a_readout_too(batch: int) -> None:
    head: Head = lambda m, h: functional.linear(h, m.w * torch.sigmoid(h.mean((0, 1))))  # noqa: E731
    assert roles(head, lambda w: {"w": (7, w)}, batch) == {"w": "output"}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_demodulated_weight_feels_no_factor_and_is_refused(batch: int) -> None:
    with pytest.raises(RoleError, match="'w' is normalized"):
        roles(lambda m, h: modulated(m, h, demodulate=True), lambda w: {"w": (3, w, 1, 1), "style": (w, w)}, batch)


def _selective_scan(m: Any, h: Tensor) -> Tensor:
    """A state-space model's: the decay of each channel and state is exp(step * a), and the states are summed."""
    decay = torch.exp(torch.tanh(h)[..., None] * m.a)
    return (decay * torch.sigmoid(h[..., :3]).unsqueeze(-2)).sum(-1)


def _gained_queries(m: Any, h: Tensor) -> Tensor:
    q, k = ((h * 2).unflatten(-1, (-1, 8)).transpose(1, 2) for _ in range(2))
    return torch.softmax((q * m.a[:, None]) @ k.mT, -1) @ k


def _rotated_in_pairs(m: Any, h: Tensor) -> Tensor:
    """Rotary positions as 2x2 matrices: each pair of features is summed, not the width."""
    pairs = (h * m.a).unflatten(-1, (-1, 1, 2))
    return (pairs * torch.ones(6, 1, 2, 2)).sum(-1).flatten(2)


CONTROLS: dict[str, tuple[Head, Shapes]] = {
    "a decay for each channel and state": (_selective_scan, lambda w: {"a": (w, 3)}),
    "a gain for each head and feature of queries": (_gained_queries, lambda w: {"a": (w // 8, 8)}),
    "a gain before a rotation of pairs": (_rotated_in_pairs, lambda w: {"a": (w,)}),
    "a gain on each side of a matrix": (lambda m, h: (h * m.a) @ h.mT @ (h * m.a), lambda w: {"a": (w,)}),
}


@pytest.mark.parametrize(("head", "shapes"), CONTROLS.values(), ids=CONTROLS.keys())
def test_control_a_gain_on_an_activation_is_no_weight(head: Head, shapes: Shapes) -> None:
    assert roles(head, shapes) == {"a": "vector"}


# --- one matrix a head ---------------------------------------------------------------------------------------------


def by_heads(h: Tensor) -> Tensor:
    """(heads, tokens, 8)"""
    return h.flatten(0, 1).unflatten(-1, (-1, 8)).transpose(0, 1)


HEADS: dict[str, Head] = {
    "summed": lambda m, h: torch.bmm(by_heads(h), m.w).sum(0),
    "scaled, and summed": lambda m, h: (torch.bmm(by_heads(h), m.w) * 0.5).sum(0),
    "gated, biased and summed": lambda m, h: (torch.bmm(by_heads(h), m.w) * h.mean() + 1).sum(0),
    "as one product": lambda m, h: torch.einsum("hbk,hkd->bd", by_heads(h), m.w),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_heads_that_are_summed_after_their_products_are_contracted_too(head: Head) -> None:
    assert roles(head, lambda w: {"w": (w // 8, 8, 4)}) == {"w": "output"}
    assert roles(head, lambda w: {"w": (w // 8, 8, w)}) == {"w": "hidden"}
    assert plan_of(head, lambda w: {"w": (w // 8, 8, w)})["w"].m_in == 4


def test_channels_that_are_summed_after_their_own_kernels_are_contracted_too() -> None:
    def head(m: Any, h: Tensor) -> Tensor:
        return functional.conv1d(h.mT, m.w, groups=m.width).sum(1)

    assert roles(head, lambda w: {"w": (w, 1, 3)}) == {"w": "output"}


def test_control_heads_that_are_averaged_or_joined_are_not() -> None:
    for head in (
        lambda m, h: torch.bmm(by_heads(h), m.w).mean(0),
        lambda m, h: torch.bmm(by_heads(h), m.w).transpose(0, 1).flatten(1),
        lambda m, h: torch.bmm(by_heads(h), m.w).sum(1),
    ):
        assert roles(head, lambda w: {"w": (w // 8, 8, 4)}) == {"w": "vector"}


def test_heads_that_are_squashed_before_they_are_summed_are_refused() -> None:
    with pytest.raises(RoleError, match=r"'w' .* cannot be proven"):
        roles(lambda m, h: torch.relu(torch.bmm(by_heads(h), m.w)).sum(0), lambda w: {"w": (w // 8, 8, 4)})


# --- sums of more than a product -----------------------------------------------------------------------------------

SUMS: dict[str, Head] = {
    "(h * v + b).sum(-1)": lambda m, h: (h * m.v + m.b).sum(-1),
    "(b - h * v).sum(-1)": lambda m, h: (m.b - h * m.v).sum(-1),
    "addcmul": lambda m, h: torch.addcmul(m.b, h, m.v).sum(-1),
    "addcmul in place": lambda m, h: (h + m.b).addcmul_(h, m.v).sum(-1),
    "masked": lambda m, h: torch.where(h > 0, h * m.v + m.b, 0.0).sum(-1),
    "beside the activation": lambda m, h: (h * m.v + h + m.b).sum(-1),
    "by a style": lambda m, h: (h * (m.v * h.mean(1, keepdim=True)) + m.b).sum(-1),
}


@pytest.mark.parametrize("head", SUMS.values(), ids=SUMS.keys())
def test_all_that_is_summed_over_the_width_is_contracted(head: Head) -> None:
    assert roles(head, lambda w: {"v": (w,), "b": (w,)}) == {"v": "output", "b": "output"}


def test_control_a_gain_and_a_bias_that_are_not_summed_over_the_width_are_vectors() -> None:
    for head in (
        lambda m, h: torch.addcmul(m.b, h, m.v),
        lambda m, h: (h * m.v + m.b).sum(1),
        lambda m, h: (h * m.v + m.b).mean(-1),
        lambda m, h: (lambda y: y / y.sum(-1, keepdim=True))(h * m.v + m.b),
    ):
        assert roles(head, lambda w: {"v": (w,), "b": (w,)}) == {"v": "vector", "b": "vector"}


def test_control_positions_that_are_pooled_stay_embeddings() -> None:
    for head in (lambda m, h: (h + m.p).sum(1), lambda m, h: torch.relu(h + m.p).sum(1), lambda m, h: h + m.p):
        assert roles(head, lambda w: {"p": (6, w)}) == {"p": "input"}


PROTOTYPES: dict[str, Head] = {
    "a sum of squares": lambda m, h: ((h[..., None, :] - m.p) ** 2).sum(-1),
    "a sum of squares by hand": lambda m, h: (lambda d: (d * d).sum(-1))(h[..., None, :] - m.p),
    "a length": lambda m, h: (h[..., None, :] - m.p).norm(dim=-1),
    "a sum of absolutes": lambda m, h: (m.p - h[..., None, :]).abs().sum(-1),
    "cdist": lambda m, h: torch.cdist(h.flatten(0, 1), m.p),
    "pairwise_distance": lambda m, h: functional.pairwise_distance(h[..., None, :], m.p),
}


@pytest.mark.parametrize("head", PROTOTYPES.values(), ids=PROTOTYPES.keys())
def test_a_distance_to_prototypes_is_no_sum_that_a_rule_is_known_for(head: Head) -> None:
    shapes: Shapes = lambda w: {"p": (7, w)}  # noqa: E731
    with pytest.raises(RoleError, match=r"'p' .*cannot be proven.*roles=\{'p'"):
        roles(head, shapes)
    assert plan_of(head, shapes, roles={"p": "output"})["p"].role == "output"


def test_control_a_mean_square_and_a_distance_over_a_fixed_size_need_no_rule() -> None:
    assert roles(lambda m, h: ((h[..., None, :] - m.p) ** 2).mean(-1), lambda w: {"p": (7, w)}) == {"p": "input"}
    fixed: Head = lambda m, h: ((h.unflatten(-1, (-1, 8)) - m.p) ** 2).sum(-1)  # noqa: E731
    assert roles(fixed, lambda w: {"p": (w // 8, 8)}) == {"p": "input"}


# --- numbers inside of ops -----------------------------------------------------------------------------------------


def root(m: Any) -> float:
    """Half the base's at four times the width."""
    return float(m.width**-0.5)


ALPHAS: dict[str, tuple[Head, dict[str, float]]] = {
    "add": (lambda m, h: torch.add(h, h @ m.w, alpha=root(m)), {"w": 2}),
    "add in place": (lambda m, h: h.clone().add_(h @ m.w, alpha=root(m)), {"w": 2}),
    "sub": (lambda m, h: torch.sub(h, h @ m.w, alpha=root(m)), {"w": 2}),
    "rsub": (lambda m, h: torch.rsub(h @ m.w, h, alpha=root(m)), {"w": 2}),
    "a bias": (lambda m, h: torch.add(h @ m.w, m.b, alpha=root(m)), {"w": 1, "b": 2}),
    "addmm": (lambda m, h: torch.addmm(m.b, h[0], m.w, alpha=root(m)), {"w": 2, "b": 1}),
    "addmm's bias": (lambda m, h: torch.addmm(m.b, h[0], m.w, beta=root(m)), {"w": 1, "b": 2}),
    "baddbmm": (lambda m, h: torch.baddbmm(h, h, m.w.expand(2, -1, -1), alpha=root(m)), {"w": 2}),
    "addcmul": (lambda m, h: torch.addcmul(h @ m.w, h, m.b, value=root(m)), {"w": 1, "b": 2}),
    "the same at every width": (lambda m, h: torch.addmm(m.b, h[0], m.w, alpha=3, beta=2), {"w": 1, "b": 1}),
}


@pytest.mark.parametrize(("head", "folds"), ALPHAS.values(), ids=ALPHAS.keys())
def test_a_width_in_alpha_or_beta_is_made_up_for(head: Head, folds: dict[str, float]) -> None:
    plan = plan_of(head, lambda w: {"w": (w, w), "b": (w,)}, strict=False)
    assert {name: plan[name].fold for name in folds} == pytest.approx(folds)


def test_a_softmax_scale_in_alpha_is_read_and_the_mask_beside_it_is_no_product() -> None:
    def head(m: Any, h: Tensor) -> Tensor:
        mask = torch.zeros(2, 6, 6)
        return torch.softmax(torch.baddbmm(mask, h @ m.q, (h @ m.k).mT, beta=0.5, alpha=root(m)), -1) @ h

    plan = plan_of(head, lambda w: {"q": (w, w), "k": (w, w)}, scale="head_dim")
    assert plan.base_forward.scales[""] == pytest.approx((16, 0.25))
    assert plan["q"].fold == pytest.approx(0.5), "a quarter of the base's scale, of which half is there"
