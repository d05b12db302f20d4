"""The verbs on a tiny model: what they print, what they write, and how they go on after an interruption."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mutransfer.cli import main
from mutransfer.records import Status, TrialRecord
from mutransfer.sweep.engine import LocalEngine, Watch
from mutransfer.sweep.key import Point
from mutransfer.sweep.store import Counts, Store

TINY = ["model.depth=1", "train.steps=4", "train.eval_batches=1", "data.batch_size=2", "data.seq_len=16"]
NARROW = """
from torch import nn

def make(width, depth):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.Linear(width, 90))
"""
RESIDUAL = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())

def make(width, depth):
    blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
    return nn.Sequential(nn.Embedding(256, width), blocks, nn.Linear(width, 256))
"""
UNEVEN = """
from torch import nn

class Uneven(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.entrance, self.exit = nn.Linear(64, width), nn.Linear(64, 10)

    def forward(self, x):
        return self.exit(self.entrance(x))

def make(width):
    assert width % 32 == 0, "uneven"
    return Uneven(width)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_explain_prints_and_saves_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "model.width=64", *TINY]) == 0
    text = capsys.readouterr().out
    assert "readout.weight" in text
    assert json.loads(Path("runs/gpt/plan.json").read_text())


def test_explain_says_what_depth_does_to_ones_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(RESIDUAL)
    mine = ["explain", "model=factory", "model.path=mine:make", "model.width=64"]
    assert main([*mine, "model.depth=8", "base_depth=2", "parameterization=completep"]) == 0
    assert "depth 2 (model: 8)" in capsys.readouterr().out
    lines = {line["name"]: line for line in json.loads(Path("runs/factory/plan.json").read_text())["params"]}
    assert lines["1.7.down.weight"]["lr"] == pytest.approx(1 / 4)  # folded: 1 / m_L at every alpha
    assert lines["1.7.up.weight"]["lr"] == 1
    assert main([*mine, "model.depth=8", "parameterization=mup"]) == 0
    assert "ends a residual branch" not in capsys.readouterr().out
    assert main([*mine, "model.depth=8", "parameterization=completep"]) == 2
    assert "needs base_depth" in capsys.readouterr().err


def test_train_writes_its_record_and_does_not_train_twice(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "model.width=32", "optimizer.lr=2**-6", "run_dir=out", *TINY]
    assert main(command) == 0
    first = json.loads(Path("out/train.json").read_text())
    assert first["config"]["optimizer"]["lr"] == 2**-6
    assert Path("out/checkpoint.pt").is_file()
    assert main(command) == 0
    assert "Finished before" in capsys.readouterr().out
    assert json.loads(Path("out/train.json").read_text()) == first


def test_train_does_not_take_another_runs_folder(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "model.width=32", "run_dir=out", *TINY])
    other = ["train", "model.width=32", "run_dir=out", "seed=1", *TINY]
    assert main(other) == 2
    assert "holds a run of another config (it differs in seed)" in capsys.readouterr().err
    assert main([*other, "resume=never"]) == 0


def test_an_interrupted_training_goes_on_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from mutransfer.train import checkpoint

    command = ["train", "model.width=32", *TINY, "train.checkpoint_every=2"]
    main([*command, "run_dir=whole"])
    save = checkpoint.save

    def save_and_stop(*args: object, **options: object) -> None:
        save(*args, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    assert main([*command, "run_dir=parts"]) == 130
    assert not Path("parts/train.json").exists()
    monkeypatch.setattr(checkpoint, "save", save)
    assert main([*command, "run_dir=parts"]) == 0
    whole, parts = (json.loads(Path(run, "train.json").read_text()) for run in ("whole", "parts"))
    assert parts["val_loss"] == whole["val_loss"]
    assert parts["history"] == whole["history"]


@pytest.mark.parametrize("damage", ["[]", '{"x": 1}', '{"key": "k", "conf'])
def test_a_damaged_record_does_not_keep_a_whole_checkpoint_from_going_on(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "model.width=32", "run_dir=out", *TINY]
    assert main(command) == 0
    whole = json.loads(Path("out/train.json").read_text())
    Path("out/train.json").write_text(damage)
    assert main(command) == 0
    again = json.loads(Path("out/train.json").read_text())
    assert again["val_loss"] == whole["val_loss"]
    assert again["seconds"] > 0
    Path("out/train.json").write_text(damage)
    Path("out/checkpoint.pt").unlink()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "train.json is damaged or half-written. Delete it" in error
    assert error.count("damaged") == 1


def test_a_disk_that_fills_up_while_training_costs_the_model_but_not_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904

    command = ["train", "model.width=32", "run_dir=out", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "enforce fail" not in error
    assert json.loads(Path("out/train.json").read_text())["val_loss"] > 0
    assert main(command) == 0
    assert Path("out/checkpoint.pt").is_file()


def test_a_disk_without_room_for_the_checkpoint_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(["train", "model.width=32", "run_dir=out", *TINY]) == 2
    assert "MB left" in capsys.readouterr().err
    assert not Path("out/train.json").exists()


def test_a_diverged_training_exits_with_1() -> None:
    wild = ["optimizer=sgd", "optimizer.lr=1e30", "train.clip_norm=null", "train.steps=12"]
    assert main(["train", "model.width=32", *TINY, *wild]) == 1


def test_a_sweep_runs_shares_its_base_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "model.width=32,64", "parameterization=mup,sp", "run_dir=out", "engine.workers=1", *TINY]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "3 trials." in text
    assert "mutransfer transfer out" in text
    records = json.loads(Path("out/sweep.json").read_text())["records"]
    assert len(records) == 4
    assert len({record["key"] for record in records}) == 3
    assert main(command) == 0
    assert "3 trials, 3 of them finished before." in capsys.readouterr().out
    with Store.open("out") as store:
        assert [record.to_json() for record in store.records()] == records


def test_a_sweep_that_cannot_train_stops_before_its_first_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "model=mlp", "data=stdlib", "model.width=32,64"]) == 2
    assert "takes vectors or images" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=text", "data.path=missing.txt"], "missing.txt"),
        (["data=text", "data.path=short.txt"], "short.txt"),
        (["data=text", "data.path=empty.txt"], "empty.txt"),
        (["data=text", "data.path=."], "Is a directory"),
        (["model=factory", "model.path=nowhere:make"], "model.path=nowhere:make cannot be imported"),
        (["model=factory", "model.path=broken:make"], "ZeroDivisionError"),
        (["model=factory", "model.path=narrow:make", "data=text", "data.path=long.txt", *TINY], "(2, 16, 90)"),
        (["model.width=100"], "must be a multiple of model.head_dim=16"),
        (["device=cuda:99"], "device=cuda:99 cannot be used here"),
        (["run_dir=short.txt/run", *TINY], "Cannot write short.txt/run"),
        (["engine.workers=0", *TINY], "engine.workers=0"),
        (
            ["logger=wandb", "logger.mode=sometimes", *TINY],
            "logger.mode=sometimes: there is no such choice. Known: offline",
        ),
    ],
)
def test_bad_input_ends_a_sweep_before_it_starts(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("short.txt").write_text("to be or not")
    Path("long.txt").write_text("to be or not " * 1000)
    Path("empty.txt").touch()
    Path("narrow.py").write_text(NARROW)
    Path("broken.py").write_text("def make(width):\n    return 1 / 0\n")
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_sweep_reports_each_new_trial_to_the_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []

    def planted(engine: LocalEngine, points: list[Point], store: Store, watch: Watch) -> list[TrialRecord]:
        records = [TrialRecord(key=point.key, config=point.config, status="done", val_loss=2.0) for point in points]
        watch(Counts(done=len(records)), records)
        return records

    monkeypatch.setattr(LocalEngine, "run", planted)
    monkeypatch.setattr("mutransfer.cli.verbs.sweep.log_record", lambda _, record: reported.append(record.key))
    assert main(["sweep", "model.width=32", "seed=0,1", *TINY]) == 0
    assert len(set(reported)) == len(reported) == 2


def test_a_sweep_with_failed_trials_exits_with_1_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(engine: LocalEngine, points: list[Point], store: Store, watch: Watch) -> list[TrialRecord]:
        return [TrialRecord(key=p.key, config=p.config, status="failed", error="no luck") for p in points]

    monkeypatch.setattr(LocalEngine, "run", planted)
    assert main(["sweep", "model.width=32", *TINY, "train.steps=4,8", "seed=7"]) == 1
    text = capsys.readouterr().out
    assert "\nfailed: mup width 32 depth 1, lr 2^-6, train.steps=8, seed 7: no luck\n" in text
    assert "\n2 trials failed. Add" in text
    assert "engine.retry_failed=true" in text


def test_what_to_run_next_can_be_pasted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(LocalEngine, "run", lambda *_: [])
    run_dir = "my runs/" + "long " * 30 + "name"
    assert main(["sweep", "model.width=32", f"run_dir='{run_dir}'", *TINY]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: "))
    assert shlex.split(line)[1:] == ["mutransfer", "transfer", run_dir]


def planted(status: Status, loss: float | None) -> Callable[..., list[TrialRecord]]:
    """Stands in for the engine: every trial of the sweep comes to this, and the store has it."""

    def run(engine: LocalEngine, points: list[Point], store: Store, watch: Watch) -> list[TrialRecord]:
        store.add("planted", points)
        while claim := store.claim("planted", "me", 60):
            store.finish("me", TrialRecord(key=claim.key, config=claim.config, status=status, val_loss=loss))
        return [store.record(point.key) for point in points]

    return run


@pytest.mark.parametrize(("status", "loss"), [("diverged", None), ("done", 2.0)])
def test_after_a_sweep_that_diverged_everywhere_sweep_and_transfer_agree_on_what_comes_next(
    status: Status, loss: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalEngine, "run", planted(status, loss))
    code = main(["sweep", "model.width=32", "optimizer.lr=2**-4,2**-3,2**-2", *TINY])
    line = capsys.readouterr().out.splitlines()[-1]
    if status == "done":
        assert (code, line) == (0, "Next: mutransfer transfer runs/gpt")
        return
    advice = "mup diverged at every value of optimizer.lr at size 32: add smaller ones, such as optimizer.lr="
    values = "2**-7,2**-6,2**-5"  # an octave apart, as those that were tried
    assert (code, line) == (3, f"Every trial diverged. {advice}{values}.")
    assert main(["transfer", "runs/gpt"]) == 3
    assert f"undecided: {advice}{values}." in capsys.readouterr().out
    content = json.loads(Path("runs/gpt/transfer.json").read_text())
    assert content["verdict"] == "undecided"
    assert values in content["open"]


def test_results_that_cannot_be_written_out_are_kept_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(LocalEngine, "run", planted("done", 2.0))
    with monkeypatch.context() as patch:
        patch.setattr("mutransfer.records.tempfile.mkstemp", refused)
        assert main(["sweep", "model.width=32", "optimizer.lr=2**-4", *TINY]) == 2
    said = capsys.readouterr()
    assert "2.0000" in said.out
    assert "File too large. Allow larger files (`ulimit -f unlimited`" in said.err
    assert "kept in runs/gpt/sweep.sqlite" in said.err
    with Store.open("runs/gpt") as store:
        assert [record.val_loss for record in store.records()] == [2.0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-2000]), "is cut off or damaged"),
        (lambda file: file.write_bytes(b""), "is cut off or damaged"),
        (lambda file: file.write_bytes(_with_a_wrong_byte(file.read_bytes())), "is damaged"),
    ],
)
def test_a_finished_run_without_its_model_is_no_finished_run(
    damage: Callable[[Path], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "model.width=32", "run_dir=out", *TINY]
    assert main(command) == 0
    record = Path("out/train.json").read_bytes()
    damage(Path("out/checkpoint.pt"))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"its model is lost: out/checkpoint.pt {said}. Put a copy of it back, or give resume=never" in error
    assert error.count("\n") == 1
    assert Path("out/train.json").read_bytes() == record
    assert main([*command, "resume=never"]) == 0
    assert main(command) == 0


def _with_a_wrong_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_files_that_may_not_grow_are_said_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (100_000, 100_000))
    assert main(["train", "model.width=32", "run_dir=out", *TINY]) == 2
    error = capsys.readouterr().err
    assert "A file may have 0.1 MB here" in error
    assert "`ulimit -f unlimited`" in error
    assert not Path("out").exists()


def test_a_summary_says_that_the_folder_holds_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalEngine, "run", planted("done", 2.0))
    main(["sweep", "model.width=32", "parameterization=mup,sp", "seed=0,1,2", *TINY])
    assert "holds" not in capsys.readouterr().out
    main(["sweep", "model.width=32", "seed=5", *TINY])
    assert (
        "This command's 1 trial; runs/gpt holds 4, and `mutransfer transfer` reads them all." in capsys.readouterr().out
    )


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda:99"], "cannot be used here"),
        (["model=factory", "model.path=nowhere:make"], "cannot be imported"),
        (["data.batch_size=3", "train.accumulate=2"], "train.accumulate=2 does not divide data.batch_size=3"),
    ],
)
def test_a_refused_training_leaves_no_folder(
    verb: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *words, "run_dir=a/b/c", "logger=wandb", "logger.mode=offline"]) == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_refused_training_keeps_the_folders_that_were_there() -> None:
    Path("a/b").mkdir(parents=True)
    assert main(["train", "device=cuda:99", "run_dir=a/b/c"]) == 2
    assert list(Path().glob("**/*")) == [Path("a"), Path("a/b")]


def test_a_training_without_room_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert main(["train", "model.width=32", "run_dir=out", *TINY]) == 2
    assert not Path("out").exists()


def test_a_training_that_is_logged_offline_says_where_and_how_to_upload_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(name, "true")
    command = ["train", "model.width=32", f"run_dir='{tmp_path}/my run'", *TINY]
    assert main([*command, "logger=wandb"]) == 0
    out = capsys.readouterr().out
    assert "\nLogged offline in my run/wandb. To upload: wandb sync 'my run/wandb'\n" in out
    assert len(list(Path("my run/wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert main([*command, "resume=never"]) == 0
    assert "wandb" not in capsys.readouterr().out


def test_a_sweep_refuses_a_folder_with_another_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "stdlib", "batch_size": 2, "seq_len": 16}
    with Store.create("out") as store:
        store.pin_data(data, "0" * 64)
    assert main(["sweep", "model.width=32", "run_dir=out", *TINY]) == 2
    assert "another corpus" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["explain", "check"])
@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    verb: str, run_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    monkeypatch.setattr("mutransfer.sweep.trial.build_data", lambda *_: pytest.fail("the work has begun"))
    assert main([verb, f"run_dir={run_dir}"]) == 2
    assert f"Cannot write {run_dir}: a file stands where a folder is needed" in capsys.readouterr().err
    assert main([verb, f"run_dir={run_dir}", "--cfg"]) == 0


@pytest.mark.parametrize("verb", ["explain", "check", "train", "sweep"])
def test_an_empty_folder_name_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "run_dir="]) == 2
    assert "run_dir= is empty: give a folder" in capsys.readouterr().err


def test_work_that_is_impossible_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "model=factory", "model.path=nowhere:make"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_model_that_cannot_run_gets_one_sentence_in_the_words_of_the_command_line(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    Path("uneven.py").write_text(UNEVEN)
    mine = ["explain", "model=factory", "model.path=uneven:make", "data=digits", "base=64"]
    finished = command(*mine, "model.width=128")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1  # and none of torch's own log
    assert "a size in its config or in its code does not follow the width" in finished.stderr
    assert "(On the command line the factory is the function in model.path=.)" in finished.stderr


def test_a_base_that_cannot_be_built_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.py").write_text(UNEVEN)
    mine = ["explain", "model=factory", "model.path=odd:make", "data=digits", "model.width=64"]
    assert main([*mine, "base=40"]) == 2
    assert "cannot be built at base=40: model.path=odd:make failed at width=40" in capsys.readouterr().err


def test_a_check_of_a_model_that_does_not_take_the_data_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("vectors.py").write_text("from torch import nn\n\n\ndef make(width):\n    return nn.Linear(8, width)\n")
    assert main(["check", "model=factory", "model.path=vectors:make", "widths=[32,64,128]"]) == 2
    error = capsys.readouterr().err
    assert "do not fit" in error
    assert error.count("\n") == 1
