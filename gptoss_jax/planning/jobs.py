"""What a slice is to do: generate, or train."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from gptoss_jax import sharding
from gptoss_jax.errors import UsageError
from gptoss_jax.inference.memory import FOR_PROGRAMS
from gptoss_jax.inference.scheduler import width_for
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.model.config import Config
from gptoss_jax.planning import arithmetic, program
from gptoss_jax.planning.arithmetic import PUBLISHED, Bytes, Stored
from gptoss_jax.planning.chips import GIB, Slice
from gptoss_jax.planning.program import Compiled
from gptoss_jax.training import spread
from gptoss_jax.training.settings import Settings, adapter_of, fields
from gptoss_jax.training.speed import training_flops

# A batch beyond this is a mistake: no slice holds so many sequences of a published model.
MOST_SEQUENCES = 65_536
# Guesses, for where no compiler is asked. Of what is held, and bytes that are always there: what
# the compilers show for both published models at batch 1.
_PADDING, _LEAST = 0.03, GIB // 2
# Bytes for each element of a prefill chunk's rows: 2.3 GiB at 64 x 512 rows of 20b on v5e.
_PREFILL = 26
# Arrays as large as all rows' logits: these, scaled, noise, sorted, and one more.
_OF_LOGITS = 5
# float32 arrays of the hidden width a layer keeps for each token.
_ACTIVATIONS = 16


@dataclasses.dataclass(frozen=True)
class Generate:
    """A batch of sequences of a context's length.

    Attributes:
      sizes: of the network.
      batch: sequences, over the whole mesh.
      context: positions of each.
      cache: the format of full layers' pages; None: bfloat16.
      stored: the weights.
    """

    sizes: Config
    batch: int
    context: int
    cache: EightBit | None = None
    stored: Stored = PUBLISHED

    def default_shape(self, where: Slice) -> dict[str, int]:
        """Of the mesh, where none is asked for: what the verbs that generate choose there."""
        return sharding.default_shape(self.sizes, where.devices, whole=not where.is_one_host)

    def check(self, shape: Mapping[str, int], devices: int) -> None:
        """Raises a UsageError for a mesh of no use here, or a batch or context there is not."""
        if self.batch > MOST_SEQUENCES:
            raise UsageError(f"--batch {self.batch}: at most {MOST_SEQUENCES:,}")
        if self.context > self.sizes.max_context:
            raise UsageError(f"--context {self.context}: the model has {self.sizes.max_context}")
        sharding.check(self.sizes, shape, devices)
        if shape.get("fsdp", 1) > 1:
            raise UsageError("fsdp is for --task train; use expert, tensor or data")
        if self.batch % shape.get("data", 1):
            raise UsageError(
                f"--batch {self.batch}: data={shape['data']} of the mesh does not divide it"
            )

    def count(self, shape: Mapping[str, int]) -> Bytes:
        """Bytes by arithmetic."""
        given = (self.batch, self.context, self.cache, self.stored)
        return arithmetic.count(self.sizes, shape, *given)

    def compiled(self, mesh: Mesh) -> Compiled:
        """By the compiler: decode and a prefill chunk."""
        given = (self.batch, self.context, self.cache, self.stored)
        return program.compile_generate(self.sizes, mesh, *given)

    def temporaries(self, shape: Mapping[str, int], counted: Bytes) -> float:
        """A guess of temporaries and padding, bytes a device."""
        split = sharding.split_of(self.sizes, shape)
        batch, vocab = (math.prod(shape[a] for a in axes) for axes in (split.batch, split.vocab))
        chunk = _PREFILL * width_for(self.context) * self.sizes.hidden_size
        logits = 4 * (self.batch // batch) * self.sizes.vocab_size // vocab
        return _PADDING * counted.held + _LEAST + chunk + _OF_LOGITS * logits

    def held(self, shape: Mapping[str, int]) -> int:
        """As `count(shape).held`, and much sooner counted."""
        cache = arithmetic.kv_cache(self.sizes, shape, self.batch, self.context, self.cache)
        return arithmetic.weights(self.sizes, shape, self.stored) + cache

    def needed(self, peak: int, held: int) -> float:
        """Of the capacity: the peak, or what an engine asks for that leaves programs their part."""
        return max(peak, held / (1 - FOR_PROGRAMS))

    def bound(self, shape: Mapping[str, int], where: Slice, counted: Bytes) -> float:
        """Tokens/s if decode's least bytes and dots ran at their rated speeds, at the same time."""
        assert counted.decode_minimum is not None
        flops = arithmetic.decode_flops(self.sizes, shape, self.batch, self.context)
        moving = counted.decode_minimum / where.chip.bandwidth
        return self.batch / max(moving, flops / where.chip.flops)

    def question(self) -> dict[str, Any]:
        """What the answer of a compiler depends on."""
        return {"task": "generate"} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Train:
    """Steps of a training config.

    Attributes:
      settings: the config.
      sizes: of its network.
      stored: the weights of its base.
    """

    settings: Settings
    sizes: Config
    stored: Stored = PUBLISHED

    def default_shape(self, where: Slice) -> dict[str, int]:
        """Of the mesh, where none is asked for."""
        return spread.default_shape(self.settings, self.sizes, where.devices)

    def check(self, shape: Mapping[str, int], devices: int) -> None:
        """Raises a UsageError for a mesh that is of no use here."""
        sharding.check(self.sizes, shape, devices)
        spread.check(self.settings, self.sizes, shape)

    def count(self, shape: Mapping[str, int]) -> Bytes:
        """Bytes by arithmetic: parameters and two moments of those that are trained; no cache."""
        adapter = adapter_of(self.settings)
        return arithmetic.count_training(self.sizes, shape, adapter, self.stored)

    def compiled(self, mesh: Mesh) -> Compiled:
        """By the compiler: a step."""
        return program.compile_train(self.settings, self.sizes, mesh, self.stored)

    def temporaries(self, shape: Mapping[str, int], counted: Bytes) -> float:
        """A guess, bytes a device: two gradients (this part's and the sum), and activations."""
        settings = self.settings
        split = sharding.split_of(self.sizes, shape)
        parts = settings.accumulation * math.prod(shape[axis] for axis in split.batch)
        tokens = settings.batch_size // parts * settings.data.sequence_length
        kept = 1 if settings.remat else _ACTIVATIONS
        layers = kept * self.sizes.num_layers + _ACTIVATIONS
        return counted.optimizer + 4 * tokens * layers * self.sizes.hidden_size

    def needed(self, peak: int, held: int) -> float:
        """Of the capacity: the peak."""
        del held
        return peak

    def bound(self, shape: Mapping[str, int], where: Slice, counted: Bytes) -> float:
        """Tokens/s if the multiplications went at the bfloat16 rate of the mesh's chips."""
        del counted
        a_token = training_flops(self.sizes, frozen=bool(self.settings.lora.targets))
        return where.chip.flops * math.prod(shape.values()) / a_token

    def question(self) -> dict[str, Any]:
        """What the answer of a compiler depends on."""
        sizes, stored = dataclasses.asdict(self.sizes), dataclasses.asdict(self.stored)
        settings = fields(self.settings)
        return {"task": "train", "sizes": sizes, "stored": stored, "settings": settings}


Job = Generate | Train
