"""Blocks for `residual_models.Stack` whose branches are added to a part of the stream, and what looks like them."""

from __future__ import annotations

import torch
from residual_models import WIDTH, Attention, Mlp, PreNorm, RmsNorm, _linear
from torch import Tensor, nn


class FirstApart(PreNorm):
    """Attention of all positions but the first, which is set in front of them again (TimeSformer)."""

    def forward(self, x: Tensor) -> Tensor:
        rest = x[:, 1:] + self.attention(self.norm1(x[:, 1:]))
        x = torch.cat([x[:, :1], rest], dim=1)
        return x + self.mlp(self.norm2(x))


class TwoKinds(nn.Module):
    """Post-norm, with a layer of their own for the first positions (BLIP-2's queries) and for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.other = Attention(), Mlp(), Mlp()
        self.norm1, self.norm2, self.norm3 = RmsNorm(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        first, rest = x[:, :2], x[:, 2:]
        return torch.cat([self.norm2(first + self.mlp(first)), self.norm3(rest + self.other(rest))], dim=1)


class ChosenRows(PreNorm):
    """The positions that a mask chooses have a layer of their own, and are written back (two kinds of tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm3, self.other = RmsNorm(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        chosen = (torch.arange(x.shape[1]) % 2 == 0).expand(x.shape[:2])
        new, other = self.mlp(self.norm2(x[chosen])), self.other(self.norm3(x[~chosen]))
        x[chosen] += new
        x[~chosen] += other
        return x


class CutAfterwards(PreNorm):
    """A branch of all positions, of which some are added."""

    def forward(self, x: Tensor) -> Tensor:
        rest = x[:, 1:] + self.attention(self.norm1(x))[:, 1:]
        x = torch.cat([x[:, :1], rest], dim=1)
        return x + self.mlp(self.norm2(x))


class Steps(nn.Module):
    """A recurrence: every step adds what the step before has given to its own part."""

    def __init__(self) -> None:
        super().__init__()
        self.recur = _linear()

    def forward(self, x: Tensor) -> Tensor:
        steps = [torch.tanh(x[:, 0])]
        for t in range(1, x.shape[1]):
            steps.append(torch.tanh(x[:, t] + self.recur(steps[-1])))
        return torch.stack(steps, dim=1)


class Crossed(nn.Module):
    """Some positions plus what is made of other ones, never put together with them."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.mix = Mlp(), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        crossed = x[:, :2] + self.mlp(x[:, 2:4])
        return self.mix(crossed.transpose(1, 2)).transpose(1, 2)


class FirstQueries(nn.Module):
    """Learned queries that attend to one another before they read an input (a Q-Former, one for all samples), with
    positions in front of every attention."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.queries, self.places = (nn.Parameter(torch.randn(1, 3, WIDTH)) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks, self.readout = nn.ModuleList(QueryBlock() for _ in range(depth)), _linear(WIDTH, 5)

    def forward(self, seen: Tensor) -> Tensor:
        x = self.norm(self.queries)
        for block in self.blocks:
            x = block(x, self.places, seen)
        return self.readout(x)


class QueryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.read, self.value, self.o = Attention(), _linear(), _linear(), _linear()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, places: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x) + places)
        queries = self.read(self.norm2(x) + places) * 0.5
        logits = torch.bmm(queries.expand(len(seen), -1, -1), seen.transpose(-1, -2))
        return x + self.o(logits.softmax(-1) @ self.value(seen))


class Merged(nn.Module):
    """A weight plus a product of two others (an adapter that is merged): a sum of parameters and no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.down, self.up = (nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self.down @ self.up)
