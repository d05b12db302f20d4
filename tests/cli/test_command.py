"""The line that is printed for the target leads to exactly the config it was made from."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from mutransfer.cli.arguments import parse
from mutransfer.cli.command import command_line, shell_path, shell_word, sweep_command, train_words
from mutransfer.sweep.compose import Composer, flat_keys
from mutransfer.sweep.key import TRIAL_SECTIONS
from mutransfer.sweep.validate import validate


def flat(overrides: list[str]) -> dict[str, object]:
    config = validate("train", Composer("train").config(overrides))
    trial = {name: config[name] for name in TRIAL_SECTIONS}
    pairs = {}
    for key in flat_keys(trial):
        value = trial
        for part in key.split("."):
            value = value[part]
        pairs[key] = value
    return pairs


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=demo", "model.width=1024", "optimizer.lr=2**-6"],
        ["model=mlp", "optimizer=sgd", "parameterization=sp", "precision=bf16", "base=128"],
        ["optimizer.betas=[0.8,0.99]", "train.clip_norm=null", "model.tied=true", "seed=3"],
        ["model=factory", "model.path=my.code:make", "model.kwargs.size=3", "model.kwargs.mode=fast"],
        ["data=text", "data.path='my books/it is \\'here\\'.txt'"],
        ["optimizer=adam", "optimizer.name=adam-l2", "optimizer.weight_decay=0.1"],
    ],
)
def test_the_command_leads_back_to_its_config(overrides: list[str]) -> None:
    wanted = flat(overrides)
    program, verb, *words = shlex.split(command_line("train", train_words(wanted)))
    assert (program, verb) == ("mutransfer", "train")
    assert flat(words) == wanted


def test_what_is_the_default_is_not_repeated() -> None:
    assert train_words(flat(["model.width=64"])) == ["model=gpt", "parameterization=mup", "model.width=64"]


def test_another_config_gives_another_command() -> None:
    assert train_words(flat(["seed=1"])) != train_words(flat(["seed=2"]))


def test_keys_that_must_be_said_are_said_where_they_are_the_default() -> None:
    wanted = flat([])
    assert "model.width" not in train_words(wanted)
    assert f"model.width={wanted['model.width']}" in train_words(wanted, ["model.width"])


FOLDERS = (
    *("a b", " a ", "a#b", "a=b", "a,b", 'a"b', "a'b", "'a'", "a$b", "a;b|c&d", "a`b`", "a!b", "[a]", "{a}", "~a", "*"),
    *("a\\b", "a\\", "a\\\\", "a\\'b", 'a\\"b', "${a}", "a${oc.env:HOME}", "\\${a}", "\\\\${a}", "${", "x${a'b}\\"),
    *(
        "null",
        "true",
        "123",
        "1e3",
        "1_000",
        "nan",
        "inf",
        "0x10",
        "2**-3",
        "lr=2**-6",
        "-x",
        "+x",
        "a\tb",
        "a\nb",
        "a\\\n",
        "tab\t9'\\",
        "a\x1b[2Jb",
        "a\u20281",
        "a\u3000b",
        "a\x7f\x85",
    ),
    *("\u00fc/\u00e9", "a:b", "a(b)", "", "a%b@c"),
)


COMPOSER = Composer("sweep")


def pasted(line: str) -> list[str]:
    """The words that bash makes of a line."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return printed.decode().split("\0")[:-1]


@pytest.mark.parametrize("text", ["tab\tx", "\x1b[2J", "a\u2028b", "a\u3000", "\n", "it's\t\\", "plain", "\u00fc b"])
def test_a_word_for_the_shell_is_the_text_and_nothing_that_a_terminal_obeys(text: str) -> None:
    assert pasted(shell_word(text)) == [text]
    assert shell_word(text).isprintable()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_any_name_survives_the_shell_and_our_own_grammar(folder: str) -> None:
    line = sweep_command({"model.name": "gpt", "parameterization.name": "mup"}, ["seed=0,1"], folder)
    assert line.isprintable()
    words = parse("sweep", pasted(line)[2:])
    for point in COMPOSER.points(words.overrides):
        config = COMPOSER.config(point)
        assert config["run_dir"] == folder
        if folder:
            assert validate("sweep", config)["run_dir"] == folder


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name])
def test_a_folder_of_any_name_can_be_given_to_transfer(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    words = parse("transfer", pasted(shell_path(folder)))
    assert [Path(word) for word in words.positional] == [Path(folder)]
    assert not words.overrides
