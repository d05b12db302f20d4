"""Own contributions against what they are by definition, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.apply.multipliers import apply_swaps
from mutransfer.check.measure import measure
from mutransfer.planning.data import SwapPlan
from mutransfer.train.models import build_model

DIM, TOKENS = 12, 5


def rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def moved(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Values before and the model after a step that changes every parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, before


def contributions(model: nn.Module, inputs: Tensor, before: dict[str, Tensor] | None = None) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for use in measure(model, lambda m: m(inputs), before).uses:
        found.setdefault(use.parameter, []).append(use.size)
    return found


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, TOKENS, DIM)


def test_linear_at_init_and_as_change(x):
    layer = nn.Linear(DIM, 7)
    assert contributions(layer, x) == {
        "weight": [pytest.approx(rms(F.linear(x, layer.weight)), rel=1e-5)],
        "bias": [pytest.approx(rms(layer.bias), rel=1e-5)],
    }
    layer, before = moved(layer)
    delta = layer.weight - before["weight"]
    assert contributions(layer, x, before)["weight"] == [pytest.approx(rms(F.linear(x, delta)), rel=1e-5)]
    assert contributions(layer, x, before)["weight"] != [pytest.approx(rms(F.linear(x, layer.weight)), rel=1e-2)]


def test_tied_tensor_has_two_uses(x):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, DIM), nn.Linear(DIM, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.embed(ids)))

    ids = torch.tensor([[1, 2, 3]])
    model, before = moved(Tied())
    delta = model.embed.weight - before["embed.weight"]
    lookup, readout = rms(delta[ids]), rms(F.linear(torch.tanh(model.embed(ids)), delta))
    assert contributions(model, ids, before) == {"embed.weight": [pytest.approx(lookup), pytest.approx(readout)]}


@pytest.mark.parametrize("norm", [nn.LayerNorm(DIM), nn.RMSNorm(DIM), nn.GroupNorm(3, DIM), nn.BatchNorm1d(DIM)])
def test_gains_and_biases_of_norms(norm, x):
    inputs = x.flatten(0, 1)
    norm, before = moved(norm)
    gain = norm.weight - before["weight"]
    with torch.no_grad():
        norm.weight.fill_(1)
        bias = norm.bias.clone() if getattr(norm, "bias", None) is not None else torch.zeros(DIM)
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
        normalized = norm(inputs)
        norm.weight.copy_(before["weight"] + gain)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(bias)
    found = contributions(norm, inputs, before)
    assert found["weight"] == [pytest.approx(rms(normalized * gain), rel=1e-4)]
    if "bias" in found:
        assert found["bias"] == [pytest.approx(rms(bias - before["bias"]), rel=1e-4)]


def test_convolutions(x):
    images = torch.randn(1, 4, 6, 6)
    for layer in (nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=4), nn.ConvTranspose2d(4, 8, 3, stride=2)):
        alone = layer(images) - layer.bias[:, None, None]
        assert contributions(layer, images)["weight"] == [pytest.approx(rms(alone), rel=1e-4)]


class Functional(nn.Module):
    """Transposed, stacked, offset, masked, sliced and loose parameters, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(DIM, DIM))
        self.experts = nn.Parameter(torch.randn(3, DIM, DIM))
        self.offset = nn.Parameter(0.1 * torch.randn(DIM))
        self.positions = nn.Parameter(torch.randn(16, DIM))
        self.masked = nn.Parameter(torch.randn(DIM, DIM))
        self.register_buffer("mask", torch.ones(DIM, DIM).tril())
        self.cls = nn.Parameter(torch.randn(1, 1, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), x + self.positions[: x.shape[1]]], dim=1)
        y = x @ self.transposed
        y = torch.einsum("btd,edh->beth", y, self.experts).sum(1)
        y = F.linear(y, self.masked * self.mask)
        return y * (1 + self.offset)


