"""Which sequences the next device call computes, and where they keep their keys and values.

A pure state machine: `next` gives a call, `prefilled` or `decoded` takes what came of it. Knows no
device, and of no other process: `following`.

A sequence waits until a ring and the pages of its whole prompt are free. Prompts go in chunks,
which take turns with each other and with decoding. A sequence that grows beyond the free pages
displaces the youngest, which waits again and is computed anew: as the random numbers of a token
depend on the seed and its position alone, nobody sees it. One whose prompt begins as another's that
is being computed waits for the pages of that one, and lets those behind it pass. What an ended
sequence leaves in the cache is kept as long as there is room, its last page included: `tails`.
"""

import bisect
import dataclasses
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from typing import NamedTuple

from gptoss_jax.inference.pools import Pool, prefix_keys
from gptoss_jax.inference.requests import Sequence, Stage
from gptoss_jax.inference.tails import Tail, Tails
from gptoss_jax.model.cache import PAGE, pages_for

# Tokens a row of a prefill call, which has at most the largest's tokens in all.
WIDTHS = (32, 128, 512)
# Tokens a row of a call that verifies guesses, the newest one included.
VERIFIED = 8
# Sequences of such a call: more of them keep a device busy without guesses, and each has the logits
# of all its tokens.
_MOST_VERIFIED = 8
# Waiting sequences that one step looks past, beside those that could run: the host has little time.
_MOST_PASSED = 256


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Chunks of prompts.

    Attributes:
      rows: the sequences, None where there is none; each part's after another's.
      added: how many tokens of each row are real.
      width: tokens a row.
    """

    rows: Rows[Sequence | None]
    added: Rows[int]
    width: int


@dataclasses.dataclass(frozen=True)
class Decode:
    """Several tokens of each sequence; rows as in `Prefill`."""

    rows: Rows[Sequence | None]
    steps: int


@dataclasses.dataclass(frozen=True)
class Verify:
    """Guessed tokens of each sequence, and one more; rows as in `Prefill`."""

    rows: Rows[Sequence | None]
    guesses: Rows[Rows[int]]


Call = Prefill | Decode | Verify
Guess = Callable[[Rows[Sequence | None]], Rows[Rows[int]]]


class Part:
    """The devices that hold some of the sequences: their pages, rings, and who runs there."""

    def __init__(self, pages: int, rings: int):
        """Nothing runs."""
        self.pages = Pool(pages)
        self.rings = Pool(rings)
        self.tails = Tails(self.pages, self.rings, rings)
        self.running: list[Sequence] = []


class Scheduler:
    """See the module."""

    def __init__(
        self, *, sequences: int, pages: int, rings: int, parts: int = 1, reuse: bool = True
    ):
        """Prepares for devices that hold nothing.

        Args:
          sequences: that run at once, of one part.
          pages: of one part.
          rings: of one part, one a sequence at least; more of them keep prefixes.
          parts: that sequences are split over.
          reuse: whether prompts that begin the same share pages.
        """
        self.parts = [Part(pages, rings) for _ in range(parts)]
        self._sequences = sequences
        self._reuse = reuse
        self._waiting: list[Sequence] = []
        self._calls = 0
        self._overtook = False  # somebody under way, in the last call of prompts
        self._prefilled_last = False

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting) or any(part.running for part in self.parts)

    @property
    def sequences(self) -> list[Sequence]:
        """All that wait or run."""
        return [*self._waiting, *(s for part in self.parts for s in part.running)]

    def check(self) -> None:
        """Raises an AssertionError if what is held is not what the running sequences have."""
        for part in self.parts:
            part.pages.check(sum(len(s.pages) for s in part.running))
            part.rings.check(sum(len({s.ring, s.source}) for s in part.running))

    def add(self, sequence: Sequence) -> None:
        """A new sequence, or one that was displaced: the earlier it came, the sooner it runs."""
        bisect.insort(self._waiting, sequence, key=lambda s: (-s.request.priority, s.order))

    def next(self, most_steps: int, guess: Guess | None = None) -> Call | None:
        """The next call, or None where nothing is to be done.

        Args:
          most_steps: how many tokens a decode call may make of each sequence while nobody waits
            for a place, or for the rest of a prompt.
          guess: takes the rows of a call, gives up to VERIFIED - 1 tokens that may come next in
            each; None: nobody guesses.
        """
        self._drop_cancelled()
        self._admit()
        running = [s for part in self.parts for s in part.running]
        prefilling = [s for s in running if s.stage is Stage.PREFILLING]
        if prefilling and not (self._prefilled_last and len(prefilling) < len(running)):
            self._prefilled_last = True
            return self._prefill(prefilling)
        self._prefilled_last = False
        if guess is not None and (guessed := self._guesses(running, guess)):
            return guessed
        steps = 1 if prefilling or self._waiting else _until_an_end(running, most_steps)
        return self._decode(steps) if running else None

    def prefilled(self, call: Prefill, newest: Rows[int], stops: frozenset[int]) -> list[Sequence]:
        """Takes the newest token of each row; gives the sequences that have a new one."""
        fresh = []
        for sequence, added, token in zip(call.rows, call.added, newest, strict=True):
            if sequence is None or sequence.ended:
                continue
            part = self.parts[sequence.part]
            sequence.computed += added
            if sequence.source != sequence.ring:
                part.rings.release(sequence.source)
                sequence.source = sequence.ring
            self._publish(sequence, part)
            if sequence.computed == len(sequence.tokens):
                sequence.stage = Stage.DECODING
                self._append(sequence, [token], stops)
                fresh.append(sequence)
        return fresh

    def decoded(
        self, call: Decode | Verify, tokens: Iterable[Rows[int]], stops: frozenset[int]
    ) -> list[Sequence]:
        """Takes each row's tokens, -1 after the last; gives the sequences that have new ones."""
        fresh = []
        for sequence, row in zip(call.rows, tokens, strict=True):
            if sequence is None or sequence.ended:
                continue
            made = [token for token in row if token >= 0]
            sequence.computed += len(made)
            self._append(sequence, made, stops)
            fresh.append(sequence)
        return fresh

    def _append(self, sequence: Sequence, made: list[int], stops: frozenset[int]) -> None:
        sequence.tokens += made
        if made[-1] in stops or len(sequence.tokens) >= sequence.limit:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        if self._reuse and sequence.stage is Stage.DECODING:
            self._keep(sequence, self.parts[sequence.part])
        self._vacate(sequence)
        sequence.stage = Stage.ENDED

    def _keep(self, sequence: Sequence, part: Part) -> None:
        """Lets a prompt that says all that is cached, and more, go on from there."""
        cached = sequence.tokens[: sequence.computed]
        whole, root = len(cached) // PAGE, _root(sequence)
        keys = prefix_keys(cached, PAGE, sequence.keys[:whole], root)
        for page, key in zip(sequence.pages, keys, strict=False):
            part.pages.publish(page, key)
        before = keys[-1] if keys else root
        if len(cached) % PAGE:
            tokens = cached[whole * PAGE :]
            part.tails.keep(before, tokens, sequence.pages[whole], sequence.ring)
        else:
            part.rings.publish(sequence.ring, before)

    def _vacate(self, sequence: Sequence) -> None:
        """Gives back all that a running sequence holds."""
        part = self.parts[sequence.part]
        part.running.remove(sequence)
        # The last first, so that of a kept prefix the beginning stays longest.
        for page in reversed(sequence.pages):
            part.pages.release(page)
        for ring in {sequence.ring, sequence.source}:
            part.rings.release(ring)
        sequence.pages, sequence.ring, sequence.source, sequence.computed = [], 0, 0, 0

    def _displace(self, sequence: Sequence) -> None:
        self._vacate(sequence)
        sequence.stage = Stage.WAITING
        self.add(sequence)

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self._waiting if s.cancelled]:
            self._waiting.remove(sequence)
            sequence.stage = Stage.ENDED
        for part in self.parts:
            for sequence in [s for s in part.running if s.cancelled]:
                self._end(sequence)

    # --- Prompts ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Lets those begin who can, in their order: nobody overtakes one that is too large now."""
        for sequence in self._waiting[: self._sequences * len(self.parts) + _MOST_PASSED]:
            if all(len(part.running) == self._sequences for part in self.parts):
                return
            if self._reuse:
                sequence.keys = prefix_keys(sequence.tokens, PAGE, sequence.keys, _root(sequence))
                if self._awaits(sequence):
                    continue
            # Where most of the prompt is kept, then where fewest run.
            starts = [self._start(sequence, part) for part in self.parts]
            order = sorted(
                range(len(self.parts)),
                key=lambda i: (-starts[i].tokens, len(self.parts[i].running)),
            )
            fitting = (i for i in order if self._fits(sequence, self.parts[i], starts[i]))
            chosen = next(fitting, None)
            if chosen is None:
                return
            self._waiting.remove(sequence)
            self._begin(sequence, chosen, starts[chosen])

    def _awaits(self, sequence: Sequence) -> bool:
        """Whether more of its prompt will be kept than is now, once another's is computed.

        That one's chunks then end where the two prompts part. Nobody waits for one that matters
        less.
        """
        with_room = [part for part in self.parts if len(part.running) < self._sequences]
        prefilling = [s for part in with_room for s in part.running if s.stage is Stage.PREFILLING]
        leading = [s for s in prefilling if s.request.priority >= sequence.request.priority]
        coming = {other: _common(other, sequence) for other in leading}
        coming = {other: n for other, n in coming.items() if n * PAGE > other.computed}
        leader = max(coming, key=lambda other: coming[other], default=None)
        if leader is None:
            return False
        if coming[leader] * PAGE <= max(self._start(sequence, part).tokens for part in with_room):
            return False
        leader.ends.add(coming[leader])
        return True

    def _there(self, sequence: Sequence, part: Part) -> int:
        """How many of the sequence's first pages are there."""
        wanted = sequence.keys[: _shareable(sequence)]
        missing = (n for n, key in enumerate(wanted) if part.pages.find(key) is None)
        return next(missing, len(wanted))

    def _kept(self, sequence: Sequence, part: Part) -> int:
        """How many of those it can go on behind: a ring is kept where they end."""
        there = range(self._there(sequence, part), 0, -1)
        return next((n for n in there if part.rings.find(sequence.keys[n - 1]) is not None), 0)

    def _start(self, sequence: Sequence, part: Part) -> "_Start":
        """Where it would begin in a part: behind a tail, or behind whole pages."""
        kept = self._kept(sequence, part)
        for pages in range(self._there(sequence, part), kept - 1, -1) if self._reuse else ():
            before = sequence.keys[pages - 1] if pages else _root(sequence)
            tail = part.tails.find(before, sequence.tokens, pages * PAGE)
            if tail is not None:
                return _Start(pages, tail)
        return _Start(kept, None)

    def _fits(self, sequence: Sequence, part: Part, start: "_Start") -> bool:
        kept, tail = start
        shared = [part.pages.find(key) for key in sequence.keys[:kept]]
        # What is kept and will be shared cannot be given away as well.
        idle = sum(part.pages.is_kept(id_) for id_ in shared if id_ is not None)
        new = pages_for(len(sequence.tokens)) - kept
        of_prefix = kept > 0 and not tail
        rings = 1 + (of_prefix and part.rings.is_kept(part.rings.find(sequence.keys[kept - 1])))
        # A page more for everyone who may grow: else what begins now is displaced at once.
        growing = sum(pages_for(s.limit) > len(s.pages) for s in part.running)
        wanted = new + idle + growing
        room = len(part.running) < self._sequences
        return room and wanted <= part.pages.available and rings <= part.rings.available

    def _begin(self, sequence: Sequence, where: int, start: "_Start") -> None:
        part = self.parts[where]
        ids = [part.pages.find(key) for key in sequence.keys[: start.pages]]
        sequence.pages = [id_ for id_ in ids if id_ is not None]
        for page in sequence.pages:
            part.pages.hold(page)
        if start.tail:
            sequence.pages.append(part.pages.claim(start.tail.key))
            sequence.ring = sequence.source = part.rings.claim(start.tail.key)
        else:
            source = part.rings.find(sequence.keys[start.pages - 1]) if start.pages else None
            if source is not None:
                part.rings.hold(source)
            sequence.ring = part.rings.take()
            sequence.source = source or sequence.ring
        while len(sequence.pages) < pages_for(len(sequence.tokens)):
            sequence.pages.append(part.pages.take())
        sequence.part = where
        sequence.computed = start.tokens
        # Whoever comes next can go on where this one would have liked to.
        sequence.ends = {self._there(sequence, part)}
        sequence.reused = max(sequence.reused, min(sequence.computed, len(sequence.request.prompt)))
        sequence.stage = Stage.PREFILLING
        sequence.begun += 1
        part.running.append(sequence)

    def _chunk(self, sequence: Sequence) -> int:
        """How many tokens its next chunk has: to share pages, one ends where others can go on."""
        left = len(sequence.tokens) - sequence.computed
        pages = (*sequence.ends, _shareable(sequence)) if self._reuse else ()
        to_ends = [n * PAGE - sequence.computed for n in pages]
        # Also where it began within a page a chunk ends with one.
        most = WIDTHS[-1] - sequence.computed % PAGE
        return min(most, left, *(n for n in to_ends if n > 0))

    def _prefill(self, prefilling: list[Sequence]) -> Prefill:
        """The sequence that waited longest, and as many others as the call has rows for.

        One that begins goes before those under way, but not twice on end: a long prompt gets every
        other call, however many begin meanwhile.
        """
        self._calls += 1

        def turn(s: Sequence) -> tuple:
            last = self._overtook and not s.served
            return last, s.served, -s.request.priority, s.order

        prefilling = sorted(prefilling, key=turn)
        self._overtook = not prefilling[0].served and any(s.served for s in prefilling)
        width = width_for(self._chunk(prefilling[0]))
        fitting = [s for s in prefilling if self._chunk(s) <= width]
        of_part = [[s for s in fitting if s.part == i] for i in range(len(self.parts))]
        size = min(self._bucket(max(map(len, of_part))), WIDTHS[-1] // width)
        rows = _in_parts(of_part, size)
        for sequence in filter(None, rows):
            sequence.served = self._calls
        return Prefill(rows, [self._chunk(s) if s else 0 for s in rows], width)

    def _publish(self, sequence: Sequence, part: Part) -> None:
        """Keeps the pages that are whole, and the ring if it stands at a page's end."""
        if not self._reuse or not sequence.keys:
            return
        whole = min(sequence.computed // PAGE, len(sequence.keys))
        for page, key in zip(sequence.pages[:whole], sequence.keys, strict=False):
            part.pages.publish(page, key)
        at_end = whole and sequence.computed == whole * PAGE
        if not at_end or sequence.computed == len(sequence.tokens):
            return  # decoding goes on in this very ring
        if part.rings.find(sequence.keys[whole - 1]) is None and part.rings.available:
            part.rings.publish(sequence.ring, sequence.keys[whole - 1])
            sequence.source, sequence.ring = sequence.ring, part.rings.take()

    # --- Answers ---------------------------------------------------------------------------------

    def _guesses(self, running: list[Sequence], guess: Guess) -> Verify | None:
        """A call for all that decode, if there is a guess for any and all can have guesses."""
        decoding = [s for s in running if s.stage is Stage.DECODING]
        if len(decoding) > _MOST_VERIFIED:
            return None
        if any(s.matcher or s.request.adjusts or s.request.logprobs is not None for s in decoding):
            return None
        call = self._decode(VERIFIED)
        if call is None or call.steps < VERIFIED:  # pages are few
            return None
        guesses = guess(call.rows)
        return Verify(call.rows, guesses) if any(guesses) else None

    def _decode(self, steps: int) -> Decode | None:
        running = [s for part in self.parts for s in part.running]
        if any(s.matcher for s in running):
            steps = 1  # the host says what may come after each token
        for part in self.parts:
            steps = self._make_room(part, steps)
        of_part = [[s for s in part.running if s.stage is Stage.DECODING] for part in self.parts]
        most = max(map(len, of_part))
        return Decode(_in_parts(of_part, self._bucket(most)), steps) if most else None

    def _make_room(self, part: Part, steps: int) -> int:
        """Gives every decoding sequence its pages for the next tokens; how many those may be."""

        def wanted(steps: int) -> int:
            decoding = [s for s in part.running if s.stage is Stage.DECODING]
            return sum(self._missing(s, steps) for s in decoding)

        while steps > 1 and wanted(steps) > part.pages.available:
            steps //= 2
        while wanted(steps) > part.pages.available:
            self._displace(max(part.running, key=lambda s: (-s.request.priority, s.order)))
        for sequence in part.running:
            if sequence.stage is Stage.DECODING:
                for _ in range(self._missing(sequence, steps)):
                    sequence.pages.append(part.pages.take())
        return steps

    def _bucket(self, count: int) -> int:
        """Rows a part for `count` sequences: a power of four or all, so that few are compiled."""
        return min(1 << 2 * (((count - 1).bit_length() + 1) // 2), self._sequences)

    def _missing(self, sequence: Sequence, steps: int) -> int:
        """Pages it lacks to have `steps` more tokens in the cache."""
        last = min(sequence.computed + steps, sequence.limit)
        return max(0, pages_for(last) - len(sequence.pages))


class _Start(NamedTuple):
    """Where a prompt begins to be computed: behind so many pages, and a tail."""

    pages: int
    tail: Tail | None

    @property
    def tokens(self) -> int:
        return self.pages * PAGE + (self.tail.length if self.tail else 0)


def _root(sequence: Sequence) -> bytes:
    """What the cache depends on beside tokens, see `prefix_keys`."""
    return sequence.adapter.root if sequence.adapter else b""


def _until_an_end(running: Rows[Sequence], most: int) -> int:
    """Steps up to which no sequence has all its tokens: then its place is another's."""
    return max(1, min([most, *(s.limit - len(s.tokens) for s in running)]))


def width_for(tokens: int) -> int:
    """Tokens a row of the call that prefills so many, or the first of them."""
    return next((width for width in WIDTHS if width >= tokens), WIDTHS[-1])


def _shareable(sequence: Sequence) -> int:
    """Pages of its prompt that others can go on from: one token at least is theirs to compute."""
    return (len(sequence.tokens) - 1) // PAGE


def _common(one: Sequence, other: Sequence) -> int:
    """Pages that both prompts begin with, and that either can go on behind."""
    most = min(_shareable(one), _shareable(other), len(one.keys), len(other.keys))
    # A key stands for all before it.
    return bisect.bisect_left(range(most), True, key=lambda n: one.keys[n] != other.keys[n])


def _in_parts(of_part: list[list[Sequence]], size: int) -> list[Sequence | None]:
    """`size` rows of each part, None where it has fewer."""
    return [s for own in of_part for s in [*own, *[None] * size][:size]]
