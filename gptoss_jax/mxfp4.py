"""The packed weight type: MXFP4 blocks and scales, as they stay in memory.

MXFP4 (OCP Microscaling Formats v1.0) stores a group of 32 weights as 32 four-bit e2m1 codes and
one scale byte s that stands for 2^(s - 127). Nothing above this module knows nibbles, except the
kernels that decode a tile at a time.

Order in memory (a bijection of the published order, so exports are byte-exact): the output axis is
minor-most, which every platform's vector unit wants, and byte j of a group holds element j in its
low and element j + 16 in its high nibble, so that one group decodes to two runs of 16 rows, a
whole bfloat16 tile on TPU, and no row is ever interleaved.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GROUP = 32
HALF = GROUP // 2
# The largest e2m1 magnitude is 6 = 1.5 * 2^2.
_MAX_EXPONENT = 2
_BIAS = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MXFP4:
    """A weight [..., K, N] in MXFP4, groups of 32 along the input axis K.

    Attributes:
      blocks: uint8 [..., K/2, N]; row 16 g + j holds rows 32 g + j (low) and 32 g + j + 16 (high).
      scales: uint8 [... * K/32, N]; exponent + 127 of each group, the groups of one weight after
        those of another. As [E, 90, N], XLA:TPU lays them out in an order that pads nothing and
        copies them all into another one before it reads an expert's.
    """

    blocks: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape [..., K, N]."""
        *lead, half, n = self.blocks.shape
        return (*lead, 2 * half, n)

    @property
    def nbytes(self) -> int:
        """Bytes of blocks and scales together: 4.25 bits a weight."""
        return self.blocks.nbytes + self.scales.nbytes

    @property
    def groups(self) -> int:
        """Groups along K: how many rows of `scales` belong to one weight."""
        return self.blocks.shape[-2] // HALF

    @staticmethod
    def abstract(*shape: int) -> "MXFP4":
        """The type of a packed weight of logical shape [..., K, N], without data."""
        *lead, k, n = shape
        return MXFP4(
            jax.ShapeDtypeStruct((*lead, k // 2, n), jnp.uint8),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((math.prod(lead) * k // GROUP, n), jnp.uint8),  # pyright: ignore[reportArgumentType]
        )


def decode_codes(codes: jax.Array) -> jax.Array:
    """float32 values of e2m1 codes (uint8, 0..15), exactly and without touching a subnormal.

    With exponent and mantissa bits placed under a float32 exponent of -3, a code reads as
    v' = (1 + m/2) 2^(e-3) where the value over 4 should be that for e > 0 and m/8 for e = 0;
    min(v', 2 v' - 1/4) is both.
    """
    bits = codes.astype(jnp.uint32)
    v = lax.bitcast_convert_type(((bits & 7) << 22) | jnp.uint32((_BIAS - 3) << 23), jnp.float32)
    magnitude = jnp.minimum(v, v + v - 0.25) * 4.0
    signed = lax.bitcast_convert_type(magnitude, jnp.uint32) | ((bits & 8) << 28)
    return lax.bitcast_convert_type(signed, jnp.float32)


def decode_scales(scales: jax.Array) -> jax.Array:
    """float32 2^(s - 127) of scale bytes 1..254.

    Byte 0 (2^-127) is a float32 subnormal, which XLA:CPU and TPUs flush: it reads as zero.
    Byte 255 is NaN in the standard; checkpoints that hold it are refused at load.
    """
    return lax.bitcast_convert_type(scales.astype(jnp.uint32) << 23, jnp.float32)


def decode(weight: MXFP4, dtype: jnp.dtype = jnp.bfloat16) -> jax.Array:
    """Dequantises: [..., K, N] in `dtype` (float32 or bfloat16; both hold every product exactly).

    Exact for scale bytes 2..252. Outside, what `dtype` says: 253 and 254 overflow to infinity for
    the larger codes, 1 flushes 0.5 * 2^-126, and 0, itself a subnormal, reads as zero.
    """
    *lead, half, n = weight.blocks.shape
    blocks = weight.blocks.reshape(*lead, half // HALF, 1, HALF, n)
    codes = jnp.concatenate([blocks & 0xF, blocks >> 4], axis=-3)
    scales = decode_scales(weight.scales).reshape(*lead, half // HALF, 1, 1, n)
    return (decode_codes(codes) * scales).astype(dtype).reshape(*lead, 2 * half, n)


def encode(x: jax.Array) -> MXFP4:
    """Quantises x [..., K, N] (float32 or bfloat16) to MXFP4 by the OCP rule.

    The shared exponent is that of the group's largest magnitude less 2; elements round to nearest,
    ties to the even code, and saturate at 6. Scale bytes stay in 1..254: byte 0 would be a
    subnormal. A zero group gets scale byte 127. Non-finite input is the caller's mistake.
    """
    *lead, k, n = x.shape
    groups = x.astype(jnp.float32).reshape(*lead, k // GROUP, GROUP, n)
    largest = jnp.max(jnp.abs(groups), axis=-2)
    exponent = (lax.bitcast_convert_type(largest, jnp.uint32) >> 23).astype(jnp.int32)
    scales = jnp.clip(exponent - _MAX_EXPONENT, 1, 254)
    scales = jnp.where(largest == 0, _BIAS, scales)
    # Two factors: the reciprocal of 2^(s - 127) alone can be a subnormal.
    up = lax.bitcast_convert_type((_BIAS + (_BIAS - scales) // 2) << 23, jnp.float32)
    rest = (_BIAS - scales) - (_BIAS - scales) // 2
    rest = lax.bitcast_convert_type((_BIAS + rest) << 23, jnp.float32)
    codes = _encode_codes(groups * up[..., None, :] * rest[..., None, :])
    blocks = codes[..., :HALF, :] | (codes[..., HALF:, :] << 4)
    return MXFP4(blocks.reshape(*lead, k // 2, n), scales.astype(jnp.uint8).reshape(-1, n))


def _encode_codes(x: jax.Array) -> jax.Array:
    """e2m1 codes (uint8) of values already divided by their scale."""
    magnitude = jnp.abs(x)
    step = jnp.where(magnitude < 2, 0.5, jnp.where(magnitude < 4, 1.0, 2.0))
    # jnp.round is half-to-even; an even multiple of the step is an even code.
    doubled = (jnp.minimum(jnp.round(magnitude / step) * step, 6.0) * 2).astype(jnp.uint8)
    code = jnp.where(
        doubled < 4, doubled, jnp.where(doubled < 8, doubled // 2 + 2, doubled // 4 + 4)
    )
    return code | (jnp.signbit(x).astype(jnp.uint8) << 3)


def from_published(blocks: jax.Array, scales: jax.Array) -> MXFP4:
    """Recodes from the checkpoints' order.

    Args:
      blocks: uint8 [..., N, K/32, 16]; byte j holds elements 2j (low nibble) and 2j + 1 (high).
      scales: uint8 [..., N, K/32].
    """
    *lead, n, groups, _ = blocks.shape
    codes = jnp.stack([blocks & 0xF, blocks >> 4], axis=-1).reshape(*lead, n, groups, GROUP)
    packed = codes[..., :HALF] | (codes[..., HALF:] << 4)
    packed = packed.reshape(*lead, n, groups * HALF)
    return MXFP4(jnp.swapaxes(packed, -1, -2), jnp.swapaxes(scales, -1, -2).reshape(-1, n))


def to_published(weight: MXFP4) -> tuple[jax.Array, jax.Array]:
    """The inverse of `from_published`: (blocks [..., N, K/32, 16], scales [..., N, K/32])."""
    *lead, half, n = weight.blocks.shape
    packed = jnp.swapaxes(weight.blocks, -1, -2).reshape(*lead, n, half // HALF, HALF)
    codes = jnp.concatenate([packed & 0xF, packed >> 4], axis=-1)
    codes = codes.reshape(*lead, n, half // HALF, HALF, 2)
    scales = weight.scales.reshape(*lead, half // HALF, n)
    return codes[..., 0] | (codes[..., 1] << 4), jnp.swapaxes(scales, -1, -2)


def random(key: jax.Array, *shape: int, scale: float) -> MXFP4:
    """Packed weights of logical shape [..., K, N], close to normal with deviation `scale`."""
    return encode(jax.random.normal(key, shape, jnp.float32) * np.float32(scale))
