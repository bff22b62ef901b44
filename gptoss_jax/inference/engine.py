"""Continuous batching: requests join and leave between device calls, over one cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gptoss_jax import sharding
from gptoss_jax.errors import UserError
from gptoss_jax.inference import logprobs, requests
from gptoss_jax.inference.adapters import Adapters, Resident, Slots
from gptoss_jax.inference.checks import check_sampling
from gptoss_jax.inference.decode import Made
from gptoss_jax.inference.draft import Drafter
from gptoss_jax.inference.following import Elsewhere, Following, Leading, made_by_first
from gptoss_jax.inference.memory import room_for
from gptoss_jax.inference.programs import Programs
from gptoss_jax.inference.requests import Request, check_prompt
from gptoss_jax.inference.runner import Runner, Timings
from gptoss_jax.inference.scheduler import VERIFIED, Decode, Prefill, Scheduler, Verify
from gptoss_jax.kernels.attention.eight_bit import EIGHT_BIT, EightBit
from gptoss_jax.model.cache import pages_for
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import Tokenizer


class Engine:
    """Generates for any number of requests, as many at a time as its cache holds.

    `submit`, then `step` until nothing is `busy`; what came of a request is in the `Sequence` that
    `submit` gave. A step gives what the last device call made and begins the next one, so that
    what the caller does between steps costs the device nothing.

    In float32 the tokens of a request do not depend on what else runs, as long as the programs have
    the same shapes; over other shapes logits differ by rounding.

    Where several processes hold the model, each has an engine. That of process 0 schedules, the
    others make its device calls: all step as often as it does, until it is not `busy` or, if they
    do not submit what it does, until they are `closed`.

    Not done here: text (`completion`, `turns`); threads, all calls are one thread's (`service`).
    """

    def __init__(
        self,
        model: GptOss,
        stop_ids: Sequence[int],
        banned_ids: np.ndarray,
        *,
        max_sequences: int,
        max_tokens: int | None = None,
        pages: int | None = None,
        reuse: bool = True,
        adapters: Slots | None = None,
        speculate: bool = False,
        draft: GptOss | None = None,
        cache: EightBit | None = None,
        report: Callable[[str], None] | None = None,
    ):
        """Allocates the cache.

        Args:
          model: the network.
          stop_ids: ids that end a sequence.
          banned_ids: ids never sampled; ids the model has no row for are ignored.
          max_sequences: that run at once; the rest waits.
          max_tokens: of one sequence, prompt included; None: the model's context.
          pages: of 128 positions, for all sequences; None: enough for all of them at their longest,
            or as many as fit in what the devices have free. A sequence can then be as long as all
            of its part's pages.
          reuse: whether prompts that begin the same, with one adapter, share what is cached.
          adapters: room for several, one a request; see `adapters`. None: for none.
          speculate: whether few sequences at a time guess what follows from what they said before,
            and verify that in one call, while this is the faster way.
          draft: a smaller model with the same vocabulary, on the same mesh, that guesses instead;
            in one process only.
          cache: "int8" or "fp8", the format of keys and values in full layers' pages, which then
            take half of the bytes; None: what activations are computed in.
          report: told in a line what was compiled and how long that took.

        Raises:
          UserError: the mesh splits sequences, and these not into equal parts; or there is to be
            room for adapters and the model has one; or the draft's vocabulary or mesh is another,
            or there are several processes; or the cache's format is unknown; or no page fits beside
            the weights.
        """
        self.model = model
        self._stops = frozenset(stop_ids)
        self._adapters = adapters and Adapters(model, adapters, self._users)
        whole = self._adapters.model if self._adapters else model
        if cache is not None and cache not in EIGHT_BIT:
            raise UserError(f"cache is {cache!r}; it must be None, {' or '.join(EIGHT_BIT)}")
        mesh = sharding.mesh_of(model.embedding_VD[...])
        programs = Programs(whole, mesh, cache)
        sharding.check_batch(max_sequences, mesh)
        drafts = []
        if draft is not None:
            _check_draft(draft, model)
            drafts = [Programs(draft, mesh, cache)]
        parts = programs.parts
        own = max_sequences // parts
        self._room = room = room_for(
            [programs, *drafts],
            sharding.devices_of(model.embedding_VD[...]),
            sequences=own,
            context=min(max_tokens or model.config.max_context, model.config.max_context),
            pages=None if pages is None else pages // parts,
            reuse=reuse,
        )
        several = _are_several(model)
        share = {"shared": made_by_first} if several else {}
        self._runner = Runner(
            whole, programs, stop_ids, banned_ids, room, self._adapters, report, **share
        )
        sizes = {"sequences": own, "pages": room.pages, "rings": room.rings, "parts": parts}
        self._scheduler: Scheduler | Following
        if several and jax.process_index():
            self._scheduler = Following(self._begun)
        else:
            self._scheduler = (Leading if several else Scheduler)(**sizes, reuse=reuse)
        self._drafter = None
        if draft is not None:
            runner = Runner(draft, drafts[0], stop_ids, banned_ids, room, report=report)
            self._drafter = Drafter(runner, draft.config.max_context)
        self._speculates = speculate or draft is not None
        self._submitted = 0
        self._settle: Callable[[], list[requests.Sequence]] | None = None

    @property
    def timings(self) -> Timings:
        """Of all that ran."""
        return self._runner.timings

    @property
    def adapters(self) -> Adapters:
        """Where adapters are loaded and unloaded, by name.

        Raises:
          UserError: the engine has no room for any.
        """
        if self._adapters is None:
            raise UserError("the engine has no room for adapters; give Engine(adapters=Slots())")
        return self._adapters

    def _users(self, adapter: Resident) -> int:
        return sum(sequence.adapter is adapter for sequence in self._scheduler.sequences)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._settle is not None or self._scheduler.has_work

    @property
    def held_pages(self) -> int:
        """Pages that sequences hold now; those that are only kept are not among them."""
        return sum(part.pages.held for part in self._scheduler.parts)

    @property
    def cache_bytes(self) -> int:
        """Of pages and rings, of all devices together; a draft's left out."""
        return self._runner.cache_bytes

    def audit(self) -> None:
        """Raises an AssertionError if pages or rings are held that no sequence under way has."""
        self._scheduler.check()

    def limit_of(self, request: Request) -> int:
        """How many tokens a request may come to, prompt included. Any thread may ask.

        Raises:
          UserError: an empty prompt, an id outside the vocabulary, no room left to answer, more
            tokens than the engine has room for, a value out of its range, or an adapter that is
            not loaded.
        """
        config, prompt = self.model.config, request.prompt
        check_sampling(request, config.vocab_size)
        check_prompt(config, prompt, request.max_tokens)
        if len(prompt) >= self._room.context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens; the engine has room for "
                f"{self._room.context} a sequence, and at least one is needed for the answer"
            )
        limit = min(len(prompt) + request.max_tokens, self._room.context)
        if pages_for(limit) > self._room.pages:
            raise UserError(
                f"{limit} tokens need {pages_for(limit)} pages of the cache, which has "
                f"{self._room.pages}; ask for fewer tokens"
            )
        if request.adapter is not None:
            self.adapters.find(request.adapter)
        return limit

    def submit(self, request: Request) -> requests.Sequence:
        """Takes a request; it begins with one of the next steps.

        Raises:
          UserError: as `limit_of`.
        """
        sequence = self._begun(request, self._submitted, self.limit_of(request))
        self._submitted += 1
        self._scheduler.add(sequence)
        return sequence

    def _begun(self, request: Request, order: int, limit: int) -> requests.Sequence:
        sequence = requests.Sequence(request, order, limit, list(request.prompt))
        if request.adapter is not None:
            sequence.adapter = self.adapters.find(request.adapter)
        if request.constraint is not None:
            constraint: Any = Elsewhere() if self.follows else request.constraint
            sequence.matcher = constraint.matcher()
        return sequence

    def cancel(self, sequence: requests.Sequence) -> None:
        """Ends a request before the next device call; its tokens so far stay."""
        sequence.cancelled = True

    @property
    def follows(self) -> bool:
        """Whether process 0 decides what this one computes."""
        return isinstance(self._scheduler, Following)

    @property
    def leads(self) -> bool:
        """Whether other processes compute what this one decides."""
        return isinstance(self._scheduler, Leading)

    @property
    def closed(self) -> bool:
        """Whether process 0 tells this one of nothing more."""
        return isinstance(self._scheduler, Following) and self._scheduler.closed

    def close(self) -> None:
        """Of several processes, ends what they do together; no engine is used after this."""
        if isinstance(self._scheduler, Leading):
            self._scheduler.close()
        while self.follows and not self.closed:
            self.step()

    def step(self) -> list[requests.Sequence]:
        """Waits for the device call under way, begins the next; the sequences with new tokens."""
        fresh = self._settle() if self._settle else []
        self._settle = None
        for sequence in fresh:
            self._follow(sequence)
        guess = self._guesses if self._speculates and self._runner.pace.pays() else None
        call = self._scheduler.next(self._runner.most_steps, guess)
        if isinstance(call, Prefill):
            newest = self._runner.prefill(call)
            self._settle = lambda: self._prefilled(call, newest())
        elif isinstance(call, Verify):
            tokens = self._runner.verify(call, self._drafter.seconds if self._drafter else 0.0)
            self._settle = lambda: self._decoded(call, tokens())
        elif call is not None:
            tokens = self._runner.decode(call)
            self._settle = lambda: self._decoded(call, tokens())
        return fresh

    def _guesses(self, rows: Sequence[requests.Sequence | None]) -> list[Sequence[int]]:
        """For each row, no more than there is room for: one token comes in any case."""
        left = [s.limit - len(s.tokens) - 1 if s else 0 for s in rows]
        if self._drafter is None:
            return [
                _guess(s, min(n, VERIFIED - 1)) if s else ()
                for s, n in zip(rows, left, strict=True)
            ]
        return [row[:n] for row, n in zip(self._drafter.guess(rows), left, strict=True)]

    def _prefilled(self, call: Prefill, made: Made) -> list[requests.Sequence]:
        newest = made.token_BS[:, 0].tolist()
        return _with_logprobs(self._scheduler.prefilled(call, newest, self._stops), call, made)

    def _decoded(self, call: Decode | Verify, made: Made) -> list[requests.Sequence]:
        tokens = made.token_BS.tolist()
        return _with_logprobs(self._scheduler.decoded(call, tokens, self._stops), call, made)

    def _follow(self, sequence: requests.Sequence) -> None:
        """Tells a constraint what came; a constrained sequence gets one token a step."""
        matcher = sequence.matcher
        if matcher is None:
            return
        if matcher.problem:
            # It was sampled where nothing may come.
            sequence.tokens.pop()
            del sequence.logprobs[len(sequence.generated) :]
        elif not sequence.ended:
            matcher.accept(sequence.tokens[-1])
        if matcher.problem:
            self.cancel(sequence)

    def follow(self, sequence: requests.Sequence) -> Iterator[list[int]]:
        """A submitted request's new tokens as they come; others run beside it.

        Whoever stops iterating cancels it.
        """
        seen = 0
        try:
            while True:
                new = sequence.generated[seen:]
                if new:
                    seen += len(new)
                    yield new
                elif sequence.ended:
                    return
                else:
                    self.step()
        finally:
            self.cancel(sequence)

    def run(self, asked: Iterable[Request]) -> Iterator[tuple[int, list[int]]]:
        """Submits all; gives (number of the request, its new tokens) as they come.

        Whoever stops iterating cancels them, as does one that cannot be.
        """
        number: dict[requests.Sequence, int] = {}
        try:
            for index, request in enumerate(asked):
                number[self.submit(request)] = index
            seen = dict.fromkeys(number, 0)
            while self.busy:
                for sequence in self.step():
                    if sequence in number:
                        new = sequence.generated[seen[sequence] :]
                        seen[sequence] += len(new)
                        yield number[sequence], new
            # What came while somebody else had the engine step.
            for sequence, index in number.items():
                if new := sequence.generated[seen[sequence] :]:
                    yield index, new
        finally:
            for sequence in number:
                self.cancel(sequence)


