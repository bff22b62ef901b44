"""Rows of a sharded batch to the devices that hold their experts, and the outputs back.

No row is dropped, whatever the router chose, and all shapes are static.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gptoss_jax import sharding
from gptoss_jax.sharding import Axes

# float32 [R, D] from rows [R, D], the experts they chose and these experts' weights, [R, X].
# Ids are 0..held - 1, the device's own experts; `held`: none of them.
Mixture = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Rows a device can receive at once: the worst case is held, whatever comes.
_MAX_RECEIVED = 2**14


def dispatch(
    x_RD: jax.Array,
    expert_RX: jax.Array,
    weight_RX: jax.Array,
    mixture: Mixture,
    *,
    held: int,
    axes: Axes,
) -> jax.Array:
    """The weighted sum over experts that lie along mesh axes which also split the rows.

    Either every device gets all rows, and the sums over devices are scattered; or, on TPU where
    that moves more bytes, each row goes to the devices of its experts alone and comes back.

    Args:
      x_RD: this device's rows.
      expert_RX: int32 ids, `held` for each device along `axes` in their order; ids beyond are no
        expert's.
      weight_RX: float32.
      mixture: of one device's own experts.
      held: how many experts a device has.
      axes: of the mesh, inside a shard_map.

    Returns:
      float32 [R, D].
    """
    parts = sharding.parts(axes)

    def gather(x, expert, weight):
        return _gathering(x, expert, weight, mixture, held, axes)

    def send(x, expert, weight):
        return _sending(x, expert, weight, mixture, held, axes)

    if not _sending_moves_less(parts, expert_RX.shape[1], x_RD.dtype.itemsize):
        return gather(x_RD, expert_RX, weight_RX)
    return lax.platform_dependent(x_RD, expert_RX, weight_RX, tpu=send, default=gather)


def _sending_moves_less(parts: int, choices: int, itemsize: int) -> bool:
    """By bytes a row: to and from each chosen device, or to all others and float32 sums back."""
    sent = 2 * choices * itemsize * (parts - 1) / parts
    return sent < (parts - 1) * (itemsize + 4)


def _gathering(x_RD, expert_RX, weight_RX, mixture: Mixture, held: int, axes: Axes) -> jax.Array:
    x, expert, weight = (sharding.gathered(a, axes, axis=0) for a in (x_RD, expert_RX, weight_RX))
    local = expert - sharding.place(axes) * held
    local = jnp.where((local >= 0) & (local < held), local, held)
    return sharding.scattered(mixture(x, local, weight), axes, axis=0)


def _sending(x_RD, expert_RX, weight_RX, mixture: Mixture, held: int, axes: Axes) -> jax.Array:
    """Block by block of rows, so that the room for what a device may receive stays small."""
    rows, choices = expert_RX.shape
    parts = sharding.parts(axes)
    blocks = math.ceil(rows * parts * min(choices, held) / _MAX_RECEIVED)
    size = -(-rows // blocks)
    padded = blocks * size - rows

    def split(x, filling):
        x = jnp.pad(x, ((0, padded), (0, 0)), constant_values=filling)
        return x.reshape(blocks, size, -1)

    @jax.checkpoint  # what was received is not kept
    def exchange(block):
        x, expert, weight = block
        return _exchange(x, expert, weight, mixture, held, axes)

    arguments = (split(x_RD, 0), split(expert_RX, parts * held), split(weight_RX, 0))
    return lax.map(exchange, arguments).reshape(blocks * size, -1)[:rows]


def _exchange(x_RD, expert_RX, weight_RX, mixture: Mixture, held: int, axes: Axes) -> jax.Array:
    rows, choices = expert_RX.shape
    parts = sharding.parts(axes)
    ids = expert_RX.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    own_E = (ids[:, None] == jnp.arange(parts * held)[None]).sum(0, dtype=jnp.int32)
    counts_SDE = sharding.gathered(own_E[None], axes, axis=0).reshape(parts, parts, held)
    route = _Route.of(counts_SDE, sharding.place(axes))

    capacity = parts * rows * min(choices, held)
    empty = jnp.zeros((capacity, x_RD.shape[1]), x_RD.dtype)
    x_CD = route.there(x_RD[order // choices], empty, axes)
    # What came from a sender is sorted by expert, as it was there.
    last_SE = jnp.cumsum(counts_SDE[:, sharding.place(axes)].reshape(-1))
    place_C = jnp.searchsorted(last_SE, jnp.arange(capacity), side="right")
    expert_C = jnp.where(place_C < len(last_SE), place_C % held, held)
    one_C1 = jnp.ones((capacity, 1), jnp.float32)
    y_CD = mixture(x_CD, expert_C.astype(jnp.int32)[:, None], one_C1).astype(x_RD.dtype)
    y_PD = route.back(y_CD, jnp.zeros((rows * choices, x_RD.shape[1]), x_RD.dtype), axes)

    position = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))
    y_RXD = y_PD[position].reshape(rows, choices, -1).astype(jnp.float32)
    is_some = expert_RX < parts * held
    return jnp.where(is_some[..., None], y_RXD * weight_RX[..., None], 0.0).sum(1)


@dataclasses.dataclass(frozen=True)
class _Route:
    """Where slices of sorted pairs lie, this device's and those it receives, by int32 [parts].

    Attributes:
      sent_from: where the pairs for each device begin here.
      sent: how many they are.
      landing: where they begin there.
      landed: where those of each device begin here.
      received: how many they are.
      home: where they began there.
    """

    sent_from: jax.Array
    sent: jax.Array
    landing: jax.Array
    landed: jax.Array
    received: jax.Array
    home: jax.Array

    @classmethod
    def of(cls, counts_SDE: jax.Array, place: jax.Array | int) -> "_Route":
        """From how many pairs each sender has for each expert of each destination."""
        size_SD = counts_SDE.sum(-1)
        begin_SD = jnp.cumsum(size_SD, axis=1) - size_SD
        landing_SD = jnp.cumsum(size_SD, axis=0) - size_SD
        return cls(
            sent_from=begin_SD[place],
            sent=size_SD[place],
            landing=landing_SD[place],
            landed=landing_SD[:, place],
            received=size_SD[:, place],
            home=begin_SD[:, place],
        )

    def there(self, x: jax.Array, into: jax.Array, axes: Axes) -> jax.Array:
        """The pairs' rows, each at its destination."""
        sizes = (self.sent_from, self.sent, self.landing, self.received)
        return sharding.exchanged(x, into, sizes, axes)

    def back(self, y: jax.Array, into: jax.Array, axes: Axes) -> jax.Array:
        """What was made of them, each where it came from."""
        sizes = (self.landed, self.received, self.home, self.sent)
        return sharding.exchanged(y, into, sizes, axes)
