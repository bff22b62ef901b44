"""Text: tokenizers behind one interface, and the harmony format in `gptoss_jax.text.harmony`.

A leaf: imports nothing else of the package, and no tokenizer library until one is loaded.
"""

from gptoss_jax.text.errors import HarmonyError, TextError, TokenizerError
from gptoss_jax.text.load import load_tokenizer, tokenizer_for
from gptoss_jax.text.o200k import o200k_harmony
from gptoss_jax.text.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "HarmonyError",
    "StreamDecoder",
    "TextError",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
    "o200k_harmony",
    "tokenizer_for",
]
