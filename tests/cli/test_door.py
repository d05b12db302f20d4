"""The front door: help and mistakes are answered at once, in one sentence, without loading torch."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mutransfer.cli import dispatch, main
from mutransfer.cli.arguments import parse
from mutransfer.cli.completion import candidates
from mutransfer.errors import ConfigError, RoleError, RunError, ShapeError
from mutransfer.transfer.result import MAX_DRIFT, MAX_REGRET

VERBS = list(dispatch.VERBS)
COMMANDS: list[tuple[list[str], int]] = [
    ([], 0),
    (["--help"], 0),
    (["--version"], 0),
    *(([verb, "--help"], 0) for verb in VERBS),
    (["sweeep"], 2),
    (["train", "model.widht=3"], 2),
    (["check", "widths=[64,128,250]"], 2),
    (["sweep", "optimizer.lr=-1"], 2),
    (["sweep", "engine.workers=0"], 2),
    (["sweep", "run_dir=/dev/null/run"], 2),
    (["transfer", "no/such/run"], 2),
    (["completion", "query", "mutransfer train model="], 0),
]
SCRIPT = """
import json, sys
from mutransfer.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
heavy = [name for name in ("torch", "wandb", "matplotlib", "transformers") if name in sys.modules]
print(json.dumps([codes, heavy]))
"""


def run_alone(before: str, commands: list[list[str]], folder: Path) -> tuple[list[int], list[str]]:
    """The exit codes of the commands in a fresh interpreter, and the heavy packages that were imported there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", before + SCRIPT, json.dumps(commands)]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    codes, heavy = json.loads(finished.stdout.splitlines()[-1])
    return codes, heavy


def test_help_and_mistakes_load_nothing_heavy_and_write_nothing(tmp_path: Path) -> None:
    codes, heavy = run_alone("", [words for words, _ in COMMANDS], tmp_path)
    assert codes == [code for _, code in COMMANDS]
    assert heavy == []
    assert list(tmp_path.iterdir()) == []


def test_that_check_would_notice_torch(tmp_path: Path) -> None:
    assert run_alone("import torch", [["--help"]], tmp_path) == ([0], ["torch"])


