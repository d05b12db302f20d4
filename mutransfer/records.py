"""What a run leaves behind: plain JSON, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from mutransfer.errors import RunError

Status = Literal["done", "diverged", "failed"]
PROBE_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """One finished trial. A trial is a pure function of its resolved config.

    Attributes:
        key: the hash of the resolved config (see `mutransfer.sweep.points`).
        config: the resolved config, nested dicts of JSON values.
        status: "done"; "diverged" (a loss that is not finite, or far above the untrained model's: a result, never
            retried); "failed" (`error` says why).
        train_loss: mean training loss over the last tenth of the steps, in nats; None unless done.
        val_loss: held-out loss after the last step, in nats per token or example; None unless done.
        steps, tokens: how many were trained.
        seconds, cpu_seconds: of this trial alone, over all its sessions where it was resumed.
        parameters: number of trainable parameters.
        environment: python, torch, platform, device, commit, data_sha256.
        history: [step, train_loss] pairs, thinned to at most 200.
        error: why it failed; of a trial that is done, why its checkpoint could not be written.
    """

    key: str
    config: Mapping[str, Any]
    status: Status
    train_loss: float | None = None
    val_loss: float | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    parameters: int = 0
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    history: tuple[tuple[int, float], ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return jsonable(dataclasses.asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Raises RunError where this is not the record of a trial."""
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            values = {name: value for name, value in data.items() if name in known}
            values["history"] = tuple((int(step), float(loss)) for step, loss in values.get("history", ()))
            record = cls(**values)
            numbers = (record.train_loss, record.val_loss, record.seconds)
            whole = (
                record.status in get_args(Status)
                and isinstance(record.config, Mapping)
                and all(number is None or isinstance(number, int | float) for number in numbers)
            )
        except (TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise RunError("This is not the record of a trial: its key, config or status is missing or damaged.")
        return record


def jsonable(value: Any) -> Any:
    """The same value in JSON's types: tuples become lists, and a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def write_text(path: str | Path, text: str) -> Path:
    """Writes the file whole or not at all (a temporary file beside it, then a rename); makes missing folders.

    Raises:
        RunError: no permission, or a full disk.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None
    return path


def check_writable(folder: str | Path, *, room: int = 0) -> None:
    """Makes the folder and writes a little to it, so that a long run does not find out at its end.

    Args:
        room: bytes that will be needed.

    Raises:
        RunError: no permission, a file in the way, or a full disk.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from None
    if free < room:
        raise RunError(
            f"The disk that holds {folder} has {free / 1e6:.1f} MB left, and {room / 1e6:.1f} MB will be written. "
            "Free some space or choose another folder."
        )


def cannot_write(path: Path, error: Exception) -> str:
    """The sentence for a file that cannot be written."""
    system = error if isinstance(error, OSError) else error.__context__  # torch.save hides what the system said
    if isinstance(system, FileExistsError | NotADirectoryError):
        return f"Cannot write {path}: a file stands where a folder is needed. Choose another folder."
    reason = system.strerror if isinstance(system, OSError) else str(error).partition("\n")[0]
    return f"Cannot write {path}: {reason}. Free some space or choose another folder."


def write_json(path: str | Path, value: Any) -> Path:
    return write_text(path, json.dumps(jsonable(value), indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """Raises RunError where the file is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist.") from None
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}); it may be half-written. Write it again.") from None
