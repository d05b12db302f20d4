"""From a tuned proxy to the target: every hyperparameter with the rule and the measurement that made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutransfer.errors import ConfigError, MutransferError, nearest
from mutransfer.records import TrialRecord, jsonable
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.transfer.analysis import DRAWS, LEVEL, analyze_records
from mutransfer.transfer.axis import AXES, Axis, find_axis
from mutransfer.transfer.bootstrap import Interval, interval
from mutransfer.transfer.curves import curves_of
from mutransfer.transfer.direction import direction
from mutransfer.transfer.fit import fit
from mutransfer.transfer.grid import exact
from mutransfer.transfer.points import LR, MIN_SIZES, MIN_VALUES, as_records, select, swept
from mutransfer.transfer.result import TransferReport
from mutransfer.transfer.summary import ONE_SEED, at_the_end, exponential
from mutransfer.transfer.values import TOGETHER, RoleValues, TransferredValue, role_values

_DEFAULTS = {"parameterization.form": "auto", "parameterization.init": "rescale", "parameterization.scale": "heads"}


@dataclass(frozen=True)
class TargetHyperparameters:
    """What to train the target with.

    Attributes:
        values: those to set.
        roles: what they make of each role's learning rate, multiplier and init there; nothing to set.
        override: to paste behind `mutransfer train`, after the proxy's other settings.
        command: the whole line.
        cautions: what speaks against trusting it; empty when nothing does.
    """

    parameterization: str
    target: Mapping[str, float]
    values: tuple[TransferredValue, ...]
    roles: tuple[RoleValues, ...]
    override: str
    command: str
    cautions: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> float:
        return {one.key: one.value for one in (*self.values, *self.roles)}[key]

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = jsonable(self)
        return content

    def __str__(self) -> str:
        lines = [f"  {one}" for one in (*self.values, *self.roles)]
        lines += [f"  ({TOGETHER}.)"] if self.roles else []
        cautions = [f"  Caution: {text}." for text in self.cautions]
        return "\n".join([self.command, *lines, *cautions])


@dataclass(frozen=True)
class _Proxy:
    name: str
    size: float
    x: str
    best: Interval
    settings: Mapping[str, Any]
    cautions: tuple[str, ...]
    swept: Mapping[str, Interval]
    axis: Axis
    following: tuple[str, ...] = ()
    """The other axes along which the sweep's models grew with the size."""


def transfer_hyperparameters(
    source: TransferReport | Iterable[TrialRecord | Mapping[str, Any]],
    target: Mapping[str, float],
    *,
    parameterization: str | None = None,
) -> TargetHyperparameters:
    """The hyperparameters for a larger model, from a sweep over small ones; one tuned size is enough.

    The learning rate is the largest proxy's best one. A table carries it to the target role by role, so that the
    value itself stays; so do muP's own hyperparameters.

    Args:
        source: a report of `analyze_records`, or the trial records of a sweep.
        target: the sizes to train at, by axis or by config key: {"width": 1024} or {"model.width": 1024}. The swept
            one stays the largest proxy's where it is not given.
        parameterization: which one to carry over; by default the report's subject.

    Raises:
        ConfigError: an unknown axis, a size that no table has a rule for, too few trials.
    """
    sizes = _sizes(target)
    proxy = (
        _from_report(source, parameterization)
        if isinstance(source, TransferReport)
        else _tuned(source, parameterization)
    )
    _only_ruled(proxy, sizes)
    sizes = {proxy.axis.name: proxy.size, **sizes}
    values = (_lr(proxy), *_own(proxy))
    settings = _override_parts(proxy, sizes)
    override = " ".join([*settings, *(f"{one.key}={exact(one.value)}" for one in values)])
    return TargetHyperparameters(
        parameterization=proxy.name,
        target=sizes,
        values=values,
        roles=_roles(proxy, sizes, values),
        override=override,
        command=" ".join(["mutransfer train", *_model_parts(proxy, sizes), override]),
        cautions=(*proxy.cautions, *_size_cautions(proxy, sizes)),
    )


def _sizes(target: Mapping[str, float]) -> dict[str, float]:
    """The target by axis name, and at least one size in it."""
    by_key = {axis.key: axis.name for axis in AXES.values()}
    sizes = {find_axis(by_key.get(name, name)).name: size for name, size in target.items()}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | float) or not size > 0:
            raise ConfigError(f"The target's {name} is {size!r}; it must be a positive number.")
    if not sizes:
        raise ConfigError('The target has no size: give one, such as {"width": 1024}.')
    return sizes


