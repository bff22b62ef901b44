"""Several processes: the first one schedules, the others make the same device calls.

Before each call process 0 tells what it computes: which sequences, where they keep their keys and
values, and how many tokens. Only it knows who waits, what constraints allow and what guesses are
worth; the others know a sequence by the order of its submission, and read its tokens from their own
devices. A request need not have been submitted in them, and where it has been, its sequence there
gets the tokens too.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any, TypeVar

import jax

from gptoss_jax import distributed
from gptoss_jax.inference.requests import Request, Sequence, Stage
from gptoss_jax.inference.scheduler import Call, Decode, Guess, Part, Prefill, Scheduler, Verify

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a sequence of a call holds; of its pages those that the others do not know of."""

    order: int
    known: int
    pages: list[int]
    ring: int
    source: int
    computed: int


@dataclasses.dataclass(frozen=True)
class _End:
    """How a sequence ended: how many tokens it has, and why its constraint cut it short."""

    order: int
    tokens: int
    cut_short: str | None


@dataclasses.dataclass(frozen=True)
class _Told:
    """What comes next.

    Attributes:
      new: the order of submission, the limit and the request of each that is new.
      ended: since what was told before.
      rows: of the call.
      details: what else the call is made of, None where there is none.
      has_work: whether any sequence waits or runs.
      closed: whether nothing will be told any more.
      problem: why process 0 cannot go on, None if it can.
    """

    new: list[tuple[int, int, Request]] = dataclasses.field(default_factory=list)
    ended: list[_End] = dataclasses.field(default_factory=list)
    rows: list[_Row | None] = dataclasses.field(default_factory=list)
    details: tuple[type, dict[str, Any]] | None = None
    has_work: bool = False
    closed: bool = False
    problem: str | None = None


class Elsewhere:
    """Stands for a constraint, and for its matcher, that process 0 follows.

    Attributes:
      problem: "error", if it gave up.
      hurried: whether the answer was brought to its end before it grew too long.
    """

    def __init__(self, cut_short: str | None = None):
        """Of a sequence that has not ended, or as `cut_short` of it says."""
        self.problem = "error" if cut_short == "error" else None
        self.hurried = cut_short == "length"

    def matcher(self) -> "Elsewhere":
        """Of one sequence."""
        return Elsewhere()

    def accept(self, token: int) -> None:
        """Process 0 looks at it."""


def made_by_first(make: Callable[[], _T]) -> _T:
    """What process 0 makes, in every process; what that raises, too."""
    made: Any = None
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            made = make()
        except Exception as raised:
            error = raised
    made, problem = distributed.of_first((made, None if error is None else repr(error)))
    if error is not None:
        raise error
    if problem is not None:
        raise RuntimeError(f"process 0: {problem}")
    return made


class Leading(Scheduler):
    """The scheduler of process 0, which tells the others."""

    def __init__(self, **options: Any):
        """As `Scheduler`."""
        super().__init__(**options)
        self._new: list[Sequence] = []
        self._pages: dict[Sequence, list[int]] = {}  # that the others know of

    def add(self, sequence: Sequence) -> None:
        """As `Scheduler.add`."""
        super().add(sequence)
        if sequence not in self._pages:
            self._new.append(sequence)
            self._pages[sequence] = []

    def next(self, most_steps: int, guess: Guess | None = None) -> Call | None:
        """As `Scheduler.next`; the others are told before the call begins."""
        try:
            call = super().next(most_steps, guess)
            told = self._told(call)
        except Exception as error:
            distributed.of_first(_Told(problem=repr(error)))
            raise
        distributed.of_first(told)
        return call

    def _told(self, call: Call | None) -> _Told:
        ended = [s for s in self._pages if s.ended]
        told = _Told(
            new=[(s.order, s.limit, _plain(s.request)) for s in self._new],
            ended=[_End(s.order, len(s.tokens), s.cut_short) for s in ended],
            rows=[self._row(s) for s in call.rows] if call else [],
            details=call and (type(call), _details(call)),
            has_work=self.has_work,
        )
        for sequence in ended:
            del self._pages[sequence]
        self._new = []
        return told

    def close(self) -> None:
        """Lets the others go; no call after this."""
        distributed.of_first(_Told(closed=True))

    def _row(self, sequence: Sequence | None) -> _Row | None:
        if sequence is None:
            return None
        known, pages = self._pages[sequence], sequence.pages
        kept = len(known) if pages[: len(known)] == known else 0
        self._pages[sequence] = list(pages)
        s = sequence
        return _Row(s.order, kept, pages[kept:], s.ring, s.source, s.computed)


