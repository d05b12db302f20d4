"""Where a trial runs."""

from __future__ import annotations

import torch

from mutransfer.errors import ConfigError


def find_device(name: str = "auto") -> torch.device:
    """The device of a config: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: not a device's name, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name} is no device. Use auto, cpu, cuda, cuda:1 and the like, or mps.") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device={name} cannot be used here ({reason}). Use device=auto or device=cpu.") from None
    return device
