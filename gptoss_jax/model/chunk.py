"""The new positions of a call: a prefill chunk, of which a device may have a part, or a token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gptoss_jax import sharding


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["length_B", "added_B", "offset", "position_BT"],
    meta_fields=["size", "axes", "tentative"],
)
@dataclasses.dataclass(frozen=True)
class Chunk:
    """New positions after a cache, or this device's part of them.

    Attributes:
      length_B: int32, positions the cache holds.
      added_B: int32, how many of the whole chunk's tokens are real.
      size: tokens of the whole chunk.
      axes: what the chunk's tokens are split over.
      offset: of this part's first token in the chunk.
      position_BT: int32, of this part's tokens.
      tentative: whether some of the tokens may turn out not to be real; rings stay as they are.
    """

    length_B: jax.Array
    added_B: jax.Array
    size: int
    axes: sharding.Axes
    offset: jax.Array | int
    position_BT: jax.Array
    tentative: bool = False

    @staticmethod
    def of(
        length_B: jax.Array,
        added_B: jax.Array,
        size: int,
        axes: sharding.Axes,
        *,
        tentative: bool = False,
    ) -> "Chunk":
        """The part of this device; a chunk that does not divide, such as decode's, is not split."""
        axes = axes if size % sharding.parts(axes) == 0 else ()
        own = size // sharding.parts(axes)
        offset = sharding.place(axes) * own
        position_BT = length_B[:, None] + offset + jnp.arange(own)[None]
        return Chunk(length_B, added_B, size, axes, offset, position_BT, tentative)

    @property
    def is_real(self) -> jax.Array:
        """bool: which of this part's tokens are no padding."""
        return self.position_BT < (self.length_B + self.added_B)[:, None]

    def own(self, x_BT: jax.Array) -> jax.Array:
        """This part of what the whole chunk has."""
        count = self.position_BT.shape[1]
        return jax.lax.dynamic_slice_in_dim(x_BT, self.offset, count, axis=1) if self.axes else x_BT

    def holds(self, index: jax.Array) -> jax.Array:
        """bool: whether tokens of the chunk, by index, are in this part."""
        return (index >= self.offset) & (index < self.offset + self.position_BT.shape[1])
