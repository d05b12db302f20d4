"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, part of the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError, DataError
from mutransfer.train.data.protocol import Batch, DataInfo, cross_entropy
from mutransfer.train.settings import check_whole

HELDOUT = 297
_SPLIT_SEED = 0


@dataclass(frozen=True)
class DigitsSettings:
    """A batch of digits.

    Attributes:
        batch_size: of a batch.
        images: 1 x 8 x 8 images, or vectors of 64 numbers; None: as the model takes them.
    """

    batch_size: int = 64
    images: bool | None = None

    def __post_init__(self) -> None:
        check_whole("data", self, "batch_size")


class Digits:
    """Batches drawn with replacement from 1500 images; the other 297 are held out. Pixels have mean 0 and std 1."""

    def __init__(self, settings: DigitsSettings, *, images: bool) -> None:
        pixels, labels = _load()
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
        shape = (1, 8, 8) if images else (64,)
        self.sha256 = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
        inputs = torch.from_numpy(((pixels - pixels.mean()) / pixels.std()).astype(np.float32)[order])
        self._inputs, self._labels = inputs.reshape(-1, *shape), torch.from_numpy(labels.astype(np.int64)[order])
        self._settings = settings
        self.info = DataInfo("images" if images else "vectors", shape, 10, classes=10)
        if settings.batch_size > len(labels) - HELDOUT:
            raise DataError(
                f"data.batch_size={settings.batch_size}: the digits have {len(labels) - HELDOUT} training images. "
                "Use a smaller batch."
            )

    def batch(self, step: int, *, seed: int) -> Batch:
        count = len(self._labels) - HELDOUT
        index = np.random.default_rng((seed, step)).integers(count, size=self._settings.batch_size) + HELDOUT
        return self._inputs[index], self._labels[index]

    def validation(self, batches: int) -> list[Batch]:
        """At most all held-out images, in batches of the training size; the last one may be smaller."""
        size = self._settings.batch_size
        starts = range(0, min(HELDOUT, batches * size), size)
        ends = [min(start + size, HELDOUT) for start in starts]
        return [(self._inputs[a:b], self._labels[a:b]) for a, b in zip(starts, ends, strict=True)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch)


def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("data=digits needs the package scikit-learn: pip install 'mutransfer[digits]'.") from None
    digits = load_digits()
    return digits.data, digits.target
