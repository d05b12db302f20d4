"""Batches are a pure function of step and seed, and nothing held out is ever trained on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mutransfer.errors import ConfigError, DataError
from mutransfer.train.data import DATA, Data, build_data
from mutransfer.train.data import corpus as stdlib_corpus
from mutransfer.train.data.files import fingerprint
from mutransfer.train.data.hub import _load as hub_cache
from mutransfer.train.data.registry import fitting
from mutransfer.train.data.synthetic import MarkovTokens

TEXT = "".join(f"line {i} of some text\n" for i in range(2000))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Stands in for the package datasets: what load_dataset streams."""
    content = [{"text": f"row {i} " + "word " * 20} for i in range(200)]
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Iterator[dict[str, str]]:
        calls.append((name, config, options))
        if name == "missing":
            raise FileNotFoundError("no such data set.")
        return iter(content)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, calls=calls))
    hub_cache.cache_clear()
    return content


@pytest.fixture
def make_data(tmp_path: Path, rows: list[dict[str, str]]) -> Any:
    (tmp_path / "book.txt").write_text(TEXT)
    np.random.default_rng(0).integers(0, 500, 20_000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    configs: dict[str, dict[str, Any]] = {
        "stdlib": {"name": "stdlib"},
        "text": {"name": "text", "path": str(tmp_path / "book.txt")},
        "memmap": {"name": "memmap", "path": str(tmp_path / "tokens.bin"), "vocab_size": 500},
        "hf": {"name": "hf", "dataset": "some/data"},
        "digits": {"name": "digits"},
        "regression": {"name": "synthetic"},
        "classification": {"name": "synthetic", "task": "classification", "noise": 0.2},
        "tokens": {"name": "synthetic", "task": "tokens", "batch_size": 4},
    }

    def make(name: str, model: str = "gpt", **settings: Any) -> Data:
        return build_data({**configs[name], **settings}, {"name": model})

    return make


NAMES = ["stdlib", "text", "memmap", "hf", "digits", "regression", "classification", "tokens"]


def equal(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_a_pure_function_of_step_and_seed(make_data: Any, name: str) -> None:
    data, again = make_data(name), make_data(name)
    expected = data.batch(7, seed=1)
    data.batch(8, seed=1)
    assert equal(again.batch(7, seed=1), expected)
    assert not equal(data.batch(8, seed=1), expected)
    assert not equal(data.batch(7, seed=2), expected)
    assert data.sha256 == again.sha256
    assert len(data.sha256) == 64


@pytest.mark.parametrize("name", NAMES)
def test_validation_gives_the_same_batches_every_time(make_data: Any, name: str) -> None:
    data = make_data(name)
    first, again = data.validation(3), data.validation(3)
    assert len(first) == 3
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not equal(first[0], first[1])
    training = [data.batch(step, seed=seed) for step in range(3) for seed in range(2)]
    assert not any(x.shape == y.shape and torch.equal(x, y) for x, _ in first for y, _ in training)


@pytest.mark.parametrize("name", ["stdlib", "text", "memmap", "hf", "tokens"])
def test_targets_are_the_next_tokens(make_data: Any, name: str) -> None:
    inputs, targets = make_data(name).batch(0, seed=0)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("name", NAMES)
def test_info_describes_the_batches(make_data: Any, name: str) -> None:
    data = make_data(name)
    inputs, targets = data.batch(0, seed=0)
    assert tuple(inputs.shape[1:]) == data.info.shape
    if data.info.vocab_size or data.info.classes:
        assert int(targets.max()) < data.info.outputs
    else:
        assert targets.shape[1:] == (data.info.outputs,)
    logits = torch.zeros(*targets.shape, data.info.outputs) if targets.dtype == torch.int64 else targets
    assert torch.isfinite(data.loss(_Constant(logits), (inputs, targets)))


class _Constant(torch.nn.Module):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.output


def test_the_loss_is_in_nats_per_token(make_data: Any) -> None:
    data = make_data("stdlib", batch_size=2, seq_len=8)
    batch = data.batch(0, seed=0)
    uniform = data.loss(_Constant(torch.zeros(2, 8, 256)), batch)
    assert float(uniform) == pytest.approx(np.log(256))
    exact = data.loss(_Constant(100.0 * torch.nn.functional.one_hot(batch[1], 256)), batch)
    assert float(exact) == pytest.approx(0, abs=1e-6)


def test_the_standard_library_is_held_out_by_whole_files(make_data: Any) -> None:
    data = make_data("stdlib")
    names = sorted(stdlib_corpus._sources(Path(stdlib_corpus.sysconfig.get_path("stdlib"))))
    heldout = {name for name in names if stdlib_corpus.is_heldout(name)}
    assert 0.02 < len(heldout) / len(names) < 0.12
    assert "argparse.py" in names
    assert not [name for name in names if {"test", "tests", "site-packages", "lib2to3"} & set(name.split("/"))]
    assert not [name for name in names if "sysconfigdata" in name]
    assert data.sha256 == make_data("stdlib", seq_len=8).sha256


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(stdlib_corpus, "SMALLEST", 10)
    for name in ("b.py", "a/z.py", "a/test/t.py", "site-packages/s.py", "_sysconfigdata_x.py", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name} {'x' * 20}\n")
    stdlib_corpus.load.cache_clear()
    yield tmp_path
    stdlib_corpus.load.cache_clear()


def test_the_corpus_is_sources_alone_in_sorted_order_and_its_hash_sees_every_byte(library: Path) -> None:
    corpus = stdlib_corpus.load(library)
    text = corpus.train.tobytes() + corpus.heldout.tobytes()
    assert text.count(b"#") == 2
    assert text.index(b"a/z.py") < text.index(b"b.py")
    stdlib_corpus.load.cache_clear()
    assert stdlib_corpus.load(library).sha256 == corpus.sha256
    stdlib_corpus.load.cache_clear()
    (library / "b.py").write_text(f"# b.py {'x' * 19}y\n")
    assert stdlib_corpus.load(library).sha256 != corpus.sha256


def test_a_python_without_sources_is_said(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_corpus, "SMALLEST", 1000)
    with pytest.raises(DataError, match=r"ships without sources. Use data=text"):
        stdlib_corpus.load(library)


def test_the_end_of_a_file_is_held_out(make_data: Any) -> None:
    data = make_data("text", batch_size=4, seq_len=32)
    numbers = [_lines(x) for x, _ in data.validation(50)], [_lines(data.batch(i, seed=0)[0]) for i in range(50)]
    heldout, trained = ({n for batch in part for n in batch} for part in numbers)
    assert min(heldout) > 1800
    assert max(trained) < min(heldout)


def _lines(inputs: torch.Tensor) -> set[int]:
    texts = [bytes(row.tolist()).decode() for row in inputs]
    return {int(line.split()[1]) for text in texts for line in text.split("\n")[1:-1] if len(line.split()) == 5}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory. Check data.path"),
        (b"", "is empty. Give a file that holds data"),
        (b"short", r"has 5 bytes of text, each a token; at least 520 are needed .* 65 to hold out. Use a longer text"),
        (b"x" * 584, "has 584 bytes of text"),
    ],
)
def test_a_text_that_cannot_fill_a_batch_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        build_data({"name": "text", "path": str(path)}, {"name": "gpt"})


