"""What a run leaves behind: plain JSON, written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from mutransfer.errors import RunError

Status = Literal["done", "diverged", "failed"]
PROBE_BYTES = 2**16
_FREE = "Free some space or choose another folder."
_LARGER = "Allow larger files (`ulimit -f unlimited`, where the shell limits them) or choose another folder."
_PERMIT = "Change its permissions or choose another folder."
_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: _LARGER,
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
}
"""What helps where the system refuses to write; for any other reason, another place."""


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

    Half a surrogate pair, which UTF-8 cannot hold and a text of others may, is written as its escape.

    Raises:
        RunError: no permission, or a full disk.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
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
        room: bytes of one file that will be needed.

    Raises:
        RunError: no permission, a file in the way, a full disk, or a limit on the size of files.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from None
    if free < room:
        raise RunError(
            f"The disk that holds {folder} has {free / 1e6:.1f} MB left, and {room / 1e6:.1f} MB will be written. "
            f"{_FREE}"
        )
    if (largest := _largest_file()) < room:
        raise RunError(
            f"A file may have {largest / 1e6:.1f} MB here, and one of {room / 1e6:.1f} MB will be written to {folder}. "
            "Allow larger files: `ulimit -f unlimited` in the shell."
        )


def probe(folder: Path, offset: int = 0) -> None:
    """Writes a little to a file that is gone at once, behind so many bytes that take no room.

    Raises:
        OSError: as the system says it.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.seek(offset)
        stream.write(bytes(PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def _largest_file() -> float:
    """Bytes that this process may write to one file."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def cannot_write(path: Path, error: Exception) -> str:
    """The sentence for a file that cannot be written."""
    system = error if isinstance(error, OSError) else error.__context__  # torch.save hides what the system said
    if isinstance(system, FileExistsError | NotADirectoryError):
        return f"Cannot write {path}: a file stands where a folder is needed. Choose another folder."
    if isinstance(system, OSError):
        return f"Cannot write {path}: {system.strerror}. {remedy(system)}"
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"Cannot write {path}: {reason}. Choose another folder."


def remedy(error: OSError, otherwise: str = "Choose another folder.") -> str:
    """What helps where the system refuses to write, in one sentence."""
    return _REMEDIES.get(error.errno or 0, otherwise)


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


def archive_damage(path: Path) -> str:
    """What is wrong with a checkpoint, which is a zip archive, as the rest of a sentence; empty where it is whole.

    Read through once against its checksums, without torch and without memory for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return "is damaged" if archive.testzip() else ""
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return "is cut off or damaged"
