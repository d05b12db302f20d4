"""torch's own layers, and two models as people write them by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.subjects import DEPTH, WIDTH, Small, Subject, images

VOCABULARY, LENGTH = 64, 8
Draw = Callable[[int], tuple[Any, ...]]


def torch_subjects() -> Iterator[Subject]:
    """torch.nn's sequence models, nanoGPT and a ResNet."""
    text: Draw = lambda seed: (ids(seed),)  # noqa: E731
    flat: dict[str, tuple[Callable[[int], nn.Module], Draw]] = {
        "MultiheadAttention": (Attention, text),
        "LSTM": (lambda width: Recurrent(nn.LSTM, width), text),
        "GRU": (lambda width: Recurrent(nn.GRU, width), text),
    }
    stacked: dict[str, tuple[Callable[[int, int], nn.Module], Draw]] = {
        "Transformer": (Translator, lambda seed: (ids(seed), ids(seed + 1))),
        "TransformerEncoder": (Encoder, text),
        "nanoGPT": (NanoGPT, text),
        "nanoGPT tied": (lambda width, depth: NanoGPT(width, depth, tied=True), text),
        "ResNet": (ResNet, images(4, 4)),
    }
    for name, (make, inputs) in flat.items():
        yield Subject(name, "torch.nn", lambda make=make, inputs=inputs: Small(WIDTH, make, inputs))  # type: ignore[misc]
    for name, (deep, inputs) in stacked.items():
        source = "hand-written" if name.startswith(("nano", "ResNet")) else "torch.nn"
        yield Subject(name, source, lambda deep=deep, inputs=inputs: _of_two(deep, inputs))  # type: ignore[misc]


def _of_two(deep: Callable[[int, int], nn.Module], inputs: Draw) -> Small:
    return Small(WIDTH, lambda width: deep(width, DEPTH), inputs, {}, deep, DEPTH)


def ids(seed: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


class Translator(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.core = nn.Transformer(width, width // 16, depth, depth, 2 * width, dropout=0.0, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.read(self.core(self.embed(source), self.embed(target)))


class Encoder(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        layer = nn.TransformerEncoderLayer(width, width // 16, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.core = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, source: Tensor) -> Tensor:
        return self.read(self.core(self.embed(source)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.core = nn.MultiheadAttention(width, width // 16, batch_first=True)

    def forward(self, source: Tensor) -> Tensor:
        x = self.embed(source)
        return self.read(x + self.core(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.core = kind(width, width, 2, batch_first=True)

    def forward(self, source: Tensor) -> Tensor:
        return self.read(self.core(self.embed(source))[0])


class Block(nn.Module):
    def __init__(self, width: int, head_dim: int = 16) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, width: int, depth: int, *, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.h = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith(("c_proj.weight", "c_out.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
        if tied:
            self.lm_head.weight = self.wte.weight

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        changes = stride != 1 or before != after
        self.down = nn.Conv2d(before, after, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.down(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.first = nn.Sequential(*(Residual(width, width, 1) for _ in range(depth)))
        self.second = nn.Sequential(*(Residual((1 + (i > 0)) * width, 2 * width, 2 - (i > 0)) for i in range(depth)))
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(F.relu(self.bn(self.stem(x))))).mean((2, 3)))
