"""Two gloo processes train as one: DDP, FSDP2 and tensor parallelism. Run with `pytest -m slow tests/integrations`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from toy_models import Decoder, token_batches, token_loss

import mutransfer as mt
from mutransfer.apply.names import whole
from mutransfer.errors import ConfigError

STEPS = 20


def planned(form: str, init: str = "rescale"):
    torch.manual_seed(0)
    model = Decoder(32)
    return model, mt.plan(model, "mup", base=16, factory=Decoder, form=form, init=init)


def trained(model: nn.Module, plan, rank: int = 0, share: int = 1, clip=None) -> list[float]:
    """The losses over all data, of which a process sees one share."""
    optimizer = plan.make_optimizer(model, lr=2**-8, weight_decay=0.1)
    losses = []
    for batch in token_batches(STEPS):
        optimizer.zero_grad()
        loss = token_loss(model, tuple(part.chunk(share)[rank % share] for part in batch))
        loss.backward()
        (clip or plan.clip_grad_norm_)(model, 0.3)
        optimizer.step()
        mean = loss.detach() / share
        if share > 1:
            dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def by_name(model: nn.Module, plan) -> dict[str, list[float]]:
    groups = plan.param_groups(model, lr=1.0, weight_decay=0.1)
    return {name: [g["lr"], g["weight_decay"], g["eps"]] for g in groups for name in g["param_names"]}


def fsdp(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def ddp(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


WRAPS = {"ddp": (ddp, 2), "fsdp": (fsdp, 2), "tensor parallel": (tensor_parallel, 1)}


def same_values(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(whole(a), b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def measure(kind: str, form: str, when: str, mesh: DeviceMesh, rank: int) -> dict:
    """One way of wrapping, with the plan applied before or after it."""
    wrap, share = WRAPS[kind]
    (model, plan), (alone, own_plan) = planned(form), planned(form)
    own_plan.apply(alone)
    if when == "before":
        wrapped = wrap(plan.apply(model), mesh)
    else:
        wrapped = plan.apply(wrap(model, mesh))
    found = {
        "same init": same_values(wrapped, alone),
        "same groups": by_name(wrapped, plan) == by_name(alone, own_plan),
        "same plan": not plan.diff(own_plan),
    }
    return {**found, "losses": trained(wrapped, plan, rank, share)}


def from_meta(form: str, mesh: DeviceMesh, rank: int) -> bool:
    """Sharded on meta, made, and drawn by the plan: as the whole model is, also where the ranks' seeds differ."""
    whole_model, plan = planned(form, init="table")
    with torch.device("meta"):
        model = Decoder(32)
    fsdp(model, mesh).to_empty(device="cpu")
    torch.manual_seed(7 + rank)
    plan.apply(model)
    torch.manual_seed(7)
    return same_values(model, plan.apply(whole_model))


def refused(mesh: DeviceMesh) -> str:
    model = fsdp(Decoder(32), mesh)
    try:
        mt.plan(model, "mup", base=16, factory=Decoder)
    except ConfigError as error:
        return str(error)
    return ""


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict = {"refused": refused(mesh)}
    for form in ("folded", "explicit"):
        found[f"meta {form}"] = from_meta(form, mesh, rank)
        for kind in WRAPS:
            for when in ("before", "after"):
                if (kind, when) != ("ddp", "after"):
                    found[f"{kind} {form} {when}"] = measure(kind, form, when, mesh, rank)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, args=(str(folder),), nprocs=2)
    return json.loads((folder / "found.json").read_text())


CASES = [
    (k, f, w) for k in WRAPS for f in ("folded", "explicit") for w in ("before", "after") if (k, w) != ("ddp", "after")
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form", "when"), CASES)
def test_two_processes_train_as_one(found, kind, form, when):
    seen = found[f"{kind} {form} {when}"]
    assert seen["same init"]
    assert seen["same groups"]
    assert seen["same plan"]
    model, plan = planned(form)
    assert seen["losses"] == pytest.approx(trained(plan.apply(model), plan), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_a_model_sharded_on_meta_is_drawn_as_the_whole(found, form):
    assert found[f"meta {form}"]


@pytest.mark.slow
def test_a_sharded_model_is_planned_before(found):
    assert "is sharded" in found["refused"]
    assert "plan.apply then takes the sharded one" in found["refused"]


@pytest.mark.slow
def test_control_without_clipping_it_is_another_run():
    model, plan = planned("folded")
    expected = trained(plan.apply(model), plan)
    model, plan = planned("folded")
    other = trained(plan.apply(model), plan, clip=lambda m, norm: None)
    assert max(abs(a - b) for a, b in zip(expected, other, strict=True)) > 1e-5
