"""Fixtures of the text tests: three small or packaged tokenizers, and openai-harmony as oracle."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gptoss_jax.text import load_tokenizer, o200k_harmony
from gptoss_jax.text.harmony import (
    Message,
    ToolFunction,
    ToolNamespace,
    developer_message,
    system_message,
)

GOLDENS = Path(__file__).parent / "goldens"
SPECIALS = (
    *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>"),
    *("<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>"),
)
RESERVED = ("<|reserved_200000|>", "<|reserved_200001|>")
CORPUS = [
    "The weather in Lagos is warm, 31 degrees.",
    "def main(argv):\n    return {'a': [1, 2, 3]}",
    "Straße, naïve, 日本語のテキスト, emoji 🌤️ and more words to learn from.",
    "assistant user system developer analysis commentary final to=functions.get_weather json",
    "<|end|> is written by people too, as | and < and > are.",
]


@pytest.fixture(scope="session")
def o200k():
    return o200k_harmony()


@pytest.fixture(scope="session")
def sp_path(tmp_path_factory):
    """A SentencePiece model, trained here, with half of the harmony tokens of each kind."""
    folder = tmp_path_factory.mktemp("sp")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_prefix=str(folder / "tiny"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        control_symbols=list(SPECIALS[:3]),
        user_defined_symbols=[*SPECIALS[3:], *RESERVED],
        minloglevel=2,
    )
    return folder / "tiny.model"


@pytest.fixture(scope="session")
def hf_path(tmp_path_factory):
    """A byte-level BPE tokenizer.json, trained here; some specials are not marked as such."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    inner.train_from_iterator(CORPUS * 4, trainer)
    inner.add_special_tokens([*SPECIALS[:7], *RESERVED])
    inner.add_tokens([AddedToken(s, special=False, normalized=False) for s in SPECIALS[7:]])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    inner.save(str(path))
    return path


@pytest.fixture(scope="session", params=["o200k", "hf", "sp"])
def tokenizer(request):
    if request.param == "o200k":
        return request.getfixturevalue("o200k")
    return load_tokenizer(request.getfixturevalue(f"{request.param}_path"))


@pytest.fixture(scope="session")
def ids(o200k):
    """Text with literal specials → o200k_harmony ids, the specials as special ids."""
    split = re.compile(rf"({'|'.join(map(re.escape, o200k.specials))})")

    def to_ids(text):
        out = []
        for piece in split.split(text):
            out += [o200k.specials[piece]] if piece in o200k.specials else o200k.encode(piece)
        return out

    return to_ids


@pytest.fixture(scope="session")
def goldens():
    return {f: json.loads((GOLDENS / f"{f}.json").read_text()) for f in ("harmony", "types")}


@pytest.fixture(scope="session")
def make_goldens(oracle):
    """The golden script as a module: its cases and its way of asking openai-harmony."""
    spec = importlib.util.spec_from_file_location("make_harmony", GOLDENS / "make_harmony.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def from_oracle_json():
    """openai-harmony's JSON of a conversation → the messages of this package."""
    return _from_oracle_json


def _from_oracle_json(messages, compat="openai-harmony-0.0.8"):
    has_functions = any(_functions(m["content"][0]) for m in messages)
    return [_message(m, has_functions, compat) for m in messages]


def _message(raw, has_functions, compat):
    content = raw["content"][0]
    if content["type"] == "system_content":
        effort = content.get("reasoning_effort", "Medium")
        optional = {"identity": "model_identity", "knowledge_cutoff": "knowledge_cutoff"}
        channels = content.get("channel_config")
        return system_message(
            effort.lower() if effort else None,
            content.get("conversation_start_date"),
            builtin_tools=[_namespace(n) for n in (content.get("tools") or {}).values()],
            function_tools=has_functions,
            compat=compat,
            **{ours: content[theirs] for ours, theirs in optional.items() if theirs in content},
            **({} if channels is None else {"channels": channels["valid_channels"]}),
        )
    if content["type"] == "developer_content":
        return developer_message(content["instructions"], _functions(content), compat=compat)
    keys = ("name", "recipient", "channel", "content_type")
    return Message(raw["role"], content["text"], **{k: raw.get(k) for k in keys})


def _functions(content):
    namespace = (content.get("tools") or {}).get("functions") or {"tools": []}
    return [ToolFunction(**t) for t in namespace["tools"]] if "instructions" in content else []


def _namespace(raw):
    functions = tuple(ToolFunction(**t) for t in raw["tools"])
    return ToolNamespace(raw["name"], functions, raw["description"])
