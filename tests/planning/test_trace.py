"""The trace says what each parameter does, whatever module, layout or slice it comes in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_models import Decoder

from mutransfer.errors import RoleError
from mutransfer.planning.graph import NormFold, norm_in_front
from mutransfer.planning.sites import attention_sites
from mutransfer.planning.trace import trace

IDS = torch.ones(1, 8, dtype=torch.long)


def uses(model: nn.Module, *inputs: Tensor) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    return {
        name: [(use.kind, tuple(sorted(use.contracted))) for use in found]
        for name, found in trace(model, inputs).uses.items()
    }


def test_linear_contracts_its_second_dimension_and_adds_its_bias():
    assert uses(nn.Linear(4, 6), torch.zeros(2, 4)) == {
        "weight": [("contraction", (1,))],
        "bias": [("elementwise", ())],
    }


def test_convolutions_contract_channels_and_taps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2))
    found = uses(model, torch.zeros(1, 3, 9, 9))
    assert found["0.weight"] == [("contraction", (1, 2, 3))]
    assert found["1.weight"] == [("contraction", (2, 3))], "a depthwise kernel contracts its taps alone"
    assert found["2.weight"] == [("contraction", (0, 2, 3))]


class Loose(nn.Module):
    """Parameters in every layout that loose code uses."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(8, 6))
        self.experts = nn.Parameter(torch.randn(3, 6, 5))
        self.fused = nn.Parameter(torch.randn(10, 5))
        self.cast = nn.Parameter(torch.randn(5, 7))
        self.gain = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.transposed
        x = torch.einsum("td,edf->etf", x, self.experts).sum(0)
        first, second = self.fused.chunk(2)
        x = functional.linear(x, first) + functional.linear(x, second)
        return x @ self.cast.bfloat16().float() * (1 + self.gain)


def test_loose_parameters_are_followed_through_views_slices_casts_and_einsum():
    assert uses(Loose(), torch.zeros(4, 8)) == {
        "transposed": [("contraction", (0,))],
        "experts": [("contraction", (1,))],
        "fused": [("contraction", (1,)), ("contraction", (1,))],
        "cast": [("contraction", (0,))],
        "gain": [("elementwise", ())],
    }


def test_weight_norm_is_looked_through():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    found = uses(model, torch.zeros(2, 4))
    assert found["parametrizations.weight.original1"] == [("contraction", (1,))]
    assert found["parametrizations.weight.original0"] == [("elementwise", ())]


def test_fused_kernels_are_opened():
    attention = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    assert uses(attention, torch.zeros(1, 3, 8))["self_attn.in_proj_weight"] == [("contraction", (1,))]
    recurrent = uses(nn.LSTM(4, 6), torch.zeros(2, 1, 4))
    assert set(recurrent["weight_hh_l0"]) == {("contraction", (1,))}


def test_a_tied_tensor_has_both_uses():
    assert uses(Decoder(16, tied=True), IDS)["embed.weight"] == [("lookup", ()), ("contraction", (1,))]


def test_the_model_and_its_buffers_and_the_random_state_are_untouched():
    cells = nn.LSTM(4, 4)
    trace(cells, (torch.zeros(2, 4),))
    assert all(
        weight is getattr(cells, name)
        for weight, name in zip(cells._flat_weights, cells._flat_weights_names, strict=True)
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not model[0]._forward_pre_hooks


def test_a_model_on_meta_is_traced():
    with torch.device("meta"):
        model = Decoder(16)
    assert uses(model, IDS)["blocks.0.qkv.weight"] == [("contraction", (1,))]


def test_inputs_that_do_not_fit_give_one_sentence():
    with pytest.raises(RoleError, match="forward pass failed on the example inputs"):
        trace(nn.Linear(4, 4), (torch.zeros(2, 5),))


def _front(model: nn.Module) -> NormFold | str:
    traced = trace(model, (IDS,))
    (readout,) = [use for use in traced.uses["embed.weight"] if use.kind == "contraction"]
    return norm_in_front(traced, readout)


def test_the_norm_in_front_of_a_tied_readout_is_found():
    front = _front(Decoder(16, tied=True))
    assert isinstance(front, NormFold)
    assert set(front.parameters) == {"norm.weight", "norm.bias"}


def test_control_a_norm_that_feeds_something_else_is_no_fold():
    class TwoHeads(Decoder):
        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.norm(self.embed(ids))
            return self.readout(hidden) + hidden.mean()

    assert "another consumer" in str(_front(TwoHeads(16, tied=True)))


def test_control_a_hidden_state_that_leaves_the_model_is_no_fold():
    class Exposed(Decoder):
        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.norm(self.embed(ids))
            return self.readout(hidden), hidden

    assert "leaves the model" in str(_front(Exposed(16, tied=True)))


def test_control_an_activation_between_norm_and_readout_is_no_fold():
    class Squashed(Decoder):
        def forward(self, ids: Tensor) -> Tensor:
            return self.readout(torch.tanh(self.norm(self.embed(ids))))

    assert "'tanh' stands between" in str(_front(Squashed(16, tied=True)))


def test_control_a_gain_that_is_one_plus_w_is_no_fold():
    """Multiplying w would not multiply the gain (Gemma's norms)."""

    class Offset(Decoder):
        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embed(ids)
            return self.readout(hidden * hidden.square().mean(-1, keepdim=True).rsqrt() * (1 + self.norm.weight))

    assert "a number plus 'norm.weight'" in str(_front(Offset(16, tied=True)))


class Eager(nn.Module):
    """Attention written out, its scale split over q and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x) * 0.5, self.k(x)
        logits = q @ k.transpose(-2, -1) / 4
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
        return logits.softmax(-1) @ self.v(x)


def test_an_attention_written_out_shows_its_whole_scale():
    (site,) = attention_sites(trace(Eager(), (torch.zeros(2, 3, 8),)))
    assert site.scale == pytest.approx(0.5 / 4)
    assert site.head_dim == 8


def test_sdpa_shows_its_scale():
    sites = attention_sites(trace(Decoder(32, head_dim=16), (IDS,)))
    assert [(s.module, s.head_dim, s.scale) for s in sites] == [("blocks.0", 16, 0.25), ("blocks.1", 16, 0.25)]
