"""The schema answers before torch is loaded; so it must know exactly the settings that models and data really have."""

from __future__ import annotations

import dataclasses

import pytest

from mutransfer.sweep.models import DATA, MODELS
from mutransfer.sweep.schema import Train
from mutransfer.train.data.registry import DATA as REAL_DATA
from mutransfer.train.loop import TrainSettings
from mutransfer.train.models.registry import MODELS as REAL_MODELS

OF_THE_BASE = {"base_width", "base_depth"}
FROM_THE_DATA = {"kind", "vocab_size", "seq_len", "shape", "outputs", "channels", "image_size"}


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_model_that_can_be_built_can_be_configured() -> None:
    assert set(MODELS) == set(REAL_MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_the_schema_of_a_model_is_what_the_model_takes(model: str) -> None:
    assert names(MODELS[model]) - {"name", *OF_THE_BASE} == names(REAL_MODELS[model].config) - FROM_THE_DATA


def test_every_data_set_that_can_be_read_can_be_configured() -> None:
    assert set(DATA) == set(REAL_DATA)


@pytest.mark.parametrize("data", DATA)
def test_the_schema_of_a_data_set_is_what_the_data_set_takes(data: str) -> None:
    assert names(DATA[data]) - {"name"} == names(REAL_DATA[data].settings)


def test_the_schema_of_training_is_what_the_loop_takes() -> None:
    assert names(Train) == names(TrainSettings)
