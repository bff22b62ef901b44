"""The scheduler as a state machine: random requests, cancellations, and small pools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gptoss_jax.inference import scheduler as scheduling
from gptoss_jax.inference.pools import Pool, prefix_keys
from gptoss_jax.inference.requests import Request, Sequence, Stage
from gptoss_jax.inference.scheduler import Prefill, Scheduler
from gptoss_jax.model import cache

pytestmark = pytest.mark.fast
PAGE = 4
WIDTHS = (4, 8)
STOP = 0
PAGES, RINGS, SEQUENCES = 12, 9, 3


@pytest.fixture(autouse=True, scope="module")
def small_pages():
    with pytest.MonkeyPatch.context() as patch:
        for module in (cache, scheduling):
            patch.setattr(module, "PAGE", PAGE)
        patch.setattr(scheduling, "WIDTHS", WIDTHS)
        yield


def next_token(tokens: list[int]) -> int:
    """What the model says after these tokens: a function of them all, now and then a stop."""
    return (sum(tokens) * 31 + len(tokens) * 17) % 23


class Machine(RuleBasedStateMachine):
    """Beside the scheduler a device that remembers what is written to each place."""

    def __init__(self):
        super().__init__()
        self.parts = 2
        self.scheduler = Scheduler(
            sequences=SEQUENCES, pages=PAGES, rings=RINGS, parts=self.parts, reuse=True
        )
        self.submitted: list[Sequence] = []
        # What the cache holds: of pages their tokens, of rings all tokens up to where they stand.
        self.page_tokens = [[None] * (PAGES + 1) for _ in range(self.parts)]
        self.ring_tokens = [[None] * (RINGS + 1) for _ in range(self.parts)]

    @rule(
        shared=st.integers(0, 3),
        own=st.integers(1, 12),
        max_tokens=st.integers(1, 14),
        priority=st.integers(0, 1),
    )
    def submit(self, shared, own, max_tokens, priority):
        prompt = [1, 2, 3, 4] * shared + [5 + (own + i) % 7 for i in range(own)]
        limit = min(len(prompt) + max_tokens, PAGES * PAGE)
        request = Request(tuple(prompt), max_tokens, priority=priority)
        sequence = Sequence(request, len(self.submitted), limit, list(prompt))
        self.submitted.append(sequence)
        self.scheduler.add(sequence)

    @rule(shared=st.integers(0, 3), own=st.integers(1, 6), count=st.integers(2, 4))
    def submit_copies(self, shared, own, count):
        for _ in range(count):
            self.submit(shared, own, 5, 0)

    @rule(which=st.integers(0, 50), more=st.integers(1, 9), count=st.integers(1, 2))
    @precondition(lambda self: any(s.ended for s in self.submitted))
    def go_on(self, which, more, count):
        """With all that was said, and more."""
        ended = [s for s in self.submitted if s.ended]
        prompt = [*ended[which % len(ended)].tokens, *range(6, 6 + more)]
        if len(prompt) >= PAGES * PAGE:
            return
        for _ in range(count):
            sequence = Sequence(Request(tuple(prompt), 3), len(self.submitted), 0, list(prompt))
            sequence.limit = min(len(prompt) + 3, PAGES * PAGE)
            self.submitted.append(sequence)
            self.scheduler.add(sequence)

    @rule(which=st.integers(0, 50))
    @precondition(lambda self: self.submitted)
    def cancel(self, which):
        self.submitted[which % len(self.submitted)].cancelled = True

    @rule(most_steps=st.integers(1, 9))
    def step(self, most_steps):
        call = self.scheduler.next(most_steps)
        if call is None:
            return
        size = len(call.rows) // self.parts
        for index, sequence in enumerate(call.rows):
            assert sequence is None or sequence.part == index // size
        if isinstance(call, Prefill):
            self.prefill(call)
        else:
            self.decode(call)

    def prefill(self, call: Prefill):
        assert call.width in WIDTHS and len(call.rows) // self.parts * call.width <= WIDTHS[-1]
        newest = []
        for sequence, added in zip(call.rows, call.added, strict=True):
            if sequence is None:
                newest.append(-7)
                continue
            assert 0 < added <= call.width and sequence.stage is Stage.PREFILLING
            done = sequence.tokens[: sequence.computed]
            self.check_cached(sequence, done, sequence.source)
            after = sequence.tokens[: sequence.computed + added]
            self.write(sequence, after, len(done))
            newest.append(next_token(after))
        self.scheduler.prefilled(call, newest, frozenset([STOP]))

    def decode(self, call):
        assert call.steps >= 1
        out = np.full((len(call.rows), 9), -1)
        for row, sequence in zip(out, call.rows, strict=True):
            if sequence is None:
                continue
            assert sequence.stage is Stage.DECODING
            assert sequence.computed == len(sequence.tokens) - 1
            tokens = list(sequence.tokens)
            self.check_cached(sequence, tokens[:-1], sequence.ring)
            for step in range(call.steps):
                self.write(sequence, tokens, len(tokens) - 1)
                tokens.append(next_token(tokens))
                row[step] = tokens[-1]
                if tokens[-1] == STOP or len(tokens) >= sequence.limit:
                    break
        self.scheduler.decoded(call, out.tolist(), frozenset([STOP]))

    def check_cached(self, sequence, tokens, ring):
        """The cache holds exactly these tokens for the sequence."""
        pages = self.page_tokens[sequence.part]
        for position, token in enumerate(tokens):
            held = pages[sequence.pages[position // PAGE]]
            assert held is not None and held[position % PAGE] == token
        if tokens:
            assert self.ring_tokens[sequence.part][ring] == tokens

    def write(self, sequence, tokens, first):
        pages = self.page_tokens[sequence.part]
        for position in range(first, len(tokens)):
            page = sequence.pages[position // PAGE]
            if position % PAGE == 0 or pages[page] is None:
                pages[page] = [None] * PAGE
            pages[page][position % PAGE] = tokens[position]
        self.ring_tokens[sequence.part][sequence.ring] = list(tokens)

    @invariant()
    def nobody_shares_what_is_written(self):
        self.scheduler.check()
        for part in self.scheduler.parts:
            assert len(part.running) <= SEQUENCES
            held = sum(len(set(s.pages)) for s in part.running)
            assert part.pages.held <= held
            writable = [s.pages[i] for s in part.running for i in self.unwritten(s)]
            assert len(writable) == len(set(writable))
            assert 0 not in writable
            rings = [s.ring for s in part.running]
            assert len(rings) == len(set(rings)) and 0 not in rings
            others = {s.source for s in part.running if s.source != s.ring}
            assert not others & set(rings)

    @staticmethod
    def unwritten(sequence):
        return range(sequence.computed // PAGE, len(sequence.pages))

    def teardown(self):
        """Everything ends, as it would alone, and nothing is held any more."""
        for _ in range(3000):
            if not self.scheduler.has_work:
                break
            self.step(9)
        assert not self.scheduler.has_work
        for sequence in self.submitted:
            assert sequence.ended
            tokens = list(sequence.request.prompt)
            while len(tokens) < len(sequence.tokens):
                tokens.append(next_token(tokens))
            assert sequence.tokens == tokens
            finished = tokens[-1] == STOP or len(tokens) == sequence.limit
            assert finished or sequence.cancelled
        for part in self.scheduler.parts:
            assert part.pages.held == part.rings.held == 0


def answer(scheduler: Scheduler, call, computed: dict[Sequence, int]) -> None:
    """Says 9 in every row, and counts what is prefilled of each sequence."""
    if isinstance(call, Prefill):
        for sequence, added in zip(call.rows, call.added, strict=True):
            computed[sequence] = computed.get(sequence, 0) + added
        scheduler.prefilled(call, [9] * len(call.rows), frozenset())
    else:
        scheduler.decoded(call, [[9]] * len(call.rows), frozenset())


@given(
    length=st.integers(1, 40),
    copies=st.integers(2, SEQUENCES),
    other=st.integers(0, 20),
    early=st.integers(0, 3),
)
def test_of_copies_one_computes_the_whole_pages(length, copies, other, early):
    """The rest of less than a page, one token at least, is everyone's own."""
    scheduler = Scheduler(sequences=SEQUENCES + 1, pages=100, rings=60)
    prompt = list(range(100, 100 + length))
    asked = [prompt] * copies + ([list(range(500, 500 + other))] if other else [])
    sequences = [
        Sequence(Request(ids, 3), order, len(ids) + 3, list(ids)) for order, ids in enumerate(asked)
    ]
    computed = dict.fromkeys(sequences, 0)
    # Those that come while the first is under way wait for it as well.
    waiting = sequences[1:]
    scheduler.add(sequences[0])
    for count in range(200):
        if count >= early:
            while waiting:
                scheduler.add(waiting.pop(0))
        call = scheduler.next(4)
        if call is None:
            break
        answer(scheduler, call, computed)
    assert all(sequence.ended for sequence in sequences) and not waiting
    shared = (length - 1) // PAGE * PAGE
    assert computed[sequences[0]] == length
    for sequence in sequences[1:copies]:
        assert computed[sequence] == length - shared
        assert sequence.reused == shared
    if other:
        assert computed[sequences[-1]] == other


