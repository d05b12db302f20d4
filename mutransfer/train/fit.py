"""Whether a model and a data set fit each other, tried with a few examples before anything is planned or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError
from mutransfer.train.data.protocol import Batch, Data
from mutransfer.train.device import find_device
from mutransfer.train.precision import find_precision

EXAMPLES = 2
"""More than one, so that a missing batch dimension shows."""


def check_fit(model: nn.Module, data: Data, config: Mapping[str, Any]) -> None:
    """One forward pass in evaluation mode, as training would make it; the model is left on the config's device.

    Raises:
        ConfigError: the model cannot take the inputs, or what it returns are no predictions of the targets.
    """
    device, precision = find_device(config["device"]), find_precision(config["precision"]["name"])
    inputs, targets = _examples(data)
    with torch.no_grad(), precision.context(device):
        try:
            output = model.to(device).eval()(inputs.to(device))
        except Exception as error:  # whatever a foreign forward pass raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
            raise ConfigError(
                f"{_names(config)} do not fit: on inputs of shape {tuple(inputs.shape)} and type {inputs.dtype}"
                f"{_largest(data)} the model's forward pass failed ({reason}). Change the model or the data."
            ) from error
    if not _predicts(output, targets, data.info.outputs):
        raise ConfigError(
            f"{_names(config)} do not fit: the model returned {_shown(output)} for {len(inputs)} examples, and "
            f"{_wanted(targets, data.info.outputs)} is expected. Change what the model returns, or the data."
        )


def _examples(data: Data) -> Batch:
    """A few real ones, the largest token among them: a short text may not hold it, and later batches will."""
    inputs, targets = (part[:EXAMPLES].clone() for part in data.batch(0, seed=0))
    if data.info.vocab_size is not None:
        inputs[:, 0] = data.info.vocab_size - 1
    return inputs, targets


def _predicts(output: object, targets: Tensor, outputs: int) -> bool:
    if not isinstance(output, Tensor):
        return False
    if targets.is_floating_point():
        return output.shape == targets.shape
    return output.dim() > 1 and output.shape[-1] >= outputs and output[..., 0].numel() == targets.numel()


def _wanted(targets: Tensor, outputs: int) -> str:
    if targets.is_floating_point():
        return f"a tensor of shape {tuple(targets.shape)}, the targets' own,"
    return f"a tensor of logits of shape {(*targets.shape, outputs)}"


def _shown(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"


def _largest(data: Data) -> str:
    return f", token ids up to {data.info.vocab_size - 1}," if data.info.vocab_size is not None else ""


def _names(config: Mapping[str, Any]) -> str:
    model, data = config["model"], config["data"]["name"]
    return f"{'model.path=' + model['path'] if 'path' in model else 'model=' + model['name']} and data={data}"
