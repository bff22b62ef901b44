"""The engine under load: users who each send a request when their last one is answered.

Prompts are random tokens, answers as long as was drawn for them: nothing depends on what a model
says. Every load runs at least twice, and the first run in which nothing is compiled counts. Its
speed is that until the first user has nothing more to ask: from then on there are fewer users.
"""

import collections
import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import distributed
from gptoss_jax.benchmarks.one_sequence import endless, fresh_state
from gptoss_jax.inference.decode import MOST_STEPS
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.programs import Programs
from gptoss_jax.inference.reading import TurnReader
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Timings
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer
from gptoss_jax.training.speed import active_parameters, matmul_rate

if TYPE_CHECKING:
    from gptoss_jax.text.constraints import Constraint

# What constrained answers are: longer than any that is asked for.
_RECORD = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
SCHEMA = {"type": "array", "items": _RECORD | {"required": ["name", "age"]}, "minItems": 100}
_STOPS = ("\n\nEnd of the answer", "<end>")  # looked for, and not found in what is random
_MOST_RUNS = 6  # which programs a run needs depends on how its requests happen to meet


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of prompts or of answers: lognormal around a median, cut at both ends."""

    median: int
    sigma: float = 0.75

    @property
    def least(self) -> int:
        """A quarter of the median."""
        return max(1, self.median // 4)

    @property
    def most(self) -> int:
        """Four times the median."""
        return 4 * self.median

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """As many lengths as asked for."""
        drawn = rng.lognormal(np.log(self.median), self.sigma, count)
        return np.clip(drawn, self.least, self.most).astype(int).tolist()

    def as_dict(self) -> dict[str, float]:
        """For a report."""
        return {
            "median": self.median,
            "sigma": self.sigma,
            "least": self.least,
            "most": self.most,
        }


@dataclasses.dataclass(frozen=True)
class Load:
    """What came of one number of users.

    Attributes:
      users: requests at a time.
      requests: answered in all.
      measured_share: of the run, how long every user had a request under way. What follows is of
        that time, but for the latencies and what was reused: they are of all requests.
      tokens_per_second: generated, of all together.
      first_token_ms: from a request's submission to its first token; median and 95th percentile.
      token_ms: from one token of a request to the next; median and 95th percentile of requests.
      occupancy: sequences in a decode call for each of its rows.
      reused: share of prompt tokens that were cached already.
      host_ms: a device call's time of the host that the device waits for, masks included.
      prefill_share: of all the time, what prompts took on the device.
      mask_share: of all the time, what the device waits for masks of constrained requests.
      matmul_share: of the machine's measured rate, counting active weights; prompts included.
      compile_share: of the whole run, what was waited for compilers: 0 unless every run had to.
    """

    users: int
    requests: int
    measured_share: float
    tokens_per_second: float
    first_token_ms: tuple[float, float]
    token_ms: tuple[float, float]
    occupancy: float
    reused: float
    host_ms: float
    prefill_share: float
    mask_share: float
    matmul_share: float
    compile_share: float


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run of all requests.

    Attributes:
      sequences: (submission, (first, last token), tokens) of each request, times in seconds.
      whole: of the run.
      full: of the time in which every user had a request under way.
    """

    sequences: list[tuple[float, tuple[float, float], int]]
    whole: "_Span"
    full: "_Span"


@dataclasses.dataclass(frozen=True)
class _Span:
    """Seconds, tokens generated in them, and what the engine counted."""

    seconds: float
    tokens: int
    counted: Timings


def measure(
    model: GptOss,
    users: Sequence[int],
    each: int,
    prompts: Lengths,
    answers: Lengths,
    constraint: "Constraint | None" = None,
    tokenizer: Tokenizer | None = None,
    shared: int = 0,
) -> list[Load]:
    """A load for each number of users.

    The longest prompt, what is shared and the longest answer together must fit the model's context.

    Args:
      model: the network.
      users: numbers of them.
      each: requests a user.
      prompts: their lengths.
      answers: their lengths.
      constraint: that all answers follow.
      tokenizer: turns answers into text between steps, in which stop strings are looked for; None:
        nobody reads them.
      shared: tokens that all prompts begin with, before those that were drawn.
    """
    machine = matmul_rate()
    loads = []
    for count in users:
        rng = np.random.default_rng(count)
        sizes = (lengths.draw(count * each, rng) for lengths in (prompts, answers))
        size = model.config.vocab_size
        beginning = rng.integers(0, size, shared).tolist()
        asked = [
            Request(
                [*beginning, *rng.integers(0, size, prompt).tolist()],
                answer,
                temperature=0.0,
                stop=_STOPS,
                constraint=constraint,
            )
            for prompt, answer in zip(*sizes, strict=True)
        ]
        room = shared + prompts.most + answers.most
        loads.append(_load(model, count, asked, room, machine, tokenizer))
    return loads