def test_token_ids_that_cannot_fill_a_batch_are_counted_in_their_own_type(tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    path.write_bytes(bytes(1000))
    memmap = {"name": "memmap", "path": str(path), "seq_len": 64, "vocab_size": 300}
    with pytest.raises(DataError, match=r"has 250 tokens of data.dtype=int32; at least 520 .*Check data.dtype, or tok"):
        build_data(memmap | {"dtype": "int32"}, {"name": "gpt"})
    with pytest.raises(DataError, match=r"has 500 tokens of data.dtype=uint16"):
        build_data(memmap, {"name": "gpt"})
    build_data(memmap | {"dtype": "uint8"}, {"name": "gpt"})


def test_data_that_fit_a_model_are_named_and_give_what_is_said_of_them() -> None:
    assert fitting(["images"]) == ["data=digits", "data=synthetic"]
    assert "data=synthetic data.task=tokens" in fitting(["tokens"])
    for name, source in DATA.items():
        if name in ("text", "memmap", "hf"):
            continue  # need a file
        for kind, way in source.gives.items():
            asked = dict([way.removeprefix("data.").split("=")]) if way else {}
            model = "resnet" if kind == "images" else "mlp"
            assert build_data({"name": name, **asked}, {"name": model}).info.kind == kind


def test_a_folder_or_no_path_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read|no whole number"):
        build_data({"name": "text", "path": str(tmp_path)}, {"name": "gpt"})
    with pytest.raises(DataError, match=r"data.path is missing"):
        build_data({"name": "text"}, {"name": "gpt"})


def test_token_ids_are_held_against_their_vocabulary_and_dtype(make_data: Any, tmp_path: Path) -> None:
    small = make_data("memmap", vocab_size=100)
    with pytest.raises(DataError, match=r"holds token \d+, and data.vocab_size=100 allows ids up to 99"):
        small.batch(0, seed=0)
    (tmp_path / "odd.bin").write_bytes(b"x" * 2001)
    with pytest.raises(DataError, match=r"no whole number of uint16 tokens"):
        make_data("memmap", path=str(tmp_path / "odd.bin"))
    with pytest.raises(ConfigError, match=r"data.dtype=uint61 is not one of .*Did you mean 'uint16'"):
        make_data("memmap", dtype="uint61")


def test_a_large_files_fingerprint_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.arange(10_000, dtype=np.uint16)
    assert fingerprint(tokens) == hashlib.sha256(b"20000" + tokens.tobytes()).hexdigest()
    monkeypatch.setattr("mutransfer.train.data.files._BLOCKS", 4)
    monkeypatch.setattr("mutransfer.train.data.files._BLOCK", 1000)
    changed = tokens.copy()
    changed[-1] += 1
    assert fingerprint(tokens) == fingerprint(tokens.copy())
    assert fingerprint(tokens) != fingerprint(changed)


def test_every_sixteenth_row_of_a_streamed_data_set_is_held_out(make_data: Any, rows: list[dict[str, str]]) -> None:
    data = make_data("hf", split="test", data_files=["a.txt", "b.txt"])
    name, config, options = sys.modules["datasets"].calls[0]  # type: ignore[attr-defined]
    assert (name, config) == ("some/data", None)
    assert options == {"split": "test", "data_files": ["a.txt", "b.txt"], "streaming": True}
    heldout = b"".join(rows[i]["text"].encode() + b"\n" for i in range(15, 200, 16))
    assert data._heldout.tobytes() == heldout
    assert rows[15]["text"].encode() not in data._train.tobytes()


def test_streaming_stops_at_the_number_of_tokens(make_data: Any) -> None:
    data = make_data("hf", tokens=5000)
    assert 5000 <= len(data._train) + len(data._heldout) < 5200


def test_a_streamed_data_set_that_cannot_be_used_is_refused(make_data: Any) -> None:
    with pytest.raises(DataError, match=r"has no column 'txt'. Did you mean 'text'"):
        make_data("hf", text_column="txt")
    with pytest.raises(DataError, match=r"data.dataset=missing cannot be streamed: no such data set. Check its name"):
        make_data("hf", dataset="missing")
    with pytest.raises(ConfigError, match=r"data.dataset is missing"):
        make_data("hf", dataset="")
    with pytest.raises(DataError, match=r"and 0 held out; at least .*larger data.tokens"):
        make_data("hf", tokens=1, seq_len=1, batch_size=1)


def test_a_given_tokenizer_makes_the_ids(make_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def __len__(self) -> int:
            return 300

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [{"row": 0, "word": 1}.get(word, 299) for word in text.split()]}

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: str) -> Words:
            if name != "mine":
                raise OSError("not a folder")
            return Words()

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoTokenizer=AutoTokenizer))
    data = make_data("hf", tokenizer="mine")
    assert data.info.vocab_size == 300
    assert set(data.batch(0, seed=0)[0].unique().tolist()) <= {0, 1, 299}
    with pytest.raises(DataError, match=r"data.tokenizer=yours cannot be loaded: not a folder"):
        make_data("hf", tokenizer="yours")


