"""Functions of a user's Python file as tools."""

import contextlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import ToolFunction
from gptoss_jax.tools.loop import arguments_of
from gptoss_jax.tools.tool import Tool

_JSON_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


class Function(Tool):
    """A Python function, described by its docstring and annotations. It runs in this process."""

    def __init__(self, function: Callable[..., Any]):
        """Reads the signature.

        Args:
          function: its arguments can be given by name; what it returns is text or JSON.
        """
        self._function = function
        description = inspect.getdoc(function) or ""
        schema = _schema(function)
        self.description = ToolFunction(function.__name__, description, schema, strict=True)

    def run(self, text: str) -> str:
        """What the function returns, as JSON unless it is text."""
        # What it prints is not the model's answer.
        with contextlib.redirect_stdout(sys.stderr):
            result = self._function(**arguments_of(text))
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def _schema(function: Callable[..., Any]) -> dict[str, Any] | None:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(
                f"{function.__name__}: a model gives arguments by name, which {parameter} has not"
            )
    properties = {p.name: _type_schema(hints.get(p.name)) for p in parameters}
    for parameter in parameters:
        if parameter.default is not parameter.empty and _is_json(parameter.default):
            properties[parameter.name]["default"] = parameter.default
    required = [p.name for p in parameters if p.default is p.empty]
    if not properties:
        return None
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _is_json(value: Any) -> bool:
    """Whether the model can be told of it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _type_schema(hint: Any) -> dict[str, Any]:
    """A JSON schema; {}, anything, for what JSON does not know."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(a) for a in arguments]}
    if hint is type(None):
        return {"type": "null"}
    kind = _JSON_TYPES.get(origin or hint)
    if kind == "array" and arguments:
        return {"type": kind, "items": _type_schema(arguments[0])}
    return {"type": kind} if kind else {}


def functions_of(file: Path) -> list[Tool]:
    """The functions that a Python file defines, those whose names begin with "_" left out.

    Raises:
      UserError: it cannot be run, or defines none.
    """
    file = file.expanduser()
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a Python file that defines functions")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
        defined = [
            Function(value)
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    except (Exception, SystemExit) as error:  # whatever the file does when it is run
        raise UserError(f"{file}: {type(error).__name__}: {error}") from error
    if not defined:
        raise UserError(f"{file} defines no function; the model is given those without a leading _")
    return list(defined)
