from __future__ import annotations

import html
import json
import re

import pytest

from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord
from mutransfer.report import CheckError, environment_of, write_report
from mutransfer.report.markup import tag


def words(page):
    return re.sub(
        r"\s+", " ", re.sub(r"<svg.*?</svg>|<style.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    )


def test_the_verdict_comes_first_in_words(written):
    text = words(written)
    assert "mup transfers: the best learning rate at width 32 is still the best at width 128." in text
    assert text.index("mup transfers:") < text.index("Held-out loss against learning rate") < text.index("Made by")
    assert re.search(r"moves by 0\.\d\d \[0\.\d\d, 0\.\d\d\] octaves", text)
    assert "the control sp : does not transfer" in text


def test_a_roles_lr_stands_beside_the_multiplier_and_init_that_it_goes_with(written):
    text = html.unescape(words(written))
    assert "lr of output 0.0156 0.03125 1 " in text
    assert "A role's lr holds together with its forward multiplier" in text


def test_the_target_and_the_command_can_be_copied(written):
    text = written.read_text()
    assert "model.width=1024 base=32 parameterization=mup optimizer.lr=0.0156" in text
    assert "mutransfer transfer runs/demo" in text
    assert "one proxy size only" in text


def test_figures_and_numbers_lie_beside_the_page(written, report):
    beside = {path.name for path in written.parent.iterdir()}
    assert beside == {"report.html", "loss.png", "optimum.png", "exponents.png", "transfer.json", "check.json"}
    content = json.loads((written.parent / "transfer.json").read_text())
    assert content["parameterizations"] == report.to_json()["parameterizations"]
    assert content["command"] == "mutransfer transfer runs/demo"
    assert (written.parent / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_json_makes_the_same_page(written, tmp_path):
    saved = [json.loads((written.parent / name).read_text()) for name in ("transfer.json", "check.json")]
    again = write_report(tmp_path, *saved, command=saved[0]["command"], target=saved[0]["target"])
    assert again.read_text() == written.read_text()


def test_a_check_alone_has_its_own_verdict_and_culprit(check, tmp_path):
    page = write_report(tmp_path / "check.html", check=check)
    text = words(page)
    assert page.name == "check.html"
    assert "Coordinate check: fail." in text
    assert "blocks.0.mlp.up.weight (change): measured +0.90, law +0.00; look at: its learning rate" in text


SWEPT = {"model.name": "gpt", "model.depth": 2, "base": 32, "optimizer.name": "adamw", "parameterization.name": "mup"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.depth": 3}, "model.depth is 3 in the check and 2 in the sweep"),
        ({"model.name": "mlp", "model.depth": 3}, "model.name is mlp in the check and gpt in the sweep"),
        ({"base": 64}, "base is 64 in the check and 32 in the sweep"),
        ({"optimizer.name": "sgd"}, "optimizer.name is sgd in the check and adamw in the sweep"),
        ({"parameterization.name": "ntk"}, "it is of ntk, which was not swept"),
    ],
)
def test_a_check_of_something_else_is_not_shown_beside_the_sweep(renamed, check, tmp_path, change, said):
    sweep = renamed("mup") | {"settings": {"mup": SWEPT}}
    own = words(write_report(tmp_path / "own", sweep, check | {"settings": SWEPT}))
    assert "Coordinate check: fail." in own
    assert "parameterization mup, optimizer adamw, base 32" in own
    foreign = words(write_report(tmp_path / "foreign", sweep, check | {"settings": SWEPT | change}))
    assert f"not about this sweep: {said}." in foreign
    assert "Coordinate check: fail." not in foreign
    assert not (tmp_path / "foreign" / "exponents.png").exists()


def test_what_python_told_a_check_counts_too(renamed, check, tmp_path):
    sweep = renamed("mup") | {"settings": {"mup": SWEPT}}
    told = check | {"parameterization": "mup", "optimizer": "sgd", "base": 32, "model": "GPT"}
    assert "optimizer.name is sgd in the check" in words(write_report(tmp_path, sweep, told))
    fits = told | {"optimizer": "adamw"}
    assert "Of GPT: parameterization mup, optimizer adamw, base 32." in words(write_report(tmp_path, sweep, fits))


def test_a_check_that_does_not_say_what_it_is_of(written):
    assert "This check does not say which model and parameterization it is of." in words(written)


def test_an_undecided_sweep_says_what_to_add(renamed, tmp_path):
    line = "mutransfer sweep model.width=128 optimizer.lr=2**-11"
    content = renamed("mup") | {"verdict": "undecided", "extend": [line]}
    assert f"To settle it: {line}" in words(write_report(tmp_path, content))
    settled = words(write_report(tmp_path, content | {"verdict": "transfers"}))
    assert f"To complete the comparison: {line}" in settled


def test_an_optimum_at_the_edge_is_not_given_as_a_finding(renamed, tmp_path):
    content = renamed("mup")
    content["parameterizations"]["mup"]["optimum"]["128"] |= {"interior": False, "bound": "<="}
    text = words(write_report(tmp_path, content))
    assert re.search(r"\u2264 2 -\d", text)
    assert not re.search(r"\u2265", text)
    assert (
        "mup's best learning rate lies at the edge of the tried values at width 128: extend the grid."
        in html.unescape(text)
    )
    assert "mup's best learning rate moves" not in html.unescape(text)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>', "$\\frac{", "--><b>", "x\ny"])
def test_every_string_of_a_user_is_escaped(renamed, check, tmp_path, name):
    bad = json.loads(json.dumps(check).replace("token.weight", json.dumps(name)[1:-1]))
    page = write_report(tmp_path, renamed(name), bad, command=name, environment={name: name}).read_text()
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "section",
        "h1",
        "h2",
        "p",
        "b",
        "span",
        "ul",
        "li",
    }
    allowed |= {"pre", "code", "div", "figure", "table", "thead", "tbody", "tr", "th", "td", "sup", "small", "details"}
    allowed |= {"summary", "dl", "dt", "dd", "svg", "defs", "g", "path", "use", "clippath", "rect"}
    assert {found.lower() for found in re.findall(r"<([A-Za-z]\w*)", page)} <= allowed
    assert not re.search(r"\son\w+\s*=\s*[\"'a-z]", re.sub(r"&[a-z]+;", "", page))


def test_a_hyperparameters_key_cannot_leave_the_folder(renamed, tmp_path):
    content = renamed("mup")
    content["hyperparameters"] = {"../../evil": renamed("mup") | {"x": "../../evil"}}
    folder = tmp_path / "a" / "b"
    write_report(folder, content)
    assert {path.name for path in tmp_path.rglob("*.png")} == {"loss.png", "optimum.png", "loss--evil.png"}
    assert all(path.parent == folder for path in tmp_path.rglob("*.png"))


def test_markup_escapes_children_and_attributes():
    assert tag("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x")) == "<p><b>x</b></p>"


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(ConfigError, match="nothing to report"):
        write_report(tmp_path)


