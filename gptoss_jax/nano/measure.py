"""Measures a checkpoint on nano's skills: `python -m gptoss_jax.nano.measure DIR`.

Held-out problems, greedy, on the packed weights; beside them, with --run, the same on the master
weights they were packed from; and how many turns at temperature 1.0 are no harmony. Prints a
Markdown table, and with --card writes it into the model card.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.training.tasks import HELD_OUT, SKILLS, Problem
from gptoss_jax.training.tasks.evaluation import Answer, Answerer, Score, evaluate, table

if TYPE_CHECKING:
    from gptoss_jax.kernels.attention.eight_bit import EightBit
    from gptoss_jax.model.transformer import GptOss
    from gptoss_jax.text import Tokenizer

_BATCH = 64
_MAX_TOKENS = 384  # the longest reference turn has fewer than 250
_BEGIN, _END = "<!-- skills: begin -->", "<!-- skills: end -->"


def answerer(
    model: "GptOss",
    tokenizer: "Tokenizer",
    *,
    temperature: float,
    seed: int,
    cache: "EightBit | None" = None,
) -> Answerer:
    """Answers problems, many at a time."""
    from gptoss_jax.inference.engine import engine_for
    from gptoss_jax.inference.requests import Request
    from gptoss_jax.inference.turns import turns
    from gptoss_jax.text.harmony import render_conversation

    engine = engine_for(model, tokenizer, _BATCH, reuse=False, cache=cache)

    def answer(problems: Sequence[Problem]) -> list[Answer]:
        prompts = [render_conversation(tokenizer, one.prompt()) for one in problems]
        asked = [
            Request(prompt, _MAX_TOKENS, temperature=temperature, seed=seed + index)
            for index, prompt in enumerate(prompts)
        ]
        return list(turns(engine, tokenizer, asked))

    return answer


def report(
    sets: Sequence[Sequence[Score]],
    master: Sequence[Score],
    sampled: Sequence[Score],
    command: str,
) -> str:
    """The table, the malformed turns at temperature 1.0, and the command that measured both.

    Args:
      sets: of the packed weights, greedy; each of its own problems.
      master: of the weights before they were packed on the first set's problems, or none.
      sampled: of the packed weights at temperature 1.0.
      command: as it was typed.
    """
    turns, malformed = (sum(getattr(s, k) for s in sampled) for k in ("turns", "malformed"))
    return (
        f"{table(sets[0], master, sets[1:])}\n\nAt temperature 1.0, {malformed} of {turns} turns "
        f"were malformed. Measured by `{command}`.\n"
    )


def into_card(card: Path, text: str) -> None:
    """Puts the report between the card's two marks.

    Raises:
      UserError: the card has no such marks.
    """
    content = card.read_text()
    before, begin, rest = content.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise UserError(f"{card}: has no {_BEGIN} … {_END} to put the table between")
    card.write_text(f"{before}{_BEGIN}\n{text}{_END}{after}")


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    return cli.run(_measure, _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "nano.measure",
        "Measures nano's skills.",
        [
            "nano",
            "runs/nano/export --run runs/nano",
            "nano --adapter runs/twice/export --skills twice addition",
        ],
    )
    parser.add_argument("checkpoint", metavar="DIR", help="a checkpoint with nano's tokenizer")
    parser.add_argument("--count", type=cli.number(int, 1), default=200, help="problems a skill")
    parser.add_argument(
        "--sampled",
        type=cli.number(int, 1),
        metavar="N",
        help="problems a skill at temperature 1.0; default: half of --count",
    )
    parser.add_argument("--skills", nargs="+", choices=HELD_OUT, default=list(SKILLS))
    parser.add_argument(
        "--seeds", type=cli.number(int, 1), default=1, help="sets of problems, each of --count"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--adapter", metavar="DIR", help="of a fine-tune, in PEFT's layout")
    cli.add_cache(parser)
    parser.add_argument("--run", metavar="DIR", type=Path, help="of train: unpacked weights too")
    parser.add_argument("--card", type=Path, help="a model card to write the table into")
    cli.add_parallelism(parser)
    return parser


def _command(arguments: argparse.Namespace) -> str:
    given = " --adapter ADAPTER" if arguments.adapter else ""
    given += f" --cache {arguments.cache}" if arguments.cache else ""
    given += " --run RUN" if arguments.run else ""
    given += f" --mesh {arguments.mesh}" if arguments.mesh is not None else ""
    given += f" --dtype {arguments.dtype}" if arguments.dtype != "float32" else ""
    if arguments.skills != list(SKILLS):
        given += f" --skills {' '.join(arguments.skills)}"
    given += f" --count {arguments.count}"
    given += f" --sampled {arguments.sampled}" if arguments.sampled else ""
    given += f" --seeds {arguments.seeds}" if arguments.seeds > 1 else ""
    return f"python -m gptoss_jax.nano.measure DIR{given}"


def _measure(arguments: argparse.Namespace) -> None:
    from gptoss_jax.loading import checkpoint_directory, choose_mesh, load
    from gptoss_jax.model.config import read_config
    from gptoss_jax.training.export import master_model, trained_whole

    if arguments.card and set(arguments.skills) != set(SKILLS):
        raise UsageError("--card: holds the table of all skills; leave --skills out")
    if arguments.run:
        trained_whole(arguments.run)
    distributed.join(arguments)
    if arguments.run and distributed.joined():
        raise UsageError("--run: the weights before packing are for one process; leave it out")
    config = read_config(checkpoint_directory(arguments.checkpoint))
    mesh = choose_mesh(config, arguments.mesh, _BATCH)
    model, tokenizer = load(
        arguments.checkpoint, dtype=arguments.dtype, mesh=mesh, adapter=arguments.adapter
    )
    if tokenizer is None:
        raise UserError(f"{arguments.checkpoint}: has no tokenizer")

    def answering(which: "GptOss", temperature: float = 0.0) -> Answerer:
        return answerer(which, tokenizer, temperature=temperature, seed=1, cache=arguments.cache)

    skills, count = arguments.skills, arguments.count
    greedy = answering(model)
    sets = [evaluate(greedy, skills, count, seed=seed) for seed in range(arguments.seeds)]
    master = []
    if arguments.run:
        unpacked = master_model(arguments.run, model.config)
        master = evaluate(answering(unpacked), skills, count)
    sampled = evaluate(answering(model, 1.0), skills, arguments.sampled or max(1, count // 2))
    text = report(sets, master, sampled, _command(arguments))
    print(text)
    if arguments.card and distributed.prints():
        into_card(arguments.card, text)


if __name__ == "__main__":
    sys.exit(main())
