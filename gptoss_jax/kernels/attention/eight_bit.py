"""Keys and values in 8 bits, with a scale for each position and head."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

EightBit = Literal["int8", "fp8"]
EIGHT_BIT: tuple[EightBit, ...] = get_args(EightBit)
# The largest value that is used of what each type of array holds.
_LARGEST = {jnp.dtype(jnp.int8): 127.0, jnp.dtype(jnp.uint8): 448.0}
SCALE_DTYPE = jnp.dtype(jnp.float32)
_FP8 = jnp.float8_e4m3fn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """What `x * scale` holds; both have the axes of keys and values, so that each moves as they do.

    Attributes:
      x_PKHS: int8, or uint8: the bits of float8_e4m3fn. Of that itself XLA:CPU updates nothing in
        place, it would convert all pages and back at every token.
      scale_PK1S: float32.
    """

    x_PKHS: jax.Array
    scale_PK1S: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys or values."""
        return self.x_PKHS.shape

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> "Scaled":
        """An array of that shape."""
        pages, heads, _, slots = shape
        scale = jnp.zeros((pages, heads, 1, slots), SCALE_DTYPE)
        return Scaled(jnp.zeros(shape, dtype), scale)

    @staticmethod
    def of(x_BKHS: jax.Array, dtype: jnp.dtype) -> "Scaled":
        """The nearest values, the largest of each position and head as the type's own largest."""
        x_BKHS = x_BKHS.astype(jnp.float32)
        largest = jnp.abs(x_BKHS).max(2, keepdims=True)
        scale = jnp.where(largest == 0, 1, largest / _LARGEST[dtype])
        scaled = x_BKHS / scale
        if dtype == jnp.int8:
            return Scaled(jnp.round(scaled).astype(dtype), scale)
        return Scaled(jax.lax.bitcast_convert_type(scaled.astype(_FP8), dtype), scale)

    def unscaled(self, dtype: jnp.dtype) -> jax.Array:
        """`x`; bfloat16 and wider hold it exactly."""
        if self.x_PKHS.dtype == jnp.uint8:
            return jax.lax.bitcast_convert_type(self.x_PKHS, _FP8).astype(dtype)
        return self.x_PKHS.astype(dtype)


Pages = jax.Array | Scaled


def dtype_of(kind: EightBit) -> jnp.dtype:
    """Of the arrays that hold a format."""
    return jnp.dtype(jnp.int8 if kind == "int8" else jnp.uint8)


def like(x_BKHS: jax.Array, held: Pages) -> Pages:
    """Keys or values in the form of those that are held."""
    if isinstance(held, Scaled):
        return Scaled.of(x_BKHS, held.x_PKHS.dtype)
    return x_BKHS.astype(held.dtype)
