"""Which rows of which parameters make a value and nothing else, and what is said where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mutransfer.planning.carriers import Target, carriers, record, scaled
from mutransfer.planning.data import Rows
from mutransfer.planning.sites import attention_sites

X = torch.zeros(2, 3, 8)


class Attending(nn.Module):
    """Attention over what `make` does to the output of one layer of 24 entries."""

    def __init__(self, make) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(8, 24), make
        self.gain, self.late = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.make(self, self.layer(x))
        return functional.scaled_dot_product_attention(q, k, v)


def found(make) -> object:
    graph = record(Attending(make), (X,))
    (site,) = attention_sites(graph.trace)
    return carriers(graph, [Target(site.product, site.queries)], graph.makers(site.queries))


FIRST, LAST = Rows(0, (8, 16), (True, False)), Rows(0, (16, 8), (False, True))
THIRD = Rows(0, (1, 2), (True, False))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m, y: y.chunk(3, -1), {"layer.weight": FIRST, "layer.bias": FIRST}),
        (lambda m, y: y.chunk(3, -1)[::-1], {"layer.weight": LAST, "layer.bias": LAST}),
        (lambda m, y: y.unflatten(-1, (8, 3)).unbind(-1), {"layer.weight": THIRD, "layer.bias": THIRD}),
        (lambda m, y: (y[..., :8] + m.late, y[..., 8:16], y[..., 16:]), {
            "layer.weight": FIRST, "layer.bias": FIRST, "late": None
        }),
        (lambda m, y: (functional.rms_norm(y[..., :8], (8,)) * m.gain, y[..., 8:16], y[..., 16:]), {"gain": None}),
    ],
    ids=["first", "last", "every third", "a bias added later", "a gain after a norm"],
)  # fmt: skip
def test_rows_are_those_that_the_queries_are_made_of(make, expected):
    assert found(make) == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, y: (y[..., :8], y[..., 8:16] + y[..., :8], y[..., 16:]), "it also makes what"),
        (lambda m, y: (y[..., :8], y[..., 8:16], y[..., 16:] * y[..., :8].tanh()), "'tanh'"),
        (lambda m, y: (y[..., :8] + 1, y[..., 8:16], y[..., 16:]), "not proportional"),
        (lambda m, y: (y[..., :8] * (1 + m.gain), *y[..., 8:].chunk(2, -1)), "not proportional"),
        (lambda m, y: (torch.sigmoid(y[..., :8]), *y[..., 8:].chunk(2, -1)), "no parameter"),
        (lambda m, y: (y[..., :8], y[..., :8], y[..., 16:]), "it also makes what"),
    ],
    ids=["in the keys", "a gate", "a number added", "one plus a gain", "a function between", "the keys as well"],
)
def test_where_something_else_would_move_too_it_is_said(make, words):
    assert words in found(make)


def test_a_value_that_is_multiplied_by_itself_carries_the_factor_twice():
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.layer(x)[None]
            return functional.scaled_dot_product_attention(q, q, x[None])

    graph = record(Same(), (X,))
    (site,) = attention_sites(graph.trace)
    assert "by themselves" in carriers(graph, [Target(site.product, site.queries)], ["layer.weight", "layer.bias"])


@pytest.mark.parametrize(
    ("second", "proofs"), [(lambda m, y: y.chunk(3, -1), 1), (lambda m, y: y.chunk(3, -1)[::-1], 2)]
)
def test_equal_blocks_are_proven_once_and_others_by_themselves(second, proofs):
    first = Attending(lambda m, y: y.chunk(3, -1))
    graph = record(nn.Sequential(first, Attending(second)), (X,))
    sites = attention_sites(graph.trace)
    rows = [carriers(graph, [Target(s.product, s.queries)], graph.makers(s.queries)) for s in sites]
    assert rows[0] == {"0.layer.weight": FIRST, "0.layer.bias": FIRST}
    expected = FIRST if proofs == 1 else LAST
    assert rows[1] == {"1.layer.weight": expected, "1.layer.bias": expected}
    assert len(graph.proven) == proofs


def test_a_pattern_is_written_once():
    assert Rows.of(0, [True, False, False] * 4) == Rows(0, (1, 2), (True, False))
    assert Rows.of(1, [True, True, False, True]) == Rows(1, (2, 1, 1), (True, False, True))
    assert str(Rows(0, (2, 1, 1), (True, False, True))) == "0:2, 3:4 of every 4 along dimension 0"


def test_rows_along_any_dimension_are_multiplied_and_the_others_are_the_same():
    value = torch.arange(24.0).reshape(2, 6, 2)
    out = scaled(value, Rows(1, (1, 2), (True, False)), 10.0)
    expected = value.clone()
    expected[:, [0, 3]] *= 10
    assert torch.equal(out, expected)
