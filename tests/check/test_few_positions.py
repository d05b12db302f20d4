"""A weight learns from few positions, and is measured there; all else of a step is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import mutransfer as mt
from mutransfer.check import few, runs
from mutransfer.check.few import TOKENS, FewPositions
from mutransfer.check.shadow import ShadowMode
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


class Spelled(nn.Module):
    """A weight of this shape, and what a forward pass does with it."""

    def __init__(self, shape: tuple[int, ...], apply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.apply_to = nn.Parameter(torch.randn(shape)), apply

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(x, self.weight)


def spelled(*shape: int, apply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Spelled(shape, apply)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    # layer, shape of its input, the dimensions of its result that are positions
    "linear": (lambda: nn.Linear(6, 5), (2, 20, 6), (0, 1)),
    "addmm": (lambda: Conv1D(6, 5), (2, 20, 6), (0, 1)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, stride=2), (2, 3, 13, 13), (0, 2, 3)),
    "grouped convolution": (lambda: nn.Conv1d(4, 8, 3, groups=2, padding=1), (2, 4, 20), (0, 2)),
    "transposed convolution": (lambda: nn.ConvTranspose1d(4, 5, 4, stride=2), (2, 4, 10), (0, 2)),
    "matrix on the right": (spelled(6, 5, apply=lambda x, w: x @ w), (2, 20, 6), (0, 1)),
    "matrix on the left": (spelled(5, 6, apply=lambda x, w: w @ x), (2, 6, 20), (0, 2)),
    "vector": (spelled(6, apply=lambda x, w: x @ w), (2, 20, 6), (0, 1)),
    "bmm of experts": (spelled(3, 6, 5, apply=lambda x, w: torch.bmm(x, w)), (3, 20, 6), (1,)),
    "bmm of one matrix": (spelled(6, 5, apply=lambda x, w: torch.bmm(x, w.expand(2, 6, 5))), (2, 20, 6), (0, 1)),
    "matmul of heads": (spelled(3, 6, 5, apply=lambda x, w: x @ w), (2, 3, 20, 6), (0, 2)),
    "matmul that all experts get": (spelled(3, 6, 5, apply=lambda x, w: x.unsqueeze(0) @ w), (20, 6), (1,)),
    "inner": (spelled(5, 6, apply=lambda x, w: torch.inner(x, w)), (2, 20, 6), (0, 1)),
    "tensordot": (spelled(2, 3, 5, apply=lambda x, w: torch.tensordot(x, w, 2)), (20, 2, 3), (0,)),
    "tensordot by dimensions": (
        spelled(5, 6, apply=lambda x, w: torch.tensordot(x, w, dims=([1], [1]))), (2, 6, 20), (0, 1),
    ),
    "einsum": (spelled(6, 5, apply=lambda x, w: torch.einsum("bnd,df->bnf", x, w)), (2, 20, 6), (0, 1)),
    "einsum into heads": (spelled(6, 3, 2, apply=lambda x, w: torch.einsum("bnd,dhk->bhnk", x, w)), (2, 20, 6), (0, 2)),
    "einsum of heads": (spelled(3, 2, 6, apply=lambda x, w: torch.einsum("bhnk, hkd", x, w)), (2, 3, 20, 2), (0, 2)),
    "einsum of experts": (spelled(3, 5, 6, apply=lambda x, w: torch.einsum("efd,end->nef", w, x)), (3, 20, 6), (0,)),
    "einsum of three": (
        spelled(6, 5, apply=lambda x, w: torch.einsum("bnd,d,df->bnf", x, torch.arange(6.0).double(), w)),
        (2, 20, 6), (0, 1),
    ),
    "einsum with dots": (spelled(6, 5, apply=lambda x, w: torch.einsum("...d,df", [x, w])), (2, 20, 6), (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_weight_learns_from_the_positions_with_the_largest_gradients_and_all_else_from_all(name: str) -> None:
    make, shape, positions = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    signal = torch.randn_like(plain)
    features = [dim for dim in range(plain.ndim) if dim not in positions]
    sizes = signal.square().sum(features, keepdim=True) if features else signal.square()
    mask = sizes >= sizes.flatten().topk(TOKENS).values[-1]
    (few_weight,) = torch.autograd.grad(plain, layer.weight, signal * mask, retain_graph=True)
    beside = [x, *(p for name, p in layer.named_parameters() if name != "weight")]
    whole = torch.autograd.grad(plain, beside, signal)
    mode = FewPositions(layer)
    with mode:
        out = layer(x)
    torch.testing.assert_close(out, plain)
    out.backward(signal)
    torch.testing.assert_close(layer.weight.grad, few_weight)
    for tensor, expected in zip(beside, whole, strict=True):
        torch.testing.assert_close(tensor.grad, expected)
    with torch.no_grad():
        learned = ShadowMode(
            {"weight": (layer.weight, layer.weight)}, iter(()), initial=True, module=str, here=lambda: mode.here
        )
        with mode, learned:
            layer(x)
    own = plain - torch.func.functional_call(layer, {"weight": torch.zeros_like(layer.weight)}, (x,))
    shown = own.masked_select(mask.expand_as(own)).square().mean().sqrt()
    assert [(use.positions, use.size) for use in learned.finish() if use.parameter == "weight"] == [
        (TOKENS, pytest.approx(shown.item()))
    ]


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


def test_sparse_activations_are_left_alone() -> None:
    layer = Spelled((6, 5), lambda x, w: x @ w)
    with FewPositions(layer):
        out = layer(torch.eye(40, 6).to_sparse())
    torch.testing.assert_close(out[:6], layer.weight)


class Attention(nn.Module):
    """Self-attention of torch, and what else a layer of it may have."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def test_inside_of_torch_attention_is_seen() -> None:
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(2, 20, 6, dtype=torch.float64)
    mode = FewPositions(model)
    with mode:
        out = model(x)
    torch.testing.assert_close(out, model(x))
    out.square().sum().backward()
    assert mode._chosen.keys() == {("attention.in_proj_weight", 0), ("attention.out_proj.weight", 0)}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_changes_neither_what_is_learned_nor_where_it_is_measured(reentrant: bool) -> None:
    torch.manual_seed(0)
    first, second, x = nn.Linear(6, 6), nn.Linear(6, 6), torch.randn(40, 6, requires_grad=True)
    model = nn.Sequential(first, second)
    learned: dict[bool, list[Tensor]] = {}
    modes = {stored: FewPositions(model) for stored in (True, False)}
    for stored, mode in modes.items():
        model.zero_grad()
        with mode:
            out = (
                model(x)
                if stored
                else checkpoint(second, checkpoint(first, x, use_reentrant=reentrant), use_reentrant=reentrant)
            )
            out.square().sum().backward()
        learned[stored] = [parameter.grad.clone() for parameter in model.parameters()]
    torch.testing.assert_close(learned[True], learned[False])
    assert modes[True]._chosen.keys() == modes[False]._chosen.keys()


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


