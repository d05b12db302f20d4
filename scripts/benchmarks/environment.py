"""Where a number was made."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from mutransfer.sweep.trial import environment


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"


def describe(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit, as JSON values."""
    made = environment()
    return {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": made["python"],
        "torch": made["torch"],
        "cuda": torch.version.cuda,
        "commit": made["commit"],
    }
