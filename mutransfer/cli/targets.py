"""Whether the line that is printed for a target can be trained, before it is printed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mutransfer.errors import ConfigError, MutransferError
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.validate import validate

FARTHEST = 512
"""How far from the asked width a valid one is looked for."""


def check_target(words: Sequence[str], proxy: Mapping[str, int]) -> tuple[str, ...]:
    """Builds the target that `mutransfer train` would train, without memory.

    Args:
        words: the overrides behind the verb.
        proxy: config key -> size that was trained, and so can be built wherever anything can; of the target's sizes.

    Returns:
        What the user should know: that nothing can be built here, and so nothing was checked.

    Raises:
        ConfigError: these sizes cannot be built where others can; the nearest widths are named.
    """
    config = Composer("train").config(words)
    problem_at = functools.partial(_problem, config)
    problem = problem_at({})
    if problem is None:
        return ()
    if problem_at(proxy) is not None:
        return (f"whether the target can be built was not checked here: {problem.rstrip('.')}",)
    sizes = {key: int(config["model"][key.removeprefix("model.")]) for key in proxy}
    fitting = _nearest(sizes["model.width"], problem_at) if "model.width" in sizes else []
    near = f" The nearest widths that can be trained: {' and '.join(map(str, fitting))}." if fitting else ""
    said = " ".join(f"--target {key}={size}" for key, size in sizes.items())
    raise ConfigError(f"{said} cannot be trained: {problem}{near}")


def _problem(config: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    """Why the model cannot be built at these sizes; None where it can."""
    changes = {key.removeprefix("model."): size for key, size in sizes.items()}
    try:
        checked = validate("train", {**config, "model": {**config["model"], **changes}})
        _build(checked)
    except MutransferError as error:
        return str(error)
    return None


def _build(config: Mapping[str, Any]) -> None:
    from mutransfer.planning.sizes import without_memory

    without_memory(lambda: _trials().build(config, config["model"]["width"]))


@functools.cache
def _trials() -> Any:
    """Keeps the corpus between builds; imports torch."""
    from mutransfer.sweep.trial import Trials

    return Trials()


def _nearest(width: int, problem_at: Callable[[Mapping[str, int]], str | None]) -> list[int]:
    """The nearest valid width on each side."""
    sides: Iterable[Iterable[int]] = (
        range(width - 1, max(0, width - FARTHEST), -1),
        range(width + 1, width + FARTHEST),
    )
    found = (itertools.islice((w for w in side if problem_at({"model.width": w}) is None), 1) for side in sides)
    return [width for side in found for width in side]
