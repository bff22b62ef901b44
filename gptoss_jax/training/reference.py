"""What the reference model, a run's base, thinks of the pairs: computed once, kept with the run."""

import dataclasses
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.training.examples import Pair
from gptoss_jax.training.feed import numbered_pass
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.sources import Source, Sources

FILE = "reference.npz"


class Referenced:
    """A source of pairs with the reference's log-probabilities."""

    def __init__(self, source: Source, values_N2: np.ndarray):
        """Of a source of N pairs, and float32 [N, 2] of what is chosen and what is rejected."""
        self._source = source
        self._values_N2 = values_N2
        self.size = source.size
        self.skipped = source.skipped
        self.fingerprint = source.fingerprint

    def __getitem__(self, index: int) -> Pair:
        one = self._source[index]
        assert isinstance(one, Pair)
        return one.with_reference(*self._values_N2[index].tolist())

    def where(self, index: int) -> str:
        return self._source.where(index)


def with_reference(
    sources: Sources,
    workdir: Path,
    log_probabilities: Callable[[Batch], np.ndarray],
    *,
    base: str,
    rows: int,
    length: int,
    begun: bool,
) -> Sources:
    """The sources with the log-probabilities that the run has, or that are computed now.

    Args:
      sources: of pairs.
      workdir: of the run; what is computed is kept in it.
      log_probabilities: of a batch's learned targets under the reference model, [B, T], else 0.
      base: the reference model's fingerprint and what it computes in.
      rows: B, in each batch it is given.
      length: T.
      begun: whether the run has a checkpoint; else what is kept and does not fit is replaced.

    Raises:
      UserError: what is kept is of other data or another base, or cannot be read.
    """
    file = workdir / FILE
    splits = {"train": sources.train, "validation": sources.validation}
    known = {name: source for name, source in splits.items() if source is not None}
    values = _kept(file, known, base, begun=begun)
    if values is None:
        values = {
            name: _computed(source, log_probabilities, rows, length)
            for name, source in known.items()
        }
        if jax.process_index() == 0:
            _write(file, known, values, base)
    new = {name: Referenced(source, values[name]) for name, source in known.items()}
    return dataclasses.replace(sources, **new)


def _computed(
    source: Source, log_probabilities: Callable[[Batch], np.ndarray], rows: int, length: int
) -> np.ndarray:
    """Float32 [N, 2], in the source's order."""
    began = time.perf_counter()
    assert source.size is not None  # tasks are no pairs
    values_N2 = np.zeros((source.size, 2), np.float32)
    for places, batch in numbered_pass(source, rows=rows, length=length):
        each_BT = log_probabilities(batch)
        for packed, each_T, segments_T in zip(places, each_BT, batch.segments_BT, strict=True):
            sums = np.bincount(segments_T, each_T, minlength=2 * len(packed) + 1)
            values_N2[packed] = sums[1 : 2 * len(packed) + 1].reshape(-1, 2)
    took = time.perf_counter() - began
    print(f"reference of {source.size} pairs computed in {took:.1f} s", file=sys.stderr, flush=True)
    return values_N2


def _write(file: Path, known: dict[str, Source], values: dict[str, np.ndarray], base: str) -> None:
    arrays: dict[str, Any] = values | {"base": np.array(base)}
    arrays |= {f"{name}_data": np.array(source.fingerprint) for name, source in known.items()}
    unfinished = file.with_name(f"{file.name}.tmp")
    try:
        with unfinished.open("wb") as opened:
            np.savez(opened, **arrays)
    except OSError as error:
        error.filename = str(unfinished)  # which a failed write does not say
        raise
    unfinished.rename(file)


def _kept(
    file: Path, known: dict[str, Source], base: str, *, begun: bool
) -> dict[str, np.ndarray] | None:
    if not file.is_file():
        return None
    try:
        return _read(file, known, base)
    except UserError:
        if begun:
            raise
        return None  # left before the first step; the data were mended since


def _read(file: Path, known: dict[str, Source], base: str) -> dict[str, np.ndarray]:
    try:
        with np.load(file) as kept:
            found = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: not readable ({error}); remove it to compute it again") from None
    # The run's own base.json is not there yet if it ended while this was computed.
    if (was := str(found.get("base", "none"))) != base:
        raise UserError(f"{file}: is of another base ({was}, now {base}); give another --workdir")
    for name, source in known.items():
        was = str(found.get(f"{name}_data", "none"))
        if was != source.fingerprint:
            raise UserError(
                f"{file}: is of other {name} data ({was}, now {source.fingerprint}); give another "
                "--workdir"
            )
        if name not in found or found[name].shape != (source.size, 2):
            raise UserError(f"{file}: has no {name} values; remove it to compute it again")
    return found