@pytest.mark.parametrize(
    ("name", "settings", "module", "sentence"),
    [
        ("hf", {}, "datasets", "data=hf needs the package datasets"),
        ("hf", {"tokenizer": "x"}, "transformers", "data.tokenizer needs the package transformers"),
        ("digits", {}, "sklearn.datasets", "data=digits needs the package scikit-learn"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    make_data: Any, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], module: str, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=sentence):
        make_data(name, **settings)


def test_image_models_get_images_and_others_vectors_unless_the_config_says(make_data: Any) -> None:
    assert make_data("digits", "mlp").info.shape == (64,)
    assert make_data("digits", "resnet").info.shape == (1, 8, 8)
    assert make_data("digits", "factory", images=True).info.kind == "images"
    assert make_data("regression", "vit").info.shape == (3, 16, 16)
    assert make_data("regression", "mlp", shape=[5]).info.shape == (5,)
    with pytest.raises(ConfigError, match=r"image models need \[channels, height, width\]"):
        make_data("regression", "vit", shape=[5])


def test_all_held_out_digits_are_validated_once_at_most(make_data: Any) -> None:
    data = make_data("digits", batch_size=100)
    batches = data.validation(1000)
    assert [len(x) for x, _ in batches] == [100, 100, 97]
    heldout = {tuple(x.tolist()) for batch, _ in batches for x in batch}
    trained = {tuple(x.tolist()) for step in range(60) for x in data.batch(step, seed=0)[0]}
    assert len(trained) > 1400
    assert not heldout & trained


def test_a_teacher_is_learnable_and_its_targets_have_unit_scale(make_data: Any) -> None:
    data = make_data("regression", batch_size=2000)
    targets = data.batch(0, seed=0)[1]
    assert float(targets.std()) == pytest.approx(1, abs=0.1)
    other = make_data("regression", batch_size=2000, teacher_seed=1)
    assert torch.equal(other.batch(0, seed=0)[0], data.batch(0, seed=0)[0])
    assert not torch.equal(other.batch(0, seed=0)[1], targets)
    assert other.sha256 != data.sha256


def test_label_noise_replaces_that_share_of_the_labels(make_data: Any) -> None:
    clean, noisy = (make_data("classification", batch_size=4000, noise=noise).batch(0, seed=0)[1] for noise in (0, 0.5))
    assert float((clean != noisy).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_synthetic_tokens_follow_their_transition_matrix(make_data: Any) -> None:
    data = make_data("tokens", batch_size=400, vocab_size=4)
    assert isinstance(data, MarkovTokens)
    inputs, targets = data.batch(0, seed=0)
    counts = np.zeros((4, 4))
    np.add.at(counts, (inputs.flatten().numpy(), targets.flatten().numpy()), 1)
    frequencies = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    seen = counts.sum(axis=1) > 500
    assert seen.sum() >= 2
    assert np.abs(frequencies - data.transitions)[seen].max() < 0.05


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        ({"name": "stdlb"}, ConfigError, "no data set 'stdlb'. Did you mean 'stdlib'"),
        ({"name": "stdlib", "seqlen": 3}, ConfigError, "Did you mean 'seq_len'"),
        ({"name": "stdlib", "batch_size": 0}, ConfigError, "data.batch_size=0"),
        ({"name": "stdlib", "seq_len": 10**7}, DataError, "tokens to train on"),
        ({"name": "digits", "batch_size": 2000}, DataError, "have 1500 training images. Use a smaller batch"),
        ({"name": "synthetic", "task": "tokns"}, ConfigError, "Did you mean 'tokens'"),
        ({"name": "synthetic", "shape": [0]}, ConfigError, "data.shape"),
    ],
)
def test_wrong_data_settings_are_refused(config: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        build_data(config, {"name": "mlp"})
    assert set(DATA) == {"stdlib", "text", "memmap", "hf", "digits", "synthetic"}