def test_functional_parameters(x):
    model, before = moved(Functional())
    found = contributions(model, x, before)
    delta = {name: p - before[name] for name, p in model.named_parameters()}
    first = torch.cat([model.cls.expand(2, -1, -1), x + model.positions[:TOKENS]], dim=1)
    second = first @ model.transposed
    third = torch.einsum("btd,edh->beth", second, model.experts).sum(1)
    fourth = F.linear(third, model.masked * model.mask)
    expected = {
        "positions": delta["positions"][:TOKENS],
        "cls": delta["cls"],
        "transposed": first @ delta["transposed"],
        "experts": torch.einsum("btd,edh->beth", second, delta["experts"]),
        "masked": F.linear(third, delta["masked"] * model.mask),
        "offset": fourth * delta["offset"],
    }
    assert found == {name: [pytest.approx(rms(value), rel=1e-4)] for name, value in expected.items()}


def test_a_reparametrized_weight_is_followed_to_its_use(x):
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(DIM, DIM, bias=False))
    layer, before = moved(layer)
    gain, direction = "parametrizations.weight.original0", "parametrizations.weight.original1"
    found = contributions(layer, x, before)
    v, old = dict(layer.named_parameters())[direction], before[direction]
    g = dict(layer.named_parameters())[gain]
    without = F.linear(x, g * (v / v.norm(dim=1, keepdim=True) - old / old.norm(dim=1, keepdim=True)))
    assert found[direction] == [pytest.approx(rms(without), rel=1e-3)]
    with_delta = F.linear(x, (g - before[gain]) * v / v.norm(dim=1, keepdim=True))
    assert found[gain] == [pytest.approx(rms(with_delta), rel=1e-3)]


def test_multihead_attention_hides_nothing(x):
    layer = nn.MultiheadAttention(DIM, 3, batch_first=True).eval()
    uses = measure(layer, lambda m: m(x, x, x)).uses
    assert {use.parameter for use in uses} == {name for name, _ in layer.named_parameters()}
    assert next(use for use in uses if use.parameter == "out_proj.weight").fan_in == DIM


class TestMultipliers:
    """The contribution is taken as it enters what follows."""

    @pytest.mark.parametrize(("fan_in", "fan_out"), [(DIM, 3), (3, DIM)])
    @pytest.mark.parametrize("side", ["module", "parameter"])
    def test_of_the_explicit_form(self, fan_in, fan_out, side):
        model = nn.Sequential(nn.Linear(fan_in, fan_out))
        inputs = torch.randn(TOKENS, fan_in)
        plain = contributions(model, inputs)
        apply_swaps(model, [SwapPlan("0", "weight", 0.25, side)])
        scaled = contributions(model, inputs)
        assert scaled["0.weight"] == [pytest.approx(plain["0.weight"][0] / 4, rel=1e-5)]
        assert scaled["0.bias"] == [pytest.approx(plain["0.bias"][0], rel=1e-5)]

    def test_written_behind_a_layer_counts_and_beyond_a_nonlinearity_does_not(self, x):
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

            def forward(self, x: Tensor) -> Tensor:
                hidden = torch.relu(self.first(x)) * 8.0
                return (self.second(hidden) * 0.5).view(2, -1) / 2.0

        model = Scaled()
        found = contributions(model, x)
        hidden = torch.relu(model.first(x)) * 8.0
        assert found["first.weight"] == [pytest.approx(rms(F.linear(x, model.first.weight)), rel=1e-5)]
        assert found["second.weight"] == [pytest.approx(rms(F.linear(hidden, model.second.weight)) / 4, rel=1e-5)]
        assert found["second.bias"] == [pytest.approx(rms(model.second.bias) / 4, rel=1e-5)]


