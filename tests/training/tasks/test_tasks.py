"""Problems are determined, right, and never shared between training and the held-out splits."""

import dataclasses
import itertools
import json
import random
import re
import statistics
import string

import pytest

from gptoss_jax.errors import UserError
from gptoss_jax.training import tasks
from gptoss_jax.training.tasks import SKILLS, SPLITS, arithmetic, beyond, refusal, words
from gptoss_jax.training.tasks.evaluation import Score, evaluate, table, well_formed
from gptoss_jax.training.tasks.problem import Problem, ToolCall, belongs
from gptoss_jax.training.tasks.vocabulary import NOUNS, OTHERS, word

EFFORTS = ("low", "medium", "high")


def drawn(skill, split="train", count=40):
    return [tasks.problem(skill, 7, index, split) for index in range(count)]


def asked(problem):
    return problem.messages[-1]["content"]


def right_turn(problem):
    """What `grade` takes of the reference's first turn."""
    first = problem.reference[0]
    if problem.call is None:
        return first["content"], None
    function = first["tool_calls"][0]["function"]
    return "", ToolCall(f"functions.{function['name']}", function["arguments"])


@pytest.mark.parametrize("skill", SKILLS)
def test_a_problem_depends_on_its_arguments_alone(skill):
    def shown(seed, index, split):
        return tasks.problem(skill, seed, index, split).conversation()

    here = shown(1, 5, "train")
    random.random()
    assert shown(1, 5, "train") == here
    others = [shown(2, 5, "train"), shown(1, 6, "train"), shown(1, 5, "validation")]
    assert here not in others


