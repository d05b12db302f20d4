"""A Hugging Face data set: its first tokens, streamed once into memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import ConfigError, DataError, nearest
from mutransfer.train.data.files import fingerprint
from mutransfer.train.data.tokens import TokenBatches, TokenData, Tokens
from mutransfer.train.settings import check_whole

HELDOUT_EVERY = 16


@dataclass(frozen=True)
class HubSettings(TokenBatches):
    """What to stream.

    Attributes:
        dataset: as `datasets.load_dataset` takes it; "text", "json" or "parquet" with data_files reads local files.
        config: its configuration, where it has several.
        split: of the data set.
        text_column: holds the text.
        data_files: local files, where the data set is a file format.
        tokenizer: a folder or name for `AutoTokenizer`; None for bytes.
        tokens: how many are read before training starts; batches are drawn from all of them.
    """

    dataset: str = ""
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    data_files: str | tuple[str, ...] | None = None
    tokenizer: str | None = None
    tokens: int = 20_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("data", self, "tokens")
        if not self.dataset:
            raise ConfigError("data.dataset is missing: give a data set's name, or text with data.data_files.")


def hub(settings: HubSettings) -> TokenData:
    """Every sixteenth row is held out.

    Raises:
        DataError: a data set that cannot be loaded, has no such column, or is too small for one batch.
    """
    train, heldout, vocab_size = _load(settings)
    digest = hashlib.sha256((fingerprint(train) + fingerprint(heldout)).encode()).hexdigest()
    return TokenData(
        train,
        heldout,
        settings,
        vocab_size=vocab_size,
        sha256=digest,
        source=f"data.dataset={settings.dataset}, read up to data.tokens={settings.tokens},",
        more=f"Use more rows (one in {HELDOUT_EVERY} is held out), a larger data.tokens",
    )


@functools.lru_cache(maxsize=1)
def _load(settings: HubSettings) -> tuple[Tokens, Tokens, int]:
    tokenizer = _Bytes() if settings.tokenizer is None else _tokenizer(settings.tokenizer)
    parts: tuple[list[Tokens], list[Tokens]] = ([], [])
    total = 0
    for index, row in enumerate(_rows(settings)):
        ids = tokenizer(_text(row, settings))
        parts[index % HELDOUT_EVERY == HELDOUT_EVERY - 1].append(ids)
        total += len(ids)
        if total >= settings.tokens:
            break
    empty: list[Tokens] = [np.empty(0, tokenizer.dtype)]
    return np.concatenate(empty + parts[0]), np.concatenate(empty + parts[1]), tokenizer.vocab_size


def _rows(settings: HubSettings) -> Iterator[Any]:
    try:
        import datasets
    except ImportError:
        raise ConfigError("data=hf needs the package datasets: pip install 'mutransfer[hf]'.") from None
    files = settings.data_files
    try:
        yield from datasets.load_dataset(
            settings.dataset,
            settings.config,
            split=settings.split,
            data_files=list(files) if isinstance(files, tuple) else files,
            streaming=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(
            f"data.dataset={settings.dataset} cannot be streamed: {reason}. "
            "Check its name, data.split and data.data_files."
        ) from error


def _text(row: Any, settings: HubSettings) -> str:
    if settings.text_column not in row:
        raise DataError(
            f"data.dataset={settings.dataset} has no column {settings.text_column!r}."
            f"{nearest(settings.text_column, row)} Set data.text_column."
        )
    return str(row[settings.text_column]) + "\n"


class _Bytes:
    """UTF-8 as it stands."""

    dtype, vocab_size = np.dtype(np.uint8), 256

    def __call__(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), np.uint8)


class _Subwords:
    """A transformers tokenizer, without its special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.vocab_size, self.dtype = tokenizer, len(tokenizer), np.dtype(np.int32)

    def __call__(self, text: str) -> Tokens:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def _tokenizer(name: str) -> _Subwords:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ConfigError("data.tokenizer needs the package transformers: pip install 'mutransfer[hf]'.") from None
    try:
        return _Subwords(AutoTokenizer.from_pretrained(name))
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(f"data.tokenizer={name} cannot be loaded: {reason}. Give a tokenizer's folder.") from error
