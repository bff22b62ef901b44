"""(row, expert) pairs sorted by expert, and the tiles that walk them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

_MAX_TILE = 512
_MAX_FLOAT_TILE = 256


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs sorted by expert, then a tile's length of sentinels (row 0).

    Tiles are laid from each expert's first pair. An expert's last tile runs over, into the next
    expert's pairs or the sentinels, so that every tile has one static size.

    Attributes:
      row_P: int32 [P + size], the row of each pair.
      place_RX: int32, where each pair of a row stands among the sorted.
      counts_E: int32, pairs of each expert.
      size: pairs a tile.
    """

    row_P: jax.Array
    place_RX: jax.Array
    counts_E: jax.Array
    size: int

    @property
    def num_tiles(self) -> jax.Array:
        """int32 scalar."""
        return self._tiles.sum()

    @property
    def _tiles(self) -> jax.Array:
        """int32 [E], tiles of each expert."""
        return -(-self.counts_E // self.size)

    def locate(self, tile: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(its expert, its first pair, how many of its pairs are that expert's) of a tile."""
        last_tile_E = jnp.cumsum(self._tiles)
        expert = jnp.searchsorted(last_tile_E, tile, side="right")
        before = (tile - (last_tile_E[expert] - self._tiles[expert])) * self.size
        first_pair_E = jnp.cumsum(self.counts_E) - self.counts_E
        return expert, first_pair_E[expert] + before, self.counts_E[expert] - before

    def tile_and_slot(self, expert_RX: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tile, place in it) of each row's pairs with these experts."""
        first_pair_E = jnp.cumsum(self.counts_E) - self.counts_E
        first_tile_E = jnp.cumsum(self._tiles) - self._tiles
        among = self.place_RX - first_pair_E[expert_RX]
        return first_tile_E[expert_RX] + among // self.size, among % self.size

    def rows_at(self, start: jax.Array) -> jax.Array:
        """int32 [size]: the rows of the tile that starts at a pair."""
        return lax.dynamic_slice_in_dim(self.row_P, start, self.size)


def tile_size(pairs: int, num_experts: int, most: int = _MAX_TILE) -> int:
    """Pairs a tile, 8 or a multiple of 16: most experts need one.

    What each gets under uniform routing and two standard deviations: one tile more decodes its
    expert again.
    """
    share = pairs / num_experts
    enough = share + 2 * math.sqrt(share)
    return 8 if enough <= 8 else min(most, 16 * math.ceil(enough / 16))


def sort_pairs(
    chosen_RX: jax.Array, num_experts: int, *, packed: bool = True, size: int | None = None
) -> Pairs:
    """Sorts the pairs of int32 expert ids [R, X]; an id of `num_experts` or more is in no tile.

    Args:
      chosen_RX: the ids.
      num_experts: E.
      packed: whether a tile decodes its expert's weights; if not, smaller tiles have less padding.
      size: pairs a tile; None: as `tile_size` has it.
    """
    rows, chosen = chosen_RX.shape
    size = size or tile_size(rows * chosen, num_experts, _MAX_TILE if packed else _MAX_FLOAT_TILE)
    ids = chosen_RX.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    counts_E = (ids[:, None] == jnp.arange(num_experts)[None]).sum(0, dtype=jnp.int32)
    row_P = jnp.concatenate([order // chosen, jnp.zeros((size,), order.dtype)])
    place = jnp.zeros_like(order).at[order].set(jnp.arange(rows * chosen, dtype=order.dtype))
    return Pairs(row_P, place.reshape(rows, chosen), counts_E, size)
