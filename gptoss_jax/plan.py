"""`python -m gptoss_jax.plan`: will it fit, before renting anything."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed
from gptoss_jax.errors import UsageError

if TYPE_CHECKING:
    from gptoss_jax.model.config import Config
    from gptoss_jax.planning.arithmetic import Stored
    from gptoss_jax.planning.jobs import Job
    from gptoss_jax.planning.report import Report

_EXAMPLES = [
    "--model 120b --topology v5e:2x4 --batch 8 --context 8192",
    "--model 20b",
    "--model 120b --topology v6e:2x4 --batch max",
    "--task train --config configs/nano.py --topology v5e:2x2",
    "--task train --config configs/lora_20b.py --config.lora.rank=4 --model 20b --topology v5e:1x1",
]
_GIB = 2**30
_MOST = "max"
_CONTEXT = 8192


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser(
        "plan",
        "Compiles a model for devices that are not here and says whether it fits.",
        _EXAMPLES,
    )
    work = parser.add_argument_group("Work")
    work.add_argument("--task", choices=["generate", "train"], default="generate")
    work.add_argument(
        "--model", metavar="20b|120b|DIR", help="to generate with, or instead of the config's base"
    )
    work.add_argument(
        "--batch", type=_batch, metavar="B|max", help="sequences (1); max: as many as fit"
    )
    work.add_argument(
        "--context", type=cli.number(int, 1), metavar="T", help=f"positions ({_CONTEXT})"
    )
    cli.add_cache(work)
    work.add_argument("--config", metavar="FILE", help="what to train, as `train` takes it")
    cli.add_overrides(work)
    parallelism = parser.add_argument_group("Parallelism")
    parallelism.add_argument(
        "--topology", metavar="CHIP:SHAPE", help="v5e:2x4, h100:8; without it a table over slices"
    )
    parallelism.add_argument("--mesh", metavar="AXIS=N,…", help="as expert=4,tensor=2")
    distributed.add_flags(parser)
    output = parser.add_argument_group("Output")
    output.add_argument("--json", action="store_true", help="print one JSON object a slice")
    output.add_argument("--plot", metavar="FILE.png", type=Path, help="memory beside capacity")
    return parser


def _batch(text: str) -> int | str:
    if text == _MOST:
        return _MOST
    try:
        return int(cli.number(int, 1)(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be a number or {_MOST}") from None


def main(arguments: argparse.Namespace) -> None:
    """Plans one slice, or goes through the common ones."""
    _check(arguments)
    import jax

    from gptoss_jax.planning import report

    # A compiler without its device cannot load what the cache holds, and warns.
    jax.config.update("jax_enable_compilation_cache", False)
    job = _job(arguments)
    rows = [_one(job, arguments)] if arguments.topology is not None else report.table(job, _note)
    if arguments.json:
        for row in rows:
            print(json.dumps({"topology": row.slice.name} | row.as_dict()))
    else:
        _print(rows)
    if arguments.plot:
        from gptoss_jax.planning import picture

        picture.draw(rows, arguments.plot)


def _check(arguments: argparse.Namespace) -> None:
    training = arguments.task == "train"
    if training and not arguments.config:
        raise UsageError("--task train takes --config FILE")
    if training and (arguments.batch or arguments.context or arguments.cache):
        raise UsageError(
            "--batch, --context and --cache are generation's; --task train has its config's"
        )
    if not training and (arguments.config or arguments.overrides or not arguments.model):
        raise UsageError("give --model 20b, 120b or a checkpoint; --config goes with --task train")
    if arguments.batch == _MOST and arguments.topology is None:
        raise UsageError("--batch max goes with --topology")
    if arguments.mesh is not None and arguments.topology is None:
        raise UsageError("--mesh goes with --topology: a table chooses for each slice")
    cli.check_picture(arguments.plot)


def _job(arguments: argparse.Namespace) -> "Job":
    from gptoss_jax.planning.jobs import Generate, Train

    if arguments.task == "generate":
        batch = 1 if arguments.batch in (None, _MOST) else arguments.batch
        context = arguments.context or _CONTEXT
        sizes, stored = _network(arguments.model)
        return Generate(sizes, batch, context, arguments.cache, stored)
    from gptoss_jax.training import base, settings

    config = settings.load(arguments.config, arguments.overrides)
    if arguments.model:
        return Train(config, *_network(arguments.model))
    sizes = base.find(config).sizes
    return Train(config, sizes, _network(config.base)[1]) if config.base else Train(config, sizes)


def _network(model: str) -> "tuple[Config, Stored]":
    """(sizes, how the weights are stored); of a directory without weights as they are published."""
    from gptoss_jax.checkpoint.directory import is_orbax
    from gptoss_jax.checkpoint.load import open_source
    from gptoss_jax.loading import checkpoint_directory
    from gptoss_jax.model.config import PRESETS, check_directory, read_config
    from gptoss_jax.planning.arithmetic import PUBLISHED, Stored

    if model in PRESETS:
        return PRESETS[model], PUBLISHED
    directory = checkpoint_directory(model)
    check_directory(directory)
    if not is_orbax(directory) and not any(directory.rglob("*.safetensors")):
        return read_config(directory), PUBLISHED
    source = open_source(directory)
    return source.config, Stored(source.packed_experts, source.dtype.name)


def _one(job: "Job", arguments: argparse.Namespace) -> "Report":
    from gptoss_jax import sharding
    from gptoss_jax.planning import report
    from gptoss_jax.planning.jobs import Generate
    from gptoss_jax.topology import NoCompilerError

    name, mesh = arguments.topology, arguments.mesh
    shape = None if mesh is None else sharding.parse(mesh)

    def ask(by: Callable) -> "Report":
        if arguments.batch == _MOST and isinstance(job, Generate):
            return report.largest_batch(job, name, shape, by)
        return by(job, name, shape)

    try:
        return ask(report.report)
    except NoCompilerError as error:
        _note(str(error))
        return ask(report.estimate)


def _note(reason: str) -> None:
    print(f"note: by arithmetic: {reason}", file=sys.stderr)


def _print(rows: "list[Report]") -> None:
    beside = "cache" if rows[0].counted.decode_minimum is not None else "trained"
    head = ("slice", "mesh", "capacity", "weights", beside, "other", "peak", "fits")
    lines = [(*head, "must", "moves", "bound", "by"), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip())
    print(
        "GiB a device. trained: the optimizer's moments, and adapters if there are. other: "
        "temporaries and padding. fits: in brackets what is left of the capacity beside the peak, "
        "or beside what an engine leaves a tenth to programs with, if that is more. must: GB that "
        "a step of decode cannot but move; moves: what the compiled program does. bound: tokens/s "
        "if the slower of memory and arithmetic (in training arithmetic) ran at its rated speed "
        "and nothing else took time; no measurement.",
        file=sys.stderr,
    )
    for row in rows:
        if row.compiled is not None and row.compiled.collectives:
            print(f"{row.slice.name}: {_said(row.compiled.collectives)}", file=sys.stderr)


def _said(collectives: dict[str, tuple[int, int]]) -> str:
    kinds = (f"{n} {kind} of {size / 1e6:.2f} MB" for kind, (n, size) in collectives.items())
    return f"collectives in the program's text: {', '.join(kinds)}"


def _cells(row: "Report") -> tuple[str, ...]:
    from gptoss_jax import sharding

    capacity, counted = row.slice.chip.capacity, row.counted
    beside = counted.held - counted.weights
    sizes = (capacity, counted.weights, beside, row.temporaries, row.peak)
    spare = (capacity - row.needed) / _GIB
    fits = f"{'yes' if row.fits else 'no'} ({spare:+.2f})"
    bound = f"{row.tokens_per_second:.0f}"
    by = "arithmetic" if row.compiled is None else "compiler"
    by = f"compiler: {row.refused}" if row.refused else by
    shown = (f"{size / _GIB:.2f}" for size in sizes)
    moved = (counted.decode_minimum, row.compiled and row.compiled.decode_bytes)
    moves = ("-" if size is None else f"{size / 1e9:.2f}" for size in moved)
    return (row.slice.name, sharding.describe(row.shape), *shown, fits, *moves, bound, by)


if __name__ == "__main__":
    sys.exit(cli.run_first(main, cli.parse_with_overrides(build_parser(), sys.argv[1:])))
