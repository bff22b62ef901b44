"""Harmony as it is written against masks, and answers without a model by a walk through them."""

from random import Random

import numpy as np

from gptoss_jax.text import Tokenizer
from gptoss_jax.text.constraints import Constraint, Matcher, fill_masks


def ids_of(tokenizer, text: str) -> list[int]:
    """Harmony as it is written, specials by name."""
    ids = []
    while text:
        special = next((s for s in tokenizer.specials if text.startswith(s)), None)
        cut = len(special) if special else text.find("<|", 1) % (len(text) + 1)
        piece, text = text[:cut], text[cut:]
        ids += [tokenizer.token_id(special)] if special else tokenizer.encode(piece)
    return ids


def allowed(matcher: Matcher, tokenizer: Tokenizer) -> np.ndarray:
    words = np.zeros((1, -(-tokenizer.vocab_size // 32)), np.int32)
    fill_masks([matcher], words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return bits[: tokenizer.vocab_size].astype(bool)


def first_refused(tokenizer, constraint: Constraint, text: str) -> str | None:
    """The bytes of the first token that may not come; None if all may."""
    matcher = constraint.matcher()
    for token in ids_of(tokenizer, text):
        if not allowed(matcher, tokenizer)[token]:
            return (tokenizer.token_bytes(token) or b"").decode(errors="replace")
        matcher.accept(token)
        assert not matcher.problem
    return None


def random_answer(tokenizer: Tokenizer, answer: str, seed: int, most: int = 2000) -> str | None:
    """Text of a walk's tokens, None if it did not end."""
    ids = random_turn(tokenizer, Constraint(tokenizer, answer, raw=True), seed, most=most)
    return None if ids is None else tokenizer.decode(ids[:-1])


def random_turn(
    tokenizer: Tokenizer, constraint: Constraint, seed: int, begin: str = "", most: int = 2000
) -> list[int] | None:
    """Ids of a walk, the one that ends it included; None if it did not end.

    What closes something is taken for half of the time where it may come, so that texts end.
    """
    rng = Random(seed)
    matcher = constraint.matcher()
    closing = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) in _CLOSING]
    ids = ids_of(tokenizer, begin)
    for token in ids:
        matcher.accept(token)
    while len(ids) < most:
        may_come = allowed(matcher, tokenizer)
        assert not matcher.problem and may_come.any(), tokenizer.decode(ids)
        stops = [i for i in tokenizer.stop_ids if may_come[i]]
        ends = stops or [i for i in closing if may_come[i]]
        some = ends if stops or (ends and rng.random() < 0.5) else np.flatnonzero(may_come)
        ids.append(int(rng.choice(list(some))))
        if stops:
            return ids
        matcher.accept(ids[-1])
    return None


_CLOSING = (b"<", b"</", b'"', b"}", b"]")