def _from_report(report: TransferReport, name: str | None) -> _Proxy:
    name = name or report.subject[0]
    if name not in report.parameterizations:
        known = nearest(name, report.parameterizations)
        raise ConfigError(f"{name!r} is not among the report's parameterizations.{known}")
    one, settings = report[name], report.settings.get(name)
    if settings is None:
        raise ConfigError("This report knows no settings: make it from trial records, with analyze_records.")
    cautions = [] if one.verdict == "transfers" else [f"{name}: {one.verdict}; {'; '.join(one.reasons)}"]
    beside = {
        k: other[name].optimum[-1].lr for k, other in report.hyperparameters.items() if name in other.parameterizations
    }
    best, followed = one.optimum[-1], report.followers.get(name, {}).values()
    following = tuple(axis.name for axis in AXES.values() if any(axis.key in fields for fields in followed))
    axis = find_axis(report.axis)
    return _Proxy(name, best.size, report.x, best.lr, settings, tuple(cautions), beside, axis, following)


def _tuned(records: Iterable[TrialRecord | Mapping[str, Any]], name: str | None) -> _Proxy:
    """From records of several sizes by the whole analysis, from one size by its optimum alone."""
    records = as_records(records)
    x = swept(records)[0]
    axis = direction(records, x)
    selection = select(records, axis, x)
    names = {point.parameterization for point in selection.points}
    chosen = name or next((n for n in sorted(names) if not _is_control(n)), min(names))
    if chosen not in names:
        raise ConfigError(f"{chosen!r} was not swept.{nearest(chosen, names)}")
    curves = curves_of([point for point in selection.points if point.parameterization == chosen])
    whole = [curve for curve in curves if curve.usable.sum() >= MIN_VALUES]
    if len(whole) >= MIN_SIZES:
        return _from_report(analyze_records(records, subject=chosen), chosen)
    if not whole:
        add = ",".join(map(exact, curves[0].more()))
        raise ConfigError(
            f"{chosen} was tuned over too few values of {x}: at least {MIN_VALUES} must converge; add some, such as "
            f"{x}={add}."
        )
    alone = fit(whole, LEVEL, DRAWS, np.random.default_rng(0))
    draws = None if alone.resampled is None else 2.0 ** alone.resampled.position[:, 0]
    best = interval(2.0 ** float(alone.measured.position[0]), draws, LEVEL, None if draws is not None else ONE_SEED)
    if whole[0].bound:
        best = exponential(at_the_end(whole[0]))
    cautions = ["one proxy size only: that the optimum stays is taken from the table, not measured"]
    if whole[0].missing():
        cautions.append("the best value is not between tried ones; extend the proxy's grid")
    return _Proxy(chosen, whole[0].size, x, best, selection.settings[chosen], tuple(cautions), {}, find_axis(axis))


def _is_control(name: str) -> bool:
    return name in PARAMETERIZATIONS and PARAMETERIZATIONS[name].is_control


def _only_ruled(proxy: _Proxy, sizes: Mapping[str, float]) -> None:
    """Raises where the target differs from the proxy along an axis that was not swept and that the table has no rule
    for, or does not say a size that followed the swept one."""
    for name in proxy.following:
        if name not in sizes:
            key = AXES[name].key
            raise ConfigError(f"{key} followed the {proxy.axis.name} in the sweep: give the target's too, as {key}=.")
    for name, size in sizes.items():
        axis = AXES[name]
        tuned = proxy.settings.get(axis.key)
        if tuned is not None and float(tuned) != size and not _has_rule(proxy, axis):
            ruled = " and ".join(name for name, other in AXES.items() if _has_rule(proxy, other))
            other = ", or sweep under depth-mup or completep" if name == "depth" else ""
            raise ConfigError(
                f"{proxy.name} has no rule for {name} ({axis.symbol} = {size / float(tuned):g}); it carries "
                f"hyperparameters over {ruled} only. Keep {axis.key}={tuned}, or tune at {axis.key}={size:g}{other}."
            )


