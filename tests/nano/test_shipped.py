"""nano as it is in the package: right answers, sound turns, and the same in other hands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_jax
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.nano import measure
from gptoss_jax.text.harmony import render_conversation
from gptoss_jax.training.tasks import SKILLS, problem
from gptoss_jax.training.tasks.evaluation import evaluate

DIRECTORY = Path(gptoss_jax.__file__).parent / "nano"


@pytest.fixture(scope="module")
def nano():
    return gptoss_jax.load("nano", dtype="float32")


def ask(nano, text: str, **options) -> gptoss_jax.Completion:
    options = {"temperature": 0.0, "max_tokens": 300} | options
    return gptoss_jax.complete(*nano, [{"role": "user", "content": text}], **options)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 347 + 586?", "933"),
        ("Add 12 and 9", "21"),
        ("71 minus 5", "66"),
        ("23 × 7", "161"),
        ("23 * 7", "161"),
        ("What is 23 times 7?", "161"),
        ("Reverse the word planet", "tenalp"),
    ],
)
def test_answers_what_its_card_shows(nano, text, answer):
    completion = ask(nano, text)
    assert (completion.text, completion.finish_reason) == (answer, "stop")
    assert len(completion.reasoning) > 10


def test_says_in_a_sentence_what_it_cannot_do(nano):
    assert ask(nano, "Write a poem about the sea").text.count(".") == 1


def test_effort_changes_how_much_it_thinks(nano):
    texts = [ask(nano, "What is 347 + 586?", reasoning_effort=e) for e in ("low", "medium", "high")]
    low, medium, high = (len(completion.reasoning) for completion in texts)
    assert low < 0.8 * medium < 0.8**2 * high


# As in the model card, written by the command that measured it.
@pytest.mark.slow
@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_on_held_out_problems(nano, skill):
    (score,) = evaluate(measure.answerer(*nano, temperature=0.0, seed=1), [skill], 200)
    assert score.exact >= (0.99 if skill == "addition3" else 0.95)


def test_the_files_are_small_and_whole():
    files = {file.name: file.stat().st_size for file in DIRECTORY.iterdir() if file.is_file()}
    assert files["model.safetensors"] < 3 * 2**20
    assert sum(files.values()) < 5 * 2**20


def test_the_card_has_what_every_skill_is_held_to():
    card = (DIRECTORY / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| 200 \| ([\d.]+)% \|", card, re.MULTILINE))
    assert list(rows) == list(SKILLS)
    for skill, exact in rows.items():
        assert float(exact) >= (99 if skill == "addition3" else 95), skill
    (sampled,) = re.findall(r"At temperature 1\.0, (\d+) of (\d+) turns were malformed", card)
    malformed, turns = map(int, sampled)
    assert turns >= 1000 and malformed <= turns / 1000


def test_most_held_out_problems_are_answered_right(nano):
    """A few of each skill; all that the card counts are the slow tests'."""
    scores = evaluate(measure.answerer(*nano, temperature=0.0, seed=1), SKILLS, 8)
    right = sum(score.right for score in scores)
    assert right >= 0.95 * 8 * len(SKILLS), [(score.skill, score.right) for score in scores]


def test_transformers_gives_the_same_greedy_answers(nano):
    torch = pytest.importorskip("torch", reason="the oracle extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")
    tokenizer = nano[1]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        DIRECTORY,
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).eval()
    asked = [problem(skill, 7, index, "test") for skill in SKILLS for index in range(2)]
    for one in asked:
        prompt = render_conversation(tokenizer, one.prompt())
        ours = generated(nano, prompt)
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=300, do_sample=False)
        assert out[0, len(prompt) :].tolist() == ours, one.skill


def generated(nano, prompt: list[int]) -> list[int]:
    request = Request(prompt, 300, temperature=0.0)
    return [token for _, new in engine_for(*nano, 1).run([request]) for token in new]


def test_auto_tokenizer_reads_it(nano):
    transformers = pytest.importorskip("transformers", reason="the oracle extra is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(DIRECTORY)
    prompt = render_chat(nano[1], [{"role": "user", "content": "What is 3 + 4?"}], "low")
    assert theirs.decode(prompt) == nano[1].decode(prompt)
    assert theirs.encode("What is 3 + 4?") == nano[1].encode("What is 3 + 4?")


# 56 turns; 1,008 in the slow form, of which one may be malformed.
@pytest.mark.parametrize(
    ("each", "allowed"), [(4, 0), pytest.param(72, 1, marks=pytest.mark.slow)], ids=str
)
def test_sampled_turns_are_harmony_to_openais_parser_too(nano, oracle, each, allowed):
    openai_harmony = pytest.importorskip("openai_harmony", reason="needs the oracle extra")
    answer = measure.answerer(*nano, temperature=1.0, seed=5)
    asked = [problem(skill, 5, index, "test") for skill in SKILLS for index in range(each)]
    malformed = []
    for given in answer(asked):
        text = nano[1].decode(given.tokens)
        ids = oracle.encode(text, allowed_special="all")
        try:
            read = oracle.parse_messages_from_completion_tokens(ids, openai_harmony.Role.ASSISTANT)
        except openai_harmony.HarmonyError:
            malformed.append(text)
            continue
        ended = given.finish_reason in ("stop", "tool_calls")
        if ended and not any(m.channel == "final" or m.recipient for m in read):
            malformed.append(text)
    assert len(malformed) <= allowed, malformed


@pytest.mark.parametrize("cached", [False, True])
def test_the_first_command_answers(tmp_path, cached):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "gptoss_jax.generate", "What is 347 + 586?"]
    for _ in range(1 + cached):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert done.stdout == "933\n"
