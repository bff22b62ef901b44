"""What `generate` and `chat` share: flags, what they load, and text as it comes."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli
from gptoss_jax.errors import UserError
from gptoss_jax.inference.checks import BIASES, PENALTIES, REPETITION
from gptoss_jax.loading import (
    checkpoint_directory,
    choose_mesh,
    default_temperature,
    find_tokenizer,
    load_with,
)
from gptoss_jax.tools.loop import DEFAULT_ROUNDS
from gptoss_jax.tools.tool import Tool, Toolbox, shortened

if TYPE_CHECKING:
    from gptoss_jax.inference.requests import Request
    from gptoss_jax.model.config import Config
    from gptoss_jax.model.transformer import GptOss
    from gptoss_jax.text import Tokenizer
    from gptoss_jax.text.constraints import Constraint
    from gptoss_jax.text.harmony import Message

_SHOWN_OF_TOOLS = 2000


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags that name a model."""
    model = parser.add_argument_group("Model")
    model.add_argument(
        "--checkpoint",
        metavar="DIR",
        default="nano",
        help="a checkpoint in any published layout; without one, the packaged nano answers",
    )
    model.add_argument(
        "--adapter", metavar="DIR", help="of a fine-tune, in PEFT's layout; it is not merged"
    )
    model.add_argument("--tokenizer", metavar="FILE|DIR", help="instead of the checkpoint's own")
    model.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="what activations are computed in (%(default)s)",
    )
    cli.add_cache(model)


