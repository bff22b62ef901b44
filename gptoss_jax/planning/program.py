"""The real programs, compiled for devices that are not here."""

import dataclasses
import functools
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptoss_jax import sharding
from gptoss_jax.errors import UserError
from gptoss_jax.inference.decode import Rules, State
from gptoss_jax.inference.memory import rings_for
from gptoss_jax.inference.programs import Programs
from gptoss_jax.inference.scheduler import width_for
from gptoss_jax.kernels.attention.eight_bit import EightBit
from gptoss_jax.kernels.compiler import compiler_options
from gptoss_jax.model.cache import pages_for
from gptoss_jax.model.config import Config
from gptoss_jax.model.placement import placed
from gptoss_jax.planning import arithmetic, collectives, flops, hlo, traffic
from gptoss_jax.planning.arithmetic import PUBLISHED, Stored
from gptoss_jax.planning.chips import GIB
from gptoss_jax.training.base import widened
from gptoss_jax.training.packing import Batch
from gptoss_jax.training.settings import Settings
from gptoss_jax.training.step import Trainer


class RefusedError(UserError):
    """The compiler has no program for it, and not for want of the device's memory."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, bytes of one device.

    Attributes:
      peak: arguments (weights, cache and the rest, tiles' padding included), temporaries, and
        results that are no argument's memory. Of a program refused for want of memory, its wish.
      collectives: kind -> (how many, bytes of their results), in the text of the program: one in a
        loop counts once. None where there is no program.
      decode_bytes: read and written in one step of decode, see `planning.traffic`.
      decode_flops: of the dots of one step, see `planning.flops`.
      sent_bytes: to other devices in one step, see `planning.collectives`.
    """

    peak: int
    collectives: dict[str, tuple[int, int]] | None
    decode_bytes: float | None = None
    decode_flops: float | None = None
    sent_bytes: float | None = None


def compile_generate(
    config: Config,
    mesh: Mesh,
    batch: int,
    context: int,
    cache: EightBit | None = None,
    stored: Stored = PUBLISHED,
) -> Compiled:
    """Decoding, up to 32 tokens of every sequence a call, and a prefill chunk of long prompts.

    The peak is the larger one; the collectives are decode's.
    """
    with ThreadPoolExecutor(2) as both:
        given = (config, mesh, batch, context, cache, stored)
        decode = both.submit(compile_decode, *given)
        prefill = both.submit(_compile_prefill, *given)
        found = decode.result()
        return dataclasses.replace(found, peak=max(found.peak, prefill.result().peak))


def compile_decode(
    config: Config,
    mesh: Mesh,
    batch: int,
    context: int,
    cache: EightBit | None = None,
    stored: Stored = PUBLISHED,
) -> Compiled:
    """Decoding alone."""
    programs, state, rules = call(config, mesh, batch, context, batch, cache, stored)
    model = placed(stored.model(config), mesh)
    steps = _placed(jax.ShapeDtypeStruct((), jnp.int32), P(), mesh)
    rounds = arithmetic.decode_rounds(config, dict(mesh.shape), batch, context)
    return _compiled(programs.decode, mesh, model, state, rules, steps, rounds=rounds)


def _compile_prefill(
    config: Config,
    mesh: Mesh,
    batch: int,
    context: int,
    cache: EightBit | None,
    stored: Stored,
) -> Compiled:
    model = stored.model(config)
    # A row for each part of the sequences: more rows have the same tokens in all.
    rows = Programs(model, mesh).parts
    programs, state, rules = call(config, mesh, batch, context, rows, cache, stored)
    model = placed(model, mesh)
    chunk = jax.ShapeDtypeStruct((rows, width_for(context)), jnp.int32)
    added = jax.ShapeDtypeStruct((rows,), jnp.int32)
    chunk, added = _placed((chunk, added), programs.batch, mesh)
    return _compiled(programs.prefill, mesh, model, chunk, added, state, rules)


