"""Low-rank factors: what they compute, and their gradients beside a dequantised model's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sample
from flax import nnx

from gptoss_jax import mxfp4, sharding
from gptoss_jax.errors import UserError
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.transformer import GptOss, parameter
from gptoss_jax.mxfp4 import MXFP4

ADAPTER = Adapter(rank=3, alpha=5.0, targets=TARGETS)
SHAPES = {name: sample.SHAPES[name] for name in ("narrow", "one_kv_head")}
ROWS = {"few": (1, 9), "many": (2, 40)}  # up to 16 rows and more are two forms of the experts


@functools.cache
def base(shape: str) -> GptOss:
    """float32 with packed experts, wide enough that every part matters."""
    config = dataclasses.replace(SHAPES[shape], initializer_range=0.1)
    dtype = jnp.dtype("float32")
    model = GptOss(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(3))
    for layer in model.layers:
        # No row goes to the first two experts.
        bias = layer.moe.b_router_E
        bias.set_value(bias[...].at[:2].set(-1e4))
    return model


def values(model: GptOss, adapter: Adapter = ADAPTER) -> dict[str, jax.Array]:
    """As in the middle of training: nothing is zero."""
    rng = np.random.default_rng(0)
    shapes = lora.trained_shapes(model, adapter)
    return {
        path: jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32) for path, shape in shapes.items()
    }


def merged(model: GptOss, adapter: Adapter, given: dict[str, jax.Array]) -> GptOss:
    """A model of float arrays with the factors multiplied out: the meaning, written once more."""
    copy = jax.tree.map(lambda x: x, model)
    for layer in copy.layers:
        for node in (layer.moe.w_gate_up_EDF, layer.moe.w_down_EFD):
            node.set_value(mxfp4.decode(node.get_value(), jnp.float32))
    for path, a in given.items():
        stem, _, field = path.rpartition(".")
        if field == "b":
            continue
        node = parameter(copy, path if field != "a" else stem)
        if field != "a":
            node.set_value(a)
            continue
        b, high = given[f"{stem}.b"], jax.lax.Precision.HIGHEST
        spec = "ro,ri->oi" if a.ndim == 2 else "ero,eri->eio"
        added = jnp.einsum(spec, b, a, precision=high)
        node.set_value(node[...] + adapter.alpha / adapter.rank * added)
    return copy


def tokens(model: GptOss, rows: str) -> jax.Array:
    batch, length = ROWS[rows]
    drawn = np.random.default_rng(1).integers(0, model.config.vocab_size, (batch, length))
    return jnp.asarray(drawn, jnp.int32)


def loss(model: GptOss, tokens_BT: jax.Array) -> jax.Array:
    logits_BTV = model.unembed(model.hidden(tokens_BT)[0])
    chosen = jnp.take_along_axis(logits_BTV[:, :-1], tokens_BT[:, 1:, None], axis=-1)
    return (jax.nn.logsumexp(logits_BTV[:, :-1], axis=-1) - chosen[..., 0]).mean()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_a_dequantised_model(shape, rows):
    model, given = base(shape), values(base(shape))
    tokens_BT = tokens(model, rows)

    def adapted_loss(given):
        return loss(lora.attach(model, ADAPTER, given), tokens_BT)

    def merged_loss(given):
        return loss(merged(model, ADAPTER, given), tokens_BT)

    ours, value = jax.jit(jax.grad(adapted_loss))(given), jax.jit(adapted_loss)(given)
    theirs, its = jax.jit(jax.grad(merged_loss))(given), jax.jit(merged_loss)(given)
    np.testing.assert_allclose(value, its, rtol=1e-5)
    for path, expected in theirs.items():
        largest = float(jnp.abs(expected).max())
        assert largest > 0, path
        error = float(jnp.abs(ours[path] - expected).max()) / largest
        assert error <= 1e-5, (path, error)
        if "EDF" in path or "EFD" in path:
            assert not np.asarray(ours[path])[:2].any()  # of experts without a row


def test_sinks_are_applied_as_they_were_trained():
    """In float32, whatever the base has them in."""
    model = jax.tree.map(lambda x: x, base("narrow"))
    path = "layers.1.attention.sinks_N"
    parameter(model, path).set_value(parameter(model, path)[...].astype(jnp.bfloat16))
    adapter = dataclasses.replace(ADAPTER, targets=("sinks",))
    given = {p: v + 1.001 for p, v in lora.begin(model, adapter, 0).items()}
    after = lora.attach(model, adapter, given)
    np.testing.assert_array_equal(parameter(after, path)[...], given[path])
    assert (given[path].astype(jnp.bfloat16).astype(jnp.float32) != given[path]).any()


def test_computing_layers_again_changes_no_gradient():
    """Frozen weights, which get no gradient, included."""
    model, given = base("narrow"), values(base("narrow"))
    tokens_BT = tokens(model, "few")

    def gradient(remat):
        def loss(given):
            adapted = lora.attach(model, ADAPTER, given)
            return adapted.unembed(adapted.hidden(tokens_BT, remat=remat)[0]).std()

        return jax.jit(jax.grad(loss))(given)

    kept, again = gradient(False), gradient(True)
    for path, expected in kept.items():
        largest = float(jnp.abs(expected).max())
        assert largest > 0, path
        assert float(jnp.abs(again[path] - expected).max()) <= 1e-5 * largest, path


def test_a_new_adapter_changes_nothing():
    model = base("narrow")
    begun = lora.begin(model, ADAPTER, seed=0)
    adapted = lora.attach(model, ADAPTER, begun)
    np.testing.assert_array_equal(adapted(tokens(model, "many")), model(tokens(model, "many")))
    assert all(np.asarray(begun[path]).any() for path in begun if path.endswith(".a"))


def test_every_target_learns_from_the_first_steps():
    """At the beginning the gradient of `a` is zero because `b` is; one step later none is."""
    model = base("narrow")
    begun = lora.begin(model, ADAPTER, seed=0)
    gradient = jax.jit(
        jax.grad(lambda given: loss(lora.attach(model, ADAPTER, given), tokens(model, "many")))
    )
    first = gradient(begun)
    for path, value in first.items():
        assert np.asarray(value).any() == (not path.endswith(".a")), path
    moved = {path: begun[path] - 0.1 * first[path] for path in begun}
    assert all(np.asarray(value).any() for value in gradient(moved).values())


def test_targets_and_layers_are_what_the_config_names():
    model = base("narrow")
    adapter = Adapter(rank=2, alpha=2.0, targets=("q", "down"), layers=(1, 3))
    assert set(lora.trained_shapes(model, adapter)) == {
        f"layers.{layer}.{weight}.{factor}"
        for layer in (1, 3)
        for weight in ("attention.w_q_AD", "moe.w_down_EFD")
        for factor in "ab"
    }


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("rank", 0, r"lora.rank: 0 must be at least 1"),
        ("alpha", 0.0, r"lora.alpha: 0.0 must be positive"),
        ("dropout", 1.0, r"lora.dropout: 1.0"),
        ("targets", ("q", "query"), r"lora.targets: 'query' is none of q, k"),
        ("targets", (), r"lora.targets: empty"),
        ("layers", (1, 9), r"lora.layers: 9 is none of the 4 layers"),
    ],
)
def test_what_fits_no_model_is_one_line(field, value, error):
    with pytest.raises(UserError, match=error):
        adapter = dataclasses.replace(Adapter(rank=2, alpha=2.0), **{field: value})
        lora.trained_shapes(base("narrow"), adapter)


def test_rslora_scales_by_the_root_of_the_rank():
    assert Adapter(rank=4, alpha=8.0).scale == 2.0
    assert Adapter(rank=4, alpha=8.0, rslora=True).scale == 4.0


@pytest.mark.parametrize("targets", [("q", "o", "unembedding"), ("gate_up",), ("down",)], ids=str)
def test_dropout_is_of_the_factors_inputs_alone(targets):
    """What is dropped changes with the key; without factors' values nothing is."""
    model = base("narrow")
    adapter = Adapter(rank=2, alpha=2.0, dropout=0.5, targets=targets)
    given = values(model, adapter)
    ids = tokens(model, "many")

    def logits(given, seed):
        adapted = lora.attach(model, adapter, given)
        return lora.with_dropout(adapted, jax.random.key(seed))(ids)

    one, same, other = logits(given, 0), logits(given, 0), logits(given, 1)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    nothing = {path: jnp.zeros_like(value) for path, value in given.items()}
    np.testing.assert_array_equal(logits(nothing, 0), model(ids))


