"""What a run resumes from: parameters, optimizer state and step, and the state of the data.

Orbax v1 writes in the background, into a temporary directory that gets its name when it is whole;
a killed run leaves at most a temporary one, which the next clears away.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gptoss_jax.errors import UserError
from gptoss_jax.training import orbax_output
from gptoss_jax.training.step import State

_DATA = "data"  # in a checkpoint's custom metadata


class Checkpoints:
    """The checkpoints of a run directory; use as a context, whose end waits for the last write."""

    def __init__(self, directory: Path, keep: int, *, reads: bool = False):
        """Opens or makes the directory.

        Args:
          directory: holds one directory a checkpoint, named by the step.
          keep: how many of the latest stay.
          reads: only that; what a live run there is writing is left alone.
        """
        orbax_output.keep_short()
        policies: Any = ocp.training.save_decision_policies
        preservation: Any = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()),
            # Which steps are saved is the loop's matter.
            save_decision_policy=policies.FixedIntervalPolicy(1),
            preservation_policy=preservation.LatestN(keep),
            cleanup_tmp_directories=not reads,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._writing():
            self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State, data: list[dict[str, Any]]) -> None:
        """Begins to write, unless that step is there; the state may be donated afterwards.

        Args:
          step: how many steps are done.
          state: as of then.
          data: of every `Feed.state`, as of then.

        Raises:
          UserError: this one or the one before cannot be written; those that were whole stay so.
        """
        if self.latest == step:
            return
        # The next step writes into these buffers, and the devices have no room for them twice.
        copy = jax.tree.map(_in_host_memory, state)
        # As text, because Orbax would look at each of the numbers on its own.
        with self._writing():
            self._checkpointer.save_async(
                step, _tree(copy), custom_metadata={_DATA: json.dumps(data)}
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what the system's refusal to write, now or in the background, means for a run."""
        try:
            yield
        except (OSError, ValueError) as error:
            # TensorStore's errors are ValueErrors; those of the system have its code.
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            kept = f"that of step {self.latest} is whole" if self.latest else "there is none yet"
            raise UserError(
                f"{self._checkpointer.directory}: a checkpoint could not be written, {kept}: "
                f"{' '.join(str(error).split())}"
            ) from error

    def load(self, like: State) -> tuple[State, list[dict[str, Any]]]:
        """The newest checkpoint: (state, states of the feeds).

        Args:
          like: `Trainer.abstract_state`.

        Raises:
          UserError: it is of another network or optimizer, or damaged.
        """
        checkpointer, latest = self._checkpointer, self.latest
        try:
            loaded = checkpointer.load(latest, _tree(like))
            metadata: Any = checkpointer.metadata(latest).custom_metadata
            data = json.loads(metadata[_DATA])
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            earlier = [one.step for one in checkpointer.checkpoints if one.step != latest]
            instead = f"remove it to go on after step {max(earlier)}, or " if earlier else ""
            raise UserError(
                f"{checkpointer.directory / str(latest)}: is damaged, or no checkpoint of this "
                f"config ({reason}); {instead}give another --workdir"
            ) from error
        return State(**loaded), data


def _in_host_memory(x: jax.Array) -> jax.Array:
    return jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))


def _tree(state: State) -> dict[str, Any]:
    return {"params": state.params, "optimizer": state.optimizer, "step": state.step}
