"""What a run leaves to look at: config, versions, metrics, TensorBoard events, a plot."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from gptoss_jax.errors import UserError
from gptoss_jax.training import settings

_PACKAGES = ("gptoss_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What a run cannot change on the way: a checkpoint would not fit, or the data would be others.
_FIXED = ("seed", "tokenizer", "base", "batch_size", "model.", "lora.", "data.")
_FREE = ("data.skip_bad", "data.paths", "data.validation_paths")  # the feed knows its data


class RunDirectory:
    """The files of a run, which process 0 writes.

    config.json, versions.json     written at the start
    metrics.jsonl                  one object a line: {"step": …, "split": "train", "loss": …}
    events.out.tfevents.*          the same scalars for TensorBoard
    loss.png                       training and validation loss
    """

    def __init__(self, path: Path, config: settings.Settings, device: str):
        """Makes the directory, or goes on in one of the same config.

        Args:
          path: the work directory.
          config: the resolved config.
          device: what it runs on, for versions.json.

        Raises:
          UserError: the directory is of a run with another network or other data.
        """
        self.path = path
        self._writes = jax.process_index() == 0
        self.changed = []
        if self._writes:
            path.mkdir(parents=True, exist_ok=True)
            self.changed = _check_config(path / "config.json", config)
            _write_json(path / "config.json", config.to_dict())
            _write_json(path / "versions.json", _versions() | {"device": device})
        self._metrics = path / "metrics.jsonl"
        self._records: list[dict[str, Any]] = []
        self._events: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        """Takes up what there is up to this step; a killed run may have written further."""
        if not self._writes:
            return
        if self._metrics.exists():
            lines = self._metrics.read_text(encoding="utf-8").split("\n")
            # What follows the last line break is a line cut off, or nothing.
            records = [json.loads(line) for line in lines[:-1]]
            self._records = [record for record in records if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in self._records)
        self._metrics.write_text(text, encoding="utf-8")
        self._events = SummaryWriter(str(self.path), purge_step=step + 1)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds a line of metrics; arrays become lists, and no scalars of TensorBoard."""
        if not self._writes:
            return
        plain = {name: np.asarray(value).tolist() for name, value in values.items()}
        record = {"step": step, "split": split} | plain
        self._records.append(record)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        assert self._events is not None  # `begin` comes first
        for name, value in plain.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{split}/{name}", value, step)
        self._events.flush()

    def plot(self) -> None:
        """Writes loss.png."""
        if not self._records:
            return
        # Late: it takes half a second to import.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a trained token)")
        for split in ("train", "validation"):
            points = [(r["step"], r["loss"]) for r in self._records if r["split"] == split]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, marker="." * (len(points) < 30))
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.path / "loss.png")

    def close(self) -> None:
        """Plots, and closes the events."""
        self.plot()
        if self._events is not None:
            self._events.close()


def _check_config(file: Path, config: settings.Settings) -> list[str]:
    """The fields that differ from the run's begin, refusing those a run cannot change."""
    if not file.exists():
        return []
    before = settings.fields(ConfigDict(json.loads(file.read_text(encoding="utf-8"))))
    now = json.loads(json.dumps(settings.fields(config)))
    before = json.loads(json.dumps(before))
    changed = [name for name in now if before.get(name) != now[name]]
    for name in changed:
        if name.startswith(_FIXED) and name not in _FREE:
            raise UserError(
                f"{file.parent}: the run there has config.{name}={before.get(name)!r}, not "
                f"{now[name]!r}; give another --workdir"
            )
    return changed


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform()} | versions


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
