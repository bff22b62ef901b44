"""Safetensors files: headers checked in full, tensors read and written in pieces.

Reads go through plain file reads into the caller's buffers. A memory map would be simpler, but its
pages count as the process's own, and a checkpoint is as large as the memory we may use.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from gptoss_jax import strict_json
from gptoss_jax.errors import UserError

DTYPES = {
    "U8": np.dtype(np.uint8),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
# The others of the format, so that a wrong type is told from a broken header.
_OTHER_SIZES = {"BOOL": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2}
_OTHER_SIZES |= {"I32": 4, "U32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
_SIZES = _OTHER_SIZES | {name: dtype.itemsize for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_METADATA = "__metadata__"  # the format's name for what is no tensor


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor's name, shape and safetensors dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Entry(Tensor):
    """A tensor in a file, its data at byte `offset`."""

    file: Path
    offset: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, with every offset checked against its size.

    Raises:
      UserError: a file that is truncated, or no safetensors file; names it and the tensor.
    """
    header, data, size = _read_json(file)
    header.pop(_METADATA, None)
    entries = [_entry(name, raw, file, data) for name, raw in header.items()]
    _check_extent(sorted(entries, key=lambda entry: entry.offset), file, data, size)
    return {entry.name: entry for entry in entries}


def read_metadata(file: Path) -> dict[str, Any]:
    """What a safetensors file says beside its tensors.

    Raises:
      UserError: as `read_header`, of the header's form.
    """
    found = _read_json(file)[0].get(_METADATA)
    return found if isinstance(found, dict) else {}


def _read_json(file: Path) -> tuple[dict[str, Any], int, int]:
    """(the header's object, where the data begin, the file's bytes)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and length > _MAX_HEADER:
            raise UserError(f"{file}: not a safetensors file (a header of {length:,} bytes)")
        if size < 8 + length or size < 8:
            raise UserError(f"{file}: truncated within its header ({size:,} bytes)")
        text = stream.read(length)
    return _parse(text, file), 8 + length, size


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    try:
        header = strict_json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}: not a safetensors file (header: {error})") from None
    if not isinstance(header, dict):
        raise UserError(f"{file}: not a safetensors file (the header is no JSON object)")
    return header


def _entry(name: str, raw: Any, file: Path, data_start: int) -> Entry:
    broken = UserError(f"{file}: tensor {name!r}: a broken header entry")
    try:
        dtype, shape, (start, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise broken from None
    if type(dtype) is not str or not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise broken
    if dtype not in _SIZES:
        raise UserError(f"{file}: tensor {name!r}: unknown dtype {dtype!r}")
    entry = Entry(name, shape, dtype, file, data_start + start)
    if end - start != entry.nbytes:
        raise UserError(
            f"{file}: tensor {name!r}: {end - start:,} bytes for {dtype} {list(shape)}, "
            f"which takes {entry.nbytes:,}"
        )
    return entry


def _check_extent(entries: list[Entry], file: Path, data_start: int, size: int) -> None:
    end = data_start
    for entry in entries:
        if entry.offset != end:
            raise UserError(f"{file}: tensor {entry.name!r}: a gap or an overlap before its data")
        end += entry.nbytes
        if end > size:
            raise UserError(
                f"{file}: truncated within tensor {entry.name!r} "
                f"({size:,} bytes of {entries[-1].offset + entries[-1].nbytes:,})"
            )
    if end < size:
        raise UserError(f"{file}: {size - end:,} bytes follow the last tensor")


def read_rows(
    entry: Entry, first: int, out: np.ndarray, columns: tuple[int, int] | None = None
) -> None:
    """Fills `out` with rows `first ...` of a tensor; C-contiguous, of the tensor's dtype.

    Args:
      entry: the tensor.
      first: where the rows begin.
      out: [rows, ...].
      columns: of a matrix, which to read; the others in `out` stay as they are.

    Raises:
      UserError: the file ends early.
    """
    row = entry.nbytes // entry.shape[0] if entry.shape[0] else 0
    with entry.file.open("rb", buffering=0) as stream:
        if columns is None or columns == (0, entry.shape[1]):
            _read_into(stream, entry, entry.offset + first * row, out)
            return
        start, stop = columns
        for number, values in enumerate(out, first):
            _read_into(
                stream,
                entry,
                entry.offset + number * row + start * out.itemsize,
                values[start:stop],
            )


def _read_into(stream: RawIOBase, entry: Entry, at: int, out: np.ndarray) -> None:
    left = memoryview(out.reshape(-1).view(np.uint8).data)
    stream.seek(at)
    while left:
        count = stream.readinto(left)
        if not count:
            raise UserError(f"{entry.file}: truncated within tensor {entry.name!r}")
        left = left[count:]


def write_file(
    file: Path,
    tensors: Sequence[Tensor],
    chunks: Callable[[Tensor], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file whose tensors' data come in C-contiguous chunks.

    The file appears under its name when it is whole, never before.

    Args:
      file: where to.
      tensors: what it holds; those of wider elements are placed first, so that all are aligned.
      chunks: a tensor's data, in order.
      metadata: what it says beside them.
    """
    tensors = sorted(tensors, key=lambda tensor: -_SIZES[tensor.dtype])
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(_header(tensors, metadata or {}))
            for tensor in tensors:
                _write_tensor(stream, tensor, chunks(tensor))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _write_tensor(stream: BinaryIO, tensor: Tensor, chunks: Iterable[np.ndarray]) -> None:
    written = 0
    for chunk in chunks:
        written += stream.write(chunk.reshape(-1).view(np.uint8).data)
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name}: {written} bytes written of {tensor.nbytes}")


def _header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    # transformers refuses a file that does not say who its format is for.
    header: dict[str, Any] = {_METADATA: {"format": "pt", **metadata}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
