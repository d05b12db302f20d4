"""Checkpoints: written whole or not at all, read as weights only, refused where they belong to another run."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mutransfer.errors import RunError
from mutransfer.records import cannot_write, check_writable

FORMAT = "mutransfer.checkpoint.1"
_LOCATION = {"device", "run_dir", "resume", "logger", "engine", "search", "subject"}
"""Config keys that say where a run happens, not what it is: they may differ on resume."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands, beside its model and optimizer.

    Attributes:
        step: how many steps are done.
        losses: of each of them.
        evaluations: (step, held-out loss).
        seconds, cpu_seconds: spent until here, over all sessions.
    """

    step: int
    losses: Tensor
    evaluations: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def save(
    path: str | Path, model: nn.Module, optimizer: Optimizer, state: RunState, *, config: Mapping[str, Any]
) -> None:
    """Writes everything that the next step depends on; the file's folder is made.

    Args:
        config: the resolved config; a run with another one will refuse the file.

    Raises:
        RunError: no permission, or a full disk; a checkpoint that was there before is still whole.
    """
    content = {
        "format": FORMAT,
        "step": state.step,
        "losses": state.losses,
        "evaluations": list(state.evaluations),
        "seconds": (state.seconds, state.cpu_seconds),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": _rng_state(),
        "config": _identity(config),
    }
    _write(Path(path), content)


def load(path: str | Path, model: nn.Module, optimizer: Optimizer, *, config: Mapping[str, Any]) -> RunState:
    """Restores model, optimizer and random state in place.

    Raises:
        RunError: a file that is missing, corrupt, not a checkpoint of ours, or of a run with another config.
    """
    content = _read(Path(path))
    _refuse_incomplete(path, content)
    _refuse_other_run(path, content["config"], _identity(config))
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} does not fit this model: {reason} Use another run_dir.") from None
    _restore_rng(content["rng"])
    return RunState(content["step"], content["losses"], tuple(content["evaluations"]), *content["seconds"])


def check_room(path: str | Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Raises RunError now where `save` would only do so after training."""
    tensors = sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    moments = sum(p.nbytes * _moments(group) for group in optimizer.param_groups for p in group["params"])
    check_writable(Path(path).parent, room=tensors + moments)


def _moments(group: Mapping[str, Any]) -> int:
    """How many tensors of a parameter's size the optimizer keeps: Adam's two, or SGD's momentum."""
    return 2 if "betas" in group else int(bool(group.get("momentum")))


def _write(path: Path, state: Mapping[str, Any]) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise RunError(cannot_write(path, error)) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):  # torch would try its older formats, which warn
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise RunError(
            f"{path} is not a readable checkpoint: it is damaged, or holds more than weights. "
            "Delete it, or use another run_dir, to train from the start."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path} was not written by this version of mutransfer's training loop. Use another run_dir.")
    return state


def _refuse_incomplete(path: str | Path, content: Mapping[str, Any]) -> None:
    kinds = {"step": int, "losses": Tensor, "evaluations": list, "seconds": tuple, "config": dict, "rng": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    wrong += [name for name in ("model", "optimizer") if not isinstance(content.get(name), Mapping)]
    if wrong or not isinstance(content["rng"].get("cpu"), Tensor):
        raise RunError(
            f"{path} is not a whole checkpoint: {', '.join(wrong or ['rng'])} is missing or damaged. "
            "Delete it, or use another run_dir, to train from the start."
        )


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without its location, flat, in types that a weights-only file may hold."""
    return dict(_flat("", {key: value for key, value in config.items() if key not in _LOCATION}))


def _flat(prefix: str, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            pairs += _flat(name, value)
        else:
            pairs.append((name, value if isinstance(value, int | float | str | None) else str(list(value))))
    return pairs


def _refuse_other_run(path: str | Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise RunError(
                f"{path} belongs to another run: {key} is {theirs.get(key)} there and {ours.get(key)} here. "
                "Use another run_dir, or the same settings."
            )


def _rng_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_rng(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
