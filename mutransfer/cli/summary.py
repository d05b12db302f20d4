"""Trials in words: the name of one, what it came to, and the best of many."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mutransfer.records import TrialRecord
from mutransfer.transfer.axis import flatten

_ALWAYS_NAMED = ("parameterization.name", "model.width", "model.depth", "optimizer.lr", "seed")


def describe(record: TrialRecord) -> str:
    """One finished trial in one line."""
    loss = f"val loss {loss_text(record.val_loss)}" if record.val_loss is not None else record.status
    why = f": {record.error}" if record.error else ""
    return f"{title(record)}: {loss}{why} ({record.seconds:.1f} s)"


def title(record: TrialRecord, also: Collection[str] = ()) -> str:
    """A trial's name: parameterization, sizes, lr and seed, muP's own where they are not 1, and these other keys."""
    config, flat = record.config, flatten(record.config)
    own = {key: value for key, value in flat.items() if key in also or (key.startswith("hp.") and value != 1)}
    size = " ".join([config["parameterization"]["name"], *(f"{n} {value}" for n, value in _sizes(config).items())])
    return f"{size}, {power(config['optimizer']['lr'])}{_settings(own)}, seed {config['seed']}"


def varying(records: Sequence[TrialRecord]) -> frozenset[str]:
    """The config keys that take several values in these records, without those that every trial is named by."""
    values: dict[str, set[str]] = {}
    for record in records:
        for key, value in flatten(record.config).items():
            values.setdefault(key, set()).add(str(value))
    return frozenset(key for key, seen in values.items() if len(seen) > 1 and key not in _ALWAYS_NAMED)


def _settings(flat: Mapping[str, Any]) -> str:
    return "".join(
        f", {key}={value:g}" if isinstance(value, float) else f", {key}={value}" for key, value in flat.items()
    )


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    model = config["model"]
    return {name: model[name] for name in ("width", "depth") if model.get(name) is not None}


def power(lr: float) -> str:
    """A learning rate as people of this field read it: `lr 2^-6`, `lr 2^-6.5`."""
    exponent = round(math.log2(lr), 2)
    return f"lr 2^{exponent:g}"


def loss_text(loss: float) -> str:
    """Nats to four decimals; a loss that is beyond all measure in four digits."""
    return f"{loss:.4f}" if abs(loss) < 1e3 else f"{loss:.4g}"


def best_table(records: Sequence[TrialRecord]) -> Table:
    """Per parameterization and size: the setting with the lowest mean held-out loss over the seeds that survived it.

    The depth and other settings are named where they take several values in these records.
    """
    table, several = Table(box=None, pad_edge=False), varying(records)
    sizes = ("width", "depth") if len({_sizes(record.config).get("depth") for record in records}) > 1 else ("width",)
    for heading in ("parameterization", *sizes, "best", "val loss", "seeds", "trials"):
        table.add_column(heading, justify="left" if heading == "parameterization" else "right")
    for (name, *size), settings in sorted(_by_setting(records).items()):
        trials = sum(len(of_setting) for of_setting in settings)
        shown = map(str, size[: len(sizes)])
        table.add_row(*map(escape, (name, *shown, *_best(settings, several))), str(trials))
    return table


def _best(settings: Sequence[Sequence[TrialRecord]], several: Collection[str]) -> tuple[str, str, str]:
    """The best setting, its loss, and how many of its seeds have one."""
    best = min((alike for alike in settings if _survivors(alike)), key=_mean_loss, default=None)
    if best is None:
        return "none", "", ""
    config = best[0].config
    own = _settings({key: value for key, value in flatten(config).items() if key in several})
    seeds = f"{len(_survivors(best))} of {len(best)}"
    return power(config["optimizer"]["lr"]) + own, loss_text(_mean_loss(best)), seeds


def _by_setting(records: Sequence[TrialRecord]) -> dict[tuple[str, int, int], list[list[TrialRecord]]]:
    """Per parameterization, width and depth, the trials that differ in nothing but their seed; failed ones too."""
    rows: dict[tuple[str, int, int], dict[str, list[TrialRecord]]] = {}
    for record in records:
        sizes = _sizes(record.config)
        row = (record.config["parameterization"]["name"], sizes["width"], sizes.get("depth", 0))
        setting = json.dumps({**record.config, "seed": None}, sort_keys=True)
        rows.setdefault(row, {}).setdefault(setting, []).append(record)
    return {row: list(settings.values()) for row, settings in rows.items()}


def _survivors(records: Sequence[TrialRecord]) -> list[float]:
    return [record.val_loss for record in records if record.val_loss is not None]


def _mean_loss(records: Sequence[TrialRecord]) -> float:
    return statistics.fmean(_survivors(records))