@pytest.mark.parametrize("skill", SKILLS)
def test_the_reference_passes_and_another_answer_fails(skill):
    for problem in drawn(skill):
        text, call = right_turn(problem)
        assert problem.grade(text, call)
        assert not problem.grade(text + "1" if call is None else "", None)
        assert not problem.grade("", ToolCall("functions.calculator", '{"expression":"1+1"}'))
        assert not problem.grade("")


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_nothing(skill):
    problems = {split: drawn(skill, split, 100) for split in SPLITS}
    keys = {split: {p.key for p in problems[split]} for split in SPLITS}
    texts = {split: {asked(p).lower() for p in problems[split]} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not keys[a] & keys[b]
        assert not texts[a] & texts[b]
    assert "" not in keys["test"] | keys["validation"]


def test_problems_that_are_the_same_have_one_key():
    key = arithmetic.sum_key(347, 586)
    assert arithmetic.sum_key(586, 347) == key
    # 933 - 586 is the check of 347 + 586, so it is held out with it.
    for a, b in ((933, 586), (933, 347), (586, 933)):
        assert arithmetic.difference_key(a, b) == key
    assert arithmetic.product_key(4, 23) == arithmetic.product_key(23, 4)
    draw = random.Random(0)
    by_word = {re.findall("[a-z]+", p.key)[1] for p in drawn("reverse", "test")}
    for skill in (words.reverse, words.sort, words.count):
        for _ in range(2000):
            problem = skill(draw, "low")
            if problem.key.removeprefix("word ") in by_word:
                assert belongs(problem.key, "test")


def test_a_held_out_sum_is_in_no_training_conversation():
    held_out = {p.key for p in drawn("addition3", "test", 300) + drawn("addition", "test", 300)}
    for index in range(3000):
        skill = ("addition3", "addition", "subtraction", "calculator")[index % 4]
        problem = tasks.problem(skill, 3, index, "train")
        shown = "\n".join(message.content for message in problem.conversation())
        for whole in re.findall(r"\d+(?: ?[-+*×x] ?\d+)+", shown):
            if pair := re.fullmatch(r"(\d+) ?([+-]) ?(\d+)", whole):
                key = arithmetic.sum_key if pair[2] == "+" else arithmetic.difference_key
                assert key(int(pair[1]), int(pair[3])) not in held_out


@pytest.mark.parametrize("split", SPLITS)
def test_a_key_is_in_one_split(split):
    keys = [f"{n}+{n + 1}" for n in range(10_000)]
    share = sum(belongs(key, split) for key in keys) / len(keys)
    assert share == pytest.approx(0.9 if split == "train" else 0.05, abs=0.01)
    assert belongs("", split) == (split == "train")


def test_every_line_of_arithmetic_is_true():
    """Each `sums=result` of 2,000 analyses, and that the digits written are the result's."""
    for index in range(2000):
        skill = ("addition", "subtraction", "product", "addition3")[index % 4]
        problem = tasks.problem(skill, 0, index, "train")
        analysis = problem.reference[0]["reasoning"]
        assert_sums(analysis)
        lines = analysis.split("\n")
        expression, steps = lines[0], [line for line in lines if "write" in line]
        assert str(eval(expression)) == problem.answer
        if steps:
            digits = [re.search(r"write (\d+)", line)[1] for line in steps]
            assert int("".join(reversed(digits))) == abs(int(problem.answer))
        for line, after in itertools.pairwise(steps):
            carried = re.search(r"carry (\d)", line)
            if carried and "*" in line:
                assert f"+{carried[1]}=" in after
            elif carried:
                assert after.count("+") == 2
            assert ("borrow" in line) == bool(re.search(r"\d-\d-1=", after))


def assert_sums(analysis):
    found = re.findall(r"([\d+*-]+)=(\d+)", analysis)
    assert found
    for sums, result in found:
        assert eval(sums) == int(result), analysis


def test_analyses_of_words_lead_to_the_answer():
    for skill in ("reverse", "sort", "count"):
        for problem in drawn(skill, count=300):
            spelled, analysis = problem.key.removeprefix("word "), problem.reference[0]["reasoning"]
            lines = analysis.split("\n")
            if lines[0].startswith("Spell:"):
                form = r"([a-z])\d" if skill == "sort" else r" \d+:([a-z])"
                assert "".join(re.findall(form, lines[0])) == spelled
            if skill == "reverse":
                expected = spelled[::-1]
            elif skill == "sort":
                expected = "".join(sorted(spelled))
            elif lines[0].startswith("Count"):
                wanted = lines[0][len("Count ")]
                expected = str(spelled.count(wanted))
                assert "".join(re.findall("([a-z])[0-9]", lines[0])) == spelled
                assert lines[0][-1] == expected
            else:
                expected = str(len(spelled))
            assert problem.answer == expected
            if skill == "reverse":
                assert "".join(re.findall(r" \d+:([a-z])", lines[1])) == expected
            if skill == "sort":
                check_walk(spelled, *(line.partition(":")[2] for line in lines[:2]))


def check_walk(spelled, numbered, walk):
    """Letters are numbered by how often they came; the walk ends with all of them in order."""
    assert numbered == "".join(f"{x}{spelled[: n + 1].count(x)}" for n, x in enumerate(spelled))
    passed = re.sub(r":[a-z]+,", "", walk)
    assert passed == string.ascii_lowercase
    for letter, until in re.findall(r"([a-z]):([a-z]+),", walk):
        assert until == "".join(sorted(x for x in spelled if x <= letter))
    assert until == "".join(sorted(spelled))


@pytest.mark.parametrize("skill", SKILLS)
def test_effort_changes_the_length(skill):
    lengths = []
    for effort in EFFORTS:
        makes = (SKILLS[skill](random.Random(n), effort) for n in range(50))
        lengths.append([len(p.reference[0]["reasoning"]) for p in makes])
    low, medium, high = lengths
    assert all(a < b < c for a, b, c in zip(low, medium, high, strict=True))


def test_prompts_ask_for_what_is_answered():
    for problem in drawn("subtraction", count=200):
        numbers = [int(n) for n in re.findall(r"\d+", asked(problem))]
        assert abs(int(problem.answer)) == abs(numbers[0] - numbers[1])
    for problem in drawn("recall_near", count=100):
        (key, value), *_ = re.findall(r"(\S+): (\S+)", problem.reference[0]["reasoning"])
        listed, asked_key = re.split(
            rf"(?=\b{key}\W*$)|(?=\b{key} (?:have|is)\W*$)", asked(problem)
        )
        there = re.search(rf"\b{key}(?:: |=| = | is | has ){value}\b", listed)
        assert asked_key.startswith(key)
        assert there or (value == "none" and not re.search(rf"\b{key}\b", listed))
    for problem in drawn("json", count=100):
        answer = json.loads(problem.answer)
        schema = problem.response_formats[0].schema["properties"]
        kinds = {"integer": int, "string": str, "boolean": bool, "number": float}
        assert list(answer) == list(schema)
        for name, value in answer.items():
            assert type(value) is kinds[schema[name]["type"]]
            assert isinstance(value, bool) or str(value) in asked(problem)


def test_grading_takes_what_a_person_would():
    number = tasks.problem("addition3", 0, 0, "test")
    number = dataclasses.replace(number, answer="933")
    for text in ("933", "347 + 586 = 933", "It is 933.", " 933\n"):
        assert number.grade(text)
    for text in ("-933", "9330", "93", "", "933 or 934", "nine"):
        assert not number.grade(text)
    assert dataclasses.replace(number, answer="-66").grade("5 - 71 = -66")
    value = dataclasses.replace(tasks.problem("json", 0, 0, "test"), answer='{"a":1,"b":true}')
    assert value.grade('{"b": true, "a": 1}')
    for text in ('{"a":true,"b":true}', '{"a":1}', "{", 'so {"a":1,"b":true}'):
        assert not value.grade(text)
    call = dataclasses.replace(tasks.problem("calculator", 0, 0, "test"), call="4*3")
    assert call.grade("", ToolCall("functions.calculator", '{"expression": "4 * 3"}'))
    for arguments in ('{"expression":"4+3"}', "{}", "4*3", '{"expression":"__import__(1)"}', "[]"):
        assert not call.grade("", ToolCall("functions.calculator", arguments))
    assert not call.grade("", ToolCall("functions.weather", '{"expression":"4*3"}'))


def test_far_values_are_at_every_distance_beyond_the_original_context(tokenizer):
    distances = []
    for problem in drawn("recall_far", count=300):
        (key,) = re.findall(r"\['(\w+)'\]$", problem.key)
        after = re.split(rf"\b{key}(?:: |=| = | is | has )", asked(problem), maxsplit=1)[1]
        distances.append(len(tokenizer.encode(after)))
    assert min(distances) > 256 and max(distances) >= 1024
    assert statistics.median(distances) > 550


def test_what_is_refused_is_no_skill_in_other_words():
    """Two whole numbers that a skill would take are left to it."""
    draw, seen = random.Random(0), 0
    for _ in range(3000):
        text, core, _ = beyond.hard_sum(draw)
        assert core.lower() in text.lower().rstrip(".?") + "?."
        runs = re.findall(r"[-+*×x/^%(.√|\d ]*\d[-+*×x/^%).!|\d ]*", text)
        words = re.search(r"(?<![\d.-])(?<!minus )(\d+) (plus|minus|times) (\d+)(?![\d.])", text)
        alone = len(runs) == 1 and re.fullmatch(r" *(\d+) ?([-+*×x]) ?(\d+)[ .]*", runs[0])
        found = words or alone
        if not found or len(re.findall(r"\d+", text)) > 2:
            continue
        seen += 1
        low, high = sorted((int(found[1]), int(found[3])))
        if found[2] in ("*", "×", "x", "times"):
            assert low > 9 or high > 99, text
        else:
            assert high > 9999, text
    assert seen > 500


def test_several_values_are_right_with_and_without_their_keys():
    problem = next(p for p in drawn("recall_several") if ", " in p.answer)
    first, *rest = problem.answer.split(", ")
    assert problem.grade(problem.answer)
    assert problem.grade(problem.reference[0]["content"])
    assert problem.reference[0]["content"].count(": ") == len(rest) + 1
    assert not problem.grade(", ".join([*rest, first])) or set(rest) == {first}
    assert not problem.grade(first)


def test_numbers_that_begin_alike_are_summed_right():
    for problem in drawn("alike", count=200):
        a, b = (number for number in re.findall(r"\d+", asked(problem)))
        assert len(a) == len(b) > 2 and a[0] == b[0]
        assert int(problem.answer) == int(a) + int(b)
    assert any(asked(problem).isupper() for problem in drawn("alike"))


def test_members_are_json_with_a_truth_value():
    for index in range(20):
        *_, prompt, _, turn = tasks.conversation(0, index, "train", {"members": 1.0})
        assert json.loads(turn.content)["member"] == (" not a member" not in prompt.content)


def test_truths_are_objects_of_truth_values_that_are_said():
    for index in range(20):
        *_, prompt, _, turn = tasks.conversation(0, index, "train", {"truths": 1.0})
        truths = json.loads(turn.content)
        assert len(truths) > 1
        for name, value in truths.items():
            said = name.replace("_", "[_ ]")
            spoken = "(?:true|yes)" if value else "(?:false|no)"
            assert re.search(rf"\b{said}(?: is|:| =) {spoken}\b", prompt.content)


def test_no_truth_value_is_one_piece_with_its_key(tokenizer):
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode('{"open":true,"new":false}')]
    assert b"t" in pieces and b"f" in pieces