def test_each_part_computes_the_pages_of_copies_once():
    """Four a part: the second part's first copy is one that found no room beside the others."""
    scheduler = Scheduler(sequences=4, pages=60, rings=40, parts=2)
    prompt = list(range(100, 111))
    sequences = [Sequence(Request(prompt, 99), i, 110, list(prompt)) for i in range(8)]
    for sequence in sequences:
        scheduler.add(sequence)
    computed = 0
    while any(s.stage is not Stage.DECODING for s in sequences):
        call = scheduler.next(1)
        if isinstance(call, Prefill):
            computed += sum(call.added)
            scheduler.prefilled(call, [1] * len(call.rows), frozenset())
        elif call is not None:
            scheduler.decoded(call, [[1]] * len(call.rows), frozenset())
    assert computed == 2 * 11 + 6 * 3
    assert [len(part.running) for part in scheduler.parts] == [4, 4]


def test_who_waits_for_a_prefix_lets_others_pass_and_gives_up_with_its_leader():
    scheduler = Scheduler(sequences=SEQUENCES, pages=60, rings=40)
    prompt = list(range(100, 130))
    leader, copy, other = (
        Sequence(Request(ids, 3), order, 40, list(ids))
        for order, ids in enumerate([prompt, prompt, [7] * 9])
    )
    for sequence in (leader, copy, other):
        scheduler.add(sequence)
    call = scheduler.next(1)
    assert copy.stage is Stage.WAITING and other.stage is Stage.PREFILLING
    scheduler.prefilled(call, [1] * len(call.rows), frozenset())
    leader.cancelled = True
    scheduler.next(1)
    assert leader.ended and copy.stage is Stage.PREFILLING
    assert copy.reused == 8  # of the leader's first chunk


