"""Streaming detokenisation: no half characters, and nothing lost."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest

from gptoss_jax.text import StreamDecoder
from gptoss_jax.text.tokenizer import Tokenizer

FEW = hypothesis.settings(max_examples=200, deadline=None, derandomize=True)


class Pieces(Tokenizer):
    """Ids that stand for the given pieces of bytes."""

    def __init__(self, pieces):
        super().__init__("pieces", pieces, {})

    def _encode_plain(self, text):
        raise NotImplementedError


def stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [decoder.push(i) for i in ids] + [decoder.finish()]


def splits(data):
    """Every way to cut some bytes into pieces."""
    for cuts in itertools.product([False, True], repeat=len(data) - 1):
        at = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(data)]
        yield [data[a:b] for a, b in itertools.pairwise(at)]


@pytest.mark.parametrize("text", ["é日🌤️", "a👩‍👩‍👧", "ß🇩🇪x"])
def test_every_split_of_multi_byte_text(text):
    data = text.encode()[:14]
    want = data.decode("utf-8", "replace")
    for pieces in splits(data):
        out = stream(Pieces(pieces), range(len(pieces)))
        assert "".join(out) == want
        assert "\ufffd" not in "".join(out[:-1])


def test_a_character_comes_with_its_last_byte():
    assert stream(Pieces([b"\xf0", b"\x9f\x8c", b"\xa4a", b"\xe6"]), range(4)) == [
        "",
        "",
        "🌤a",
        "",
        "\ufffd",
    ]


@FEW
@hypothesis.given(st.lists(st.binary(max_size=5), max_size=12))
def test_any_bytes_stream_as_they_decode(pieces):
    tokenizer = Pieces(pieces)
    out = stream(tokenizer, range(len(pieces)))
    assert "".join(out) == tokenizer.decode(range(len(pieces)))


@FEW
@hypothesis.given(data=st.data())
def test_any_ids_stream_as_they_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(-2, tokenizer.vocab_size + 3), max_size=20))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_decoder_can_be_used_again():
    decoder = StreamDecoder(Pieces([b"\xf0", b"a"]))
    assert decoder.push(0) == "" and decoder.finish() == "\ufffd"
    assert decoder.push(1) == "a" and decoder.finish() == ""
