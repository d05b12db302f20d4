"""What a model and a data section may say, without importing torch: mistakes are answered before it is loaded.

Sizes that the data decides (vocabulary, classes, input shape) are not here; the model takes them from the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mutransfer.sweep.schema import fraction, is_seed, positive, require


class Positions(Enum):
    learned = 1
    rotary = 2


class GPTActivation(Enum):
    gelu = 1
    swiglu = 2


class MLPActivation(Enum):
    relu = 1
    gelu = 2
    tanh = 3


class Norm(Enum):
    layernorm = 1
    rmsnorm = 2


class TokenType(Enum):
    uint8 = 1
    uint16 = 2
    uint32 = 3
    int32 = 4
    int64 = 5


class Task(Enum):
    regression = 1
    classification = 2
    tokens = 3


@dataclass
class Model:
    """What every model has: a width, and the width and depth at which its hyperparameters hold."""

    name: str
    width: int
    base_width: int
    base_depth: int | None

    def __post_init__(self) -> None:
        positive("model", width=self.width, base_width=self.base_width, base_depth=self.base_depth)


@dataclass
class MLP(Model):
    depth: int
    activation: MLPActivation
    bias: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth)


@dataclass
class GPT(Model):
    depth: int
    head_dim: int | None
    n_heads: int | None
    kv_groups: int
    mlp_ratio: float
    positions: Positions
    activation: GPTActivation
    norm: Norm
    tied: bool
    bias: bool
    embedding_std: float
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth, kv_groups=self.kv_groups, mlp_ratio=self.mlp_ratio)
        positive("model", embedding_std=self.embedding_std)
        fraction("model", dropout=self.dropout)
        divides_into_heads(self.width, self.head_dim, self.n_heads)


@dataclass
class ViT(Model):
    depth: int
    head_dim: int | None
    n_heads: int | None
    patch_size: int
    mlp_ratio: float
    activation: GPTActivation
    norm: Norm
    bias: bool
    embedding_std: float
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth, patch_size=self.patch_size, mlp_ratio=self.mlp_ratio)
        positive("model", embedding_std=self.embedding_std)
        fraction("model", dropout=self.dropout)
        divides_into_heads(self.width, self.head_dim, self.n_heads)


@dataclass
class ResNet(Model):
    depth: int
    stages: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth, stages=self.stages)


@dataclass
class HF(Model):
    type: str | None
    file: str | None
    depth: int | None
    overrides: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth)
        exactly_one = (self.type is None) != (self.file is None)
        require(exactly_one, "model=hf needs exactly one of model.type (such as llama) and model.file (a config.json).")


@dataclass
class Factory(Model):
    path: str
    depth: int | None
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("model", depth=self.depth)
        module, _, name = self.path.partition(":")
        require(bool(module and name), f"model.path={self.path}: write package.module:function, such as my_code:make.")


def divides_into_heads(width: int, head_dim: int | None, n_heads: int | None) -> None:
    """Raises ConfigError unless the width is a whole number of heads, given by their size or by their number."""
    exactly_one = (head_dim is None) != (n_heads is None)
    require(exactly_one, "Give exactly one of model.head_dim and model.n_heads, and the other as null.")
    name, part = ("head_dim", head_dim) if head_dim is not None else ("n_heads", n_heads)
    positive("model", **{name: part})
    part = part or 1
    below, above = width // part * part, width // part * part + part
    near = f"{below} or {above}" if below else str(above)
    require(width % part == 0, f"model.width={width} must be a multiple of model.{name}={part}, such as {near}.")


MODELS: Mapping[str, type] = {"mlp": MLP, "gpt": GPT, "vit": ViT, "resnet": ResNet, "hf": HF, "factory": Factory}


@dataclass
class Data:
    """What every data set has."""

    name: str
    batch_size: int

    def __post_init__(self) -> None:
        positive("data", batch_size=self.batch_size)


@dataclass
class Tokens(Data):
    seq_len: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("data", seq_len=self.seq_len)


@dataclass
class TextFile(Tokens):
    path: str


@dataclass
class Memmap(Tokens):
    path: str
    dtype: TokenType
    vocab_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("data", vocab_size=self.vocab_size)


@dataclass
class Hub(Tokens):
    dataset: str
    config: str | None
    split: str
    text_column: str
    data_files: list[str] | None
    tokenizer: str | None
    tokens: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("data", tokens=self.tokens)


@dataclass
class Digits(Data):
    images: bool | None


@dataclass
class Synthetic(Data):
    task: Task
    shape: list[int] | None
    images: bool | None
    outputs: int
    noise: float
    seq_len: int
    vocab_size: int
    teacher_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("data", outputs=self.outputs, seq_len=self.seq_len, vocab_size=self.vocab_size)
        fraction("data", noise=self.noise)
        is_seed("data.teacher_seed", self.teacher_seed)
        require(all(size > 0 for size in self.shape or ()), f"data.shape={self.shape}: every size must be above 0.")


DATA: Mapping[str, type] = {
    "stdlib": Tokens,
    "text": TextFile,
    "memmap": Memmap,
    "hf": Hub,
    "digits": Digits,
    "synthetic": Synthetic,
}
