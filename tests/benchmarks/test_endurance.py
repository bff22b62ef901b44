"""The run of random requests: that it passes, and that it would not if anything were wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptoss_jax import bench
from gptoss_jax.benchmarks import endurance
from gptoss_jax.benchmarks.alone import Alone, Answer
from gptoss_jax.benchmarks.endurance import Alive, Run, growth
from gptoss_jax.benchmarks.random_requests import Source
from gptoss_jax.inference import scheduler
from gptoss_jax.inference.pools import key_after, prefix_keys
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.tails import Tail, Tails
from gptoss_jax.loading import NANO, checkpoint_directory, find_tokenizer
from gptoss_jax.model.config import Config
from gptoss_jax.model.transformer import GptOss
from gptoss_jax.text import constraints
from gptoss_jax.text.constraints import Constraint
from gptoss_jax.text.stops import StopStrings

ROOM, ANSWER = 24, 8


@pytest.fixture(scope="module")
def tokenizer():
    return find_tokenizer(checkpoint_directory(NANO), 0)


@pytest.fixture(scope="module")
def model(tokenizer) -> GptOss:
    config = Config(
        num_layers=1,
        num_experts=4,
        experts_per_token=2,
        hidden_size=32,
        expert_width=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=tokenizer.vocab_size,
        sliding_window=8,
        rope_original_context=64,
        max_context=64,
        initializer_range=0.3,
    )
    return GptOss(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def alone(tokenizer) -> Alone:
    return Alone(np.zeros(tokenizer.vocab_size, bool), [(ROOM, ANSWER)])


def greedy(model: GptOss, ids: list[int], count: int) -> list[list[float]]:
    """The logits of so many tokens, each the best after those before."""
    forward = jax.jit(lambda model, ids: model(ids)[0])
    rows, ids = [], list(ids)
    for _ in range(count):
        padded = np.zeros((1, ROOM), np.int32)
        padded[0, : len(ids)] = ids
        rows.append(np.asarray(forward(model, padded))[len(ids) - 1])
        ids.append(int(rows[-1].argmax()))
    return rows


def test_the_models_own_answer_is_right_and_no_other(model, alone):
    request = Request([5, 9, 200], ANSWER, temperature=0.0)
    made = [int(row.argmax()) for row in greedy(model, request.prompt, ANSWER)]
    assert alone.check(model, request, made) == Answer(ANSWER, 0, None)
    assert alone.check(model, request, made[:3]) == Answer(3, 0, None)
    for place in (0, 4, ANSWER - 1):
        other = [*made]
        other[place] = (other[place] + 1) % 510
        assert alone.check(model, request, other).wrong == place


def test_what_is_as_good_but_for_rounding_is_a_tie(model, alone):
    """Two rows of the unembedding differ by less, then by more, than rounding."""
    request = Request([5, 9, 200], ANSWER, temperature=0.0)
    (row,) = greedy(model, request.prompt, 1)
    best, other = int(row.argmax()), int(row.argmin())

    def with_twin(shift: float) -> GptOss:
        copy = jax.tree.map(lambda x: x, model)
        table_VD = model.unembedding_VD[...]
        twin = table_VD[best] * (1 - shift * float(np.ptp(row)) / float(row.max()))
        copy.unembedding_VD.set_value(table_VD.at[other].set(twin))
        return copy

    assert alone.check(with_twin(2e-6), request, [other]) == Answer(1, 1, None)
    assert alone.check(with_twin(4e-5), request, [other]) == Answer(1, 0, 0)
    assert alone.check(with_twin(4e-5), request, [best]) == Answer(1, 0, None)


def test_what_a_constraint_forbids_is_wrong(model, alone, tokenizer):
    constraint = Constraint(tokenizer, constraints.regex("(yes|no)"), raw=True)
    request = Request([5], ANSWER, temperature=0.0, constraint=constraint)
    legal = {b"y", b"ye", b"yes", b"n", b"no"}
    allowed = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) in legal]
    (free,) = greedy(model, request.prompt, 1)
    best = max(allowed, key=lambda one: free[one])
    assert int(free.argmax()) not in allowed
    for one in (*allowed, int(free.argmax())):
        assert alone.check(model, request, [one]).wrong == (None if one == best else 0)


def test_a_request_is_its_seed_and_number(tokenizer):
    first, second = (Source(3, tokenizer, 500, ["a", "b"]) for _ in range(2))
    assert [first.draw(n) for n in range(9)] != [first.draw(n + 9) for n in range(9)]
    for number in (4, 1, 7):
        one, other = first.draw(number), second.draw(number)
        assert dataclasses.replace(one.request, constraint=None) == dataclasses.replace(
            other.request, constraint=None
        )


def alive(steps: int, programs: int = 3, **fields) -> Alive:
    return Alive(steps, programs, **({"objects": 50, "arrays": 9, "kilobytes": 100} | fields))


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ([alive(1000), alive(2000), alive(10_000)], []),
        ([alive(1000, objects=5), alive(10_000)], []),
        ([alive(1000, programs=2, objects=0, arrays=1), alive(2000), alive(3000)], []),
        ([alive(1000), alive(2000, programs=4, objects=900), alive(3000, programs=4)], []),
        ([alive(1000), alive(3000, arrays=12)], ["3 arrays more after 2000 steps"]),
        ([alive(1000), alive(3000, objects=151)], ["101 objects more after 2000 steps"]),
        ([alive(1000), alive(2000, kilobytes=9000)], ["8900 kilobytes more after 1000 steps"]),
    ],
)
def test_growth_is_told(found, lines):
    assert growth(found) == lines


def test_violations_are_exit_1(monkeypatch, capsys):
    found = Run({"requests": 2}, [alive(5)], ["request 1: its token 3 is not the one"])
    monkeypatch.setattr(endurance, "run", lambda *_: found)
    with pytest.raises(SystemExit) as end:
        bench.main(bench.build_parser().parse_args(["engine", "--requests", "2"]))
    assert end.value.code == 1
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["requests"], result["violations"]) == (2, 1)
    assert shown.err == "request 1: its token 3 is not the one\n"


@pytest.mark.slow
def test_a_run_finds_nothing():
    found = endurance.run(80, 200, seed=4)
    assert found.violations == []
    drawn = ("with_adapter", "with_constraint", "with_logprobs", "with_stop_strings", "cancelled")
    for count in (*drawn, "ended_by_a_string", "with_kept_prefix", "gone_on", "displaced"):
        assert found.counts[count] > 0, count


@pytest.mark.slow
def test_a_run_finds_prompts_that_go_on_from_another_answer(monkeypatch):
    """The same, were a page's tokens not looked at."""

    def any_shorter(tails, before, tokens, first):
        there = all(pool.find(tails.newest) for pool in (tails._pages, tails._rings))
        return Tail(tails.newest, 1) if there and len(tokens) - first > 1 else None

    def newest(tails, before, tokens, page, ring):
        keep(tails, before, tokens, page, ring)
        tails.newest = key_after(before, tokens)

    keep = Tails.keep
    monkeypatch.setattr(Tails, "newest", b"", raising=False)
    monkeypatch.setattr(Tails, "keep", newest)
    monkeypatch.setattr(Tails, "find", any_shorter)
    found = endurance.run(80, 200, seed=4)
    assert any("is not the one of the model alone" in line for line in found.violations)


@pytest.mark.slow
def test_a_run_finds_stop_strings_missed_across_tokens(monkeypatch):
    """The same, were each token's text looked at alone."""

    def push(watch, text):
        held, watch._held = watch._held, ""
        return held + look(watch, text)

    look = StopStrings.push
    monkeypatch.setattr(StopStrings, "push", push)
    found = endurance.run(80, 200, seed=4)
    assert any("with stops" in line for line in found.violations)


@pytest.mark.slow
def test_a_run_finds_pages_shared_between_adapters(monkeypatch):
    """The same as above, were the adapter not in the pages' keys."""
    monkeypatch.setattr(
        scheduler, "prefix_keys", lambda tokens, page, known, root: prefix_keys(tokens, page, known)
    )
    found = endurance.run(80, 200, seed=4)
    assert any("is not the one of the model alone" in line for line in found.violations)
