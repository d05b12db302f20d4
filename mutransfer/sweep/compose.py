"""Overrides as people type them -> resolved, checked configs. Hydra composes the groups once; values are merged in."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import __version__ as hydra_version
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from mutransfer.errors import ConfigError, nearest
from mutransfer.sweep.arithmetic import expand
from mutransfer.sweep.validate import free_keys, numeric_keys

USUAL_DATA = {"mlp": "digits", "resnet": "digits", "vit": "digits"}


def config_dir() -> Path:
    """The folder of our YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"The configs folder is missing beside {package}. Install mutransfer again.")


@dataclass(frozen=True)
class Composer:
    """One root config (`train`, `sweep`, ...) and the folders it is made from.

    Attributes:
        root: the name of the root YAML.
        user_dir: a folder of the user's own groups and experiments, searched besides ours.
    """

    root: str
    user_dir: Path | None = None
    _composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.user_dir is not None and not self.user_dir.is_dir():
            raise ConfigError(f"--config-dir {self.user_dir} is not a folder. Give the folder of your own YAML groups.")

    def groups(self) -> dict[str, list[str]]:
        """Every config group and its options, the user's own included."""
        return _groups(self.user_dir)

    def groups_in(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        """The groups that a config of this root is made of, and experiments where they mean something to it."""
        experiments = () if self.root == "transfer" else ("experiment",)
        return {name: options for name, options in self.groups().items() if name in (*config, *experiments)}

    def points(self, overrides: Iterable[str]) -> list[list[str]]:
        """The grid that these overrides span: one list of plain overrides per point."""
        try:
            (batch,) = BasicSweeper.split_arguments([*self._parse(overrides)], None)
        except HydraException as error:
            raise ConfigError(f"{_one_line(error)} Write the values out: key=value1,value2.") from None
        return [list(point) for point in batch]

    def config(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The config of one point, interpolations resolved; not yet checked against the schema."""
        choices, values = self._split(self._parse(overrides))
        config = self._with_groups(tuple(choices)).copy()
        if self.root != "sweep":
            with open_dict(config):
                config.pop("search", None)  # an experiment's grid means nothing to the other verbs
        for override in values:
            self._set(config, override)
        try:
            resolved = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key} cannot be resolved: {_first_line(error)}.") from None
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def _parse(self, overrides: Iterable[str]) -> Iterator[Override]:
        for text in overrides:
            yield parse_override(expand_numbers(text))

    def _split(self, overrides: Iterable[Override]) -> tuple[list[str], list[Override]]:
        choices, values = [], []
        groups = self.groups_in(self._with_groups(()))
        for override in overrides:
            key = override.key_or_group
            if override.is_delete():
                raise ConfigError(f"~{key}: a config key cannot be removed. Set it to another value.")
            if key in groups and not override.is_sweep_override() and not isinstance(override.value(), dict):
                choices.append(self._choice(key, override.get_value_element_as_str()))
            else:
                values.append(override)
        return [*choices, *_usual_data(choices)], values

    def _choice(self, group: str, option: str) -> str:
        options = self.groups()[group]
        if option not in (*options, "null"):
            raise ConfigError(f"There is no {group}={option}.{nearest(option, options)}")
        return f"{group}={option}"

    def _with_groups(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            search = [f"hydra.searchpath=[{_quoted(self.user_dir)}]"] if self.user_dir else []
            with initialize_config_dir(config_dir=str(config_dir()), **_version_base()):
                try:
                    self._composed[choices] = compose(self.root, overrides=[*search, *choices])
                except (HydraException, OmegaConfBaseException) as error:
                    raise ConfigError(f"These choices do not go together: {_one_line(error)}") from None
        return self._composed[choices]

    def _set(self, config: DictConfig, override: Override) -> None:
        key = override.key_or_group
        may_add = override.is_add() or override.is_force_add() or key.rpartition(".")[0] in free_keys()
        if not may_add and not _holds(config, key):
            raise ConfigError(f"There is no config key {key!r}.{self._hint(config, key)}")
        if override.is_sweep_override():
            raise ConfigError(self._several(config, override))
        anew = key in free_keys() or not _holds(config, key)
        try:
            OmegaConf.update(config, key, override.value(), merge=True, force_add=anew)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key} cannot be set: {_first_line(error)}.") from None

    def _several(self, config: DictConfig, override: Override) -> str:
        """What a grid is told in a verb that runs no grid: a list is written in brackets."""
        key, values = override.key_or_group, override.input_line.partition("=")[2]
        here = OmegaConf.select(config, key)
        if OmegaConf.is_list(here):
            return f"{key} is a list, and {values} is a grid of single values: write '{key}=[{values}]'."
        brackets = f" Where a list is meant, write '{key}=[{values}]'." if here is None else ""
        return f"{key} has several values here, and this verb takes one. `mutransfer sweep` takes many.{brackets}"

    def _hint(self, config: DictConfig, key: str) -> str:
        plain = OmegaConf.to_container(config)
        assert isinstance(plain, dict)
        return nearest_key(key, [*flat_keys(plain), *self.groups_in(plain)])


def _usual_data(choices: Sequence[str]) -> list[str]:
    """The data that a model takes, where nobody chose any: the root's own default is text."""
    chosen = dict(choice.split("=", 1) for choice in choices)
    usual = USUAL_DATA.get(chosen.get("model", ""))
    return [f"data={usual}"] if usual and not {"data", "experiment"} & set(chosen) else []


@functools.lru_cache(maxsize=8)
def _groups(user_dir: Path | None) -> dict[str, list[str]]:
    groups: dict[str, set[str]] = {}
    for file in (file for folder in (config_dir(), user_dir) if folder for file in folder.glob("*/*.yaml")):
        groups.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(groups.items())}


def expand_numbers(override: str) -> str:
    """The same override with arithmetic in the value of a numeric key worked out: `optimizer.lr=2**-3` -> `...=0.125`.

    Raises:
        ConfigError: the value is an expression that is not plain arithmetic.
    """
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in numeric_keys():
        return override
    for word in re.split(r"[,\[\]()]", value):
        if _is_infinite(word):
            raise ConfigError(f"{key}={word.strip()}: it must be finite; the largest number is about 1.8e308.")
    try:
        return key + equals + expand(value)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _is_infinite(word: str) -> bool:
    """`inf`, or a number that a float cannot hold."""
    try:
        return math.isinf(float(word))
    except ValueError:
        return False


def nearest_key(key: str, known: Sequence[str]) -> str:
    """A hint for a mistyped key: the keys that end alike (`lr` for `optimizer.lr`), else those that look alike."""
    leaf = key.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {name.rpartition(".")[2] for name in known}, n=2, cutoff=0.75)
    ending = [name for name in known if name.rpartition(".")[2] in leaves]
    close = difflib.get_close_matches(key, ending, n=3, cutoff=0) if ending else []
    if close:
        return nearest(close[0], close)
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    return nearest(key, siblings or sorted({name.partition(".")[0] for name in known}))


