"""Writes a checkpoint directory so that it looks complete only when it is."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gptoss_jax.checkpoint.directory import INDEX
from gptoss_jax.checkpoint.safetensors_file import Tensor, write_file
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config, to_hf_json

# With these limits the published shards come out, file by file.
_HF_SHARD_BYTES = 4_800_000_000
_ORIGINAL_SHARD_BYTES = 10_600_000_000
_ORIGINAL_SINGLE_BYTES = 16_000_000_000

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_COPIED += ("chat_template.jinja", "generation_config.json", "*.model")

GENERATION_FILE = "generation_config.json"
# o200k_harmony's ids of what `generation_config` asks for.
_O200K = {
    "<|startoftext|>": 199_998,
    "<|endoftext|>": 199_999,
    "<|return|>": 200_002,
    "<|call|>": 200_012,
}

Chunks = Callable[[Tensor], Iterable[np.ndarray]]


def check_new(directory: Path) -> None:
    """Raises a UserError if the directory exists and is not empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not empty; give a new directory")


@contextlib.contextmanager
def created(directory: Path) -> Iterator[None]:
    """Makes the directory, or takes an empty one; what is written there goes if the body fails."""
    check_new(directory)
    existed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:  # an interrupt too: what is left would refuse the next try
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(directory)  # a failed write knows no name
        shutil.rmtree(directory)
        if existed:
            directory.mkdir()
        raise


def shards(tensors: Sequence[Tensor], layout: str) -> dict[str, list[Tensor]]:
    """Which file holds which tensors, named and sized as published."""
    total = sum(tensor.nbytes for tensor in tensors)
    limit = _HF_SHARD_BYTES
    if layout == "original":
        limit = _ORIGINAL_SHARD_BYTES if total > _ORIGINAL_SINGLE_BYTES else total
    groups = _fill(tensors, limit)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    if layout == "original":
        names = [f"model--{i + 1:05}-of-{len(groups):05}" for i in range(len(groups))]
    else:
        names = [f"model-{i:05}-of-{len(groups) - 1:05}" for i in range(len(groups))]
    return {f"{name}.safetensors": group for name, group in zip(names, groups, strict=True)}


def _fill(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    used = 0
    for tensor in tensors:
        if groups[-1] and used + tensor.nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    return groups


def write_shards(
    directory: Path, tensors: Sequence[Tensor], layout: str, chunks: Chunks, shown: tqdm
) -> None:
    """Writes the safetensors files, then the index where there is more than one."""

    def counted(tensor: Tensor) -> Iterable[np.ndarray]:
        for chunk in chunks(tensor):
            yield chunk
            shown.update(chunk.nbytes)

    files = shards(tensors, layout)
    for name, group in files.items():
        write_file(directory / name, group, counted)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, group in files.items() for tensor in group},
        }
        write_json(directory / INDEX, index)


def write_rest(directory: Path, config: dict[str, Any], source: Path | None) -> None:
    """The tokenizer's files of `source`, generation_config.json, and config.json last of all."""
    if source is not None:
        for pattern in _COPIED:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, directory / file.name)
    generation = directory / GENERATION_FILE
    if not generation.exists():
        write_json(generation, generation_config(_O200K))
    write_json(directory / "config.json", config)


def generation_config(ids: Mapping[str, int]) -> dict[str, Any]:
    """The published file for a tokenizer: return, endoftext and call end an answer.

    Args:
      ids: of the special tokens; what the tokenizer has none of is left out.
    """
    stops = [ids[stop] for stop in ("<|return|>", "<|endoftext|>", "<|call|>") if stop in ids]
    names = {"bos_token_id": "<|startoftext|>", "pad_token_id": "<|endoftext|>"}
    single = {key: ids[name] for key, name in names.items() if name in ids}
    return dict(sorted({**single, "do_sample": True, "eos_token_id": stops}.items()))


def hf_config(config: Config, *, packed_experts: bool, dtype: str) -> dict[str, Any]:
    """The `config.json` of an HF directory whose dense tensors are of safetensors `dtype`."""
    raw = to_hf_json(config, packed_experts=packed_experts)
    raw["torch_dtype"] = {"BF16": "bfloat16", "F32": "float32"}[dtype]
    return raw


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
