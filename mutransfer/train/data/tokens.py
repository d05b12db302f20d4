"""Batches of windows from one long array of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mutransfer.errors import DataError
from mutransfer.train.data.protocol import Batch, DataInfo, cross_entropy
from mutransfer.train.settings import check_whole

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True)
class TokenBatches:
    """The size of a batch of tokens."""

    batch_size: int = 8
    seq_len: int = 64

    def __post_init__(self) -> None:
        check_whole("data", self, "batch_size", "seq_len")


class TokenData:
    """Next-token prediction on windows drawn uniformly from an array; held-out windows are evenly spaced."""

    def __init__(
        self, train: Tokens, heldout: Tokens, batches: TokenBatches, *, vocab_size: int, sha256: str, source: str
    ) -> None:
        self.info = DataInfo("tokens", (batches.seq_len,), vocab_size, vocab_size=vocab_size)
        self.sha256 = sha256
        self._train, self._heldout, self._batches, self._source = train, heldout, batches, source
        self._offsets = np.arange(batches.seq_len + 1)
        self._require(len(train), batches.batch_size * (batches.seq_len + 1), "training")
        self._require(len(heldout), batches.seq_len + 1, "held-out")

    def _require(self, have: int, need: int, part: str) -> None:
        if have < need:
            raise DataError(
                f"{self._source} has {have} {part} tokens and one batch needs {need}. "
                "Use a longer text, or a smaller data.batch_size or data.seq_len."
            )

    def batch(self, step: int, *, seed: int) -> Batch:
        starts = np.random.default_rng((seed, step)).integers(
            len(self._train) - len(self._offsets) + 1, size=self._batches.batch_size
        )
        return self._windows(self._train, starts)

    def validation(self, batches: int) -> list[Batch]:
        size = self._batches.batch_size
        last = len(self._heldout) - len(self._offsets)
        starts = np.linspace(0, last, batches * size).astype(np.int64)
        return [self._windows(self._heldout, starts[i : i + size]) for i in range(0, len(starts), size)]

    def _windows(self, tokens: Tokens, starts: npt.NDArray[np.int64]) -> Batch:
        ids = torch.from_numpy(tokens[starts[:, None] + self._offsets].astype(np.int64))
        if self.info.outputs != 256 and int(ids.max()) >= self.info.outputs:  # a byte is always below 256
            raise DataError(
                f"{self._source} holds token {int(ids.max())}, and data.vocab_size={self.info.outputs} allows ids up "
                f"to {self.info.outputs - 1}. Give the tokenizer's own vocabulary size, and its dtype."
            )
        return ids[:, :-1], ids[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch)
