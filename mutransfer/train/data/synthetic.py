"""Seeded synthetic data: a random teacher's answers, or a random Markov chain's tokens."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.data.protocol import Batch, Data, DataInfo, cross_entropy, squared_error
from mutransfer.train.settings import check_choice, check_fraction, check_whole

TASKS = ("regression", "classification", "tokens")
_TEACHER_WIDTH = 64


@dataclass(frozen=True)
class SyntheticSettings:
    """What to generate.

    Attributes:
        task: regression, classification, or tokens.
        batch_size: of a batch.
        shape: of one input; None for 32 numbers, or for 3 x 16 x 16 pixels where the model takes images.
        images: the shape is one of images; None: as the model takes them.
        outputs: regression targets or classes.
        noise: share of the labels that are random, or the noise's std beside targets of std 1.
        seq_len, vocab_size: of tokens.
        teacher_seed: of the teacher or chain.
    """

    task: str = "regression"
    batch_size: int = 64
    shape: tuple[int, ...] | None = None
    images: bool | None = None
    outputs: int = 10
    noise: float = 0.0
    seq_len: int = 64
    vocab_size: int = 64
    teacher_seed: int = 0

    def __post_init__(self) -> None:
        check_choice("data", self, "task", TASKS)
        check_whole("data", self, "batch_size", "outputs", "seq_len", "vocab_size")
        check_fraction("data", self, "noise")
        if self.shape is not None and not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise ConfigError(f"data.shape={list(self.shape)}: it must be whole numbers greater than 0.")


def synthetic(settings: SyntheticSettings, *, images: bool) -> Data:
    """A data set that is a pure function of its settings."""
    if settings.task == "tokens":
        return MarkovTokens(settings)
    return Teacher(settings, images=images)


class Teacher:
    """Gaussian inputs, labelled by a random two-layer network."""

    def __init__(self, settings: SyntheticSettings, *, images: bool) -> None:
        self._settings = settings
        shape = settings.shape or ((3, 16, 16) if images else (32,))
        if images and len(shape) != 3:
            raise ConfigError(f"data.shape={list(shape)}: image models need [channels, height, width].")
        classes = settings.outputs if settings.task == "classification" else None
        self.info = DataInfo("images" if images else "vectors", shape, settings.outputs, classes=classes)
        self.sha256 = _sha256(settings, shape)
        rng, size = np.random.default_rng(settings.teacher_seed), math.prod(shape)
        self._hidden = rng.standard_normal((size, _TEACHER_WIDTH)) / math.sqrt(size)
        self._out = rng.standard_normal((_TEACHER_WIDTH, settings.outputs)) / math.sqrt(_TEACHER_WIDTH)
        self._std = float(np.std(self._answer(rng.standard_normal((1024, size)))))

    def _answer(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        answer: npt.NDArray[np.float64] = np.tanh(x @ self._hidden) @ self._out
        return answer

    def batch(self, step: int, *, seed: int) -> Batch:
        return self._draw(np.random.default_rng((seed, step)))

    def validation(self, batches: int) -> list[Batch]:
        return [self._draw(_heldout(step)) for step in range(batches)]

    def _draw(self, rng: np.random.Generator) -> Batch:
        size = self._settings.batch_size
        x = rng.standard_normal((size, len(self._hidden)))
        inputs = torch.from_numpy(x.astype(np.float32)).reshape(size, *self.info.shape)
        return inputs, self._labels(self._answer(x) / self._std, rng)

    def _labels(self, answer: npt.NDArray[np.float64], rng: np.random.Generator) -> Tensor:
        noise = self._settings.noise
        if self.info.classes is None:
            return torch.from_numpy((answer + noise * rng.standard_normal(answer.shape)).astype(np.float32))
        random = rng.integers(self.info.classes, size=len(answer))
        return torch.from_numpy(np.where(rng.random(len(answer)) < noise, random, answer.argmax(axis=1)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return squared_error(model, batch) if self.info.classes is None else cross_entropy(model, batch)


class MarkovTokens:
    """Sequences of a random first-order Markov chain, whose entropy rate is a known floor of the loss."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self._settings = settings
        vocab = settings.vocab_size
        self.info = DataInfo("tokens", (settings.seq_len,), vocab, vocab_size=vocab)
        self.sha256 = _sha256(settings, (settings.seq_len,))
        rng = np.random.default_rng(settings.teacher_seed)
        self.transitions = rng.dirichlet(np.full(vocab, 0.1), size=vocab)
        self._cumulative = self.transitions.cumsum(axis=1)

    def batch(self, step: int, *, seed: int) -> Batch:
        return self._draw(np.random.default_rng((seed, step)))

    def validation(self, batches: int) -> list[Batch]:
        return [self._draw(_heldout(step)) for step in range(batches)]

    def _draw(self, rng: np.random.Generator) -> Batch:
        size, length = self._settings.batch_size, self._settings.seq_len
        ids = np.empty((size, length + 1), np.int64)
        ids[:, 0] = rng.integers(self._settings.vocab_size, size=size)
        draws = rng.random((size, length, 1))
        for t in range(length):
            after = (draws[:, t] > self._cumulative[ids[:, t]]).sum(axis=1)
            ids[:, t + 1] = np.minimum(after, self._settings.vocab_size - 1)  # the last sum may be 1 - 1e-16
        tokens = torch.from_numpy(ids)
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch)


def _heldout(step: int) -> np.random.Generator:
    """Three numbers: no (seed, step) of a training batch gives this stream."""
    return np.random.default_rng((0, step, 1))


def _sha256(settings: SyntheticSettings, shape: tuple[int, ...]) -> str:
    """Of the recipe: the same recipe gives the same content."""
    recipe = json.dumps(asdict(settings) | {"shape": shape}, sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()
