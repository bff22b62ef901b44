"""Tiles of rows times packed weights on Hopper, dequantised in shared memory.

A tile is some rows of one expert. Its program's weights are read once, as bytes; a tile that is not
there reads nothing. Written in Pallas for Mosaic GPU.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from gptoss_jax.kernels.hopper import UNIT_ROWS
from gptoss_jax.mxfp4 import GROUP, HALF, MXFP4

_INPUTS = 64  # of a step: 128 bytes of bfloat16, a line of swizzled shared memory
_COLUMNS = (192, 128, 64)  # of a program
_STAGES = 4  # steps whose bytes are under way or in use
# Programs that H100 holds at once: two a multiprocessor, by their shared memory.
_PROGRAMS = 264
_128 = 0x4300  # as bfloat16
# Four columns a thread, so that bytes come as words; a warp reads two rows of 64.
_LAYOUT = plgpu.Layout.TILED(
    plgpu.Tiling(((8, 64), (2, 64), (4,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)


def matmul(x_TSK: jax.Array, weight: MXFP4, *, expert_T: jax.Array, tiles: jax.Array) -> jax.Array:
    """Each tile of rows times its expert's weight: float32 [T, S, N].

    Args:
      x_TSK: bfloat16, S up to `UNIT_ROWS`.
      weight: [E, K, N], K and N multiples of 64.
      expert_T: int32.
      tiles: int32 scalar, how many of the T are there; the others' results are not defined.
    """
    length, rows, inputs = x_TSK.shape
    num_experts, _, outputs = weight.shape
    # Shared memory is swizzled in blocks of eight rows.
    x_TSK = jnp.pad(x_TSK, ((0, 0), (0, -rows % 8), (0, 0)))
    columns = next(c for c in _COLUMNS if outputs % c == 0)
    splits = _splits(length * outputs // columns, inputs // _INPUTS)
    kernel = plgpu.kernel(
        functools.partial(_program, columns=columns, steps=inputs // _INPUTS // splits),
        out_type=jax.ShapeDtypeStruct((length, splits, rows, outputs), jnp.float32),
        grid=(length, outputs // columns, splits),
        grid_names=("tile", "column", "split"),
        # By itself it would put two barriers around every store; those that are needed stand below.
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup, unsafe_no_auto_barriers=True
        ),
    )
    tiles = tiles.reshape(1)
    with jax.named_scope(f"active_tiles_of_{num_experts}"):
        y_TPSN = kernel(x_TSK, weight.blocks, weight.scales, expert_T, tiles)
    return y_TPSN.sum(1)


def _splits(programs: int, steps: int) -> int:
    """Parts of K that are summed afterwards: the fewest that give every multiprocessor work."""
    fitting = [n for n in range(1, steps + 1) if steps % n == 0]
    return next((n for n in fitting if programs * n >= _PROGRAMS), fitting[-1])


def _program(x, blocks, scales, expert, tiles, y, *, columns: int, steps: int):
    """One tile's rows times some columns of a part of K."""
    tile, column, split = (lax.axis_index(name) for name in ("tile", "column", "split"))
    at = pl.ds(column * columns, columns)
    size, rows = x.shape[1], y.shape[2]

    @pl.when(tile < tiles[0])
    def _():
        first_group = expert[tile] * (blocks.shape[1] // HALF)

        def bring(step, buffers: _Buffers):
            """Has a step's bytes copied to its stage."""
            stage, k = lax.rem(step, _STAGES), (split * steps + step) * _INPUTS
            groups = pl.ds(first_group + k // GROUP, _INPUTS // GROUP)
            arrived = buffers.arrived.at[stage]
            own_rows = buffers.x.at[pl.ds(stage * size, size)]
            plgpu.copy_gmem_to_smem(x.at[tile, :, pl.ds(k, _INPUTS)], own_rows, arrived)
            source = blocks.at[expert[tile], pl.ds(k // 2, _INPUTS // 2), at]
            plgpu.copy_gmem_to_smem(source, buffers.blocks.at[stage], arrived)
            plgpu.copy_gmem_to_smem(scales.at[groups, at], buffers.scales.at[stage], arrived)

        multiply = functools.partial(_multiply, bring=bring, size=size, steps=steps)
        sums = pl.run_scoped(
            lambda *buffers: multiply(_Buffers(*buffers)), *_buffers(size, columns)
        )

        # In the same memory as the buffers.
        @functools.partial(pl.run_scoped, y_smem=plgpu.SMEM((UNIT_ROWS, columns), jnp.float32))
        def _(y_smem):
            plgpu.commit_smem()
            y_smem[...] = sums
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(y_smem.at[pl.ds(0, rows)], y.at[tile, split, :, at])
            plgpu.wait_smem_to_gmem(0)


class _Buffers(NamedTuple):
    """In shared memory.

    Attributes:
      x: rows of all stages, one after the other, and more up to what wgmma reads from the last.
      blocks: [stages, K/2, columns].
      scales: [stages, groups, columns].
      weights: dequantised, [2, K, columns]: one is written while wgmma reads the other.
      arrived: a barrier for each stage.
    """

    x: Any
    blocks: Any
    scales: Any
    weights: Any
    arrived: Any


def _buffers(size: int, columns: int) -> _Buffers:
    """Their types, for tiles of so many rows."""
    return _Buffers(
        plgpu.SMEM(((_STAGES - 1) * size + UNIT_ROWS, _INPUTS), jnp.bfloat16),
        plgpu.SMEM((_STAGES, _INPUTS // 2, columns), jnp.uint8),
        plgpu.SMEM((_STAGES, _INPUTS // GROUP, columns), jnp.uint8),
        plgpu.SMEM((2, _INPUTS, columns), jnp.bfloat16),
        plgpu.Barrier(num_arrivals=3, num_barriers=_STAGES),
    )


def _multiply(buffers: _Buffers, *, bring: Callable, size: int, steps: int) -> jax.Array:
    """float32 [unit rows, columns]; those beyond a tile's rows are of other stages' bytes."""
    for step in range(min(_STAGES - 1, steps)):
        bring(step, buffers)

    def add_step(step, sums):
        stage = lax.rem(step, _STAGES)
        weights = buffers.weights.at[lax.rem(step, 2)]
        plgpu.barrier_wait(buffers.arrived.at[stage])
        for group in range(_INPUTS // GROUP):
            packed = buffers.blocks[stage, pl.ds(group * HALF, HALF)]
            halves = _decode(packed, buffers.scales[stage, group])
            for half, values in enumerate(halves):
                weights[pl.ds(group * GROUP + half * HALF, HALF), :] = values
        plgpu.commit_smem()
        plgpu.wgmma(sums, buffers.x.at[pl.ds(stage * size, UNIT_ROWS)], weights)
        # The step before is done with, in all warps: its buffers are free.
        plgpu.wgmma_wait(1)
        plgpu.commit_smem()

        @pl.when(step + _STAGES - 1 < steps)
        def _():
            bring(step + _STAGES - 1, buffers)

    def run(sums):
        lax.fori_loop(0, steps, lambda step, _: add_step(step, sums), None)
        return sums[...]

    sums = plgpu.WGMMAAccumulatorRef((UNIT_ROWS, buffers.weights.shape[-1]), jnp.float32)
    return pl.run_scoped(run, sums)


def _decode(packed: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """bfloat16 [16, N] of the low and of the high nibbles of uint8 [16, N], with scale bytes [N].

    Shifts and conversions are dear here; masks and bfloat16 arithmetic take two elements at a time.
    A byte in the mantissa of 128, some of its bits masked out, is 128 and the value of the others.
    """
    packed = plgpu.layout_cast(packed, _LAYOUT)
    scale = plgpu.layout_cast(scale, _LAYOUT.reduce(0))
    scale = lax.bitcast_convert_type(scale.astype(jnp.int16) << 7, jnp.bfloat16)
    scale = lax.broadcast_in_dim(scale, packed.shape, (1,))
    in_128 = packed.astype(jnp.int16) | _128

    def kept(mask: int) -> jax.Array:
        return lax.bitcast_convert_type(in_128 & (_128 | mask), jnp.bfloat16)

    # The highest bit of a byte is one of the exponent: 256.
    low = _magnitude(kept(0x07), 1) * _sign(kept(0x08), 128 + 8)
    high = _magnitude(kept(0x70), 16) * _sign(kept(0x80), 256)
    return low * scale, high * scale


def _magnitude(u: jax.Array, one: int) -> jax.Array:
    """Of 128 + one * code, code in 0..7: the largest of code / 2, code - 2 and 2 code - 8."""

    def line(slope: float, less: float) -> jax.Array:
        return u * jnp.bfloat16(slope / one) - jnp.bfloat16(128 * slope / one + less)

    return lax.max(lax.max(line(0.5, 0), line(1, 2)), line(2, 8))


def _sign(u: jax.Array, negative: int) -> jax.Array:
    """1 of 128, -1 of `negative`."""
    slope = 2 / (negative - 128)
    return jnp.bfloat16(1 + 128 * slope) - u * jnp.bfloat16(slope)
