"""A plain model of the same function: what conversion put into the forward pass goes back into the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.apply.multipliers import PLAIN_SCALES, Scaled, make_plain
from mutransfer.convert.parameterize import MARK
from mutransfer.convert.wrapped import refuse_wrapped
from mutransfer.errors import ConfigError, MutransferError, RoleError
from mutransfer.planning.attention import carry
from mutransfer.planning.calls import tensors_in
from mutransfer.planning.carriers import record, scaled
from mutransfer.planning.data import Rows
from mutransfer.planning.inputs import Inputs, find_inputs
from mutransfer.planning.sites import attention_sites
from mutransfer.planning.trace import evaluating, trace

_PROGRAM = "or keep the multiplier and write a program with torch.export.export(model, inputs)"

_Factor = tuple[float, tuple[tuple[Rows, float], ...]]
"""What a module multiplies a parameter by: all of it, and some of its rows."""

_WHOLE = "Load a full state dict into a whole model on which plan.apply was called, and export that."


def export(model: nn.Module, *, example_inputs: Any = None) -> nn.Module:
    """A copy of a parameterized model as its own plain class: no mutransfer class or mark, and the same function.

    Its `state_dict` loads into the class that the model was made from, and `save_pretrained` writes what
    `from_pretrained` reads. A folded model only loses its mark. Forward multipliers go into the weights, and a softmax
    scale that was set goes back to the class's own and into the query projection. That is then checked by running both
    models. Train the original, not the copy: the plan's groups do not fit the copy's weights.

    Args:
        model: parameterized, trained or not. It is left untouched.
        example_inputs: a tensor, tuple or dict that the forward pass accepts, where there are multipliers and inputs
            cannot be guessed.

    Raises:
        ConfigError: the model carries no plan, or it is compiled, wrapped or sharded.
        RoleError: a multiplier that no plain weights stand for; the message names the module.
    """
    _refuse_unplain(model)
    plain = copy.deepcopy(model)
    rewritten = [*_multiplied(plain), *_rescaled(plain)]
    inputs = find_inputs(model, example_inputs) if rewritten else ()
    with torch.no_grad():
        _fold_multipliers(plain)
        _fold_scales(plain, inputs)
    for module in plain.modules():
        module.__dict__.pop(MARK, None)
    if rewritten:
        _check_same(model, plain, inputs, rewritten[0])
    return plain


def _refuse_unplain(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {model!r}, which is no nn.Module. Give the model that was parameterized.")
    refuse_wrapped(model, "Export", sharded=_WHOLE)
    if not any(MARK in vars(module) for module in model.modules()):
        raise ConfigError(
            f"This {type(model).__name__} carries no plan, so there is nothing to take out of it. Give the model that "
            "was parameterized."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ConfigError(f"{name!r} is on the meta device and has no values. {_WHOLE}")


def _multiplied(model: nn.Module) -> Iterator[str]:
    return (name for name, module in model.named_modules() if isinstance(module, Scaled))


def _rescaled(model: nn.Module) -> Iterator[str]:
    return (name for name, module in model.named_modules() if PLAIN_SCALES in vars(module))


def _fold_multipliers(model: nn.Module) -> None:
    """Every parameter times what each of its owners multiplies it by, which must be one number."""
    for name, (tensor, factors) in _factors(model).items():
        if len(set(factors.values())) > 1:
            uses = " and ".join(f"{factor:.4g} in {owner!r}" for owner, (factor, _) in factors.items())
            raise RoleError(
                f"{name!r} is one tensor that is multiplied by {uses}, which no plain tensor can stand for. Untie it "
                f"before it is parameterized, use form='auto', which folds where it can, {_PROGRAM}."
            )
        factor, parts = next(iter(factors.values()))
        tensor.mul_(factor)
        for rows, factor in parts:
            tensor.copy_(scaled(tensor, rows, factor))
    for name, module in model.named_modules():
        if isinstance(module, Scaled):
            _make_plain(name, module)


def _factors(model: nn.Module) -> dict[str, tuple[Tensor, dict[str, _Factor]]]:
    """First name of each parameter -> the tensor, and what each module that owns it multiplies it by."""
    found: dict[int, tuple[str, Tensor, dict[str, _Factor]]] = {}
    for path, module in model.named_modules():
        for local, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{local}" if path else local
            found.setdefault(id(tensor), (name, tensor, {}))[2][name] = _factor(module, local)
    return {name: (tensor, factors) for name, tensor, factors in found.values()}


def _factor(module: nn.Module, local: str) -> _Factor:
    if not isinstance(module, Scaled):
        return 1.0, ()
    own = module._mutransfer_weight if local == "weight" else 1.0
    return module._mutransfer_parameters.get(local, 1.0) * own, module._mutransfer_rows.get(local, ())


def _make_plain(name: str, module: Any) -> None:
    """The module's own class again; what multiplied all that it returns is put into its gain."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None and module._mutransfer_weight != 1.0:
        raise RoleError(
            f"{name!r} is multiplied and keeps its rows below max_norm, which plain weights cannot do: build it with "
            f"max_norm=None, {_PROGRAM}."
        )
    output = module._mutransfer_output
    make_plain(module)
    if output != 1.0:
        _fold_output(name, module, output)


