"""Rows sent to the devices of their experts, against one device that has them all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gptoss_jax import sharding
from gptoss_jax.kernels.moe import Experts, reference
from gptoss_jax.kernels.moe.gradient import moe
from gptoss_jax.model import dispatch

ROWS, HIDDEN, WIDTH, EXPERTS, CHOICES, PARTS = 48, 16, 8, 16, 3, 4
AXES = ("fsdp",)


def emulated(x, into, sizes, axes):
    """What `ragged_all_to_all` does, by all devices seeing everything; XLA:CPU has none."""
    begin, length, landing, received = (jax.lax.all_gather(a, axes) for a in sizes)
    everyone, here = jax.lax.all_gather(x, axes), jax.lax.axis_index(axes)
    slot = jnp.arange(len(into))
    for sender in range(PARTS):
        at = slot - landing[sender, here]
        is_sent = (at >= 0) & (at < length[sender, here])
        taken = everyone[sender][jnp.clip(begin[sender, here] + at, 0, len(x) - 1)]
        into = jnp.where(is_sent[:, None], taken, into)
    agreed = (received[here] == length[:, here]).all()
    return jnp.where(agreed, into, jnp.nan)


def routes(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    scores = rng.random((ROWS, EXPERTS))
    if kind == "one device":
        scores[:, 4:8] += 1
    chosen = np.argsort(scores, axis=1)[:, -CHOICES:].astype(np.int32)
    if kind == "padded":
        chosen[rng.random(chosen.shape) < 0.3] = EXPERTS
        chosen[:12] = EXPERTS  # a device that sends nothing
    return chosen


@functools.cache
def arguments():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    experts = Experts(
        normal(EXPERTS, HIDDEN, 2 * WIDTH),
        normal(EXPERTS, 2 * WIDTH),
        normal(EXPERTS, WIDTH, HIDDEN),
        normal(EXPERTS, HIDDEN),
        alpha=1.702,
        limit=7.0,
    )
    return normal(ROWS, HIDDEN), jnp.abs(normal(ROWS, CHOICES)), experts, normal(ROWS, HIDDEN)


def over_devices(way):
    mesh = jax.make_mesh((PARTS,), AXES, (jax.sharding.AxisType.Auto,))

    def local(x, chosen, weight, experts):
        mixture = functools.partial(moe, experts=experts)
        return way(x, chosen, weight, mixture, EXPERTS // PARTS, AXES)

    split = P("fsdp")
    specs = (split, split, split, jax.tree.map(lambda _: split, arguments()[2]))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False), mesh


@pytest.mark.parametrize("received", [pytest.param(2**14, marks=pytest.mark.slow), 96])
@pytest.mark.parametrize("kind", ["uniform", "one device", "padded"])
@pytest.mark.parametrize("way", ["_gathering", "_sending"])
def test_values_and_gradients_are_those_of_one_device(monkeypatch, way, kind, received):
    monkeypatch.setattr(sharding, "exchanged", emulated)
    monkeypatch.setattr(dispatch, "_MAX_RECEIVED", received)
    x, weight, experts, out = arguments()
    chosen = jnp.asarray(routes(kind))
    apart, mesh = over_devices(getattr(dispatch, way))

    def loss(function):
        def summed(x, weight, experts):
            y = function(x, chosen, weight, experts)
            return (y * out).sum(), y

        return jax.jit(jax.value_and_grad(summed, argnums=(0, 1, 2), has_aux=True))

    (_, expected), gradients = loss(reference.moe)(x, weight, experts)
    with jax.set_mesh(mesh):
        (_, got), its = loss(apart)(x, weight, experts)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.ptp(expected))
    for mine, theirs in zip(jax.tree.leaves(its), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.ptp(theirs))


@pytest.mark.parametrize(
    ("parts", "choices", "itemsize", "sends"),
    # Bytes a row by hand: 2 x 4 x 2 x 7/8 = 14 against 7 x 6 = 42; 8 and 6; 10.7 and 12; 2 and 6.
    [(8, 4, 2, True), (2, 4, 2, False), (3, 4, 2, True), (2, 1, 2, True)],
)
def test_rows_are_sent_where_that_moves_fewer_bytes(parts, choices, itemsize, sends):
    assert dispatch._sending_moves_less(parts, choices, itemsize) is sends
