"""The claim: the coordinate check rejects every muP table with one cell wrong by half an exponent, and names the role.

Usage: python experiments/corrupted_cells.py [--out FILE] [--seconds S] [--models mlp gpt resnet]

Every table, optimizer, role, cell and sign on an MLP, a decoder and a ResNet; the last two take about 20 CPU-minutes.
Each check is durable at once: run the same command again and it goes on. Exits with 1 if any was missed or misnamed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import mutransfer as mt
from mutransfer.records import read_json, write_json
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.scale import Scale, m_in, m_out
from mutransfer.rules.table import Parameterization, Role
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.sweep.trial import environment
from mutransfer.train.models import build_model

TABLES = ("mup", "mup-table3", "mup-table9")
GROWING: dict[Role, Scale] = {Role.INPUT: m_out, Role.HIDDEN: m_in, Role.OUTPUT: m_in, Role.VECTOR: m_out}
CELLS = {
    "mlp": list(itertools.product(GROWING, ("init_std", "multiplier", "lr"))),
    # a decoder's and a ResNet's vectors are gains with a constant init: no table draws or multiplies them
    "gpt": [
        *itertools.product((Role.INPUT, Role.HIDDEN, Role.OUTPUT), ("init_std", "multiplier", "lr")),
        (Role.VECTOR, "lr"),
    ],
}
CELLS["resnet"] = CELLS["gpt"]
WIDTHS = {"mlp": [64, 128, 256, 512], "gpt": [64, 128, 256, 512], "resnet": [32, 64, 128, 256]}


def mlp(width: int) -> nn.Module:
    """torch draws the biases too, so every role has a drawn tensor."""
    layers = (nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16))
    return nn.Sequential(*layers)


def gpt(width: int) -> nn.Module:
    return build_model({"name": "gpt", "width": width, "vocab_size": 64, "seq_len": 8})


def resnet(width: int) -> nn.Module:
    return build_model({"name": "resnet", "width": width, "channels": 3, "outputs": 32, "image_size": 8, "stages": 2})


MODELS = {"mlp": mlp, "gpt": gpt, "resnet": resnet}


def corrupt(table: Parameterization, role: Role, cell: str, power: float, optimizer: str) -> Parameterization:
    """The table with one cell wrong by (its role's size ratio)^power."""
    family = OPTIMIZERS[optimizer].family if cell == "lr" else None
    return table.with_cell(role, cell, lambda right: right * GROWING[role] ** power, family=family)


def cases(models: list[str]) -> Iterator[tuple[str, str, str, Role | None, str, float]]:
    for model, table, optimizer in itertools.product(models, TABLES, ("adamw", "sgd")):
        yield model, table, optimizer, None, "", 0.0  # the table as it is must pass
        for (role, cell), power in itertools.product(CELLS[model], (0.5, -0.5)):
            yield model, table, optimizer, role, cell, power


def check(model: str, table: str, optimizer: str, role: Role | None, cell: str, power: float) -> dict[str, object]:
    tested = PARAMETERIZATIONS[table]
    if role is not None:
        tested = corrupt(tested, role, cell, power, optimizer)
    options = {"seeds": 4, "steps": 1, "example_inputs": torch.randn(8, 8)} if model == "mlp" else {}
    report = mt.coord_check(
        MODELS[model], widths=WIDTHS[model], parameterization=tested, optimizer=optimizer, **options
    )
    named = report.culprits[0].name if report.culprits else None
    blamed = next((slope for slope in report.judged if slope.name == named), None)
    return {
        "verdict": report.verdict,
        "blamed_role": blamed.role.value if blamed is not None and blamed.role is not None else None,
        "culprit": named,
        "seeds": report.seeds,
        "cpu_seconds": report.cpu_seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/corrupted_cells.json"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop cleanly after so many")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    results: dict[str, dict[str, object]] = read_json(arguments.out)["checks"] if arguments.out.exists() else {}
    for case in cases(arguments.models):
        name = " ".join(str(part) for part in case if part not in (None, "", 0.0))
        if name in results:
            continue
        if time.monotonic() - began > arguments.seconds:
            print(f"Stopped after {arguments.seconds:g} s; run the same command to go on.")
            break
        results[name] = check(*case) | {"role": case[3].value if case[3] is not None else None}
        write_json(arguments.out, {"environment": environment(), "checks": results, "summary": summary(results)})
        print(f"{name}: {results[name]['verdict']}, blamed {results[name]['blamed_role']}", flush=True)
    print(summary(results))
    return 0 if not summary(results)["wrong"] else 1


def summary(results: dict[str, dict[str, object]]) -> dict[str, object]:
    faults = {name: r for name, r in results.items() if r["role"] is not None}
    right = [name for name, r in faults.items() if r["verdict"] == "fail" and r["blamed_role"] == r["role"]]
    clean = {name: r for name, r in results.items() if r["role"] is None}
    passed = [name for name, r in clean.items() if r["verdict"] == "pass"]
    return {
        "faults": len(faults),
        "found_and_named": len(right),
        "clean": len(clean),
        "clean_passed": len(passed),
        "wrong": sorted((set(faults) - set(right)) | (set(clean) - set(passed))),
    }


if __name__ == "__main__":
    sys.exit(main())
