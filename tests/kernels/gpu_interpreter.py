"""Mosaic GPU's interpret mode, which runs kernels of a GPU on the CPU."""

import jax
import numpy as np
from jax._src.pallas.mosaic_gpu import core
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode
from jax.interpreters import mlir

# The interpreter has no rule for it: it says where elements lie, not what they are.
mlir.register_lowering(core.layout_cast_p, lambda _, x, **layout: [x], platform="cpu")


def interpreted(function, *args) -> np.ndarray:
    """The function's result, its kernels interpreted."""
    with force_gpu_interpret_mode():
        return np.asarray(jax.jit(lambda *args: function(*args))(*args))
