"""`mutransfer transfer` on a planted sweep: the verdict is the exit code, and the printed command runs as it is."""

from __future__ import annotations

import html
import json
import math
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mutransfer.cli import main
from mutransfer.records import TrialRecord
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.key import Point
from mutransfer.sweep.points import expand
from mutransfer.sweep.store import FILE_NAME, Store

GRID = [
    "model.width=32,64,128",
    "optimizer.lr=" + ",".join(f"2**{k}" for k in range(-10, -2)),
    "seed=0,1",
    "model.depth=3",
]
DRIFT = {"mup": 0.0, "sp": -1.0}


def plant(run_dir: Path, *overrides: str) -> None:
    """A finished sweep whose best lr is 2^-6 at width 32 and moves by DRIFT octaves per doubling."""
    points = points_of([*GRID, *overrides])
    with Store.create(run_dir) as store:
        store.add("planted", points)
        while (claim := store.claim("planted", "me", 60)) is not None:
            store.finish("me", finished(claim.key, claim.config))


def points_of(overrides: list[str]) -> list[Point]:
    return list(expand(Composer("sweep"), overrides).points(lambda config: "corpus"))


def finished(key: str, config: dict) -> TrialRecord:
    doublings = math.log2(config["model"]["width"] / 32)
    best = -6.1 + DRIFT[config["parameterization"]["name"]] * doublings
    octaves = math.log2(config["optimizer"]["lr"]) - best
    own = math.log2(config["hp"]["output_mult"]) - 1
    loss = 2.5 - 0.1 * doublings + 0.05 * (octaves**2 + own**2) + 0.003 * config["seed"]
    environment = {"data_sha256": "corpus"}
    return TrialRecord(key=key, config=config, status="done", val_loss=loss, environment=environment)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_transfers_is_said_and_its_target_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup,sp", "hp.lr.input=8")
    assert main(["transfer", "run", "--target", "model.width=1024"]) == 0
    text = capsys.readouterr().out
    content = json.loads(Path("run/transfer.json").read_text())
    assert content["verdict"] == "transfers"
    assert {name: one["verdict"] for name, one in content["parameterizations"].items()} == {
        "mup": "transfers",
        "sp": "does not transfer",
    }
    assert "mup" in Path("run/report.html").read_text()
    command = content["target"]["command"]
    assert command in text
    assert main([*shlex.split(command)[1:], "--cfg"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["model"]["width"] == 1024
    assert config["model"]["depth"] == 3
    assert config["hp"]["lr"]["input"] == 8
    assert config["base"] == 32
    assert config["parameterization"]["name"] == "mup"
    assert math.log2(config["optimizer"]["lr"]) == pytest.approx(-6.1, abs=0.2)


def test_what_the_target_shares_with_the_defaults_is_in_its_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup")
    default = Composer("train").config(["model=gpt"])["model"]["width"]
    main(["transfer", "run", "--target", f"model.width={default}"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mutransfer train")]
    keys = [word.partition("=")[0] for word in shlex.split(line)[2:]]
    assert len(keys) == len(set(keys))
    assert {"model", "parameterization", "model.width", "base", "optimizer.lr"} <= set(keys)
    assert f"model.width={default} " in line


def test_what_does_not_transfer_exits_with_1() -> None:
    plant(Path("run"), "parameterization=mup,sp")
    assert main(["transfer", "run", "subject=sp"]) == 1


def test_a_grid_that_is_too_small_is_undecided() -> None:
    plant(Path("run"), "parameterization=sp", "optimizer.lr=2**-7,2**-6,2**-5")
    assert main(["transfer", "run"]) == 3


def lines_to_add(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words behind `mutransfer sweep` of every printed line, as the shell splits them."""
    lines = [line.split("Add: ")[1] for line in capsys.readouterr().out.splitlines() if "Add: " in line]
    words = [shlex.split(line) for line in lines]
    assert all(line[:2] == ["mutransfer", "sweep"] for line in words)
    return [line[2:] for line in words]


def test_the_line_that_extends_the_grid_goes_on_with_the_same_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Pasted, it asks for exactly the trials that the original sweep would have had with two more values."""
    setting = ["parameterization=sp", "hp.lr.input=8", "train.steps=77", "data.batch_size=4", "optimizer.eps=1e-6"]
    plant(Path("my run"), *setting, "optimizer.lr=2**-7,2**-6,2**-5")
    assert main(["transfer", "my run"]) == 3
    lines = lines_to_add(capsys)
    pasted = {point.key for words in lines for point in points_of(words)}
    lower = ["optimizer.lr=2**-9,2**-8", "model.width=64,128"]
    assert pasted == {point.key for point in points_of([*GRID, *setting, *lower])}
    assert all(expand(Composer("sweep"), words).settings["run_dir"] == "my run" for words in lines)
    shown = json.loads(Path("my run/transfer.json").read_text())["extend"]
    assert [shlex.split(line)[2:] for line in shown] == lines


def test_the_line_that_adds_seeds_repeats_the_grid_with_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    lrs = "optimizer.lr=0.005,0.00987654321,0.0123,0.02,0.031"
    plant(Path("run"), "parameterization=mup", "seed=3", lrs)
    assert main(["transfer", "run"]) == 3
    (words,) = lines_to_add(capsys)
    assert {p.key for p in points_of(words)} == {p.key for p in points_of([*GRID, lrs, "seed=4"])}


def test_fields_that_follow_the_width_are_in_the_line_of_each_width(capsys: pytest.CaptureFixture[str]) -> None:
    grids = [["model.head_dim=null", f"model.width={w}", f"model.n_heads={w // 16}"] for w in (32, 64)]
    for grid in grids:
        plant(Path("run"), "parameterization=mup", "seed=0", *grid)
    assert main(["transfer", "run"]) == 3
    pasted = {point.key for words in lines_to_add(capsys) for point in points_of(words)}
    assert pasted == {point.key for grid in grids for point in points_of([*GRID, "seed=1", *grid])}


def test_a_sweep_over_mups_own_hyperparameter_has_a_verdict_and_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup", "optimizer.lr=2**-6", "hp.output_mult=1/2,1,2,4,8")
    assert main(["transfer", "run", "--target", "model.width=256"]) == 0
    assert "hp.output_mult" in capsys.readouterr().out.splitlines()[0]
    content = json.loads(Path("run/transfer.json").read_text())
    assert content["x"] == "hp.output_mult"
    assert content["parameterizations"]["mup"]["optimum"]["128"]["value"] == pytest.approx(2, rel=0.02)
    assert main([*shlex.split(content["target"]["command"])[1:], "--cfg"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["hp"]["output_mult"] == pytest.approx(2, rel=0.02)
    assert config["optimizer"]["lr"] == 2**-6


@pytest.mark.parametrize(
    ("width", "words"), [(33, "widths that can be trained: 32 and 48"), (7, "widths that can be trained: 16")]
)
def test_a_target_that_cannot_be_built_is_refused_before_its_line_is_printed(
    width: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(Path("run"), "parameterization=mup")
    assert main(["transfer", "run", "--target", f"model.width={width}"]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "mutransfer train" not in said.out


def test_a_sweep_whose_model_cannot_be_built_here_has_its_verdict_and_a_caution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(Path("run"), "parameterization=mup", "data=text", "data.path=gone.txt")
    assert main(["transfer", "run", "--target", "model.width=256"]) == 0
    assert "Caution: whether the target can be built was not checked here" in capsys.readouterr().out


def test_the_verdict_of_a_directory_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(Path("run"), "parameterization=mup")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    assert main(["transfer", "run"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("mup: transfers over width")
    assert "The report is not written: Cannot write" in said.err
    assert "its own exit code is 0" in said.err
    assert "No space left on device" in said.err
    assert said.err.count("\n") == 1
    assert not {"report.html", "transfer.json"} & {path.name for path in Path("run").iterdir()}


def damage(run_dir: Path, change: Callable[[str], object], *, column: str = "run.record") -> None:
    """Changes one row of the store as another program, or a failing disk, would."""
    table, name = column.split(".")
    with sqlite3.connect(run_dir / FILE_NAME) as db:
        rowid, text = db.execute(f"SELECT rowid, {name} FROM {table} LIMIT 1 OFFSET 3").fetchone()
        db.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (change(text), rowid))
    db.close()


def without(section: str, value: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | {section: value})


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("run.record", lambda text: text[:40]),
        ("run.record", lambda text: b"\xff\xfe\x00"),
        ("run.record", lambda text: 7),
        ("run.record", lambda text: "null"),
        ("run.record", lambda text: "[1, 2]"),
        ("run.record", without("environment", [])),
        ("run.record", without("cpu_seconds", "many")),
        ("run.record", without("val_loss", "low")),
        ("run.record", without("status", "dome")),
        ("point.config", lambda text: "[]"),
        ("point.config", lambda text: "{}"),
        ("point.config", lambda text: text[1:]),
        ("point.config", without("optimizer", {"lr": "fast"})),
        ("point.config", without("seed", "x")),
        ("point.config", without("model", {"width": [1]})),
        ("point.config", without("hp", {"output_mult": [1]})),
    ],
)
def test_one_damaged_record_gets_one_sentence(
    column: str, change: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    plant(Path("run"), "parameterization=mup", "seed=0")
    damage(Path("run"), change, column=column)
    code = main(["transfer", "run"])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) in ((2, 1), (3, 0))  # where the damage is a setting of its own, it is left out


def test_what_a_foreign_store_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup", "data=text", "data.path=gone.txt")
    with sqlite3.connect(Path("run") / FILE_NAME) as db:
        evil = "m\x1b[2J\x07up\u202e\udcff"
        for table, name in (("run", "record"), ("point", "config")):
            db.execute(f"UPDATE {table} SET {name} = replace({name}, '\"mup\"', ?)", (json.dumps(evil),))
    db.close()
    main(["transfer", "run"])
    main(["transfer", "run", "subject=nobody"])
    said = capsys.readouterr()
    assert "m?[2J?up?" in said.out
    assert "m?[2J?up?" in said.err
    assert "up\u202e\\udcff" in Path("run/report.html").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the run_dir of one sweep"),
        (["a", "b"], "Give the run_dir of one sweep"),
        (["missing"], "missing does not exist"),
        (["folder"], "is not a run directory"),
        (["half"], "half-written"),
        (["empty"], "no finished trial"),
        (["run", "subject=mpu"], "Did you mean 'mup'"),
        (["run", "level=2"], "level=2.0"),
        (["run", "levle=0.9"], "Did you mean 'level'"),
        (["run", "--target", "width=1024"], "give a size"),
        (["run", "--target", "model.width=big"], "'big' is not a whole number"),
        (["run", "--target", "model.depth=12"], "has no rule for depth"),
        (["run", "--target"], "--target needs a value"),
        (["run", "--target", "model.width=96", "--target=model.width=128"], "model.width is given twice"),
        (["run", "model=gpt"], "There is no config key 'model'. Known: subject, axis, level."),
        (["run", "data=digits"], "There is no config key 'data'. Known: subject, axis, level."),
        (["run", "foo=1"], "There is no config key 'foo'. Known: subject, axis, level."),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("half").mkdir()
    Path("half", FILE_NAME).touch()
    Store.create("empty").close()
    if words[:1] == ["run"]:
        plant(Path("run"), "seed=0", "parameterization=mup")
    assert main(["transfer", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_trials_without_a_result_are_said_and_leave_the_verdict_undecided(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup")
    assert main(["transfer", "run"]) == 0
    with Store.create(Path("run")) as store:
        store.add("more", points_of(["model.width=32", "optimizer.lr=0.5,0.25", "seed=0", "model.depth=3"]))
    capsys.readouterr()
    assert main(["transfer", "run"]) == 3
    said = capsys.readouterr()
    assert "2 trials are unfinished and not counted" in said.err
    assert said.out.startswith("mup: undecided")
    assert "2 trials are unfinished" in said.out.splitlines()[0]
    page = Path("run/report.html").read_text()
    assert "do not settle whether mup transfers: mup: 2 trials are unfinished" in page


@pytest.mark.parametrize("run_dir", ["run", "it's a = b, $c #1"])
def test_a_sweep_that_was_killed_is_continued_by_the_printed_line(
    run_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at random in the first size: at no point is a larger one to be added, which was asked for already."""
    asked = points_of([*GRID, "parameterization=mup,sp"])
    with Store.create(run_dir) as store:
        store.add("killed", points_of([*GRID[1:], "model.width=32", "parameterization=mup,sp"]))
        for _ in range(5):
            claim = store.claim("killed", "me", 60)
            assert claim is not None
            store.finish("me", finished(claim.key, claim.config))
        store.add("planted", asked)
    assert main(["transfer", run_dir]) == 3
    said = capsys.readouterr()
    assert "undecided: 75 trials of 80 have not run." in said.out  # 2 x 3 x 8 x 2, the 16 of the base width shared
    assert "larger" not in said.out + said.err
    (line,) = (line for line in said.err.splitlines() if line.startswith("  mutransfer sweep"))
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("mutransfer", "sweep")
    assert {point.key for point in points_of(words)} == {point.key for point in asked}
    assert expand(Composer("sweep"), words).settings["run_dir"] == run_dir


def test_the_lines_for_a_folder_with_a_control_character_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("tab\tx"), "parameterization=mup", "seed=0")
    with Store.create(Path("tab\tx")) as store:
        store.add("more", points_of(["model.width=32", "optimizer.lr=0.5", "seed=0", "model.depth=3"]))
    main(["transfer", "tab\tx"])
    assert r" $'run_dir=\'tab\011x\''" in capsys.readouterr().err
    assert r"mutransfer transfer $'tab\011x'" in html.unescape(Path("tab\tx/report.html").read_text())


def test_trials_that_are_no_grid_are_continued_without_a_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Width 32 was swept over two learning rates and width 64 over other ones: no line may join the two."""
    parts = [["model.width=32", "optimizer.lr=0.5,0.25"], ["model.width=64", "optimizer.lr=0.125"]]
    with Store.create("run") as store:
        for part in parts:
            store.add(str(part), points_of(part))
    assert main(["transfer", "run"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  mutransfer sweep")]
    asked = {point.key for part in parts for point in points_of(part)}
    assert {point.key for line in lines for point in points_of(shlex.split(line)[2:])} == asked
    assert len(lines) == 2


def test_unfinished_trials_of_another_setting_leave_the_verdict_as_it_is() -> None:
    plant(Path("run"), "parameterization=mup")
    with Store.create(Path("run")) as store:
        store.add("more", points_of(["parameterization=mup", "model.width=64", "model.depth=4", "seed=0"]))
    assert main(["transfer", "run"]) == 0


def test_the_line_to_add_retries_what_failed_before(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup", "seed=0")
    with Store.create(Path("run")) as store:
        store.add(
            "more",
            points_of(["parameterization=mup", "model.width=64", "model.depth=3", "optimizer.lr=2**-6", "seed=1"]),
        )
        claim = store.claim("more", "me", 60)
        assert claim is not None
        store.finish("me", TrialRecord(key=claim.key, config=claim.config, status="failed", error="out of memory"))
    assert main(["transfer", "run"]) == 3
    (words,) = lines_to_add(capsys)
    settings = expand(Composer("sweep"), words).settings
    assert settings["engine"]["retry_failed"] is True
    assert claim.key in {point.key for point in points_of(words)}


def test_a_sweep_that_diverged_everywhere_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup", "seed=0")
    with sqlite3.connect(Path("run") / FILE_NAME) as db:
        db.execute("""UPDATE run SET status = 'diverged', record = json_set(record, '$.status', 'diverged')""")
    db.close()
    assert main(["transfer", "run"]) == 3
    out = capsys.readouterr().out
    assert out.startswith(
        "undecided: mup diverged at every value of optimizer.lr at size 32, 64, 128: add smaller ones"
    )


def test_a_sweep_that_failed_everywhere_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup", "seed=0")
    with sqlite3.connect(Path("run") / FILE_NAME) as db:
        db.execute("""UPDATE run SET status = 'failed', record = json_set(record, '$.status', 'failed')""")
    db.close()
    assert main(["transfer", "run"]) == 2
    assert "all 24 failed: add engine.retry_failed=true" in capsys.readouterr().err


def test_a_report_that_cannot_be_replaced_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup,sp")
    Path("run/report.html").mkdir()
    assert main(["transfer", "run", "subject=sp"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("sp: does not transfer")
    assert str(Path("run/report.html")) in said.err
    assert "its own exit code is 1" in said.err
    assert "Written" not in said.out
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    "foreign",
    [
        b"[]",
        b'"x"',
        b"3",
        b"{}",
        b"{",
        b"\xff\xfe",
        b'{"verdict": "pass"}',
        b'{"verdict": "pass", "slopes": 3}',
        b'{"verdict": "pass", "slopes": [{"law": 0, "name": "a", "kind": "init", "value": "x", "low": 0, "high": 1}]}',
        b'{"verdict": "pass", "slopes": [], "settings": 3}',
    ],
)
def test_a_check_json_that_is_no_check_costs_neither_the_report_nor_the_verdict(
    foreign: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(Path("run"), "parameterization=mup", "optimizer.lr=2**-7,2**-6,2**-5", "model.width=32,64")
    Path("run/check.json").write_bytes(foreign)
    assert main(["transfer", "run"]) == 0
    error = capsys.readouterr().err
    assert f"{Path('run/check.json')} is not shown in the report" in error
    assert "Delete it, or make it again with `mutransfer check ... run_dir=run`" in error
    assert error.count("\n") == 1
    page = Path("run/report.html").read_text()
    assert "Coordinate check: not shown" in page
    assert "mup transfers" in page
    assert Path("run/check.json").read_bytes() == foreign
