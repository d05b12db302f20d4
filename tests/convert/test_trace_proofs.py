"""A role is proven by what is summed, however the forward pass writes the sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mutransfer as mt
from mutransfer.errors import RoleError
from mutransfer.planning.trace_base import trace_model

WIDTHS = (64, 16)
X = torch.zeros(2, 6, 5)
IDS = torch.ones(2, 6, dtype=torch.long)


class Net(nn.Module):
    """An input layer, one nonlinearity, and whatever `head` does with the hidden state and a parameter or two."""

    def __init__(self, width: int, head: Callable[[Net, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.head = head
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 4))
        self.register_buffer("mask", torch.ones(7, width).tril())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, torch.tanh(self.embed(x)))


def roles(head: Callable[[Net, Tensor], Tensor], shapes: Callable[[int], dict[str, tuple[int, ...]]]) -> dict[str, str]:
    def build(width: int) -> nn.Module:
        return Net(width, head, **shapes(width))

    plan = mt.plan(build(WIDTHS[0]), "mup", base=WIDTHS[1], factory=build, example_inputs=X)
    return {name: plan[name].role.value for name in shapes(8)}


READOUTS = {
    "masked": lambda m, h: functional.linear(h, m.r * m.mask),
    "merged with a delta": lambda m, h: functional.linear(h, m.r + m.d),
    "concatenated": lambda m, h: functional.linear(h, torch.cat([m.r, m.d])),
    "stacked": lambda m, h: torch.einsum("btw,kcw->bktc", h, torch.stack([m.r, m.d])),
    "cast and shifted": lambda m, h: functional.linear(h, (m.r.bfloat16() - m.d.bfloat16()).float()),
    "squashed": lambda m, h: functional.linear(h, torch.tanh(m.r)),
    "reparametrized by a sigmoid gate of parameters": lambda m, h: functional.linear(h, m.r * torch.sigmoid(m.d)),
}


@pytest.mark.parametrize("head", READOUTS.values(), ids=READOUTS.keys())
def test_a_readout_made_of_parameters_is_a_readout_in_all_of_them(head: Callable[[Net, Tensor], Tensor]) -> None:
    found = roles(head, lambda w: {"r": (7, w), "d": (7, w)} if "d" in head.__code__.co_names else {"r": (7, w)})
    assert set(found.values()) == {"output"}


def test_one_gain_a_row_or_column_of_a_weight_is_a_vector() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        return functional.linear(h, m.w * m.rows[:, None] * m.columns).sum(-1)

    found = roles(head, lambda w: {"w": (w, w), "rows": (w,), "columns": (w,)})
    assert found == {"w": "hidden", "rows": "vector", "columns": "vector"}


SUMS = {
    "(h * v).sum(-1)": lambda m, h: (h * m.v).sum(-1),
    "scaled, then summed": lambda m, h: ((h * m.v) / 3).sum(-1, keepdim=True),
    "h @ v": lambda m, h: h @ m.v,
    "einsum": lambda m, h: torch.einsum("btw,w->bt", h, m.v),
}


@pytest.mark.parametrize("head", SUMS.values(), ids=SUMS.keys())
def test_a_product_that_is_summed_over_the_width_is_a_readout(head: Callable[[Net, Tensor], Tensor]) -> None:
    assert roles(head, lambda w: {"v": (w,)}) == {"v": "output"}


GAINS = {
    "a gain": lambda m, h: h * m.v,
    "a gain whose product is centred": lambda m, h: (lambda y: y - y.mean(-1, keepdim=True))(h * m.v),
    "a gain, pooled over positions": lambda m, h: (h * m.v).mean(1),
    "a gain, averaged over the width, which is 1/n of a sum": lambda m, h: (m.v * h).mean(dim=2),
    "1 + w": lambda m, h: h * (1 + m.v),
}


@pytest.mark.parametrize("name", GAINS)
def test_a_gain_stays_a_vector(name: str) -> None:
    assert roles(GAINS[name], lambda w: {"v": (w,)}) == {"v": "vector"}


def test_learned_queries_that_a_matrix_projects_are_embeddings_and_the_matrix_is_hidden() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        return torch.softmax((m.queries @ m.w) @ h.mT / 8, -1) @ h

    assert roles(head, lambda w: {"queries": (3, w), "w": (w, w)}) == {"queries": "input", "w": "hidden"}


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        (lambda m, h: functional.linear(h, m.a @ m.b), lambda w: {"a": (w, 3), "b": (3, w)}),
        (lambda m, h: functional.linear(h, m.a @ m.b), lambda w: {"a": (w, 2 * w), "b": (2 * w, w)}),
        (lambda m, h: functional.linear(h, m.a[:, None] * m.b), lambda w: {"a": (7,), "b": (w,)}),
    ],
    ids=["low-rank product", "product of matrices", "outer product"],
)
def test_a_weight_whose_contraction_cannot_be_told_is_refused(
    head: Callable[[Net, Tensor], Tensor], shapes: Callable[[int], dict[str, tuple[int, ...]]]
) -> None:
    with pytest.raises(RoleError, match="cannot be proven"):
        roles(head, shapes)


def test_one_matrix_a_head_is_a_vector_where_the_heads_are_what_grows() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        return torch.einsum("bthd,hde->bthe", h.unflatten(-1, (-1, 8)), m.w)

    assert roles(head, lambda w: {"w": (w // 8, 8, 8)}) == {"w": "vector"}


def test_matrices_gathered_by_a_router_are_hidden() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        chosen = (h @ m.router).argmax(-1).flatten()
        return torch.bmm(h.flatten(0, 1)[:, None], m.experts[chosen])

    assert roles(head, lambda w: {"router": (w, 4), "experts": (4, w, 2 * w)}) == {
        "router": "output",
        "experts": "hidden",
    }


def test_a_table_that_multiplies_is_a_gain_and_one_that_is_added_an_embedding() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        decay = torch.exp(-torch.exp(m.a_log))  # as state-space models have it
        return ((h + m.positions)[..., None] * decay).sum(-1)

    assert roles(head, lambda w: {"a_log": (w, 3), "positions": (6, w)}) == {"a_log": "vector", "positions": "input"}


def test_a_pooler_and_a_mask_token_that_the_inputs_do_not_reach_are_taken_from_their_layer_and_listed() -> None:
    class WithPooler(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Linear(5, width)
            self.pooler = nn.Linear(width, 2 * width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    plan = mt.plan(WithPooler(64), "mup", base=16, factory=WithPooler, example_inputs=X)
    assert (plan["pooler.weight"].role, plan["pooler.weight"].m_in) == ("hidden", 4)
    assert plan["mask_token"].role == "vector"
    assert any("pooler.weight" in note and "not reached" in note for note in plan.notes)


def test_loose_matrices_that_the_inputs_do_not_reach_are_refused_in_one_sentence() -> None:
    with pytest.raises(RoleError, match=r"'w' .* never used .* reach it[.]$"):
        roles(lambda m, h: h, lambda w: {"w": (w, w)})
    with pytest.raises(RoleError, match=r"'w' .* never used .* reach it[.] The same holds for 2 more: 'u', 'v'[.]$"):
        roles(lambda m, h: h, lambda w: {"w": (w, w), "u": (w, 3), "v": (w, w)})


def test_a_forward_pass_that_asks_for_values_is_run_for_real() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        rows = torch.nonzero(h[..., 0] >= -2)
        return h[rows[:, 0], rows[:, 1]] @ m.w * float(rows.shape[0] > 0)

    assert roles(head, lambda w: {"w": (w, 2 * w)}) == {"w": "hidden"}


def test_a_forward_pass_that_only_runs_in_evaluation_is_traced_there_and_the_model_keeps_its_mode() -> None:
    class Strict(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("labels must be given in training")
            return super().forward(x)

    model = Strict(5, 64)
    plan = mt.plan(model, "mup", base=16, factory=lambda w: Strict(5, w), example_inputs=X)
    assert plan["weight"].role == "input"
    assert model.training


def _normalized(m: Net, h: Tensor) -> Tensor:
    return functional.linear(h, functional.normalize(m.w, dim=1))


def _normalized_by_hand(m: Net, h: Tensor) -> Tensor:
    return functional.linear(h, m.w * torch.rsqrt(m.w.pow(2).mean(1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("head", [_normalized, _normalized_by_hand])
def test_a_weight_that_is_divided_by_its_own_norm_feels_no_factor_and_is_refused(
    head: Callable[[Net, Tensor], Tensor],
) -> None:
    with pytest.raises(RoleError, match="'w' is normalized in the forward pass"):
        roles(head, lambda w: {"w": (7, w)})


def _straight_through(quantize: Callable[[Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    return lambda m, h: functional.linear(h, m.w + (quantize(m.w) - m.w).detach())


BITNETS = {
    "three values": _straight_through(lambda w: (w / w.abs().mean()).round().clamp(-1, 1) * w.abs().mean()),
    "by the inverse scale": _straight_through(lambda w: (lambda s: (w * s).round() / s)(1 / w.abs().mean())),
    "two values": _straight_through(lambda w: (w - w.mean()).sign() * w.abs().mean()),
    "eight bits": _straight_through(lambda w: (lambda s: (w / s).round() * s)(w.abs().amax(1, keepdim=True) / 127)),
}


@pytest.mark.parametrize("head", BITNETS.values(), ids=BITNETS.keys())
def test_a_quantized_weight_that_gets_its_size_back_feels_a_factor(head: Callable[[Net, Tensor], Tensor]) -> None:
    assert roles(head, lambda w: {"w": (7, w)}) == {"w": "output"}


NO_FACTOR = {
    "quantized to values of no size": _straight_through(lambda w: (w / w.abs().mean()).round()),
    "a factor twice": _straight_through(lambda w: w * w.abs().mean()),
}


@pytest.mark.parametrize("head", NO_FACTOR.values(), ids=NO_FACTOR.keys())
def test_control_one_that_does_not_is_refused(head: Callable[[Net, Tensor], Tensor]) -> None:
    with pytest.raises(RoleError, match="'w' is normalized in the forward pass"):
        roles(head, lambda w: {"w": (7, w)})


@pytest.mark.parametrize("training", [True, False])
def test_the_singular_value_of_spectral_norm_is_no_use_of_its_weight(training: bool) -> None:
    def build(width: int) -> nn.Module:
        head = nn.utils.parametrizations.spectral_norm(nn.Linear(width, 7))
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), head).train(training)

    with pytest.raises(RoleError, match=r"'2.parametrizations.weight.original' is normalized"):
        mt.plan(build(64), "mup", base=16, factory=build, example_inputs=X)
    plan = mt.plan(build(64), "sp", base=16, factory=build, example_inputs=X, init="keep")
    assert plan["2.parametrizations.weight.original"].role == "output"


def test_rows_that_are_interpolated_or_mixed_by_probabilities_are_looked_up() -> None:
    def sampled(m: Net, h: Tensor) -> Tensor:
        grid = torch.linspace(-1, 1, 6).expand(1, 1, 6, 6)[..., :2]
        return h + functional.grid_sample(m.positions.T.reshape(1, -1, 4, 2), grid, align_corners=False)[0, :, 0].T

    def soft(m: Net, h: Tensor) -> Tensor:
        return torch.softmax(h @ m.logits, -1) @ m.table + m.table[IDS]

    assert roles(sampled, lambda w: {"positions": (8, w)}) == {"positions": "input"}
    assert roles(soft, lambda w: {"logits": (w, 7), "table": (7, w)}) == {"logits": "output", "table": "input"}


def test_a_projection_that_reads_out_too_is_tied_to_itself() -> None:
    class Factorized(nn.Module):
        """ALBERT's two-step embedding, both steps tied to the readout."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.rows, self.up = nn.Embedding(7, 4), nn.Linear(4, width, bias=False)
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: Tensor) -> Tensor:
            return self.norm(torch.tanh(self.up(self.rows(ids)))) @ self.up.weight @ self.rows.weight.T

    plan = mt.plan(Factorized(64), "mup", base=16, factory=Factorized, example_inputs=IDS)
    line = plan["up.weight"]
    assert (line.role, line.fan_in, line.m_in, line.m_out) == ("input", 4, 1, 4)
    assert "contracted over the width as readout (tied)" in line.why
    assert plan["norm.weight"].carried == pytest.approx(1 / 4), "muP's tied readout is multiplied by 1/m"


