"""Init laws are read from the constructor's own writes, exactly; what cannot be read is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mutransfer.planning.constructors import read_defaults, read_laws
from mutransfer.planning.laws import Law, estimate, fits

D = 64


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, D, padding_idx=0)
        self.linear = nn.Linear(D, 2 * D)
        self.xavier = nn.Linear(D, 3 * D)
        nn.init.xavier_uniform_(self.xavier.weight)
        self.conv = nn.Conv2d(3, D, 3)
        self.norm = nn.BatchNorm2d(D)
        self.attention = nn.MultiheadAttention(D, 4)
        self.scaled = nn.Parameter(torch.randn(5, D) * 0.02)
        self.cut = nn.Parameter(torch.empty(7, D))
        nn.init.trunc_normal_(self.cut, std=0.5, a=-0.5, b=0.5)
        self.centred = nn.Parameter(torch.rand(4, D) - 0.5)
        self.ramp = nn.Parameter(torch.log(torch.arange(1, D + 1).float()))
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(D, D)))


# What each initialiser is documented to draw from.
STDS = {
    "embedding.weight": 1.0,
    "linear.weight": math.sqrt(1 / (3 * D)),
    "linear.bias": math.sqrt(1 / (3 * D)),
    "xavier.weight": math.sqrt(2 / (D + 3 * D)),
    "conv.weight": math.sqrt(1 / (3 * 27)),
    "attention.in_proj_weight": math.sqrt(2 / (D + 3 * D)),
    "scaled": 0.02,
    "centred": math.sqrt(1 / 12),
    # a normal of std 0.5 cut at one standard deviation: std 0.5 * sqrt(1 - 2 phi(1) / (2 Phi(1) - 1))
    "cut": 0.5 * 0.539560,
}


@pytest.fixture(scope="module")
def laws():
    return read_laws(Everything)


@pytest.mark.parametrize("name", sorted(STDS))
def test_a_drawn_law_is_read_exactly(laws, name):
    assert laws[name].kind == "drawn"
    assert not laws[name].measured
    assert laws[name].std == pytest.approx(STDS[name], rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("norm.weight", 1.0), ("norm.bias", 0.0), ("attention.in_proj_bias", 0.0)])
def test_a_constant_is_a_constant(laws, name, value):
    assert laws[name] == Law("constant", 0.0, value)


def test_values_computed_by_code_are_constant_whatever_they_are(laws):
    assert laws["ramp"].kind == "constant"


def test_an_init_that_cannot_be_read_is_measured(laws):
    assert laws["orthogonal"].measured
    assert laws["orthogonal"].std == pytest.approx(1 / math.sqrt(D), rel=0.01)


def test_reading_costs_no_memory_and_moves_no_random_state():
    def huge() -> nn.Module:
        return nn.Linear(2**17, 2**17)  # 64 GiB of weights

    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert read_laws(huge)["weight"].std == pytest.approx(math.sqrt(1 / (3 * 2**17)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_constructor_that_reads_values_runs_for_real():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
            self.weight = nn.Parameter(torch.randn(3, 3) * (1 + rates[0]))

    assert read_laws(Reader)["weight"] == Law("drawn", 1.0, 0.0)


def test_slices_drawn_differently_are_one_unreadable_tensor():
    class Fused(nn.Module):
        def __init__(self, second: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(2 * D, D))
            with torch.no_grad():
                self.w.normal_(std=1.0)
                self.w[D:].normal_(std=second)

    assert read_laws(lambda: Fused(1.0))["w"] == Law("drawn", 1.0, 0.0)
    mixed = read_laws(lambda: Fused(3.0))["w"]
    assert mixed.measured
    assert mixed.std == pytest.approx(math.sqrt(5), rel=0.02)


def test_transformers_own_init_is_read_where_torchs_default_would_be_wrong():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=64, bos_token_id=1, eos_token_id=1)
    laws = read_laws(lambda: GPT2LMHeadModel(config))
    assert laws["transformer.h.0.attn.c_attn.weight"].std == pytest.approx(0.02)
    assert laws["transformer.h.0.attn.c_proj.weight"].std == pytest.approx(0.02 / math.sqrt(4))
    assert laws["lm_head.weight"] == laws["transformer.wte.weight"]


def test_layers_own_defaults_are_known_without_a_constructor():
    model = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.TransformerEncoderLayer(D, 4))
    before = [p.clone() for p in model.parameters()]
    defaults = read_defaults(model)
    assert defaults["0.bias"].std == pytest.approx(math.sqrt(1 / (3 * D)))
    assert defaults["1.weight"] == Law("constant", 0.0, 1.0)
    assert defaults["2.self_attn.out_proj.bias"] == Law("constant", 0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(not p.is_meta for p in model.parameters())


def test_a_fresh_draw_fits_its_law_and_a_scaled_one_does_not():
    torch.manual_seed(0)
    law = Law("drawn", 0.02, 0.0)
    draws = [torch.randn(n, n) * 0.02 for n in (2, 8, 64) for _ in range(50)]
    assert all(fits(law, draw) for draw in draws)
    assert not fits(law, torch.randn(64, 64) * 0.02 / 2)
    assert not fits(law, torch.randn(64, 64) * 0.02 + 0.02)
    assert not fits(Law("constant", 0.0, 1.0), torch.ones(4) * 0.99)


@pytest.mark.parametrize("shape", [(2**11, 2**11), (2**21, 2), (2, 2**21), (2**22,), (2**9, 2**9, 3, 3), (5, 7), (1,)])
def test_a_large_tensor_is_judged_by_entries_from_all_of_it(shape):
    law = Law("drawn", 0.02, 0.0)
    fresh = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    assert fits(law, fresh)
    if fresh.numel() > 2**18:
        assert not fits(law, fresh * 1.25)
        assert not fits(law, fresh + 0.005)
        half = fresh.clone()
        half.view(-1)[half.numel() // 2 :] *= 2  # the last experts, or keys and values
        assert not fits(law, half)
        padded = fresh.clone()
        padded[-1] = 0
        assert fits(law, padded if len(shape) > 1 and shape[0] > 2 else fresh)
    assert fits(Law("constant", 0.0, 0.02), torch.full(shape, 0.02))
    marked = torch.full(shape, 0.02)
    marked.view(-1)[-1] = 0.03
    assert not fits(Law("constant", 0.0, 0.02), marked), "one entry that is not the constant is enough"


def test_estimate_tells_constants_from_draws():
    assert estimate(torch.full((3, 3), 2.0)) == Law("constant", 0.0, 2.0)
    drawn = estimate(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    assert drawn.measured
    assert drawn.std == pytest.approx(1.0, abs=0.1)


def test_one_entry_of_a_truncated_normal_on_its_far_bound_is_still_fresh():
    """erfinv(-1) is -inf, which `trunc_normal_` clamps to its bound, -2 by default: 100 standard deviations of 0.02."""
    torch.manual_seed(0)
    law, values = Law("drawn", 0.02, 0.0), 0.02 * torch.randn(32, 128)
    values[3, 5] = -2.0
    assert fits(law, values)
    values[7, 9] = -2.0
    assert not fits(law, values)
    assert not fits(law, 1.5 * 0.02 * torch.randn(32, 128))
