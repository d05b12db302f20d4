"""Tab completion for bash, zsh and fish: the shell asks `mutransfer completion query LINE` for the next words."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence

from mutransfer.cli.arguments import FLAGS, TRANSFER_FLAGS
from mutransfer.cli.dispatch import DONE, VERBS
from mutransfer.errors import ConfigError, MutransferError, nearest
from mutransfer.sweep.compose import Composer, flat_keys
from mutransfer.sweep.validate import choices

_BASH = r"""
_mutransfer() {
    local line="${COMP_LINE:0:$COMP_POINT}" word prefix=""
    word="${line##* }"
    [[ $word == [\'\"]* ]] || prefix="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r reply; do
        [[ -n $reply ]] && COMPREPLY+=("${reply#"$prefix"}")
    done < <(mutransfer completion query "$line" 2>/dev/null)
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _mutransfer mutransfer
"""
_ZSH = r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
_mutransfer() {
    local -a replies ends=(-S ' ')
    replies=(${(f)"$(mutransfer completion query "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    (( $#replies )) || { _files; return }
    [[ $replies[1] == *[=.] ]] && ends=(-S '')
    compadd "${ends[@]}" -a replies
}
compdef _mutransfer mutransfer
"""
_FISH = "complete -c mutransfer -f -a '(mutransfer completion query (commandline -cp) 2>/dev/null)'\n"
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_WITH_VALUE = ("--target", "--config-dir", "-cd")


def run(words: Sequence[str]) -> int:
    """`mutransfer completion SHELL` prints a script; `mutransfer completion query LINE` the words that may follow."""
    match words:
        case ["query", line]:
            print("\n".join(candidates(line)))
        case [shell] if shell in SHELLS:
            print(SHELLS[shell])
        case _:
            shell = words[0] if words else ""
            raise ConfigError(f"Name your shell, as in `mutransfer completion bash`.{nearest(shell, SHELLS)}")
    return DONE


def candidates(line: str) -> list[str]:
    """The whole words that may stand at the end of this unfinished command line.

    >>> candidates("mutransfer tra")
    ['train', 'transfer']
    """
    *before, current = _words(line)[1:] or [""]
    if not before:
        return _matching(current, [*VERBS, "completion", "--help", "--version"])
    verb, *said = before
    if verb not in VERBS:
        return _matching(current, SHELLS) if before == ["completion"] else []
    if current.startswith("-"):
        return _matching(current, [*FLAGS, *(TRANSFER_FLAGS if verb == "transfer" else {})])
    if said and said[-1] in _WITH_VALUE:
        return _matching(current, _sizes() if said[-1] == "--target" else [])
    return _overrides(Composer(verb), said, current)


def _words(line: str) -> list[str]:
    """As the shell splits it, where a quote may still be open; the last word is the one being typed."""
    for closing in ("", "'", '"'):
        with contextlib.suppress(ValueError):
            words = shlex.split(line + closing)
            return [*words, ""] if line.endswith(" ") and not closing else words
    return line.split(" ")


def _sizes() -> list[str]:
    from mutransfer.transfer.axis import AXES

    return [f"{axis.key}=" for axis in AXES.values()]


def _overrides(composer: Composer, before: Sequence[str], current: str) -> list[str]:
    config = _config(composer, [word for word in before if "=" in word and not word.startswith("-")])
    known = composer.groups_in(config) | choices(composer.root, config)
    key, equals, value = current.partition("=")
    if equals:
        *chosen, last = value.split(",")
        stem = f"{key}=" + "".join(f"{option}," for option in chosen)
        return [stem + option for option in _matching(last, known.get(key, []))]
    groups = composer.groups_in(config)
    return _matching(current, _shortened(current, [*(f"{name}=" for name in groups), *_settable(config)]))


def _config(composer: Composer, overrides: list[str]) -> dict[str, object]:
    """The config so far; a half-typed override is no reason to complete nothing."""
    try:
        return composer.config(overrides)
    except MutransferError:
        return composer.config([])


def _settable(config: dict[str, object]) -> list[str]:
    return [f"{key}=" for key in flat_keys(config) if not key.endswith(".name")]


def _shortened(current: str, words: Sequence[str]) -> list[str]:
    """Stops at the next dot, so that `m<TAB>` offers `model.` and not each of its keys."""
    depth = current.count(".")
    parts = (word.split(".") for word in words)
    return list(dict.fromkeys(".".join(p[: depth + 1]) + ("." if len(p) > depth + 1 else "") for p in parts))


def _matching(start: str, words: Sequence[str] | dict[str, str]) -> list[str]:
    return [word for word in words if word.startswith(start)]
