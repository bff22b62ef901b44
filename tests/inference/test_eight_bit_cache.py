"""Engines whose pages are of 8 bits: near the model's logits, and as exact as the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    CONFIG,
    answers,
    displacements,
    engine_of,
    finished,
    full_logits,
    over_mesh,
    prompt,
)

from gptoss_jax.errors import UserError
from gptoss_jax.inference import engine as engine_module
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Pace
from gptoss_jax.kernels.attention.eight_bit import EIGHT_BIT, Scaled, dtype_of
from gptoss_jax.model.cache import LayerCache

KINDS = pytest.mark.parametrize("kind", EIGHT_BIT)


def asked_of(count: int) -> list[Request]:
    """Half of them begin with the same 40 tokens."""
    begun = prompt(40, 1)
    return [
        Request(begun[: 40 * (i % 2)] + prompt(8 + i, 2 + i), 20, temperature=i % 3 / 2, seed=i)
        for i in range(count)
    ]


@KINDS
def test_logits_are_near_those_of_whole_precision(model, kind):
    """int8 has a step of 1/127 of a position's largest value, fp8 three bits of each value."""
    ids, engine = prompt(60), engine_of(model, cache=kind)
    (sequence,) = finished(engine, [Request(ids, 12, temperature=0.0, logprobs=20)])
    exact_TV = np.asarray(full_logits(model, sequence.tokens))[len(ids) - 1 : -1]
    expected_TV = np.asarray(jax.nn.log_softmax(exact_TV))
    errors = [
        abs(value - row_V[id_])
        for place, row_V in zip(sequence.logprobs, expected_TV, strict=True)
        for id_, value in place.likeliest
    ]
    error = max(errors) / np.ptp(exact_TV)
    print(f"{kind}: {error:.1e} of the logits' range")
    assert 1e-5 < error < {"int8": 0.01, "fp8": 0.05}[kind]


@KINDS
@pytest.mark.parametrize("shape", [None, {"expert": 2}, {"data": 2}])
def test_answers_do_not_depend_on_what_else_runs(model, small_pages, kind, shape):
    """Kept prefixes, displaced sequences and meshes: what is read is what was rounded before."""
    asked = asked_of(6)
    alone = engine_of(model, cache=kind, max_sequences=1, reuse=False)
    expected = [answers(alone, [one])[0] for one in asked]
    held = over_mesh(model, shape) if shape else model
    parts = 2 if shape == {"data": 2} else 1
    engine = engine_of(held, cache=kind, max_sequences=2 * parts, pages=6 * parts)
    displaced = displacements(engine)
    assert answers(engine, asked) == expected
    assert answers(engine, asked) == expected
    assert displaced
    engine.audit()


@KINDS
def test_guesses_change_nothing(model, small_pages, monkeypatch, kind):
    asked = asked_of(3)
    expected = answers(engine_of(model, cache=kind), asked)
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    monkeypatch.setattr(engine_module, "_guess", lambda sequence, most: [5, 6][:most])
    engine = engine_of(model, cache=kind, speculate=True)
    assert answers(engine, asked) == expected
    assert engine.timings.guessed_tokens


@pytest.mark.fast
@KINDS
def test_pages_are_of_8_bits_and_rings_are_not(model, small_pages, kind):
    engine = engine_of(model, cache=kind, reuse=False)
    ring, page = engine._runner._layers
    assert ring.k_PKHS.dtype == jnp.float32
    assert isinstance(page.v_PKHS, Scaled) and page.v_PKHS.x_PKHS.dtype == dtype_of(kind)
    counted = LayerCache.nbytes(CONFIG, 12, 2, jnp.dtype(jnp.float32), eight_bit=kind)
    assert sum(x.nbytes for x in jax.tree.leaves(engine._runner._layers)) == counted


@pytest.mark.fast
def test_another_format_is_refused(model):
    with pytest.raises(UserError, match="cache is 'int4'; it must be None, int8 or fp8"):
        engine_of(model, cache="int4")
