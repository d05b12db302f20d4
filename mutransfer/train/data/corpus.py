"""Real text that every machine has: the source code of Python's standard library, as bytes."""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mutransfer.errors import DataError
from mutransfer.train.data.tokens import TokenBatches, TokenData, Tokens

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "_bundled"}
_LOCAL = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""Files that differ from machine to machine under one Python version."""
HELDOUT_SHARE = 1 / 16
SMALLEST = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """Bytes of the training files and of the held-out files, each in sorted order, and the hash of both."""

    train: Tokens
    heldout: Tokens
    sha256: str


def stdlib(batches: TokenBatches) -> TokenData:
    """The installed standard library's sources, without its tests: about 12 MB, loaded in about 0.2 s.

    Its content differs between Python versions: compare losses only where `sha256` agrees.
    """
    corpus = load(Path(sysconfig.get_path("stdlib")))
    return TokenData(
        corpus.train,
        corpus.heldout,
        batches,
        vocab_size=256,
        sha256=corpus.sha256,
        source="Python's standard library",
        more="Use a larger text of your own (data=text data.path=FILE)",
    )


@functools.lru_cache(maxsize=1)
def load(root: Path) -> Corpus:
    """Every source file below the folder; a file is held out by the hash of its path, so no file is in both parts."""
    train, heldout, digest = bytearray(), bytearray(), hashlib.sha256()
    for name in sorted(_sources(root)):
        with open(root / name, "rb", buffering=0) as stream:
            text = stream.read()
        digest.update(f"{name}\0{len(text)}\0".encode())
        digest.update(text)
        part = heldout if is_heldout(name) else train
        part += text
    if len(train) + len(heldout) < SMALLEST:
        raise DataError(
            f"Python's standard library at {root} has {len(train) + len(heldout)} bytes of source, and at least "
            f"{SMALLEST} are expected: this Python ships without sources. Use data=text data.path=FILE."
        )
    return Corpus(np.frombuffer(train, np.uint8), np.frombuffer(heldout, np.uint8), digest.hexdigest())


def is_heldout(name: str) -> bool:
    """Whether a file is held out, by the hash of its path relative to the library."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return value < HELDOUT_SHARE * 2**64


def _sources(root: Path) -> Iterator[str]:
    """Paths relative to root, with forward slashes on every system."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        relative = Path(folder).relative_to(root)
        for name in files:
            if name.endswith(".py") and not name.startswith(_LOCAL):
                yield (relative / name).as_posix()
