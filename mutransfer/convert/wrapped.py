"""Models that are compiled, wrapped or sharded already: planning and exporting want the model inside, whole."""

from __future__ import annotations

from torch import nn

from mutransfer.apply.names import is_sharded
from mutransfer.errors import ConfigError

_WRAPPERS = ("torch.nn.parallel", "torch.distributed.fsdp", "torch.optim.swa_utils")
"""Where the classes live that hold a model in `.module`."""


def refuse_wrapped(model: nn.Module, what: str, *, sharded: str) -> None:
    """Raises ConfigError for a model that another torch API has taken over.

    Args:
        what: what is to be done with the model inside: "Parameterize".
        sharded: what to do where it is sharded.
    """
    if hasattr(model, "_orig_mod"):
        raise ConfigError(f"The model is compiled. {what} the one inside (model._orig_mod), and compile it afterwards.")
    held = getattr(model, "module", None)
    if isinstance(held, nn.Module) and type(model).__module__.startswith(_WRAPPERS):
        raise ConfigError(
            f"The model is wrapped in {type(model).__name__}. {what} the one inside (model.module), and wrap it "
            "afterwards."
        )
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ConfigError(f"The model is sharded ({name!r} is a {type(parameter.data).__name__}). {sharded}")
