"""`python -m gptoss_jax.train`: trains a model from a config file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gptoss_jax import cli, distributed

_EXAMPLES = [
    "--config configs/nano.py --workdir runs/nano",
    "--config configs/nano.py --workdir runs/mine --config.data.kind=jsonl "
    "--config.data.paths=chats.jsonl --config.optimizer.lr=1e-4",
]
_OVERRIDE = "--config."


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    parser = _parser()
    rest, overrides = _split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(rest)
    return cli.run(lambda given: _train(given, overrides), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "train",
        "Trains a model, or goes on where an interrupted run stopped. SIGTERM saves and ends it.",
        _EXAMPLES,
    )
    parser.add_argument(
        "--config", metavar="FILE", required=True, help="a Python file with get_config()"
    )
    parser.add_argument(
        "--config.NAME",
        metavar="VALUE",
        help="a field instead of the file's, as --config.data.seed=1; lists are a,b,c",
    )
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


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words argparse is to have, and the overrides: `--config.a=1`, or `--config.a 1`."""
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        if not word.startswith(_OVERRIDE):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix(_OVERRIDE).partition("=")
        overrides.append((field, value if equals else next(words, "")))
    return rest, overrides


def _train(arguments: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    distributed.join(arguments)
    from gptoss_jax.training import settings

    config = settings.load(arguments.config, overrides)
    from gptoss_jax.training import base, sources

    found = base.find(config)
    data = sources.open_sources(config, found.tokenizer)
    from gptoss_jax.training import loop, spread

    mesh = spread.choose_mesh(config, found.sizes, arguments.mesh)
    loop.run(config, found, data, arguments.workdir, mesh)


if __name__ == "__main__":
    sys.exit(main())