def test_nobody_waits_for_a_prefix_of_one_that_matters_less():
    scheduler = Scheduler(sequences=2, pages=60, rings=40)
    prompt = list(range(100, 130))
    low, high, equal = (
        Sequence(Request(prompt, 3, priority=priority), order, 40, list(prompt))
        for order, priority in enumerate((0, 10, 0))
    )
    scheduler.add(low)
    scheduler.next(1)
    for sequence in (high, equal):
        scheduler.add(sequence)
    scheduler.next(1)
    assert high.stage is Stage.PREFILLING and equal.stage is Stage.WAITING


def scheduled(prompts, sequences=2):
    """(a scheduler of one part, what waits in it)."""
    scheduler = Scheduler(sequences=sequences, pages=400, rings=400)
    waiting = [
        Sequence(Request(ids, 1), order, len(ids) + 1, list(ids))
        for order, ids in enumerate(prompts)
    ]
    for sequence in waiting:
        scheduler.add(sequence)
    return scheduler, waiting


def test_a_long_prompt_is_not_kept_waiting_by_those_that_begin():
    """It gets every other call, though each step finds somebody new."""
    scheduler, (long, *short) = scheduled([[9] * 200, *([n] * 4 for n in range(100, 140))])
    calls = []
    while not long.ended:
        call = scheduler.next(1)
        calls.append(long in call.rows)
        scheduler.prefilled(call, [1] * len(call.rows), frozenset())
    assert sum(calls) == -(-200 // WIDTHS[-1]) + 1  # a last page is not shared
    assert len(calls) <= 2 * sum(calls)
    assert any(sequence.ended for sequence in short)


def test_a_free_place_is_not_kept_for_copies_that_wait():
    """Two copies wait for the first; whoever comes behind them need not."""
    scheduler, (first, *copies, other) = scheduled([[9] * 60] * 4 + [[5] * 6])
    scheduler.next(1)
    assert first.stage is Stage.PREFILLING and other.stage is Stage.PREFILLING
    assert {copy.stage for copy in copies} == {Stage.WAITING}


def test_a_decode_call_is_short_while_others_wait_and_ends_where_one_does():
    """Two places and three sequences, of 3, 5 and 9 tokens after their prompts."""
    scheduler = Scheduler(sequences=2, pages=60, rings=40)
    for order, tokens in enumerate((3, 5, 9)):
        scheduler.add(Sequence(Request([order], tokens), order, 1 + tokens, [order]))
    steps = []
    while (call := scheduler.next(8)) is not None:
        if isinstance(call, Prefill):
            scheduler.prefilled(call, [1] * len(call.rows), frozenset())
            continue
        steps.append(call.steps)
        scheduler.decoded(call, [[1] * call.steps] * len(call.rows), frozenset())
    # The third joins when the first has ended, and nobody waits from then on.
    assert steps == [1, 1, 2, 6]


def prefilled(scheduler, waiting):
    """Lets all end; how many tokens were computed of each one's prompt."""
    computed = dict.fromkeys(waiting, 0)
    while (call := scheduler.next(1)) is not None:
        for sequence, added in zip(call.rows, call.added, strict=True):
            computed[sequence] = computed.get(sequence, 0) + added
        scheduler.prefilled(call, [1] * len(call.rows), frozenset())
    return [computed[sequence] for sequence in waiting]


COMMON = list(range(100, 114))  # three pages and a half: no chunk of eight ends where they do


def test_a_common_beginning_is_computed_once_by_all_who_come_together():
    prompts = [COMMON + [9 + n] * 30 for n in range(4)]
    assert prefilled(*scheduled(prompts)) == [44, 32, 32, 32]


def test_a_common_beginning_is_found_out_by_the_second_who_comes():
    """Its pages are there, and it makes the ring that the third goes on from."""
    scheduler, found = Scheduler(sequences=2, pages=400, rings=400), []
    for n in range(3):
        ids = COMMON + [9 + n] * 30
        sequence = Sequence(Request(ids, 1), n, len(ids) + 1, list(ids))
        scheduler.add(sequence)
        found += prefilled(scheduler, [sequence])
    # A chunk of eight happened to end within: the second computes one of the three pages.
    assert found == [44, 36, 32]


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestScheduler = Machine.TestCase


def test_a_pool_gives_the_longest_unused_away_first():
    pool = Pool(3)
    ids = [pool.take() for _ in range(3)]
    for id_, key in zip(ids, (b"a", b"b", b"c"), strict=True):
        pool.publish(id_, key)
        pool.release(id_)
    assert (pool.available, pool.held) == (3, 0)
    pool.hold(ids[0])  # "a" is used again
    pool.release(ids[0])
    assert pool.take() == ids[1]
    assert pool.find(b"b") is None and pool.find(b"a") == ids[0]


def test_what_is_published_twice_is_kept_once():
    pool = Pool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.release(first)
    pool.release(second)
    assert pool.find(b"a") == first
    assert pool.available == 2


def test_a_key_stands_for_all_tokens_before():
    tokens = list(range(20))
    keys = prefix_keys(tokens, 4)
    assert len(keys) == 5
    assert prefix_keys(tokens, 4, keys[:2]) == keys
    changed = prefix_keys([9, *tokens[1:]], 4)
    assert not set(keys) & set(changed)


def computed_of(scheduler: Scheduler, sequences: list[Sequence]) -> list[int]:
    """How many tokens of each are prefilled until all have ended; each says 9s."""
    computed = dict.fromkeys(sequences, 0)
    for sequence in sequences:
        scheduler.add(sequence)
    while (call := scheduler.next(1)) is not None:
        answer(scheduler, call, computed)
    return [computed[sequence] for sequence in sequences]


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("made", [1, 4, 5])
def test_who_goes_on_from_all_that_was_said_computes_only_what_is_new(length, made):
    """The last token that was made was not computed yet. The second who comes has whole pages."""
    scheduler = Scheduler(sequences=2, pages=30, rings=20)

    def asked(tokens: list[int], count: int) -> Sequence:
        return Sequence(Request(tokens, count), 0, len(tokens) + count, list(tokens))

    prompt = list(range(100, 100 + length))
    assert computed_of(scheduler, [asked(prompt, made)]) == [length]
    longer = [*prompt, *[9] * made, 7, 8]
    cached = length + made - 1
    assert computed_of(scheduler, [asked(longer, 1)]) == [len(longer) - cached]
    other = [*longer[:-1], 5]
    (again,) = computed_of(scheduler, [asked(other, 1)])
    assert again >= len(other) - (len(other) - 1) // PAGE * PAGE
    assert scheduler.parts[0].pages.held == scheduler.parts[0].rings.held == 0


def test_a_tail_is_gone_with_its_page_or_its_ring():
    for pages, rings in ((4, 20), (30, 2)):
        scheduler = Scheduler(sequences=1, pages=pages, rings=rings)
        first = Sequence(Request([1, 2, 3], 2), 0, 5, [1, 2, 3])
        assert computed_of(scheduler, [first]) == [3]
        for seed in range(3):  # takes all there is
            ids = [50 + 10 * seed + i for i in range(14)]
            computed_of(scheduler, [Sequence(Request(ids, 1), 0, 15, list(ids))])
        longer = [*first.tokens, 6]
        again = Sequence(Request(longer, 1), 0, 6, list(longer))
        assert computed_of(scheduler, [again]) == [6]
