"""The init laws of a base and a model by what their values show, where neither can be built again; made exact where
they were measured."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mutransfer.errors import ShapeError
from mutransfer.planning.constructors import POOLED_REBUILDS, read_defaults
from mutransfer.planning.laws import Law, estimate, fits
from mutransfer.planning.sizes import Dim
from mutransfer.planning.stacks import Stacks

Laws = dict[str, Law]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """By name, aliases of tied parameters included."""
    return dict(model.named_parameters(remove_duplicate=False))


def off_zero(law: Law) -> bool:
    """Whether a law draws around another number than 0."""
    return law.kind == "drawn" and not law.centred


def is_vector(dims: Sequence[Dim]) -> bool:
    """Whether a tensor has at most one dimension of more than one entry."""
    return sum(dim.size > 1 for dim in dims) <= 1


def defaults_of(model: nn.Module) -> Laws:
    """The laws that the layers' defaults tell; what none of them fills has no number there."""
    return {name: law for name, law in read_defaults(model).items() if not math.isnan(law.mean)}


def laws_by_values(base: nn.Module) -> Laws:
    """How a fresh model is filled that cannot be built again: its layers' own defaults where its values fit them, else
    what the values show; on meta they show nothing."""
    defaults = defaults_of(base)
    laws = {name: _law_by_values(value, defaults.get(name)) for name, value in parameters_of(base).items()}
    return {name: law for name, law in laws.items() if law is not None}


def _law_by_values(value: Tensor, default: Law | None) -> Law | None:
    if value.is_meta:
        return default
    seen = estimate(value)
    all_equal = seen.kind == "constant" and value.numel() > 1  # which few zeros might pass for a draw
    return default if default is not None and not all_equal and fits(default, value) else seen


def laws_of_vectors(model: nn.Module, dims: Mapping[str, Sequence[Dim]], base: Laws) -> tuple[Laws, Laws]:
    """The laws at the base and in the model of what a table does not fill by itself: gains, biases and the like. The
    model's values are not looked at; the law is the base's, or the layer's own default where that is a draw.

    Raises:
        ShapeError: neither the base nor a layer's default tells; a draw off zero may be a range filled by code.
    """
    vectors = [name for name, row in dims.items() if is_vector(row)]
    unknown = [name for name in vectors if name not in base or (base[name].measured and off_zero(base[name]))]
    if unknown:
        raise ShapeError(
            f"Nothing tells what {unknown[0]!r} is filled with, which init='table' must know. Give factory= (a "
            "function from width to model), so that its init can be read."
        )
    own = {name: law for name, law in defaults_of(model).items() if name in vectors and base[name].kind == "drawn"}
    return {name: base[name] for name in vectors}, {name: own.get(name, base[name]) for name in vectors}


def laws_of_two(
    base: nn.Module, model: nn.Module, dims: Mapping[str, Sequence[Dim]], stacks: Stacks
) -> tuple[Laws, Laws]:
    """The init laws of two fresh models that cannot be built again: each layer's own default where both models' values
    fit it, else what the values show."""
    defaults = stacks.seen_from_model(defaults_of(base)), defaults_of(model)
    values = stacks.seen_from_model(parameters_of(base)), parameters_of(model)
    laws: Laws = {}
    own: Laws = {}
    for name in values[1]:
        pair = [law[name] for law in defaults if name in law]
        if len(pair) == 2 and all(fits(law, value[name]) for law, value in zip(pair, values, strict=True)):
            laws[name], own[name] = pair
        else:
            laws[name] = estimate(values[0][name])
            own[name] = snapped(name, estimate(values[1][name]), laws[name], dims[name])
    return laws, own


def snapped(name: str, own: Law, base: Law, dims: Sequence[Dim]) -> Law:
    """The model's own law with its std as an exact power law from the base's, where both were seen by values alone.

    Raises:
        ShapeError: no law, or more than one, fits within the noise.
    """
    if own.kind != "drawn" or base.kind != "drawn":
        return own
    fitting = _fitting(own, base, dims, draws=1)
    if len(fitting) != 1:
        found = "no usual law" if not fitting else "more than one law"
        raise ShapeError(
            f"The init of {name!r} has std {base.std:.3g} at the base and {own.std:.3g} in the model, which fits "
            f"{found} in width. Give factory= (a function from width to model), so that its init can be read."
        )
    return dataclasses.replace(own, std=base.std * fitting[0])


def exact(own: Laws, base: Laws, dims: Mapping[str, Sequence[Dim]]) -> Laws:
    """Laws that were measured on rebuilt models, made exact where one usual law alone fits what was measured."""
    exact = dict(own)
    for name, law in own.items():
        if law.measured and base[name].measured and law.kind == base[name].kind == "drawn":
            fitting = _fitting(law, base[name], dims[name], draws=POOLED_REBUILDS)
            if len(fitting) == 1:
                exact[name] = dataclasses.replace(law, std=base[name].std * fitting[0])
    return exact


def _fitting(own: Law, base: Law, dims: Sequence[Dim], draws: int) -> list[float]:
    """The ratios of stds within the noise of two measured ones; the laws in use are a constant, 1/sqrt(one dimension's
    size), and Xavier's 1/sqrt(the sum of two)."""
    observed = math.log(own.std / base.std)
    noise = 5 * math.sqrt(sum(0.5 / (draws * math.prod(s)) for s in ([d.size for d in dims], [d.base for d in dims])))
    return [ratio for ratio in _candidates(dims) if abs(math.log(ratio) - observed) < noise]


def _candidates(dims: Sequence[Dim]) -> list[float]:
    ratios = [1.0, *(dim.ratio**-0.5 for dim in dims)]
    for one, other in itertools.combinations(dims, 2):
        ratios.append(math.sqrt((one.base + other.base) / (one.size + other.size)))
    unique: list[float] = []
    for ratio in ratios:
        if all(abs(math.log(ratio / seen)) > 1e-9 for seen in unique):
            unique.append(ratio)
    return unique