def compile_train(
    settings: Settings, sizes: Config, mesh: Mesh, stored: Stored = PUBLISHED
) -> Compiled:
    """A training step, with experts through MXFP4 if the config ever has them so."""
    base = None
    if settings.lora.targets:
        model = stored.model(sizes, jnp.dtype(settings.dtype))
        base = placed(jax.eval_shape(widened, model), mesh)
    trainer = Trainer(settings, sizes, mesh, base)
    length, parts = settings.data.sequence_length, settings.accumulation
    shape = (parts, settings.batch_size // parts, length)
    spec = P(None, *sharding.batch_spec(sharding.split_of(sizes, dict(mesh.shape))))
    integers = jax.ShapeDtypeStruct(shape, jnp.int32)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32)
    reference = weights if settings.data.kind == "pairs" else None
    batch = Batch(integers, integers, weights, integers, integers, reference)
    step = functools.partial(trainer.train_step, qat=settings.qat_start >= 0)
    function = jax.jit(step, donate_argnums=0)
    return _compiled(function, mesh, trainer.abstract_state(), base, _placed(batch, spec, mesh))


def call(
    config: Config,
    mesh: Mesh,
    batch: int,
    context: int,
    rows: int,
    cache: EightBit | None = None,
    stored: Stored = PUBLISHED,
) -> tuple[Programs, State, Rules]:
    """The programs, and the shapes of a call's state and rules on the mesh.

    Args:
      config: the network.
      mesh: of devices that need not be here.
      batch: sequences that the cache has room for.
      context: tokens of each.
      rows: of the call.
      cache: the format of full layers' pages.
      stored: the network's weights.
    """
    programs = Programs(stored.model(config), mesh if mesh.size > 1 else None, cache)
    platform = next(iter(mesh.devices.flat)).platform
    own = batch // programs.parts
    each = pages_for(context)
    pages = own * each
    layers = jax.eval_shape(programs.pools(pages, rings_for(own, pages), platform))
    state = State.idle(layers, rows, each + 1)
    state, rules = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        for tree in (state, Rules.greedy(rows, config.vocab_size, limit=0))
    )
    state, rules = _placed(state, programs.state, mesh), _placed(rules, programs.rules, mesh)
    return programs, state, rules


def _placed(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Shapes on the mesh; `specs` is a prefix of the tree."""

    def place(spec: P, part: Any) -> Any:
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), part)

    return jax.tree.map(place, specs, tree)


def _compiled(
    function: Any, mesh: Mesh, *arguments: Any, rounds: dict[str, float] | None = None
) -> Compiled:
    """What the compiler says; with the rounds of its loops also what the program moves."""
    with tempfile.TemporaryDirectory() as folder:
        # Written by the compiler, because jaxlib 0.10.2 cannot read most TPU programs back.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        options |= compiler_options(next(iter(mesh.devices.flat)).platform)
        try:
            with jax.set_mesh(mesh):
                compiled = function.lower(*arguments).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            return Compiled(_needed(str(error).splitlines()[0]), None)
        module = _read(folder, "after_optimizations")
        before = _read(folder, "before_optimizations") if rounds else None
    memory = compiled.memory_analysis()
    used, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = Compiled(used + temporary + max(0, results), collectives.listed(module))
    if rounds is None or before is None:
        return found
    return dataclasses.replace(
        found,
        decode_bytes=traffic.moved(module, rounds),
        decode_flops=flops.counted(before, rounds),
        sent_bytes=collectives.sent(module, rounds),
    )


def _read(folder: str, stage: str) -> hlo.Module:
    """The program as the compiler wrote it down, as it came in or as it is scheduled."""
    (file,) = Path(folder).glob(f"*{stage}.txt")
    return hlo.parse(file.read_text(encoding="utf-8"))


def _needed(refusal: str) -> int:
    """The memory that a TPU's compiler says is needed where there is less of it."""
    # libtpu has both sentences.
    needed = re.search(
        r"HBM.*\((\d+\.\d+)G\) exceeds|memory space hbm\. Used (\d+\.\d+)G of", refusal
    )
    if needed is None:
        raise RefusedError(f"the compiler refuses this program: {refusal}")
    return round(float(needed[1] or needed[2]) * GIB)
