"""Small residual models of every kind that is written, with the number of blocks as argument."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8


def _linear(n_in: int = WIDTH, n_out: int = WIDTH) -> nn.Linear:
    return nn.Linear(n_in, n_out)


class Mlp(nn.Module):
    """With GELU written out, whose x + 0.04 x^3 is no residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = _linear(WIDTH, 12), _linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))))


class Attention(nn.Module):
    """With a rotation of q and k, whose sum of two products is none either, and a mask made of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (_linear() for _ in range(4))
        self.drop = nn.Dropout(0.5)

    @staticmethod
    def _rotated(x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        return x * angle.cos() + x.roll(1, -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        logits = self._rotated(self.q(x)) @ self._rotated(self.k(x)).transpose(-1, -2)
        logits = logits + (x.detach()[..., 0] > 9).to(x.dtype)[:, None]
        return self.drop(self.o(logits.softmax(-1) @ self.v(x)))


class RmsNorm(nn.Module):
    def __init__(self, *, offset: bool = False) -> None:
        super().__init__()
        self.offset, self.weight = offset, nn.Parameter(torch.full((WIDTH,), 0.0 if offset else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed * (1.0 + self.weight if self.offset else self.weight)


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention, self.mlp = nn.LayerNorm(WIDTH), RmsNorm(), Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return self.mlp(self.norm2(x)) + x


class PostNorm(PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(self.mlp(x) + x)


class Sandwich(PreNorm):
    def __init__(self) -> None:
        super().__init__()
        self.after1, self.after2 = RmsNorm(offset=True), RmsNorm(offset=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after1(self.attention(self.norm1(x)))
        return x + self.after2(self.mlp(self.norm2(x)))


class Parallel(PreNorm):
    """One sum, or two in a row that read the same norm."""

    def __init__(self, *, in_a_row: bool = False) -> None:
        super().__init__()
        self.in_a_row = in_a_row

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.in_a_row:
            x = x + self.attention(h)
            return x + self.mlp(h)
        return self.attention(h) + self.mlp(h) + x


class ParallelInARow(Parallel):
    def __init__(self) -> None:
        super().__init__(in_a_row=True)


class LayerScale(PreNorm):
    def __init__(self) -> None:
        super().__init__()
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((WIDTH,), 1e-5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x)) * self.gamma2


class NormAfterTheBlock(PreNorm):
    """Pre-norm branches, and one norm on the stream behind them (Conformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(super().forward(x))


class DeepNorm(PostNorm):
    """The stream is multiplied, not the branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x * 1.7 + self.attention(x))
        return self.norm2(x * 1.7 + self.mlp(x))


class Experts(nn.Module):
    """Some experts get no token, and a shared one gets all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(WIDTH), _linear(WIDTH, 4)
        self.experts, self.shared = nn.ModuleList(Mlp() for _ in range(4)), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(0, 1)
        weights, chosen = self.router(h).softmax(-1)[:, :2].topk(1, -1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = (chosen[:, 0] == i).nonzero()[:, 0]
            if len(rows):
                out.index_add_(0, rows, weights[rows] * expert(h[rows]))
        return x + (out + self.shared(h)).view_as(x)


class TokenShift(PreNorm):
    """A sum inside every block, which no stream passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = _linear()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = h + (h.roll(1, 1) - h) * torch.tanh(self.mix(h))
        return x + self.mlp(h)


class GatedEnd(PreNorm):
    """Ends in up * act(gate): the factor goes into up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = _linear(), _linear()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        return x + functional.silu(self.gate(h)) * self.up(h)


class FusedGatedEnd(PreNorm):
    """The same out of one matrix, which therefore cannot hold the factor."""

    def __init__(self) -> None:
        super().__init__()
        self.both = _linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(self.norm1(x)).chunk(2, -1)
        return x + functional.silu(gate) * up


class WritesIntoViews(PreNorm):
    """Writes every step into a part of a buffer that it reads as a whole (a scan)."""

    def __init__(self) -> None:
        super().__init__()
        self.step = _linear()

    def forward(self, x: Tensor) -> Tensor:
        h, scanned = self.norm1(x), torch.zeros_like(x)
        for t in range(x.shape[1]):
            scanned[:, t] = torch.tanh(self.step(h[:, t]))
        return x + self.mlp(scanned)


class TanhEnd(PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mlp(self.norm1(x)))


class TanhGated(PreNorm):
    """A learned gate, tanh of a number, multiplies the branch (Flamingo): what it multiplies holds the factor."""

    def __init__(self) -> None:
        super().__init__()
        self.gate1, self.gate2 = (nn.Parameter(torch.zeros(size)) for size in (1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.gate1) * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x)) * torch.tanh(self.gate2)


class GatedMlp(Mlp):
    """Ends in a gate that is made of what it multiplies (squeeze and excite)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = _linear()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * self.gate(x.mean(1, keepdim=True)).sigmoid()


class ReturnsTheBranch(PreNorm):
    """No parameter can hold the second branch's multiplier, and a module returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = GatedMlp()


class ScaledSkip(PreNorm):
    """The stream is multiplied by a gain where a branch is added to it (CAFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.skip1, self.skip2 = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.skip1 + self.attention(self.norm1(x))
        return self.mlp(self.norm2(x)) + self.skip2 * x


class CentredNorm(nn.Module):
    """A layer norm written out, its mean taken twice (DeBERTa)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        variance = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-6)) + self.bias


