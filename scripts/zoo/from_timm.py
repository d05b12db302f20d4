"""timm's models at widths of their own: which of its size arguments make a model wider, by family of constructor."""

from __future__ import annotations

from collections.abc import Iterator

from zoo.subjects import Subject


def timm_subjects() -> Iterator[Subject]:
    yield from ()
