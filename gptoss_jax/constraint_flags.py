"""What `generate` and `chat` hold answers and calls to: flags, and the constraint they make."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from gptoss_jax.text import Tokenizer
    from gptoss_jax.text.constraints import Constraint
    from gptoss_jax.text.harmony import ResponseFormat
    from gptoss_jax.tools.tool import Toolbox


def add_constraints(parser: argparse.ArgumentParser) -> None:
    """The flags, of which one at most may be given."""
    group = parser.add_argument_group(
        "Constraints", "of the answer; the reasoning before it stays free. One of:"
    ).add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", type=Path, help="JSON of a JSON Schema")
    group.add_argument("--regex", metavar="RE", help="text that a regular expression matches")
    group.add_argument("--grammar", metavar="FILE", type=Path, help="text of a Lark grammar")
    group.add_argument("--xml-schema", metavar="FILE", type=Path, help="XML of an XML Schema")


def constraint_of(
    arguments: argparse.Namespace, tokenizer: "Tokenizer", toolbox: "Toolbox", *, raw: bool = False
) -> "tuple[Constraint | None, list[ResponseFormat]]":
    """What a turn must follow, and what the prompt says of it; imports no JAX.

    Calls of functions that are strict follow their schemas, unless a tool that takes any text is
    beside them.

    Args:
      arguments: of the flags.
      tokenizer: of the model.
      toolbox: what may be called instead of an answer.
      raw: whether the text is continued without harmony.

    Raises:
      UsageError: python is at hand, which takes no constraint.
      UserError: something that cannot be compiled, or a file that is not what it should be.
    """
    file = arguments.json_schema or arguments.grammar or arguments.xml_schema
    wanted = file is not None or arguments.regex is not None
    if wanted and toolbox.namespaces:
        raise UsageError("a constraint leaves no way to call python; leave one of them out")
    strict = any(function.strict for function in toolbox.functions) and not toolbox.namespaces
    if not (wanted or strict):
        return None, []
    # Late: without constraints nothing of llguidance is needed.
    from gptoss_jax.text import constraints

    where = str(file) if file else f"--regex {arguments.regex}" if wanted else "the tools"
    try:
        answer, formats = _answer(arguments) if wanted else (None, [])
        functions = toolbox.functions
        return constraints.Constraint(tokenizer, answer, tools=functions, raw=raw), formats
    except (ValueError, constraints.GrammarError) as error:
        raise UserError(f"{where}: {error}") from None


def _answer(arguments: argparse.Namespace) -> "tuple[str, list[ResponseFormat]]":
    from gptoss_jax.text import constraints
    from gptoss_jax.text.harmony import ResponseFormat

    if arguments.regex is not None:
        return constraints.regex(arguments.regex), []
    if arguments.json_schema is None:
        make = constraints.lark if arguments.grammar else constraints.xml
        return make(_read(arguments.grammar or arguments.xml_schema)), []
    try:
        schema = json.loads(_read(arguments.json_schema))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    formats = [ResponseFormat("answer", schema)] if isinstance(schema, dict) else []
    return constraints.json_schema(schema), formats


def _read(file: Path) -> str:
    return file.expanduser().read_text(encoding="utf-8")
