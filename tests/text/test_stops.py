"""Stop strings against looking for them in the whole text, however it is cut."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_jax.text.stops import StopStrings

pytestmark = pytest.mark.fast
SHORT = st.text("ab<é", min_size=1, max_size=5)


def plainly(text: str, stops: list[str]) -> tuple[str, bool]:
    """What stands before the string that is complete first, and whether there is one."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(st.lists(SHORT, max_size=12), st.lists(SHORT, min_size=1, max_size=4))
def test_the_cut_does_not_matter(pieces, stops):
    text = "".join(pieces)
    expected, found = plainly(text, stops)
    watch, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += watch.push(piece)
        # What was shown is never taken back, nor is any of it of a string that may yet end it.
        assert expected.startswith(shown)
    shown += watch.finish()
    assert (shown, watch.found is not None) == (expected, found)


@given(st.lists(SHORT, max_size=12), st.lists(SHORT, min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_one(pieces, stops):
    watch, text, shown = StopStrings(stops), "", ""
    for piece in pieces:
        text, shown = text + piece, shown + watch.push(piece)
        if watch.found is not None:
            return
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_without_any_all_passes():
    watch = StopStrings([])
    assert [watch.push("a"), watch.push("b"), watch.finish()] == ["a", "b", ""]


def test_64_sequences_cost_less_than_a_millisecond_a_step():
    stops = ["\n\nUser:", "###", "</answer>", "Observation:"]
    watches = [StopStrings(stops) for _ in range(64)]

    def step() -> float:
        began = time.perf_counter()
        for watch in watches:
            watch.push(" Obser")
        return time.perf_counter() - began

    assert min(step() for _ in range(20)) < 1e-3
