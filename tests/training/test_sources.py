"""Bad data is found before training, by file and line; tasks are taken by index."""

import codecs
import json
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from gptoss_jax import train
from gptoss_jax.errors import UserError
from gptoss_jax.text import o200k_harmony
from gptoss_jax.training import tasks
from gptoss_jax.training.records import example_of
from gptoss_jax.training.sources import open_sources
from gptoss_jax.training.tasks import words
from gptoss_jax.training.tasks.vocabulary import word

USER = {"role": "user", "content": "hi"}
GOOD = json.dumps({"messages": [USER, {"role": "assistant", "content": "hello"}]})


def calls(arguments):
    """An assistant's message with a call of a function."""
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}


DEEP = '{"type": "array", "items": ' * 600 + "{}" + "}" * 600
BAD = {
    "{": "not JSON",
    '"text"': 'give an object {"messages": […]}',
    '{"messages": 3}': 'give an object {"messages": […]}',
    '{"messages": []}': "no assistant turn",
    json.dumps({"messages": [USER, {"role": "assistant", "content": None}]}): "messages[1]: says",
    json.dumps({"messages": [USER, {"role": "assistant", "content": ""}]}): "messages[1]: says",
    json.dumps(
        {"messages": [USER, {"role": "assistant", "content": "x", "channel": "thought"}]}
    ): "messages[1].channel: 'thought' is unknown",
    json.dumps(
        {"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}
    ): "messages[0",
    json.dumps({"messages": [USER]}): "no assistant turn",
    json.dumps({"messages": ["hi"]}): "messages[0]: give a dictionary",
    json.dumps({"messages": [{"role": "wizard", "content": ""}]}): "role 'wizard' is unknown",
    json.dumps(
        {"messages": [USER, {"role": "assistant", "content": "long " * 300}]}
    ): "more than the context, config.data.sequence_length 256",
    GOOD[:-1] + ', "tools": [3]}': "tools: give a list of objects",
    GOOD[:-1] + ', "tools": [{}]}': "tools[0]: the function has no name",
    GOOD[:-1] + ', "tools": 0}': "tools: give a list of objects",
    GOOD[:-1] + ', "tools": [{"name": "f", "description": 3}]}': "tools[0].description: give a str",
    GOOD[:-1] + ', "tools": [{"name": "f", "parameters": [3]}]}': "tools[0].parameters: give a sch",
    GOOD[:-1] + ', "tools": [{"name": "f", "parameters": ' + DEEP + "}]}": "nested too deep",
    GOOD[:-1] + ', "reasoning_effort": "huge"}': "reasoning_effort: 'huge' is none of",
    GOOD[:-1] + ', "current_date": 5}': "current_date: 5 is no string",
    "[" * 100_000: "not JSON",
    GOOD[:-1] + ', "messages": []}': "not JSON ('messages' stands twice in an object)",
    GOOD.replace("hello", "\\ud83d"): "surrogates not allowed",
    json.dumps(
        {"messages": [USER, {"role": "assistant", "reasoning": "hm"}]}
    ): "analysis 'hm' without an answer; give content or tool_calls",
    json.dumps(
        {
            "messages": [
                USER,
                {"role": "assistant", "reasoning": "hm"},
                *json.loads(GOOD)["messages"],
            ]
        }
    ): "analysis 'hm' without an answer",
    GOOD.replace(
        '"hello"', '"hello", "thinkng": "hm"'
    ): "messages[1]: unknown field 'thinkng'; did you mean 'thinking'?",
    GOOD.replace(
        '"content": "hello"', '"contnet": "hello"'
    ): "unknown field 'contnet'; did you mean 'conte",
    json.dumps(
        {"messages": [USER, calls('{"a": 1')]}
    ): "messages[1].tool_calls[0]: arguments are no JSON object: '{\"a\": 1'",
    json.dumps({"messages": [USER, calls("3")]}): "arguments are no JSON object: '3'",
    json.dumps({"messages": [USER, calls([1])]}): "arguments are no JSON object: [1]",
    json.dumps(
        {
            "messages": [
                USER,
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{oops"}},
            ]
        }
    ): "messages[1].function_call: arguments are no JSON object: '{oops'",
    GOOD[:-1] + ', "x": NaN}': "not JSON (NaN is no number of JSON)",
}


@pytest.fixture
def write(tmp_path, config):
    def to_file(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(lines))
        config.data.paths = (str(path),)
        return path

    return to_file


@pytest.mark.parametrize(("line", "expected"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_line_is_named(write, config, tokenizer, line, expected):
    path = write(GOOD, "", line, GOOD, "{")
    with pytest.raises(UserError) as caught:
        open_sources(config, tokenizer)
    shown = str(caught.value)
    assert shown.startswith(f"{path}:3: ")
    assert expected in shown
    assert "(and 1 more bad lines); --config.data.skip_bad=true" in shown
    assert "\n" not in shown


@pytest.mark.parametrize("arguments", ["", "{}", '{"a": "b"}', {"a": 1}])
def test_arguments_of_a_call_may_be_an_object_or_none(write, config, tokenizer, arguments):
    write(json.dumps({"messages": [USER | {"weight": 1, "context": 0}, calls(arguments)]}))
    assert open_sources(config, tokenizer).train.size == 1


def test_text_that_is_no_utf_8_is_named(write, config, tokenizer):
    path = write()
    path.write_bytes(GOOD.encode() + b"\n\xff{}\n")
    with pytest.raises(UserError, match=r"data\.jsonl:2: not JSON"):
        open_sources(config, tokenizer)


def test_a_byte_order_mark_is_passed_over(write, config, tokenizer):
    path = write()
    path.write_bytes(codecs.BOM_UTF8 + GOOD.encode())
    assert open_sources(config, tokenizer).train.size == 1


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_an_empty_file_is_named(write, config, tokenizer, lines):
    write(*lines)
    with pytest.raises(UserError, match=r"data\.jsonl:1: no conversation in the file"):
        open_sources(config, tokenizer)


def test_a_missing_file_is_named(config, tokenizer):
    config.data.paths = ("nowhere.jsonl",)
    with pytest.raises(UserError, match=r"nowhere\.jsonl: not readable"):
        open_sources(config, tokenizer)


def test_bad_lines_are_skipped_and_counted(write, config, tokenizer):
    config.data.skip_bad = True
    path = write(GOOD, *BAD, GOOD)
    source = open_sources(config, tokenizer).train
    assert (source.size, source.skipped) == (2, len(BAD))
    assert source.where(1) == f"{path}:{len(BAD) + 2}"
    write(*BAD)
    with pytest.raises(UserError, match="no usable conversation"):
        open_sources(config, tokenizer)


def test_files_without_a_good_line_are_skipped_and_counted(write, config, tokenizer):
    paths = [write(GOOD)]
    for name, text in (("bad", "{\n{\n"), ("empty", ""), ("blank", "\n \n")):
        paths.append(paths[0].with_name(f"{name}.jsonl"))
        paths[-1].write_text(text)
    config.data.paths = tuple(map(str, paths))
    with pytest.raises(UserError, match=r"bad\.jsonl:1: not JSON.*and 3 more bad lines"):
        open_sources(config, tokenizer)
    config.data.skip_bad = True
    source = open_sources(config, tokenizer).train
    assert (source.size, source.skipped) == (1, 4)


def test_the_verb_fails_before_it_loads_the_trainer(write, config, tmp_path, capsys, monkeypatch):
    path = write(GOOD, "{")
    monkeypatch.setitem(sys.modules, "gptoss_jax.training.loop", None)
    file = tmp_path / "config.py"
    file.write_text("from gptoss_jax.training.settings import defaults as get_config\n")
    words = [f"--config.data.paths={path}", f"--config.tokenizer={config.tokenizer}"]
    assert train.main(["--config", str(file), "--workdir", str(tmp_path / "run"), *words]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}:2: not JSON")
    assert shown.count("\n") == 1


@pytest.fixture
def skills(config):
    """Takes tasks of these skills alone, in rows of this length."""
    config.data.kind, config.data.paths = "tasks", ()

    def of(length, *names):
        config.data.sequence_length = length
        config.data.mixture = ConfigDict(dict.fromkeys(names, 1.0))

    return of


def test_tasks_come_by_index_and_split(skills, config, tokenizer):
    skills(512, "sort", "product")
    found = open_sources(config, tokenizer)
    assert (found.train.size, found.train.skipped) == (None, 0)
    ids = example_of(tasks.conversation(0, 7, "train", config.data.mixture), config, tokenizer)
    np.testing.assert_array_equal(found.train[7].ids_S, ids.ids_S)
    assert found.train.fingerprint != found.validation.fingerprint
    again = open_sources(config, tokenizer)
    assert again.train.fingerprint == found.train.fingerprint


def test_tasks_that_do_not_fit_are_refused_before_training(skills, config, tokenizer):
    skills(256, "calculator", "recall_far")
    named = (
        r"sequence_length: 256 tokens do not hold recall_far, whose problems have up to 1\d\d\d;"
    )
    with pytest.raises(UserError, match=named):
        open_sources(config, tokenizer)
    config.data.skip_bad = True
    skills(256, "recall_far")
    with pytest.raises(UserError, match="256 tokens hold no problem at all"):
        open_sources(config, tokenizer)


def test_what_is_left_out_of_tasks_is_counted_once(skills, config, tokenizer):
    config.data.skip_bad = True
    skills(256, "sort", "recall_middle")
    source = open_sources(config, tokenizer).validation
    for _ in range(2):  # as validation does
        shown = [source[index] for index in range(40)]
    assert 0 < shown.count(None) == source.skipped < 40
    assert max(one.length for one in shown if one) <= 256


def test_other_generators_and_other_tokens_are_other_data(skills, config, tokenizer, monkeypatch):
    """Though every name and number in the config is the same: a resumed run would notice."""
    skills(512, "reverse")
    seen = [open_sources(config, tokenizer).train.fingerprint]
    seen.append(open_sources(config, o200k_harmony()).train.fingerprint)
    monkeypatch.setattr(words, "word", lambda rng: word(rng)[1:])
    seen.append(open_sources(config, tokenizer).train.fingerprint)
    assert len(set(seen)) == 3


def test_another_end_of_the_training_is_other_data(config, tokenizer, monkeypatch):
    """Though nothing of it comes before hundreds of thousands of conversations."""
    config.data.kind, config.data.sequence_length = "tasks", 1280
    before = open_sources(config, tokenizer).train.fingerprint
    *begun, (first, _) = tasks._PHASES
    monkeypatch.setattr(tasks, "_PHASES", (*begun, (first, tasks.DEFAULT_MIXTURE)))
    assert open_sources(config, tokenizer).train.fingerprint != before


def test_a_base_is_spared_the_practice_that_nano_begins_with(config, tokenizer):
    config.data.kind, config.data.sequence_length = "tasks", 1280
    first = open_sources(config, tokenizer).train[0]
    config.base = "nano"
    of_base = open_sources(config, tokenizer).train[0]
    assert "Write " in tokenizer.decode(first.ids_S)
    assert "Write " not in tokenizer.decode(of_base.ids_S)