def _has_rule(proxy: _Proxy, axis: Axis) -> bool:
    """A table with depth rules was swept at a depth of the base; a table of one's own counts as one of widths."""
    return axis.base_key is not None and (axis.name == "width" or axis.base_key in proxy.settings)


def _lr(proxy: _Proxy) -> TransferredValue:
    rule = "stays; the table scales it role by role"
    if proxy.x != LR:
        return TransferredValue(LR, float(proxy.settings[LR]), rule, f"held in the sweep of {proxy.x}")
    return _best(proxy, rule)


def _best(proxy: _Proxy, rule: str) -> TransferredValue:
    best = proxy.best
    if best.value is None:
        raise MutransferError(f"{proxy.name} has no measured optimum: {best.reason}.")
    spread = "" if best.low is None else f" [{best.low:.3g}, {best.high:.3g}]"
    value = float(f"{best.value:.4g}")  # to type; its interval is far wider
    return TransferredValue(proxy.x, value, rule, f"best at {proxy.axis.name} {proxy.size:g}{spread}")


def _own(proxy: _Proxy) -> list[TransferredValue]:
    """muP's own hyperparameters that are not 1, or were swept."""
    tuned = [] if proxy.x == LR else [_best(proxy, "stays")]
    own = {key: float(value) for key, value in proxy.settings.items() if key.startswith("hp.")}
    kept = {key: value for key, value in own.items() if value != 1 or key in proxy.swept}
    held = [TransferredValue(key, value, "stays", _own_source(proxy.swept.get(key))) for key, value in kept.items()]
    return [*tuned, *held]


def _own_source(swept: Interval | None) -> str:
    if swept is None or swept.value is None:
        return "held in the sweep"
    return f"held in the sweep; its own sweep is lowest at {swept.value:.3g}"


def _roles(proxy: _Proxy, sizes: Mapping[str, float], values: Sequence[TransferredValue]) -> tuple[RoleValues, ...]:
    table = PARAMETERIZATIONS.get(proxy.name)
    optimizer = OPTIMIZERS.get(str(proxy.settings.get("optimizer.name")))
    width = _ratio(proxy, sizes, AXES["width"])
    if table is None or optimizer is None or width is None:
        return ()
    given = {one.key: one.value for one in values}
    return role_values(table, optimizer, width, given, _ratio(proxy, sizes, AXES["depth"]) or 1.0)


def _ratio(proxy: _Proxy, sizes: Mapping[str, float], axis: Axis) -> float | None:
    """The target's size over the base's; None where the sweep does not say both."""
    size, base = sizes.get(axis.name, proxy.settings.get(axis.key)), proxy.settings.get(str(axis.base_key))
    return None if size is None or base is None else float(size) / float(base)


def _override_parts(proxy: _Proxy, sizes: Mapping[str, float]) -> list[str]:
    parts = [f"{AXES[name].key}={size:g}" for name, size in sizes.items()]
    parts += [f"{key}={proxy.settings[key]}" for key in ("base", "base_depth") if key in proxy.settings]
    changed = [
        f"{k}={proxy.settings[k]}" for k, default in _DEFAULTS.items() if proxy.settings.get(k, default) != default
    ]
    return [*parts, f"parameterization={proxy.name}", *changed]


def _model_parts(proxy: _Proxy, sizes: Mapping[str, float]) -> list[str]:
    """The proxy's model, so that the target differs from it in size only."""
    skipped = {"model.name", "model.base_width", "model.base_depth", *(AXES[name].key for name in sizes)}
    name = [f"model={proxy.settings['model.name']}"] if "model.name" in proxy.settings else []
    fields = {key: value for key, value in proxy.settings.items() if key.startswith("model.") and key not in skipped}
    return [*name, *(f"{key}={_literal(value)}" for key, value in fields.items())]


def _literal(value: Any) -> str:
    """As an override reads it back."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def _size_cautions(proxy: _Proxy, sizes: Mapping[str, float]) -> list[str]:
    size, axis = sizes.get(proxy.axis.name, proxy.size), proxy.axis
    if size < proxy.size:
        return [f"the target is smaller than the largest proxy ({proxy.size:g}); its own optimum was measured"]
    if size > proxy.size and not _has_rule(proxy, axis):
        return [f"{proxy.name} has no rule for {axis.name}: beyond {proxy.size:g} the sweep alone speaks for it"]
    return []