def test_a_calculator_that_fails_is_said_to():
    failing = [p for p in drawn("calculator", count=300) if not p.answer.lstrip("-").isdigit()]
    assert 4 < len(failing) < 30
    for problem in failing:
        _, result, answer = problem.reference
        assert not re.search(r"\d", result["content"])
        assert problem.after_call(problem.reference[0]).grade(answer["content"])
        assert not problem.after_call(problem.reference[0]).grade("12")


def test_what_is_refused_has_one_key_however_it_is_worded(monkeypatch):
    def key(draws, core):
        with monkeypatch.context() as patched:
            patched.setattr(beyond, draws, lambda _: beyond.Beyond("asked", core))
            made = [refusal.refusal(random.Random(n), "low") for n in range(40)]
        return {problem.key for problem in made if asked(problem) == "asked"}

    for same in (
        ("9^7", "9**7", "9 ^ 7", "9 to the power of 7"),
        ("10^2", "10 squared", "Square 10"),
        ("82 · 39", "39 times 82", "Multiply 39 by 82", "39*82"),
        ("144 / 12", "144 ÷ 12", "144 divided by 12", "Divide 144 by 12", "144 over 12"),
        ("√81", "sqrt(81)", "Take the square root of 81", "the root of 81"),
        ("1,000 + 5", "5 + 1,000"),
        ("two plus 3", "2 plus three"),
        ("half of 8", "Halve 8", "8 / 2"),
    ):
        (first, *others) = [key("hard_sum", core) for core in same]
        assert len(first) == 1 and all(other == first for other in others), same
    long = "abcdefghijklmnop"
    for same in (
        ("Spell apple", "Spell the word apple"),
        (f"Reverse the word {long}", f"What is {long} backwards?", f"How long is {long}"),
        ('Reverse "red pear"', "Reverse the phrase red pear"),
    ):
        (first, *others) = [key("word_game", core) for core in same]
        assert len(first) == 1 and all(other == first for other in others), same
    assert key("hard_sum", "9^7") != key("hard_sum", "9^8")
    assert key("word_game", "Spell apple") != key("word_game", "Spell pear")


