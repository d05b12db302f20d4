"""A killed run goes on bitwise; a file that is damaged, foreign or of another run is refused and left alone."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mutransfer.errors import RunError
from mutransfer.train.data import Data, build_data
from mutransfer.train.loop import Outcome, train
from mutransfer.train.models import build_model

MakeRun = Callable[..., tuple[nn.Module, torch.optim.Optimizer, Data]]


class KilledError(Exception):
    pass


def gpt_run(**model: Any) -> tuple[nn.Module, torch.optim.Optimizer, Data]:
    """A decoder with dropout: its run depends on the random state too."""
    data = build_data({"name": "synthetic", "task": "tokens", "batch_size": 2, "seq_len": 8}, {"name": "gpt"})
    torch.manual_seed(0)
    built = build_model({"name": "gpt", "width": 32, "depth": 1, "dropout": 0.2, **model}, data.info)
    groups = [
        {"params": [p], "lr": 1e-2 / (i + 1), "param_names": [n]} for i, (n, p) in enumerate(built.named_parameters())
    ]
    return built, torch.optim.AdamW(groups, fused=True), data


def gpt_config(**settings: Any) -> dict[str, Any]:
    settings = {"steps": 24, "checkpoint_every": 5, "eval_every": 8, "eval_batches": 2, **settings}
    return {"model": {"name": "gpt"}, "optimizer": {"lr": 1e-2, "betas": [0.9, 0.95]}, "train": settings, "seed": 3}


def killed_after(step: int, path: Path, config: dict[str, Any]) -> None:
    model, optimizer, data = gpt_run()
    batch = data.batch

    def dying(at: int, *, seed: int) -> tuple[Tensor, ...]:
        if at == step:
            raise KilledError
        return batch(at, seed=seed)

    data.batch = dying  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        train(model, optimizer, data, config, checkpoint=path)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def resumed(path: Path, config: dict[str, Any]) -> tuple[Outcome, Tensor]:
    model, optimizer, data = gpt_run()
    torch.manual_seed(12345)
    return train(model, optimizer, data, config, checkpoint=path, resume=True), weights(model)


def test_a_killed_run_goes_on_bitwise(tmp_path: Path) -> None:
    model, optimizer, data = gpt_run()
    whole = train(model, optimizer, data, gpt_config())
    killed_after(13, tmp_path / "last.pt", gpt_config())
    outcome, after = resumed(tmp_path / "last.pt", gpt_config())
    assert torch.equal(after, weights(model))
    assert outcome == whole


def test_without_the_random_state_it_would_not_be_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, data = gpt_run()
    train(model, optimizer, data, gpt_config())
    killed_after(13, tmp_path / "last.pt", gpt_config())
    monkeypatch.setattr("mutransfer.train.checkpoint._restore_rng", lambda state: None)
    assert not torch.equal(resumed(tmp_path / "last.pt", gpt_config())[1], weights(model))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model, optimizer, data = gpt_run()
    first = train(model, optimizer, data, gpt_config(), checkpoint=tmp_path / "last.pt")
    before = weights(model)
    outcome, after = resumed(tmp_path / "last.pt", gpt_config())
    assert outcome == first
    assert torch.equal(after, before)


def test_the_device_and_the_folder_may_change_between_two_parts_of_a_run(tmp_path: Path) -> None:
    killed_after(13, tmp_path / "last.pt", {**gpt_config(), "device": "cuda", "run_dir": "a"})
    assert resumed(tmp_path / "last.pt", {**gpt_config(), "device": "cpu", "run_dir": "b"})[0].status == "done"


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"seed": 4}, "belongs to another run: seed is 3 there and 4 here"),
        ({"optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}}, "optimizer.lr is 0.01 there and 0.001 here"),
        ({"optimizer": {"lr": 1e-2, "betas": [0.9, 0.99]}}, "optimizer.betas"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, other: dict[str, Any], sentence: str) -> None:
    killed_after(6, tmp_path / "last.pt", gpt_config())
    with pytest.raises(RunError, match=sentence):
        resumed(tmp_path / "last.pt", {**gpt_config(), **other})


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    killed_after(6, tmp_path / "last.pt", gpt_config())
    model, optimizer, data = gpt_run(width=64)
    with pytest.raises(RunError, match="does not fit this model"):
        train(model, optimizer, data, gpt_config(), checkpoint=tmp_path / "last.pt", resume=True)


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_damaged_foreign_or_malicious_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    killed_after(6, tmp_path / "last.pt", gpt_config())
    good = (tmp_path / "last.pt").read_bytes()
    files = {
        "half.pt": good[: len(good) // 2],
        "flipped.pt": good[:100] + bytes(200) + good[300:],
        "empty.pt": b"",
        "text.pt": b"not a checkpoint",
        "pickle.pt": pickle.dumps(_Payload()),
    }
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(_Payload(), tmp_path / "malicious.pt")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "malicious.pt"):
        with pytest.raises(RunError, match=f"{name} is not a readable checkpoint"):
            resumed(tmp_path / name, gpt_config())
    for name in ("foreign.pt", "tensor.pt"):
        with pytest.raises(RunError, match="was not written by this version"):
            resumed(tmp_path / name, gpt_config())
    with pytest.raises(RunError, match="Cannot read"):
        resumed(tmp_path, gpt_config())
    assert not (tmp_path / "executed").exists()
    assert (tmp_path / "half.pt").read_bytes() == files["half.pt"]


@pytest.mark.parametrize("part", ["config", "rng", "model", "losses", "seconds"])
def test_a_checkpoint_that_lacks_a_part_is_called_that(tmp_path: Path, part: str) -> None:
    killed_after(6, tmp_path / "last.pt", gpt_config())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    del content[part]
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(RunError, match=f"is not a whole checkpoint: {part} is missing"):
        resumed(tmp_path / "last.pt", gpt_config())


def test_the_time_of_a_resumed_run_counts_all_its_sessions(tmp_path: Path) -> None:
    killed_after(13, tmp_path / "last.pt", gpt_config())
    earlier = torch.load(tmp_path / "last.pt", weights_only=True)["seconds"]
    assert min(earlier) > 0
    assert resumed(tmp_path / "last.pt", gpt_config())[0].earlier == earlier
    assert min(torch.load(tmp_path / "last.pt", weights_only=True)["seconds"]) > max(0, min(earlier))


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    killed_after(6, path, gpt_config())
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"Cannot write .*last.pt: No space left on device. Free some space"):
        resumed(path, gpt_config())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, optimizer, data = gpt_run()
    before = weights(model)
    with pytest.raises(RunError, match="Cannot write"):
        train(model, optimizer, data, gpt_config(), checkpoint=tmp_path / "file" / "last.pt")
    assert torch.equal(weights(model), before)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    outcome, _ = resumed(tmp_path / "new" / "last.pt", gpt_config())
    assert outcome.steps == 24
    assert (tmp_path / "new" / "last.pt").exists()
