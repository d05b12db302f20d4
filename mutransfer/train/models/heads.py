"""How a width is divided into attention heads: the checks that every transformer config shares."""

from __future__ import annotations

from mutransfer.errors import ConfigError


def resolve_head_dim(width: int, head_dim: int | None, n_heads: int | None) -> int:
    """The head size, from exactly one of the two.

    Raises:
        ConfigError: both or neither are given, or the width does not divide.
    """
    if (head_dim is None) == (n_heads is None):
        raise ConfigError(
            f"model.head_dim={head_dim} and model.n_heads={n_heads}: give exactly one of the two, and the other as "
            "null. With head_dim fixed, the number of heads grows with the width; with n_heads fixed, the head size."
        )
    name, value = ("head_dim", head_dim) if n_heads is None else ("n_heads", n_heads)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"model.{name}={value}: it must be a whole number greater than 0.")
    if width % value:
        fits = max(1, round(width / value)) * value
        raise ConfigError(f"model.width={width} must be a multiple of model.{name}={value}, such as {fits}.")
    return value if n_heads is None else width // value


def hidden_size(width: int, ratio: float) -> int:
    """The feed-forward size. Raises ConfigError unless it is a whole number."""
    hidden = width * ratio
    if hidden != int(hidden) or hidden <= 0:
        raise ConfigError(
            f"model.mlp_ratio={ratio} makes {hidden:g} hidden units at model.width={width}; a whole number is needed."
        )
    return int(hidden)
