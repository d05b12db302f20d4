"""The names that worker processes have in the store, and whether such a process still lives."""

from __future__ import annotations

import os
import socket


def worker_name(pid: int | None = None) -> str:
    """Names a process of this machine so that a later driver can see whether it still lives."""
    return f"{socket.gethostname()}:{pid or os.getpid()}"


def may_be_alive(worker: str) -> bool:
    """False only where it was a process of this machine and is gone."""
    host, _, pid = worker.rpartition(":")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
