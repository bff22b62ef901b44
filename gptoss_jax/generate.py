"""`python -m gptoss_jax.generate`: one answer, streamed."""

import argparse
import dataclasses
import json
import signal
import sys
import time
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed, interactive
from gptoss_jax.answer import answer
from gptoss_jax.constraint_flags import add_constraints, constraint_of
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.inference.requests import MOST_LOGPROBS
from gptoss_jax.tools.loop import ToolLoop
from gptoss_jax.tools.tool import Toolbox

if TYPE_CHECKING:
    from gptoss_jax.inference.completion import Completion, Turn

_EXAMPLES = [
    '"What is 347 + 586?"',
    '--checkpoint ~/gpt-oss-20b "Why is the sky blue?"',
    "--checkpoint ~/gpt-oss-20b --reasoning-effort high --show-reasoning - < question.txt",
]


# Room for what tools say, beside that for the answer.
_TOOL_TOKENS = 16_384


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser(
        "generate", "Answers a prompt with gpt-oss, streaming to stdout.", _EXAMPLES
    )
    interactive.add_model(parser)
    cli.add_parallelism(parser)
    prompt = parser.add_argument_group("Prompt")
    prompt.add_argument("prompt", metavar="PROMPT|-", nargs="?", help="-: read standard input")
    prompt.add_argument("--system", metavar="TEXT", help="a system message of the chat API's kind")
    prompt.add_argument("--developer", metavar="TEXT", help="a developer message")
    prompt.add_argument(
        "--raw", action="store_true", help="continue the prompt as plain text, without harmony"
    )
    sampling = interactive.add_sampling(parser)
    sampling.add_argument(
        "-n", "--n", type=cli.number(int, 1), default=1, metavar="N", help="answers; seeds count up"
    )
    add_constraints(parser)
    interactive.add_tools(parser)
    reasoning = interactive.add_reasoning(parser)
    reasoning.add_argument(
        "--show-reasoning", action="store_true", help="stream the reasoning to stderr"
    )
    output = parser.add_argument_group("Output")
    output.add_argument("--json", action="store_true", help="print one JSON object at the end")
    output.add_argument(
        "--logprobs",
        type=cli.number(int, 0, MOST_LOGPROBS),
        metavar="K",
        help="with --json: each token's log-probability, and the K likeliest tokens'",
    )
    output.add_argument("--stats", action="store_true", help="timings on stderr")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Loads, generates, prints."""
    began = time.perf_counter()
    _check_together(arguments)
    distributed.join(arguments)
    if distributed.joined() and interactive.wants_tools(arguments):
        raise UsageError("tools are run by one process, and there are several; leave them out")
    with interactive.toolbox(arguments) as toolbox:
        prepared = _prepare(arguments, toolbox)
        load_s = time.perf_counter() - began
        for number, (turn, loop) in enumerate(prepared, 1):
            if len(prepared) > 1 and not arguments.json:
                print(cli.dimmed(f"[{number} of {len(prepared)}]", sys.stderr), file=sys.stderr)
            _show(_answer(turn, loop, arguments), load_s, arguments)


def _show(completion: "Completion", load_s: float, arguments: argparse.Namespace) -> None:
    timings = {"load_s": load_s, **completion.timings}
    if arguments.json:
        shown = dataclasses.asdict(completion) | {"timings": timings}
        if completion.logprobs is None:
            del shown["logprobs"]
        print(json.dumps(shown, ensure_ascii=False))
    _report(completion, timings, arguments)
    if completion.finish_reason == "interrupted":
        raise KeyboardInterrupt


def _check_together(arguments: argparse.Namespace) -> None:
    """Raises a UsageError for flags that contradict each other."""
    if arguments.raw and (arguments.system or arguments.developer):
        raise UsageError("--raw continues the prompt as it is; leave out --system and --developer")
    if arguments.logprobs is not None and not arguments.json:
        raise UsageError("--logprobs is shown by --json alone; add it")
    if arguments.raw and interactive.wants_tools(arguments):
        raise UsageError(
            "--raw continues the prompt as it is, without tools; leave one of them out"
        )


def _prepare(arguments: argparse.Namespace, toolbox: Toolbox) -> "list[tuple[Turn, ToolLoop]]":
    """Everything up to the first token; what can be wrong without JAX is found before it loads."""
    text = _read_prompt(arguments) if distributed.prints() else ""
    tokenizer, config = interactive.find(arguments)
    constraint, formats = constraint_of(arguments, tokenizer, toolbox, raw=arguments.raw)
    from gptoss_jax.inference import completion
    from gptoss_jax.inference.requests import check_prompt, copies
    from gptoss_jax.text.harmony import render_conversation

    conversation = []
    if arguments.raw:
        prompt = tokenizer.encode(text)
    else:
        roles = {"system": arguments.system, "developer": arguments.developer, "user": text}
        messages = [{"role": role, "content": said} for role, said in roles.items() if said]
        conversation = completion.chat_conversation(
            messages,
            arguments.reasoning_effort,
            formats,
            functions=toolbox.functions,
            namespaces=toolbox.namespaces,
            # Hosts' clocks differ, and what follows a call is rendered by each.
            current_date=distributed.of_first(completion.today()),
        )
        prompt = render_conversation(tokenizer, conversation)
    prompt = distributed.of_first(prompt)
    check_prompt(config, prompt, arguments.max_tokens)
    toolbox.fit(config.max_context)
    request = interactive.request(arguments, config, prompt, constraint)
    request = dataclasses.replace(request, logprobs=arguments.logprobs)
    asked = copies(request, arguments.n)
    model = interactive.load(arguments, config)
    draft = interactive.draft(arguments, model)
    report = interactive.compile_report(wanted=arguments.stats)
    more = _TOOL_TOKENS if toolbox else 0
    options = {"speculate": arguments.speculate, "draft": draft, "cache": arguments.cache}
    engine = completion.engine_of_few(model, tokenizer, asked, report, more=more, **options)
    return [
        (
            completion.Turn(engine, tokenizer, one, raw=arguments.raw),
            ToolLoop(toolbox, conversation, max_rounds=arguments.max_tool_rounds),
        )
        for one in asked
    ]


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


def _answer(turn: "Turn", loop: ToolLoop, arguments: argparse.Namespace) -> "Completion":
    printer = interactive.Printer(answer=not arguments.json, reasoning=arguments.show_reasoning)
    completion = answer(
        turn,
        loop,
        max_tokens=arguments.max_tokens,
        stream=lambda turn: _stream(turn, printer),
        show=printer.show_tool,
    )
    printer.finish(completion.text)
    return completion


def _stream(turn: "Turn", printer: interactive.Printer) -> None:
    def interrupt(signum, frame):
        turn.interrupt()
        # A second Ctrl-C does not wait for the device.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    began = False
    for channel, text in turn:
        # From the first text on, Ctrl-C ends the turn after the device call under way; before it
        # there is nothing to keep, and it ends the program; as it does one of several processes,
        # which would wait for each other.
        if not began and not distributed.joined():
            signal.signal(signal.SIGINT, interrupt)
        began = True
        printer.show(channel, text)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _report(completion: "Completion", timings: dict, arguments: argparse.Namespace) -> None:
    if completion.finish_reason == "length":
        count = completion.usage["completion_tokens"]
        where = "" if completion.text else " before the answer began"
        print(f"note: cut off{where} after {count} tokens; see --max-tokens", file=sys.stderr)
    if completion.finish_reason == "error":
        print(
            "note: the constraint became too complex to follow; simplify its expressions",
            file=sys.stderr,
        )
    if arguments.stats:
        guesses = arguments.speculate or arguments.draft is not None
        usage = completion.usage
        print(
            f"load {timings['load_s']:.1f} s, compile {timings['compile_s']:.1f} s, prefill "
            f"{usage['prompt_tokens']} tokens at {timings['prefill_tokens_per_second']:.1f}/s, "
            f"decode {usage['completion_tokens']} tokens at "
            f"{timings['decode_tokens_per_second']:.2f}/s"
            + (f", {timings['guesses_right']:.0%} of guesses right" * guesses),
            file=sys.stderr,
        )


if __name__ == "__main__":
    flags = build_parser()
    given = flags.parse_args()
    if given.prompt is None:
        flags.error("no prompt: give PROMPT, or - to read standard input")
    sys.exit(cli.run(main, given))
