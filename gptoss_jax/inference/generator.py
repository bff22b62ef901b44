"""The host's part of generation: chunks, compiled programs, timings, tokens as they come."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.errors import UserError
from gptoss_jax.inference import decode as device
from gptoss_jax.inference.sampling import Sampling
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss

_MOST_CHUNK = 512
_LEAST_CHUNK = 16
_CAPACITY_STEP = 512
_MOST_STEPS = 32
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
        self._banned_V = jnp.asarray(np.isin(np.arange(size), banned_ids))
        self._stops_V = jnp.asarray(np.isin(np.arange(size), list(stop_ids)))
        self._compiled = {}
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
        self.timings = Timings()
        lengths = np.array([len(prompt) for prompt in prompts])
        limit = self.model.config.max_context
        max_tokens = min(max_tokens, limit)  # any integer, and the sums below are of int64
        limit_B = jnp.asarray(np.minimum(lengths + max_tokens, limit), jnp.int32)
        rules = device.Rules(sampling, self._banned_V, self._stops_V, limit_B)
        capacity = capacity_for(int(lengths.max()), max_tokens, limit)
        (where,) = {d.platform for d in self.model.embedding_VD[...].devices()}
        state = device.start(self.model, len(prompts), capacity, where)
        state = self._prefill(prompts, state, rules)
        yield np.asarray(state.token_B)[:, None]
        yield from self._decode(state, rules)

    def _prefill(self, prompts, state, rules):
        chunk = chunk_size(max(map(len, prompts)))
        chunks = -(-max(map(len, prompts)) // chunk)
        padded = np.zeros((len(prompts), chunks * chunk), np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts])
        for first in range(0, chunks * chunk, chunk):
            added_B = jnp.asarray(np.clip(lengths - first, 0, chunk), jnp.int32)
            tokens_BT = jnp.asarray(padded[:, first : first + chunk])
            arguments = (self.model, tokens_BT, added_B, state, rules)
            program = self._program(device.prefill, *arguments)
            began = time.perf_counter()
            state = jax.block_until_ready(program(*arguments))
            self.timings.prefill_s += time.perf_counter() - began
            self.timings.prefill_tokens += int(added_B.sum())
        return state

    def _decode(self, state, rules):
        steps = 1
        while not bool(state.done_B.all()):
            arguments = (self.model, state, rules, jnp.int32(steps))
            program = self._program(device.decode, *arguments, most=_MOST_STEPS)
            began = time.perf_counter()
            state, out_BS = program(*arguments)
            out = np.asarray(out_BS)
            taken = time.perf_counter() - began
            out = out[:, : int((out >= 0).any(0).sum())]
            self.timings.decode_s += taken
            self.timings.decode_tokens += int((out >= 0).sum())
            yield out
            steps = max(1, min(_MOST_STEPS, int(_CALL_SECONDS * out.shape[1] / taken)))

    def _program(self, function, *arguments, **static):
        """The compiled program for these shapes; what compiling takes is counted apart."""
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), arguments[1:])
        key = (function, tuple(jax.tree.leaves(shapes)), jax.tree.structure(arguments[1:]))
        if key not in self._compiled:
            began = time.perf_counter()
            self._compiled[key] = function.lower(*arguments, **static).compile()
            taken = time.perf_counter() - began
            self.timings.compile_s += taken
            self._report(f"compiled {function.__name__} in {taken:.1f} s")
        return self._compiled[key]
