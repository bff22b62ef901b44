"""Checkpoints of any size with random weights: shapes, memory and speed without a download."""

import dataclasses
import math
import statistics
import zlib
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from gptoss_jax.checkpoint import output
from gptoss_jax.checkpoint.directory import rules_of
from gptoss_jax.checkpoint.progress import bar, chunks, in_order, rows_within
from gptoss_jax.checkpoint.safetensors_file import DTYPES, Tensor
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import PRESETS, Config

# Deviations by the end of a tensor's name; the rest has 0.02. Embeddings of this size keep a
# token's identity in the residual stream, unembeddings give logits a deviation of about 3.
_DEVIATIONS = {
    "embed_tokens.weight": 0.5,
    "lm_head.weight": 0.06,
    "norm.weight": 0.05,  # around 1
    "sinks": 0.5,
}
# Uniform e2m1 codes have a root mean square of 2.93; with 2^-8 and 2^-7 half and half, 0.018.
_SCALE_BYTES = np.array([119, 120], np.uint8)

# Each piece has a seed of its own, so another size would give other bytes.
_PIECE_BYTES = 32 << 20


def write_synthetic(
    size: str | Config,
    directory: str | Path,
    layers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Writes a checkpoint in the published HF MXFP4 layout with seeded random weights.

    Names, shapes, dtypes, shards and index are the published ones. The bytes depend on the seed
    alone, not on the number of threads. Logits are finite and neither flat nor peaked.

    Args:
      size: "20b", "120b", "tiny", or a config.
      directory: new or empty.
      layers: how many layers instead of the config's own.
      seed: of every tensor, together with its name.
      progress: shows a bar in bytes on stderr where that is a terminal.

    Raises:
      UserError: an unknown size, no layers, or a directory that is not empty.
    """
    config = resize(size, layers)
    directory = Path(directory)
    rules = rules_of("hf", config)
    tensors = [tensor for rule in rules for tensor in rule.tensors]
    raw = output.hf_config(config, packed_experts=True, dtype="BF16")
    total = sum(tensor.nbytes for tensor in tensors)
    with output.created(directory), bar(total, "writing", shown=progress) as shown:
        output.write_shards(directory, tensors, "hf", partial(_chunks, seed=seed), shown)
        output.write_rest(directory, raw, source=None)


def resize(size: str | Config, layers: int | None) -> Config:
    """A preset or a config, with another number of layers if given."""
    if isinstance(size, str):
        if size not in PRESETS:
            raise UserError(f"unknown size {size!r}; known: {', '.join(PRESETS)}")
        size = PRESETS[size]
    if layers is None:
        return size
    return dataclasses.replace(size, num_layers=layers, layer_types=())


def _chunks(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    rows, *row = tensor.shape
    step = rows_within(_PIECE_BYTES, rows, tensor.nbytes)
    jobs = (
        partial(_draw, tensor, (count, *row), [seed, zlib.crc32(tensor.name.encode()), first])
        for first, count in chunks(rows, step)
    )
    return in_order(jobs)


def _draw(tensor: Tensor, shape: tuple[int, ...], seed: list[int]) -> np.ndarray:
    bits = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
    count = math.prod(shape)
    if tensor.name.endswith("_blocks"):
        return _random(bits, count, np.uint8).reshape(shape)
    if tensor.name.endswith("_scales"):
        return _SCALE_BYTES[_random(bits, count, np.uint8) & 1].reshape(shape)
    kind = next((end for end in _DEVIATIONS if tensor.name.endswith(end)), None)
    mean = 1.0 if kind == "norm.weight" else 0.0
    table = _normals(mean, _DEVIATIONS.get(kind or "", 0.02), tensor.dtype)
    return table[_random(bits, count, np.uint16)].reshape(shape)


def _random(bits: np.random.Generator, count: int, dtype: type) -> np.ndarray:
    words = -(-count * np.dtype(dtype).itemsize // 8)
    raw = bits.integers(0, 2**64, words, np.uint64, endpoint=False)
    return raw.astype("<u8", copy=False).view(dtype)[:count]


@lru_cache
def _normals(mean: float, deviation: float, dtype: str) -> np.ndarray:
    """65,536 quantiles of a normal distribution: a random uint16 indexes a random weight."""
    normal = statistics.NormalDist(mean, deviation)
    values = [normal.inv_cdf((i + 0.5) / 65_536) for i in range(65_536)]
    return np.array(values, np.float32).astype(DTYPES[dtype])