def test_dropout_keeps_the_mean():
    model = base("narrow")
    adapter = Adapter(rank=2, alpha=2.0, dropout=0.25, targets=("unembedding",))
    adapted = lora.attach(model, adapter, values(model, adapter))
    x_RD = jnp.ones((1, model.config.hidden_size))
    weight = adapted.unembedding_VD.get_value()
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jax.vmap(lambda key: dataclasses.replace(weight, key=key).addition(x_RD))(keys)
    plain = weight.addition(x_RD)
    assert float(jnp.abs(many.mean(0) - plain).max()) < 0.1 * float(jnp.abs(plain).max())
    assert float(many.std(0).max()) > 0


def test_an_expert_drops_whole_inputs_and_keeps_the_mean():
    model = base("narrow")
    adapter = Adapter(rank=3, alpha=2.0, dropout=0.25, targets=("down",))
    given = values(model, adapter)
    adapted = lora.attach(model, adapter, given)

    def dropped(seed):
        weight = lora.with_dropout(adapted, jax.random.key(seed)).layers[1].moe.w_down_EFD
        return np.asarray(weight.get_value().a)

    a = np.asarray(given["layers.1.moe.w_down_EFD.a"])
    many = np.stack([dropped(seed) for seed in range(200)])
    kept = many != 0
    assert (kept == kept[:, :, :1]).all()
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(many[kept], np.broadcast_to(a / 0.75, many.shape)[kept], rtol=1e-6)
    assert (kept[0] != kept[1]).any()
    assert (kept[0][0] != kept[0][1]).any()  # one expert's are not the other's


def test_devices_with_other_experts_drop_others(monkeypatch):
    """One with other columns of the same expert does not."""
    model = base("narrow")
    adapter = Adapter(rank=3, alpha=2.0, dropout=0.25, targets=("down",))
    adapted = lora.attach(model, adapter, values(model, adapter))
    split = dataclasses.replace(sharding.current(model.config), experts=("expert",))
    monkeypatch.setattr(sharding, "current", lambda config: split)

    def kept(on: dict) -> np.ndarray:
        monkeypatch.setattr(sharding, "place", lambda axes: on.get(axes, 0))
        weight = lora.with_dropout(adapted, jax.random.key(0)).layers[1].moe.w_down_EFD
        return np.asarray(weight.get_value().a) != 0

    assert (kept({("expert",): 0}) != kept({("expert",): 1})).any()
    assert (kept({("tensor",): 0}) == kept({("tensor",): 1})).all()


def test_packed_experts_stay_packed():
    model = base("narrow")
    adapted = lora.attach(model, ADAPTER, values(model))
    weight = adapted.layers[0].moe.w_down_EFD.get_value()
    assert isinstance(weight.base, MXFP4)
    assert weight.base.blocks is model.layers[0].moe.w_down_EFD.get_value().blocks
