"""From trial records to the points of a sweep: one loss per parameterization, size, value and seed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.transfer.axis import Axis, find_axis, flatten

LR = "optimizer.lr"
MIN_VALUES, MIN_SIZES = 3, 2
_NOT_PHYSICS = ("run_dir", "resume", "logger", "engine", "search", "subject", "device")
_TABLE = ("parameterization.name", "parameterization.form", "parameterization.scale", "base_depth")
State = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class Point:
    """One trial, as the analysis sees it.

    Attributes:
        parameterization: its registry name.
        size: along the axis of growth, in that axis' own unit (width: channels).
        lr: the value on the x axis: the learning rate, or whichever hyperparameter was swept.
        seed: the same seed in two points means the same data order and the same draws.
        loss: held out, in nats; inf where training diverged. nan only in a `Selection`, of a trial without a result.
    """

    parameterization: str
    size: float
    lr: float
    seed: int
    loss: float


@dataclass(frozen=True)
class Selection:
    """The points of one sweep, and what was held fixed in it.

    Attributes:
        settings: parameterization -> the flat config that all its points share.
        followers: parameterization -> size -> fields of the model that followed the size.
        notes: what was left out or chosen, for the reader.
        failed, unfinished: points of the same settings whose trials have no result.
        silent: parameterizations of which no trial has a result.
    """

    points: tuple[Point, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    followers: Mapping[str, Mapping[float, Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: tuple[Point, ...] = ()
    unfinished: tuple[Point, ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trial:
    point: Point
    setting: str
    """All that is not on an axis, as JSON."""
    config: Mapping[str, Any]
    """All of it, flat."""
    state: State
    followers: Mapping[str, Any] = field(default_factory=dict)
    """Taken out of the setting, since they follow the size."""


def points_from_records(
    records: Iterable[TrialRecord | Mapping[str, Any]], axis: str = "width", x: str = LR
) -> list[Point]:
    """The points of the sweep over `x` at several sizes.

    A trial at the base size stands for every parameterization that was swept, since there they all train alike.
    Where other settings were swept too, each parameterization keeps the one that covers most sizes and, among
    those, reaches the lowest loss at the smallest size that all have: the one a user would carry over.

    Raises:
        RunError: no finished trial, or trials on different data.
        ConfigError: an unknown axis, or a config without the axis' key or `x`.
    """
    return list(select(records, axis, x).points)


def as_records(records: Iterable[TrialRecord | Mapping[str, Any]]) -> list[TrialRecord]:
    """Raises RunError where one is damaged, naming it."""
    given = [r if isinstance(r, TrialRecord) else TrialRecord.from_json(r) for r in records]
    for record in given:
        mappings = isinstance(record.config, Mapping) and isinstance(record.environment, Mapping)
        if not (mappings and isinstance(record.cpu_seconds, int | float)):
            raise RunError(f"The record of trial {record.key!s:.12} is damaged: its config, environment or cost is.")
    return given


def select(
    records: Iterable[TrialRecord | Mapping[str, Any]],
    axis: str = "width",
    x: str = LR,
    unfinished: Iterable[Mapping[str, Any]] = (),
) -> Selection:
    """`points_from_records` with the settings held fixed, the notes, and what has no result yet.

    Args:
        unfinished: configs of trials that were asked for and have no record yet.
    """
    given = as_records(records)
    _same_data(given)
    failed = sum(record.status == "failed" for record in given)
    if failed == len(given):
        what = f"all {failed} failed: add engine.retry_failed=true to" if failed else "run it first:"
        raise RunError(f"There is no finished trial to analyze; {what} mutransfer sweep ...")
    along = find_axis(axis)
    asked = [_trial("unfinished", config, math.nan, "unfinished", along, x) for config in unfinished]
    trials = _share_base([*(_trial_of(record, along, x) for record in given), *asked])
    kept, notes = _best_settings(trials)
    notes = [*([f"{failed} failed trials are left out."] if failed else []), *notes]
    settings = {trial.point.parameterization: json.loads(trial.setting) for trial in kept}
    followers: dict[str, dict[float, Mapping[str, Any]]] = defaultdict(dict)
    for trial in kept:
        followers[trial.point.parameterization][trial.point.size] = trial.followers
    return Selection(
        points=_in_state("finished", kept),
        settings=settings,
        followers=followers,
        notes=tuple(notes),
        failed=_in_state("failed", kept),
        unfinished=_in_state("unfinished", kept),
        silent=tuple(dict.fromkeys(name for t in trials if (name := t.point.parameterization) not in settings)),
    )


def _in_state(state: State, trials: Iterable[_Trial]) -> tuple[Point, ...]:
    return tuple(trial.point for trial in trials if trial.state == state)


def swept(records: Iterable[TrialRecord]) -> list[str]:
    """The keys that take at least three values, of the learning rate and muP's own hyperparameters; most values first.

    The learning rate leads wherever it is one of them; it alone is returned where none is.
    """
    values: dict[str, set[str]] = {LR: set()}
    for record in records:
        for key, value in flatten(record.config).items():
            if key == LR or key.startswith("hp."):
                values.setdefault(key, set()).add(str(value))
    enough = [key for key, seen in values.items() if len(seen) >= MIN_VALUES]
    return sorted(enough, key=lambda key: (key != LR, -len(values[key]))) or [LR]


def _trial_of(record: TrialRecord, axis: Axis, x: str) -> _Trial:
    if record.status == "failed":
        return _trial(record.key, record.config, math.nan, "failed", axis, x)
    loss = record.val_loss if record.status == "done" and record.val_loss is not None else math.inf
    return _trial(record.key, record.config, loss, "finished", axis, x)


def _trial(key: str, config: Mapping[str, Any], loss: float, state: State, axis: Axis, x: str) -> _Trial:
    flat = {k: v for k, v in flatten(config).items() if k.split(".")[0] not in _NOT_PHYSICS}
    missing = [name for name in (axis.key, x, "parameterization.name") if name not in flat]
    if missing:
        raise ConfigError(f"Trial {key[:12]} has no {missing[0]} in its config: it cannot be placed on the plot.")
    name, whole = str(flat["parameterization.name"]), dict(flat)
    try:
        point = Point(name, float(flat.pop(axis.key)), float(flat.pop(x)), int(flat.pop("seed", 0)), float(loss))
    except (TypeError, ValueError):
        raise RunError(
            f"The record of trial {key[:12]} is damaged: its {axis.key}, {x}, seed and loss are not all numbers."
        ) from None
    return _Trial(point, json.dumps(flat, sort_keys=True), whole, state)


def _is_relative(name: str) -> bool:
    return name not in PARAMETERIZATIONS or PARAMETERIZATIONS[name].kind == "relative"


def _share_base(trials: Sequence[_Trial]) -> list[_Trial]:
    """Every trial, and each base trial again under all tables that are a ratio to that base."""
    tables = {_table_of(trial) for trial in trials if _is_relative(trial.point.parameterization)}
    shared = {(trial.point, trial.setting): trial for trial in trials}
    for trial in trials:
        for table in (table for table in tables if _stands_for(trial, dict(table))):
            own = {key: value for key, value in json.loads(trial.setting).items() if key not in _TABLE}
            setting = json.dumps(own | dict(table), sort_keys=True)
            copy = replace(
                trial, point=replace(trial.point, parameterization=str(dict(table)[_TABLE[0]])), setting=setting
            )
            shared.setdefault((copy.point, copy.setting), copy)
    return list(shared.values())


def _stands_for(trial: _Trial, table: Mapping[str, Any]) -> bool:
    """Whether this trial is the same under another table, as every table that is a ratio to a base is at the base.

    Only tables with depth rules know a depth of the base, and a multiplier of branches.
    """
    flat, depth = trial.config, trial.config.get("model.depth")
    narrow = flat.get("base") == flat.get("model.width") is not None
    shallow = flat.get("base_depth", depth) == depth == table.get("base_depth", depth)
    usable = "base_depth" in table or flat.get("hp.residual_mult", 1) == 1
    return narrow and shallow and usable and _is_relative(trial.point.parameterization)


def _table_of(trial: _Trial) -> tuple[tuple[str, Any], ...]:
    flat = json.loads(trial.setting)
    return tuple((key, flat[key]) for key in _TABLE if key in flat)


def _best_settings(trials: Sequence[_Trial]) -> tuple[list[_Trial], list[str]]:
    """Each parameterization's trials of one setting, and what was chosen, where there was a choice."""
    kept: list[_Trial] = []
    chosen: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(trial.point.parameterization for trial in trials if trial.state == "finished"):
        group, note = _best_setting([t for t in trials if t.point.parameterization == name])
        kept += group
        for text in note:
            chosen[text].append(name)
    return kept, [f"{', '.join(names)}: {text}" for text, names in chosen.items()]


