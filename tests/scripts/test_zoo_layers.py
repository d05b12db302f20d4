"""Models whose constructors fix every width, made narrower and wider by the sizes of their layers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.from_timm import Arguments, _shrink
from zoo.from_transformers import transformers_subjects
from zoo.layer_sizes import divisor_of, layers_times
from zoo.stages import examine
from zoo.subjects import Small, Subject, by_layers, from_config

from mutransfer.errors import ShapeError


class Fixed(nn.Module):
    """Depthwise separable blocks of 32 and 64 channels, whatever it is called with."""

    def __init__(self, num_classes: int = 10, layers: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Conv2d(32, 32, 1)) for _ in range(layers))
        )
        self.widen = nn.Conv2d(32, 64, 1)
        self.fc = nn.Linear(64, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        return self.widen(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Written(Fixed):
    """The same with its last width as a number in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).reshape(len(x), 64))


class Free(nn.Module):
    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, hidden_size, 3), nn.Linear(hidden_size, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


def images(_: int = 0) -> tuple[Tensor, ...]:
    return (torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def runs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(*images())
    return out


def test_every_size_of_a_layer_follows_but_classes_and_the_image() -> None:
    with layers_times(Fraction(1, 4), kept={10}):
        model = Fixed()
    assert tuple(model.stem.weight.shape) == (8, 3, 3, 3)
    assert tuple(model.blocks[0][0].weight.shape) == (8, 1, 3, 3)  # type: ignore[index]
    assert tuple(model.widen.weight.shape) == (16, 8, 1, 1)
    assert tuple(model.fc.weight.shape) == (10, 16)
    assert runs(model).shape == (4, 10)


def test_layers_are_made_as_ever_afterwards_also_after_a_failure() -> None:
    with pytest.raises(ShapeError, match="size 10 is not of a whole size at 1/4"), layers_times(Fraction(1, 4)):
        Fixed()
    assert tuple(Fixed().fc.weight.shape) == (10, 64)


def test_a_model_of_one_fixed_width_converts_by_its_layers() -> None:
    def small() -> Small:
        wider = by_layers(None, lambda _: Fixed(), runs, kept={10})
        return Small(64, from_config(None, 64, wider)[0], images, wider.notes)

    row = examine(Subject("fixed", "test", small), "convert")
    assert (row["converted"], row["wider_by"], row["layers_over"]) == (True, "layers", 8), row["reason"]
    assert row["folded_is_explicit"] is True
    assert row["roles"]["hidden"] == 2  # one pointwise convolution of a block, and the one that widens
    assert row["roles"]["output"] == 1


def test_a_forward_pass_with_its_width_as_a_number_is_refused_with_a_sentence() -> None:
    assert divisor_of(Fixed, runs, kept={10}) == 8
    with pytest.raises(ShapeError, match=r"sizes of all its layers.*forward pass has a width as a number.*factory="):
        divisor_of(Written, runs, kept={10})


def test_layers_are_scaled_where_the_config_has_no_width_and_fields_where_it_has_one() -> None:
    def build(config: Any) -> nn.Module:
        return Fixed(**vars(config))

    shrunk, wider, _ = _shrink(Arguments(num_classes=10, layers=12), build)
    assert (shrunk.config.layers, wider.notes["wider_by"]) == (2, "layers")
    make, deep = from_config(shrunk.config, 64, wider)
    assert deep is not None
    assert len(make(64).blocks) == 2  # type: ignore[arg-type]
    deeper = deep(128, 2)
    assert (len(deeper.blocks), deeper.fc.in_features) == (4, 16)  # type: ignore[arg-type,union-attr]
    _, wider, _ = _shrink(Arguments(hidden_size=768), lambda config: Free(**vars(config)))
    assert wider.notes["wider_by"] == "fields"


class Whole(nn.Module):
    """Takes channels in multiples of 576 alone, and has them as a number in its forward pass."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        if out_channels % 576:
            raise ValueError("only in multiples")
        self.stem, self.fc, self.channels = nn.Conv2d(3, out_channels, 3, 8), nn.Linear(out_channels, 10), out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)).reshape(len(x), self.channels))


def test_what_does_not_run_when_it_is_smaller_is_taken_as_it_is() -> None:
    shrunk, wider, _ = _shrink(Arguments(out_channels=576), lambda config: Whole(**vars(config)))
    assert (shrunk.config.out_channels, wider.notes["wider_by"]) == (576, "fields")
    assert from_config(shrunk.config, 64, wider)[0](128).channels == 1152


def test_where_neither_fields_nor_layers_make_it_wider_the_failure_is_that_of_the_fields() -> None:
    with pytest.raises(ShapeError, match="No field of Arguments that is known as a width"):
        _shrink(Arguments(num_classes=10), lambda config: Written(**vars(config)))


@pytest.mark.slow
def test_a_transformers_model_whose_config_has_no_width_is_made_wider_by_its_layers() -> None:
    uvdoc = next(one for one in transformers_subjects() if one.name == "uvdoc_backbone")
    row = examine(uvdoc, "build")
    assert (row["shrunk"], row.get("wider_by")) == (True, "layers"), row["reason"]
    assert row["grows"] > 3.5  # 4 of matrices alone
