"""Process 0 schedules, the others follow: replayed in one process, then as two."""

import collections
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
from types import MappingProxyType

import jax
import pytest
from small import CONFIG, displacements, engine_of, prompt

from gptoss_jax import distributed
from gptoss_jax.errors import UserError
from gptoss_jax.inference import engine as engine_module
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.runner import Pace
from gptoss_jax.inference.scheduler import Scheduler
from gptoss_jax.inference.service import Service
from gptoss_jax.text import constraints

SEVERAL = {"max_sequences": 4, "pages": 9, "stops": (7,)}


class Wire:
    """What process 0 told; it is recorded first and replayed to the other one afterwards."""

    def __init__(self, monkeypatch):
        self.told = collections.deque()
        self.process = 0
        monkeypatch.setattr(engine_module, "_are_several", lambda model: True)
        monkeypatch.setattr(jax, "process_index", lambda: self.process)
        monkeypatch.setattr(distributed, "of_first", self.of_first)
        monkeypatch.setattr(constraints, "fill_masks", even)

    def of_first(self, thing):
        if self.process:
            return pickle.loads(self.told.popleft())
        self.told.append(pickle.dumps(thing))
        return thing


@pytest.fixture
def wire(monkeypatch) -> Wire:
    return Wire(monkeypatch)


class Anything:
    """A constraint that cannot be sent; it allows what is even."""

    vocab_size = CONFIG.vocab_size

    def __init__(self):
        self.problem, self.hurried, self.lock = None, False, threading.Lock()

    def matcher(self):
        return Anything()

    def accept(self, token: int) -> None:
        assert token % 2 == 0

    def hurry(self, left: int) -> None:
        self.hurried |= left < 3


def even(matchers, words_BW) -> None:
    assert all(isinstance(matcher, Anything) for matcher in matchers)
    words_BW[:] = 0x55555555