class Following:
    """In place of a scheduler: makes the calls that process 0 tells of.

    Attributes:
      has_work: whether any sequence waits or runs.
      closed: whether process 0 will tell of no more.
      parts: none whose pages it would know of.
    """

    parts: Rows[Part] = ()

    def __init__(self, begin: Callable[[Request, int, int], Sequence]):
        """Knows of nothing.

        Args:
          begin: makes the sequence of a request, of its order and of its limit.
        """
        self.has_work = self.closed = False
        self._begin = begin
        self._known: dict[int, Sequence] = {}

    @property
    def sequences(self) -> list[Sequence]:
        """All that wait or run."""
        return list(self._known.values())

    def check(self) -> None:
        """What is held is process 0's to check."""

    def add(self, sequence: Sequence) -> None:
        """A sequence that was submitted in all processes."""
        self._known[sequence.order] = sequence
        self.has_work = True

    def next(self, most_steps: int, guess: Guess | None = None) -> Call | None:
        """The call that process 0 begins, which alone decides by what is given here."""
        told = distributed.of_first(_Told())
        self.has_work, self.closed = told.has_work, told.closed
        if told.problem is not None:
            raise RuntimeError(f"process 0: {told.problem}")
        for order, limit, request in told.new:
            if order not in self._known:
                self._known[order] = self._begin(request, order, limit)
        for end in told.ended:
            _end(self._known.pop(end.order), end)
        if told.details is None:
            return None
        kind, details = told.details
        return kind(rows=[self._placed(row) for row in told.rows], **details)

    def prefilled(self, call: Prefill, newest: Rows[int], stops: frozenset[int]) -> list[Sequence]:
        """As `Scheduler.prefilled`; what ended, process 0 tells."""
        fresh = []
        for sequence, added, token in zip(call.rows, call.added, newest, strict=True):
            if sequence is not None and sequence.computed + added == len(sequence.tokens):
                sequence.tokens.append(token)
                fresh.append(sequence)
        return fresh

    def decoded(
        self, call: Decode | Verify, tokens: Rows[Rows[int]], stops: frozenset[int]
    ) -> list[Sequence]:
        """As `Scheduler.decoded`; what ended, process 0 tells."""
        fresh = []
        for sequence, row in zip(call.rows, tokens, strict=True):
            if sequence is not None:
                sequence.tokens += [token for token in row if token >= 0]
                fresh.append(sequence)
        return fresh

    def _placed(self, row: _Row | None) -> Sequence | None:
        if row is None:
            return None
        sequence = self._known[row.order]
        sequence.pages[row.known :] = row.pages
        sequence.ring, sequence.source, sequence.computed = row.ring, row.source, row.computed
        return sequence


def _end(sequence: Sequence, end: _End) -> None:
    del sequence.tokens[end.tokens :]
    del sequence.logprobs[len(sequence.generated) :]
    if sequence.matcher is not None:
        matcher: Any = Elsewhere(end.cut_short)
        sequence.matcher = matcher
    sequence.stage = Stage.ENDED


def _details(call: Call) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(call))
    return {name: getattr(call, name) for name in fields if name != "rows"}


def _plain(request: Request) -> Request:
    """As it can be sent, of its constraint only that there is one; stop strings are no engine's."""
    constraint: Any = None if request.constraint is None else Elsewhere()
    return dataclasses.replace(
        request,
        prompt=list(request.prompt),
        logit_bias=dict(request.logit_bias),
        stop=(),
        constraint=constraint,
    )
