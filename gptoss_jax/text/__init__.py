"""Text: tokenizers behind one interface, and the harmony format in `gptoss_jax.text.harmony`.

A leaf: imports nothing else of the package, and no tokenizer library until one is loaded.
"""

from gptoss_jax.text.errors import HarmonyError, TextError, TokenizerError
from gptoss_jax.text.load import has_tokenizer, load_tokenizer, tokenizer_for
from gptoss_jax.text.o200k import VOCAB_SIZE as O200K_VOCAB_SIZE
from gptoss_jax.text.o200k import o200k_harmony
from gptoss_jax.text.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "O200K_VOCAB_SIZE",
    "HarmonyError",
    "StreamDecoder",
    "TextError",
    "Tokenizer",
    "TokenizerError",
    "has_tokenizer",
    "load_tokenizer",
    "o200k_harmony",
    "tokenizer_for",
]
