"""`python -m gptoss_jax.generate`: one answer, streamed."""

import argparse
import dataclasses
import json
import signal
import sys
import time
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.loading import (
    checkpoint_directory,
    choose_mesh,
    default_temperature,
    find_tokenizer,
    load_with,
)

if TYPE_CHECKING:
    from gptoss_jax.inference.completion import Completion, Turn
    from gptoss_jax.model.config import Config
    from gptoss_jax.text import Tokenizer

_EXAMPLES = [
    '"What is 347 + 586?"',
    '--checkpoint ~/gpt-oss-20b "Why is the sky blue?"',
    "--checkpoint ~/gpt-oss-20b --reasoning-effort high --show-reasoning - < question.txt",
]


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser(
        "generate", "Answers a prompt with gpt-oss, streaming to stdout.", _EXAMPLES
    )
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
    cli.add_parallelism(parser)
    prompt = parser.add_argument_group("Prompt")
    prompt.add_argument("prompt", metavar="PROMPT|-", nargs="?", help="-: read standard input")
    prompt.add_argument("--system", metavar="TEXT", help="a system message of the chat API's kind")
    prompt.add_argument("--developer", metavar="TEXT", help="a developer message")
    prompt.add_argument(
        "--raw", action="store_true", help="continue the prompt as plain text, without harmony"
    )
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
    sampling.add_argument("--seed", type=cli.number(int, 0, 2**32 - 1), default=0, metavar="N")
    reasoning = parser.add_argument_group("Reasoning")
    reasoning.add_argument(
        "--reasoning-effort", choices=["low", "medium", "high"], default="medium"
    )
    reasoning.add_argument(
        "--show-reasoning", action="store_true", help="stream the reasoning to stderr"
    )
    output = parser.add_argument_group("Output")
    output.add_argument("--json", action="store_true", help="print one JSON object at the end")
    output.add_argument("--stats", action="store_true", help="timings on stderr")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Loads, generates, prints."""
    began = time.perf_counter()
    turn = _prepare(arguments)
    load_s = time.perf_counter() - began
    _stream(turn, arguments)
    completion = turn.completion()
    timings = {"load_s": load_s, **completion.timings}
    if arguments.json:
        shown = dataclasses.asdict(completion) | {"timings": timings}
        print(json.dumps(shown, ensure_ascii=False))
    _report(completion, timings, arguments)
    if completion.finish_reason == "interrupted":
        raise KeyboardInterrupt


def _prepare(arguments: argparse.Namespace) -> "Turn":
    """Everything up to the first token; what can be wrong without JAX is found before it loads."""
    if arguments.raw and (arguments.system or arguments.developer):
        raise UsageError("--raw continues the prompt as it is; leave out --system and --developer")
    distributed.join(arguments)
    text = _read_prompt(arguments) if distributed.prints() else ""
    tokenizer, config = _tokenizer(arguments)
    temperature = arguments.temperature
    if temperature is None:
        temperature = default_temperature(arguments.checkpoint)
    import jax.numpy as jnp

    from gptoss_jax.inference import completion
    from gptoss_jax.inference.generator import check_prompts
    from gptoss_jax.inference.sampling import Sampling

    if arguments.raw:
        prompt = tokenizer.encode(text)
    else:
        roles = {"system": arguments.system, "developer": arguments.developer, "user": text}
        messages = [{"role": role, "content": said} for role, said in roles.items() if said]
        prompt = completion.render_chat(tokenizer, messages, arguments.reasoning_effort)
    prompt = distributed.same(prompt)
    check_prompts(config, [prompt], arguments.max_tokens)
    mesh = choose_mesh(config, arguments.mesh)
    dtype = jnp.dtype(arguments.dtype)
    model = load_with(arguments.checkpoint, arguments.adapter, dtype, mesh)
    sampling = Sampling.same(
        1,
        temperature=temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        seed=arguments.seed,
    )
    generator = completion.generator_for(model, tokenizer, _compile_report(arguments))
    return completion.Turn(
        generator, tokenizer, prompt, sampling, arguments.max_tokens, raw=arguments.raw
    )


def _tokenizer(arguments: argparse.Namespace) -> "tuple[Tokenizer, Config]":
    from gptoss_jax.model.config import check_directory, read_config

    arguments.checkpoint = checkpoint_directory(arguments.checkpoint)
    check_directory(arguments.checkpoint)
    config = read_config(arguments.checkpoint)
    tokenizer = find_tokenizer(arguments.checkpoint, config.vocab_size, arguments.tokenizer)
    if tokenizer is None:
        raise UserError(
            f"{arguments.checkpoint}: no tokenizer in it, and its vocabulary of "
            f"{config.vocab_size} is not o200k_harmony's; give one with --tokenizer"
        )
    return tokenizer, config


def _read_prompt(arguments: argparse.Namespace) -> str:
    text = _read_stdin() if arguments.prompt == "-" else arguments.prompt
    if not text.strip():
        raise UserError("the prompt is empty; give PROMPT, or - to read standard input")
    return text


def _read_stdin() -> str:
    if sys.stdin is None:
        raise UserError("standard input is closed; give PROMPT, or pipe it in")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start})") from None


def _compile_report(arguments: argparse.Namespace):
    wanted = arguments.stats or sys.stderr.isatty()
    return (lambda line: print(line, file=sys.stderr)) if wanted else None


def _stream(turn: "Turn", arguments: argparse.Namespace) -> None:
    def interrupt(signum, frame):
        turn.interrupt()
        # A second Ctrl-C does not wait for the device.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    began = False
    printer = _Printer(answer=not arguments.json, reasoning=arguments.show_reasoning)
    for channel, text in turn:
        # From the first text on, Ctrl-C ends the turn after the device call under way; before it
        # there is nothing to keep, and it ends the program; as it does one of several processes,
        # which would wait for each other.
        if not began and not distributed.joined():
            signal.signal(signal.SIGINT, interrupt)
        began = True
        printer.show(channel, text)
    printer.finish(turn.completion().text)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Printer:
    """The answer to stdout, reasoning to stderr, each on lines of its own on a terminal."""

    def __init__(self, *, answer: bool, reasoning: bool):
        self._answer = answer
        self._reasoning = reasoning
        self._last: str | None = None  # the channel whose line is open
        self._answered = False

    def show(self, channel: str, text: str) -> None:
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

    def finish(self, text: str) -> None:
        """Ends the open line; a turn that only has a preamble gives that as its answer."""
        if self._last not in (None, "final", "raw"):
            print(file=sys.stderr)
        if not self._answer or not text:
            return
        print("" if self._answered else text, end="" if text.endswith("\n") else "\n", flush=True)


def _report(completion: "Completion", timings: dict, arguments: argparse.Namespace) -> None:
    if completion.finish_reason == "length":
        count = completion.usage["completion_tokens"]
        where = "" if completion.text else " before the answer began"
        print(f"note: cut off{where} after {count} tokens; see --max-tokens", file=sys.stderr)
    if arguments.stats:
        usage = completion.usage
        print(
            f"load {timings['load_s']:.1f} s, compile {timings['compile_s']:.1f} s, prefill "
            f"{usage['prompt_tokens']} tokens at {timings['prefill_tokens_per_second']:.1f}/s, "
            f"decode {usage['completion_tokens']} tokens at "
            f"{timings['decode_tokens_per_second']:.2f}/s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    flags = build_parser()
    given = flags.parse_args()
    if given.prompt is None:
        flags.error("no prompt: give PROMPT, or - to read standard input")
    sys.exit(cli.run(main, given))
