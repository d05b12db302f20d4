"""A forward pass that does more to its own modules than call them is traced all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import RoleError, ShapeError
from mutransfer.planning.inputs import find_inputs, find_trace

X = torch.zeros(2, 6, 5)


class Switch(nn.Module):
    """SwitchTransformers' layer: the router is cast to its own dtype in every call, and the chosen experts run one
    after the other."""

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.embed, self.router = nn.Linear(5, width), nn.Linear(width, 3)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        self.router = self.router.to(self.dtype)
        gates = torch.softmax(self.router(h.to(self.dtype)), -1).to(h.dtype)
        chosen = nn.functional.one_hot(gates.argmax(-1), 3)
        mixed = torch.zeros_like(h)
        for expert in torch.greater(chosen.sum((0, 1)), 0).nonzero():
            mixed = mixed + self.experts[int(expert)](h) * gates[..., int(expert), None]
        return mixed


def test_a_router_that_casts_itself_in_the_forward_pass_is_traced_and_left_as_it_was() -> None:
    for dtype in (torch.float32, torch.float64):
        model = Switch(64, dtype)
        before = dict(model.named_parameters())
        build = lambda width, dtype=dtype: Switch(width, dtype)  # noqa: E731
        plan = mt.plan(model, "mup", base=16, factory=build, example_inputs=X)
        assert (plan["router.weight"].role, plan["experts.0.weight"].role) == ("output", "hidden")
        assert all(p is before[name] and p.dtype == torch.float32 for name, p in model.named_parameters())


class Counting(nn.Module):
    """Guesses are tried on it: it takes vectors alone, and counts its calls elsewhere than on itself."""

    def __init__(self, width: int, calls: list[None]) -> None:
        super().__init__()
        self.layer, self.count = nn.Linear(5, width), calls.append

    def forward(self, x: Tensor) -> Tensor:
        self.count(None)
        return self.layer(x)


@pytest.mark.parametrize("given", [None, X])
def test_the_run_that_finds_the_inputs_is_the_trace(given: Tensor | None) -> None:
    calls: list[None] = []
    model = Counting(64, calls)
    inputs, found = find_trace(model, given)
    assert len(calls) == 1
    assert [use.kind for use in found.uses["layer.weight"]] == ["contraction"]
    assert inputs[0].shape == find_inputs(model, given)[0].shape
    assert len(calls) == (1 if given is not None else 2), "what is given is not run to be found"


class Hoards(nn.Module):
    """Leaves what it has computed on itself, in its buffers and in a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.register_buffer("last", torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.last, self.cache = y.detach().mean(), y.detach()
        self.seen.append(y.detach())
        return y


def test_a_forward_pass_that_leaves_tensors_on_the_model_leaves_none_of_the_traces():
    model = Hoards(32)
    mt.plan(model, "mup", base=16, factory=Hoards, example_inputs=torch.zeros(2, 4))
    assert (model.last.shape, model.seen, hasattr(model, "cache")) == ((1,), [], False)
    model(torch.zeros(2, 4))
    assert float(model.last) == pytest.approx(float(model.cache.mean()))


class DropsLayers(nn.Module):
    """LayerDrop (Fan et al. 2020): in training a layer is skipped at random, here nearly always."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.layers = nn.ModuleList(nn.MultiheadAttention(width, width // 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            if not (self.training and torch.rand([]) < 0.9):
                h = h + layer(h, h, h)[0]
        return h


def test_layers_that_are_dropped_at_random_are_traced_where_none_is_dropped():
    model = DropsLayers(32)
    for seed in range(3):
        torch.manual_seed(seed)
        plan = mt.plan(model, "mup", base=16, factory=DropsLayers, example_inputs=X)
        assert len(plan.base_forward.scales) == 3
        assert not any("not reached" in line.why for line in plan)
    assert model.training


class OnlyWhereItIsSmall(nn.Module):
    """A size in the code that does not follow the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, width), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.embed(x))


def test_a_model_that_does_not_run_at_its_width_is_told_from_inputs_that_do_not_fit():
    def plan(inputs: Tensor) -> mt.Plan:
        make = OnlyWhereItIsSmall
        return mt.plan(make(64), "mup", base=16, factory=make, example_inputs=inputs)

    with pytest.raises(
        ShapeError, match=r"fails \(RuntimeError: .*\), though the base's runs on the same inputs: a size"
    ):
        plan(X)
    with pytest.raises(RoleError, match=r"failed on the example inputs .* Pass example_inputs="):
        plan(torch.zeros(2, 6, 3))


class Strikes(nn.Module):
    """UDOP's mixing of words and patches: the patches that words stand on are struck out of a mask by index."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(5, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        points = x[..., 0].round().long()
        mask = torch.full_like(x[..., 1], True).bool()
        rows, columns = zip(*[[row, column] for row in range(len(points)) for column in points[row]], strict=True)
        mask[rows, columns] = False
        return self.readout(self.embed(x)[mask])


def test_a_mask_that_is_written_by_indices_of_the_inputs_is_traced_on_values():
    plan = mt.plan(Strikes(64), "mup", base=16, factory=Strikes, example_inputs=X)
    assert (plan["embed.weight"].role, plan["readout.weight"].role) == ("input", "output")
