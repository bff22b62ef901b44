"""Rows times one expert's weight, taken in place out of all experts' by its index."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gptoss_jax import mxfp4
from gptoss_jax.kernels.low_rank import LowRank, matmul
from gptoss_jax.kernels.moe.experts import ExpertWeight
from gptoss_jax.mxfp4 import GROUP, HALF, MXFP4


def expert_matmul(x_RK: jax.Array, weight: ExpertWeight, expert: jax.Array) -> jax.Array:
    """x @ weight[expert]: float32 [R, N] from x [R, K] and weight [E, K, N].

    No copy of a packed weight is made, and no more than one expert is dequantised.
    """
    if isinstance(weight, LowRank):
        added = weight.through(x_RK, index(weight.a, expert), index(weight.b, expert))
        return expert_matmul(x_RK, weight.base, expert) + added
    if not isinstance(weight, MXFP4):
        return matmul(x_RK, index(weight, expert))
    return lax.platform_dependent(
        x_RK, weight, expert, cpu=_packed_cpu, tpu=_packed_tiles, default=_packed_planes
    )


def expert_matmul_transposed(g_RN: jax.Array, weight: ExpertWeight, expert: jax.Array) -> jax.Array:
    """g @ weight[expert]^T: float32 [R, K] from g [R, N] and weight [E, K, N].

    The gradient's matmul. Of a packed weight a tile is decoded at a time, a plane of it after the
    other; one of at most 3 MiB is one tile.
    """
    if isinstance(weight, LowRank):
        assert weight.rows is None, "adapters that rows choose are not trained"
        h_Rr = matmul(g_RN, index(weight.b, expert).T).astype(g_RN.dtype)
        added = weight.scale * matmul(h_Rr, index(weight.a, expert))
        return expert_matmul_transposed(g_RN, weight.base, expert) + added
    if not isinstance(weight, MXFP4):
        return matmul(g_RN, index(weight, expert).T)
    rows, groups = len(g_RN), _groups_a_tile(weight.groups, g_RN.shape[1])

    def tile(index) -> jax.Array:
        planes = _decoded_tile(weight, expert, index, groups, g_RN.dtype)
        halves = [matmul(g_RN, plane.T).reshape(rows, groups, 1, HALF) for plane in planes]
        return jnp.concatenate(halves, axis=2).reshape(rows, groups * GROUP)

    tiles = weight.groups // groups
    if tiles == 1:
        return tile(0)
    with jax.named_scope(f"rounds_{tiles}"):
        y_tRk = lax.map(tile, jnp.arange(tiles))
    return y_tRk.transpose(1, 0, 2).reshape(rows, -1)


def index(array: jax.Array, expert: jax.Array) -> jax.Array:
    """One expert's part of an array [E, ...]."""
    return lax.dynamic_index_in_dim(array, expert, keepdims=False)


def _slice(weight: MXFP4, expert, group, groups: int, column, columns: int):
    """(blocks [groups, 16, columns], scales [groups, columns]) of one expert."""
    at, size = (expert, group * HALF, column), (1, groups * HALF, columns)
    blocks = lax.dynamic_slice(weight.blocks, at, size).reshape(groups, HALF, columns)
    row = expert * weight.groups + group
    return blocks, lax.dynamic_slice(weight.scales, (row, column), (groups, columns))


