"""Functions of a file: how they are described, and what comes back of a call."""

import json

import pytest

from gptoss_jax.errors import UserError
from gptoss_jax.text.harmony import Message
from gptoss_jax.tools.functions import functions_of
from gptoss_jax.tools.tool import Toolbox

pytestmark = pytest.mark.fast

FILE = '''
from pathlib import Path
from typing import Literal


def weather(place: str, days: int = 3, unit: Literal["C", "F"] = "C", parts: list[str] = None,
            at: Path = Path("/")):
    """The weather of a place."""
    return {"place": place, "days": days, "sky": "☀"}


def nothing():
    print("not for the answer")
    raise LookupError


def leave():
    raise SystemExit("gone")


def _hidden():
    pass
'''


@pytest.fixture
def tools(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE, encoding="utf-8")
    return functions_of(file)


def test_annotations_are_the_schema(tools):
    assert [tool.recipient for tool in tools][1:] == ["functions.nothing", "functions.leave"]
    weather, nothing, _ = (tool.description for tool in tools)
    assert weather.description == "The weather of a place."
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "days": {"type": "integer", "default": 3},
            "unit": {"enum": ["C", "F"], "default": "C"},
            "parts": {"type": "array", "items": {"type": "string"}, "default": None},
            "at": {},  # neither its type nor its default is one of JSON
        },
        "required": ["place"],
        "additionalProperties": False,
    }
    assert nothing.parameters is None
    assert weather.strict and nothing.strict


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"place": "Bonn"}', {"place": "Bonn", "days": 3, "sky": "☀"}),
        ('{"place": "Bonn", "days": 9}', {"place": "Bonn", "days": 9, "sky": "☀"}),
        ('{"place": "Bonn"', "error: JSONDecodeError"),
        ("[1]", "error: ValueError: the arguments must be a JSON object"),
        ("", "error: TypeError: weather() missing 1 required positional argument: 'place'"),
        ('{"town": "Bonn"}', "error: TypeError: weather() got an unexpected keyword argument"),
    ],
)
def test_calls(tools, arguments, said):
    call = Message("assistant", arguments, recipient="functions.weather")
    text = Toolbox(tools).answer(call).content
    if isinstance(said, str):
        assert text.startswith(said)
    else:
        assert json.loads(text) == said and "☀" in text


@pytest.mark.parametrize(
    ("name", "said"), [("nothing", "error: LookupError"), ("leave", "error: SystemExit: gone")]
)
def test_whatever_is_raised_is_an_answer_and_stdout_is_the_model_s(tools, capsys, name, said):
    call = Message("assistant", "", recipient=f"functions.{name}")
    assert Toolbox(tools).answer(call).content == said
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "gone.py: no such file"),
        ("a.txt", "x", "must end with .py"),
        ("b.py", "def f(:", "b.py: SyntaxError"),
        ("c.py", "import no_such_module", "c.py: ModuleNotFoundError"),
        ("e.py", "import sys\nsys.exit(3)", "e.py: SystemExit: 3"),
        ("f.py", "def f(a, /): pass", "f: a model gives arguments by name, which a has not"),
        ("g.py", "def f(*all): pass", r"f: a model gives arguments by name, which \*all has not"),
        ("d.py", "from json import dumps\ndef _f(): pass", "d.py defines no function"),
    ],
)
def test_files_that_will_not_do(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        functions_of(tmp_path / name)
    assert "\n" not in str(error.value)
