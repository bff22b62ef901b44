"""`python -m gptoss_jax.train`: trains a model from a config file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed

if TYPE_CHECKING:
    from gptoss_jax.training.stopping import Stop

_EXAMPLES = [
    "--config configs/nano.py --workdir runs/nano",
    "--config configs/nano.py --workdir runs/mine --config.data.kind=jsonl "
    "--config.data.paths=chats.jsonl --config.optimizer.lr=1e-4",
]


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    arguments = cli.parse_with_overrides(_parser(), sys.argv[1:] if argv is None else argv)
    return cli.run(_train, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "train",
        "Trains a model, or goes on where an interrupted run stopped. SIGTERM saves and ends it.",
        _EXAMPLES,
    )
    parser.add_argument(
        "--config", metavar="FILE", required=True, help="a Python file with get_config()"
    )
    cli.add_overrides(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        required=True,
        help="of the run: checkpoints, metrics, plot, and at the end the packed model in export/",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,…",
        help="as fsdp=4,expert=2; without it all devices that the batch is divided by, on fsdp",
    )
    distributed.add_flags(parser)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    from gptoss_jax.training.stopping import Stop, Stopped

    with Stop() as stop:
        try:
            _run(arguments, stop)
        except Stopped:
            said = "stopped by SIGTERM before a step; there is nothing new to save"
            print(f"{said}; run again to go on", file=sys.stderr)


def _run(arguments: argparse.Namespace, stop: "Stop") -> None:
    distributed.join(arguments)
    if distributed.joined():
        stop.at_once = False  # the others are to stop, too
    from gptoss_jax.training import settings

    config = settings.load(arguments.config, arguments.overrides)
    from gptoss_jax.training import base, sources

    found = base.find(config)
    data = sources.open_sources(config, found.tokenizer)
    from gptoss_jax.training import loop, spread

    mesh = spread.choose_mesh(config, found.sizes, arguments.mesh)
    loop.run(config, found, data, arguments.workdir, mesh, stop)


if __name__ == "__main__":
    cli.leave(main())