def test_a_refused_sum_is_written_down_as_a_skill_would():
    """With the same numbers in the same signs, so that only then it shows what is too much."""
    written = 0
    for problem in drawn("refusal", count=1000):
        reasoning = problem.reference[0]["reasoning"].removesuffix(refusal.CHECKED)
        *sum_, last = reasoning.split("\n")
        assert last in (refusal.REFUSAL_ANALYSIS, "No skill.")
        if sum_:
            written += 1
            numbers = sorted(re.findall(r"[\d.,]*\d", sum_[0]))
            assert numbers == sorted(re.findall(r"[\d.,]*\d", asked(problem))), asked(problem)
            assert not re.search(r"×|\d ?x ?\d|plus \d|times \d|\d[-+*]\d", sum_[0]), sum_[0]
    assert written > 200


def test_words_hide_no_letters_in_a_token_of_the_headers():
    made = [word(random.Random(n)) for n in range(5000)]
    assert all(1 <= len(w) <= 12 for w in made)
    assert 0.03 < sum(len(w) < 3 for w in made) / len(made) < 0.07
    for header in ("system", "user", "assistant", "analysis", "final", "json"):
        assert not any(header in w for w in [*made, *NOUNS, *OTHERS])


def test_settings_vary():
    problems = [tasks.problem("reverse", 0, n, "train") for n in range(300)]
    assert {p.effort for p in problems} == set(EFFORTS)
    assert len({p.current_date for p in problems}) > 200
    assert any(p.current_date is None for p in problems)
    assert any(p.tools for p in problems)
    roles = [[m["role"] for m in p.messages] for p in problems]
    assert ["user"] in roles and any(r[0] == "system" for r in roles)
    assert any(r[:3] == ["user", "assistant", "user"] for r in roles)


