"""What a config may say: one dataclass per section, checked before anything is built. Values live in configs/."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mutransfer.errors import ConfigError


class Form(Enum):
    auto = 1
    folded = 2
    explicit = 3


class Init(Enum):
    rescale = 1
    table = 2
    keep = 3


class AttentionScale(Enum):
    heads = 1
    head_dim = 2


class Schedule(Enum):
    cosine = 1
    wsd = 2
    constant = 3


class Precision(Enum):
    fp32 = 1
    bf16 = 2


class WandbMode(Enum):
    offline = 1
    online = 2
    disabled = 3


class SizeAxis(Enum):
    width = 1
    depth = 2
    batch = 3
    tokens = 4


class Resume(Enum):
    auto = 1
    never = 2


def require(holds: bool, message: str) -> None:
    """Raises ConfigError with this sentence unless the condition holds."""
    if not holds:
        raise ConfigError(message)


def positive(section: str, **values: float | None) -> None:
    for name, value in values.items():
        key = f"{section}.{name}" if section else name
        require(
            value is None or not math.isnan(value), f"{key}=nan is no number: it must be greater than 0 and finite."
        )
        finite = value is None or 0 < value < math.inf
        require(finite, f"{key}={value}: it must be greater than 0 and finite.")


def fraction(section: str, **values: float) -> None:
    for name, value in values.items():
        require(0 <= value <= 1, f"{section}.{name}={value}: it must lie between 0 and 1.")


def is_seed(key: str, value: int) -> None:
    require(0 <= value < 2**63, f"{key}={value}: it must be at least 0 and less than 2**63.")


@dataclass
class Parameterization:
    name: str
    form: Form
    init: Init
    scale: AttentionScale


@dataclass
class RoleInitStd:
    input: float
    hidden: float
    output: float


@dataclass
class RoleLR:
    input: float
    hidden: float
    output: float
    vector: float
    scalar: float


@dataclass
class Hyperparameters:
    output_mult: float
    attn_mult: float
    embedding_mult: float
    residual_mult: float
    init_std: RoleInitStd
    lr: RoleLR

    def __post_init__(self) -> None:
        positive(
            "hp",
            output_mult=self.output_mult,
            attn_mult=self.attn_mult,
            embedding_mult=self.embedding_mult,
            residual_mult=self.residual_mult,
        )
        positive("hp.init_std", **vars(self.init_std))
        positive("hp.lr", **vars(self.lr))


@dataclass
class AdamOptimizer:
    name: str
    lr: float
    weight_decay: float
    eps: float
    betas: list[float]

    def __post_init__(self) -> None:
        positive("optimizer", lr=self.lr, eps=self.eps)
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay}: it must not be negative.")
        valid = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(valid, f"optimizer.betas={list(self.betas)}: two numbers are needed, each at least 0 and less than 1.")


@dataclass
class SGDOptimizer:
    name: str
    lr: float
    weight_decay: float
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        positive("optimizer", lr=self.lr)
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay}: it must not be negative.")
        fraction("optimizer", momentum=self.momentum)
        require(self.momentum > 0 or not self.nesterov, "optimizer.nesterov=true needs optimizer.momentum above 0.")


@dataclass
class Train:
    steps: int
    schedule: Schedule
    warmup: float
    decay: float
    final_lr: float
    clip_norm: float | None
    accumulate: int
    eval_batches: int
    eval_every: int
    checkpoint_every: int
    compile: bool

    def __post_init__(self) -> None:
        positive(
            "train",
            steps=self.steps,
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
            eval_batches=self.eval_batches,
        )
        fraction("train", warmup=self.warmup, decay=self.decay, final_lr=self.final_lr)
        overlap = self.schedule is Schedule.wsd and self.warmup + self.decay > 1
        require(not overlap, f"train.warmup={self.warmup} and train.decay={self.decay} leave no steps between them.")
        for name in ("eval_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name}={value}: it must be 0 (only at the end) or a number of steps.")


@dataclass
class PrecisionPolicy:
    name: Precision


@dataclass
class LocalEngine:
    name: str
    workers: int | None
    threads: int
    lease: float
    timeout: float | None
    retry_failed: bool


@dataclass
class GridSearch:
    name: str
    grids: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class NoLogger:
    name: str


@dataclass
class WandbLogger:
    name: str
    mode: WandbMode
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    dir: str | None


@dataclass
class TrialRoot:
    """The values that stand outside every section, of every verb that builds a model."""

    base: int
    base_depth: int | None
    seed: int
    device: str
    run_dir: str

    def __post_init__(self) -> None:
        positive("", base=self.base, base_depth=self.base_depth)
        is_seed("seed", self.seed)
        require(bool(self.run_dir.strip()), "run_dir= is empty: give a folder to write to, such as run_dir=runs/mine.")


@dataclass
class TrainRoot(TrialRoot):
    resume: Resume


@dataclass
class CheckRoot(TrialRoot):
    widths: list[int]
    depths: list[int] | None
    seeds: int
    steps: int
    lr: float | None
    full_batch: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, sizes in (("widths", self.widths), ("depths", self.depths)):
            several = sizes is None or (len(set(sizes)) >= 3 and all(size > 0 for size in sizes))
            require(several, f"{name}={list(sizes or ())}: at least three different {name} are needed to fit a slope.")
        require(self.seeds >= 2, f"seeds={self.seeds}: at least two seeds are needed for an interval.")
        require(self.steps >= 2, f"steps={self.steps}: the first step is not counted, so at least two are needed.")
        positive("", lr=self.lr)


@dataclass
class TransferRoot:
    subject: str | None
    axis: SizeAxis | None
    level: float

    def __post_init__(self) -> None:
        require(0.5 <= self.level < 1, f"level={self.level}: the level of an interval lies between 0.5 and 1.")
