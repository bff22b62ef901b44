"""`python -m gptoss_jax.bench`: measures on this machine what the documentation quotes."""

import argparse
import dataclasses
import itertools
import json
import math
import platform
import sys
from pathlib import Path

from gptoss_jax import cli, distributed
from gptoss_jax.errors import UsageError, UserError

_EXAMPLES = [
    "model --preset 20b",
    "model --preset 20b --checkpoint ~/gpt-oss-20b --prompt 512 --tokens 32 --json",
    "serve --users 1 8 32 --plot load.png",
    "schemas --directory ~/jsonschemabench/data --count 1000",
    "engine --requests 2000 --seed 1",
    "context --tokens 16384",
    "scaling --chip v5e",
]


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = cli.parser("bench", "Measures speed and memory on this machine.", _EXAMPLES)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    model = benchmarks.add_parser(
        "model",
        help="milliseconds a layer and token, beside transformers; a whole checkpoint's tokens/s",
        allow_abbrev=False,
    )
    model.add_argument("--preset", choices=["20b", "120b"], default="20b", help="whose widths")
    model.add_argument("--checkpoint", metavar="DIR", help="measure this whole checkpoint instead")
    model.add_argument("--prompt", type=cli.number(int, 1), default=512, metavar="N")
    model.add_argument("--tokens", type=cli.number(int, 2), default=32, metavar="N")
    model.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    model.add_argument("--json", action="store_true", help="one JSON object")
    cli.add_parallelism(model)
    serve = benchmarks.add_parser(
        "serve",
        help="the engine's speed with 1 to N users, each sending one request after another",
        allow_abbrev=False,
    )
    serve.add_argument("--checkpoint", metavar="DIR", default="nano", help="default: nano")
    users = {"type": cli.number(int, 1), "nargs": "+", "metavar": "N"}
    serve.add_argument("--users", default=[1, 4, 16, 32], **users)
    serve.add_argument("--requests", type=cli.number(int, 1), default=6, help="of each user")
    median = {"type": cli.number(int, 1), "metavar": "N"}
    serve.add_argument("--prompt", default=120, help="median of prompts' tokens", **median)
    serve.add_argument("--answer", default=80, help="median of answers' tokens", **median)
    serve.add_argument(
        "--shared",
        type=cli.number(int, 0),
        default=0,
        metavar="N",
        help="tokens that all prompts begin with, beside their own",
    )
    serve.add_argument("--constrained", action="store_true", help="answers are JSON of a schema")
    serve.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    serve.add_argument("--json", action="store_true", help="one JSON object")
    serve.add_argument("--plot", metavar="FILE.png", type=Path, help="write a picture")
    cli.add_parallelism(serve)
    schemas = benchmarks.add_parser(
        "schemas",
        help="JSON Schemas of a directory: which compile, and whether answers end and are valid",
        allow_abbrev=False,
    )
    schemas.add_argument("--directory", metavar="DIR", type=Path, required=True, help="of *.json")
    schemas.add_argument(
        "--count", type=cli.number(int, 1), default=1000, metavar="N", help="evenly of its files"
    )
    schemas.add_argument("--checkpoint", metavar="DIR", default="nano", help="default: nano")
    schemas.add_argument("--max-tokens", type=cli.number(int, 1), default=512, metavar="N")
    schemas.add_argument("--json", action="store_true", help="one JSON object")
    engine = benchmarks.add_parser(
        "engine",
        help="random requests through few pages, each answer checked; exit 1 where any is wrong",
        allow_abbrev=False,
    )
    engine.add_argument("--requests", type=cli.number(int, 1), default=2000, help="at least")
    engine.add_argument("--steps", type=cli.number(int, 1), default=10_000, help="at least")
    engine.add_argument("--seed", type=cli.number(int, 0), default=0)
    context = benchmarks.add_parser(
        "context",
        help="one long prompt at real attention widths, and what it holds; its end is checked",
        allow_abbrev=False,
    )
    context.add_argument("--preset", choices=["20b", "120b"], default="20b", help="whose widths")
    context.add_argument("--tokens", type=cli.number(int, 64), default=131_072, metavar="N")
    context.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    cli.add_cache(context)
    context.add_argument("--json", action="store_true", help="one JSON object")
    scaling = benchmarks.add_parser(
        "scaling",
        help="what limits decode from 8 to 256 TPU chips, from compiled programs; runs nowhere",
        allow_abbrev=False,
    )
    scaling.add_argument("--preset", choices=["20b", "120b"], default="120b", help="which model")
    scaling.add_argument("--chip", choices=["v5e", "v6e"], default="v5e")
    scaling.add_argument(
        "--batch",
        type=cli.number(int, 1),
        nargs="+",
        default=[1, 8, 32],
        metavar="B",
        help="sequences a chip",
    )
    scaling.add_argument("--context", type=cli.number(int, 1), default=8192, metavar="T")
    for alone in (schemas, engine, context, scaling):
        distributed.add_flags(alone)
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Runs the benchmark and prints its figures."""
    together = {"model": _model, "serve": _serve}
    alone = {"schemas": _schemas, "engine": _engine, "context": _context, "scaling": _scaling}
    if arguments.benchmark in together:
        together[arguments.benchmark](arguments)
    elif distributed.is_first(arguments):
        alone[arguments.benchmark](arguments)


def _model(arguments: argparse.Namespace) -> None:
    if arguments.mesh is not None and not arguments.checkpoint:
        raise UsageError("--mesh is for a whole model: give --checkpoint; layers take one device")
    distributed.join(arguments)
    import jax

    result: dict = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "dtype": arguments.dtype,
        "prompt": arguments.prompt,
    }
    result |= _whole(arguments) if arguments.checkpoint else _layers(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print(result)


def _serve(arguments: argparse.Namespace) -> None:
    distributed.join(arguments)
    import jax

    from gptoss_jax.benchmarks import serving
    from gptoss_jax.loading import checkpoint_directory, choose_mesh, load
    from gptoss_jax.model.config import read_config
    from gptoss_jax.text.constraints import Constraint, json_schema

    checkpoint = checkpoint_directory(arguments.checkpoint)
    sizes = read_config(checkpoint)
    prompts, answers = serving.Lengths(arguments.prompt), serving.Lengths(arguments.answer)
    if (longest := arguments.shared + prompts.most + answers.most) > sizes.max_context:
        raise UsageError(
            f"--prompt {prompts.median} --answer {answers.median}: the longest are four times as "
            f"long, together with what is shared {longest} tokens, and the context ends at "
            f"{sizes.max_context}"
        )
    cli.check_picture(arguments.plot)
    mesh = choose_mesh(sizes, arguments.mesh, math.gcd(*arguments.users))
    model, tokenizer = load(checkpoint, dtype=arguments.dtype, mesh=mesh)
    constraint = None
    if arguments.constrained:
        if tokenizer is None:
            raise UserError(f"{arguments.checkpoint}: no tokenizer in it")
        constraint = Constraint(tokenizer, json_schema(serving.SCHEMA), raw=True)
    loads = serving.measure(
        model,
        arguments.users,
        arguments.requests,
        prompts,
        answers,
        constraint,
        tokenizer,
        arguments.shared,
    )
    if arguments.plot and distributed.prints():
        serving.draw(loads, arguments.plot)
    result = {
        "device": jax.devices()[0].device_kind,
        "dtype": arguments.dtype,
        "prompt_tokens": prompts.as_dict(),
        "answer_tokens": answers.as_dict(),
        "shared_tokens": arguments.shared,
        "loads": [dataclasses.asdict(load) for load in loads],
    }
    if mesh is None:
        result["bare_decode_tokens_per_second"] = serving.bare_decode(model)
    if arguments.json:
        print(json.dumps(result))
        return
    for one in result.pop("loads"):
        _print(one | {key: " / ".join(f"{x:.1f}" for x in one[key]) for key in _PAIRS})
        print()
    _print(result)


def _schemas(arguments: argparse.Namespace) -> None:
    from gptoss_jax.benchmarks import schemas

    files = schemas.files_of(arguments.directory.expanduser(), arguments.count)
    from gptoss_jax.loading import checkpoint_directory, load

    model, tokenizer = load(checkpoint_directory(arguments.checkpoint), dtype="float32")
    if tokenizer is None:
        raise UserError(f"{arguments.checkpoint}: no tokenizer in it")
    figures = dataclasses.asdict(schemas.measure(model, tokenizer, files, arguments.max_tokens))
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print(figures)


_PAIRS = ("first_token_ms", "token_ms")


def _engine(arguments: argparse.Namespace) -> None:
    from gptoss_jax.benchmarks import endurance

    run = endurance.run(arguments.requests, arguments.steps, arguments.seed)
    alive = [dataclasses.asdict(one) for one in run.alive]
    result = {"seed": arguments.seed, **run.counts, "violations": len(run.violations)}
    print(json.dumps(result | {"alive": alive}))
    for line in run.violations:
        print(line, file=sys.stderr)
    if run.violations:
        sys.exit(cli.EXIT_FAILED)


def _context(arguments: argparse.Namespace) -> None:
    from gptoss_jax.benchmarks import context
    from gptoss_jax.model.config import PRESETS

    preset = PRESETS[arguments.preset]
    if arguments.tokens > preset.max_context:
        raise UsageError(f"--tokens {arguments.tokens}: the context ends at {preset.max_context}")
    run = context.measure(preset, arguments.tokens, arguments.dtype, arguments.cache)
    figures = dataclasses.asdict(run)
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print(figures)


def _scaling(arguments: argparse.Namespace) -> None:
    import jax

    from gptoss_jax.benchmarks import scaling
    from gptoss_jax.model.config import PRESETS
    from gptoss_jax.planning.program import RefusedError

    # A compiler without its device cannot load what the cache holds, and warns.
    jax.config.update("jax_enable_compilation_cache", False)
    print(scaling.HEAD, flush=True)
    preset = PRESETS[arguments.preset]
    for chips, batch in itertools.product(scaling.SLICES, arguments.batch):
        for shape in scaling.shapes(preset, chips):
            where = (preset, arguments.chip, chips, shape, batch, arguments.context)
            try:
                row = scaling.row(scaling.measure(*where))
            except RefusedError:
                row = scaling.refused(chips, shape, batch)
            print(row, flush=True)


def _whole(arguments: argparse.Namespace) -> dict:
    from gptoss_jax.benchmarks import whole
    from gptoss_jax.loading import checkpoint_directory, choose_mesh
    from gptoss_jax.model.config import read_config

    checkpoint = checkpoint_directory(arguments.checkpoint)
    mesh = choose_mesh(read_config(checkpoint), arguments.mesh)
    measured = whole.measure(checkpoint, arguments.prompt, arguments.tokens, arguments.dtype, mesh)
    return {"checkpoint": arguments.checkpoint, **measured}


def _layers(arguments: argparse.Namespace) -> dict:
    from gptoss_jax.benchmarks import layers, peer
    from gptoss_jax.model.config import PRESETS

    preset = PRESETS[arguments.preset]
    result = {
        "preset": arguments.preset,
        "gptoss_jax": layers.measure(preset, arguments.prompt, arguments.dtype),
    }
    if peer.installed():
        result["transformers_float32"] = peer.measure(preset, arguments.prompt)
    else:
        print("note: torch and transformers are not installed, nothing beside", file=sys.stderr)
    return result


def _print(result: dict, indent: str = "") -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{key:<28} {_shown(value) if isinstance(value, float) else value}")


def _shown(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(cli.run(main, build_parser().parse_args()))
