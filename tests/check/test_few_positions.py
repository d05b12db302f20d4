"""A weight learns from few positions, and is measured there; all else of a step is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import mutransfer as mt
from mutransfer.check import few
from mutransfer.check.few import TOKENS, FewPositions
from mutransfer.rules.scale import m_in
from mutransfer.rules.table import Role
from mutransfer.rules.tables import PARAMETERIZATIONS

MANY = 512


class Conv1D(nn.Module):
    """A linear layer that holds its weight transposed."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(fan_in, fan_out)), nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (2, 20, 6)),
    "addmm": (lambda: Conv1D(6, 5), (2, 20, 6)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, stride=2), (2, 3, 13, 13)),
    "grouped convolution": (lambda: nn.Conv1d(4, 8, 3, groups=2, padding=1), (2, 4, 20)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(4, 5, 4, stride=2), (2, 4, 10)),
}


def rows(out: Tensor, features: int) -> Tensor:
    """(positions, features)."""
    return out.movedim(features, -1).flatten(0, -2)


@pytest.mark.parametrize("name", LAYERS)
def test_weight_learns_from_the_positions_with_the_largest_gradients_and_all_else_from_all(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, features = make().double(), 1 if "convolution" in name else -1
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    signal = torch.randn_like(plain)
    kept = rows(signal, features).norm(dim=1).topk(TOKENS).indices
    mask = torch.zeros(len(rows(signal, features)), dtype=torch.float64).index_fill(0, kept, 1.0)
    mask = mask.view(signal.movedim(features, -1).shape[:-1]).unsqueeze(features)
    (few_weight,) = torch.autograd.grad(plain, layer.weight, signal * mask, retain_graph=True)
    whole_input, whole_bias = torch.autograd.grad(plain, (x, layer.bias), signal)
    with FewPositions(layer):
        out = layer(x)
    assert torch.equal(out, plain)
    out.backward(signal)
    torch.testing.assert_close(layer.weight.grad, few_weight)
    torch.testing.assert_close(x.grad, whole_input)
    torch.testing.assert_close(layer.bias.grad, whole_bias)


def test_batches_of_few_positions_train_bitwise_as_ever() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16), torch.randn(TOKENS, 16, requires_grad=True)
    layer(x).square().sum().backward()
    plain = layer.weight.grad
    layer.weight.grad = None
    with FewPositions(layer):
        out = layer(x)
    out.square().sum().backward()
    assert torch.equal(layer.weight.grad, plain)


