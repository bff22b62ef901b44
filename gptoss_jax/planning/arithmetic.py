"""By counting: what a device holds, and what one decode step must read and multiply."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr, tree_leaves_with_path

from gptoss_jax import sharding
from gptoss_jax.inference.memory import rings_for
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.kernels.attention.xla import pages_a_block
from gptoss_jax.kernels.moe import grouped
from gptoss_jax.kernels.moe.pairs import tile_size
from gptoss_jax.kernels.moe.xla import blocks_of
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import Adapter
from gptoss_jax.model.cache import PAGE, LayerCache, pages_for, slot_bytes
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss, abstract

_DRAWS, _FEWEST_DRAWS = 4096, 32
# Random numbers that are drawn for one answer at most, where that leaves the fewest draws.
_NUMBERS = 2**28
_OF_KV_HEADS = ("w_k_CD", "b_k_C", "w_v_CD", "b_v_C")
_EXPERTS = ("w_gate_up_EDF", "b_gate_up_EF", "w_down_EFD", "b_down_ED")
_CACHE_DTYPE = jnp.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a checkpoint has its weights, and with it the model that is loaded from it.

    Attributes:
      packed: whether the experts are.
      dtype: of all others.
    """

    packed: bool = True
    dtype: str = "bfloat16"

    def model(self, config: Config, dtype: jnp.dtype = jnp.bfloat16) -> GptOss:
        """What is loaded, with `jax.ShapeDtypeStruct` leaves, to compute in `dtype`."""
        kept = jnp.dtype(self.dtype)
        return abstract(config, dtype=dtype, param_dtype=kept, packed_experts=self.packed)


PUBLISHED = Stored()


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes of the busiest device, without padding.

    Attributes:
      weights: its part of the parameters.
      kv_cache: its part of the cache.
      decode_minimum: what one decode step of all sequences must read and write: the packed experts
        that are active, everything else of the weights but the embedding's unread rows, the keys
        and values of the whole context, and the logits. None in training.
      adapters: what is trained, if that is not the weights.
      optimizer: the two moments of what is trained.
    """

    weights: int
    kv_cache: int
    decode_minimum: int | None
    adapters: int = 0
    optimizer: int = 0

    @property
    def held(self) -> int:
        """All that is there between two steps."""
        return self.weights + self.kv_cache + self.adapters + self.optimizer


def count(
    config: Config,
    shape: Mapping[str, int],
    batch: int,
    context: int,
    cache: EightBit | None = None,
    stored: Stored = PUBLISHED,
) -> Bytes:
    """Counts for a network over a mesh.

    Args:
      config: the network.
      shape: axis sizes of the mesh.
      batch: sequences, over the whole mesh.
      context: positions of each.
      cache: the format of full layers' pages; None: bfloat16.
      stored: its weights.
    """
    split = sharding.split_of(config, shape)
    ways = _ways(shape)
    own = batch // ways(split.batch)
    sizes = _parameter_bytes(config, stored, split, ways)
    experts = sum(size for path, size in sizes.items() if any(name in path for name in _EXPERTS))
    table = sizes["embedding_VD"]
    dense = sum(sizes.values()) - experts - table
    if split.heads and not split.kv_heads:  # each device reads the rows of one head
        shared = sum(size for path, size in sizes.items() if path.endswith(_OF_KV_HEADS))
        dense -= shared - shared // config.num_kv_heads
    held = config.num_experts // ways(split.experts)
    active = _busiest(config, own, split, ways)
    kv_heads = -(-config.num_kv_heads // ways(split.heads))
    row = config.hidden_size * jnp.dtype(stored.dtype).itemsize
    read = _kv_read(config, own, context, kv_heads, cache)
    logits = own * config.vocab_size // ways(split.vocab) * 4
    return Bytes(
        weights=weights(config, shape, stored),
        kv_cache=kv_cache(config, shape, batch, context, cache),
        decode_minimum=round(experts * active / held) + dense + own * row + read + logits,
    )


def weights(config: Config, shape: Mapping[str, int], stored: Stored = PUBLISHED) -> int:
    """Bytes of one device's part of the parameters; arguments as `count` takes them."""
    split = sharding.split_of(config, shape)
    return sum(_parameter_bytes(config, stored, split, _ways(shape)).values())


