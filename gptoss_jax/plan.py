"""`python -m gptoss_jax.plan`: will it fit, before renting anything."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gptoss_jax import cli
from gptoss_jax.errors import UserError

if TYPE_CHECKING:
    from gptoss_jax.model.config import Config
    from gptoss_jax.planning.report import Report

_EXAMPLES = [
    "--model 120b --topology v5e:2x4 --batch 8 --context 8192",
    "--model 20b",
]
_GIB = 2**30


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser(
        "plan",
        "Compiles a model for devices that are not here and says whether it fits.",
        _EXAMPLES,
    )
    model = parser.add_argument_group("Model")
    model.add_argument("--model", metavar="20b|120b|DIR", required=True)
    model.add_argument("--batch", type=cli.number(int, 1), default=1, metavar="B")
    model.add_argument("--context", type=cli.number(int, 1), default=8192, metavar="T")
    parallelism = parser.add_argument_group("Parallelism")
    parallelism.add_argument(
        "--topology", metavar="CHIP:SHAPE", help="v5e:2x4, h100:8; without it a table over slices"
    )
    parallelism.add_argument("--mesh", metavar="AXIS=N,…", help="as expert=4,tensor=2")
    output = parser.add_argument_group("Output")
    output.add_argument("--json", action="store_true", help="print one JSON object a slice")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Plans one slice, or goes through the common ones."""
    import jax

    from gptoss_jax import sharding
    from gptoss_jax.planning import report

    # A compiler without its device cannot load what the cache holds, and warns.
    jax.config.update("jax_enable_compilation_cache", False)
    config = _config(arguments.model)
    batch, context = arguments.batch, arguments.context
    if arguments.topology:
        shape = sharding.parse(arguments.mesh) if arguments.mesh else None
        rows = [_one(config, arguments.topology, shape, batch, context)]
    elif arguments.mesh:
        raise UserError("--mesh goes with --topology: a table chooses for each slice")
    else:
        rows = report.table(config, batch, context)
    if arguments.json:
        for row in rows:
            print(json.dumps({"topology": row.slice.name} | row.as_dict(batch)))
    else:
        _print(rows, batch)


def _config(model: str) -> "Config":
    from gptoss_jax.loading import checkpoint_directory
    from gptoss_jax.model.config import PRESETS, check_directory, read_config

    if model in PRESETS:
        return PRESETS[model]
    directory = checkpoint_directory(model)
    check_directory(directory)
    return read_config(directory)


def _one(config: "Config", name: str, shape, batch: int, context: int) -> "Report":
    from gptoss_jax.planning import report
    from gptoss_jax.topology import NoCompilerError

    try:
        return report.report(config, name, shape, batch, context)
    except NoCompilerError as error:
        print(f"note: by arithmetic: {error}", file=sys.stderr)
        return report.estimate(config, name, shape, batch, context)


def _print(rows: "list[Report]", batch: int) -> None:
    head = ("slice", "mesh", "capacity", "weights", "cache", "other", "peak", "fits", "bound", "by")
    lines = [head, *(_cells(row, batch) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip())
    print(
        "GiB a device. other: temporaries and padding. bound: tokens/s of decode if memory ran at "
        "its rated speed and nothing else took time; no measurement.",
        file=sys.stderr,
    )


def _cells(row: "Report", batch: int) -> tuple[str, ...]:
    from gptoss_jax import sharding

    capacity, counted = row.slice.chip.capacity, row.counted
    sizes = (capacity, counted.weights, counted.kv_cache, row.temporaries, row.peak)
    spare = (capacity - row.peak) / _GIB
    fits = f"{'yes' if row.fits else 'no'} ({spare:+.2f})"
    bound = f"{row.tokens_per_second(batch):.0f}"
    by = "arithmetic" if row.compiled is None else "compiler"
    shown = (f"{size / _GIB:.2f}" for size in sizes)
    return (row.slice.name, sharding.describe(row.shape), *shown, fits, bound, by)


if __name__ == "__main__":
    flags = build_parser()
    sys.exit(cli.run(main, flags.parse_args()))