def test_weight_that_meets_the_data_itself_learns_from_few_too() -> None:
    """Frozen features of any width are data as well."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5), torch.randn(40, 6)
    signal = torch.randn(40, 5)
    kept = torch.zeros(40, 1).index_fill(0, signal.norm(dim=1).topk(TOKENS).indices, 1.0)
    with FewPositions(layer):
        out = layer(x)
    (found,) = torch.autograd.grad(out, layer.weight, signal)
    torch.testing.assert_close(found, (signal * kept).T @ x)


def test_positions_are_chosen_once_there_is_a_gradient() -> None:
    """Behind a readout that begins at zero nothing has one in the first step."""
    layer, x = nn.Linear(4, 4), torch.randn(40, 4, requires_grad=True)
    mode = FewPositions(layer)
    signal = torch.zeros(40, 4)
    signal[30:] = 1.0
    for given in (torch.zeros(40, 4), signal):
        with mode:
            out = layer(x)
        (found,) = torch.autograd.grad(out, layer.weight, given)
    assert bool(found.any())


def test_another_number_of_positions_in_a_later_step_is_taken() -> None:
    """An expert does not see as many tokens in every step."""
    layer = nn.Linear(4, 4)
    mode = FewPositions(layer)
    for count in (40, 41):
        with mode:
            out = layer(torch.randn(count, 4, requires_grad=True))
        out.sum().backward()


def test_loss_may_take_a_gradient_by_itself() -> None:
    """As an adversarial weight does."""
    layer, x = nn.Linear(4, 4), torch.randn(40, 4, requires_grad=True)
    with FewPositions(layer):
        out = layer(x)
    torch.autograd.grad(out.sum(), layer.weight, retain_graph=True)
    out.square().sum().backward()


@pytest.mark.parametrize("how", ["mask", "list", "in place"])
def test_what_is_made_of_weights_and_buffers_is_a_weight_until_activations_are_written_into_it(how: str) -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(2, 6))
            self.token = nn.Parameter(torch.randn(1, 6))
            self.register_buffer("mask", torch.ones(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            if how == "mask":
                return nn.functional.linear(x, self.a * self.mask)
            if how == "list":
                return nn.functional.linear(x, torch.cat([self.a, self.b]))
            z = self.token.repeat(len(x), 1)
            z += x
            return nn.functional.linear(z, self.a)

    torch.manual_seed(0)
    model, x = Made(), torch.randn(40, 6, requires_grad=True)
    plain = model(x)
    signal = torch.randn_like(plain)
    kept = torch.zeros(40, 1).index_fill(0, signal.norm(dim=1).topk(TOKENS).indices, 1.0)
    (expected,) = torch.autograd.grad(plain, model.a, signal * kept)
    with FewPositions(model):
        out = model(x)
    (found,) = torch.autograd.grad(out, model.a, signal)
    torch.testing.assert_close(found, expected)


def test_positions_stay_those_of_the_first_step() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.arange(160.0).view(40, 4).requires_grad_()
    mode = FewPositions(layer)
    learned = []
    for loud in (slice(0, 8), slice(20, 28)):
        with mode:
            out = layer(x)
        signal = torch.full_like(out, 0.1)
        signal[loud] = 1.0
        (gradient,) = torch.autograd.grad(out, layer.weight, signal)
        learned.append(gradient)
    torch.testing.assert_close(learned[1], 0.1 * learned[0])


def test_weight_that_is_made_of_parameters_learns_from_few_positions_too() -> None:
    torch.manual_seed(0)
    layer = weight_norm(nn.Linear(6, 5)).double()
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    signal = torch.randn(40, 5, dtype=torch.float64)
    kept = torch.zeros(40, 1, dtype=torch.float64).index_fill(0, signal.norm(dim=1).topk(TOKENS).indices, 1.0)
    gain = layer.parametrizations.weight.original0
    (expected,) = torch.autograd.grad(layer(x), gain, signal * kept)
    with FewPositions(layer):
        out = layer(x)
    (found,) = torch.autograd.grad(out, gain, signal)
    torch.testing.assert_close(found, expected)


class Wide(nn.Module):
    """Features of different inputs are nearly orthogonal: tanh, which is odd, gives them no mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden, self.norm = nn.Linear(64, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.hidden(torch.tanh(self.first(x))))))


def vectors(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(MANY, 64, generator=generator), torch.randint(16, (MANY,), generator=generator)


def check(table: object = "mup") -> mt.CoordReport:
    return mt.coord_check(Wide, widths=[32, 64, 128], parameterization=table, batches=vectors)


def test_check_passes_on_batches_with_more_positions_than_the_width() -> None:
    report = check()
    assert report.verdict == "pass", str(report)
    assert report.positions == TOKENS


def test_wrong_learning_rate_is_found_on_such_batches() -> None:
    """Negative control: the same batches, a hidden lr wrong by width^(1/2)."""
    wrong = PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, "lr", lambda lr: lr * m_in**0.5, family="adam")
    report = check(wrong)
    assert report.verdict == "fail"
    assert report.culprits[0].name == "hidden.weight"


def test_all_positions_at_once_would_say_that_a_right_table_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is done: updates of 512 random vectors in 32 to 128 dimensions hardly align."""
    monkeypatch.setattr(few, "TOKENS", MANY)
    report = check()
    assert report.slope("hidden.weight").value < -0.25
    assert report.verdict != "pass"
