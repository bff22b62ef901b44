"""The engine against the full forward, and many requests against each alone."""

import dataclasses
import json
import re

import numpy as np
import pytest
from small import CONFIG, answers, engine_of, full_logits, prompt

import gptoss_jax
from gptoss_jax.benchmarks.alone import Alone
from gptoss_jax.errors import UserError
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import Engine, engine_for
from gptoss_jax.inference.requests import Request, copies
from gptoss_jax.inference.turns import turns
from gptoss_jax.text import constraints
from gptoss_jax.text.constraints import Constraint


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return engine_of(model)


@pytest.fixture(scope="module")
def one(small_pages, model) -> Engine:
    """What answers requests one at a time, with nothing shared."""
    return engine_of(model, max_sequences=1, reuse=False)


@pytest.mark.fast
@pytest.mark.parametrize("length", [1, 7, 40])
def test_greedy_tokens_are_those_of_the_full_forward(model, engine, length):
    ids = prompt(length)
    (tokens,) = answers(engine, [Request(ids, 12, temperature=0.0)])
    best = full_logits(model, ids + tokens).argmax(-1)
    assert tokens == best[length - 1 : -1].tolist()
    assert len(tokens) == 12


def test_rows_do_not_depend_on_each_other(engine):
    asked = [Request(prompt(n, seed=n), 20, seed=n) for n in (30, 3)]
    together = answers(engine, asked)
    again = answers(engine, [Request(prompt(30, seed=99), 20), asked[1]])
    assert together[1] == again[1]
    assert together[0] != again[0]


def test_a_request_ends_at_its_stop_token_and_the_others_go_on(model, engine):
    asked = [Request(prompt(9, seed=1), 25, seed=3), Request(prompt(12, seed=2), 25, seed=4)]
    free = answers(engine, asked)
    stop = free[0][6]
    ended = answers(engine_of(model, stops=[stop]), asked)
    for before, after in zip(free, ended, strict=True):
        cut = before.index(stop) + 1 if stop in before else len(before)
        assert after == before[:cut]
    assert len(ended[0]) < len(free[0])


def test_banned_ids_do_not_appear(model):
    odd = engine_of(model, banned=np.arange(0, CONFIG.vocab_size, 2))
    (tokens,) = answers(odd, [Request(prompt(5), 30)])
    assert len(tokens) == 30 and all(token % 2 for token in tokens)


@pytest.mark.parametrize(
    ("length", "max_tokens", "made"), [(5, 1, 1), (5, 9, 9), (90, 50, 6), (90, 10**30, 6)]
)
def test_ends_at_the_limit(engine, length, max_tokens, made):
    (tokens,) = answers(engine, [Request(prompt(length), max_tokens)])
    assert len(tokens) == made  # 90 + 6 is the model's context of 96


def test_timings_count_tokens(engine):
    timings = engine.timings
    before = timings.prefill_tokens, timings.decode_tokens
    answers(engine, [Request(prompt(9), 5), Request(prompt(4), 5)])
    assert (timings.prefill_tokens, timings.decode_tokens) == (before[0] + 13, before[1] + 8)
    assert timings.prefill_tokens_per_second > 0 < timings.decode_tokens_per_second


@pytest.mark.parametrize(
    ("ids", "max_tokens", "message"),
    [
        ([], 5, "no tokens"),
        ([1, 160], 5, "token 160 is outside"),
        ([1, -1], 5, "outside"),
        ([1] * 96, 5, "context is 96"),
        ([1], 0, "max_tokens is 0"),
    ],
)
def test_bad_requests_are_refused_in_a_line(engine, ids, max_tokens, message):
    with pytest.raises(UserError, match=message) as error:
        engine.submit(Request(ids, max_tokens))
    with pytest.raises(UserError, match="id 160 is outside the 160-token vocabulary"):
        engine.submit(Request([1], 5, logit_bias={160: 1.0}))
    assert "\n" not in str(error.value)
    assert not engine.busy


def test_what_the_engine_has_no_room_for_is_refused(small_pages, model):
    small = engine_of(model, max_tokens=40, pages=2)
    with pytest.raises(UserError, match="room for 40 a sequence"):
        small.submit(Request([1] * 40, 5))
    with pytest.raises(UserError, match="35 tokens need 3 pages of the cache, which has 2"):
        small.submit(Request([1] * 30, 5))


