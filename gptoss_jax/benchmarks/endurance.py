"""The engine under random requests through few pages: every answer is checked, and every book.

A tiny model with random weights and nano's tokenizer; adapters come and go through fewer slots than
there are. Every so many steps the engine is let run empty, so that what is alive can be compared.
"""

import dataclasses
import gc
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptoss_jax.benchmarks.alone import Alone
from gptoss_jax.benchmarks.random_requests import (
    LONGEST,
    LONGEST_ANSWER,
    LONGEST_PROMPT,
    SHORT_ANSWER,
    Drawn,
    Source,
)
from gptoss_jax.benchmarks.resident import most_resident
from gptoss_jax.checkpoint import peft
from gptoss_jax.checkpoint.adapters import apply_adapter
from gptoss_jax.errors import UserError
from gptoss_jax.inference.adapters import Slots
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.reading import TurnReader
from gptoss_jax.inference.requests import Sequence, Stage
from gptoss_jax.loading import NANO, checkpoint_directory, find_tokenizer
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import Adapter
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer

# Eight pages are one of the longest sequences and a half.
_SEQUENCES, _PAGES, _UNDER_WAY = 4, 8, 14
_SLOTS = Slots(count=8, rank=4)
_ADAPTERS = 11
_KINDS = (
    Adapter(rank=4, alpha=6.0, targets=_SLOTS.targets),
    Adapter(rank=2, alpha=5.0, rslora=True, targets=("q", "down")),
)
# Steps between comparisons of what is alive.
_INTERVAL = 1000
# What may come to it in a step: of Python's objects, and kilobytes of the process.
_OBJECTS, _KILOBYTES = 0.05, 4.0


@dataclasses.dataclass(frozen=True)
class Alive:
    """What there is while the engine is empty.

    Attributes:
      steps: of the engine, until then.
      programs: compiled, until then.
      objects: that Python's collector knows.
      arrays: of JAX.
      kilobytes: the process's resident set at its largest.
    """

    steps: int
    programs: int
    objects: int
    arrays: int
    kilobytes: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
      counts: by name.
      alive: each time the engine was empty.
      violations: a line each.
    """

    counts: Counter
    alive: list[Alive]
    violations: list[str]


def run(requests: int, steps: int, seed: int) -> Run:
    """Runs until as many requests were answered and as many steps made.

    Args:
      requests: at least.
      steps: of the engine, at least.
      seed: of the requests and the weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Endurance(requests, steps, seed, Path(folder)).run()


class _Client:
    """Who reads an answer as it comes, and leaves at a stop string.

    Attributes:
      drawn: what was asked.
      since: steps until the request was submitted.
    """

    def __init__(self, tokenizer: Tokenizer, drawn: Drawn, since: int):
        self.drawn, self.since = drawn, since
        self._read = 0
        self._tokenizer = tokenizer
        self._reader = TurnReader(tokenizer, drawn.request.stop, raw=True)

    def leaves(self, sequence: Sequence) -> bool:
        """Reads what is new; whether a stop string is."""
        for token in sequence.generated[self._read :]:
            self._reader.push(token)
        self._read = len(sequence.generated)
        return self._reader.stopped

    def fault(self, made: list[int]) -> str | None:
        """What is wrong with the text that was read of an answer.

        After its stop string there may be tokens of the call that was under way: nobody reads them.
        """
        self._reader.finish()
        text = self._tokenizer.decode(t for t in made if t not in self._tokenizer.stop_ids)
        stops = self.drawn.request.stop
        ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
        if self._reader.text != (text[: min(ends)[1]] if ends else text):
            return f"its text is {self._reader.text!r}, of {text!r} with stops {stops}"
        return None


