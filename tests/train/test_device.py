"""A device is the one that was asked for, or an error."""

from __future__ import annotations

import pytest
import torch

from mutransfer.errors import ConfigError
from mutransfer.train.device import find_device
from mutransfer.train.precision import PRECISIONS, find_precision


def test_auto_is_the_accelerator_where_there_is_one() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device=cuda:99 cannot be used here .*Use device=auto or device=cpu"):
        find_device("cuda:99")


@pytest.mark.parametrize("name", ["gpu", "cpu:x", ""])
def test_what_is_no_device_is_refused_without_torchs_list_of_all(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^device={name} is no device\. Use auto, cpu, cuda, cuda:1 and the like"):
        find_device(name)


def test_a_precision_lowers_matrix_products_inside_its_context_only() -> None:
    x = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with find_precision(name).context(torch.device("cpu")):
            assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32
    assert set(PRECISIONS) == {"fp32", "bf16"}