def test_the_module_runs_as_the_command_does(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    finished = command("swep")
    assert finished.returncode == 2
    assert finished.stderr == "mutransfer: mutransfer has no verb 'swep'. Did you mean 'sweep'?\n"
    assert finished.stdout == ""


def test_help_names_every_verb_and_how_to_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"mutransfer {verb} " in text for verb in VERBS)
    assert 'eval "$(mutransfer completion bash)"' in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_and_every_key(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  mutransfer {verb} " in text
    expected = {
        "train": ["resume=auto", "logger=", "hp.lr.input=1.0"],
        "sweep": ["engine.workers=null", "search.grids=[]"],
        "check": ["widths=[64, 128, 256, 512]"],
        "explain": ["parameterization= ", "base=32"],
        "transfer": ["--target", "subject=null"],
    }
    assert all(key in text for key in expected[verb])


def test_help_of_transfer_says_what_its_verdict_means(capsys: pytest.CaptureFixture[str]) -> None:
    main(["transfer", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"at most {MAX_DRIFT:g} octaves per doubling" in text
    assert f"at most {MAX_REGRET * 100:g} %" in text
    assert "Trials that are unfinished, or have failed where they may hide the best value, leave it undecided" in text


def test_help_follows_the_choices_made(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "model=mlp", "optimizer=sgd", "--help"])
    text = capsys.readouterr().out
    assert "optimizer.momentum=0.9" in text
    assert "model.head_dim" not in text
    assert "optimizer.lr=0.125                    # 2**-3" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep"], "no verb 'swep'. Did you mean 'sweep'"),
        (["train", "--hlep"], "has no flag --hlep. Did you mean '--help'"),
        (["train", "--target", "model.width=3"], "has no flag --target"),
        (["train", "seed=9223372036854775808"], "seed=9223372036854775808: it must be at least 0 and less than 2**63."),
        (["train", "gpt"], "'gpt' is neither a flag nor an override. Write key=value, such as model=gpt"),
        (["sweep", "optimizer.lr"], "Write key=value, such as optimizer.lr=VALUE"),
        (["check", "widths=64"], "widths=64: a list is expected, such as [64,128,256]."),
        (["check", "widths=64,128"], "is a grid of single values: write 'widths=[64,128]'."),
        (["check", "depths=2,4,8"], "Where a list is meant, write 'depths=[2,4,8]'."),
        (["check", "widths=[64,a,128]"], "widths[1]=a: a whole number is expected"),
        (["check", "widths=[64,128,99999999999999]"], "widths=99999999999999: it is too large"),
        (["transfer", "runs", "level=null"], "level=null: a number is expected"),
        (["train", "--config-dir"], "--config-dir needs a value"),
        (["train", "--config-dir", "nowhere"], "is not a folder"),
        (["train", "model.width=1,2"], "`mutransfer sweep` takes many"),
        (["explain", "logger=none"], "There is no config key 'logger'."),
        (["completion", "basch"], "Did you mean 'bash'"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RunError("It is gone."), 2, "mutransfer: It is gone."),
        (
            RoleError("Say it with roles={'w': 'input'}."),
            2,
            "roles={'w': 'input'}. (On the command line a role can only",
        ),
        (
            ShapeError("factory(40) failed."),
            2,
            "failed. (On the command line the factory is what model= and model.path=",
        ),
        (OSError(28, "No space left on device", "x/plan.json"), 2, "No space left on device: x/plan.json"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied: x"),
        (
            NotADirectoryError(20, "Not a directory", "/etc/passwd/plan.json"),
            2,
            "Not a directory: /etc/passwd/plan.json.",
        ),
        (ConnectionError("the hub\ncannot be reached"), 2, "the hub cannot be reached. Check"),
        (MemoryError(), 2, "not enough memory for this model and its batch. Choose a smaller model.width"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 2, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, "Rerun the same command to continue."),
    ],
)
def test_whatever_a_user_can_cause_is_said_without_a_traceback(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(dispatch, "_dispatch", fail)
    assert main(["train"]) == code
    assert text in capsys.readouterr().err


def test_a_full_disk_is_said_of_the_run_dir_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path, offset: int = 0) -> None:
        assert folder == Path()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "probe", full)
    for verb in ("explain", "check"):
        assert main([verb, "run_dir=new/e"]) == 2
        assert "Cannot write new/e: No space left on device. Free some space" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