def add_sampling(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of flags that say how tokens are chosen."""
    sampling = parser.add_argument_group("Sampling")
    fraction = cli.number(float, 0, 1)
    sampling.add_argument("--max-tokens", type=cli.number(int, 1), default=4096, metavar="N")
    sampling.add_argument(
        "--temperature",
        type=cli.number(float, 0),
        metavar="X",
        help="0: greedy; without it what the checkpoint's generation_config.json asks for, else 1",
    )
    sampling.add_argument("--top-p", type=cli.number(float, 1e-6, 1), default=1.0, metavar="P")
    sampling.add_argument("--top-k", type=cli.number(int, 0, 2**31 - 1), default=0, metavar="K")
    sampling.add_argument("--min-p", type=fraction, default=0.0, metavar="P")
    sampling.add_argument(
        "--repetition-penalty",
        type=cli.number(float, *REPETITION),
        default=1.0,
        metavar="X",
        help="of tokens in prompt and answer, as Hugging Face transformers have it",
    )
    for name, what in (("presence", "that were said"), ("frequency", "as often as they were said")):
        sampling.add_argument(
            f"--{name}-penalty",
            type=cli.number(float, *PENALTIES),
            default=0.0,
            metavar="X",
            help=f"off the logits of tokens {what}, as in the OpenAI API",
        )
    sampling.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=X",
        help="added to a token's logit; may be given again",
    )
    sampling.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends the answer where it comes up, and is not shown; may be given again",
    )
    sampling.add_argument(
        "--speculate",
        action="store_true",
        help="guess from what was said before, and verify; where it pays the same comes sooner",
    )
    sampling.add_argument(
        "--draft",
        metavar="DIR",
        help="a smaller model with the same tokenizer that guesses instead",
    )
    sampling.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=0, metavar="N")
    return sampling


def _bias(text: str) -> tuple[int, float]:
    id_, equals, value = text.partition("=")
    if not equals or not id_.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be ID=X, as 1234=-5")
    try:
        return int(id_), cli.number(float, *BIASES)(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: {value!r} is no number") from None


def add_reasoning(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of flags about reasoning, with the effort in it."""
    reasoning = parser.add_argument_group("Reasoning")
    reasoning.add_argument(
        "--reasoning-effort", choices=["low", "medium", "high"], default="medium"
    )
    return reasoning


def add_tools(parser: argparse.ArgumentParser) -> None:
    """The flags that give the model tools; without them it has none."""
    tools = parser.add_argument_group(
        "Tools", "their calls and answers are shown with the reasoning"
    )
    tools.add_argument(
        "--tool",
        choices=["python"],
        action="append",
        default=[],
        help="python: runs the model's code, shut in: no network, none of your files, little time",
    )
    tools.add_argument(
        "--functions",
        metavar="FILE.py",
        type=Path,
        action="append",
        default=[],
        help="the functions in it; they run in this process with all your rights",
    )
    tools.add_argument(
        "--mcp",
        metavar="COMMAND",
        action="append",
        default=[],
        help="the tools of an MCP server, which this command starts, with all your rights",
    )
    tools.add_argument(
        "--max-tool-rounds",
        type=cli.number(int, 0),
        default=DEFAULT_ROUNDS,
        metavar="N",
        help="how often tools are run for an answer (%(default)s)",
    )


def wants_tools(arguments: argparse.Namespace) -> bool:
    """Whether the flags give the model any tool."""
    return bool(arguments.tool or arguments.functions or arguments.mcp)


@contextlib.contextmanager
def toolbox(arguments: argparse.Namespace) -> Iterator[Toolbox]:
    """The tools that the flags ask for; imports no JAX.

    Raises:
      UserError: one of them is not to be had.
    """
    from gptoss_jax.tools import functions, sandbox
    from gptoss_jax.tools.mcp import McpServer
    from gptoss_jax.tools.python import Python

    with contextlib.ExitStack() as stack:
        tools: list[Tool] = []
        if arguments.tool:
            sandbox.check()
            tools.append(Python())
        for file in arguments.functions:
            tools += functions.functions_of(file)
        for command in arguments.mcp:
            tools += stack.enter_context(McpServer(command)).tools
        yield Toolbox(tools)


def find(arguments: argparse.Namespace) -> "tuple[Tokenizer, Config]":
    """The checkpoint's tokenizer and sizes; imports no JAX.

    From then on `arguments.checkpoint` is its directory, and the temperature is known.

    Raises:
      UserError: something is wrong with the directory, or it has no tokenizer.
    """
    from gptoss_jax.model.config import check_directory, read_config

    directory = arguments.checkpoint = checkpoint_directory(arguments.checkpoint)
    check_directory(directory)
    config = read_config(directory)
    tokenizer = find_tokenizer(directory, config.vocab_size, arguments.tokenizer)
    if tokenizer is None:
        raise UserError(
            f"{directory}: no tokenizer in it, and its vocabulary of "
            f"{config.vocab_size} is not o200k_harmony's; give one with --tokenizer"
        )
    if arguments.draft is not None:
        _check_draft(arguments.draft, config.vocab_size)
    if arguments.temperature is None:
        arguments.temperature = default_temperature(directory)
    return tokenizer, config


def _check_draft(path: str, vocab_size: int) -> None:
    from gptoss_jax.model.config import check_directory, read_config

    directory = checkpoint_directory(path)
    check_directory(directory)
    size = read_config(directory).vocab_size
    if size != vocab_size:
        raise UserError(
            f"--draft {path}: its vocabulary is of {size}, the model's of {vocab_size}; give one "
            "with the same tokenizer"
        )


def load(arguments: argparse.Namespace, config: "Config") -> "GptOss":
    """The model, over the mesh that the flags name or that suits it."""
    import jax.numpy as jnp

    mesh = choose_mesh(config, arguments.mesh)
    return load_with(arguments.checkpoint, arguments.adapter, jnp.dtype(arguments.dtype), mesh)


def draft(arguments: argparse.Namespace, model: "GptOss") -> "GptOss | None":
    """The model that guesses, where one is named, on the mesh of the one that it guesses for."""
    if arguments.draft is None:
        return None
    from gptoss_jax import sharding
    from gptoss_jax.model.config import read_config

    directory = checkpoint_directory(arguments.draft)
    mesh = sharding.mesh_of(model.embedding_VD[...])
    if mesh is not None:
        sharding.check(read_config(directory), dict(mesh.shape), mesh.size)
    return load_with(directory, None, model.dtype, mesh)


def request(
    arguments: argparse.Namespace,
    config: "Config",
    prompt: Sequence[int],
    constraint: "Constraint | None" = None,
) -> "Request":
    """A prompt to be continued as the flags of sampling say.

    Raises:
      UserError: a bias for an id that the model does not have, or an empty stop string.
    """
    from gptoss_jax.inference.checks import check_sampling
    from gptoss_jax.inference.requests import Request

    asked = Request(
        prompt,
        arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        logit_bias=dict(arguments.logit_bias),
        seed=arguments.seed,
        stop=arguments.stop,
        constraint=constraint,
    )
    check_sampling(asked, config.vocab_size)
    return asked


def compile_report(*, wanted: bool) -> Callable[[str], None] | None:
    """What is told that a program was compiled: a terminal, or whoever asked for it."""
    if not (wanted or sys.stderr.isatty()):
        return None
    return lambda line: print(line, file=sys.stderr)


class Printer:
    """The answer to stdout, reasoning to stderr, each on lines of its own on a terminal."""

    def __init__(self, *, answer: bool, reasoning: bool):
        """Prints what is asked for: the answer, the reasoning and what goes to tools."""
        self._answer = answer
        self._reasoning = reasoning
        self._last: str | None = None  # the channel whose line is open
        self._answered = False

    def show(self, channel: str, text: str) -> None:
        """Text of a turn as it comes."""
        is_answer = channel in ("final", "raw")
        if not (self._answer if is_answer else self._reasoning):
            return
        if self._last not in (None, channel):
            print(file=sys.stderr, flush=True)
        if is_answer:
            print(text, end="", flush=True)
            self._answered = True
        else:
            label = "" if channel == self._last else f"[{channel}] "
            print(cli.dimmed(label + text, sys.stderr), end="", file=sys.stderr, flush=True)
        self._last = channel

    def show_tool(self, message: "Message") -> None:
        """What a tool answered; of much, the beginning and the end."""
        self.show(str(message.name), shortened(message.content.rstrip("\n"), _SHOWN_OF_TOOLS))

    def finish(self, text: str) -> None:
        """Ends the open line; a turn that only has a preamble gives that as its answer."""
        if self._last not in (None, "final", "raw"):
            print(file=sys.stderr)
        if not self._answer or not text:
            return
        print("" if self._answered else text, end="" if text.endswith("\n") else "\n", flush=True)
