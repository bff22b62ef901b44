"""The device's programs with one greedy sequence, for measuring them without an engine."""

import jax
import numpy as np

from gptoss_jax.inference.decode import Rules, State
from gptoss_jax.inference.programs import Programs
from gptoss_jax.inference.sampling import Sampling
from gptoss_jax.inference.scheduler import pages_for
from gptoss_jax.model.cache import Cache, Places


def fresh_state(programs: Programs, positions: int) -> State:
    """An empty sequence that has room for so many positions."""
    pages = pages_for(positions)
    layers = programs.pools(pages, 1, jax.default_backend())()
    places = jax.tree.map(np.asarray, Places.in_turn(1, pages))
    nothing = np.zeros((1,), np.int32)
    return State(Cache(layers, places, nothing), nothing, np.zeros((1,), bool))  # pyright: ignore[reportArgumentType]


def endless(vocab_size: int) -> Rules:
    """Greedy, and no token ends the sequence."""
    nothing_V = np.zeros((vocab_size,), bool)
    limit_1, anything = np.full((1,), 2**30, np.int32), np.zeros((1, 0), np.int32)
    return Rules(Sampling.of([None]), nothing_V, nothing_V, limit_1, anything)  # pyright: ignore[reportArgumentType]
