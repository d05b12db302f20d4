"""A parameter that the inputs do not reach is proven by its layer, its like, or its part of the model run alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import RoleError

X = torch.zeros(2, 6, 5)


class Idle(nn.Module):
    """A body, and a part beside it that no input reaches."""

    def __init__(self, width: int, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body, self.idle = nn.Linear(5, width), make(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def planned(make: Callable[[int], nn.Module]) -> mt.Plan:
    def build(width: int) -> nn.Module:
        return Idle(width, make)

    return mt.plan(build(64), "mup", base=16, factory=build, example_inputs=X)


LAYERS: dict[str, tuple[Callable[[int], nn.Module], str, str, float]] = {
    "attention": (lambda w: nn.MultiheadAttention(w, 4), "in_proj_weight", "hidden", 4),
    "attention over keys of a fixed size": (lambda w: nn.MultiheadAttention(w, 4, kdim=3), "k_proj_weight", "input", 1),
    "recurrent": (lambda w: nn.LSTM(3, w), "weight_ih_l0", "input", 1),
    "recurrent, from state to state": (lambda w: nn.LSTM(3, w), "weight_hh_l0", "hidden", 4),
    "one step of a recurrence": (lambda w: nn.GRUCell(3, w), "weight_hh", "hidden", 4),
    "transposed convolution into few channels": (lambda w: nn.ConvTranspose1d(w, 3, 2), "weight", "output", 4),
    "transposed convolution of few channels": (lambda w: nn.ConvTranspose2d(3, w, 2), "weight", "input", 1),
    "transposed, each channel by itself": (lambda w: nn.ConvTranspose1d(w, w, 2, groups=w), "weight", "vector", 1),
    "bag of rows": (lambda w: nn.EmbeddingBag(7, w), "weight", "input", 1),
    "weight_norm": (
        lambda w: nn.utils.parametrizations.weight_norm(nn.Conv1d(w, 2 * w, 3)),
        "parametrizations.weight.original1",
        "hidden",
        4,
    ),
}


@pytest.mark.parametrize(("make", "name", "role", "m_in"), LAYERS.values(), ids=LAYERS.keys())
def test_torchs_own_layers_say_what_they_do(make: Callable[[int], nn.Module], name: str, role: str, m_in: float):
    line = planned(make)[f"idle.{name}"]
    assert (line.role.value, line.m_in) == (role, m_in)
    assert "not reached" in line.why


class Router(nn.Module):
    """A Linear by hand: torch knows nothing of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, width))

    def forward(self, h: Tensor, scale: float) -> Tensor:
        return h @ self.table.T * scale


class Two(nn.Module):
    """Two parts by hand; the inputs reach the first."""

    def __init__(self, width: int, other: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(5, width), Router(width), other(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.body(x), 0.5)


class Reader(nn.Module):
    """Another class with a parameter of that name and shape, which it adds to a hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, width))

    def forward(self, h: Tensor, scale: float) -> Tensor:
        return h + scale * self.table


def test_what_is_seen_of_one_module_holds_for_another_of_its_class_and_for_no_other():
    plan = mt.plan(Two(64, Router), "mup", base=16, factory=lambda w: Two(w, Router), example_inputs=X)
    assert (plan["second.table"].role, plan["second.table"].m_in) == ("output", 4)
    assert "not reached" in plan["second.table"].why
    with pytest.raises(RoleError, match=r"'second.table' .* never used"):
        mt.plan(Two(64, Reader), "mup", base=16, factory=lambda w: Two(w, Reader), example_inputs=X)


class Queries(nn.Module):
    """Learned queries attend to what is given, under a mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, width))
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        logits = self.q(self.queries) @ self.k(states).transpose(-1, -2) + mask.log()[:, None]
        return torch.softmax(logits, -1) @ states + self.queries


class Tower(nn.Module):
    """Images: patches, positions by hand, and a readout by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(torch.randn(16, width))
        self.readout = nn.Parameter(torch.randn(width, 7))

    def forward(self, images: Tensor) -> Tensor:
        return (self.patches(images).flatten(2).mT + self.positions) @ self.readout


def test_a_part_of_the_model_runs_alone_on_images_or_hidden_states_that_are_guessed():
    tower = planned(Tower)
    assert {name: tower[f"idle.{name}"].role.value for name in ("positions", "readout")} == {
        "positions": "input",
        "readout": "output",
    }
    assert planned(Queries)["idle.queries"].role == "input"
    assert any("not reached" in note and "idle.positions" in note for note in tower.notes)


class Unknown(Tower):
    """No guess gives it what it asks for."""

    def forward(self, images: Tensor, answer: int) -> Tensor:
        if answer != 42:
            raise ValueError("no")
        return super().forward(images)


def test_a_part_that_runs_on_no_guess_proves_nothing():
    with pytest.raises(RoleError, match=r"'idle.positions' .* never used"):
        planned(Unknown)


class Predictor(nn.Module):
    """Mixes a token of its own with hidden states at given positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(3, 1, 1, width))

    def forward(self, states: Tensor, context_mask: list[Tensor]) -> Tensor:
        kept = torch.cat([states.gather(1, m[..., None].expand(*m.shape, states.shape[-1])) for m in context_mask])
        return kept + self.mask_token[1].expand(*kept.shape[:2], -1)


class Filtered(Predictor):
    """The same, from a mask that only its own caller can make."""

    def forward(self, states: Tensor, context_mask: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(states, [context_mask["of the caller"]])


def test_a_part_that_takes_lists_of_positions_is_run_alone() -> None:
    line = planned(Predictor)["idle.mask_token"]
    assert (line.role.value, line.m_out) == ("input", 4)
    assert "not reached" in line.why
    with pytest.raises(RoleError, match=r"'idle.mask_token' .* never used in the traced forward pass"):
        planned(Filtered)