def _are_several(model: GptOss) -> bool:
    """Whether the model is split over several processes."""
    return len({d.process_index for d in sharding.devices_of(model.embedding_VD[...])}) > 1


def _guess(sequence: requests.Sequence, most: int) -> Sequence[int]:
    return sequence.lookup.guess(sequence.tokens, most)


def _check_draft(draft: GptOss, model: GptOss) -> None:
    if _are_several(model):
        raise UserError("a draft guesses in one process only, and these are several; leave it out")
    if draft.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the draft has {draft.config.vocab_size} ids, the model {model.config.vocab_size}; "
            "use one with the same tokenizer"
        )
    of_draft, of_model = (sharding.mesh_of(m.embedding_VD[...]) for m in (draft, model))
    if of_draft != of_model:
        raise UserError("the draft is not on the model's mesh; load both with the same `mesh`")


def _with_logprobs(
    fresh: list[requests.Sequence], call: Prefill | Decode | Verify, made: Made
) -> list[requests.Sequence]:
    """Tells those that asked how likely their new tokens were."""
    row_of = {sequence: row for row, sequence in enumerate(call.rows)}
    for sequence in fresh:
        most = sequence.request.logprobs
        if most is not None:
            row = row_of[sequence]
            count = len(sequence.generated) - len(sequence.logprobs)
            ids_SK, values_SK = (x[row, :count] for x in (made.id_BSK, made.logprob_BSK))
            sequence.logprobs += logprobs.read(ids_SK, values_SK, most)  # pyright: ignore[reportArgumentType]
    return fresh


def engine_for(model: GptOss, tokenizer: Tokenizer, max_sequences: int, **options: Any) -> Engine:
    """An engine that stops and samples as the tokenizer says.

    Args:
      model: the network.
      tokenizer: its tokenizer.
      max_sequences: that run at once.
      **options: of `Engine`.
    """
    banned = tokenizer.unsampleable_ids(model.config.vocab_size)
    stops = sorted(tokenizer.stop_ids)
    return Engine(model, stops, banned, max_sequences=max_sequences, **options)