def _planes(x_RK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Columns of x that meet the low and the high nibbles: two [R, K/2]."""
    rows, k = x_RK.shape
    x = x_RK.reshape(rows, k // GROUP, 2, HALF)
    return x[:, :, 0].reshape(rows, k // 2), x[:, :, 1].reshape(rows, k // 2)


def _packed_planes(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    """One dot for each nibble: what is decoded feeds it in the order in which it lies."""
    low, high = _planes(x_RK)
    plane_low, plane_high = _decoded_planes(weight, expert, x_RK.dtype)
    return matmul(low, plane_low) + matmul(high, plane_high)


def _decoded_planes(weight: MXFP4, expert: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """The rows of the low and of the high nibbles of one expert: two [K/2, N]."""
    _, k, n = weight.shape
    groups = weight.groups
    blocks = lax.dynamic_index_in_dim(weight.blocks, expert, keepdims=False)
    blocks = blocks.reshape(groups, HALF, n)
    # A gather: for a slice that is no multiple of 32 rows XLA:TPU copies all experts' scales.
    scales = weight.scales[expert * groups + jnp.arange(groups)]
    scales = mxfp4.decode_scales(scales)[:, None]

    def plane(codes: jax.Array) -> jax.Array:
        values = mxfp4.decode_codes(codes) * scales
        return values.astype(dtype).reshape(k // 2, n)

    return plane(blocks & 0xF), plane(blocks >> 4)


# --- XLA:TPU -------------------------------------------------------------------------------------
# A plane of a whole expert is decoded in passes through the device's memory: 129 MB an expert on
# v5e at the published widths, where its weights are 13.2 MB. What a tile needs stays in VMEM.

# Bytes of blocks a tile; its decoded planes are four times as many, in float32 eight times.
_TILE_BYTES = 3 << 20


def _packed_tiles(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    """Tiles of whole groups, the blocks of each read once."""
    n = weight.shape[-1]
    rows, groups = x_RK.shape[0], _groups_a_tile(weight.groups, n)
    if groups == weight.groups:
        return _packed_planes(x_RK, weight, expert)
    tiles = weight.groups // groups
    # The tile's axis first, where an index costs nothing.
    planes = [x.reshape(rows, tiles, groups * HALF).transpose(1, 0, 2) for x in _planes(x_RK)]

    def add_tile(tile, y_RN):
        decoded = _decoded_tile(weight, expert, tile, groups, x_RK.dtype)
        for x, plane in zip(planes, decoded, strict=True):
            y_RN += matmul(x[tile], plane)
        return y_RN

    with jax.named_scope(f"rounds_{tiles}"):
        return lax.fori_loop(0, tiles, add_tile, jnp.zeros((rows, n), jnp.float32))


def _decoded_tile(weight: MXFP4, expert, tile, groups: int, dtype) -> list[jax.Array]:
    """The rows of the low and of the high nibbles of a tile: two [16 groups, N]."""
    n = weight.shape[-1]
    at, size = (expert, tile * groups * HALF, 0), (1, groups * HALF, n)
    blocks = lax.dynamic_slice(weight.blocks, at, size).reshape(groups, HALF, n)
    # Both nibbles are read from here, not from the weight.
    blocks = lax.optimization_barrier(blocks)
    first = expert * weight.groups + tile * groups
    scales = mxfp4.decode_scales(weight.scales[first + jnp.arange(groups)])[:, None]
    values = (mxfp4.decode_codes(codes) * scales for codes in (blocks & 0xF, blocks >> 4))
    return [one.astype(dtype).reshape(groups * HALF, n) for one in values]


def _groups_a_tile(groups: int, n: int) -> int:
    """The most that divide all and fit, an even number: tiles of bytes are of 32 rows."""
    fitting = [g for g in range(2, groups, 2) if not groups % g and g * HALF * n <= _TILE_BYTES]
    whole = groups * HALF * n <= _TILE_BYTES
    return groups if whole or not fitting else max(fitting)


# --- XLA:CPU -------------------------------------------------------------------------------------
# Measured at [2880, 5760], four experts, two AVX2 cores: a whole-expert decode then dot 160 ms; the
# two forms below 8 ms for one row and 18 ms for eight.

# A group at a time, fused to the last row: nothing decoded is ever stored.
_FEW_ROWS = 2
# Otherwise columns are decoded a cache-sized tile (float32 elements) at a time.
_TILE = 2**21
_SMALL = 2**18  # at 2880 x 728 two dots are 7 to 20 % faster
# A code's bits are those of a float16 subnormal or normal times 2^-14, which the hardware converts
# exactly; the factor goes to the other operand. Accelerators flush such subnormals.
_FLOAT16_FACTOR = 2.0**14


def _packed_cpu(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    # Products of bfloat16 rows and decoded weights are exact in float32.
    x_RK = x_RK.astype(jnp.float32) * _FLOAT16_FACTOR
    _, k, n = weight.shape
    if k * n <= _SMALL:
        return _at_once(x_RK, weight, expert)
    # A weight of one tile is as fast decoded first, and half the program to compile.
    fused = x_RK.shape[0] <= _FEW_ROWS and k * n > _TILE
    form: Callable = _fused_rows if fused else _tiled_planes
    return form(x_RK, weight, expert)


def _low(blocks: jax.Array) -> jax.Array:
    word = blocks.astype(jnp.uint16)
    bits = ((word & 7) << 9) | ((word & 8) << 12)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def _high(blocks: jax.Array) -> jax.Array:
    word = blocks.astype(jnp.uint16)
    bits = ((word & 0x70) << 5) | ((word & 0x80) << 8)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def _at_once(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    """One dot over both nibbles, which at nano's widths saves a tenth to a quarter of the time."""
    _, k, n = weight.shape
    blocks, scales = _slice(weight, expert, 0, k // GROUP, 0, n)
    values = _both(blocks) * mxfp4.decode_scales(scales)[None, :, None]
    return jnp.dot(jnp.concatenate(_planes(x_RK), axis=1), values.reshape(k, n))


def _both(blocks: jax.Array) -> jax.Array:
    """The low nibbles, then the high ones, on a new first axis.

    Concatenated after they are decoded they would take three times as long.
    """
    word, shape = blocks.astype(jnp.uint16)[None], (2, *(1,) * blocks.ndim)
    low_high = ((7, 0x70), (9, 5), (8, 0x80), (12, 8))
    value, up, sign, far_up = (jnp.array(n, jnp.uint16).reshape(shape) for n in low_high)
    bits = ((word & value) << up) | ((word & sign) << far_up)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def _fused_rows(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    _, k, n = weight.shape
    rows = x_RK.shape[0]
    x = x_RK.reshape(rows, k // GROUP, 2, HALF)

    def add_group(group, sums):
        blocks, scales = _slice(weight, expert, group, 1, 0, n)
        low = [_low(blocks[0, j]) for j in range(HALF)]
        high = [_high(blocks[0, j]) for j in range(HALF)]
        scale = mxfp4.decode_scales(scales[0])

        def dot(row: int) -> jax.Array:
            x_low, x_high = x[row, group, 0], x[row, group, 1]
            terms = [low[j] * x_low[j] + high[j] * x_high[j] for j in range(HALF)]
            return sum(terms[1:], start=terms[0])

        return [sums[row] + dot(row) * scale for row in range(rows)]

    sums = lax.fori_loop(0, k // GROUP, add_group, [jnp.zeros((n,), jnp.float32)] * rows)
    return jnp.stack(sums)


def _tiled_planes(x_RK: jax.Array, weight: MXFP4, expert: jax.Array) -> jax.Array:
    _, k, n = weight.shape
    low, high = _planes(x_RK)
    columns = min(n, max(64, _TILE // k // 64 * 64))
    tiles = -(-n // columns)

    def product(start):
        blocks, scales = _slice(weight, expert, 0, k // GROUP, start, columns)
        scales = mxfp4.decode_scales(scales)[:, None]
        y = jnp.dot(low, (_low(blocks) * scales).reshape(k // 2, columns))
        return y + jnp.dot(high, (_high(blocks) * scales).reshape(k // 2, columns))

    def tile(index, y_RN):
        # The last tile is moved back to end with the weight; its overlap is written twice.
        start = jnp.minimum(index * columns, n - columns)
        return lax.dynamic_update_slice_in_dim(y_RN, product(start), start, axis=1)

    if tiles == 1:
        return product(0)
    return lax.fori_loop(0, tiles, tile, jnp.zeros((x_RK.shape[0], n), jnp.float32))