def test_the_mixture_weighs_skills():
    only = {"about": 0.0, "product": 2.0}
    for index in range(20):
        messages = tasks.conversation(0, index, "train", only)
        assert messages[-1].content.isdigit()
    assert tasks.conversation(0, 3, "train") == tasks.conversation(0, 3, "train", {})
    with pytest.raises(UserError, match="skill 'sums' is unknown"):
        tasks.conversation(0, 0, "train", {"sums": 1.0})
    with pytest.raises(UserError, match="split 'eval' is unknown"):
        tasks.problem("sort", 0, 0, "eval")
    with pytest.raises(UserError, match="no weight"):
        tasks.conversation(0, 0, "train", {"sort": 0.0})
    with pytest.raises(UserError, match="nothing but 'repeat', of which no problem is held out"):
        tasks.conversation(0, 0, "validation", {"repeat": 1.0})
    with pytest.raises(UserError, match="'repeat' is for training alone"):
        tasks.problem("repeat", 0, 0, "test")
    messages = tasks.conversation(0, 0, "validation", {"repeat": 1.0, "product": 1.0})
    assert messages[-1].content.isdigit()


def test_training_begins_with_practice_and_nothing_else_does():
    """Of validation no conversation is practice; of training all are at first, then fewer."""

    def repeats(index, split="train", **mixture):
        prompt, turn = tasks.conversation(0, index, split, **mixture)[-2:]
        return turn.content != "" and prompt.content == f"Write {turn.content}"

    assert all(map(repeats, range(50)))
    assert 0 < sum(map(repeats, range(21_000, 21_100))) < 60
    assert not any(repeats(36_000 + index) for index in range(100))
    assert not any(repeats(index, "validation") for index in range(100))
    assert not any(repeats(index, mixture={"sort": 1.0}) for index in range(20))


def test_training_ends_with_more_sums():
    """In the last of its conversations; validation's are the same throughout."""

    def sums(first, split="train"):
        thoughts = [tasks.conversation(0, first + i, split)[-2].content for i in range(1500)]
        return sum(re.match(r"\d+ \+ \d+\b", thought) is not None for thought in thoughts)

    before = sums(342_000)
    assert before > 75 and sums(343_500) > 1.4 * before
    assert sums(343_500, "validation") < 1.4 * before


@dataclasses.dataclass
class Turn:
    text: str
    messages: list
    finish_reason: str = "stop"


def reference_turns(problems: list[Problem]) -> list[Turn]:
    turns = []
    for problem in problems:
        start = len(problem.prompt())
        stop = start + 2  # analysis, and the final or the call
        messages = [dataclasses.asdict(m) for m in problem.conversation()[start:stop]]
        final = messages[-1]["content"] if problem.call is None else ""
        turns.append(Turn(final, messages))
    return turns


def test_evaluation_runs_the_tool_loop():
    scores = evaluate(reference_turns, ["calculator", "sort"], 6)
    assert scores == [Score("calculator", 6, 6, 12, 0), Score("sort", 6, 6, 6, 0)]
    assert "| calculator | 6 | 100.0% | 0 of 12 |" in table(scores)


def test_evaluation_counts_what_is_wrong():
    def cut(problems):
        return [dataclasses.replace(t, finish_reason="length") for t in reference_turns(problems)]

    def silent(problems):
        return [dataclasses.replace(t, messages=t.messages[:1]) for t in reference_turns(problems)]

    def flagged(problems):
        turns = reference_turns(problems)
        for turn in turns:
            turn.messages[0]["flagged"] = True
        return turns

    assert evaluate(cut, ["sort"], 4) == [Score("sort", 4, 0, 4, 0)]
    assert evaluate(silent, ["calculator"], 4) == [Score("calculator", 4, 0, 4, 4)]
    assert evaluate(flagged, ["product"], 4)[0].malformed == 4
    assert well_formed(Turn("", [{"channel": "analysis"}], "length"))