def check_like_full(model, asked: Request, made: list[int]) -> bool:
    """Whether greedy tokens are the best; where two scores are closer than rounding, either is."""
    logits = np.asarray(full_logits(model, [*asked.prompt, *made]))[len(asked.prompt) - 1 : -1]
    chosen = np.take_along_axis(logits, np.asarray(made)[:, None], axis=-1)[:, 0]
    return bool((logits.max(-1) - chosen <= 1e-5 * np.ptp(logits)).all())


def random_requests(count: int, seed: int) -> list[Request]:
    """Some share a beginning of several pages."""
    rng = np.random.default_rng(seed)
    beginnings = [prompt(int(n), seed=int(n)) for n in (0, 16, 37, 64)]
    asked = []
    for index in range(count):
        ids = beginnings[rng.integers(4)] + prompt(int(rng.integers(1, 25)), seed=1000 + index)
        greedy = rng.random() < 0.5
        asked.append(
            Request(
                ids,
                int(rng.integers(1, 30)),
                temperature=0.0 if greedy else 0.8,
                top_p=1.0 if rng.random() < 0.5 else 0.9,
                seed=index,
                priority=int(rng.integers(2)),
            )
        )
    return asked


@pytest.mark.parametrize(
    ("sequences", "pages", "reuse"),
    [
        (2, 9, True),
        pytest.param(2, None, False, marks=pytest.mark.slow),
        pytest.param(5, 20, True, marks=pytest.mark.slow),
    ],
)
def test_many_requests_are_answered_as_each_alone(small_pages, model, one, sequences, pages, reuse):
    """Nine pages hold one sequence and a half: some are displaced and computed again."""
    engine = engine_of(model, max_sequences=sequences, pages=pages, reuse=reuse)
    asked = random_requests(40, seed=5)
    together = answers(engine, asked)
    alone = answers(one, asked)
    assert engine.held_pages == 0 and not engine.busy
    # Of other shapes scores differ by rounding, which may turn a token whose score is that near.
    rounded = Alone(np.zeros(model.config.vocab_size, bool), [(model.config.max_context, 30)])
    for number, request in enumerate(asked):
        if together[number] != alone[number]:
            found = rounded.check(model, request, together[number])
            print(f"request {number}: {found.tied} of {found.tokens} tokens as near as rounding")
            assert found.wrong is None and found.tied
    for request, made in zip(asked, together, strict=True):
        assert request.temperature or check_like_full(model, request, made)


def test_nothing_is_lost_to_others_who_have_the_engine_step(model):
    engine, (first, second) = engine_of(model), random_requests(2, seed=3)
    expected = answers(engine_of(model), [first, second])
    running, made = engine.run([first, second]), [[], []]
    for number, tokens in running:
        made[number] += tokens
        engine.step()
    assert made == expected


@pytest.mark.parametrize("cache", [None, "int8"])
@pytest.mark.parametrize(("made", "forgets", "reused"), [(6, 0, 42), (12, 0, 48), (6, 4, 32)])
def test_a_second_turn_computes_what_is_new(small_pages, model, cache, made, forgets, reused):
    """All that was said but its last token is there; whole pages of the prompt, if it forgets."""
    engine, one = (engine_of(model, cache=cache, reuse=reuse) for reuse in (True, False))
    first = Request(prompt(37), made, temperature=0.0)
    (said,) = answers(engine, [first])
    kept = said[: made - forgets]
    second = Request([*first.prompt, *kept, *prompt(9, seed=2)], 6, temperature=0.0)
    before = engine.timings.prefill_tokens
    sequence = engine.submit(second)
    while not sequence.ended:
        engine.step()
    assert sequence.reused == reused
    assert engine.timings.prefill_tokens - before == len(second.prompt) - reused
    assert [sequence.generated] == answers(one, [second])


def test_copies_share_the_prompt_and_are_as_each_alone(small_pages, model, one):
    engine = engine_of(model, max_sequences=4, max_tokens=64)
    asked = copies(Request(prompt(37), 9, temperature=0.9, seed=2**32 - 2), 4)
    assert [request.seed for request in asked] == [2**32 - 2, 2**32 - 1, 0, 1]
    together = answers(engine, asked)
    assert engine.timings.prefill_tokens == 37 + 3 * (37 - 32)
    assert together == answers(one, asked)
    assert len(set(map(tuple, together))) == 4