def _fold_output(name: str, module: nn.Module, factor: float) -> None:
    """A gain that enters as 1 + w becomes factor * (1 + w) - 1, and a bias beside it is multiplied."""
    gains = dict(module.named_parameters())
    weight = gains.pop("weight", None)
    if weight is None or any(parameter.ndim != 1 for parameter in gains.values()):
        raise RoleError(
            f"All that {name!r} returns is multiplied by {factor:.4g}, and it has no gain that could hold that: use "
            f"form='auto', which folds where it can, {_PROGRAM}."
        )
    weight.mul_(factor).add_(factor - 1)
    for bias in gains.values():
        bias.mul_(factor)


def _fold_scales(model: nn.Module, inputs: Inputs) -> None:
    """Softmax scales go back to what the class computes; the queries carry what they were multiplied by."""
    scaled_modules = [model.get_submodule(name) for name in _rescaled(model)]
    if not scaled_modules:
        return
    before = attention_sites(trace(model, inputs))
    for module in scaled_modules:
        module.__dict__.update(module.__dict__.pop(PLAIN_SCALES))
    graph = record(model, inputs)
    sites = attention_sites(graph.trace)
    factors = {i: old.scale / site.scale for i, (old, site) in enumerate(zip(before, sites, strict=True))}
    factors = {i: factor for i, factor in factors.items() if not math.isclose(factor, 1.0, rel_tol=1e-9)}
    carried, reasons = carry(graph, factors)
    for i, reason in reasons.items():
        raise RoleError(
            f"The softmax scale of {sites[i].module!r} was multiplied by {factors[i]:.4g}, its class computes its own, "
            f"and {reason}. Convert with a head_dim that does not grow, {_PROGRAM}."
        )
    named = dict(model.named_parameters())
    for one in carried:
        named[one.parameter].copy_(scaled(named[one.parameter], one.rows, one.factor))


@torch.no_grad()
def _check_same(model: nn.Module, plain: nn.Module, inputs: Inputs, rewritten: str) -> None:
    """Raises RoleError where the two models' outputs differ by more than rounding."""
    for one, other in zip(_outputs(model, inputs), _outputs(plain, inputs), strict=True):
        scale = float(torch.linalg.vector_norm(one.double()))
        error = float(torch.linalg.vector_norm(one.double() - other.double()))
        if error > math.sqrt(torch.finfo(one.dtype).eps) * scale:
            raise RoleError(
                f"Plain weights in place of the multiplier of {rewritten!r} change the outputs by {error / scale:.2g}: "
                f"what it multiplies is used elsewhere too. Use form='auto', which folds where it can, {_PROGRAM}."
            )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """What the evaluated model returns in floating point, the same random numbers drawn."""
    device = next(model.parameters()).device
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        with evaluating(model, True), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = model(*_moved(args, device), **_moved(kwargs, device))
    except MutransferError:
        raise
    except Exception as error:  # whatever a foreign forward pass raises
        raise ConfigError(
            f"The forward pass failed on the example inputs ({type(error).__name__}: {error}), so the exported model "
            "cannot be checked. Give example_inputs= that it accepts."
        ) from error
    return [tensor for tensor in tensors_in((out,)) if tensor.is_floating_point()]


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(_moved(value, device) for value in inputs)
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs
