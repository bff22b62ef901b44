"""Which devices the kernels for Hopper are for."""

import pytest

from gptoss_jax.kernels import hopper


@pytest.mark.parametrize(
    ("name", "is_hopper"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA GH200 480GB", True),
        ("NVIDIA H20", True),
        ("NVIDIA B200", False),
        ("NVIDIA GB200", False),
        ("NVIDIA A100-SXM4-80GB", False),
        ("TPU v5 lite", False),
        ("cpu", False),
    ],
)
def test_names_of_hopper(name, is_hopper):
    assert (hopper._NAME.search(name) is not None) == is_hopper
