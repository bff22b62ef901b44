"""Every tokenizer: exact round trips, content apart from specials, one-line errors."""

import gzip
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

from gptoss_jax.text import TokenizerError, load_tokenizer, o200k_harmony, tokenizer_for
from gptoss_jax.text.o200k import RANKS_FILE, SPECIALS, VOCAB_SIZE, load_ranks
from gptoss_jax.text.tokenizer import cut_literals, literal_cutter

FEW = hypothesis.settings(max_examples=150, deadline=None, derandomize=True)

LITERALS = [
    *SPECIALS,
    "<|reserved_200000|>",
    "<|",
    "|>",
    "▁",
    "<0x41>",
    "<unk>",
    "</s>",
    "<s>",
    "Ġ",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NASTY = st.lists(st.one_of(TEXT, st.sampled_from(LITERALS)), max_size=8).map("".join)


@FEW
@hypothesis.given(text=NASTY)
@hypothesis.example("  two  spaces \n\t ends ")
@hypothesis.example(" ▁▁ ▁")
@hypothesis.example("<|end|><|end|><|<|end|>|>")
@hypothesis.example("\x00\x01\ufffe\ufeff\r\n\x85\u2028")
def test_round_trip_without_specials(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert not any(tokenizer.is_special(i) for i in ids)


def test_every_special_literal_stays_text(tokenizer):
    for literal in [*SPECIALS, "<|reserved_200000|>", "<|reserved_200001|>"]:
        for text in (literal, f"a{literal}b", literal * 3, literal[:-1] + literal):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert not any(tokenizer.is_special(i) for i in ids)


def test_specials_go_by_name(tokenizer):
    for literal, token_id in tokenizer.specials.items():
        assert tokenizer.token_id(literal) == token_id
        assert tokenizer.is_special(token_id)
        assert tokenizer.token_bytes(token_id) == literal.encode()
    assert set(SPECIALS) <= tokenizer.specials.keys()
    with pytest.raises(TokenizerError, match=r"no special token <\|none\|>; use a tokenizer with"):
        tokenizer.token_id("<|none|>")


def test_stop_ids(tokenizer):
    names = {tokenizer.decode([i]) for i in tokenizer.stop_ids}
    assert names == {"<|return|>", "<|call|>", "<|endoftext|>"}


def test_unsampleable_ids_are_those_without_a_string(tokenizer):
    model_vocab = tokenizer.vocab_size + 7
    banned = set(tokenizer.unsampleable_ids(model_vocab).tolist())
    assert banned == {i for i in range(model_vocab) if tokenizer.token_bytes(i) is None}
    assert set(range(tokenizer.vocab_size, model_vocab)) < banned
    assert not banned & set(tokenizer.specials.values())
    assert len(tokenizer.unsampleable_ids(0)) == 0


@pytest.mark.parametrize("token_id", [-1, 10**9])
def test_ids_out_of_range_have_no_string(tokenizer, token_id):
    assert tokenizer.token_bytes(token_id) is None
    assert not tokenizer.is_special(token_id)
    assert tokenizer.decode([token_id]) == "\ufffd"


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_o200k_numbers(o200k):
    assert o200k.vocab_size == VOCAB_SIZE == 201_088
    assert {i: o200k.decode([i]) for i in sorted(o200k.specials.values())} == {
        199_998: "<|startoftext|>",
        199_999: "<|endoftext|>",
        200_002: "<|return|>",
        200_003: "<|constrain|>",
        200_005: "<|channel|>",
        200_006: "<|start|>",
        200_007: "<|end|>",
        200_008: "<|message|>",
        200_012: "<|call|>",
        200_018: "<|endofprompt|>",
    }
    assert o200k.stop_ids == {199_999, 200_002, 200_012}
    reserved = set(range(199_998, VOCAB_SIZE)) - set(SPECIALS.values())
    assert set(o200k.unsampleable_ids(VOCAB_SIZE).tolist()) == reserved
    assert len(reserved) == 1080
    assert all(o200k.is_special(i) for i in reserved)


def test_o200k_equals_openai_harmony(o200k, oracle):
    for literal, token_id in SPECIALS.items():
        assert oracle.is_special_token(token_id)
        if literal != "<|endofprompt|>":  # the library calls this one reserved
            assert oracle.encode(literal, allowed_special="all") == [token_id]
    for token_id in (200_000, 200_001, 200_004, 200_009, 200_013, 200_014, 200_018, 201_087):
        assert oracle.decode([token_id]) == f"<|reserved_{token_id}|>"
    for token_id in range(0, 199_998, 997):
        assert oracle.decode([token_id], errors="surrogateescape") == o200k.token_bytes(
            token_id
        ).decode(errors="surrogateescape")


@FEW
@hypothesis.given(text=NASTY)
def test_o200k_encodes_as_openai_harmony(o200k, oracle, text):
    assert o200k.encode(text) == oracle.encode(text, disallowed_special=())


@pytest.mark.parametrize("run", [" " * 1_200_000, "\u3000 " * 600_000, "\n" * 1_200_000])
def test_o200k_takes_a_million_spaces(o200k, run):
    """tiktoken's regex engine panics on these; whoever writes the prompt could stop a server."""
    text = f"a{run}b"
    assert o200k.decode(o200k.encode(text)) == text


def test_o200k_needs_no_environment_and_no_network():
    """Importing is cheap, and loading touches nothing but the packaged file."""
    code = (
        "import sys, gptoss_jax.text as t\n"
        "heavy = {'jax', 'tiktoken', 'tokenizers', 'sentencepiece', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import socket\n"
        "socket.socket.connect = None\n"
        "assert t.o200k_harmony().encode('hello') == [24912]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_sentencepiece_model_trained_otherwise(sp_path):
    """The model asks for a dummy prefix and squeezed spaces; content must not get them."""
    raw = sentencepiece.SentencePieceProcessor(model_file=str(sp_path))
    assert raw.decode(raw.encode(" a  b ")) == "a b"
    ours = load_tokenizer(sp_path)
    assert ours.decode(ours.encode(" a  b ")) == " a  b "
    assert raw.piece_to_id("<|end|>") in raw.encode("x<|end|>"), "the guard would be untested"


def test_hf_tokenizer_would_match_specials(hf_path):
    raw = tokenizers.Tokenizer.from_file(str(hf_path))
    for literal in ("<|return|>", "<|message|>"):
        assert raw.token_to_id(literal) in raw.encode(literal, add_special_tokens=False).ids


def test_hf_metaspace_tokenizer(tmp_path, sp_path):
    """A tokenizer.json of the SentencePiece kind: ▁ is a space, <0xNN> a byte."""
    vocab = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}, "▁": 257, "a": 258}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    path = tmp_path / "tokenizer.json"
    inner.save(str(path))
    ours = load_tokenizer(tmp_path)
    assert ours.decode(ours.encode(" a é")) == " a é"
    assert ours.token_bytes(0x41 + 1) == b"A"


def test_loading_by_file_and_directory(tmp_path, hf_path, sp_path):
    assert load_tokenizer(hf_path.parent).name == "tokenizer.json"
    assert load_tokenizer(str(sp_path.parent)).name == "tiny.model"
    plain = tmp_path / "o200k_base.tiktoken"
    plain.write_bytes(gzip.decompress(RANKS_FILE.read_bytes()))
    assert load_tokenizer(tmp_path).encode("Grüße") == o200k_harmony().encode("Grüße")


def test_a_directory_without_a_tokenizer_gets_the_packaged_one(tmp_path, sp_path):
    assert tokenizer_for(tmp_path) is o200k_harmony()
    assert tokenizer_for(None) is o200k_harmony()
    assert tokenizer_for(sp_path.parent).name == "tiny.model"
    assert tokenizer_for(tmp_path, sp_path).name == "tiny.model"


@pytest.mark.parametrize(
    ("file", "data", "error"),
    [
        ("", None, "no tokenizer.json, *.model or *.tiktoken in it; name a tokenizer file"),
        ("gone.json", None, "no such file; give a tokenizer file or its directory"),
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("x.model", b"nothing", "not a SentencePiece model"),
        ("x.tiktoken", b"aGk= 0\n", "is not o200k_base's 446a9538cb6c…; use that file, or"),
        ("x.tiktoken.gz", b"nothing", "cannot be read"),
        ("x.tiktoken.gz", gzip.compress(b"cut", mtime=0)[:-4], "cannot be read"),
        ("x.vocab", b"", "unknown kind; give a .json, .model, .tiktoken or .tiktoken.gz"),
    ],
)
def test_errors_are_one_line_and_name_the_file(tmp_path, file, data, error):
    path = tmp_path / file
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TokenizerError, match=re.escape(error)) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_packaged_file_is_noticed(tmp_path):
    data = gzip.decompress(RANKS_FILE.read_bytes())
    path = tmp_path / "o200k_base.tiktoken"
    path.write_bytes(data.replace(b"IQ== 0", b"IQ== 1", 1))
    with pytest.raises(TokenizerError, match="sha256"):
        load_ranks(path)


def test_cut_literals_leaves_no_literal_whole():
    cutter = literal_cutter(["<|a|>", "<|a|>b", "x"])
    assert cut_literals("x<|a|>b<|<|a|>", cutter) == ["x<", "|a|>b<|<", "|a|>"]
    assert cut_literals("any", literal_cutter([])) == ["any"]
