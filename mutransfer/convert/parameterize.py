"""The one call: any model in, parameterized model and Plan out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from mutransfer.apply.clip import clip_grad_norm_
from mutransfer.apply.groups import EPS, make_optimizer, param_groups
from mutransfer.apply.init import initialize
from mutransfer.apply.multipliers import apply_attention, apply_swaps
from mutransfer.apply.names import refuse_unnamed
from mutransfer.convert.wrapped import refuse_wrapped
from mutransfer.errors import AlreadyParameterizedError, ConfigError
from mutransfer.planning.base import BaseSpec
from mutransfer.planning.bsh import is_bsh, width_of_bsh
from mutransfer.planning.data import Form, Init, PlanData
from mutransfer.planning.observe import Observed, observe
from mutransfer.planning.options import Options, make_options
from mutransfer.planning.resolve import resolve
from mutransfer.rules.table import Parameterization

MARK = "_mutransfer"
"""Attribute on every module with parameters of a parameterized model, which names the parameterization: none is applied
twice."""

_SHARDED = "Make the plan of the whole model, on meta if it is large; plan.apply then takes the sharded one."


@dataclasses.dataclass(frozen=True)
class Plan(PlanData):
    """A plan that can be applied. It refers to parameters by name, so it outlives copies, wrappers and sharding."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Changes the model in place: values, softmax scales, forward multipliers. Returns it.

        Raises:
            AlreadyParameterizedError: the model carries a plan, or is not fresh.
            ShapeError: it is not the planned model.
        """
        refuse_parameterized(model)
        initialize(model, self)
        apply_attention(model, self.attention)
        apply_swaps(model, self.swaps)
        for module in model.modules():
            if next(module.parameters(), None) is not None:  # one activation may serve several models
                setattr(module, MARK, self.parameterization)
        return model

    def param_groups(
        self,
        model: nn.Module,
        *unnamed: object,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        eps: float = EPS,
        groups: Iterable[Mapping[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """See `mutransfer.apply.groups.param_groups`."""
        refuse_unnamed("param_groups", unnamed)
        return param_groups(model, self, lr=lr, weight_decay=weight_decay, eps=eps, groups=groups)

    def make_optimizer(
        self,
        model: nn.Module,
        *unnamed: object,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        eps: float = EPS,
        groups: Iterable[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Optimizer:
        """See `mutransfer.apply.groups.param_groups` and `make_optimizer`, which `options` are passed on to."""
        refuse_unnamed("make_optimizer", unnamed)
        made = self.param_groups(model, lr=lr, weight_decay=weight_decay, eps=eps, groups=groups)
        return make_optimizer(self, made, lr=lr, **options)

    def clip_grad_norm_(self, model: nn.Module, max_norm: float, *, group: ProcessGroup | None = None) -> Tensor:
        """See `mutransfer.apply.clip.clip_grad_norm_`."""
        return clip_grad_norm_(model, self, max_norm, group=group)


def plan(
    model: nn.Module,
    parameterization: str | Parameterization,
    *,
    base: BaseSpec | None = None,
    optimizer: str = "adamw",
    base_depth: int | Mapping[str, int] | None = None,
    example_inputs: Any = None,
    factory: Callable[..., nn.Module] | None = None,
    scale: Literal["heads", "head_dim"] = "heads",
    roles: Mapping[str, str] | None = None,
    form: Form = "auto",
    init: Init = "rescale",
    strict: bool = True,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that `parameterize` would apply; nothing is changed. Arguments and errors are the same."""
    options = make_options(
        parameterization,
        optimizer,
        form=form,
        init=init,
        scale=scale,
        roles=roles,
        hyperparameters=hyperparameters,
        strict=strict,
    )
    of = {"base_depth": base_depth, "factory": factory, "example_inputs": example_inputs}
    return plan_of(observe_for(model, options, base, **of), options)


def observe_for(
    model: nn.Module, options: Options, base: BaseSpec | None, *, factory: Callable[..., nn.Module] | None, **of: Any
) -> Observed:
    """See `mutransfer.planning.observe.observe`; what cannot be parameterized is refused."""
    refuse_parameterized(model)
    refuse_wrapped(model, "Parameterize", sharded=_SHARDED)
    if base is None:
        raise ConfigError(
            "base= is missing, the size at which the hyperparameters hold: give a width (with factory=, or for a model "
            "with a config of its own), a dict of config fields, a model of that size, or the path of a saved plan."
        )
    if is_bsh(base):
        base = width_of_bsh(model, base, factory=factory, depth=of.get("base_depth"), scale=options.scale)
    return observe(model, options, base, factory=factory, **of)


