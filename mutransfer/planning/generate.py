"""Inputs for any model with a config: ids, images, sound and their combinations, tried until its forward pass runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import MutransferError, RoleError
from mutransfer.planning.arguments import TOKENS, Draft, Maker
from mutransfer.planning.drafts import Drafts, Failed
from mutransfer.planning.failures import Content, Form

__all__ = ["TOKENS", "Experience", "generate_inputs"]

MOST_TRIES = 120
MOST_MENDS = 80
"""Tries after those, each with one argument changed by what a failure said."""
RECALLED = 8
"""Drafts by which it is told whether another size of a model fails as the last one did."""

Inputs = dict[str, Any]
Run = Callable[[Inputs], object]
"""Runs the model's forward pass; raises where it does not accept the inputs."""


@dataclass
class Experience:
    """What one search teaches the next one, on the same model at another size.

    Attributes:
        accepted: the draft that was.
        failed: where none was, one of the usual drafts for each way in which they failed.
    """

    accepted: Draft | None = None
    failed: tuple[Failed, ...] = ()


def generate_inputs(
    model: nn.Module, run: Run, seed: int = 0, *, whole: bool = False, experience: Experience | None = None
) -> Inputs:
    """Keyword arguments that the model's forward pass accepts; drawn from `seed`, no special token among the ids.

    The usual combinations come first. Then those that got farthest are changed, one argument at a time, as their
    failures say: another size, one dimension more, an argument that is missing.

    Args:
        model: has a `.config`.
        run: tries inputs, on fake tensors or for real.
        seed: of the contents.
        whole: text alone will not do for a model that takes images or sound as well.
        experience: of searches on the same model at other sizes; what was accepted comes first, and where those that
            got farthest fail as they did there, no other is tried. This search adds its own.

    Raises:
        RoleError: the class has no forward pass, or one that takes an object of a class of its own, or no combination
            is accepted; it carries the first failure, and that of the combination that got farthest.
    """
    if type(model).forward is nn.Module.forward:
        raise RoleError(f"{type(model).__name__} has no forward pass of its own. Give one of the models inside it.")
    _refuse_objects(model)
    search = Search(model, run, seed)
    known = Experience() if experience is None else experience
    inputs = search.recalled(known)
    if inputs is None and not search.fails_as(known):
        inputs = search.usual(whole=whole)
        inputs = search.mended() if inputs is None else inputs
    if inputs is None:
        known.failed = known.failed if search.fails_as(known) else search.farthest()
        raise RoleError(
            f"No inputs for {type(model).__name__} could be generated ({search.failure()}). Pass example_inputs=, a "
            "tuple of positional or a dict of keyword arguments that its forward pass accepts (small ones do)."
        )
    known.accepted, known.failed = search.accepted, ()
    return inputs


def _refuse_objects(model: nn.Module) -> None:
    """A session with a video, say, is made by a processor, not from a config."""
    for name, parameter in inspect.signature(model.forward).parameters.items():
        kind, needed = parameter.annotation, parameter.default is parameter.empty
        own = isinstance(kind, type) and kind.__module__.partition(".")[0] not in ("builtins", "torch", "inspect")
        if needed and own and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise RoleError(
                f"The forward pass of {type(model).__name__} takes {name!r}, a {kind.__name__}, which is made by other "
                "code than the model's. Pass example_inputs= with one, or give one of the models inside it."
            )


