"""What a run leaves to look at: config, versions, metrics, TensorBoard events, a plot."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gptoss_jax.errors import UserError
from gptoss_jax.model.config import read_json_object
from gptoss_jax.training import settings
from gptoss_jax.training.events import Events

_PACKAGES = ("gptoss_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What a run cannot change on the way: a checkpoint would not fit, or the data would be others.
_FIXED = ("seed", "tokenizer", "base", "batch_size", "model.", "lora.", "data.")
_FREE = ("data.skip_bad", "data.paths", "data.validation_paths")  # the feed knows its data


class RunDirectory:
    """The files of a run, which process 0 writes; use as a context, whose end plots.

    config.json, versions.json     written at the start, once nothing is refused
    base.json                      which checkpoint it began from, if from one
    metrics.jsonl                  one object a line: {"step": …, "split": "train", "loss": …}
    events.out.tfevents.*          the same scalars for TensorBoard
    loss.png                       training and validation loss
    lock                           held by the process that writes all this

    Attributes:
      path: of the directory.
      base: the fingerprint of the checkpoint the run began from, None if from none.
      changed: the config's fields that differ from those that the run had.
    """

    def __init__(self, path: Path, config: settings.Settings, device: str, base: str | None = None):
        """Makes the directory, or goes on in one of the same config.

        Args:
          path: the work directory.
          config: the resolved config.
          device: what it runs on, for versions.json.
          base: the fingerprint of the checkpoint it begins from, if it does.

        Raises:
          UserError: the directory has a checkpoint of a run with another network, base or other
            data, or a file of it is damaged. Here and below: the disk takes no more.
        """
        self.path = path
        self.base = base
        self._writes = jax.process_index() == 0
        self.changed = []
        self._lock: IO | None = None
        if self._writes:
            if path.exists() and not path.is_dir():
                raise UserError(f"--workdir {path}: is no directory; give one, or a new name")
            with self._writing():  # before weights are read, not after
                path.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=path).close()
            begun = {"directory": config.base, "fingerprint": base}
            if _has_checkpoint(path):  # without one a run may begin anew with whatever fits
                self.changed = _check_config(path / "config.json", config)
                _check_base(path / "base.json", begun)
            self._files = {
                **({"base.json": begun} if base is not None else {}),
                "config.json": config.to_dict(),
                "versions.json": _versions() | {"device": device},
            }
        self._metrics = path / "metrics.jsonl"
        self._records: list[dict[str, Any]] = []
        self._events: Events | None = None

    def __enter__(self) -> "RunDirectory":
        """Keeps others away as long as its context, or this process, lasts.

        Raises:
          UserError: another run is at work there.
        """
        if self._writes:
            self._lock = (self.path / "lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise UserError(
                    f"{self.path}: another run is at work there; wait for its end, or give another "
                    "--workdir"
                ) from None
            except OSError:  # a file system without locks
                pass
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # What has ended the run is to be told, not that its plot cannot be written either.
            with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
                self.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def begin(self, step: int) -> None:
        """Takes up what there is up to this step; a killed run may have written further.

        Only from here on are these written: a run that is refused leaves another's as they were.

        Raises:
          UserError: a line of metrics.jsonl that is damaged, and not only cut off at the end.
        """
        if not self._writes:
            return
        if self._metrics.exists():
            records = _read_records(self._metrics)
            # What is measured after the last step is measured again.
            self._records = [
                record
                for record in records
                if record["step"] <= step and record["split"] in ("train", "validation")
            ]
        with self._writing():
            for name, value in self._files.items():
                _write_json(self.path / name, value)
            _write(self._metrics, "".join(json.dumps(record) + "\n" for record in self._records))
            self._events = Events(self.path, step + 1)

    def record(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Adds a line of metrics; arrays become lists, and no scalars of TensorBoard."""
        if not self._writes:
            return
        plain = {name: np.asarray(value).tolist() for name, value in values.items()}
        record = {"step": step, "split": split} | plain
        self._records.append(record)
        scalars = {f"{split}/{k}": v for k, v in plain.items() if isinstance(v, int | float)}
        assert self._events is not None  # `begin` comes first
        with self._writing():
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._events.add(step, scalars)

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
        with self._writing():
            figure.savefig(self.path / "loss.png")

    def close(self) -> None:
        """Plots, and closes the events."""
        try:
            self.plot()
        finally:
            if self._events is not None:
                with self._writing():
                    self._events.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the directory in the system's refusal to write: a file's name may be missing."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to: {error}") from error


def read(directory: Path) -> settings.Settings:
    """The config of the run that a directory is of.

    Raises:
      UserError: names config.json, which is missing or damaged.
    """
    return ConfigDict(read_json_object(directory / "config.json"))


def _read_records(file: Path) -> list[dict[str, Any]]:
    # What follows the last line break is a line cut off, or nothing.
    lines = file.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records.append(record | {"step": int(record["step"]), "split": str(record["split"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file}:{number}: no metrics of a step; remove the line") from error
    return records


def _has_checkpoint(path: Path) -> bool:
    """Whether there is a whole one: those being written have other names than their step."""
    return any(entry.name.isdecimal() for entry in path.glob("checkpoints/*"))


def _check_config(file: Path, config: settings.Settings) -> list[str]:
    """The fields that differ from the run's begin, refusing those a run cannot change."""
    if not file.exists():
        return []
    before = settings.fields(read(file.parent))
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


def _check_base(file: Path, now: dict[str, Any]) -> None:
    """Refuses other weights than the run began from, though they lie where those lay."""
    before = read_json_object(file) if file.exists() else now
    if before.get("fingerprint") != now["fingerprint"]:
        raise UserError(
            f"{file.parent}: the run there began from {before.get('directory')} with the "
            f"fingerprint {before.get('fingerprint')}; {now['directory']} now has "
            f"{now['fingerprint']}: put that base back, or give another --workdir"
        )


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform()} | versions


def _write_json(file: Path, value: dict[str, Any]) -> None:
    _write(file, json.dumps(value, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    """Writes a file that is the old or the new one, whatever ends the process."""
    unfinished = file.with_name(f"{file.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
