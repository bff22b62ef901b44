"""Parameters by their dotted path, and arrays filled a slice at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.experimental.layout import Format

from gptoss_jax.model.transformer import GptOss

_PAGE = 4096


def parameter(model: GptOss, path: str) -> nnx.Param:
    """The parameter at "layers.3.attention.w_q_AD"."""
    node: Any = model
    for key in path.split("."):
        node = node[int(key)] if key.isdigit() else getattr(node, key)
    return node


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on a page of its own, which XLA:CPU takes over without a copy."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(nbytes + _PAGE, np.uint8)
    start = -buffer.ctypes.data % _PAGE
    return buffer[start : start + nbytes].view(dtype).reshape(shape)


class Target:
    """A device array filled slice by slice: `rows` rows that lie one after the other.

    A row is one entry of the leading axis, or several (the groups of one expert's scales); buffers
    then have an axis for them.

    On the CPU platform the slices are of one host buffer that becomes the array; elsewhere each is
    a buffer of its own that is written into the device's array in place.
    """

    def __init__(
        self, like: jax.ShapeDtypeStruct, where: jax.sharding.Sharding | Format, rows: int
    ):
        self._like = like
        self._entries = like.shape[0] // rows
        self._where = where
        self._host = None
        self._device = None
        if _on_cpu(where):
            self._host = aligned_empty(like.shape, like.dtype)

    def slice(self, first: int, rows: int) -> np.ndarray:
        """A buffer for rows `first ... first + rows`, to be filled and given to `write`."""
        start, stop = first * self._entries, (first + rows) * self._entries
        if self._host is not None:
            buffer = self._host[start:stop]
        else:
            buffer = aligned_empty((stop - start, *self._like.shape[1:]), self._like.dtype)
        return buffer if self._entries == 1 else buffer.reshape(rows, -1, *self._like.shape[1:])

    def write(self, first: int, filled: np.ndarray) -> None:
        if self._host is not None:
            return
        filled = filled.reshape(-1, *self._like.shape[1:])
        if len(filled) == self._like.shape[0]:
            self._device = jax.device_put(filled, self._where)
            return
        if self._device is None:
            self._device = _zeros(self._like.shape, self._like.dtype, self._where)
        chunk = jax.device_put(filled, self._where)
        self._device = _updater(self._where)(self._device, chunk, first * self._entries)

    def finish(self) -> jax.Array:
        if self._host is not None:
            return jax.device_put(self._host, self._where)
        assert self._device is not None
        return self._device


def _on_cpu(where: jax.sharding.Sharding | Format) -> bool:
    sharding = where.sharding if isinstance(where, Format) else where
    assert sharding is not None
    return all(device.platform == "cpu" for device in sharding.device_set)


def _zeros(shape, dtype, where):
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()


@functools.cache
def _updater(where: jax.sharding.Sharding | Format):
    """The program that writes a slice in place, into an array that keeps its layout."""

    def update(array: jax.Array, chunk: jax.Array, first: int) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(array, chunk, first, axis=0)

    return jax.jit(update, donate_argnums=0, out_shardings=where)
