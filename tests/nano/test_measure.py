"""What measures nano: turns from tokens, and the table in the model card."""

import json
from pathlib import Path

import pytest

from gptoss_jax.errors import UserError
from gptoss_jax.inference.turns import turn_of
from gptoss_jax.nano import measure
from gptoss_jax.text import load_tokenizer
from gptoss_jax.text.harmony import render_conversation
from gptoss_jax.text.tokenizer import RETURN
from gptoss_jax.training import settings
from gptoss_jax.training.examples import example
from gptoss_jax.training.tasks import problem
from gptoss_jax.training.tasks.evaluation import Score, evaluate

TOKENIZER = load_tokenizer(Path(measure.__file__).parent)


def reference(one) -> list[int]:
    """The tokens a model that knows the answer would make, up to where it stops."""
    rendered = example(TOKENIZER, one.conversation(), ("analysis", "final", "calls"))
    return rendered.ids_S[len(render_conversation(TOKENIZER, one.prompt())) :].tolist()


def thoughtless(one) -> list[int]:
    """A turn that ends without an answer."""
    return [*reference(one)[:6], TOKENIZER.token_id(RETURN)]


def other(one) -> list[int]:
    """A turn that answers another problem."""
    return reference(problem("sort", 5, 0, "test"))


@pytest.mark.parametrize(
    ("model", "right", "malformed"), [(reference, 20, 0), (other, 0, 0), (thoughtless, 0, 20)]
)
def test_turns_are_graded_from_their_tokens(model, right, malformed):
    def answer(problems):
        return [turn_of(TOKENIZER, model(one)) for one in problems]

    (score,) = evaluate(answer, ["addition"], 20)
    assert score == Score("addition", 20, right, 20, malformed)


def test_a_turn_that_was_cut_off_is_neither_right_nor_malformed():
    def answer(problems):
        return [turn_of(TOKENIZER, reference(one)[:-1]) for one in problems]

    (score,) = evaluate(answer, ["addition"], 5)
    assert (score.right, score.malformed) == (0, 0)


def test_the_report_goes_between_the_marks_of_the_card(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- skills: begin -->\nold\n<!-- skills: end -->\nafter\n")
    scores = [Score("addition", 200, 190, 200, 0)]
    text = measure.report([scores], [], [Score("addition", 100, 80, 100, 3)], "the command")
    measure.into_card(card, text)
    measure.into_card(card, text)  # again: replaced, not added to
    shown = card.read_text()
    assert shown.startswith("before\n<!-- skills: begin -->\n| skill")
    assert shown.endswith("<!-- skills: end -->\nafter\n")
    assert shown.count("| addition | 200 | 95.0% | 0 of 200 |") == 1
    assert "3 of 100 turns were malformed. Measured by `the command`" in shown
    assert "old" not in shown


def test_what_packing_costs_has_a_column_of_its_own():
    packed, master = Score("addition", 200, 190, 200, 0), Score("addition", 200, 191, 200, 5)
    shown = measure.report([[packed]], [master], [packed], "the command")
    assert shown.startswith("| skill | problems | exact | exact before packing | malformed turns |")
    assert "| addition | 200 | 95.0% | 95.5% | 0 of 200 |" in shown


def test_the_lowest_of_several_sets_of_problems_is_shown():
    sets = [[Score("addition", 200, right, 200, 0)] for right in (190, 188, 192)]
    shown = measure.report(sets, [], sets[0], "the command")
    assert shown.startswith("| skill | problems | exact | lowest of 3 sets | malformed turns |\n|-")
    assert "| addition | 200 | 95.0% | 94.0% | 0 of 200 |" in shown


def test_a_card_without_marks_is_refused(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("nothing here")
    with pytest.raises(UserError, match="skills: begin"):
        measure.into_card(card, "text")


def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(tmp_path, capsys):
    def measured(*words):
        code = measure.main(["nano", *words])
        return code, capsys.readouterr().err.splitlines()[-1]

    with pytest.raises(SystemExit, match="2"):
        measured("--skills", "repeat")
    assert "invalid choice: 'repeat'" in capsys.readouterr().err
    code, line = measured("--skills", "sort", "--card", "README.md")
    assert (code, line) == (2, "error: --card: holds the table of all skills; leave --skills out")
    code, line = measured("--run", str(tmp_path))
    assert (code, line) == (1, f"error: {tmp_path}: no run directory; it has no config.json")
    config = settings.load("configs/lora_nano.py")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    code, line = measured("--run", str(tmp_path))
    assert code == 1
    assert line.endswith("the run of an adapter, which has no master weights")


def test_the_report_names_the_command_that_measured_it(capsys):
    given = ["--count", "1", "--skills", "about", "--dtype", "bfloat16", "--mesh", "data=1"]
    assert measure.main(["nano", *given]) == 0
    shown = capsys.readouterr().out
    command = shown.split("Measured by `python -m gptoss_jax.nano.measure DIR ")[1].split("`")[0]
    assert sorted(command.split()) == sorted(given)