def various(count: int) -> list[Request]:
    """The first half plain, as guesses are for such alone."""
    draw = random.Random(5)

    def odd() -> dict:
        return {
            "logprobs": draw.choice([None, 2]),
            "presence_penalty": draw.choice([0.0, 1.5]),
            "logit_bias": MappingProxyType(draw.choice([{}, {3: 2.0}])),
            "constraint": draw.choice([None, Anything()]),
        }

    return [
        Request(
            prompt(draw.randrange(1, 36), draw.randrange(5)),
            draw.randrange(1, 60),
            temperature=draw.choice([0.0, 1.0]),
            seed=index,
            priority=draw.choice([0, 0, 1]),
            **(odd() if index >= count // 2 else {}),
        )
        for index in range(count)
    ]


def run(engine, asked, cancelled):
    """Their sequences; some are submitted later, and some cancelled under way."""
    sequences, steps = [], 0
    while engine.busy or len(sequences) < len(asked):
        if len(sequences) < len(asked) and steps % 2 == 0:
            sequences.append(engine.submit(asked[len(sequences)]))
        for index, after in cancelled.items():
            if steps == after:
                engine.cancel(sequences[index])
        engine.step()
        steps += 1
    return sequences


def test_who_follows_makes_the_same_tokens_from_the_same_calls(
    model, monkeypatch, small_pages, wire
):
    """Displaced, cancelled, guessed or biased: nothing of the schedule is decided twice."""
    asked, cancelled = various(24), {3: 12, 5: 13, 20: 44}
    monkeypatch.setattr(Pace, "pays", lambda self: True)
    draw = random.Random(2)
    monkeypatch.setattr(
        engine_module,
        "_guess",
        lambda sequence, left: [draw.randrange(CONFIG.vocab_size) for _ in range(min(left, 3))],
    )
    leading = engine_of(model, speculate=True, **SEVERAL)
    displaced = displacements(leading)
    led = run(leading, asked, cancelled)
    assert displaced and leading.timings.guessed_tokens and any(s.cancelled for s in led)
    wire.process = 1
    monkeypatch.setattr(engine_module, "_guess", None)  # nobody asks
    following = engine_of(model, speculate=True, **SEVERAL)
    followed = run(following, asked, cancelled)
    assert not wire.told and not following.busy
    assert [s.tokens for s in followed] == [s.tokens for s in led]
    assert [s.logprobs for s in followed] == [s.logprobs for s in led]
    assert [s.cut_short for s in followed] == [s.cut_short for s in led]
    assert {"length", None} == {s.cut_short for s in led}
    assert all(s.ended for s in followed) and not following._scheduler.sequences
    assert following.timings.calls == leading.timings.calls


def test_who_follows_needs_no_request_of_its_own(model, small_pages, wire):
    leading = engine_of(model, **SEVERAL)
    led = run(leading, various(12), {2: 5})
    leading.close()
    wire.process = 1
    following = engine_of(model, **SEVERAL)
    known = {}
    while len(wire.told) > 1:
        following.step()
        known |= {sequence.order: sequence for sequence in following._scheduler.sequences}
    following.close()
    assert following.closed and not wire.told and not following.busy
    assert [known[s.order].tokens for s in led if s.order in known] == [
        s.tokens for s in led if s.order in known
    ]
    assert len(known) >= 10  # one that ends at once is gone before anybody looks


def test_only_the_first_process_takes_requests(model, wire):
    with Service(engine_of(model, **SEVERAL)) as service:
        with pytest.raises(UserError, match="cannot be changed while it serves"):
            service.between_steps(lambda engine: engine.adapters)
        assert len([t for tokens in service.submit(Request([1], 4)) for t in tokens]) == 4
    wire.process = 1
    following = engine_of(model, **SEVERAL)
    with Service(following) as service, pytest.raises(UserError, match="submit it there"):
        service.submit(Request([1], 4))
    assert not wire.told


@pytest.mark.parametrize("where", ["schedule", "masks"])
def test_who_follows_hears_that_process_0_cannot_go_on(model, monkeypatch, wire, where):
    def fails(*_):
        raise ZeroDivisionError("at process 0")

    leading = engine_of(model, **SEVERAL)
    leading.submit(Request([1], 4, constraint=Anything()))
    if where == "masks":
        monkeypatch.setattr(constraints, "fill_masks", fails)
    else:
        monkeypatch.setattr(Scheduler, "next", fails)
    with pytest.raises(ZeroDivisionError):
        leading.step()
    wire.process = 1
    following = engine_of(model, **SEVERAL)
    with pytest.raises(RuntimeError, match=r"process 0: ZeroDivisionError.*at process 0"):
        following.step()
    assert not wire.told


def test_a_draft_is_of_one_process(model, wire):
    with pytest.raises(UserError, match="in one process only"):
        engine_of(model, draft=model)


SERVING = """
import json, os, sys, time
import jax

number = int(sys.argv[2])
if number > 1:
    jax.distributed.initialize(sys.argv[1], number, int(sys.argv[3]))
from gptoss_jax import load, sharding
from gptoss_jax.checkpoint.load import open_source
from gptoss_jax.inference.completion import render_chat
from gptoss_jax.inference.engine import engine_for
from gptoss_jax.inference.requests import Request
from gptoss_jax.inference.service import Service
from gptoss_jax.text import constraints
from gptoss_jax.loading import checkpoint_directory
from gptoss_jax.text import constraints

config = open_source(checkpoint_directory("nano")).config
shape = {"expert": 4, "tensor": 2}
mesh = sharding.make_mesh(config, shape, jax.devices()) if number > 1 else None
model, tokenizer = load("nano", mesh=mesh, dtype="float32")
engine = engine_for(model, tokenizer, 4, max_tokens=512, pages=12, speculate=True)
if jax.process_index() == 0:
    schema = constraints.json_schema({"type": "object", "required": ["n"]})
    constraint = constraints.Constraint(tokenizer, schema)
    asked = [
        render_chat(tokenizer, [{"role": "user", "content": f"What is {n} + 58{n}?"}])
        for n in range(8)
    ]
    with Service(engine) as service:
        requests = [Request(prompt, 120, seed=1, temperature=0.5) for prompt in asked]
        requests[2] = Request(asked[2], 120, temperature=0, constraint=constraint)
        requests[3] = Request(asked[3], 120, temperature=0, frequency_penalty=0.2, logprobs=1)
        streams = [service.submit(request) for request in requests]
        next(iter(streams[7])), streams[7].cancel()
        answers = [[t for tokens in stream for t in tokens] for stream in streams[:7]]
        time.sleep(3)  # nothing to do: the others hear so
        answers.append([t for tokens in service.submit(requests[0]) for t in tokens])
        if "killed" in sys.argv:
            os._exit(7)
    print(json.dumps(answers))
else:
    with Service(engine):
        pass
    print("followed")
"""


def serving(number: int, *words: str) -> list[subprocess.Popen]:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={8 // number if number > 1 else 1}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [sys.executable, "-c", SERVING, address, str(number), str(i), *words],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=env,
        )
        for i in range(number)
    ]


def last(lines: str) -> str:
    return lines.splitlines()[-1]


def test_one_of_two_processes_serves_and_the_other_follows():
    both = serving(2)
    (shown, error), (followed, other) = (each.communicate(timeout=300) for each in both)
    assert [each.returncode for each in both] == [0, 0], error + other
    assert last(followed) == "followed"  # gloo talks before
    (alone,) = serving(1)
    assert json.loads(last(shown)) == json.loads(last(alone.communicate(timeout=300)[0]))


def test_who_follows_ends_with_who_leads():
    first, second = serving(2, "killed")
    first.communicate(timeout=300)
    shown, error = second.communicate(timeout=60)
    assert first.returncode == 7 and second.returncode != 0 and "followed" not in shown
    assert "the engine failed" in error or "terminat" in error
