"""Which arguments a model is given together, in which layouts, and what its failures say about them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mutransfer.planning.arguments import (
    AUDIO_MASKS,
    COMPANIONS,
    IDS,
    IMAGE_LAYOUTS,
    IMAGES,
    SERIES,
    SOUND,
    SOUND_LAYOUTS,
    TOKENS,
    Draft,
    Maker,
    ints,
)
from mutransfer.planning.failures import Content, Form, other_forms

MOST_PLACEHOLDERS = 512

NEVER = re.compile(r"(.*_)?labels|past_key_values|cache\w*|kwargs|args|logits_to_keep")
"""What a forward pass in training is not given."""
NOT_MISSING = re.compile(NEVER.pattern + r"|.*embeds|.*embeddings|.*outputs|attention_mask|position_ids|token_type_ids")
"""What is the one that lacks only where a failure names it."""

COUNTS = re.compile(r".*grid_(thw|hw)|.*_sizes|.*_shapes")
"""What says how large others are."""


@dataclass(frozen=True)
class Failed:
    """A draft that the model did not accept.

    Attributes:
        words: of the failure.
        reached: how many modules had run by then.
        forms: of the tensors that it was given.
    """

    draft: Draft
    words: str
    reached: int
    forms: dict[str, Form]

    @property
    def way(self) -> tuple[str, int]:
        """How it failed, whatever the sizes are."""
        return re.sub(r"\d+", "#", self.words), self.reached


class Drafts:
    """Which arguments are given together, and in which layouts."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.parameters = maker.parameters
        self.media = maker.media

    def usual(self, *, whole: bool) -> Iterator[Draft]:
        """Most arguments first, so that every tower is reached, then fewer; text alone first where it will do."""
        takes_media = bool(self.media)
        choices = dict.fromkeys(self._choices())
        if not whole:  # what takes media as well has been tried; text alone comes first
            choices = dict.fromkeys(sorted(choices, key=lambda names: bool(set(names) & set(self.media))))
        for names in choices:
            if whole and takes_media and not set(names) & set(self.media):
                continue
            images = range(IMAGE_LAYOUTS) if any(self.maker.is_image(n) for n in names) else (0,)
            sounds = range(SOUND_LAYOUTS) if any(SOUND.fullmatch(n) for n in names) else (0,)
            for image, sound in itertools.product(images, sounds):
                yield Draft(names, image, sound)

    def documented(self) -> Iterator[Draft]:
        """What is given together, each as the documentation of the forward pass says, where it says anything."""
        for names in dict.fromkeys(self._choices()):
            said = {name: self.maker.documented(name) for name in names if not COUNTS.fullmatch(name)}
            forms = tuple((name, form) for name, form in said.items() if form is not None)
            if forms:
                yield Draft(names, forms=forms)

    def _choices(self) -> Iterator[tuple[str, ...]]:
        required = [n for n, p in self.parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        media = sorted(self.media, key=lambda name: "video" in name)
        ids = [n for n in self.parameters if IDS.fullmatch(n)]
        main = [name for name in self.maker.main if name in self.parameters]
        companions = [n for n in self.parameters if COMPANIONS.fullmatch(n)]
        if not media:  # beside images they say where these are
            companions += [n for n in self.parameters if n == "token_type_ids"]
        single = [[*required, *ids, medium, *self._beside(medium, companions)] for medium in media]
        for names in (
            *single[:1],
            *([*required, *ids, medium] for medium in media[:1]),
            [*required, *ids, *media, *companions],
            *single[1:],
            *([*required, *ids, medium] for medium in media[1:]),
            [*required, *main, *companions],
            [*required, *main],
            [*required, *ids],
            [*required, *media],
            required,
        ):
            if names:
                yield tuple(sorted(set(names), key=list(self.parameters).index))

    def _beside(self, medium: str, companions: Sequence[str]) -> list[str]:
        """What belongs to an image, or to a sound, or to both."""
        heard = bool(SOUND.fullmatch(medium))
        return [n for n in companions if bool(AUDIO_MASKS.fullmatch(n)) == heard or n == "mm_token_type_ids"]

    def repairs(self, draft: Draft, message: str) -> Iterator[Draft]:
        """What a failure's words suggest: an argument that is missing, or a number of placeholder tokens."""
        words = re.findall(r"\w+", message)
        missing = [n for n in self.parameters if n in words and n not in draft.names and self._can_make(n)]
        if missing:
            yield replace(draft, names=tuple(sorted({*draft.names, *missing}, key=list(self.parameters).index)))
        if "token" in message.lower() or "placeholder" in message.lower():
            named = [int(w) for w in words if w.isdigit()]
            widths = {v for value in self.maker.all_named("hidden_size") for v in ints(value)}
            entries = [count // width for count in named for width in widths if count % width == 0]
            for count in dict.fromkeys([*named, *entries]):
                if 0 < count <= MOST_PLACEHOLDERS and count != draft.placeholders:
                    yield replace(draft, placeholders=count)

    def resized(self, draft: Draft, message: str) -> Iterator[Draft]:
        """The same with an image's side, or a spectrogram's bins, that a failure named."""
        media = set(draft.names) & set(self.media)
        for number in dict.fromkeys(int(w) for w in re.findall(r"\d+", message)[:6]):
            if media and not draft.size and 8 <= number <= MOST_PLACEHOLDERS * 2:
                yield replace(draft, size=number)

    def mends(self, failed: Failed) -> Iterator[Draft]:
        """The same with one argument of another form, or with one more that its words name or that is missing."""
        draft = failed.draft
        free = {name: form for name, form in failed.forms.items() if not COUNTS.fullmatch(name)}
        for name, form in other_forms(free, failed.words):
            yield replace(draft, forms=tuple({**dict(draft.forms), name: form}.items()))
        for name in draft.names:
            documented = self.maker.documented(name)
            if documented is not None and name in free and name not in dict(draft.forms):
                yield replace(draft, forms=(*draft.forms, (name, documented)))
        words = re.findall(r"\w+", failed.words)
        others = [n for n in self.parameters if n not in draft.names and self.maker.is_tensor(n)]
        named = [n for n in others if n in words and not NEVER.fullmatch(n)]
        unnamed = [n for n in others if n not in named and not NOT_MISSING.fullmatch(n)]
        if not {"None", "NoneType"} & set(words):  # where it speaks of questions, question_positions
            unnamed = [n for n in unnamed if any(w.lower().startswith(n.split("_")[0]) for w in words if len(w) > 3)]
        for name in (*named, *unnamed):
            more = replace(draft, names=tuple(sorted({*draft.names, name}, key=list(self.parameters).index)))
            yield more
            if name.endswith("mask"):  # of the images, say, that a token sees
                yield replace(more, forms=(*draft.forms, (name, Form((self.maker.batch, TOKENS, 1), Content.WHOLE))))

    def _can_make(self, name: str) -> bool:
        return any(p.fullmatch(name) for p in (IDS, IMAGES, SOUND, COMPANIONS, SERIES)) or name.endswith("mask")
