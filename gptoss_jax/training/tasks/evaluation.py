"""How often held-out problems are answered right. Knows no model: answering is the caller's."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from gptoss_jax.training.tasks import Problem, ToolCall, problem

Message = Mapping[str, Any]


class Answer(Protocol):
    """An assistant turn; `inference.completion.Completion` is one.

    Attributes:
      text: of the final channel.
      messages: the turn's harmony messages as dictionaries, without empty fields.
      finish_reason: "stop" or "tool_calls" if the model ended the turn itself.
    """

    @property
    def text(self) -> str: ...
    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def finish_reason(self) -> str: ...


Answerer = Callable[[Sequence[Problem]], Sequence[Answer]]


@dataclasses.dataclass(frozen=True)
class Score:
    """Results of one skill.

    Attributes:
      skill: its name.
      problems: how many were asked.
      right: how many were answered right; with a call, both the call and the answer.
      turns: how many turns that took, a call being one.
      malformed: turns that are no harmony.
    """

    skill: str
    problems: int
    right: int
    turns: int
    malformed: int

    @property
    def exact(self) -> float:
        """The share of problems answered right."""
        return self.right / self.problems


def evaluate(
    answer: Answerer,
    skills: Iterable[str],
    count: int,
    *,
    seed: int = 0,
    split: str = "test",
) -> list[Score]:
    """Asks `count` problems of each skill.

    Args:
      answer: takes problems, to be rendered from `Problem.prompt()`; gives their turns in order.
      skills: names in `SKILLS`.
      count: at least 1.
      seed: of the problems.
      split: test, validation or train.

    Raises:
      UserError: a skill or the split is unknown.
    """
    return [
        _evaluate_one(answer, skill, [problem(skill, seed, i, split) for i in range(count)])
        for skill in skills
    ]


def table(
    scores: Sequence[Score],
    before: Sequence[Score] = (),
    others: Sequence[Sequence[Score]] = (),
) -> str:
    """The scores as a Markdown table.

    Args:
      scores: one a skill.
      before: of the same skills before packing, for a column of their own; or none.
      others: of the same skills on other problems, for a column of the lowest share of all.
    """
    columns: dict[str, Callable[[int], str]] = {
        "problems": lambda i: str(scores[i].problems),
        "exact": lambda i: f"{scores[i].exact:.1%}",
    }
    if others:
        sets = [scores, *others]
        name = f"lowest of {len(sets)} sets"
        columns[name] = lambda i: f"{min(one[i].exact for one in sets):.1%}"
    if before:
        columns["exact before packing"] = lambda i: f"{before[i].exact:.1%}"
    columns["malformed turns"] = lambda i: f"{scores[i].malformed} of {scores[i].turns}"
    lines = [f"| {' | '.join(['skill', *columns])} |", f"|---{'|---:' * len(columns)}|"]
    for i, score in enumerate(scores):
        cells = [cell(i) for cell in columns.values()]
        lines.append(f"| {' | '.join([score.skill, *cells])} |")
    return "\n".join(lines)


def well_formed(answer: Answer) -> bool:
    """Whether a turn is harmony, and has a final message or a call if the model ended it."""
    if any(message.get("flagged") for message in answer.messages):
        return False
    ended = answer.finish_reason in ("stop", "tool_calls")
    has_final = any(message.get("channel") == "final" for message in answer.messages)
    return not ended or has_final or tool_call(answer) is not None


def tool_call(answer: Answer) -> ToolCall | None:
    """The turn's first function call, if it has one."""
    for message in answer.messages:
        if message.get("recipient"):
            return ToolCall(message["recipient"], message.get("content", ""))
    return None


def _evaluate_one(answer: Answerer, skill: str, asked: Sequence[Problem]) -> Score:
    count = len(asked)
    right = turns = malformed = 0
    while asked:
        answers = answer(asked)
        turns += len(answers)
        malformed += sum(not well_formed(one) for one in answers)
        goes_on: list[Problem] = []
        for one, given in zip(asked, answers, strict=True):
            if not _is_right(one, given):
                continue
            if one.call is None:
                right += 1
            else:
                goes_on.append(one.after_call(_as_chat(given)))
        asked = goes_on
    return Score(skill, count, right, turns, malformed)


def _is_right(one: Problem, given: Answer) -> bool:
    ended = given.finish_reason in ("stop", "tool_calls")
    return ended and one.grade(given.text, tool_call(given))


def _as_chat(given: Answer) -> Message:
    """The model's own call, as the chat message a second prompt shows."""
    call = tool_call(given)
    analysis = [m.get("content", "") for m in given.messages if m.get("channel") == "analysis"]
    function = {"name": call.name, "arguments": call.arguments} if call else {}
    return {
        "role": "assistant",
        "reasoning": "\n".join(analysis),
        "tool_calls": [{"id": "1", "function": function}],
    }
