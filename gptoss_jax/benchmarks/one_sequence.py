"""The device's programs with one greedy sequence, for measuring them without an engine."""

import jax
import numpy as np

from gptoss_jax.inference.decode import Rules, State
from gptoss_jax.inference.penalties import Tally
from gptoss_jax.inference.programs import Programs
from gptoss_jax.model.cache import Cache, Places, pages_for


def fresh_state(programs: Programs, positions: int) -> State:
    """An empty sequence that has room for so many positions."""
    pages = pages_for(positions)
    layers = programs.pools(pages, 1, jax.default_backend())()
    places = jax.tree.map(np.asarray, Places.in_turn(1, pages))
    nothing = np.zeros((1,), np.int32)
    cache, done = Cache(layers, places, nothing), np.zeros((1,), bool)  # pyright: ignore[reportArgumentType]
    return State(cache, nothing, done, Tally.none(1))  # pyright: ignore[reportArgumentType]


def endless(vocab_size: int) -> Rules:
    """Greedy, and no token ends the sequence."""
    return Rules.greedy(1, vocab_size, limit=2**30)