def flat_keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a nested config that holds a value."""
    if not isinstance(config, Mapping) or not config:
        return [prefix]
    parts = ((f"{prefix}.{name}" if prefix else str(name), value) for name, value in config.items())
    return [key for name, value in parts for key in flat_keys(value, name)]


@functools.lru_cache(maxsize=4096)
def parse_override(text: str) -> Override:
    """One override in Hydra's grammar.

    Raises:
        ConfigError: it is none; the message says how to write it.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(f"{text!r} cannot be read. {_written_right(text)}") from None


def _written_right(text: str) -> str:
    key, _, value = text.partition("=")
    if value.startswith("{"):
        return f"Write a map as '{key}={{name:value,other:value}}', or one key at a time, as in {key}.name=value."
    if value.startswith("["):
        return f"Write a list as '{key}=[value,value]'."
    return (
        "Write key=value, or key=value1,value2 in a sweep, and quote values with spaces or =, as in key=\"'a value'\"."
    )


def _holds(config: DictConfig, key: str) -> bool:
    *parents, leaf = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, DictConfig) and parent in node else None
    return isinstance(node, DictConfig) and leaf in list(node)  # a missing value "???" is a key too


def _version_base() -> dict[str, str]:
    """Hydra 1.4 has one behavior and dislikes the argument; 1.3 warns without it."""
    return {"version_base": "1.3"} if Version(hydra_version) < Version("1.4.0.dev0") else {}


def _quoted(folder: Path) -> str:
    escaped = str(folder.resolve()).replace("'", "\\'")
    return f"'file://{escaped}'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
