"""The device's functions as programs: of one device, or of a mesh."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptoss_jax import sharding
from gptoss_jax.inference import decode as device
from gptoss_jax.inference.decode import Rules, State
from gptoss_jax.inference.penalties import renewed
from gptoss_jax.inference.scheduler import VERIFIED
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.model.cache import Cache, LayerCache
from gptoss_jax.model.transformer import GptOss


class Programs:
    """The functions of `inference.decode`, jitted.

    The state is donated. Over a mesh each is one `shard_map` of all its axes, whose collectives are
    those that the model names.

    Attributes:
      mesh: None for one device.
      batch: PartitionSpec of arrays that begin with the batch.
      rules: PartitionSpecs of `Rules`, a prefix of its tree.
      state: PartitionSpecs of `State`, a prefix of its tree.
    """

    def __init__(self, model: GptOss, mesh: Mesh | None, eight_bit: EightBit | None = None):
        """Prepares for a model.

        Args:
          model: the network; may be abstract.
          mesh: where its parameters lie, as `sharding.parameter_specs` says.
          eight_bit: the format of pages; None: what activations are computed in.
        """
        self.mesh = mesh
        self._eight_bit: EightBit | None = eight_bit
        self._like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
        self._split = split = sharding.split_of(model.config, dict(mesh.shape) if mesh else {})
        self.batch = sharding.batch_spec(split)
        self.rules: Any = Rules(self.batch, P(), P(), self.batch, self.batch, P(), self.batch)  # pyright: ignore[reportArgumentType]
        cache: Any = Cache(sharding.cache_spec(split), self.batch, self.batch)  # pyright: ignore[reportArgumentType]
        self.state: Any = State(cache, self.batch, self.batch, self.batch)  # pyright: ignore[reportArgumentType]
        self._parameters = sharding.parameter_specs(self._like, split)
        self._results = (self.state, P(), P())

    @property
    def parts(self) -> int:
        """How many devices have sequences of their own."""
        return self._ways(self._split.batch)

    def pools(self, pages: int, rings: int, platform: str) -> Any:
        """The program that makes the empty cache: so many pages and rings of each part."""
        sizes: Any = {"pages": pages, "rings": rings, "platform": platform}
        sizes["eight_bit"] = self._eight_bit
        layers = sharding.cache_spec(self._split)
        return jax.jit(self._over(lambda: device.pools(self._like, **sizes), (), layers))

    def cache_bytes(self, pages: int, rings: int, platform: str) -> int:
        """Of what `pools` makes, on one device."""
        config, dtype = self._like.config, device.cache_dtype(self._like, platform)
        heads = -(-config.num_kv_heads // self._ways(self._split.heads))
        return LayerCache.nbytes(config, pages, rings, dtype, heads, eight_bit=self._eight_bit)

    @functools.cached_property
    def prefill(self) -> Any:
        """The program of a chunk of prompts."""
        specs = (self._parameters, self.batch, self.batch, self.state, self.rules)
        return jax.jit(self._over(device.prefill, specs, self._results), donate_argnums=3)

    @functools.cached_property
    def decode(self) -> Any:
        """The program of several tokens a call."""
        specs = (self._parameters, self.state, self.rules, P())
        return jax.jit(self._over(device.decode, specs, self._results), donate_argnums=1)

    @functools.cached_property
    def forward(self) -> Any:
        """The program of a chunk of prompts, or of one token a row, but for what comes next."""
        specs = (self._parameters, self.batch, self.batch, self.state, self.rules.adapters)
        out = (self.state, self.batch)
        return jax.jit(self._over(device.forward, specs, out), donate_argnums=3)

    @functools.cached_property
    def choose(self) -> Any:
        """The program of what comes next."""
        function = functools.partial(device.choose, batch_axes=self._split.batch)
        specs = (self.batch, self.batch, self.state, self.rules)
        return jax.jit(self._over(function, specs, self._results), donate_argnums=2)

    @functools.cached_property
    def verify(self) -> Any:
        """The program of several guessed tokens a call."""
        specs = (self._parameters, self.batch, self.batch, self.state, self.rules)
        return jax.jit(self._over(device.verify, specs, self._results), donate_argnums=3)

    @functools.cached_property
    def draft(self) -> Any:
        """The program that guesses for a larger model."""
        specs = (self._parameters, self.batch, self.batch, self.state, self.rules)
        function = functools.partial(device.draft, count=VERIFIED - 1)
        return jax.jit(self._over(function, specs, self._results), donate_argnums=3)

    @functools.cached_property
    def renewed_tally(self) -> Any:
        """The program that makes the tally of a call whose rows are others than before."""
        function = functools.partial(renewed, vocab_size=self._like.config.vocab_size)
        return jax.jit(self._over(function, (self.batch, self.batch, self.batch), self.batch))

    def placed(self, value: Any, specs: Any) -> Any:
        """The host's arrays, the same in every process, where the programs take them.

        Args:
          value: a tree of arrays; those on the devices already are left there.
          specs: PartitionSpecs, a prefix of the tree.
        """
        if self.mesh is None:
            return value
        mesh = self.mesh

        def place(spec: P, part: Any) -> Any:
            return jax.tree.map(lambda x: _spread(x, NamedSharding(mesh, spec)), part)

        return jax.tree.map(place, specs, value)

    def _ways(self, axes: sharding.Axes) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes) if self.mesh else 1

    def _over(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        if self.mesh is None:
            return function
        # What is replicated in the results is so by the code's own sums and gathers.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def _spread(x: np.ndarray | jax.Array, where: NamedSharding) -> jax.Array:
    """As `device_put`, which has processes compare what they have: a collective at every call."""
    if isinstance(x, jax.Array):
        return x
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])
