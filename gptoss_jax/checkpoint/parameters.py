"""Arrays filled a slice at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

_PAGE = 4096


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

    def __init__(self, like: jax.ShapeDtypeStruct, where: Sharding | Format, rows: int):
        self._like = like
        self._entries = like.shape[0] // rows
        self._where = where
        self._host = None
        self._device = None
        if _on_cpu(where):
            self._host = aligned_empty(like.shape, like.dtype)

    @property
    def ranges(self) -> set[tuple[int, int]]:
        """Ranges of rows it takes: all."""
        return {(0, self._like.shape[0] // self._entries)}

    @property
    def columns(self) -> tuple[int, int] | None:
        """Of a matrix the columns it takes, None: all."""
        return None

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


class ShardedTarget:
    """As `Target`, of an array over several devices: one for the part of each of this host's."""

    def __init__(self, like: jax.ShapeDtypeStruct, where: NamedSharding | Format, rows: int):
        sharding: Any = where.sharding if isinstance(where, Format) else where
        self._like = like
        self._sharding = sharding
        self._entries = like.shape[0] // rows
        self._pieces = [
            _Piece(like, index, _on(where, device), self._entries)
            for device, index in sharding.addressable_devices_indices_map(like.shape).items()
        ]

    @property
    def ranges(self) -> set[tuple[int, int]]:
        """Ranges of rows that this host's devices hold."""
        return {(piece.first, piece.first + piece.rows) for piece in self._pieces}

    @property
    def columns(self) -> tuple[int, int] | None:
        """Of a matrix the columns from the first to the last that these hold."""
        if len(self._like.shape) != 2 or self._entries > 1:
            return None
        bounds = [piece.columns[0].indices(self._like.shape[1])[:2] for piece in self._pieces]
        return min(start for start, _ in bounds), max(stop for _, stop in bounds)

    def slice(self, first: int, rows: int) -> np.ndarray:
        """A buffer for rows `first ... first + rows`, to be filled and given to `write`."""
        del first
        shape = (rows * self._entries, *self._like.shape[1:])
        buffer = aligned_empty(shape, self._like.dtype)
        return buffer if self._entries == 1 else buffer.reshape(rows, -1, *self._like.shape[1:])

    def write(self, first: int, filled: np.ndarray) -> None:
        filled = filled.reshape(-1, self._entries, *self._like.shape[1:])
        for piece in self._pieces:
            piece.write(first, filled)

    def finish(self) -> jax.Array:
        arrays = [piece.target.finish() for piece in self._pieces]
        return jax.make_array_from_single_device_arrays(self._like.shape, self._sharding, arrays)


class _Piece:
    """The part of one device: rows `first ... first + rows` and, of each, some columns."""

    def __init__(self, like, index: tuple[slice, ...], where, entries: int):
        bounds = [s.indices(size)[:2] for s, size in zip(index, like.shape, strict=True)]
        shape = tuple(stop - start for start, stop in bounds)
        self.first = bounds[0][0] // entries
        self.rows = shape[0] // entries
        self.columns = index[1:]
        self.target = Target(jax.ShapeDtypeStruct(shape, like.dtype), where, self.rows)

    def write(self, first: int, filled: np.ndarray) -> None:
        """Takes what is its own of rows from `first`, [rows, entries, ...]."""
        start, stop = max(first, self.first), min(first + len(filled), self.first + self.rows)
        if start >= stop:
            return
        buffer = self.target.slice(start - self.first, stop - start)
        own = filled[start - first : stop - first][:, :, *self.columns]
        buffer[...] = own.reshape(buffer.shape)
        self.target.write(start - self.first, buffer)


def target_for(like: jax.ShapeDtypeStruct, where: Sharding | Format, rows: int):
    """A `Target` or, on several devices, a `ShardedTarget`."""
    sharding = where.sharding if isinstance(where, Format) else where
    several = isinstance(sharding, NamedSharding) and sharding.num_devices > 1
    return (ShardedTarget if several else Target)(like, where, rows)  # pyright: ignore[reportArgumentType]


def _on(where: NamedSharding | Format, device: Any) -> Sharding | Format:
    alone = SingleDeviceSharding(device)
    return Format(where.layout, alone) if isinstance(where, Format) else alone


def _on_cpu(where: Sharding | Format) -> bool:
    sharding = where.sharding if isinstance(where, Format) else where
    assert sharding is not None
    return all(device.platform == "cpu" for device in sharding.device_set)


def _zeros(shape, dtype, where):
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()


@functools.cache
def _updater(where: Sharding | Format):
    """The program that writes a slice in place, into an array that keeps its layout."""

    def update(array: jax.Array, chunk: jax.Array, first: int) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(array, chunk, first, axis=0)

    return jax.jit(update, donate_argnums=0, out_shardings=where)