def rotated(x: Tensor) -> Tensor:
    angle = torch.arange(DIM // 2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Attention(nn.Module):
    """The same attention, written in the ways that one meets."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        if self.kind == "sdpa":
            return F.scaled_dot_product_attention(q, k, x)
        if self.kind == "prescaled, rotated":
            q = q / math.sqrt(DIM)
            q, k = rotated(q), rotated(k)
            logits = q @ k.mT
        else:
            logits = q @ k.mT / math.sqrt(DIM)
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        return logits.masked_fill(mask, -1e30).softmax(-1) @ x


@pytest.mark.parametrize("kind", ["sdpa", "logits", "prescaled, rotated"])
def test_softmax_scale_is_read_and_is_not_the_queries_own(kind, x):
    model = Attention(kind)
    shown = measure(model, lambda m: m(x))
    (scale,) = shown.scales.values()
    assert (scale.head_dim, scale.value) == (DIM, pytest.approx(1 / math.sqrt(DIM)))
    assert [shown.uses[number].parameter.partition(".")[0] for number in scale.sources] == ["q", "k"]
    query = next(use for use in shown.uses if use.parameter == "q.weight")
    assert query.size == pytest.approx(rms(F.linear(x, model.q.weight)), rel=1e-5)
    assert 0 < shown.sizes["logits", ""] < 10


def test_places_of_the_plot():
    model = build_model({"name": "gpt", "width": 16, "vocab_size": 9, "seq_len": 8, "positions": "rotary"}).eval()
    ids = torch.tensor([[1, 2, 3]])
    first = measure(model, lambda m: m(ids))
    model, before = moved(model)
    later = measure(model, lambda m: m(ids), before, first)
    streams = [name for what, name in first.sizes if what == "stream"]
    assert streams == ["blocks.0", "blocks.0#2", "blocks.1", "blocks.1#2"]  # and no rotation among them
    assert [name for what, name in first.sizes if what == "logits"] == ["blocks.0.attention", "blocks.1.attention"]
    assert first.sizes["module", ""] == pytest.approx(rms(first.outputs["module", ""]))
    assert later.moved["module", ""] == pytest.approx(rms(model(ids) - first.outputs["module", ""]), rel=1e-4)


def test_measuring_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    images, state = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, lambda m: m(images))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_lstm_hides_neither_its_own_weights_nor_what_comes_after(x):
    """Its gates are written in place over what the biases alone had made."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.readout = nn.LSTM(DIM, DIM, 2, batch_first=True), nn.Linear(DIM, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(self.cells(x)[0])

    model, before = moved(Recurrent())
    found = contributions(model, x, before)
    assert set(found) == set(before)
    hidden = model.cells(x)[0]
    assert found["readout.weight"] == [pytest.approx(rms(hidden @ (model.readout.weight - before["readout.weight"]).T))]
    change = model.cells.weight_ih_l0 - before["cells.weight_ih_l0"]
    assert found["cells.weight_ih_l0"] == [pytest.approx(rms(x @ change.T))]


class Relative(nn.Module):
    """A projection of sinusoids, which no input reaches, added to the scores of an attention (Transformer-XL)."""

    def __init__(self):
        super().__init__()
        self.table, self.latent, self.project = nn.Embedding(3, DIM), nn.Parameter(torch.ones(DIM)), nn.Linear(DIM, DIM)
        self.register_buffer("sinusoids", torch.arange(4 * DIM).view(4, DIM).sin())
        self.register_buffer("row", torch.tensor([1]))

    def forward(self, x):
        constant = self.project(self.sinusoids + self.latent + self.table(self.row))
        return x @ constant.T


def test_weight_that_meets_constants_first_contracts_them_and_what_stands_for_an_activation_there_does_not():
    torch.manual_seed(0)
    x = torch.randn(2, DIM)
    snapshot = measure(Relative(), lambda model: model(x))
    sizes = {use.parameter: (use.fan_in, use.fan_out) for use in snapshot.uses}
    assert sizes["project.weight"] == (DIM, 4 * DIM)  # four rows of its outputs
    assert sizes["table.weight"] == sizes["latent"] == (DIM, 4)  # each row is contracted with x
