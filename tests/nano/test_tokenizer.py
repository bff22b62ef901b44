"""nano's tokenizer: exact on any text, reproducible, and frugal with what nano reads and writes."""

import json
import re
import statistics

import hypothesis
import hypothesis.strategies as st
import pytest

from gptoss_jax.nano import build_tokenizer
from gptoss_jax.nano.pieces import HEADER_WORDS, SPECIALS, phrases
from gptoss_jax.text import load_tokenizer, tokenizer_for
from gptoss_jax.text.harmony import (
    HarmonyParser,
    from_chat,
    render_conversation,
    render_for_training,
    to_turn,
)
from gptoss_jax.training import tasks

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PARTS = [*SPECIALS, *phrases(), "<unk>", "<0x41>", "▁", "347", "planet"]
NASTY = st.lists(st.one_of(TEXT, st.sampled_from(PARTS)), max_size=8).map("".join)

# Tokens of a whole conversation, the median of each skill.
MOST = {
    "addition": 100,
    "addition3": 95,
    "subtraction": 120,
    "product": 85,
    "reverse": 95,
    "sort": 140,  # the alphabet is in it
    "count": 80,
    "json": 180,
    "calculator": 140,
    "recall_near": 140,
    "recall_middle": 260,
    "recall_far": 1000,  # a value may be 1,042 tokens away
    "recall_several": 400,
    "refusal": 70,
    "about": 65,  # greetings are spelled
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(build_tokenizer.PATH)


def pieces_of(tokenizer, text):
    return [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)]


def test_rebuilding_gives_the_same_bytes():
    assert build_tokenizer.build() == build_tokenizer.PATH.read_bytes()


def test_rebuilding_for_hugging_face_gives_the_same_text():
    assert build_tokenizer.build_hf() == build_tokenizer.HF_PATH.read_text()
    kept = json.loads(build_tokenizer.HF_CONFIG_PATH.read_text())
    assert build_tokenizer.build_hf_config() == kept


@hypothesis.given(text=NASTY)
@hypothesis.example("  two  spaces \n\t ends ")
@hypothesis.example("".join(SPECIALS))
def test_hugging_face_has_the_same_tokens(tokenizer, text):
    other = load_tokenizer(build_tokenizer.HF_PATH)
    ids = tokenizer.encode(text)
    assert other.encode(text) == ids
    assert other.decode(ids) == tokenizer.decode(ids)
    assert other.specials == tokenizer.specials


def test_the_directory_has_it(tokenizer):
    found = tokenizer_for(build_tokenizer.PATH.parent)
    assert found.vocab_size == tokenizer.vocab_size <= 512
    assert set(found.specials) == set(SPECIALS)
    assert len(found.stop_ids) == 3
    # Only <unk> can never be meant.
    assert len(found.unsampleable_ids(found.vocab_size)) == 1


@hypothesis.given(text=NASTY)
@hypothesis.example("  two  spaces \n\t ends ")
@hypothesis.example("".join(SPECIALS))
@hypothesis.example("\x00\ufeff\r\n\u2028\U0001f600")
def test_round_trip_without_specials(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_special(i) for i in ids)


def test_phrases_are_one_token_each(tokenizer):
    for phrase in phrases():
        assert len(tokenizer.encode(phrase)) == 1, phrase


def test_no_phrase_ends_or_begins_inside_a_word():
    for phrase in set(phrases()) - set(HEADER_WORDS):
        begins = not phrase[0].islower() or " " in phrase[:-1]
        # No word goes on from these.
        whole = phrase.startswith((" backwards", " alphabetically", " to=", '":'))
        ends = not phrase[-1].isalpha() or " " in phrase[1:] or whole
        assert begins and ends, phrase


@hypothesis.given(word=st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12))
def test_words_are_spelled(tokenizer, word):
    hypothesis.assume(not any(header in word for header in HEADER_WORDS))
    for text in (word, f'Reverse "{word}"', f"Sort the letters of {word}", f"{word}: 12, "):
        pieces = pieces_of(tokenizer, text)
        letters = [piece for piece in pieces if len(piece) == 1 and piece.isalpha()]
        assert "".join(letters).endswith(word), pieces


def test_digits_are_alone(tokenizer):
    for text in ("347+586", "What is 347 + 586?", "12, 345", "carry 1\n20"):
        for piece in pieces_of(tokenizer, text):
            assert not re.search(r"\d", piece) or len(piece) == 1


def test_the_default_system_message_is_a_few_tokens(tokenizer):
    for date, most in (("2026-03-04", 15), (None, 6)):
        message = from_chat([], current_date=date)
        ids = render_conversation(tokenizer, message, for_completion=False)
        assert len(ids) <= most


@pytest.mark.parametrize("skill", tasks.SKILLS)
def test_a_reference_goes_on_from_its_prompt_and_parses(tokenizer, skill):
    for index in range(10):
        problem = tasks.problem(skill, 5, index, "test")
        prompt = render_conversation(tokenizer, problem.prompt())
        ids, _ = render_for_training(tokenizer, problem.conversation())
        assert ids[: len(prompt)] == prompt
        parser = HarmonyParser(tokenizer)
        for token in ids[len(prompt) :]:
            parser.push(token)
        parser.finish()
        turn = to_turn(parser.messages)
        assert not turn.flagged and turn.content == problem.reference[-1]["content"]
        assert problem.check(turn.content, problem.answer)
        assert len(turn.tool_calls) == (problem.call is not None)


@pytest.mark.parametrize("skill", tasks.SKILLS)
def test_conversations_are_short(tokenizer, skill):
    lengths = []
    for index in range(60):
        problem = tasks.problem(skill, 0, index, "train")
        ids, learn = render_for_training(tokenizer, problem.conversation())
        assert any(learn)
        lengths.append(len(ids))
    assert statistics.median(lengths) <= MOST[skill]
    assert max(lengths) <= 1280


def test_recall_reaches_four_times_the_original_context(tokenizer):
    """The asked pair lies more than 256 tokens back, up to 1,024 and a little."""
    distances = []
    for index in range(80):
        problem = tasks.problem("recall_far", 0, index, "test")
        text = problem.messages[-1]["content"]
        key = re.search(r"^(\w+): \d\d$", problem.reference[0]["reasoning"], re.MULTILINE)[1]
        found = re.search(rf"\b{key}(: |=| = | is | has ){problem.answer}", text)
        distances.append(len(tokenizer.encode(text[found.start() :])))
    assert max(distances) > 900
    assert sum(d > 256 for d in distances) > len(distances) / 2