def _best_setting(trials: Sequence[_Trial]) -> tuple[list[_Trial], list[str]]:
    groups: dict[str, list[_Trial]] = defaultdict(list)
    for trial in _without_followers(trials):
        groups[trial.setting].append(trial)
    finished = {s: done for s, group in groups.items() if (done := [t for t in group if t.state == "finished"])}
    chosen = _chosen(finished)
    varying = _difference(list(finished))
    if not varying:
        return groups[chosen], []
    flat = json.loads(chosen)
    fixed = ", ".join(f"{key}={flat.get(key)}" for key in varying)
    return groups[chosen], [f"{len(finished)} settings were swept; this is the one at {fixed}."]


def _chosen(groups: Mapping[str, Sequence[_Trial]]) -> str:
    """The setting with most sizes covered by enough values; among such, the best mean at the smallest common size.

    A mean is one value's, over the seeds that all settings have there, as in the sweep's own table: one lucky trial
    chooses nothing, nor does a value that lacks one of these seeds.
    Settings without a common size cannot be compared by loss, since a larger model has a lower one: most trials count.
    """
    covered = {setting: _covered(trials) for setting, trials in groups.items()}
    most = max(map(len, covered.values()))
    rivals = [setting for setting in groups if len(covered[setting]) == most]
    common = set.intersection(*({t.point.size for t in groups[setting]} for setting in rivals))
    at = min(common, default=None)

    there = {setting: [t.point for t in groups[setting] if t.point.size == at] for setting in rivals}
    seeds = set.intersection(*({point.seed for point in points} for points in there.values()))

    def rank(setting: str) -> tuple[float, int]:
        own = [point for point in there[setting] if point.seed in seeds] or there[setting]
        return -min(_means(own), default=math.inf), len(groups[setting])

    return max(rivals, key=rank)


