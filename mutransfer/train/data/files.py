"""Tokens from the user's own files: any text as bytes, or an array of token ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mutransfer.errors import DataError
from mutransfer.train.data.tokens import TokenBatches, TokenData, Tokens, too_few
from mutransfer.train.settings import check_choice, check_whole

HELDOUT_SHARE = 1 / 16
DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")
_BLOCK = 2**16
_BLOCKS = 1024


@dataclass(frozen=True)
class TextSettings(TokenBatches):
    """A file of any text, read as bytes; its last sixteenth is held out."""

    path: str = ""


@dataclass(frozen=True)
class MemmapSettings(TokenBatches):
    """A file of token ids and nothing else (no header); its last sixteenth is held out.

    Attributes:
        path: of the file.
        dtype: of an id.
        vocab_size: number of different ids.
    """

    path: str = ""
    dtype: str = "uint16"
    vocab_size: int = 50304

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data", self, "dtype", DTYPES)
        check_whole("data", self, "vocab_size")


def text(settings: TextSettings) -> TokenData:
    """Raises DataError for a file that is missing, unreadable or shorter than one batch."""
    return _from_file(settings, settings.path, "uint8", 256, "bytes of text, each a token", "Use a longer text")


def memmap(settings: MemmapSettings) -> TokenData:
    """Ids stay on disk and are read as they are drawn. Raises DataError as `text` does."""
    unit = f"tokens of data.dtype={settings.dtype}"
    more = "Check data.dtype, or tokenize more text into the file"
    return _from_file(settings, settings.path, settings.dtype, settings.vocab_size, unit, more)


def _from_file(batches: TokenBatches, path: str, dtype: str, vocab_size: int, unit: str, more: str) -> TokenData:
    tokens = _mapped(path, dtype)
    if len(tokens) < batches.needed + batches.window:
        raise DataError(too_few(path, f"{len(tokens)} {unit}", batches, more))
    cut = len(tokens) - max(int(len(tokens) * HELDOUT_SHARE), batches.window)
    return TokenData(
        tokens[:cut],
        tokens[cut:],
        batches,
        vocab_size=vocab_size,
        sha256=fingerprint(tokens),
        source=path,
        more=more,
    )


def _mapped(path: str, dtype: str) -> Tokens:
    if not path:
        raise DataError("data.path is missing: give the file to train on, as in data.path=FILE.")
    try:
        size = Path(path).stat().st_size
        if size and size % np.dtype(dtype).itemsize == 0:
            return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check data.path.") from None
    if size == 0:
        raise DataError(f"{path} is empty. Give a file that holds data in data.path.")
    raise DataError(f"{path} has {size} bytes, which is no whole number of {dtype} tokens. Check data.dtype.")


def fingerprint(tokens: Tokens) -> str:
    """SHA-256 of the length and the content; above 64 MB, of 1024 evenly spaced blocks of it."""
    raw = tokens.view(np.uint8)
    digest = hashlib.sha256(str(raw.size).encode())
    if raw.size <= _BLOCK * _BLOCKS:
        digest.update(raw.data)
    else:
        for start in np.linspace(0, raw.size - _BLOCK, _BLOCKS).astype(np.int64):
            digest.update(raw[start : start + _BLOCK].data)
    return digest.hexdigest()
