"""One self-contained page from what the verbs found, with its figures and numbers beside it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mutransfer.errors import ConfigError, RunError
from mutransfer.records import read_json, write_json, write_text
from mutransfer.report import sections
from mutransfer.report.drawings import check_drawings, loss_drawings, optimum_drawing
from mutransfer.report.environment import environment_of
from mutransfer.report.markup import Markup, tag
from mutransfer.report.matching import difference
from mutransfer.report.page import page
from mutransfer.report.words import Json, evidence, hyperparameter, reasons

FILE_NAME = "report.html"


class CheckError(RunError):
    """What is given as a coordinate check is none: a report without it can still be written."""


class HasJson(Protocol):
    """A result of some verb."""

    def to_json(self) -> Mapping[str, Any]: ...


Given = HasJson | Mapping[str, Any] | None


def write_report(
    path: str | Path,
    transfer: Given = None,
    check: Given = None,
    *,
    command: str = "",
    target: Given = None,
    environment: Mapping[str, Any] | None = None,
    title: str = "mutransfer report",
    unshown_check: str = "",
) -> Path:
    """Writes report.html, its figures as PNG and its numbers as JSON, and returns the page's path.

    Args:
        path: the page (`runs/demo/report.html`) or its folder.
        transfer: a TransferReport, or the content of transfer.json.
        check: a coordinate check's report, or the content of check.json.
            Where it is of another model, base, parameterization or optimizer than the sweep, the page says so instead.
        command: the exact command that made it.
        target: of `transfer_hyperparameters`.
        environment: of `environment_of(records)`; this machine's versions by default.
        title: of the browser's tab.
        unshown_check: why the page has no check, for the reader.

    Raises:
        ConfigError: nothing to report on.
        CheckError: the check is not the content of a check.json.
        RunError: no permission, or a full disk.
    """
    numbers = {"transfer": _content(transfer), "check": _check_content(check), "target": _content(target)}
    if numbers["transfer"] is None and numbers["check"] is None:
        raise ConfigError("There is nothing to report on: give the result of a transfer analysis or of a check.")
    path = Path(path)
    path = path if path.suffix == ".html" else path / FILE_NAME
    known = environment_of() if environment is None else environment
    try:
        parts, pictures = _body(numbers, command, known)
    except (KeyError, TypeError) as error:
        raise RunError(f"This is not the content of a transfer.json: it lacks {error}.") from error
    if unshown_check:
        parts.insert(-1, sections.unshown_check(unshown_check))
    for name, picture in pictures.items():
        _write_bytes(path.with_name(name), picture)
    _write_numbers(path, numbers, {"command": command, "environment": dict(known)})
    return write_text(path, page(title, parts))


def read_check(path: Path) -> Any:
    """The content of a check.json; None where there is none.

    Raises:
        CheckError: it cannot be read.
    """
    try:
        return read_json(path) if path.is_file() else None
    except RunError as error:
        raise CheckError(str(error)) from None


def _content(given: Given) -> Json | None:
    return given if given is None or isinstance(given, Mapping) else given.to_json()


def _check_content(given: Given) -> Json | None:
    """Comes from a file that anybody may have written."""
    if given is not None and not isinstance(given, Mapping) and not hasattr(given, "to_json"):
        raise CheckError(f"This is not the content of a check.json: it is a {type(given).__name__}, not a mapping.")
    return _content(given)


def _body(numbers: Mapping[str, Json | None], command: str, known: Json) -> tuple[list[Markup], dict[str, bytes]]:
    pictures: dict[str, bytes] = {}
    transfer, check, target = numbers["transfer"], numbers["check"], numbers["target"]
    parts: list[Markup] = []
    if transfer is not None:
        parts.append(sections.verdict(transfer))
        parts += [sections.target(target)] if target is not None else []
        parts += _transfer_figures(transfer, pictures)
        parts.append(sections.numbers(transfer))
        parts += [part for k, one in transfer["hyperparameters"].items() for part in _hyperparameter(k, one, pictures)]
    if check is not None:
        parts += _check(check, transfer, pictures)
    return [*parts, sections.environment(known, command)], pictures


def _transfer_figures(report: Json, pictures: dict[str, bytes]) -> list[Markup]:
    panels, pictures["loss.png"] = loss_drawings(report, "loss")
    track, pictures["optimum.png"] = optimum_drawing(report, "optimum")
    what, axis = hyperparameter(report["x"]), report["axis"]
    caption = (
        f"Every line is one {axis}, averaged over its seeds (bars: their spread); stars mark the best {what}, with its "
        f"interval, hollow triangles a best tried value at the end of the grid: the best one lies there or beyond; "
        f"crosses are trials that diverged, full triangles lie above the scale. All panels share one scale: "
        f"under a parameterization that transfers, the stars stand above one another."
    )
    slopes = f"A flat line transfers. Bars: {report['level']:.0%} intervals; dashes: the line whose slope is the drift."
    return [
        sections.figures(f"Held-out loss against {what}", caption, panels),
        sections.figures(f"Best {what} against {axis}", slopes, [track]),
    ]


def _hyperparameter(key: str, report: Json, pictures: dict[str, bytes]) -> list[Markup]:
    """A hyperparameter of muP's own, swept at several sizes."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", key)  # a file name and an id, whatever the key holds
    panels, pictures[f"loss-{name}.png"] = loss_drawings(report, f"loss-{name}")
    drawn = sections.figures(f"Held-out loss against {key}: {report['verdict']}", _evidence(report), panels)
    return [drawn]


def _evidence(report: Json) -> Markup:
    entries: Mapping[str, Json] = report["parameterizations"]
    said = [part for name, one in entries.items() for part in (evidence(name, one, report), *reasons(name, one))]
    return tag("span", " ".join(said))


def _check(check: Json, transfer: Json | None, pictures: dict[str, bytes]) -> list[Markup]:
    try:
        other = difference(check, transfer) if transfer is not None else ""
        return [sections.foreign_check(other)] if other else _exponents(check, pictures, first=transfer is None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else f"in it, {error}"
        raise CheckError(f"This is not the content of a check.json: {lacks}.") from error


def _exponents(check: Json, pictures: dict[str, bytes], *, first: bool) -> list[Markup]:
    parts = [sections.check_verdict(check, first=first)]
    drawn = check_drawings(check, "check")
    if drawn is not None:
        panels, pictures["exponents.png"] = drawn
        caption = "Shaded: what the law of the parameterization allows. Blue intervals lie inside, orange ones do not."
        parts.append(sections.figures("Every exponent against its law", caption, panels, sections.slopes(check)))
    return parts


def _write_numbers(path: Path, numbers: Mapping[str, Json | None], more: Json) -> None:
    if numbers["transfer"] is not None:
        write_json(path.with_name("transfer.json"), {**numbers["transfer"], "target": numbers["target"], **more})
    if numbers["check"] is not None:
        write_json(path.with_name("check.json"), numbers["check"])


def _write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            stream.write(content)
        os.chmod(stream.name, 0o644)
        os.replace(stream.name, path)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror}. Free some space or choose another folder.") from None
