"""JSON Schemas as people write them: which compile, and what comes of answers held to them.

Answers are sampled at temperature 1 behind a prompt that says nothing of the schema, so that the
masks alone make them follow it. The jsonschema package, which knows nothing of masks, reads them.
"""

import collections
import dataclasses
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.turns import BatchTurn, turns
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer
from gptoss_jax.text.constraints import Constraint, GrammarError, json_schema

_BATCH = 32
_PROMPT = "Give an example."


@dataclasses.dataclass(frozen=True)
class Figures:
    """What came of the schemas.

    Attributes:
      schemas: how many were read.
      compiled: of them.
      compile_ms: median, 99th percentile and longest.
      rejected: how many by the keyword or reason.
      finished: answers that follow their schema to its end.
      hurried: of them, those brought to it because tokens ran out.
      error: answers whose constraint gave up.
      valid: of the finished ones.
      unchecked: finished ones whose schema jsonschema cannot read.
      invalid: files of the finished ones that are not valid, and why.
      tokens: generated in all.
      seconds: that took, compilers included.
    """

    schemas: int
    compiled: int
    compile_ms: tuple[float, float, float]
    rejected: dict[str, int]
    finished: int
    hurried: int
    error: int
    valid: int
    unchecked: int
    invalid: dict[str, str]
    tokens: int
    seconds: float


def files_of(directory: Path, count: int) -> list[Path]:
    """As many of a directory's schemas as asked for, evenly of their order.

    Raises:
      UserError: there is no such directory, no JSON in it, or no jsonschema to validate with.
    """
    try:
        import jsonschema  # noqa: F401 - an extra
    except ImportError:
        raise UserError("bench schemas validates with jsonschema: pip install jsonschema") from None
    found = sorted(directory.rglob("*.json"))
    if not found:
        raise UserError(f"{directory}: no *.json in it")
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def measure(model: GptOss, tokenizer: Tokenizer, files: Sequence[Path], max_tokens: int) -> Figures:
    """Compiles each file's schema and answers under it."""
    rejected: collections.Counter[str] = collections.Counter()
    constraints: dict[Path, Constraint] = {}
    taken = []
    for file in files:
        began = time.perf_counter()
        try:
            constraints[file] = Constraint(tokenizer, json_schema(_read(file)))
        except GrammarError as error:
            rejected[keyword(str(error))] += 1
        taken.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    answers = _answers(model, tokenizer, list(constraints.values()), max_tokens)
    seconds = time.perf_counter() - began
    finished = [
        (file, turn)
        for file, turn in zip(constraints, answers, strict=True)
        if turn.finish_reason != "error" and turn.tokens[-1] in tokenizer.stop_ids
    ]
    problems = {file: _problem(_read(file), turn.text) for file, turn in finished}
    return Figures(
        schemas=len(files),
        compiled=len(constraints),
        compile_ms=(float(np.median(taken)), float(np.percentile(taken, 99)), max(taken)),
        rejected=dict(rejected.most_common()),
        finished=len(finished),
        hurried=sum(turn.finish_reason == "length" for _, turn in finished),
        error=sum(turn.finish_reason == "error" for turn in answers),
        valid=sum(problem == "" for problem in problems.values()),
        unchecked=sum(problem is None for problem in problems.values()),
        invalid={str(file): problem for file, problem in problems.items() if problem},
        tokens=sum(len(turn.tokens) for turn in answers),
        seconds=seconds,
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: no JSON: {error}") from None


def _answers(
    model: GptOss, tokenizer: Tokenizer, constraints: Sequence[Constraint], max_tokens: int
) -> list[BatchTurn]:
    prompt = render_chat(tokenizer, [{"role": "user", "content": _PROMPT}])
    room = min(model.config.max_context, len(prompt) + max_tokens)
    engine = engine_for(model, tokenizer, _BATCH, max_tokens=room)
    asked = [
        Request(prompt, max_tokens, temperature=1.0, seed=index, constraint=constraint)
        for index, constraint in enumerate(constraints)
    ]
    return list(turns(engine, tokenizer, asked))


def keyword(reason: str) -> str:
    """Of a schema's rejection: the keywords it names, or its first words."""
    reason = reason.removeprefix("failed to compile JSON schema: ")
    keys = re.search(r"Unimplemented keys: \[(.*)\]", reason)
    if keys:
        return keys[1].replace('"', "")
    named = re.match(
        r"(oneOf|min/maxProperties|patternProperty|Unknown format|Unsatisfiable)", reason
    )
    return named[1] if named else reason[:60]


def _problem(schema: Any, text: str) -> str | None:
    """Why an answer is not valid, "" if it is, None if jsonschema cannot tell."""
    import jsonschema
    import jsonschema.validators

    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    try:
        validator(schema).validate(value)
    except jsonschema.ValidationError as error:
        return error.message[:200]
    # Patterns that Python's re cannot read, and references to what is not here.
    except Exception as error:
        if "ref" in type(error).__name__.lower() or isinstance(error, re.error | RecursionError):
            return None
        raise
    return ""