def kv_cache(
    config: Config,
    shape: Mapping[str, int],
    batch: int,
    context: int,
    cache: EightBit | None = None,
) -> int:
    """Bytes of one device's part of the cache; arguments as `count` takes them."""
    split, ways = sharding.split_of(config, shape), _ways(shape)
    own = batch // ways(split.batch)
    heads = -(-config.num_kv_heads // ways(split.heads))
    pages = own * pages_for(context)
    rings = rings_for(own, pages)
    return LayerCache.nbytes(config, pages, rings, _CACHE_DTYPE, heads, eight_bit=cache)


def decode_flops(config: Config, shape: Mapping[str, int], batch: int, context: int) -> float:
    """Multiplications and additions that one decode step cannot but make on a device.

    Every sequence at its context's end, and as many rows to one device's experts as to another's.

    Args:
      config: the network.
      shape: axis sizes of the mesh.
      batch: sequences, over the whole mesh.
      context: positions of each.
    """
    split, ways = sharding.split_of(config, shape), _ways(shape)
    hidden, heads = config.hidden_size, ways(split.heads)
    queries = config.attention_width // heads
    keys = -(-config.num_kv_heads // heads) * config.head_dim
    projections = 2 * hidden * (queries + keys)
    router = hidden * config.num_experts
    chosen = config.experts_per_token * 3 * hidden * config.expert_width / ways(split.experts)
    layers = config.num_layers * (projections + router + chosen)
    attended = sum(_positions(config, layer, context) for layer in range(config.num_layers))
    logits = hidden * config.vocab_size // ways(split.vocab)
    # Of each weight one multiplication and one addition; of each position with its key and value.
    return 2 * batch / ways(split.batch) * (layers + 2 * queries * attended + logits)


def _positions(config: Config, layer: int, context: int) -> int:
    """That a layer attends to at a context's end."""
    window = config.window(layer)
    return context if window is None else min(window, context)


def count_training(
    config: Config,
    shape: Mapping[str, int],
    adapter: Adapter | None = None,
    stored: Stored = PUBLISHED,
) -> Bytes:
    """Counts what training keeps between steps.

    Args:
      config: the network.
      shape: axis sizes of the mesh.
      adapter: what is trained, beside weights that are not; None: float32 weights.
      stored: those weights.
    """
    split, ways = sharding.split_of(config, shape), _ways(shape)
    if adapter is None:
        trained = weights(config, shape, Stored(packed=False, dtype="float32"))
        return Bytes(trained, kv_cache=0, decode_minimum=None, optimizer=2 * trained)
    adapters = sum(
        4 * math.prod(sizes) // _parts(sharding.parameter_spec(path, split), ways)
        for path, sizes in lora.trained_shapes(stored.model(config), adapter).items()
    )
    return Bytes(weights(config, shape, stored), 0, None, adapters=adapters, optimizer=2 * adapters)


def _ways(shape: Mapping[str, int]) -> Callable[[sharding.Axes], int]:
    return lambda axes: math.prod(shape[axis] for axis in axes)


@functools.cache
def busiest(
    experts: int, active: int, rows: int, parts: int, copies: int = 1, tile: int | None = None
) -> float:
    """How many experts are active on the device that has most, expected under uniform routing.

    With a tile, how many tiles of so many (row, expert) pairs there are of them. Drawn 4,096 times
    (less often of many rows, which differ less) with a fixed seed: a closed form exists for the
    mean only, which is less.

    Args:
      experts: of a layer.
      active: of a row.
      rows: that go to the same experts.
      parts: devices that the experts are split over.
      copies: of these devices, each with rows of its own; the most of all is meant.
      tile: pairs.
    """
    rng = np.random.default_rng(0)
    most, draws = [], min(_DRAWS, max(_FEWEST_DRAWS, _NUMBERS // (rows * experts)))
    for _ in range(draws):
        scores = rng.random((rows, experts))
        chosen = np.argpartition(scores, active - 1, axis=1)[:, :active]
        pairs = np.bincount(chosen.reshape(-1), minlength=experts)
        rounds = -(-pairs // (tile or rows))
        most.append(rounds.reshape(parts, -1).sum(1).max())
    # The largest of so many draws: the i-th of n sorted ones is it with this probability.
    at_most = (np.arange(draws + 1) / draws) ** copies
    return float(np.sort(most) @ np.diff(at_most))


def decode_rounds(
    config: Config, shape: Mapping[str, int], batch: int, context: int
) -> dict[str, float]:
    """How often decode's loops go round in one step, and a kernel's tiles, by their scopes' names.

    On the busiest device, expected under uniform routing, every sequence at its context's end.
    """
    split, ways = sharding.split_of(config, shape), _ways(shape)
    own, held = batch // ways(split.batch), config.num_experts // ways(split.experts)
    _, block = blocks_of(own)  # each of which goes through the tiles of its own rows
    size = tile_size(block * config.experts_per_token, held)
    in_kernel = grouped.tile_size(own, config.experts_per_token, held)
    return {
        "decode_steps": 1,
        "active_experts": _busiest(config, own, split, ways),
        "expert_tiles": _busiest(config, block, split, ways, size),
        "active_tiles": _busiest(config, own, split, ways, in_kernel),
        "cache_pages": -(-context // (pages_a_block(own) * PAGE)),
    }


def _busiest(
    config: Config, rows: int, split: sharding.Split, ways, tile: int | None = None
) -> float:
    sizes = (config.num_experts, config.experts_per_token, rows, ways(split.experts))
    return busiest(*sizes, ways(split.batch), tile)


def _parameter_bytes(config: Config, stored: Stored, split: sharding.Split, ways) -> dict[str, int]:
    """Bytes of one device's part, by dotted path."""
    found = {}
    for path, nbytes in _whole_parameter_bytes(config, stored).items():
        spec = sharding.parameter_spec(path, split)
        found[path.replace(".value", "")] = nbytes // _parts(spec, ways)
    return found


@functools.cache  # tracing 36 layers takes a second
def _whole_parameter_bytes(config: Config, stored: Stored) -> Mapping[str, int]:
    leaves = tree_leaves_with_path(stored.model(config))
    return {
        keystr(path, simple=True, separator="."): leaf.size * leaf.dtype.itemsize
        for path, leaf in leaves
    }


def _parts(spec: P, ways) -> int:
    return math.prod(ways(_tuple(axes)) for axes in spec if axes)


def _tuple(axes) -> sharding.Axes:
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _kv_read(
    config: Config, batch: int, context: int, kv_heads: int, cache: EightBit | None
) -> int:
    def of(layer: int) -> int:
        eight_bit = cache if config.window(layer) is None else None
        slot = slot_bytes(config, _CACHE_DTYPE, eight_bit)
        return _positions(config, layer, context) * slot

    return batch * kv_heads * sum(map(of, range(config.num_layers)))