def test_cancelling_frees_the_pages_before_the_next_call(small_pages, model):
    engine = engine_of(model)
    going, waiting = (engine.submit(Request(prompt(20, seed=s), 50)) for s in (1, 2))
    engine.step()
    engine.step()
    assert engine.held_pages > 0
    engine.cancel(going)
    engine.cancel(waiting)
    engine.step()
    assert engine.held_pages == 0 and going.ended and waiting.ended and not engine.busy
    (tokens,) = answers(engine, [Request(prompt(20, seed=1), 5)])
    assert len(tokens) == 5


def test_nobody_has_the_biases_of_one_that_has_left(model):
    """The third's row goes to the fourth while the first, which has a penalty, stays."""
    greedy = {"temperature": 0.0}
    asked = [
        Request(prompt(12, seed=1), 60, frequency_penalty=0.1, **greedy),
        Request(prompt(12, seed=2), 60, **greedy),
        Request(prompt(12, seed=3), 3, logit_bias={7: 100.0}, **greedy),
        Request(prompt(12, seed=4), 20, **greedy),
    ]
    made = answers(engine_of(model, max_sequences=3, reuse=False), asked)
    assert made[2] == [7] * 3
    best = full_logits(model, [*asked[3].prompt, *made[3]]).argmax(-1)
    assert made[3] == best[11:-1].tolist()


def test_one_that_cannot_be_leaves_none_of_the_others(engine):
    asked = [Request(prompt(5), 4), Request(prompt(5), 4, priority="high")]  # pyright: ignore - a wrong type
    with pytest.raises(UserError, match="priority is 'high'; it must be a whole number"):
        next(engine.run(asked))
    engine.step()
    assert not engine.busy


def test_whoever_stops_iterating_cancels(model):
    engine = engine_of(model)
    for _, _ in engine.run([Request(prompt(5), 60)]):
        break
    engine.step()
    assert not engine.busy and engine.held_pages == 0


def test_a_short_request_does_not_wait_for_a_long_prompt(small_pages, model):
    engine = engine_of(model)
    long, short = engine.submit(Request(prompt(90), 2)), engine.submit(Request(prompt(3), 2))
    calls = 0
    while not short.generated:
        engine.step()
        calls += 1
    assert not long.generated and calls <= 3  # a chunk of the long one, its own, and settling it


@pytest.fixture(scope="module")
def nano():
    return gptoss_jax.load("nano", dtype="float32")


def test_constrained_and_free_requests_run_together(nano):
    model, tokenizer = nano
    engine = engine_for(model, tokenizer, 2, max_tokens=256)
    prompt = render_chat(tokenizer, [{"role": "user", "content": "What is 347 + 586?"}])
    constraint = Constraint(tokenizer, constraints.regex("[a-c]{4}"))
    bound = Request(prompt, 120, temperature=0.0, constraint=constraint)
    free = dataclasses.replace(bound, constraint=None)
    texts = [turn.text for turn in turns(engine, tokenizer, [bound, free])]
    assert re.fullmatch("[a-c]{4}", texts[0])
    assert texts[1] == "933"


def test_whatever_the_temperature_a_constraint_holds(nano):
    model, tokenizer = nano
    engine = engine_for(model, tokenizer, 2, max_tokens=256)
    schema = {"type": "array", "items": {"enum": [1, 22, "x"]}, "minItems": 2, "maxItems": 3}
    constraint = Constraint(tokenizer, constraints.json_schema(schema), raw=True)
    asked = [
        Request([1 + seed], 60, temperature=5.0, seed=seed, constraint=constraint)
        for seed in range(8)
    ]
    for made in answers(engine, asked):
        assert made[-1] in tokenizer.stop_ids
        value = json.loads(tokenizer.decode(made[:-1]))
        assert 2 <= len(value) <= 3 and all(item in (1, 22, "x") for item in value)


def test_it_tells_what_is_compiled_for_which_sizes(model):
    lines: list[str] = []
    engine = engine_of(model, report=lines.append)
    answers(engine, [Request(prompt(9), 4, temperature=0.0)])
    told = {line.partition(" in ")[0] for line in lines}
    assert told == {"compiled prefill (rows 1, tokens 32)", "compiled decode (rows 1)"}
