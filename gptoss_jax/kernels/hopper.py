"""The GPUs that the kernels in `mosaic_gpu.py` are for: those with `wgmma`; Blackwell has none."""

import re

import jax

# Rows that wgmma multiplies at once, however few are needed.
UNIT_ROWS = 64
_NAME = re.compile(r"\bG?H\d+\b")


def is_target() -> bool:
    """Whether Hopper is compiled for, by the name of the devices.

    Those of the mesh, which may not be here, else this process's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return _NAME.search(device.device_kind) is not None