def _means(points: Sequence[Point]) -> list[float]:
    """Of the losses at each value that has most seeds."""
    losses: dict[float, list[float]] = defaultdict(list)
    for point in points:
        losses[point.lr].append(point.loss)
    most = max(map(len, losses.values()), default=0)
    return [sum(found) / most for found in losses.values() if len(found) == most]


def _covered(trials: Sequence[_Trial]) -> set[float]:
    """The sizes with enough values."""
    values: dict[float, set[float]] = defaultdict(set)
    for trial in trials:
        values[trial.point.size].add(trial.point.lr)
    return {size for size, tried in values.items() if len(tried) >= MIN_VALUES}


def _without_followers(trials: Sequence[_Trial]) -> list[_Trial]:
    """Fields of the model that merely follow its size, such as the number of heads, taken out of the settings."""
    flats = [json.loads(trial.setting) for trial in trials]
    followers = [
        k for k in _difference([t.setting for t in trials]) if k.startswith("model.") and _follows(k, trials, flats)
    ]
    return [
        replace(
            trial,
            setting=json.dumps({k: v for k, v in flat.items() if k not in followers}, sort_keys=True),
            followers={k: flat[k] for k in followers if k in flat},
        )
        for trial, flat in zip(trials, flats, strict=True)
    ]


def _follows(key: str, trials: Sequence[_Trial], flats: Sequence[Mapping[str, Any]]) -> bool:
    seen: dict[float, Any] = {}
    return all(
        seen.setdefault(t.point.size, flat.get(key)) == flat.get(key) for t, flat in zip(trials, flats, strict=True)
    )


def _difference(settings: Sequence[str]) -> list[str]:
    """The keys in which settings differ, sorted."""
    flats = [json.loads(setting) for setting in settings]
    keys = sorted({key for flat in flats for key in flat})
    return [key for key in keys if len({json.dumps(flat.get(key)) for flat in flats}) > 1]


def _same_data(records: Sequence[TrialRecord]) -> None:
    hashes = {str(r.environment["data_sha256"]) for r in records if r.environment.get("data_sha256")}
    if len(hashes) > 1:
        names = ", ".join(sorted(h[:8] for h in hashes))
        raise RunError(
            f"These trials were trained on {len(hashes)} different corpora ({names}), so their losses cannot be "
            "compared. Sweep again in a new run_dir."
        )