class CentredPostNorm(PostNorm):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = CentredNorm()


class Packed(PreNorm):
    """The branch comes back without the batch of one that the stream has (packed images)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(1, -1, WIDTH)
        x = x + self.attention(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))[0]


class Pooled(PreNorm):
    """A branch without a contraction that ends in a layer scale (PoolFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.gamma * (h.cumsum(1) - h)
        return x + self.mlp(self.norm2(x))


class Queries(nn.Module):
    """Learned queries that read an input, and positions added in front of every attention (DETR)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.queries, self.places = (nn.Parameter(torch.randn(1, 3, WIDTH)) for _ in range(2))
        self.blocks, self.readout = nn.ModuleList(QueryBlock() for _ in range(depth)), _linear(WIDTH, 5)

    def forward(self, seen: Tensor) -> Tensor:
        x = self.queries.expand(seen.shape[0], -1, -1)
        places = self.places.expand(seen.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, places, seen)
        return self.readout(x)


class QueryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o, self.norm = _linear(), _linear(), _linear(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, places: Tensor, seen: Tensor) -> Tensor:
        read = (self.q(x + places) @ self.k(seen).transpose(-1, -2)).softmax(-1) @ seen
        return self.norm(x + self.o(read))


class NormedEnd(PreNorm):
    """Ends in a norm without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.normalize(self.mlp(self.norm1(x)), dim=-1)


class Stack(nn.Module):
    """Blocks between an embedding, a convolution of positions that repeats with nothing, and a readout."""

    def __init__(self, block: type[nn.Module], depth: int, *, shared: bool = False, around: bool = False) -> None:
        super().__init__()
        self.embed, self.positions, self.around = nn.Embedding(11, WIDTH), _linear(), around
        blocks = [block() for _ in range(1 if shared else depth)]
        self.blocks, self.depth = nn.ModuleList(blocks), depth
        self.norm, self.readout = nn.LayerNorm(WIDTH), _linear(WIDTH, 5)
        self.after = _linear() if around else None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = start = x + functional.gelu(self.positions(x))
        for i in range(self.depth):
            x = self.blocks[i % len(self.blocks)](x)
        if self.after is not None:
            x = start + self.after(x)
        return self.readout(self.norm(x))


def ids() -> tuple[Tensor, ...]:
    return (torch.arange(1, 11).view(2, 5),)


class Bottleneck(nn.Module):
    """In place, and the last batch norm's gain starts at 0."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.BatchNorm2d(n_out)) if n_in != n_out else None
        self.relu = nn.ReLU(inplace=True)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.readout = nn.Conv2d(3, 6, 3), nn.Linear(8, 5)
        self.layer1 = nn.Sequential(*(Bottleneck(6, 6) for _ in range(depth)))
        self.layer2 = nn.Sequential(Bottleneck(6, 8), *(Bottleneck(8, 8) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def images() -> tuple[Tensor, ...]:
    return (torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)


class Recurrent(nn.Module):
    """Every step adds what the step before gives to its own part of the inputs: no stream."""

    def __init__(self, cell: type[nn.RNNBase], depth: int) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(11, WIDTH), _linear(WIDTH, 5)
        self.core = cell(WIDTH, WIDTH, depth, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.readout(self.core(self.embed(ids))[0])
