"""timm's models, one of every file: the arguments that its entry point gives to the model's class are the config."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from mutransfer.planning.fields import numbers
from mutransfer.planning.shrink import Shrunk, Sizes, shrink
from mutransfer.planning.widths import discover_widths
from zoo.subjects import NotBuiltError, Small, Subject, Wider, by_fields, by_layers, from_config, images

SIDES = (32, 64, 128, 224)
BATCH = 4  # BatchNorm needs more than one value a channel


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for image transforms, which no model here needs: an empty module in its place."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision") else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _anything  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Open(type):
    """A class with every attribute."""

    def __getattr__(cls, name: str) -> Any:
        return _anything(name)


def _anything(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Open(name, (nn.Module,), {})


def load_timm() -> Any:
    """timm, without torchvision; transformers, imported before, does not see the stand-in."""
    warnings.filterwarnings("ignore")
    finder = StandIn()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("timm")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]


def timm_subjects() -> Iterator[Subject]:
    """The first model of each of timm's files."""
    import transformers  # noqa: F401  (looks for torchvision once, before the stand-in)

    try:
        timm = load_timm()
    except ImportError:
        return
    for module in sorted(timm.list_modules()):
        names = timm.list_models(module=module)
        if names:
            yield Subject(names[0], "timm", lambda name=names[0]: _small(timm, name))  # type: ignore[misc]


class Arguments(types.SimpleNamespace):
    """What a model's class is called with."""


def _small(timm: Any, name: str) -> Small:
    model_class, arguments = _call_of(timm, name)

    def build(config: Any) -> nn.Module:
        return model_class(**copy.deepcopy(vars(config)))  # some take their lists apart

    shrunk, wider, side = _shrink(arguments, build)
    width = shrunk.sizes.width
    make, deep = from_config(shrunk.config, width, wider)
    notes = {"class": model_class.__name__, "kept": list(shrunk.kept), **wider.notes}
    return Small(width, make, images(BATCH, side), notes, deep)


def _shrink(arguments: Arguments, build: Callable[[Any], nn.Module]) -> tuple[Shrunk, Wider, int]:
    """A config, what makes it wider, and the side of its images. Tiny and by its fields; where that fails, by its
    layers, tiny or as it is; by its fields as it is comes last, since those may be of a stem alone.

    Raises:
        ShapeError: all fail; it is the first failure.
    """
    found: list[Wider] = []
    sides: list[int] = []

    def accept(config: Any, find: Callable[[Any, Callable[[nn.Module], int]], Wider]) -> None:
        own = _own_side(config)
        found[:] = [find(config, lambda model: _side(model.eval(), own))]
        sides[:] = [max(_side(found[0].build(found[0].at(config, k), k).eval(), own) for k in (1, 2))]

    def fields(config: Any, run: Callable[[nn.Module], int]) -> Wider:
        return by_fields(discover_widths(config, build, run=lambda wider: run(build(wider))), build)

    def layers(config: Any, run: Callable[[nn.Module], int]) -> Wider:
        return by_layers(config, build, run, kept={vars(config).get(name) for name in ("num_classes", "in_chans")})

    failures: list[Exception] = []
    for find, smaller in ((fields, True), (layers, True), (layers, False), (fields, False)):
        try:
            shrunk = _accepted(arguments, functools.partial(accept, find=find), smaller=smaller)
            return shrunk, found[0], sides[0]
        except Exception as error:  # whatever a foreign constructor or forward pass raises
            failures.append(error)
    raise failures[0]


def _accepted(arguments: Arguments, accept: Callable[[Any], None], *, smaller: bool) -> Shrunk:
    """Tiny, or as it is."""
    if smaller:
        return shrink(arguments, accept)
    accept(arguments)
    return Shrunk(arguments, Sizes(), ())


def _call_of(timm: Any, name: str) -> tuple[Any, Arguments]:
    """The class and all arguments, defaults included, of an entry point's one call."""
    entry = timm.models.model_entrypoint(name)
    calls: list[tuple[Any, dict[str, Any]]] = []

    def record(model_class: Any, variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
        config = kwargs.pop("model_cfg", None)  # of families whose classes take a config, called cfg
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "feature_cfg", "pretrained_strict",
                    "pretrained_filter_fn", "kwargs_filter", "features_only"):  # fmt: skip
            kwargs.pop(key, None)
        takes_config = "cfg" in inspect.signature(model_class.__init__).parameters
        if "cfg" not in kwargs and (config is not None or takes_config):
            configs = getattr(sys.modules[entry.__module__], "model_cfgs", {})
            kwargs["cfg"] = configs.get(config or variant) if config is None or isinstance(config, str) else config
        calls.append((model_class, kwargs))
        return nn.Identity()

    with mock.patch.object(sys.modules[entry.__module__], "build_model_with_cfg", record):
        entry(pretrained=False)
    if not calls:
        raise NotBuiltError("its entry point does not go through timm's builder")
    model_class, given = calls[0]
    parameters = inspect.signature(model_class.__init__).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    own = timm.get_pretrained_cfg(name)
    by_builder = {"in_chans": 3, "num_classes": 1000} | (
        {"img_size": own.input_size[-1]} if own.fixed_input_size else {}
    )
    given = {n: value for n, value in by_builder.items() if n in parameters} | given
    return model_class, Arguments(**{**defaults, **given})


def _side(model: nn.Module, own: int | None) -> int:
    """The image's side that the model was built for; else the smallest that it takes, in training too. Raises the first
    failure."""
    failure: Exception | None = None
    for side in dict.fromkeys([own, *SIDES] if own else SIDES):
        try:
            with torch.no_grad():
                model(torch.randn(BATCH, 3, side, side))
            return side
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _own_side(config: Arguments) -> int | None:
    return max(numbers(getattr(config, "img_size", None)), default=None)
