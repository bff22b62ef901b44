"""Converts checkpoints between layouts, merges adapters, and writes synthetic ones."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed
from gptoss_jax.loading import checkpoint_directory

if TYPE_CHECKING:
    import jax

    from gptoss_jax.model.config import Config

_LAYOUTS = ("hf", "hf-bf16", "original", "orbax", "peft")
_PACKED = ("hf", "original")
_SIZES = ("20b", "120b", "tiny")


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return cli.run_first(_synthetic if arguments.synthetic else _convert, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Converts a checkpoint to another layout, merges an adapter, or writes a synthetic one.",
        [
            "gpt-oss-20b/ gpt-oss-20b-orbax/ --to orbax",
            "gpt-oss-20b/ tuned-20b/ --adapter runs/mine/export --to hf",
            "--synthetic 20b two-layers/ --layers 2",
        ],
    )
    parser.add_argument(
        "source", nargs="?", metavar="SRC", type=Path, help="the checkpoint; none with --synthetic"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="new or empty, to write to")
    conversion = parser.add_argument_group("Conversion")
    conversion.add_argument(
        "--to", choices=_LAYOUTS, help="the layout to write; peft: of the adapter alone"
    )
    conversion.add_argument(
        "--adapter", metavar="DIR", help="in PEFT's layout: added into the weights that it is for"
    )
    cli.add_mesh(parser)
    distributed.add_flags(parser)
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
        others = (arguments.source, arguments.to, arguments.adapter)
        if any(others) or arguments.mesh is not None:
            parser.error("--synthetic takes one directory, no --to, --adapter or --mesh")
        return
    if not arguments.source or not arguments.to:
        parser.error("give SRC, DIR and --to, or --synthetic and DIR")
    if arguments.to == "orbax" and arguments.adapter:
        parser.error("--adapter goes into hf, hf-bf16, original or peft; convert that to orbax")
    if arguments.to == "peft" and not arguments.adapter:
        parser.error("--to peft takes --adapter DIR")
    merges = arguments.adapter and arguments.to in _PACKED
    if arguments.mesh is not None and not merges and arguments.to != "orbax":
        parser.error("--mesh is for models in memory: --to orbax, or --adapter with hf or original")
    if arguments.layers is not None or arguments.seed is not None:
        parser.error("--layers and --seed belong to --synthetic")


def _synthetic(arguments: argparse.Namespace) -> None:
    from gptoss_jax.checkpoint.synthetic import write_synthetic

    seed = arguments.seed or 0
    write_synthetic(arguments.synthetic, arguments.directory, arguments.layers, seed)


def _convert(arguments: argparse.Namespace) -> None:
    import jax

    from gptoss_jax.checkpoint import peft
    from gptoss_jax.checkpoint.adapters import read_adapter
    from gptoss_jax.checkpoint.load import load_model, open_source
    from gptoss_jax.checkpoint.output import check_new
    from gptoss_jax.checkpoint.save import save_model, save_source
    from gptoss_jax.loading import choose_mesh

    check_new(arguments.directory)  # refused now, not after minutes of reading
    arguments.source = checkpoint_directory(str(arguments.source))
    source = open_source(arguments.source)
    if arguments.to == "orbax":  # which writes only what is in memory
        model = load_model(arguments.source, mesh=choose_mesh(source.config, arguments.mesh))
        save_model(model, "orbax", arguments.directory, source=arguments.source)
        return
    trained = None
    if arguments.adapter:
        trained = read_adapter(arguments.adapter, source.config)
    if arguments.to == "peft":
        assert trained is not None  # `_check` saw to it
        peft.save(trained, source.config, str(arguments.source), arguments.directory)
        for line in peft.not_held(trained):
            print(f"note: {line}", file=sys.stderr)
        return
    packs = arguments.to in _PACKED
    if packs and not source.packed_experts:
        print("note: the experts are dense; this quantises them to MXFP4", file=sys.stderr)
    compares = packs and trained and (trained.has_experts or not source.packed_experts)
    asked = arguments.mesh is not None
    mesh = choose_mesh(source.config, arguments.mesh) if compares or asked else None
    save_source(source, arguments.to, arguments.directory, adapter=trained)
    if not compares:
        return
    try:
        print(_cost_of_packing(arguments, source.config, mesh), file=sys.stderr)
    except jax.errors.JaxRuntimeError as error:  # what is written is whole
        reason = str(error).splitlines()[0]
        print(f"note: what packing costs was not measured ({reason})", file=sys.stderr)


def _cost_of_packing(
    arguments: argparse.Namespace, sizes: "Config", mesh: "jax.sharding.Mesh | None"
) -> str:
    """What packing the merged experts costs, beside the adapter applied without merging."""
    from gptoss_jax.inference.divergence import PROMPTS, divergence, log_probabilities
    from gptoss_jax.loading import find_tokenizer, load

    tokenizer = find_tokenizer(arguments.source, sizes.vocab_size)
    if tokenizer is None:
        return "note: without a tokenizer no KL of packing is measured"
    found = []
    for path, adapter in ((arguments.source, arguments.adapter), (arguments.directory, None)):
        model, _ = load(path, dtype="float32", mesh=mesh, adapter=adapter)
        found.append(log_probabilities(model, tokenizer))
        del model  # one at a time
    return (
        f"packing the experts: KL {divergence(*found):.2e} nats a token, mean over "
        f"{sum(map(len, found[0]))} tokens of {len(PROMPTS)} prompts"
    )


if __name__ == "__main__":
    sys.exit(main())