class _Endurance:
    def __init__(self, requests: int, steps: int, seed: int, folder: Path):
        tokenizer = find_tokenizer(checkpoint_directory(NANO), 0)
        assert tokenizer is not None
        self._requests, self._steps = requests, steps
        self._tokenizer = tokenizer
        self._model = _tiny(tokenizer.vocab_size)
        # As each answer is checked: by the names of adapters, None for the model without one.
        self._models: dict[str | None, GptOss] = {None: self._model}
        names = [f"adapter{number}" for number in range(_ADAPTERS)]
        for number, name in enumerate(names):
            trained = _trained(self._model, number)
            peft.save(trained, self._model.config, "tiny", folder / name)
            self._models[name] = apply_adapter(self._model, trained)
        self._folder = folder
        size = tokenizer.vocab_size
        self._stops = sorted(tokenizer.stop_ids)
        banned = np.arange(45, size, 17)
        self._programs: list[str] = []
        self._engine = Engine(
            self._model,
            self._stops,
            banned,
            max_sequences=_SEQUENCES,
            max_tokens=LONGEST,
            pages=_PAGES,
            adapters=_SLOTS,
            report=self._programs.append,
        )
        short = LONGEST - LONGEST_ANSWER + SHORT_ANSWER, SHORT_ANSWER
        sizes = [short, (LONGEST, LONGEST_ANSWER)]
        self._alone = Alone(np.isin(np.arange(size), banned), sizes)
        self._source = Source(seed, tokenizer, size, names)
        self._under_way: dict[Sequence, _Client] = {}
        self._displaced: set[Sequence] = set()
        self._next: Drawn | None = None
        self._answered: Sequence | None = None  # the last, if another prompt can go on from it
        self._counts: Counter = Counter()
        self._alive: list[Alive] = []
        self._violations: list[str] = []
        self._noted = time.perf_counter()

    def run(self) -> Run:
        while self._counts["requests"] < self._requests or self._counts["steps"] < self._steps:
            empty = self._counts["steps"] >= _INTERVAL * (len(self._alive) + 1)
            if empty and not self._under_way and not self._engine.busy:
                self._compare()
            elif not empty:
                self._submit()
            self._step()
        while self._engine.busy:
            self._step()
        self._compare()
        self._violations += growth(self._alive)
        return Run(self._counts, self._alive, self._violations)

    def _submit(self) -> None:
        """As many as there is room for, but for those whose adapter finds no slot now."""
        while len(self._under_way) < _UNDER_WAY:
            if self._next is None:
                self._next = self._gone_on(self._source.draw(self._counts["submitted"]))
            name = self._next.request.adapter
            if name is not None and not self._is_loaded(name):
                return
            sequence = self._engine.submit(self._next.request)
            steps = self._counts["steps"]
            self._under_way[sequence] = _Client(self._tokenizer, self._next, steps)
            self._counts["submitted"] += 1
            self._next = None

    def _gone_on(self, drawn: Drawn) -> Drawn:
        answered = self._answered if drawn.goes_on else None
        if answered is None:
            return drawn
        self._answered = None
        self._counts["gone_on"] += 1
        return drawn.after(answered.tokens, answered.request.adapter)

    def _is_loaded(self, name: str) -> bool:
        """Loads an adapter, in another's place if need be and nobody takes that one."""
        adapters = self._engine.adapters
        if name in adapters.names:
            return True
        if len(adapters.names) == _SLOTS.count and not any(map(self._unloaded, adapters.names)):
            return False
        adapters.load(name, self._folder / name)
        self._counts["adapters_loaded"] += 1
        return True

    def _unloaded(self, name: str) -> bool:
        try:
            self._engine.adapters.unload(name)
        except UserError:  # it is in use
            return False
        return True

    def _step(self) -> None:
        steps = self._counts["steps"]
        for sequence, client in self._under_way.items():
            most = client.drawn.cancelled_after
            if client.leaves(sequence) or (most is not None and steps - client.since >= most):
                self._engine.cancel(sequence)
        left = [sequence for sequence in self._under_way if sequence.cancelled]
        self._engine.step()
        self._counts["steps"] += 1
        for sequence in left:
            if not sequence.ended:
                self._violate(self._under_way[sequence].drawn, "it is there a step after its end")
        self._guarded(self._engine.audit)
        for sequence in list(self._under_way):
            if sequence.stage is Stage.WAITING and sequence.generated:
                self._displaced.add(sequence)
            if sequence.ended:
                self._ended(sequence)

    def _guarded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            self._violations.append(f"step {self._counts['steps']}: {error}")

    def _ended(self, sequence: Sequence) -> None:
        client = self._under_way.pop(sequence)
        drawn, request, made = client.drawn, client.drawn.request, sequence.generated
        found = client.leaves(sequence)
        self._count(sequence)
        self._counts["ended_by_a_string"] += found
        if fault := client.fault(made):
            self._violate(drawn, fault)
        if sequence.computed or sequence.pages:
            self._violate(drawn, "it holds pages after its end")
        stopped = [token in self._stops for token in made]
        at_end = bool(made) and (stopped[-1] or len(made) == request.max_tokens)
        if any(stopped[:-1]) or not (at_end or sequence.cancelled):
            self._violate(drawn, f"it ended at {len(made)} of {request.max_tokens} tokens")
        answer = self._alone.check(self._models[request.adapter], request, made)
        self._counts["tokens"] += answer.tokens
        self._counts["tokens_tied"] += answer.tied
        if answer.wrong is not None:
            self._violate(drawn, f"its token {answer.wrong} is not the one of the model alone")
        if request.logprobs is not None:
            told = [place.chosen for place in sequence.logprobs]
            off = len(told) != len(made) or np.abs(told - answer.logprob_T) > answer.rounding_T
            if np.any(off):
                self._violate(drawn, "its log-probabilities are not those of the model alone")
        if len(sequence.tokens) < LONGEST_PROMPT:
            self._answered = sequence

    def _count(self, sequence: Sequence) -> None:
        request, counts = sequence.request, self._counts
        counts["requests"] += 1
        counts["with_adapter"] += request.adapter is not None
        counts["with_constraint"] += request.constraint is not None
        counts["with_penalties"] += request.adjusts
        counts["with_logprobs"] += request.logprobs is not None
        counts["with_stop_strings"] += bool(request.stop)
        counts["cancelled"] += sequence.cancelled
        counts["stopped"] += not sequence.cancelled and sequence.generated[-1] in self._stops
        counts["with_kept_prefix"] += sequence.reused > 0
        counts["displaced"] += sequence in self._displaced
        self._displaced.discard(sequence)

    def _violate(self, drawn: Drawn, what: str) -> None:
        self._violations.append(f"request {drawn.number}: {what}")

    def _compare(self) -> None:
        """Notes what is alive, and that nothing is held."""
        self._guarded(self._engine.audit)
        if self._engine.held_pages:
            self._violations.append(f"{self._engine.held_pages} pages are held by nobody")
        gc.collect()
        steps, programs = self._counts["steps"], len(self._programs) + len(_compiled)
        largest = most_resident() // 1024
        found = len(gc.get_objects()), len(jax.live_arrays()), largest
        self._alive.append(Alive(steps, programs, *found))
        done = f"{self._counts['requests']} requests, {steps} steps"
        taken = f"{time.perf_counter() - self._noted:.0f} s"
        print(f"{done}, {taken}: {len(self._violations)} violations", file=sys.stderr)


