"""Experts, rows and routings that every form of the mixture of experts is tested with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import mxfp4
from gptoss_jax.kernels.moe import reference
from gptoss_jax.kernels.moe.experts import Experts

EXPERTS, HIDDEN, WIDTH, ACTIVE = 6, 96, 160, 3
# Of the largest output. float32 sums in another order; bfloat16 outputs rounded before their sum.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
reference_moe = jax.jit(reference.moe)


@functools.cache
def make_experts(
    kind: str, dtype: str = "float32", hidden: int = HIDDEN, width: int = WIDTH
) -> Experts:
    """Packed, or the same values as arrays; gates and ups on both sides of the clamp."""
    rng = np.random.default_rng(0)

    def normal(*shape, std):
        return jnp.asarray(rng.normal(scale=std, size=shape), jnp.float32)

    def weight(*shape, std):
        packed = mxfp4.encode(normal(*shape, std=std))
        return packed if kind == "packed" else mxfp4.decode(packed, jnp.dtype(dtype))

    return Experts(
        weight(EXPERTS, hidden, 2 * width, std=0.5),
        normal(EXPERTS, 2 * width, std=1.0),
        weight(EXPERTS, width, hidden, std=0.1),
        normal(EXPERTS, hidden, std=1.0),
        alpha=1.702,
        limit=7.0,
    )


def make_rows(rows: int, dtype: str = "float32", hidden: int = HIDDEN):
    rng = np.random.default_rng(rows)
    weight = rng.dirichlet(np.ones(ACTIVE), rows)
    return jnp.asarray(rng.normal(size=(rows, hidden)), jnp.dtype(dtype)), jnp.asarray(
        weight, jnp.float32
    )


def routing(pattern: str, rows: int) -> np.ndarray:
    """Distinct expert ids [R, X] within a row; ids from E on are no expert."""
    rng = np.random.default_rng(rows + 1)
    chosen = np.stack([rng.permutation(EXPERTS)[:ACTIVE] for _ in range(rows)])
    match pattern:
        case "one_set":  # three experts take every row, the others none
            chosen[:] = [4, 0, 5]
        case "first_and_last_empty":
            chosen = np.stack([1 + rng.permutation(EXPERTS - 2)[:ACTIVE] for _ in range(rows)])
        case "skewed":  # one expert takes every row
            chosen = np.stack([1 + rng.permutation(EXPERTS - 1)[:ACTIVE] for _ in range(rows)])
            chosen[:, 1] = 0
        case "padded":  # every other row, the first and the last among them
            chosen[::2] = EXPERTS
            chosen[-1] = EXPERTS
        case "partly_none":  # a row's second choice is no expert
            chosen[:, 1] = EXPERTS + 3
        case "all_padded":
            chosen[:] = EXPERTS
    return chosen.astype(np.int32)


PATTERNS = [
    *("spread", "one_set", "first_and_last_empty", "skewed", "padded", "partly_none", "all_padded")
]


def check(actual, expected, dtype: str) -> None:
    assert actual.dtype == jnp.float32
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