def _load(
    model: GptOss,
    users: int,
    asked: Sequence[Request],
    room: int,
    machine: float,
    tokenizer: Tokenizer | None,
) -> Load:
    engine = Engine(model, [], np.array([], np.int32), max_sequences=users, max_tokens=room)
    run = _counted(engine, asked, users, tokenizer)
    full, counted = run.full, run.full.counted
    firsts = [1e3 * (seen[0] - submitted) for submitted, seen, _ in run.sequences]
    between = [
        1e3 * (seen[1] - seen[0]) / (made - 1) for _, seen, made in run.sequences if made > 1
    ]
    multiplied = 2 * active_parameters(model.config) * (counted.prefill_tokens + full.tokens)
    device = counted.prefill_s + counted.decode_s
    return Load(
        users=users,
        requests=len(asked),
        measured_share=full.seconds / run.whole.seconds,
        tokens_per_second=full.tokens / full.seconds,
        first_token_ms=_median_and_95(firsts),
        token_ms=_median_and_95(between),
        occupancy=counted.decode_tokens / max(1, counted.decode_rows),
        reused=1 - run.whole.counted.prefill_tokens / sum(len(r.prompt) for r in asked),
        host_ms=1e3 * max(0.0, full.seconds - device) / counted.calls,
        prefill_share=counted.prefill_s / full.seconds,
        mask_share=counted.mask_s / full.seconds,
        matmul_share=multiplied / full.seconds / machine,
        compile_share=run.whole.counted.compile_s / run.whole.seconds,
    )


def _counted(
    engine: Engine, asked: Sequence[Request], users: int, tokenizer: Tokenizer | None
) -> _Run:
    """The run that counts."""
    for number in itertools.count(1):
        run = _answer(engine, asked, users, tokenizer)
        settled = number > 1 and run.whole.counted.compile_s < 0.01 * run.whole.seconds
        settled = distributed.of_first(settled)  # processes' clocks differ
        if settled or number == _MOST_RUNS:
            return run
        # Others than before, so that none is cached; what they share, they still do.
        size = engine.model.config.vocab_size
        asked = [
            dataclasses.replace(r, prompt=[(r.prompt[0] + 1) % size, *r.prompt[1:]]) for r in asked
        ]
    raise AssertionError


def _answer(
    engine: Engine, asked: Sequence[Request], users: int, tokenizer: Tokenizer | None = None
) -> _Run:
    waiting, submitted, seen = list(asked), {}, {}
    readers: dict[Any, TurnReader] = {}
    read: collections.Counter = collections.Counter()
    before, began, full = dataclasses.replace(engine.timings), time.perf_counter(), None

    def submit() -> None:
        submitted[engine.submit(waiting.pop())] = time.perf_counter()

    def span() -> _Span:
        tokens = sum(len(one.generated) for one in submitted)
        return _Span(time.perf_counter() - began, tokens, engine.timings - before)

    for _ in range(users):
        submit()
    while engine.busy:
        fresh = engine.step()
        now = time.perf_counter()
        for sequence in fresh:
            seen[sequence] = (seen.get(sequence, (now,))[0], now)
            if tokenizer is not None:
                if sequence not in readers:
                    readers[sequence] = TurnReader(tokenizer, sequence.request.stop, raw=True)
                for token in sequence.generated[read[sequence] :]:
                    readers[sequence].push(token)
                    read[sequence] += 1
        for _ in filter(lambda sequence: sequence.ended, fresh):
            if waiting:
                submit()
            else:
                full = full or span()
    sequences = [(at, seen[one], len(one.generated)) for one, at in submitted.items()]
    whole = span()
    return _Run(sequences, whole, full or whole)


def _median_and_95(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), float(np.percentile(values, 95))


def bare_decode(model: GptOss, tokens: int = 256) -> float:
    """Tokens a second of the decode program alone, one sequence, without an engine around it."""
    programs = Programs(model, None)
    state, rules = fresh_state(programs, tokens + MOST_STEPS), endless(model.config.vocab_size)
    steps = jnp.int32(MOST_STEPS)
    # Compiled apart: the state's NumPy arrays and the device's own would be two programs.
    decode = programs.decode.lower(model, state, rules, steps).compile()
    state, made, _ = decode(model, state, rules, steps)
    jax.block_until_ready(made)
    began = time.perf_counter()
    for _ in range(tokens // MOST_STEPS):
        state, made, _ = decode(model, state, rules, steps)
    jax.block_until_ready(made)
    return tokens / (time.perf_counter() - began)


def draw(loads: Sequence[Load], file: Path) -> None:
    """Writes a picture: tokens a second, and the time to the first token, over users.

    Raises:
      OSError: the file cannot be written.
      ValueError: its ending is of no picture.
    """
    # Late: it takes half a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    speed, wait = figure.subplots(1, 2)
    users = [load.users for load in loads]
    speed.plot(users, [load.tokens_per_second for load in loads], "o-")
    speed.set(xlabel="users", ylabel="generated tokens/s", ylim=0)
    for index, label in enumerate(("median", "95 %")):
        wait.plot(users, [load.first_token_ms[index] for load in loads], "o-", label=label)
    wait.set(xlabel="users", ylabel="time to first token, ms", ylim=0)
    wait.legend()
    figure.savefig(file)