class Narrow(nn.Module):
    """A convolution of a few channels in front, as networks of images begin with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(16, width // 8, 1), nn.Conv1d(width // 8, width, 1)
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.second(torch.tanh(self.first(x))))).mean(-1))


def signals(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 16, 16, generator=generator), torch.randint(16, (8,), generator=generator)


def slope_of_narrow() -> float:
    return mt.coord_check(Narrow, widths=[64, 128, 256], seeds=4, batches=signals).slope("second.weight").value


@pytest.mark.slow
def test_weight_of_a_small_fan_in_learns_from_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 positions the others bring sqrt(1 + 7 / 8) at a fan-in of 8 and sqrt(1 + 7 / 32) at one of 32, an exponent
    of -0.16 under a right table."""
    fewer = slope_of_narrow()
    monkeypatch.setattr(few, "FEW", 1)
    assert abs(fewer) < 0.07
    assert slope_of_narrow() < fewer - 0.05


def test_limits_follow_the_smallest_fan_in_of_what_grows() -> None:
    small = {("grows", 0): 16, ("wide", 0): 64, ("fixed", 0): 4, ("tiny", 0): 2}
    large = {("grows", 0): 64, ("wide", 0): 256, ("fixed", 0): 4, ("tiny", 0): 8}
    assert few.limits_between(small, large) == {("grows", 0): 4, ("wide", 0): TOKENS, ("tiny", 0): 1}


def test_all_positions_at_once_would_say_that_a_right_table_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is done: updates of 512 random vectors in 32 to 128 dimensions hardly align."""
    monkeypatch.setattr(few, "TOKENS", MANY)
    monkeypatch.setattr(runs, "limits_between", lambda small, large: {})
    report = check()
    assert report.slope("hidden.weight").value < -0.25
    assert report.verdict != "pass"