def test_a_weight_that_contracts_learned_numbers_of_a_fixed_count_is_an_input_layer() -> None:
    def boxes(m: Net, h: Tensor) -> Tensor:
        return h + (torch.sigmoid(m.boxes) @ m.embed_boxes)[None]

    assert roles(boxes, lambda w: {"boxes": (6, 4), "embed_boxes": (4, w)}) == {
        "boxes": "scalar",
        "embed_boxes": "input",
    }


def test_a_factor_a_channel_times_a_number_a_position_is_a_gain() -> None:
    def head(m: Net, h: Tensor) -> Tensor:
        return h * (m.scale * torch.arange(1.0, 7.0).log()[:, None] + m.shift)

    assert roles(head, lambda w: {"scale": (w,), "shift": (w,)}) == {"scale": "vector", "shift": "vector"}


def test_the_reason_of_a_grouped_convolution_says_which_size_grows() -> None:
    class Grouped(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.stem, self.few = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=4)
            self.many = nn.Conv2d(width, width, 3, groups=width // 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.many(self.few(self.stem(x)))

    plan = mt.plan(Grouped(64), "mup", base=16, factory=Grouped, example_inputs=torch.zeros(2, 3, 8, 8))
    reasons = {name: (plan[f"{name}.weight"].role.value, plan[f"{name}.weight"].why) for name in ("few", "many")}
    assert reasons == {
        "few": ("hidden", "contracts a growing size (dimension 1, 2, 3) into a growing one"),
        "many": ("vector", "contracts a fixed size (dimension 1, 2, 3) in each of a growing number of channels"),
    }


@pytest.mark.parametrize(("soft", "readouts"), [(False, 0), (True, 1)])
def test_a_codebook_whose_nearest_row_is_looked_up_is_no_readout_unless_the_distances_go_on(
    soft: bool, readouts: int
) -> None:
    """Vector quantization (van den Oord et al. 2017): only the index of the nearest row leaves the distances."""

    class Quantizer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.encode, self.codebook = nn.Linear(5, width), nn.Embedding(7, width)
            self.decode = nn.Linear(width, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.encode(x)
            near = 2 * h @ self.codebook.weight.T
            rows = self.codebook(near.max(-1)[1])
            return self.decode(h + (rows - h).detach()), near if soft else rows

    found = trace_model(Quantizer(64), X, None)[1].uses["codebook.weight"]
    assert [use.kind for use in found].count("contraction") == readouts
    assert "lookup" in [use.kind for use in found]
