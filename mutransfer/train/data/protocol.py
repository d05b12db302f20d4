"""What the loop and the models need to know of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import ConfigError

Batch = tuple[Tensor, ...]
Kind = Literal["tokens", "images", "vectors"]


@dataclass(frozen=True)
class DataInfo:
    """What a model must fit.

    Attributes:
        kind: of the inputs: token ids, images (channels, height, width), or vectors.
        shape: of one input, without the batch: (seq_len,), (channels, height, width) or (features,).
        outputs: size of the model's last dimension: vocabulary, classes, or regression targets.
        vocab_size: of token data, else None.
        classes: of classification, else None.
    """

    kind: Kind
    shape: tuple[int, ...]
    outputs: int
    vocab_size: int | None = None
    classes: int | None = None


class Data(Protocol):
    """A data set."""

    @property
    def info(self) -> DataInfo: ...

    @property
    def sha256(self) -> str:
        """Of the content: runs on different content are not comparable."""
        ...

    def batch(self, step: int, *, seed: int) -> Batch:
        """The inputs and targets of one step, on the CPU; a pure function of its arguments."""
        ...

    def validation(self, batches: int) -> list[Batch]:
        """The same held-out batches every time, disjoint from everything that `batch` gives."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats (mean squared error for regression)."""
        ...


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean nats per target of a model whose last dimension holds logits."""
    inputs, targets = batch
    logits = _tensor(model(inputs))
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1))


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Half the mean squared error: nats of a unit Gaussian, up to a constant."""
    inputs, targets = batch
    return 0.5 * F.mse_loss(_tensor(model(inputs)).float(), targets)


def _tensor(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"The model returned a {type(output).__name__}; a tensor of logits is expected. Return the logits alone."
        )
    return output
