"""Requests of one engine with adapters of their own, beside each adapter alone."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several
from jax.sharding import NamedSharding
from small import answers

from gptoss_jax import sharding
from gptoss_jax.checkpoint import peft
from gptoss_jax.checkpoint.adapters import apply_adapter
from gptoss_jax.errors import UserError
from gptoss_jax.inference import adapters
from gptoss_jax.inference.adapters import Slots
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.model import lora
from gptoss_jax.model.adapter import TARGETS, Adapter
from gptoss_jax.model.lora import Trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_pages")]

CONFIG = several.CONFIG
EIGHT = Slots(several.COUNT, several.RANK)
NAMES = [f"a{number}" for number in range(several.COUNT)]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(NAMES):
        peft.save(several.trained(number), CONFIG, "base", folder / name)
    return folder


def engine_of(model=None, *, slots=EIGHT, **options) -> Engine:
    options = {"max_sequences": 4, "max_tokens": 96, "adapters": slots} | options
    return Engine(model or several.base(), [], np.array([], np.int32), **options)


def loaded(folder, **options) -> Engine:
    engine = engine_of(**options)
    for name in NAMES:
        engine.adapters.load(name, folder / name)
    return engine


@pytest.fixture(scope="module")
def engine(directories) -> Engine:
    return loaded(directories)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length).tolist()


@functools.cache
def forward(number: int | None):
    model = (
        several.base() if number is None else apply_adapter(several.base(), several.trained(number))
    )
    run = jax.jit(lambda model, ids: model(ids))
    return lambda ids: run(model, ids)


def ties(asked: Request, made: list[int]) -> int:
    """Checks greedy tokens against the model with the adapter alone; how many are not its best.

    Where the two best scores are closer than 1e-5 of the logits' range, either may come.
    """
    number = None if asked.adapter is None else NAMES.index(asked.adapter)
    ids = [*asked.prompt, *made]
    padded = jnp.asarray([ids + [0] * (CONFIG.max_context - len(ids))])
    logits = np.asarray(forward(number)(padded))[0, len(asked.prompt) - 1 : len(ids) - 1]
    chosen = np.take_along_axis(logits, np.asarray(made)[:, None], axis=-1)[:, 0]
    assert (logits.max(-1) - chosen <= 1e-5 * np.ptp(logits, axis=-1)).all(), asked
    return int((logits.argmax(-1) != made).sum())


def test_eight_adapters_and_none_in_one_batch(directories):
    engine = loaded(directories, max_sequences=9)
    shared = prompt(20)
    asked = [Request(shared, 20, temperature=0.0, adapter=name) for name in (None, *NAMES)]
    made = answers(engine, asked)
    assert len({tuple(one) for one in made}) == 9
    turned = sum(ties(request, one) for request, one in zip(asked, made, strict=True))
    print(f"{turned} of {sum(map(len, made))} tokens are the second best by less than 1e-5")
    assert engine.held_pages == 0


def test_pages_are_shared_within_an_adapter_alone(directories, engine):
    asked = Request(prompt(40, seed=7), 4, temperature=0.0)

    def reused(name: str | None) -> int:
        sequence = engine.submit(dataclasses.replace(asked, adapter=name))
        while not sequence.ended:
            engine.step()
        assert ties(sequence.request, sequence.generated) == 0
        return sequence.reused

    assert [reused(name) for name in (None, "a0", "a3", None, "a0", "a3")] == [0] * 3 + [32] * 3
    engine.adapters.unload("a3")
    engine.adapters.load("a3", directories / "a3")
    assert reused("a3") == 0  # another load may have brought anything


def test_a_slot_is_used_again(directories):
    """By an adapter of a smaller rank and of fewer targets; nothing is compiled for it."""
    lines = []
    one = Slots(1, several.RANK)
    engine = engine_of(slots=one, report=lines.append)
    asked = Request(prompt(20), 8, temperature=0.0, adapter="it")
    engine.adapters.load("it", directories / "a0")
    (first,) = answers(engine, [asked])
    assert ties(dataclasses.replace(asked, adapter="a0"), first) == 0
    compiled, writers = len(lines), adapters._put._cache_size()
    engine.adapters.unload("it")
    engine.adapters.load("it", directories / "a1")
    (second,) = answers(engine, [asked])
    assert ties(dataclasses.replace(asked, adapter="a1"), second) == 0
    assert first != second
    assert (len(lines), adapters._put._cache_size()) == (compiled, writers)


def test_what_is_in_use_is_not_unloaded(directories, engine):
    sequence = engine.submit(Request(prompt(9), 50, adapter="a2"))
    for _ in range(3):
        engine.step()
        with pytest.raises(UserError, match="adapter 'a2' is in use by 1 requests; wait for"):
            engine.adapters.unload("a2")
    engine.cancel(sequence)
    engine.step()
    engine.adapters.unload("a2")
    with pytest.raises(UserError, match="adapter 'a2' is not loaded; those that are: a0, a1"):
        engine.submit(Request(prompt(9), 5, adapter="a2"))
    assert not engine.busy
    engine.adapters.load("a2", directories / "a2")


def test_loading_does_not_disturb_what_runs(directories):
    engine = engine_of(slots=Slots(2, several.RANK), max_sequences=2)
    engine.adapters.load("a0", directories / "a0")
    asked = Request(prompt(30), 40, temperature=0.0, adapter="a0")
    sequence = engine.submit(asked)
    for number in range(1, 8):
        engine.step()
        engine.adapters.load("other", directories / f"a{number}")
        engine.adapters.unload("other")
    while engine.busy:
        engine.step()
    assert ties(asked, sequence.generated) == 0 and len(sequence.generated) == 40


def saved(folder, name: str, **fields) -> None:
    adapter = Adapter(**{"rank": 2, "alpha": 2.0, "targets": ("q",)} | fields)
    shapes = lora.trained_shapes(several.base(), adapter)
    values = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    if name == "infinite":
        values["layers.1.attention.w_q_AD.b"][1, 3] = np.inf
    peft.save(Trained(adapter, values), CONFIG, "base", folder / name)


@pytest.mark.parametrize(
    ("name", "fields", "error"),
    [
        ("high", {"rank": 5}, "'high' has rank 5; the engine's slots have 4"),
        ("sinks", {"targets": ("q", "sinks")}, "trained sinks have no factors and cannot differ"),
        ("router", {"targets": ("q", "router")}, "factors of router; the engine's slots are of q,"),
        (
            "infinite",
            {},
            "model.layers.1.self_attn.q_proj.lora_B.weight' has values that are not fin",
        ),
        ("missing", None, "missing/adapter_config.json"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, name, fields, error):
    engine = engine_of(slots=Slots(2, several.RANK, targets=("q", "k")))
    if fields is not None:
        saved(tmp_path, name, **fields)
    with pytest.raises(UserError, match=error) as raised:
        engine.adapters.load(name, tmp_path / name)
    assert "\n" not in str(raised.value)
    assert engine.adapters.names == []


def test_names_and_slots_are_taken_once(directories):
    engine = engine_of(slots=Slots(2, several.RANK))
    for name in ("a0", "a1"):
        engine.adapters.load(name, directories / name)
    with pytest.raises(UserError, match="no slot is free for adapter 'a2': unload one of a0, a1"):
        engine.adapters.load("a2", directories / "a2")
    with pytest.raises(UserError, match="adapter 'a1' is loaded already; unload it first"):
        engine.adapters.load("a1", directories / "a2")
    with pytest.raises(UserError, match="adapter 'b' is not loaded"):
        engine.adapters.unload("b")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"count": 0}, "0 slots of rank 16: both must be at least 1"),
        ({"rank": 0}, "8 slots of rank 0"),
        ({"targets": TARGETS}, "slots for adapters: trained sinks"),
        ({"targets": ("query",)}, "'query' is none of q, k"),
    ],
)
def test_slots_that_cannot_be_are_refused(fields, error):
    with pytest.raises(UserError, match=error):
        Slots(**fields)


def test_an_engine_without_room_says_so():
    engine = engine_of(slots=None)
    with pytest.raises(UserError, match=r"no room for adapters; give Engine\(adapters=Slots"):
        engine.submit(Request(prompt(3), 2, adapter="a0"))
    with pytest.raises(UserError, match="the model has an adapter already"):
        engine_of(several.alone(0))


@pytest.mark.parametrize(
    ("sequences", "pages", "count"), [(2, 9, 30), pytest.param(5, 20, 60, marks=pytest.mark.slow)]
)
def test_many_requests_are_answered_as_each_alone(directories, sequences, pages, count):
    """Nine pages hold one sequence and a half: some are displaced and computed again."""
    engine = loaded(directories, max_sequences=sequences, pages=pages)
    rng = np.random.default_rng(5)
    beginnings = [prompt(length, seed=length) for length in (0, 16, 37, 64)]
    asked = [
        Request(
            beginnings[rng.integers(4)] + prompt(int(rng.integers(1, 25)), seed=1000 + index),
            int(rng.integers(1, 30)),
            temperature=0.0,
            priority=int(rng.integers(2)),
            adapter=[None, *NAMES][rng.integers(9)],
        )
        for index in range(count)
    ]
    made = answers(engine, asked)
    turned = sum(ties(request, one) for request, one in zip(asked, made, strict=True))
    print(f"{turned} of {sum(map(len, made))} tokens are the second best by less than 1e-5")
    assert engine.held_pages == 0 and not engine.busy


MESHES = ("data=2,expert=2,tensor=2", "expert=4", "tensor=4", "expert=8")


@pytest.mark.parametrize(
    "mesh", [MESHES[0], *(pytest.param(m, marks=pytest.mark.slow) for m in MESHES[1:])]
)
def test_a_mesh_gives_the_same(directories, mesh):
    shape = sharding.parse(mesh)
    where = sharding.make_mesh(CONFIG, shape, jax.devices())
    split = sharding.split_of(CONFIG, dict(where.shape))
    specs = sharding.parameter_specs(several.base(), split)
    spread = jax.device_put(
        several.base(), jax.tree.map(lambda spec: NamedSharding(where, spec), specs)
    )
    engine = loaded(directories, model=spread, max_sequences=10)
    asked = [
        Request(prompt(12 + 5 * index, seed=index), 10, temperature=0.0, adapter=name)
        for index, name in enumerate((None, *NAMES, None))
    ]
    made = answers(engine, asked)
    turned = sum(ties(request, one) for request, one in zip(asked, made, strict=True))
    print(f"{turned} of {sum(map(len, made))} tokens are the second best by less than 1e-5")
    factors = engine.adapters.model.layers[1].moe.w_down_EFD.get_value().a
    held = {shard.data.shape for shard in factors.addressable_shards}
    parts = math.prod(where.shape[axis] for axis in split.experts)
    assert held == {(8 // parts, several.COUNT * several.RANK, CONFIG.expert_width)}
