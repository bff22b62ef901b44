"""The training loop: steps, evaluations, checkpoints, and the ways a run ends."""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptoss_jax.checkpoint.load import load_model
from gptoss_jax.errors import UserError
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.training import fingerprint, reference, speed, spread
from gptoss_jax.training.base import Base
from gptoss_jax.training.checkpoints import Checkpoints
from gptoss_jax.training.export import export, export_adapter
from gptoss_jax.training.feed import Feed, Share, one_pass
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.run_directory import RunDirectory
from gptoss_jax.training.settings import Settings
from gptoss_jax.training.sources import Sources
from gptoss_jax.training.step import Trainer, compiled, in_parts, summary
from gptoss_jax.training.stopping import Stop, Stopped

_EXPERTS = " (MXFP4 experts)"  # of a step that rounds them


def run(
    config: Settings,
    base: Base,
    sources: Sources,
    workdir: Path,
    mesh: Mesh | None,
    stop: Stop,
) -> None:
    """Trains, or goes on training, to the end or to a SIGTERM.

    Args:
      config: a checked training config.
      base: the network, and what it begins from.
      sources: of its data.
      workdir: the run directory; if it holds checkpoints the newest is gone on from. Of several
        processes it is one that all reach.
      mesh: of all processes' devices; None: the first device.
      stop: hears SIGTERM.

    Raises:
      Stopped: SIGTERM came before the first step.
      UserError: a loss that is no number; a work directory of another run; a target of an adapter
        that is none of the network's.
    """
    trainer = Trainer(config, base.sizes, mesh, base.abstract(jnp.dtype(config.dtype)))
    for line in trainer.described():
        _say(line)
    begun = None if base.directory is None else fingerprint.of_checkpoint(base.directory)
    directory = RunDirectory(workdir, config, jax.devices()[0].device_kind, begun)
    if directory.changed:
        _say(f"config changed since this run began: {', '.join(directory.changed)}")
    with (
        directory,
        Checkpoints(workdir / "checkpoints", config.keep) as kept,
    ):
        loop = _Loop(trainer, base, sources, directory, kept)
        loop.begin()
        ended = loop.steps(stop)
        if ended:
            loop.finish(workdir / "export")
    for split, source in (("training", sources.train), ("validation", sources.validation)):
        if source is not None and source.skipped:
            _say(f"left out {source.skipped} bad examples of the {split} data")
    if not ended:  # only here is the checkpoint written to its end
        _say(f"stopped by SIGTERM after step {loop.done}, now saved; run again to go on")