def test_our_own_mistakes_keep_their_traceback(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise kind("a bug")

    monkeypatch.setattr(dispatch, "_dispatch", fail)
    with pytest.raises(kind, match="a bug"):
        main(["train"])


def test_cfg_prints_the_resolved_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=gpt", "optimizer.lr=2**-10", "--cfg"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["optimizer"]["lr"] == 2**-10
    assert config["base"] == config["model"]["base_width"]


def test_words_are_told_apart() -> None:
    words = ["runs/demo", "--target", "model.width=64", "--target=model.depth=4", "subject=mup", "-cd", "mine"]
    parsed = parse("transfer", words)
    assert parsed.positional == ["runs/demo"]
    assert parsed.target == ["model.width=64", "model.depth=4"]
    assert parsed.overrides == ["subject=mup"]
    assert parsed.config_dir == Path("mine")
    assert parse("sweep", ["-m", "seed=0,1"]).overrides == ["seed=0,1"]
    with pytest.raises(ConfigError):
        parse("train", ["-m"])


@pytest.mark.parametrize(
    "words",
    [
        ["transfer", "f\udcffx"],
        ["transfer", "run", "--target", "f\udcffx"],
        *([verb, "model=mlp", "data=digits", "run_dir=f\udcffx"] for verb in VERBS if verb != "transfer"),
    ],
)
def test_a_name_that_is_not_utf8_is_called_that(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f\udcffx").mkdir()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "f\\xffx' is not UTF-8" in error
    assert error.count("\n") == 1
    assert parse("transfer", ["f\u00ffx"]).positional == ["f\u00ffx"]


def test_a_run_dir_may_look_like_an_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs" / "lr=2").mkdir(parents=True)
    (tmp_path / "seed=0").mkdir()
    for run_dir in ("my runs/lr=2", "./gone/lr=2", "/gone/lr=2", "../lr=2", "seed=0"):
        parsed = parse("transfer", [run_dir, "subject=mup"])
        assert (parsed.positional, parsed.overrides) == ([run_dir], ["subject=mup"])
    assert parse("transfer", ["gone/lr=2"]).positional == []
    assert parse("train", ["seed=0"]).overrides == ["seed=0"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mutransfer sw", ["sweep"]),
        ("mutransfer train --c", ["--config-dir", "--cfg"]),
        ("mutransfer train optimizer=", ["optimizer=adam", "optimizer=adamw", "optimizer=sgd"]),
        (
            "mutransfer sweep parameterization=sp,mup-",
            ["parameterization=sp,mup-table3", "parameterization=sp,mup-table9"],
        ),
        ("mutransfer train experiment=de", ["experiment=demo", "experiment=depth_transfer"]),
        ("mutransfer train hp.lr.in", ["hp.lr.input="]),
        ("mutransfer train hp.l", ["hp.lr."]),
        ("mutransfer train optimizer=sgd optimizer.mom", ["optimizer.momentum="]),
        ("mutransfer train optimizer.mom", []),
        ("mutransfer completion z", ["zsh"]),
        ("mutransfer nonsense x", []),
        (
            "mutransfer train parameterization.form=",
            [f"parameterization.form={form}" for form in ("auto", "folded", "explicit")],
        ),
        ("mutransfer sweep train.schedule=cosine,w", ["train.schedule=cosine,wsd"]),
        ("mutransfer train model=mlp model.activation=t", ["model.activation=tanh"]),
        ("mutransfer train model.activation=t", []),
        ("mutransfer train train.compile=", ["train.compile=true", "train.compile=false"]),
        ("mutransfer train resume=n", ["resume=never"]),
        ("mutransfer train 'optimizer=sg", ["optimizer=sgd"]),
        ('mutransfer train "train.sch', ["train.schedule="]),
        (
            'mutransfer train "data=text" "data.path=\'my books/it\'" optimizer=sgd optimizer.mom',
            ["optimizer.momentum="],
        ),
        ("mutransfer transfer runs/gpt --target model.w", ["model.width="]),
        (
            "mutransfer transfer runs/gpt --target ",
            ["model.width=", "model.depth=", "data.batch_size=", "train.steps="],
        ),
        ("mutransfer train --config-dir ", []),
        ("mutransfer transfer exp", []),
        ("mutransfer train model.width=oops,, optimizer=ad", ["optimizer=adam", "optimizer=adamw"]),
    ],
)
def test_the_next_words_are_offered(line: str, expected: list[str]) -> None:
    assert candidates(line) == expected


def test_every_verb_group_and_key_is_offered() -> None:
    assert set(VERBS) <= set(candidates("mutransfer "))
    offered = candidates("mutransfer sweep ")
    assert {"model=", "data=", "optimizer=", "parameterization=", "engine=", "logger=", "hp.", "run_dir="} <= set(
        offered
    )


def test_bash_completes_after_the_script_is_sourced(tmp_path: Path) -> None:
    shim = tmp_path / "mutransfer"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m mutransfer "$@"\n')
    shim.chmod(0o755)
    script = """
        eval "$(mutransfer completion bash)"
        complete_line() { COMP_LINE="$1"; COMP_POINT=${#1}; _mutransfer; echo "${COMPREPLY[@]}"; }
        complete_line "mutransfer sw"
        complete_line "mutransfer train optimizer=s"
        complete_line "mutransfer sweep parameterization=sp,ntk-"
        complete_line "mutransfer sweep 'optimizer=sg"
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    finished = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == ["sweep", "sgd", "sp,ntk-stable", "optimizer=sgd"]


def test_a_reader_that_closes_early_sees_no_traceback():
    command = f"{sys.executable} -m mutransfer explain --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
