"""The generate verb as a user runs it, on a checkpoint of noise."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gptoss_jax
from gptoss_jax.checkpoint.synthetic import write_synthetic
from gptoss_jax.model.config import PRESETS

COMMAND = [sys.executable, "-m", "gptoss_jax.generate"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "model"
    write_synthetic(PRESETS["tiny"], directory)
    return directory


def generate(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *words], input=stdin, capture_output=True, text=True, check=False
    )


def on(checkpoint: Path, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    return generate("--checkpoint", str(checkpoint), *words, stdin=stdin)


def test_json_has_every_key_and_a_seed_repeats_it(checkpoint):
    flags = ["--max-tokens", "20", "--seed", "7", "--json", "Why?"]
    first, again = (on(checkpoint, *flags) for _ in range(2))
    assert first.returncode == 0, first.stderr
    shown = json.loads(first.stdout)
    assert set(shown) == {"text", "reasoning", "messages", "finish_reason", "usage", "timings"}
    assert set(shown["timings"]) == {
        "load_s",
        "compile_s",
        "prefill_s",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "guesses_right",
    }
    usage = shown["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert shown["finish_reason"] == "length" and usage["completion_tokens"] == 20
    for key in ("text", "messages", "usage"):
        assert json.loads(again.stdout)[key] == shown[key]
    other = json.loads(on(checkpoint, *flags[:3], "8", *flags[4:]).stdout)
    assert other["messages"] != shown["messages"]


def test_several_answers_are_an_object_each(checkpoint):
    flags = ["--max-tokens", "6", "--json", "--logprobs", "2", "--presence-penalty", "1.5"]
    several = on(checkpoint, "-n", "2", "--seed", "7", *flags, "Why?")
    assert several.returncode == 0, several.stderr
    first, second = map(json.loads, several.stdout.splitlines())
    alone = json.loads(on(checkpoint, "--seed", "8", *flags, "Why?").stdout)
    assert second["messages"] == alone["messages"] != first["messages"]
    for one in (first, second):
        assert len(one["logprobs"]) == one["usage"]["completion_tokens"] == 6
        assert all(len(place["top"]) == 2 for place in one["logprobs"])
        assert set(one["logprobs"][0]) == {"id", "text", "logprob", "top"}


def test_streams_text_to_stdout_and_notes_to_stderr(checkpoint):
    shown = on(checkpoint, "--max-tokens", "12", "--raw", "--stats", "-", stdin="Why is the sky\n")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()
    assert "tok" not in shown.stdout
    assert re.search(r"load .* compile .* prefill \d+ tokens .* decode 12 tokens", shown.stderr)
    assert "cut off" in shown.stderr
    assert "\x1b" not in shown.stderr  # no colour outside a terminal


def test_the_text_of_json_is_what_streams(checkpoint):
    flags = ["--max-tokens", "16", "--temperature", "0", "Hello"]
    streamed = on(checkpoint, *flags).stdout
    text = json.loads(on(checkpoint, "--json", *flags).stdout)["text"]
    assert streamed == (text if text.endswith("\n") or not text else text + "\n")


def test_a_draft_changes_nothing_but_the_pace(checkpoint):
    flags = ["--max-tokens", "60", "--temperature", "0", "--dtype", "float32", "--json", "Why?"]
    expected = json.loads(on(checkpoint, *flags).stdout)
    done = on(checkpoint, "--draft", str(checkpoint), *flags)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["messages"] == expected["messages"]
    assert shown["timings"]["guesses_right"] == 1
    refused = on(checkpoint, "--draft", "nano", *flags)
    assert refused.returncode == 1
    assert "--draft nano: its vocabulary is of 512" in refused.stderr


def test_python_gives_the_same_turn(checkpoint):
    model, tokenizer = gptoss_jax.load(checkpoint)
    completion = gptoss_jax.complete(
        model, tokenizer, [{"role": "user", "content": "Hi"}], max_tokens=9, seed=3
    )
    shown = json.loads(on(checkpoint, "--max-tokens", "9", "--seed", "3", "--json", "Hi").stdout)
    assert completion.messages == shown["messages"]
    assert completion.usage == shown["usage"]
    assert completion.finish_reason == shown["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--checkpoint", "/nowhere", "Hi"], 1, "/nowhere"),
        (["--checkpoint", "/nowhere"], 2, "no prompt"),
        (["--checkpoint", "/nowhere", "--top-p", "1.5", "Hi"], 2, "--top-p"),
        (["--checkpoint", "/nowhere", "--top-p", "0", "Hi"], 2, "--top-p"),
        (["--checkpoint", "/nowhere", "--top-k", "2147483648", "Hi"], 2, "--top-k"),
        (["--checkpoint", "/nowhere", "--temperature", "-1", "Hi"], 2, "--temperature"),
        (["--checkpoint", "/nowhere", "--temperature", "inf", "Hi"], 2, "--temperature"),
        (["--checkpoint", "/nowhere", "--max-tokens", "0", "Hi"], 2, "--max-tokens"),
        (["--checkpoint", "/nowhere", "--presence-penalty", "2.5", "Hi"], 2, "--presence-penalty"),
        (["--checkpoint", "/nowhere", "--repetition-penalty", "0", "Hi"], 2, "in 0.01..100"),
        (["--checkpoint", "/nowhere", "--logit-bias", "5", "Hi"], 2, "must be ID=X"),
        (["--checkpoint", "/nowhere", "--logit-bias", "5=x", "Hi"], 2, "'x' is no number"),
        (["--checkpoint", "/nowhere", "--logit-bias", "5=101", "Hi"], 2, "in -100..100"),
        (["--checkpoint", "/nowhere", "--logprobs", "21", "--json", "Hi"], 2, "--logprobs"),
        (["--checkpoint", "/nowhere", "--logprobs", "2", "Hi"], 2, "--json"),
        (["--checkpoint", "/nowhere", "-n", "0", "Hi"], 2, "-n"),
        (["--checkpoint", "/nowhere", "--reasoning-effort", "huge", "Hi"], 2, "huge"),
        (["--checkpoint", "/nowhere", "--no-such-flag", "Hi"], 2, "--no-such-flag"),
        (["--checkpoint", "/nowhere", ""], 1, "prompt is empty"),
    ],
)
def test_mistakes_are_one_line_and_the_right_code(words, code, message):
    shown = generate(*words)
    assert shown.returncode == code
    assert shown.stdout == ""
    last = shown.stderr.strip().splitlines()[-1]
    assert message in last and "Traceback" not in shown.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_for_a_checkpoint_is_told_from_its_directory(checkpoint, name):
    file = checkpoint / name
    shown = on(file, "Hi")
    assert shown.returncode == 1
    assert shown.stderr == f"error: {file} is a file; give its directory {checkpoint}\n"


def test_a_foreign_tokenizer_is_refused(checkpoint, tmp_path):
    missing = on(checkpoint, "--tokenizer", str(tmp_path), "Hi")
    assert missing.returncode == 1 and str(tmp_path) in missing.stderr
    assert missing.stderr.count("\n") == 1


def test_ctrl_c_keeps_what_was_generated(checkpoint):
    process = subprocess.Popen(
        [*COMMAND, "--checkpoint", str(checkpoint), "--raw", "--max-tokens", "100000", "Hi"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = process.stdout.read(1)  # something was generated
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first + rest
    assert b"Traceback" not in errors


def test_the_readme_makes_the_checkpoint_that_it_generates_from(tmp_path):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (convert,) = re.findall(r"-m (gptoss_jax\.convert --synthetic \S+) tiny-gpt-oss", readme)
    subprocess.run([sys.executable, "-m", *convert.split(), str(tmp_path / "tiny")], check=True)
    assert on(tmp_path / "tiny", "--max-tokens", "3", "Why is the sky blue?").returncode == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": "3"}, "seed is '3'; it must be"),
        ({"seed": True}, "seed is True; it must be"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; it must be a whole number"),
        ({"max_tokens": "3"}, "max_tokens is '3'; it must be"),
        ({"max_tokens": True}, "max_tokens is True; it must be"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"top_k": 2**31}, "top_k is 2147483648"),
        ({"min_p": 1.5}, "min_p is 1.5; it must lie in 0..1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must lie in 0.01..100"),
        ({"presence_penalty": -2.5}, "presence_penalty is -2.5; it must lie in -2..2"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1'; it must be a number"),
        ({"logit_bias": [1]}, "logit_bias is .1.; it must be a dictionary"),
        ({"logit_bias": {"1": 2}}, "an id of logit_bias is '1'; it must be a whole number"),
        ({"logit_bias": {1: 101}}, "logit_bias of 1 is 101; it must lie in -100..100"),
        ({"logit_bias": {201088: 1}}, "id 201088 is outside the 201088-token vocabulary"),
        ({"logprobs": 21}, "logprobs is 21; it must lie in 0..20"),
        ({"logprobs": True}, "logprobs is True; it must be a whole number"),
        ({"stop": "END"}, "stop is 'END'; it must be a list of strings"),
        ({"stop": [""]}, "none of them empty"),
        ({"messages": "hi"}, "messages: give a list of dictionaries"),
        ({"messages": ["hi"]}, r"messages\[0\]: give a dictionary"),
        ({"tokenizer": None}, "no tokenizer"),
    ],
)
def test_complete_refuses_in_a_line(checkpoint, wrong, message):
    model, tokenizer = gptoss_jax.load(checkpoint)
    right = {"tokenizer": tokenizer, "messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(ValueError, match=message) as caught:
        gptoss_jax.complete(model, **right | wrong)
    assert "\n" not in str(caught.value)


XSD = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
<xs:element name="answer"><xs:simpleType><xs:restriction base="xs:string">
<xs:enumeration value="yes"/><xs:enumeration value="no"/>
</xs:restriction></xs:simpleType></xs:element></xs:schema>"""


def test_answers_follow_an_xml_schema(tmp_path):
    file = tmp_path / "answer.xsd"
    file.write_text(XSD)
    ran = generate("--xml-schema", str(file), "Is 8 larger than 5?")
    assert ran.returncode == 0, ran.stderr
    assert re.search("<answer>(yes|no)</answer>\n$", ran.stdout)
    file.write_text(XSD.replace("element", "import"))
    ran = generate("--xml-schema", str(file), "Is 8 larger than 5?")
    assert ran.returncode == 1
    assert ran.stderr == f'error: {file}: xs:schema: xs:import "answer" is not supported here\n'