class _Loop:
    """A run under way.

    Attributes:
      done: how many steps are.
    """

    def __init__(
        self,
        trainer: Trainer,
        base: Base,
        sources: Sources,
        directory: RunDirectory,
        checkpoints: Checkpoints,
    ):
        self.trainer = trainer
        self._config = config = trainer.config
        self._sizes = sizes = trainer.sizes
        self._mesh = mesh = trainer.mesh
        self._from = base
        self._base: GptOss | None = None  # what an adapter is for; it is not trained
        self._sources = sources
        self._directory = directory
        self._checkpoints = checkpoints
        self._part, self._parts = spread.own_part(self._rows_at_once, sizes, mesh)
        self._programs: dict[str, Callable] = {}
        frozen = trainer.adapter is not None
        self._meter = speed.Meter(sizes, config.steps, _machines(mesh), frozen=frozen)
        _say(f"this machine's float32 matmul rate: {self._meter.machine / 1e9:.1f} GFLOP/s")

    def begin(self) -> None:
        """The first state, or the newest checkpoint's."""
        latest = self._checkpoints.latest
        if latest is not None and latest > self._config.steps:
            raise UserError(
                f"config.steps: {self._config.steps}, but the run in {self._directory.path} has "
                f"done {latest}; give at least as many, or another --workdir"
            )
        like = self.trainer.abstract_state()
        of_pairs = self._config.data.kind == "pairs"
        if latest is None or self.trainer.adapter is not None or of_pairs:
            self._base = self._from.load(jnp.dtype(self._config.dtype), self._mesh)
        if of_pairs:
            self._refer(begun=latest is not None)
        if latest is None:
            self._feed = self._new_feed(self._parts)
            where = jax.tree.map(lambda x: x.sharding, like)
            new, given = self.trainer.init, ()
            if self._base is not None:
                new, given = self.trainer.begin_from, (self._base,)
            self.state = jax.jit(new, out_shardings=where)(*given)
        else:
            self.state, feeds = self._checkpoints.load(like)
            self._feed = self._new_feed(len(feeds))
            self._feed.restore(feeds)
            _say(f"resumed after step {latest}")
        if self.trainer.adapter is None:
            self._base = None
        self.done = latest or 0
        self._directory.begin(self.done)

    def _refer(self, *, begun: bool) -> None:
        """Gives the pairs what the base thinks of them."""

        def log_probabilities(rows: Batch) -> np.ndarray:
            given = (self._base, spread.placed(rows, self._sizes, self._mesh))
            each_BT = self._program("reference step", self.trainer.log_probabilities, given)(*given)
            return np.asarray(spread.on_host(each_BT))

        rows, length = self._rows_at_once, self._config.data.sequence_length
        self._sources = reference.with_reference(
            self._sources,
            self._directory.path,
            log_probabilities,
            base=f"{self._directory.base} in {self._config.dtype}",
            rows=rows,
            length=length,
            begun=begun,
        )

    def _new_feed(self, feeds: int) -> Share:
        config = self._config

        def new(number: int, rows: int) -> Feed:
            return Feed(
                self._sources.train,
                rows=rows,
                length=config.data.sequence_length,
                open_rows=config.data.open_rows,
                seed=config.data.seed,
                number=number,
                feeds=feeds,
            )

        return Share(new, rows=config.batch_size, feeds=feeds, part=self._part, parts=self._parts)

    @property
    def _rows_at_once(self) -> int:
        """Of all devices, in one part of a step."""
        return self._config.batch_size // self._config.accumulation

    def steps(self, stop: Stop) -> bool:
        """Runs to the last step (True), or to the end of a step in which it was told to stop.

        Raises:
          Stopped: it was told before.
        """
        config = self._config
        if self.done < config.steps:
            rows = self._feed.batch()
            self._ready(rows)  # compiling takes its time, in which it may be told
        stop.at_once = False
        if spread.any_of(stop.told):
            raise Stopped
        self._meter.start(self.done)
        while self.done < config.steps:
            where, data = self._feed.where(), self._feed.states()
            metrics = self._dispatch(rows)
            if self.done + 1 < config.steps:
                rows = self._feed.batch()  # while the device computes
            metrics = jax.device_get(metrics)
            self.done += 1
            self._check(metrics, where)
            self._log(metrics)
            last = self.done == config.steps
            if last or self.done % config.eval_every == 0:
                self._evaluate()
            stopping = spread.any_of(stop.told)
            if last or self.done % config.checkpoint_every == 0 or stopping:
                self._checkpoints.save(self.done, self.state, self._of_all_feeds(data))
            if stopping and not last:
                return False
        return True

    def finish(self, directory: Path) -> None:
        """Writes what the run was for: the adapter, or the packed model."""
        done, tokenizer = f"done after {self._config.steps} steps", self._config.tokenizer
        if self.trainer.adapter is not None:
            values = spread.on_host(self.state.params)
            export_adapter(values, self.trainer.adapter, self._from, directory)
            return _say(f"{done}; adapter in {directory}")
        model = spread.on_host(self.trainer.packed(self.state.params))
        export(model, directory, tokenizer, self._from.directory)
        self._compare(directory)
        _say(f"{done}; packed checkpoint in {directory}")

    def _compare(self, packed: Path) -> None:
        """Reports what packing costs: the master weights' validation beside the export's."""
        if self._sources.validation is None:
            return
        dtype = np.dtype(self._config.dtype)
        model = load_model(packed, dtype=dtype, mesh=self._mesh, progress=False)
        given = (self.state.params, None)
        before = self._validate("before packing", self.trainer.eval_step, given)
        after = self._validate("after packing", self.trainer.eval_model, (model,))
        if before and after:
            _say(
                f"packing: validation accuracy {100 * before['accuracy']:.2f} % before, "
                f"{100 * after['accuracy']:.2f} % after; loss {before['loss']:.4f} before, "
                f"{after['loss']:.4f} after"
            )

    def _dispatch(self, rows: Batch) -> Any:
        program, given = self._ready(rows)
        # Of one part; the others' differ by how well their rows are filled.
        self._meter.add(self._parts * int((rows.segments_BT > 0).sum()))
        self.state, metrics = program(*given)
        return metrics

    def _ready(self, rows: Batch) -> tuple[Callable, tuple]:
        """The next step's program, compiled where it has not been, and its arguments."""
        qat = 0 <= self._config.qat_start <= self.done
        batch = in_parts(rows, self._config.accumulation)
        batch = spread.placed(batch, self._sizes, self._mesh, self._parts)
        began = time.perf_counter()
        given = (self.state, self._base, batch)
        step = functools.partial(self.trainer.train_step, qat=qat)
        program = self._program(f"train step{_EXPERTS * qat}", step, given, donate=(0,))
        self._meter.pause(time.perf_counter() - began)
        return program, given

    def _program(
        self, name: str, function: Callable, arguments: tuple, donate: tuple = ()
    ) -> Callable:
        """The compiled function, once a name."""
        if name not in self._programs:
            began = time.perf_counter()
            self._programs[name] = compiled(function, *arguments, donate=donate)
            _say(f"compiled the {name} in {time.perf_counter() - began:.1f} s")
        return self._programs[name]

    def _check(self, metrics: dict[str, np.ndarray], where: str) -> None:
        """Stops the run at numbers that are none, so that no checkpoint is of such."""
        problems = [
            f"the {name.replace('_', ' ')} is {float(metrics[name])}"
            for name in ("loss", "gradient_norm")
            if not math.isfinite(metrics[name])
        ]
        # Popped: metrics are of steps that are good.
        if not metrics.pop("finite"):
            problems.append("the update gives parameters or optimizer state that are not finite")
        if problems:
            good = self._checkpoints.latest
            kept = f"the checkpoint of step {good} is kept" if good else "no checkpoint yet"
            raise UserError(f"step {self.done}: {problems[0]}; batch {self.done}: {where}; {kept}")

    def _log(self, metrics: dict[str, np.ndarray]) -> None:
        step, every = self.done, self._config.log_every
        if step % every and step not in (1, self._config.steps):
            return
        speeds = self._meter.read(step)
        self._directory.record(step, "train", metrics | speeds)
        _say(
            f"step {step}/{self._config.steps} loss {metrics['loss']:.4f} "
            f"lr {metrics['learning_rate']:.2e} {speeds['tokens_per_second']:.0f} tokens/s "
            f"{100 * speeds['matmul_share']:.1f} % of matmul rate, "
            f"{_duration(speeds['seconds_left'])} left"
        )

    def _evaluate(self) -> None:
        if self._sources.validation is None:
            return self._directory.plot()
        began = time.perf_counter()
        qat = 0 <= self._config.qat_start < self.done
        given = (self.state.params, self._base)
        metrics = self._validate("validation", self.trainer.eval_step, given, qat)
        if metrics:
            _say(
                f"step {self.done} validation loss {metrics['loss']:.4f} accuracy "
                f"{100 * metrics['accuracy']:.2f} %"
            )
        self._directory.plot()
        self._meter.pause(time.perf_counter() - began)

    def _validate(
        self, name: str, step: Callable, weights: tuple[Any, ...], qat: bool = False
    ) -> dict[str, Any] | None:
        """Records and gives the metrics of the validation data, None where it has no batch."""
        sums = None
        for rows in self._validation_rows():
            given = (*weights, rows)
            bound = functools.partial(step, qat=qat)
            new = self._program(f"{name} step{_EXPERTS * qat}", bound, given)(*given)
            sums = new if sums is None else jax.tree.map(np.add, sums, jax.device_get(new))
        if sums is None:
            return None
        metrics = summary(sums)
        self._directory.record(self.done, name, metrics)
        return metrics

    def _validation_rows(self) -> Iterator[Batch]:
        config = self._config
        assert self._sources.validation is not None
        rows = one_pass(
            self._sources.validation,
            rows=self._rows_at_once,
            length=config.data.sequence_length,
            batches=config.eval_batches,
        )
        for batch in rows:
            yield spread.placed(batch, self._sizes, self._mesh)

    def _of_all_feeds(self, states: dict[str, Any]) -> list[dict[str, Any]]:
        """The state of each of the run's feeds, in their order."""
        found = {}
        for each in spread.from_all(states):
            found |= each
        return [found[str(number)] for number in range(len(found))]


def _machines(mesh: Mesh | None) -> int:
    """How many times the measured rate there is: CPU devices of a process share its cores."""
    if mesh is None:
        return 1
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.process_count() if on_cpu else mesh.size


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