def test_a_file_of_something_else(tmp_path):
    with pytest.raises(RunError, match=r"not the content of a transfer\.json"):
        write_report(tmp_path, {"verdict": "transfers"})
    with pytest.raises(CheckError, match=r"not the content of a check\.json: it lacks 'slopes'"):
        write_report(tmp_path, check={"verdict": "pass"})


def test_a_folder_that_cannot_be_written(report, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="Cannot write"):
        write_report(tmp_path / "file" / "report.html", report)


def test_the_environment_is_that_of_the_trials():
    environment = {"torch": "2.13.0", "data_sha256": "abc", "commit": "123"}
    trials = [TrialRecord(str(k), {"seed": k}, "done", cpu_seconds=2.0, environment=environment) for k in (0, 1)]
    found = environment_of([*trials, trials[0]])
    assert (found["torch"], found["data_sha256"], found["seeds"]) == ("2.13.0", "abc", "0, 1")
    assert found["trials"] == "2 done; 4 CPU-seconds"
    assert "python" in environment_of()


def test_words_for_what_is_not_known(renamed, tmp_path):
    content = renamed("mup") | {"verdict": "undecided"}
    content["parameterizations"]["mup"]["regret"] = {"value": None, "low": None, "high": None, "reason": "not tried"}
    text = words(write_report(tmp_path, content))
    assert "Undecided: these trials do not settle whether mup transfers." in text
    assert "costs is not known: not tried" in text


def test_words_for_divergence_and_for_a_control_that_is_the_subject(renamed, tmp_path):
    content = renamed("mup") | {"verdict": "does not transfer", "subject": ["sp"]}
    content["parameterizations"]["sp"]["regret"] = {"value": None, "low": 0.2, "high": None}
    text = words(write_report(tmp_path, content))
    assert "sp does not transfer: the best learning rate at width 32 is not the best at width 128." in text
    assert "Training width 128 at the best learning rate of width 32 diverges" in text


def test_a_check_in_depth_says_depth(check, tmp_path):
    """Where the same numbers over widths say width."""
    for axis, other in (("depth", "width"), ("width", "depth")):
        page = write_report(tmp_path / axis / "check.html", check={**check, "axis": axis})
        text = words(page)
        assert f"exponent in {axis}" in text
        assert f"Exponent in {axis} of every parameter" in page.read_text()
        assert f"exponent in {other}" not in text.replace(f"exponent in {axis}", "")
