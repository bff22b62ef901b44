"""o200k_harmony from the ranks file the package carries: no network, no model directory."""

from __future__ import annotations

import base64
import binascii
import functools
import gzip
import hashlib
import itertools
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax.text.errors import TokenizerError
from gptoss_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken

RANKS_FILE = Path(__file__).parent / "data" / "o200k_base.tiktoken.gz"
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
VOCAB_SIZE = 201_088

# Named specials of o200k_harmony; every other id from 199,998 up is reserved. openai-harmony 0.0.8
# calls 200,018 reserved; the published tokenizer.json calls it <|endofprompt|>.
SPECIALS = {
    "<|startoftext|>": 199_998,
    "<|endoftext|>": 199_999,
    "<|return|>": 200_002,
    "<|constrain|>": 200_003,
    "<|channel|>": 200_005,
    "<|start|>": 200_006,
    "<|end|>": 200_007,
    "<|message|>": 200_008,
    "<|call|>": 200_012,
    "<|endofprompt|>": 200_018,
}

# The word-splitting pattern of o200k_base: a constant of the encoding, as the ranks are.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
PATTERN = "|".join(
    [
        rf"{_LEAD}{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"{_LEAD}{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


# tiktoken's regex engine panics on a whitespace run of about a million characters, so content is
# cut inside longer runs than this; shorter ones keep the exact encoding.
_LONG_SPACE = re.compile(r"\s{100000}")


class O200kHarmony(Tokenizer):
    """The tokenizer of gpt-oss, on tiktoken. Use `load_ranks` or `o200k_harmony` to get one."""

    def __init__(self, name: str, encoding: tiktoken.Encoding, ranks: dict[bytes, int]) -> None:
        table: list[bytes | None] = [None] * VOCAB_SIZE
        for piece, rank in ranks.items():
            table[rank] = piece
        for literal, token_id in SPECIALS.items():
            table[token_id] = literal.encode()
        reserved = set(range(len(ranks), VOCAB_SIZE)) - set(SPECIALS.values())
        super().__init__(name, table, SPECIALS, reserved)
        self._encoding = encoding

    def _encode_plain(self, text: str) -> list[int]:
        cuts = [0, *(m.end() for m in _LONG_SPACE.finditer(text)), len(text)]
        ids: list[int] = []
        for a, b in itertools.pairwise(cuts):
            ids += self._encoding.encode_ordinary(text[a:b])
        return ids


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads a ranks file, gzipped or not, after checking its sha256.

    Raises:
      TokenizerError: the file cannot be read, or is not o200k_base's ranks.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error}); reinstall or replace it"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != RANKS_SHA256:
        raise TokenizerError(
            f"{path}: sha256 {digest[:12]}… is not o200k_base's {RANKS_SHA256[:12]}…; "
            "use that file, or give a tokenizer.json"
        )
    try:
        lines = (line.split() for line in data.splitlines())
        return {base64.b64decode(piece): int(rank) for piece, rank in lines}
    except (ValueError, binascii.Error) as error:  # pragma: no cover - the hash already fixed it
        raise TokenizerError(f"{path}: not a ranks file ({error})") from error


def load_ranks(path: Path) -> O200kHarmony:
    """o200k_harmony from a copy of o200k_base's ranks (`.tiktoken`, `.tiktoken.gz`).

    Raises:
      TokenizerError: see `read_ranks`.
    """
    import tiktoken

    ranks = read_ranks(path)
    # Built directly: tiktoken.get_encoding would look for the file on the network.
    encoding = tiktoken.Encoding(
        "o200k_harmony", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    return O200kHarmony(f"o200k_harmony ({path.name})", encoding, ranks)


@functools.cache
def o200k_harmony() -> O200kHarmony:
    """The packaged o200k_harmony; loaded once a process.

    Raises:
      TokenizerError: the packaged file is missing or damaged.
    """
    return load_ranks(RANKS_FILE)
