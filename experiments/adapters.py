"""The claim: adapters of peft on a frozen model get the learning rates that the width check asks for, and one lr for
all passes only for those that train vectors alone.

Usage: python experiments/adapters.py [--out FILE] [--seconds S] [--only WORD]

Every method is checked on two models at four widths, with the plan's groups (init="keep", the check's own control
beside it) and with one AdamW group. A case takes 10 to 60 CPU-seconds and is durable at once: run the same command
again and it goes on.

A model that was never trained stands for a pretrained one in the one thing that the law needs: its activations have the
same size at every width, so its weights are drawn with std width^-1/2. transformers' own 0.02 at every width would make
the inner activations of Llama's MLP grow in proportion to the width, and the check would say so of its adapters.

What theory says, for x of size 1 in n entries, and Adam's steps of size lr in every entry:
- B A x (LoRA, rsLoRA, DoRA, PiSSA, GraLoRA): A is contracted with x, and its change is aligned with x, so A's lr falls
  as 1/n; A x is r numbers of size 1, so B's does not change (Hayou et al. 2024, arXiv:2402.12354).
- A vector that multiplies activations, and rows put in front of the sequence: their lr does not change.
- AdaLoRA: B E A x, as LoRA with a vector E between, but peft draws A with std 0.02 at every width, so A x grows as
  n^1/2, and with it what E and B do. With A drawn with std n^-1/2 it passes.
- MiSS: M applied to sums of n / r entries of x. Such a sum grows as n^1/2 where x has mean 0, and as n where it has not
  (behind a ReLU), so no power of the width is right for M everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn
from torch.optim import AdamW, Optimizer

import mutransfer as mt
from mutransfer.check import CoordReport
from mutransfer.sweep.trial import environment

WIDTHS, SEEDS, LR, RANK = [64, 128, 256, 512], 4, 2**-10, 8


def llama(width: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        initializer_range=width**-0.5,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2(width: int) -> nn.Module:
    size = {"n_embd": width, "n_layer": 2, "n_head": width // 16, "n_positions": 32, "initializer_range": width**-0.5}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, **size))


MODELS: Mapping[str, Callable[[int], nn.Module]] = {"llama": llama, "gpt2": gpt2}
TARGETS = {"llama": ["v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def lora(targets: list[str], **options: Any) -> peft.PeftConfig:
    return peft.LoraConfig(r=RANK, target_modules=targets, **options)


def adalora(targets: list[str]) -> peft.PeftConfig:
    schedule = {"init_r": RANK, "target_r": RANK // 2, "total_step": 100, "tinit": 50, "tfinal": 10}
    return peft.AdaLoraConfig(target_modules=targets, **schedule)


def prompt(_: list[str]) -> peft.PeftConfig:
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)


@dataclass(frozen=True)
class Method:
    """One kind of adapter.

    Attributes:
        config: module names -> peft's config.
        plan, one: the verdict that theory asks for with the plan's groups, and with one lr for all.
        falling: A is drawn with std width^-1/2 instead of peft's own.
    """

    config: Callable[[list[str]], Any]
    plan: str = "pass"
    one: str = "fail"
    falling: bool = False


METHODS: Mapping[str, Method] = {
    "lora": Method(lora),
    "dora": Method(lambda targets: lora(targets, use_dora=True)),
    "pissa": Method(lambda targets: lora(targets, init_lora_weights="pissa")),
    "gralora": Method(lambda targets: peft.GraloraConfig(r=RANK, gralora_k=2, target_modules=targets)),
    "rslora": Method(lambda targets: lora(targets, use_rslora=True)),
    "adalora, A drawn with width": Method(adalora, falling=True),
    "ia3": Method(lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=targets[1:]), one="pass"),
    "prompt tuning": Method(prompt, one="pass"),
    "vera": Method(lambda targets: peft.VeraConfig(r=RANK, target_modules=targets[:1]), one="pass"),
    "adalora": Method(adalora, plan="fail"),
    "miss": Method(lambda targets: peft.MissConfig(r=RANK, target_modules=targets), plan="fail"),
}


def adapted(model: str, method: str) -> Callable[[int], nn.Module]:
    """Width -> that model with that adapter; only the adapter is trained."""

    def build(width: int) -> nn.Module:
        adapter: nn.Module = peft.get_peft_model(MODELS[model](width), METHODS[method].config(TARGETS[model]))
        if METHODS[method].falling:
            with torch.no_grad():
                for name, parameter in adapter.named_parameters():
                    if "lora_A" in name:
                        parameter.normal_(std=parameter.shape[-1] ** -0.5)
        return adapter

    return build


def one_lr(model: nn.Module, width: int) -> Optimizer:
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)


def check(model: str, method: str, lrs: str, widths: list[int] = WIDTHS, seeds: int = SEEDS) -> CoordReport:
    """With the plan's groups, or with one lr for all."""
    chosen = {"make_optimizer": one_lr} if lrs == "one" else {"lr": LR}
    return mt.coord_check(adapted(model, method), widths=widths, seeds=seeds, init="keep", **chosen)


def row_of(model: str, method: str, lrs: str) -> dict[str, Any]:
    report = check(model, method, lrs)
    control = report.control and {"name": report.control.name, "verdict": report.control.verdict}
    changes = [slope for slope in report.judged if slope.at_most is None]
    farthest = max(changes, key=lambda slope: abs(slope.off))
    return {
        "model": model,
        "method": method,
        "lrs": lrs,
        "verdict": report.verdict,
        "expected": getattr(METHODS[method], lrs),
        "tensors": len({slope.parameter for slope in changes}),
        "farthest": {name: _rounded(getattr(farthest, name)) for name in ("name", "value", "low", "high", "law")},
        "control": control,
        "widths": list(report.widths),
        "seeds": report.seeds,
        "lr": report.lr,
        "cpu_seconds": round(report.cpu_seconds, 1),
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "commit": environment()["commit"],
    }


def _rounded(value: Any) -> Any:
    return value if isinstance(value, str) else round(float(value), 3)


def cases() -> Iterator[tuple[str, str, str]]:
    for lrs in ("plan", "one"):
        yield from ((model, method, lrs) for method in METHODS for model in MODELS)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(rows: list[dict[str, Any]]) -> str:
    as_expected = sum(row["verdict"] == row["expected"] for row in rows)
    others = [f"{r['model']} {r['method']} {r['lrs']}: {r['verdict']}" for r in rows if r["verdict"] != r["expected"]]
    return "\n".join([f"{as_expected} of {len(rows)} verdicts are what theory asks for", *others])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.jsonl")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", default="", help="cases whose model, method and lrs hold this word")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    done = {(row["model"], row["method"], row["lrs"]) for row in read(arguments.out)}
    for case in (case for case in cases() if case not in done and arguments.only in " ".join(case)):
        if time.monotonic() - began > arguments.seconds:
            print(f"Stopped after {arguments.seconds:g} s; run the same command to go on.")
            break
        row = row_of(*case)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: row[name] for name in ("model", "method", "lrs", "verdict", "expected", "seeds")}, flush=True)
    print(summary(read(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
