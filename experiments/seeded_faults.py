"""The claim: `coord_check(make_optimizer=...)` finds single faults in hand-written muP code and names the tensor first,
and passes right code with other seeds.

Usage: python experiments/seeded_faults.py [--out FILE] [--seconds S] [--shard I/N] [--axis width|depth] [--faults N]
       [--clean N]

Every case is a model of one of several architectures whose hand-written code (init, and one optimizer group a tensor)
is right but for one tensor, drawn with the kind of fault from the case's number. Over width it is muP, over depth
CompleteP, where the tensor stands in every block. A case takes 3 to 15 CPU-seconds, and each is durable at once: run
the same command again and it goes on. Bounds are one-sided, 95 %, Clopper and Pearson's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.planning.data import ParamPlan
from mutransfer.planning.untouched import untouched_rng
from mutransfer.rules.depth import Place
from mutransfer.rules.table import Role
from mutransfer.sweep.trial import environment
from mutransfer.train.models import build_model

BASE, WIDTHS, LR, DECAY = 64, [64, 128, 256], 2**-13, 0.1
FAULTS = ("lr", "init", "eps", "decay", "swapped role", "readout left alone", "doubled multiplier", "lr not folded",
          "attention")  # fmt: skip
DEPTH_FAULTS = ("branch missed", "branch missed", "lr", "init", "eps", "decay")
"""A branch missed is the fault that depth has of its own: one kind keeps the last layer of the base, at every depth."""
POWERS = (0.5, -0.5, 1.0, -1.0)
BASE_DEPTH, DEPTHS = 2, [2, 4, 8]
SEEDS = 4


# --- architectures ------------------------------------------------------------------------------------------------


def gpt(width: int, head_dim: int | None = 16) -> nn.Module:
    heads = {"head_dim": head_dim} if head_dim else {"head_dim": None, "n_heads": 4}
    return build_model({"name": "gpt", "width": width, "vocab_size": 64, "seq_len": 8, **heads})


def resnet(width: int) -> nn.Module:
    size = {"width": width // 2, "channels": 3, "outputs": 32, "image_size": 8, "stages": 2}
    return build_model({"name": "resnet", **size})


def gpt_of_depth(width: int, depth: int) -> nn.Module:
    return build_model({"name": "gpt", "width": width, "depth": depth, "vocab_size": 64, "seq_len": 8})


def hf(kind: str) -> Callable[..., nn.Module]:
    fixed = {"name": "hf", "type": kind, "vocab_size": 64}
    overrides = {
        "gpt2": {"n_embd": 64, "n_head": 4, "n_positions": 16, "tie_word_embeddings": False},
        "llama": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
        "bert": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "tie_word_embeddings": False,
        },
    }[kind]
    return lambda width, depth=2: build_model({"width": width, "depth": depth, "overrides": overrides, **fixed})


def vit(width: int) -> nn.Module:
    size = {"width": width, "channels": 3, "outputs": 32, "image_size": 8, "patch_size": 4}
    return build_model({"name": "vit", **size})


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(64, width), nn.Linear(width, 64)
        self.core = nn.LSTM(width, width, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.read(self.core(self.embed(ids))[0])
        return out


ARCHITECTURES: Mapping[str, Callable[[int], nn.Module]] = {
    "gpt": gpt,
    "gpt2": hf("gpt2"),
    "llama": hf("llama"),
    "bert": hf("bert"),
    "vit": vit,
    "resnet": resnet,
    "lstm": Recurrent,
}
HEADS_GROW = "gpt whose head_dim grows"


DEEP: Mapping[str, Callable[[int, int], nn.Module]] = {
    "gpt in depth": gpt_of_depth,
    "llama in depth": hf("llama"),
    "bert in depth": hf("bert"),  # norms behind the sum
}


def builder(architecture: str) -> Callable[[int], nn.Module]:
    """Of a size: width, or depth."""
    if architecture == HEADS_GROW:
        return lambda width: gpt(width, None)
    if architecture in DEEP:
        return lambda depth: DEEP[architecture](BASE, depth)
    return ARCHITECTURES[architecture]


# --- hand-written code, right but for one tensor ------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One check.

    Attributes:
        number: from which all is drawn; `seed` shifts every seed of the check.
        fault: of FAULTS; None for right code.
        tensor: the parameter that is wrong, at all widths and in all blocks alike.
        power: of the width ratio, for faults that are a factor.
    """

    number: int
    architecture: str
    fault: str | None
    tensor: str = ""
    power: float = 0.0

    @property
    def seed(self) -> int:
        return 1000 * (self.number + 1)

    def hit(self, name: str) -> bool:
        return self.fault is not None and template(name) == self.tensor


