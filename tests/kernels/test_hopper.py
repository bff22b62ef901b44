"""Which devices the kernels for Hopper are for."""

import subprocess
import sys

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


def test_who_has_no_hopper_does_not_import_its_kernels():
    code = (
        "import sys, gptoss_jax.model.transformer\n"
        "print('jax.experimental.pallas.mosaic_gpu' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