def growth(alive: list[Alive]) -> list[str]:
    """What grew while no program was compiled, whose own objects stay; a line each."""
    spans = [(a, b) for a, b in itertools.pairwise(alive) if a.programs == b.programs]
    steps = sum(b.steps - a.steps for a, b in spans)
    # Of who was last penalised the counts stay, two arrays, until somebody else is decoded.
    most = {"arrays": 2, "objects": _OBJECTS * steps, "kilobytes": _KILOBYTES * steps}
    grown = {name: sum(getattr(b, name) - getattr(a, name) for a, b in spans) for name in most}
    return [
        f"{count} {name} more after {steps} steps"
        for name, count in grown.items()
        if count > most[name]
    ]


_compiled: list[float] = []  # seconds of each program that this process has compiled


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_note)


def _tiny(vocab_size: int) -> GptOss:
    """Large enough weights that the argmax is seldom a matter of rounding."""
    config = Config(
        num_layers=2,
        num_experts=6,
        experts_per_token=2,
        hidden_size=64,
        expert_width=96,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
        sliding_window=32,
        rope_original_context=64,
        max_context=1024,
        initializer_range=0.15,
    )
    return GptOss(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def _trained(model: GptOss, number: int) -> Trained:
    adapter = _KINDS[number % len(_KINDS)]
    rng = np.random.default_rng(number)
    shapes = lora.trained_shapes(model, adapter)
    values = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in shapes.items()}
    return Trained(adapter, values)
