"""What the compiled programs hold at the published widths, by `memory_analysis()`; none is run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gptoss_jax.kernels.moe import xla
from gptoss_jax.kernels.moe.experts import Experts
from gptoss_jax.kernels.moe.pairs import tile_size
from gptoss_jax.model.cache import Cache
from gptoss_jax.model.config import PRESETS
from gptoss_jax.model.transformer import abstract
from gptoss_jax.mxfp4 import MXFP4

EXPERTS, HIDDEN, WIDTH, ACTIVE = 32, 2880, 2880, 4
PACKED_BYTES = EXPERTS * 3 * HIDDEN * WIDTH * 17 // 32
ONE_EXPERT_F32 = 4 * HIDDEN * 2 * WIDTH
GIB = 2**30
KIND = {"float32": 4, "bfloat16": 2}


def struct(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def temporaries(function, *args, **options) -> int:
    compiled = jax.jit(function, **options).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.fast
@pytest.mark.parametrize("dtype", KIND)
@pytest.mark.parametrize("rows", [1, 16, 512])
def test_experts_hold_one_dequantised_expert(rows, dtype):
    experts = Experts(
        MXFP4.abstract(EXPERTS, HIDDEN, 2 * WIDTH),
        struct(EXPERTS, 2 * WIDTH, dtype="bfloat16"),
        MXFP4.abstract(EXPERTS, WIDTH, HIDDEN),
        struct(EXPERTS, HIDDEN, dtype="bfloat16"),
        alpha=1.702,
        limit=7.0,
    )
    args = (
        struct(rows, HIDDEN, dtype=dtype),
        struct(rows, ACTIVE, dtype="int32"),
        struct(rows, ACTIVE),
    )
    # Each step: its rows, 2F and F wide, in float32, twice. All: rows in and out, and with many
    # rows the pairs' outputs in the compute dtype and gathered back in float32.
    tile = tile_size(rows * ACTIVE, EXPERTS) if rows > xla.FEW_ROWS else rows
    step = 2 * 4 * tile * (2 * HIDDEN + 3 * WIDTH)
    pairs = (rows * ACTIVE + tile) * HIDDEN * (4 + KIND[dtype]) if rows > xla.FEW_ROWS else 0
    activations = step + pairs + 2 * 4 * rows * HIDDEN
    temporary = temporaries(xla.moe, *args, experts)
    assert temporary <= ONE_EXPERT_F32 + activations
    assert temporary < PACKED_BYTES  # no copy of the layer's weights


LONG, CHUNK = 32_768, 512


def two_layers(dtype: str):
    """Real attention widths; small experts and vocabulary, whose sizes are not what is asked."""
    config = dataclasses.replace(
        PRESETS["20b"], num_layers=2, layer_types=(), num_experts=4, expert_width=64, vocab_size=512
    )
    return abstract(config, dtype=jnp.dtype(dtype)), config


@pytest.mark.parametrize("dtype", KIND)
def test_prefill_of_32768_tokens_in_chunks(dtype):
    model, config = two_layers(dtype)
    cache = jax.eval_shape(lambda: Cache.empty(config, 1, LONG + CHUNK, jnp.dtype(dtype)))
    tokens, added = struct(1, CHUNK, dtype="int32"), struct(1, dtype="int32")

    def extend(model, tokens, added, cache):
        return model.extend(tokens, added, cache)

    temporary = temporaries(extend, model, tokens, added, cache, donate_argnums=3)
    # Far less than the prompt's own activations: chunks hold their 512 rows and blocks of keys.
    assert temporary < GIB // 2


@pytest.mark.parametrize("dtype", KIND)
def test_forward_of_32768_tokens(dtype):
    model, _ = two_layers(dtype)
    tokens = struct(1, LONG, dtype="int32")
    assert temporaries(lambda model, tokens: model(tokens), model, tokens) < 3 * GIB
