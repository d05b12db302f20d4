"""One process per model, with a limit on its time and memory; one line of JSON per model, written for good."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.subjects import Subject

Row = dict[str, Any]
MEMORY = 10 * 2**30
PATIENCE = 20
"""Seconds that a process may wait for a busy machine, per second that it may compute: one that hangs."""


@dataclass
class Job:
    subject: Subject
    pid: int
    pipe: int
    deadline: float
    text: bytes = b""


def read_rows(path: Path) -> list[Row]:
    """What is done; a line that was cut off when its writer died does not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(path: Path, row: Row) -> None:
    """A line that a crash later on cannot take back; after a line that was cut off, on a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_all(subjects: Sequence[Subject], work: Callable[[Subject], Row], jobs: int, seconds: float) -> Iterator[Row]:
    """The rows as they come."""
    waiting, running = list(subjects), list[Job]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_start(waiting.pop(0), work, seconds))
        for job in list(running):
            row = _poll(job, seconds)
            if row is not None:
                running.remove(job)
                yield row
        time.sleep(0.01)


def _start(subject: Subject, work: Callable[[Subject], Row], seconds: float) -> Job:
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        signal.alarm(int(PATIENCE * seconds) + 5)  # should the parent die
        row = work(subject)
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(row))
        os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    return Job(subject, pid, reader, time.monotonic() + PATIENCE * seconds)


def _poll(job: Job, seconds: float) -> Row | None:
    """The row of a job that has ended, or that is ended here because its time is over."""
    try:
        while chunk := os.read(job.pipe, 65536):
            job.text += chunk
    except BlockingIOError:
        if time.monotonic() < job.deadline:
            return None
        os.kill(job.pid, signal.SIGKILL)
    os.close(job.pipe)
    _, status = os.waitpid(job.pid, 0)
    try:
        row: Row = json.loads(job.text)
    except json.JSONDecodeError:
        over = time.monotonic() >= job.deadline or os.WTERMSIG(status) == signal.SIGXCPU
        reason = (
            f"TIME over {seconds:g} s of computing" if over else f"DIED with status {status} (memory over the limit?)"
        )
        return {"model": job.subject.name, "source": job.subject.source, "reason": reason}
    return row
