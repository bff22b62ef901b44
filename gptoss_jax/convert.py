"""Converts checkpoints between layouts, and writes synthetic ones."""

import argparse
import sys
from pathlib import Path

from gptoss_jax import cli

_LAYOUTS = ("hf", "hf-bf16", "original", "orbax")
_SIZES = ("20b", "120b", "tiny")


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return cli.run(_synthetic if arguments.synthetic else _convert, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Converts a checkpoint to another layout, or writes a synthetic one.",
        ["gpt-oss-20b/ gpt-oss-20b-orbax/ --to orbax", "--synthetic 20b two-layers/ --layers 2"],
    )
    parser.add_argument(
        "source", nargs="?", metavar="SRC", type=Path, help="the checkpoint; none with --synthetic"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new or empty, to write to")
    conversion = parser.add_argument_group("Conversion")
    conversion.add_argument("--to", choices=_LAYOUTS, help="the layout to write")
    synthetic = parser.add_argument_group("Synthetic (takes DIR alone)")
    synthetic.add_argument(
        "--synthetic", choices=_SIZES, metavar="SIZE", help=f"random weights: {', '.join(_SIZES)}"
    )
    synthetic.add_argument(
        "--layers", type=cli.number(int, 1), metavar="N", help="instead of the size's"
    )
    synthetic.add_argument("--seed", type=cli.number(int, 0), metavar="N", help="default 0")
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.synthetic:
        if arguments.source or arguments.to:
            parser.error("--synthetic takes one directory and no --to")
        return
    if not arguments.source or not arguments.to:
        parser.error("give SRC, DIR and --to, or --synthetic and DIR")
    if arguments.layers is not None or arguments.seed is not None:
        parser.error("--layers and --seed belong to --synthetic")


def _synthetic(arguments: argparse.Namespace) -> None:
    from gptoss_jax.checkpoint.synthetic import write_synthetic

    seed = arguments.seed or 0
    write_synthetic(arguments.synthetic, arguments.directory, arguments.layers, seed)


def _convert(arguments: argparse.Namespace) -> None:
    from gptoss_jax.checkpoint.load import load_model, open_source
    from gptoss_jax.checkpoint.output import check_new
    from gptoss_jax.checkpoint.save import save_model, save_source

    check_new(arguments.directory)  # refused now, not after minutes of reading
    if arguments.to == "orbax":  # which writes only what is in memory
        model = load_model(arguments.source)
        save_model(model, "orbax", arguments.directory, source=arguments.source)
        return
    source = open_source(arguments.source)
    if arguments.to in ("hf", "original") and not source.packed_experts:
        print("note: the experts are dense; this quantises them to MXFP4", file=sys.stderr)
    save_source(source, arguments.to, arguments.directory)


if __name__ == "__main__":
    sys.exit(main())
