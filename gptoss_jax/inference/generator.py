"""The host's part of generation: chunks, compiled programs, timings, tokens as they come."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from gptoss_jax import sharding
from gptoss_jax.errors import UserError
from gptoss_jax.inference.decode import MOST_STEPS, Rules
from gptoss_jax.inference.programs import Programs, compiler_options
from gptoss_jax.inference.sampling import Sampling
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss

_MOST_CHUNK = 512
_LEAST_CHUNK = 16
_CAPACITY_STEP = 512
# Text should come at least this often (seconds); a device call makes as many tokens as fit.
_CALL_SECONDS = 0.25


@dataclasses.dataclass
class Timings:
    """Seconds, and tokens of all sequences together."""

    compile_s: float = 0.0
    prefill_s: float = 0.0
    prefill_tokens: int = 0
    decode_s: float = 0.0
    decode_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens a second, 0 before any."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens a second after the first of each sequence, which prefill makes."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


def chunk_size(longest: int) -> int:
    """Tokens a prefill call for prompts of up to `longest`: a power of two, 16 to 512."""
    return min(_MOST_CHUNK, max(_LEAST_CHUNK, 1 << (longest - 1).bit_length()))


def capacity_for(longest: int, max_tokens: int, limit: int) -> int:
    """Cache positions for prompts of up to `longest`, the last chunk's padding and the answers."""
    chunk = chunk_size(longest)
    padded = -(-longest // chunk) * chunk
    positions = max(padded, min(longest + max_tokens, limit))
    return -(-positions // _CAPACITY_STEP) * _CAPACITY_STEP


def check_prompts(config: Config, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Raises a UserError for what `Generator.run` cannot run; needs no weights."""
    for prompt in prompts:
        if not len(prompt):
            raise UserError("the prompt has no tokens")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise UserError(
                f"prompt token {max(prompt)} is outside the model's {config.vocab_size}-token "
                "vocabulary; use the tokenizer that belongs to the checkpoint"
            )
        if len(prompt) >= config.max_context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens; the model's context is "
                f"{config.max_context}, and at least one is needed for the answer"
            )
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; it must be at least 1")


class Generator:
    """Generates for a batch of prompts at a time.

    Not done here: joining and leaving a running batch, stop strings, reuse of earlier prompts.
    Programs are compiled once for each (batch, chunk, capacity) and kept.
    """

    def __init__(
        self,
        model: GptOss,
        stop_ids: Sequence[int],
        banned_ids: np.ndarray,
        report: Callable[[str], None] | None = None,
    ):
        """Prepares for a model.

        Args:
          model: the network.
          stop_ids: ids that end a sequence.
          banned_ids: ids never sampled; ids the model has no row for are ignored.
          report: told in a line what was compiled and how long that took.
        """
        size = model.config.vocab_size
        self.model = model
        table_VD = model.embedding_VD[...]
        self._programs = Programs(model, sharding.mesh_of(table_VD))
        (self._platform,) = {d.platform for d in table_VD.devices()}
        self._banned_V = np.isin(np.arange(size), banned_ids)
        self._stops_V = np.isin(np.arange(size), list(stop_ids))
        self._compiled = {}
        self._compilers = ThreadPoolExecutor(2)
        self._report = report or (lambda line: None)
        self.timings = Timings()

    def run(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, max_tokens: int
    ) -> Iterator[np.ndarray]:
        """Yields int32 [B, S] tokens as they come (-1: the row has ended); stop ids included.

        `timings` is reset at the start and is right at any moment in between.

        Raises:
          UserError: an empty prompt, an id outside the vocabulary, or no room left to answer.
        """
        check_prompts(self.model.config, prompts, max_tokens)
        sharding.check_batch(len(prompts), self._programs.mesh)
        self.timings = Timings()
        lengths = np.array([len(prompt) for prompt in prompts])
        limit = self.model.config.max_context
        max_tokens = min(max_tokens, limit)  # any integer, and the sums below are of int64
        limit_B = np.minimum(lengths + max_tokens, limit).astype(np.int32)
        programs = self._programs
        rules = Rules(sampling, self._banned_V, self._stops_V, limit_B)  # pyright: ignore[reportArgumentType]
        rules = programs.placed(rules, programs.rules)
        capacity = capacity_for(int(lengths.max()), max_tokens, limit)
        state = programs.start(len(prompts), capacity, self._platform)()
        if max_tokens > 1:
            self._begin_decode(state, rules)
        state, newest_B1, done = self._prefill(prompts, state, rules)
        yield np.asarray(newest_B1)
        if not done:
            yield from self._decode(state, rules)

    def _prefill(self, prompts, state, rules):
        chunk = chunk_size(max(map(len, prompts)))
        chunks = -(-max(map(len, prompts)) // chunk)
        padded = np.zeros((len(prompts), chunks * chunk), np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts])
        for first in range(0, chunks * chunk, chunk):
            added = np.clip(lengths - first, 0, chunk).astype(np.int32)
            host = (padded[:, first : first + chunk], added)
            tokens_BT, added_B = self._programs.placed(host, self._programs.batch)
            arguments = (self.model, tokens_BT, added_B, state, rules)
            program = self._program("prefill", self._programs.prefill, *arguments)
            began = time.perf_counter()
            state, newest_B1, done = jax.block_until_ready(program(*arguments))
            self.timings.prefill_s += time.perf_counter() - began
            self.timings.prefill_tokens += int(added.sum())
        return state, newest_B1, bool(done)

    def _decode(self, state, rules):
        steps, done = 1, False
        while not done:
            count = self._programs.placed(np.int32(steps), P())
            arguments = (self.model, state, rules, count)
            program = self._program("decode", self._programs.decode, *arguments)
            began = time.perf_counter()
            state, out_BS, done = program(*arguments)
            out, done = np.asarray(out_BS), bool(done)
            taken = time.perf_counter() - began
            out = out[:, : int((out >= 0).any(0).sum())]
            self.timings.decode_s += taken
            self.timings.decode_tokens += int((out >= 0).sum())
            yield out
            steps = self._steps(out.shape[1], taken)

    def _steps(self, made: int, taken: float) -> int:
        """How many tokens the next call is to make; processes need the same, and clocks differ."""
        wanted = 2 * made if jax.process_count() > 1 else int(_CALL_SECONDS * made / taken)
        return max(1, min(MOST_STEPS, wanted))

    def _begin_decode(self, state, rules):
        """Compiles decode while prefill is compiled and runs."""
        # Shapes, because prefill takes the state's memory.
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        count = self._programs.placed(np.int32(1), P())
        arguments = (self.model, like, rules, count)
        self._compile("decode", self._programs.decode, arguments)

    def _program(self, name, function, *arguments):
        """The compiled program for these shapes; waiting for a compiler is counted apart."""
        began = time.perf_counter()
        program = self._compile(name, function, arguments).result()
        self.timings.compile_s += time.perf_counter() - began
        return program

    def _compile(self, name, function, arguments):
        """A future of the compiled program."""
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), arguments[1:])
        key = (name, tuple(jax.tree.leaves(shapes)), jax.tree.structure(arguments[1:]))
        if key not in self._compiled:
            self._compiled[key] = self._compilers.submit(self._timed, name, function, arguments)
        return self._compiled[key]

    def _timed(self, name, function, arguments):
        began = time.perf_counter()
        options = compiler_options(self._platform)
        program = function.lower(*arguments).compile(compiler_options=options)
        self._report(f"compiled {name} in {time.perf_counter() - began:.1f} s")
        return program
