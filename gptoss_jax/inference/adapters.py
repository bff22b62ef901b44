"""Adapters that lie on the device beside one model's weights, of which each request takes one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gptoss_jax import sharding
from gptoss_jax.checkpoint.adapters import read_adapter
from gptoss_jax.errors import UserError
from gptoss_jax.kernels.low_rank import Chosen, LowRank
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss, parameter

_SINKS = "sinks"


@dataclasses.dataclass(frozen=True)
class Slots:
    """Room for adapters, allocated once, so that loading one compiles nothing.

    Attributes:
      count: how many lie there at a time.
      rank: the largest of any of them; smaller ones take as much memory.
      targets: the weights they may have factors of. Experts' take most of the memory.

    Raises:
      UserError: on construction, one line that names the field.
    """

    count: int = 8
    rank: int = 16
    targets: tuple[str, ...] = tuple(target for target in TARGETS if target != _SINKS)

    def __post_init__(self):
        if self.count < 1 or self.rank < 1:
            raise UserError(f"{self.count} slots of rank {self.rank}: both must be at least 1")
        if _SINKS in self.targets:
            raise UserError(f"slots for adapters: {_NO_SINKS}")
        Adapter(self.rank, alpha=1.0, targets=self.targets)


_NO_SINKS = (
    "trained sinks have no factors and cannot differ by request; "
    "load the model with that adapter alone, load(adapter=)"
)


@dataclasses.dataclass(frozen=True)
class Resident:
    """An adapter in a slot.

    Attributes:
      name: what requests call it.
      slot: from 1.
      scale: of what its factors add.
      root: what the keys of its sequences' pages begin with. No two loads share one.
    """

    name: str
    slot: int
    scale: float
    root: bytes


class Adapters:
    """The adapters of an engine, by name.

    They are loaded and unloaded between the engine's steps, by the thread that makes those: a
    `Service` has `between_steps` for that. Factors are kept in the model's compute dtype, in which
    they are multiplied.

    Attributes:
      model: the network with room for them beside its weights, whose arrays it shares.
    """

    def __init__(self, model: GptOss, slots: Slots, users: Callable[[Resident], int]):
        """Allocates the room.

        Args:
          model: without factors.
          slots: see there.
          users: how many requests that have not ended take an adapter.

        Raises:
          UserError: the model has an adapter already.
        """
        if any(isinstance(weight, LowRank) for weight in _weights(model)):
            raise UserError("the model has an adapter already; load it without one")
        self._slots = slots
        self._users = users
        self._loads = 0
        self._residents: dict[str, Resident] = {}
        room = Adapter(slots.count * slots.rank, alpha=1.0, targets=slots.targets)
        self._mesh = sharding.mesh_of(model.embedding_VD[...])
        self._split = sharding.split_of(model.config, dict(self._mesh.shape) if self._mesh else {})
        shapes = lora.trained_shapes(model, room)
        (self._device, *_) = model.embedding_VD[...].devices()
        self._paths = tuple(shapes)
        empty = {
            path: jnp.zeros(shape, model.dtype, device=self._where(path))
            for path, shape in shapes.items()
        }
        self.model = lora.attach(model, room, empty)

    @property
    def names(self) -> list[str]:
        """Of those that are loaded."""
        return list(self._residents)

    def load(self, name: str, directory: str | Path) -> None:
        """Puts an adapter in a free slot.

        Args:
          name: for `Request(adapter=)`.
          directory: in PEFT's layout.

        Raises:
          UserError: the name is taken, no slot is free, or the adapter does not fit the model or
            the slots; one line that says what to do.
        """
        if name in self._residents:
            raise UserError(f"adapter {name!r} is loaded already; unload it first")
        taken = {resident.slot for resident in self._residents.values()}
        free = [slot for slot in range(1, self._slots.count + 1) if slot not in taken]
        if not free:
            shown = ", ".join(self._residents)
            raise UserError(f"no slot is free for adapter {name!r}: unload one of {shown}")
        trained = read_adapter(directory, self.model.config)
        self._check(name, trained)
        self._write(trained, free[0])
        self._loads += 1
        root = self._loads.to_bytes(8, "big")
        self._residents[name] = Resident(name, free[0], trained.adapter.scale, root)

    def unload(self, name: str) -> None:
        """Frees an adapter's slot.

        Raises:
          UserError: it is not loaded, or requests that have not ended take it.
        """
        users = self._users(self.find(name))
        if users:
            raise UserError(
                f"adapter {name!r} is in use by {users} requests; wait for their end or cancel "
                "them, and step the engine"
            )
        del self._residents[name]

    def find(self, name: str) -> Resident:
        """The adapter of a name.

        Raises:
          UserError: it is not loaded.
        """
        if name not in self._residents:
            shown = ", ".join(self._residents) or "none"
            raise UserError(f"adapter {name!r} is not loaded; those that are: {shown}")
        return self._residents[name]

    def chosen(self, residents: Sequence[Resident | None]) -> Chosen:
        """What each row takes; NumPy arrays."""
        slot_B = np.asarray([one.slot if one else 0 for one in residents], np.int32)
        scale_B = np.asarray([one.scale if one else 0.0 for one in residents], np.float32)
        return Chosen(slot_B, scale_B, self._slots.rank)  # pyright: ignore[reportArgumentType]

    def _check(self, name: str, trained: Trained) -> None:
        """Raises a UserError for what fits the model but not the slots."""
        adapter, slots = trained.adapter, self._slots
        if _SINKS in adapter.targets:
            raise UserError(f"adapter {name!r}: {_NO_SINKS}")
        if adapter.rank > slots.rank:
            raise UserError(
                f"adapter {name!r} has rank {adapter.rank}; the engine's slots have {slots.rank}"
            )
        foreign = [target for target in adapter.targets if target not in slots.targets]
        if foreign:
            raise UserError(
                f"adapter {name!r} has factors of {', '.join(foreign)}; the engine's slots are of "
                f"{', '.join(slots.targets)}"
            )

    def _write(self, trained: Trained, slot: int) -> None:
        """Replaces all that a slot holds: ranks and targets the adapter has not, by zeros."""
        room = {path: self._factor(path) for path in self._paths}
        values = {
            path: self._placed(path, self._padded(trained.values, path, whole.shape))
            for path, whole in room.items()
        }
        first = np.int32((slot - 1) * self._slots.rank)
        for path, value in _put(room, values, first).items():
            stem, _, field = path.rpartition(".")
            node = parameter(self.model, stem)
            node.set_value(dataclasses.replace(node.get_value(), **{field: value}))

    def _factor(self, path: str) -> jax.Array:
        stem, _, field = path.rpartition(".")
        return getattr(parameter(self.model, stem).get_value(), field)

    def _padded(self, values: Mapping[str, Any], path: str, whole: tuple[int, ...]) -> np.ndarray:
        *experts, _, width = whole
        out = np.zeros((*experts, self._slots.rank, width), self.model.dtype)
        if path in values:
            value = values[path]
            out[..., : value.shape[-2], :] = value
        return out

    def _placed(self, path: str, value: np.ndarray) -> jax.Array:
        # As `device_put`, which has processes compare what they have.
        where = self._where(path)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    def _where(self, path: str) -> jax.sharding.Sharding:
        if self._mesh is None:
            return jax.sharding.SingleDeviceSharding(self._device)
        return NamedSharding(self._mesh, sharding.parameter_spec(path, self._split))


@functools.partial(jax.jit, donate_argnums=0)
def _put(room: dict[str, jax.Array], values: dict[str, jax.Array], first: jax.Array) -> Any:
    """The factors with a slot's, which begins at that rank."""

    def one(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=whole.ndim - 2)

    return jax.tree.map(one, room, values)


def _weights(model: GptOss) -> list[Any]:
    return jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, LowRank))