def template(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


@cache
def plan_of(architecture: str, size: int) -> mt.Plan:
    build = builder(architecture)
    with untouched_rng():
        if architecture in DEEP:
            sizes = {"base": BASE, "base_depth": BASE_DEPTH}
            return mt.plan(build(size), "completep", factory=DEEP[architecture], **sizes)
        scale = "head_dim" if architecture == HEADS_GROW else "heads"
        return mt.plan(build(size), "mup", base=BASE, factory=build, scale=scale)


def case_of(number: int, clean: bool, axis: str) -> Case:
    """Faults that would be none (an init of zeros, a tensor whose size is fixed) are not drawn."""
    rng = random.Random(number)
    if axis == "depth":
        return deep_case(number, clean, rng)
    architecture = rng.choice(list(ARCHITECTURES))
    if clean:
        return Case(number, architecture, None)
    fault = rng.choice(FAULTS)
    if fault == "attention":
        return Case(number, HEADS_GROW, fault)
    lines = [line for line in plan_of(architecture, 2 * BASE) if possible(fault, line)]
    if not lines:
        return Case(number, architecture, "lr", template(plan_of(architecture, 2 * BASE).names()[0]), 0.5)
    tensor = rng.choice(sorted({template(line.name) for line in lines}))
    return Case(number, architecture, fault, tensor, rng.choice(POWERS))


def deep_case(number: int, clean: bool, rng: random.Random) -> Case:
    architecture = rng.choice(list(DEEP))
    if clean:
        return Case(number, architecture, None)
    fault = rng.choice(DEPTH_FAULTS)
    lines = [line for line in plan_of(architecture, 2 * BASE_DEPTH) if possible_in_depth(fault, line)]
    tensor = rng.choice(sorted({template(line.name) for line in lines}))
    return Case(number, architecture, fault, tensor, rng.choice(POWERS))


def possible_in_depth(fault: str, line: ParamPlan) -> bool:
    if line.place is Place.OUTSIDE or line.place is None:
        return False
    if fault == "branch missed":
        return line.place is Place.TERMINAL and line.role is Role.HIDDEN
    return possible(fault, line)


def possible(fault: str, line: ParamPlan) -> bool:
    drawn = line.base_law.centred
    readout = line.role is Role.OUTPUT
    return {
        "lr": line.role is not Role.SCALAR and seen(line),
        "init": line.role is not Role.SCALAR and drawn,
        "eps": line.role is not Role.SCALAR,
        "decay": line.role is not Role.SCALAR,
        "swapped role": line.role in (Role.HIDDEN, Role.INPUT) and drawn,
        "readout left alone": readout,
        "doubled multiplier": readout,
        "lr not folded": readout,
    }[fault]


def seen(line: ParamPlan) -> bool:
    """A key's bias moves nothing: softmax does not see it."""
    return not line.name.endswith(("k.bias", "key.bias", "k_proj.bias"))


def broken(line: ParamPlan, case: Case) -> ParamPlan:
    m = line.m_depth if case.architecture in DEEP else max(line.m_in, line.m_out)
    factor = m**case.power
    if case.fault in ("lr", "eps"):
        return replace(line, **{case.fault: getattr(line, case.fault) * factor})
    if case.fault == "decay":
        return replace(line, weight_decay=line.weight_decay * factor)
    if case.fault == "init":
        return replace(line, init_factor=line.init_factor * factor)
    if case.fault == "swapped role":  # lr, eps and decay of the other one
        back = m if line.role is Role.HIDDEN else 1 / m
        return replace(line, lr=line.lr * back, weight_decay=line.weight_decay / back)
    if case.fault in ("readout left alone", "branch missed"):
        return replace(line, lr=1.0, eps=1.0, weight_decay=1.0, init_factor=1.0)
    if case.fault == "doubled multiplier":
        return replace(line, lr=line.lr / m, weight_decay=line.weight_decay * m, init_factor=line.init_factor / m)
    assert case.fault == "lr not folded"
    return replace(line, lr=line.lr * m)


def make(case: Case, size: int, width: int = BASE) -> nn.Module:
    """Of a size; over depth at a width too, whose rules are the check's base."""
    torch.manual_seed(torch.initial_seed() + case.seed)
    deep = DEEP.get(case.architecture)
    model = builder(case.architecture)(size) if deep is None else deep(width, size)
    plan = plan_of(case.architecture, size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            line = broken(plan[name], case) if case.hit(name) else plan[name]
            parameter.mul_(line.init_factor)
    if case.fault != "attention":
        for site in plan.attention:
            setattr(model.get_submodule(site.module), site.attribute, site.value)
    return model


def make_optimizer(case: Case, model: nn.Module, size: int) -> torch.optim.Optimizer:
    groups = []
    for name, parameter in model.named_parameters():
        line = plan_of(case.architecture, size)[name]
        line = broken(line, case) if case.hit(name) else line
        rates = {"lr": LR * line.lr, "eps": 1e-8 * line.eps, "weight_decay": DECAY * line.weight_decay}
        groups.append({"params": [parameter], **rates})
    return torch.optim.AdamW(groups)


def check(case: Case) -> dict[str, Any]:
    deep = case.architecture in DEEP
    given: dict[str, Any] = {"depths": DEPTHS, "parameterization": "completep"} if deep else {"widths": WIDTHS}
    given["scale"] = "head_dim" if case.architecture == HEADS_GROW else "heads"
    began = time.process_time()
    report = mt.coord_check(
        (lambda width, depth: make(case, depth, width)) if deep else (lambda width: make(case, width)),
        make_optimizer=lambda model, size: make_optimizer(case, model, size),
        seeds=SEEDS,
        **given,
    )
    named = report.culprits[0].name if report.culprits else None
    return {
        "axis": report.axis,
        "number": case.number,
        "architecture": case.architecture,
        "fault": case.fault,
        "tensor": case.tensor,
        "power": case.power,
        "verdict": report.verdict,
        "doubt": report.doubt,
        "culprit": named,
        "named": named is not None and (template(named.partition(" (")[0]) == case.tensor or case.fault == "attention"),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


# --- what came out ------------------------------------------------------------------------------------------------


def at_least(k: int, n: int, level: float = 0.95) -> float:
    """The one-sided lower bound of a probability, k of n having been seen (Clopper and Pearson 1934)."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        low, high = (p, high) if tail < 1 - level else (low, p)
    return low if k else 0.0


def summary(rows: list[dict[str, Any]]) -> str:
    faults = [row for row in rows if row["fault"]]
    clean = [row for row in rows if not row["fault"]]
    decided = [row for row in faults if row["verdict"] != "undecided"]
    found = [row for row in decided if row["verdict"] == "fail"]
    named = [row for row in found if row["named"]]
    settled = [row for row in clean if row["verdict"] != "undecided"]
    passed = [row for row in settled if row["verdict"] == "pass"]

    def share(words: str, k: int, n: int) -> str:
        return f"{words}: {k} of {n}" + (f" ({k / n:.1%}, at least {at_least(k, n):.1%})" if n else "")

    lines = [
        share("faults found, of those decided", len(found), len(decided)),
        share("culprit named first, of those found", len(named), len(found)),
        share("right code passed, of that decided", len(passed), len(settled)),
        f"undecided: {len(faults) - len(decided)} of {len(faults)} faults, "
        f"{len(clean) - len(settled)} of {len(clean)} right ones",
        f"CPU-seconds a check: {sum(row['cpu_seconds'] for row in rows) / max(1, len(rows)):.1f}",
    ]
    missed = [row for row in decided if row not in named] + [row for row in settled if row not in passed]
    lines += [
        f"  {row['number']} {row['architecture']}: {row['fault'] or 'right'} {row['tensor']} ^{row['power']:g} -> "
        f"{row['verdict']}, {row['culprit']}"
        for row in missed
    ]
    return "\n".join(lines)


def of_axis(rows: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["axis"] == axis]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/seeded_faults.jsonl"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop cleanly after so many")
    parser.add_argument("--shard", default="0/1", help="every N-th case, beginning with the I-th: I/N")
    parser.add_argument("--axis", choices=("width", "depth"), default="width")
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--clean", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    began, (shard, shards) = time.monotonic(), map(int, arguments.shard.split("/"))
    cases = [(number, clean) for number in range(max(arguments.faults, arguments.clean)) for clean in (False, True)]
    done = {(row["number"], row["fault"] is None) for row in of_axis(read(arguments.out), arguments.axis)}
    for number, clean in cases[shard::shards]:
        if number >= (arguments.clean if clean else arguments.faults) or (number, clean) in done:
            continue
        if time.monotonic() - began > arguments.seconds:
            print(f"Stopped after {arguments.seconds:g} s; run the same command to go on.")
            break
        row = check(case_of(number, clean, arguments.axis)) | {"commit": environment()["commit"]}
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            {name: row[name] for name in ("architecture", "fault", "tensor", "power", "verdict", "culprit")}, flush=True
        )
    for axis in ("width", "depth"):
        if rows := of_axis(read(arguments.out), axis):
            print(f"over {axis}:\n{summary(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
