"""A checkpoint directory: which layout it holds, and whether its files say so consistently.

Everything here reads headers only, so that a broken directory is refused before a byte of weights
is read or allocated.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gptoss_jax.checkpoint import hf, original
from gptoss_jax.checkpoint.rules import Rule
from gptoss_jax.checkpoint.safetensors_file import Entry, read_header
from gptoss_jax.errors import UserError
from gptoss_jax.model.config import Config, check_directory, read_config, read_json_object

INDEX = "model.safetensors.index.json"
ORBAX_FOLDER = "params"
SAFETENSORS_LAYOUTS = ("hf", "hf-bf16", "original")
LAYOUTS = (*SAFETENSORS_LAYOUTS, "orbax")
_DENSE_DTYPES = ("BF16", "F32")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory whose headers agree with its config.

    Attributes:
      directory: where it is.
      layout: one of `SAFETENSORS_LAYOUTS`.
      config: its config.json.
      dtype: the safetensors dtype of everything that is not packed, BF16 or F32.
      rules: the layout's mapping, complete.
      entries: where each published tensor is.
    """

    directory: Path
    layout: str
    config: Config
    dtype: str
    rules: list[Rule]
    entries: dict[str, Entry]

    @property
    def packed_experts(self) -> bool:
        return self.layout != "hf-bf16"


def rules_of(layout: str, config: Config, dtype: str = "BF16") -> list[Rule]:
    """The mapping of a safetensors layout ("hf", "hf-bf16" or "original")."""
    if layout == "original":
        return original.rules(config, dtype)
    return hf.rules(config, dtype, packed_experts=layout == "hf")


def is_orbax(directory: Path) -> bool:
    """Whether the directory is one that `convert --to orbax` wrote."""
    return (directory / ORBAX_FOLDER).is_dir()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Detects a safetensors layout from the files and checks every header against the config.

    Raises:
      UserError: names the file and the tensor: a missing, extra, wrongly shaped or typed tensor, a
        truncated file, index and shards that disagree, a layout that is none of ours.
    """
    entries = _entries(directory)
    config = read_config(directory)
    layout = _detect(entries)
    rules = rules_of(layout, config)
    dtype = _dense_dtype(rules, entries)
    rules = rules_of(layout, config, dtype)
    _check(rules, entries, directory)
    return Checkpoint(directory, layout, config, dtype, rules, entries)


def _entries(directory: Path) -> dict[str, Entry]:
    check_directory(directory)
    files = sorted(directory.glob("model*.safetensors"))
    index = directory / INDEX
    placed = _read_index(index, files) if index.exists() else {}
    if not files:
        hint = "; its original/ folder does" if (directory / "original").is_dir() else ""
        raise UserError(f"{directory}: holds no model*.safetensors and no {ORBAX_FOLDER}/{hint}")
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise UserError(f"{file}: tensor {name!r} is also in {entries[name].file.name}")
            if placed and placed.get(name) != file.name:
                where = f"in {placed[name]}" if name in placed else "nowhere"
                raise UserError(f"{file}: tensor {name!r}: {INDEX} places it {where}")
            entries[name] = entry
    for name in sorted(placed.keys() - entries.keys()):
        raise UserError(f"{directory / placed[name]}: tensor {name!r} is missing; {INDEX} has it")
    return entries


def _read_index(index: Path, files: list[Path]) -> dict[str, str]:
    placed = read_json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
        raise UserError(f"{index}: key 'weight_map' is missing or no map of names to files")
    present = {file.name for file in files}
    for name, file in placed.items():
        if file not in present:
            raise UserError(
                f"{index.parent / file}: no such file; {INDEX} has tensor {name!r} in it"
            )
    for file in sorted(present - set(placed.values())):
        first = next(iter(read_header(index.parent / file)), None)
        raise UserError(f"{index.parent / file}: absent from {INDEX} (its tensor {first!r} too)")
    return placed


# The experts' names tell the layouts apart.
_MARKS = {
    "hf": ("model.layers.", ("_proj_blocks", "_proj_scales")),
    "hf-bf16": ("model.layers.", ("experts.gate_up_proj", "experts.down_proj")),
    "original": ("block.", ("_weight.blocks", "_weight.scales")),
}


def _detect(entries: dict[str, Entry]) -> str:
    for layout, (start, ends) in _MARKS.items():
        if any(name.startswith(start) and name.endswith(ends) for name in entries):
            return layout
    first = next(iter(entries.values()), None)
    what = f"tensor {first.name!r} in {first.file} is of none" if first else "the files are empty"
    raise UserError(f"not a gpt-oss layout ({', '.join(LAYOUTS)}): {what}")


def _dense_dtype(rules: list[Rule], entries: dict[str, Entry]) -> str:
    """The dtype of the first dense tensor that is there; the others must agree."""
    for tensor in (rule.tensors[0] for rule in rules if not rule.packed):
        if tensor.name in entries:
            entry = entries[tensor.name]
            if entry.dtype in _DENSE_DTYPES:
                return entry.dtype
            raise UserError(f"{entry.file}: tensor {entry.name!r}: {entry.dtype}, not BF16 or F32")
    return "BF16"


def _check(rules: list[Rule], entries: dict[str, Entry], directory: Path) -> None:
    problems = list(_problems(rules, entries, directory))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


def _problems(rules: list[Rule], entries: dict[str, Entry], directory: Path) -> Iterator[str]:
    expected = {tensor.name: tensor for rule in rules for tensor in rule.tensors}
    where = _listing(entries, directory)
    for name, tensor in expected.items():
        entry = entries.get(name)
        if entry is None:
            yield f"{where}: tensor {name!r} is missing"
        elif entry.dtype != tensor.dtype:
            yield f"{entry.file}: tensor {name!r}: {entry.dtype}, not {tensor.dtype}"
        elif entry.shape != tensor.shape:
            shapes = f"{list(entry.shape)}, not {list(tensor.shape)}"
            yield f"{entry.file}: tensor {name!r}: shape {shapes} as config.json has it"
    for name in sorted(entries.keys() - expected.keys()):
        yield f"{entries[name].file}: tensor {name!r}: config.json has no place for it"


def _listing(entries: dict[str, Entry], directory: Path) -> Path:
    """Where all tensors should be found: the index, or the shards that have none."""
    if (directory / INDEX).exists():
        return directory / INDEX
    files = {entry.file for entry in entries.values()}
    return files.pop() if len(files) == 1 else directory / "model*.safetensors"