class Search:
    """Tries drafts on a model, and keeps what failed."""

    def __init__(self, model: nn.Module, run: Run, seed: int) -> None:
        self.run = run
        self.maker = Maker(model, seed)
        self.drafts = Drafts(self.maker)
        self.failed: dict[Draft, Failed] = {}
        self.accepted: Draft | None = None

    def recalled(self, known: Experience) -> Inputs | None:
        """The first that is accepted of what was, and of what nearly was."""
        for draft in (known.accepted, *(failed.draft for failed in known.failed)):
            inputs = self._try(draft) if draft is not None else None
            if inputs is not None:
                return inputs
        return None

    def fails_as(self, known: Experience) -> bool:
        """Whether those that nearly were fail as they did at another size."""
        ways = [self.failed[failed.draft].way for failed in known.failed if failed.draft in self.failed]
        return bool(ways) and ways == [failed.way for failed in known.failed]

    def farthest(self) -> tuple[Failed, ...]:
        """One of the usual drafts for each way to fail, those that got farthest first."""
        ways: dict[object, Failed] = {}
        for draft, failed in self.failed.items():
            if not draft.forms and not draft.size:
                ways.setdefault(failed.way, failed)
        return tuple(sorted(ways.values(), key=lambda failed: -failed.reached)[:RECALLED])

    def usual(self, *, whole: bool) -> Inputs | None:
        """The first of the usual combinations that is accepted."""
        queue = list(self.drafts.usual(whole=whole))
        for _ in range(MOST_TRIES):
            if not queue:
                break
            draft = queue.pop(0)
            if draft in self.failed:
                continue
            inputs = self._try(draft)
            if inputs is not None:
                return inputs
            queue[:0] = self.drafts.repairs(draft, self.failed[draft].words)
            queue += self.drafts.resized(draft, self.failed[draft].words)
        return None

    def mended(self) -> Inputs | None:
        """The first that is accepted with changes that failures suggest: of what the documentation says, then of those
        that got farthest."""
        waiting = list({frozenset(failed.forms.items()): failed for failed in self.failed.values()}.values())
        seen = {frozenset(failed.forms.items()) for failed in waiting}
        most = len(seen) + MOST_MENDS
        for draft in self.drafts.documented():
            inputs = self._first_of([draft], seen, waiting)
            if inputs is None and draft in self.failed:
                inputs = self._first_of(self.drafts.mends(self.failed[draft]), seen, waiting)
            if inputs is not None:
                return inputs
        while waiting and len(seen) < most:
            best = max(waiting, key=lambda failed: (failed.reached, -len(failed.draft.forms)))
            waiting.remove(best)
            inputs = self._first_of(self.drafts.mends(best), seen, waiting, of=best)
            if inputs is not None:
                return inputs
        return None

    def _first_of(
        self,
        drafts: Iterable[Draft],
        seen: set[frozenset[tuple[str, Form]]],
        waiting: list[Failed],
        of: Failed | None = None,
    ) -> Inputs | None:
        """The first that is accepted; the others, where they give what is not yet `seen`, join those that wait. A
        change after which the same words are said at the same place was of something else, and leads nowhere.

        Args:
            of: what the drafts are changes of.
        """
        for draft in drafts:
            given = self._given(draft)
            if given in seen:
                continue
            seen.add(given)
            inputs = self._try(draft)
            if inputs is not None:
                return inputs
            failed = self.failed[draft]
            if of is None or (failed.words, failed.reached) != (of.words, of.reached):
                waiting.append(failed)
        return None

    def _given(self, draft: Draft) -> frozenset[tuple[str, Form]]:
        try:
            return frozenset({**_forms(self.maker.inputs(draft)), **dict(draft.forms)}.items())
        except Exception:  # sizes that no tensor has
            return frozenset()

    def failure(self) -> str:
        """The words of the first failure, and of the one that got farthest."""
        failed = list(self.failed.values())
        if not failed:
            return "it takes no tensor"
        farthest = max(failed, key=lambda f: (f.reached, f.draft.placeholders > 0))  # not only the lack of placeholders
        words = [failed[0].words, farthest.words]
        return "; at best ".join(dict.fromkeys(map(_first_line, words)))

    def _try(self, draft: Draft) -> Inputs | None:
        inputs: Inputs = {}
        reached = 0

        def count(*_: object) -> None:
            nonlocal reached
            reached += 1

        handle = torch.nn.modules.module.register_module_forward_hook(count)
        try:
            inputs = self.maker.inputs(draft)
            self.run(inputs)
            self.accepted = draft
            return inputs
        except Exception as error:  # whatever a foreign forward pass raises
            cause = error.__cause__ if isinstance(error, MutransferError) and error.__cause__ else error
            words = f"{type(cause).__name__}: {cause}"[:2000]
            self.failed[draft] = Failed(draft, words, reached, {**_forms(inputs), **dict(draft.forms)})
            return None
        finally:
            handle.remove()


def _first_line(words: str) -> str:
    return words.strip().splitlines()[0][:200]


def _forms(inputs: Inputs) -> dict[str, Form]:
    return {name: Form(tuple(t.shape), _content(t)) for name, t in inputs.items() if isinstance(t, Tensor)}


def _content(tensor: Tensor) -> Content:
    if tensor.dtype == torch.bool:
        return Content.TRUTH
    return Content.REAL if tensor.is_floating_point() else Content.WHOLE