def plan_of(seen: Observed, options: Options) -> Plan:
    """The plan of a model that was observed for such options."""
    made = resolve(seen, options)
    return Plan(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})


def parameterize(
    model: nn.Module,
    parameterization: str | Parameterization,
    *,
    base: BaseSpec | None = None,
    optimizer: str = "adamw",
    base_depth: int | Mapping[str, int] | None = None,
    example_inputs: Any = None,
    factory: Callable[..., nn.Module] | None = None,
    scale: Literal["heads", "head_dim"] = "heads",
    roles: Mapping[str, str] | None = None,
    form: Form = "auto",
    init: Init = "rescale",
    strict: bool = True,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Plan:
    """Brings an existing model into a parameterization, in place, and returns the plan of what was done and why.

    >>> import mutransfer as mt, torch
    >>> make = lambda width: torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    >>> model = make(256)
    >>> plan = mt.parameterize(model, "mup", base=64, factory=make)
    >>> optimizer = torch.optim.AdamW(plan.param_groups(model, lr=2**-8, weight_decay=0.1))

    Args:
        model: fresh from its constructor (unless init="keep"), on any device.
        parameterization: a name in `mutransfer.PARAMETERIZATIONS`, or a `Parameterization` of your own.
        base: the size at which the hyperparameters hold: the primary width (with `factory`, or for a model whose class
            takes its own `.config`), a dict of config fields (its widths: what differs from the model's own), a model
            of that size, or the path of a saved plan or of mup's base shapes (`.bsh`; with `factory` or a `.config`).
        optimizer: a name in `mutransfer.OPTIMIZERS`.
        base_depth: the base's number of blocks, for a table with depth rules ("completep", "depth-mup") where base= is
            a width; a dict of config fields where the stacks differ. Any other base has a depth of its own.
        example_inputs: a tensor, tuple or dict that the forward pass accepts; only shapes and dtypes matter.
        factory: width -> model, for a model that cannot be rebuilt from its own config; (width, depth) -> model with
            base_depth=.
        scale: what grows with width in a config: the number of "heads", or "head_dim".
        roles: glob over parameter names -> role, where a role cannot be proven or you know better; under a table with
            depth rules also -> place ("inner", "terminal", "stream norm", "outside").
        form: "folded" (init and lr only; the model's code is untouched), "explicit" (multipliers in the forward pass),
            or "auto": folded where that is exact. All train alike.
        init: "rescale" (the model's own draws, each tensor times one factor), "table" (seeded normal draws, for a model
            that holds nothing yet: after `to_empty`; gains and biases as the constructor fills them, a range filled by
            code stays), or "keep" (a pretrained model: its function is not changed, only optimizer groups are made).
        strict: raise where a role cannot be proven; False guesses from sizes and lists the guesses in the plan.
        hyperparameters: muP's own, tuned on the proxy: {"output_mult": 2, "attn_mult": 1, "embedding_mult": 1,
            "residual_mult": 1, "init_std.hidden": 0.5, "lr.input": 8, "lr.*.bias": 0.5}.

    Raises:
        RuleError: unknown parameterization or optimizer, or a table without the needed column.
        RoleError: a role that cannot be proven; the message names the `roles=` line that settles it.
        ShapeError: base and model have different structure.
        AlreadyParameterizedError: the model carries a plan, or is not fresh.
        ConfigError: no base, or an option or a value out of range.
    """
    made = plan(
        model,
        parameterization,
        base=base,
        optimizer=optimizer,
        base_depth=base_depth,
        example_inputs=example_inputs,
        factory=factory,
        scale=scale,
        roles=roles,
        form=form,
        init=init,
        strict=strict,
        hyperparameters=hyperparameters,
    )
    made.apply(model)
    return made


def refuse_parameterized(model: nn.Module) -> None:
    """Raises AlreadyParameterizedError for a model that carries a plan, has a part that does, or is such a part; and
    ConfigError for what is no model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {model!r}, which is no nn.Module. Give the model itself, built.")
    for name, module in model.named_modules():
        which = f"This model's part {name!r}" if name else "This model"
        if _is_mups(module):
            raise AlreadyParameterizedError(
                f"{which} is made or scaled by microsoft/mup. Build the model plainly: nn.Linear in place of MuReadout "
                "and MuSharedReadout, and no set_base_shapes."
            )
        if hasattr(module, MARK):
            raise AlreadyParameterizedError(
                f"{which} already carries plan {getattr(module, MARK)!r}. Parameterize a fresh model, or use that plan."
            )


def _is_mups(module: nn.Module) -> bool:
    own_class = any(parent.__module__.partition(".")[0] == "mup" for parent in type(module).__mro__)
    return own_class or any(hasattr(parameter, "infshape") for parameter in module.parameters(recurse=False))
