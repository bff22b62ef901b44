"""What a checkpoint offers, whatever its layout."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gptoss_jax.checkpoint import recode
from gptoss_jax.checkpoint.directory import Checkpoint
from gptoss_jax.checkpoint.parameters import aligned_empty
from gptoss_jax.checkpoint.progress import CHUNK_BYTES, rows_within
from gptoss_jax.checkpoint.rules import Part, Rule
from gptoss_jax.checkpoint.safetensors_file import DTYPES, Entry, read_rows
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config

_NAN_SCALE = 255


@dataclasses.dataclass(frozen=True)
class Reading:
    """One parameter, readable in slices of rows.

    Attributes:
      path: the parameter's, see `rules.Part`.
      rows: its leading dimension.
      nbytes: of all of it.
      fill: `fill(first, buffers, columns)` fills a buffer for each of the parameter's arrays (one,
        or blocks and scales) with the rows from `first`, and reads nothing where it is None. Of a
        matrix it need fill only these columns (None: all). Called from threads.
      step: how many rows to read at once.
    """

    path: str
    rows: int
    nbytes: int
    fill: Callable[[int, Sequence[np.ndarray | None], tuple[int, int] | None], None]
    step: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose headers have been checked.

    Attributes:
      directory: where it is.
      config: the network.
      dtype: what everything that is not packed is stored in.
      packed_experts: MXFP4 or dense experts.
      readings: one for every parameter.
    """

    directory: Path
    config: Config
    dtype: np.dtype
    packed_experts: bool
    readings: list[Reading]


def safetensors_source(checkpoint: Checkpoint) -> Source:
    """The source of a directory of safetensors files."""
    readings = [reading for rule in checkpoint.rules for reading in _readings(rule, checkpoint)]
    return Source(
        checkpoint.directory,
        checkpoint.config,
        DTYPES[checkpoint.dtype],
        checkpoint.packed_experts,
        readings,
    )


def _readings(rule: Rule, checkpoint: Checkpoint) -> Iterator[Reading]:
    entries = [checkpoint.entries[tensor.name] for tensor in rule.tensors]
    row_bytes = sum(entry.nbytes // entry.shape[0] for entry in entries)
    for part in rule.parts:
        nbytes = part.rows * row_bytes
        step = rows_within(CHUNK_BYTES, part.rows, nbytes)
        yield Reading(part.path, part.rows, nbytes, _filler(rule, part, entries), step)


def _filler(rule: Rule, part: Part, entries: list[Entry]):
    def fill(
        first: int, buffers: Sequence[np.ndarray | None], columns: tuple[int, int] | None
    ) -> None:
        for entry, out in zip(entries, buffers, strict=True):
            if out is not None:
                _read(entry, part.first + first, out, rule.interleaved, columns)

    return fill


def _read(
    entry: Entry,
    first: int,
    out: np.ndarray,
    interleaved: bool,
    columns: tuple[int, int] | None,
) -> None:
    """Rows of a published tensor, from `first`, into `out` in memory's order."""
    packed = entry.dtype == "U8"
    if not packed and not interleaved:
        read_rows(entry, first, out, columns)
        return
    raw = aligned_empty((len(out), *entry.shape[1:]), DTYPES[entry.dtype])
    read_rows(entry, first, raw)
    if not packed:
        recode.gates_first(raw, out)
    elif len(entry.shape) == 4:
        recode.recode_blocks(raw, out, interleaved=interleaved)
    else:
        refuse_nan(raw, f"{entry.file}: tensor {entry.name!r}")
        recode.recode_scales(raw, out, interleaved=interleaved)


def refuse_nan(scales: np.ndarray, what: str) -> None:
    """Raises a UserError if a scale byte is 255: the standard's NaN, which no weight should be."""
    if (scales == _NAN_SCALE).any():
        raise UserError(f"{what}: a scale byte is 255 (NaN)")
