"""Packing and order: nothing crosses, nothing is lost, and a state resumes to the exact example."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_jax.errors import UserError
from gptoss_jax.training.examples import Example
from gptoss_jax.training.feed import Feed, Share, one_pass
from gptoss_jax.training.packing import Packer, rows_of

LENGTH = 40


class Numbered:
    """Example i is of tokens that no other has, some of them learned."""

    skipped = 0

    def __init__(self, size, total=31, bad=()):
        self.size = size
        self.fingerprint = f"{size} {total}"
        self._total = total
        self._bad = bad

    def __getitem__(self, index):
        if index in self._bad:
            return None
        count = 2 + (index * 7) % 23
        ids_S = 100 * (index % self._total + 1) + np.arange(count, dtype=np.int32)
        learn_S = np.arange(count) % 3 == 1
        learn_S[-1] = True
        return Example(ids_S, learn_S)

    def where(self, index):
        return f"line {index}"


def feed(source, **options):
    defaults = {"rows": 3, "length": LENGTH, "open_rows": 4, "seed": 5}
    return Feed(source, **(defaults | options))


def segments(rows):
    """(tokens, targets, weights, positions) of each segment of each row."""
    for row in range(rows.tokens_BT.shape[0]):
        for segment in range(1, rows.segments_BT[row].max() + 1):
            here = rows.segments_BT[row] == segment
            names = ("tokens_BT", "targets_BT", "weights_BT", "positions_BT")
            yield [getattr(rows, name)[row][here] for name in names]


@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=60), st.integers(1, 5))
def test_packer_keeps_every_example_once_and_no_row_overflows(lengths, open_rows):
    packer = Packer(LENGTH, open_rows)
    rows = [row for n, length in enumerate(lengths) if (row := packer.add(n, length))]
    while packer.open:
        rows.append(packer.close())
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert max(sum(lengths[n] for n in row) for row in rows) <= LENGTH
    assert len(packer.open) <= open_rows


def test_rows_hold_segments_that_nothing_crosses():
    examples = [[Numbered(9)[i] for i in row] for row in ([0, 3], [], [1, 2, 4])]
    rows = rows_of(examples, LENGTH)
    found = list(segments(rows))
    flat = list(itertools.chain(*examples))
    assert len(found) == len(flat)
    for (tokens, targets, weights, positions), one in zip(found, flat, strict=True):
        np.testing.assert_array_equal(tokens, one.ids_S[:-1])
        np.testing.assert_array_equal(targets, one.ids_S[1:])
        np.testing.assert_array_equal(weights, one.learn_S[1:])
        np.testing.assert_array_equal(positions, np.arange(one.length))
    padding = rows.segments_BT == 0
    assert not rows.weights_BT[padding].any()
    assert padding[1].all()
    for row in rows.segments_BT:  # each segment is one run
        changes = np.flatnonzero(np.diff(row))
        assert len(changes) == row.max() - (row[-1] > 0)


def learned_targets(batches):
    """The targets that count, in any order."""
    counted = [rows.targets_BT[rows.weights_BT > 0] for rows in batches]
    return sorted(np.concatenate(counted).tolist())


def test_an_epoch_has_every_learned_token_once():
    """Of two epochs, less what is still in open rows and with what they hold of the third."""
    source = Numbered(31)
    batches, counts = feed(source), {}
    while batches.state()["next"] < 2 * 31 + 20:
        for target in learned_targets([batches.batch()]):
            counts[target] = counts.get(target, 0) + 1
    held = [n for row in batches.state()["open"] for n in row]
    order = [batches._index(n) for n in range(batches.state()["next"])]
    assert sorted(order[:31]) == sorted(order[31:62]) == list(range(31))
    assert order[:31] != order[31:62]
    expected = {}
    for number, index in enumerate(order):
        one = source[index]
        for target in one.ids_S[1:][one.learn_S[1:]].tolist() if number not in held else []:
            expected[target] = expected.get(target, 0) + 1
    assert counts == expected


@pytest.mark.parametrize("size", [31, None])
def test_a_state_resumes_to_the_exact_example(size):
    source = Numbered(size, bad=(2, 17))
    first = feed(source)
    expected = [first.batch() for _ in range(9)]
    again = feed(source)
    for _ in range(4):
        again.batch()
    state = again.state()
    again.batch()  # which must not reach into the state
    state = json.loads(json.dumps(state))
    assert len(json.dumps(state)) < 500
    resumed = feed(source)
    resumed.restore(state)
    for rows in expected[4:]:
        new = resumed.batch()
        for name, array in vars(rows).items():
            np.testing.assert_array_equal(getattr(new, name), array)
    assert resumed.where() == first.where()


def test_another_seed_is_another_order():
    one, other = (feed(Numbered(31), seed=seed).batch().tokens_BT for seed in (1, 2))
    assert (one != other).any()


def test_feeds_share_the_examples_out():
    """Feed p has the numbers p, p + 3, …: together they have what one has, once."""
    seen = []
    for number in range(3):
        part = feed(Numbered(31), number=number, feeds=3)
        part.batch()
        taken = part.state()["next"]
        assert taken > 5
        seen.append([n * 3 + number for n in range(taken)])
        held = set(itertools.chain(*part.state()["open"])) | set(part._last)
        assert held <= set(seen[-1])
    assert len(set(itertools.chain(*seen))) == sum(map(len, seen))


def test_a_state_of_other_data_is_refused():
    state = feed(Numbered(31)).state()
    with pytest.raises(UserError, match="the data has changed since the checkpoint: 31 31, now 30"):
        feed(Numbered(30)).restore(state)


def shares(parts, feeds=4, rows=12):
    """Of one batch, a process each."""

    def new(number, rows):
        return feed(Numbered(31), number=number, feeds=feeds, rows=rows)

    return [Share(new, rows=rows, feeds=feeds, part=n, parts=parts) for n in range(parts)]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 12])
def test_more_or_fewer_processes_go_on_with_the_same_batches(parts):
    first = shares(4)
    for one in first:
        one.batch()
    states = [state for one in first for state in one.states().values()]
    resumed = shares(parts)
    for one in resumed:
        one.restore(json.loads(json.dumps(states)))
    for _ in range(3):
        expected = np.concatenate([one.batch().tokens_BT for one in first])
        found = [one.batch() for one in resumed]
        np.testing.assert_array_equal(np.concatenate([rows.tokens_BT for rows in found]), expected)
        assert len({len(rows.segments_BT) for rows in found}) == 1
    held = {}
    for one in resumed:
        held |= one.states()
    assert [held[str(n)] for n in range(4)] == [
        state for one in first for state in one.states().values()
    ]


def test_a_batch_that_the_feeds_do_not_divide_is_refused():
    with pytest.raises(UserError, match="begun in 4 parts, which do not divide it"):
        shares(1, rows=6)


def test_a_batch_is_named_by_its_lines():
    batches = feed(Numbered(None), open_rows=1, rows=1)
    batches.batch()
    assert batches.where(most=1).startswith("line 0")


def test_nothing_but_bad_examples_ends():
    with pytest.raises(UserError, match="bad examples on end"):
        feed(Numbered(5, bad=range(5))).batch()


def test_one_pass_has_each_example_once_and_pads():
    source = Numbered(31, bad=(4,))
    batches = list(one_pass(source, rows=3, length=LENGTH, batches=99))
    good = [source[n] for n in range(31) if n != 4]
    expected = sorted(np.concatenate([one.ids_S[1:][one.learn_S[1:]] for one in good]).tolist())
    assert learned_targets(batches) == expected
    assert {rows.tokens_BT.shape for rows in batches} == {(3, LENGTH)}
    assert len(list(one_pass(Numbered(None), rows=3, length=LENGTH, batches=4))) == 4
