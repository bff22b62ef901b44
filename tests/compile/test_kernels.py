"""Kernels at the published widths through the real compilers, without the devices."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gptoss_jax.kernels import attention
from gptoss_jax.kernels.moe import dispatch
from gptoss_jax.kernels.moe.experts import Experts
from gptoss_jax.mxfp4 import MXFP4
from gptoss_jax.topology import mesh_of, on_mesh

requires_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the GPU's compiler is not installed: pip install '.[compile]'",
)
HIDDEN = WIDTH = 2880
ACTIVE = 4
KERNEL = 'custom_call_target="mosaic_gpu'


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """A compiler without a device cannot load what the cache holds, and warns."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def struct(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def operands(rows: int, experts: int, dtype: str = "bfloat16"):
    return (
        struct(rows, HIDDEN, dtype=dtype),
        struct(rows, ACTIVE, dtype="int32"),
        struct(rows, ACTIVE, dtype="float32"),
        Experts(
            MXFP4.abstract(experts, HIDDEN, 2 * WIDTH),
            struct(experts, 2 * WIDTH),
            MXFP4.abstract(experts, WIDTH, HIDDEN),
            struct(experts, HIDDEN),
            alpha=1.702,
            limit=7.0,
        ),
    )


def compiled(function, operands, devices: int = 1):
    mesh = mesh_of(f"h100:{devices}", devices)
    if devices > 1:
        function = jax.shard_map(function, in_specs=P(), out_specs=P(), check_vma=False)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*on_mesh(operands, mesh)).compile()


@requires_compiler
@pytest.mark.parametrize(
    ("rows", "experts", "devices"), [(1, 32, 1), (64, 32, 1), (8, 128, 1), (64, 32, 2)]
)
def test_experts_on_hopper_are_never_stored_dequantised(rows, experts, devices):
    program = compiled(dispatch.moe, operands(rows, experts), devices)
    assert program.as_text().count(KERNEL) == 2
    # A dequantised expert is 50 MB.
    assert program.memory_analysis().temp_size_in_bytes < 30e6


@requires_compiler
@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (513, "bfloat16")])
def test_who_does_without_the_kernel(rows, dtype):
    assert KERNEL not in compiled(dispatch.moe, operands(rows, 32, dtype)).as_text()


@requires_compiler
@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (64, 1), (8, 2)])
def test_attention_on_hopper_copies_no_page(batch, devices):
    cache = struct(1 + 64 * batch, 8, 64, 128)
    table = struct(batch, 65, dtype="int32")
    program = compiled(
        attention.attend_cache,
        (
            struct(batch, 1, 64, 64),
            cache,
            cache,
            struct(64),
            table,
            struct(batch, 1, dtype="int32"),
        ),
        devices,
    )
    assert program.as_text().count(KERNEL) == 1
    # The keys alone are eight times as much.
    assert program.memory_analysis().temp_size_in_bytes < cache.size / 4
