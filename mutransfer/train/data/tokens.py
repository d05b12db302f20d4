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

    @property
    def window(self) -> int:
        """Tokens of one example: its inputs and the target behind the last of them."""
        return self.seq_len + 1

    @property
    def needed(self) -> int:
        """Tokens of one training batch."""
        return self.batch_size * self.window


class TokenData:
    """Next-token prediction on windows drawn uniformly from an array; held-out windows are evenly spaced.

    Args:
        source: what the tokens are from, for messages.
        more: what gives more of them, as advice.
    """

    def __init__(
        self,
        train: Tokens,
        heldout: Tokens,
        batches: TokenBatches,
        *,
        vocab_size: int,
        sha256: str,
        source: str,
        more: str,
    ) -> None:
        self.info = DataInfo("tokens", (batches.seq_len,), vocab_size, vocab_size=vocab_size)
        self.sha256 = sha256
        self._train, self._heldout, self._batches, self._source = train, heldout, batches, source
        self._offsets = np.arange(batches.window)
        if len(train) < batches.needed or len(heldout) < batches.window:
            found = f"{len(train)} tokens to train on and {len(heldout)} held out"
            raise DataError(too_few(source, found, batches, more))

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


def too_few(source: str, found: str, batches: TokenBatches, more: str) -> str:
    """The sentence for data that are too small: what was found, what is needed, and what to do."""
    return (
        f"{source} has {found}; at least {batches.needed} are needed to train on (a batch of "
        f"data.batch_size={batches.batch_size} windows of data.seq_len={batches.seq_len} tokens and the one behind) "
        f"and {batches.window} to hold out. {more}, or choose a smaller data.batch_size or data.seq_len."
    )
