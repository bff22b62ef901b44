"""`python -m gptoss_jax.drift`: refusals and channels of a fine-tune beside its base's."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_jax import cli, distributed
from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.loading import DTYPES, checkpoint_directory, find_tokenizer

if TYPE_CHECKING:
    from gptoss_jax.model.config import Config

PROMPTS = Path(__file__).parent / "inference" / "drift_prompts.jsonl"


def main(argv: list[str] | None = None) -> int:
    """The verb; returns its exit code."""
    return cli.run(_report, _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "drift",
        "Asks a base model and its fine-tune the same prompts and compares their manners.",
        [
            "--base ~/gpt-oss-20b --adapter runs/mine/export --prompts mine.jsonl",
            "--base nano --tuned runs/mine/export --json",
        ],
    )
    parser.add_argument("--base", metavar="DIR", required=True, help="a checkpoint, or nano")
    parser.add_argument("--adapter", metavar="DIR", help="the fine-tune, in PEFT's layout")
    parser.add_argument("--tuned", metavar="DIR", help="the fine-tune, a checkpoint of its own")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        default=PROMPTS,
        help='JSON lines {"prompt": …, "expect": "answer" or "refuse"}; the default is an example',
    )
    parser.add_argument(
        "--max-tokens", type=cli.number(int, 1), default=512, metavar="N", help="a turn (512)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    cli.add_parallelism(parser)
    parser.add_argument("--json", action="store_true", help="every text, as one JSON object")
    return parser


def _report(arguments: argparse.Namespace) -> None:
    if (arguments.adapter is None) == (arguments.tuned is None):
        raise UsageError("give --adapter DIR or --tuned DIR, one of them")
    distributed.join(arguments)
    from gptoss_jax.inference import drift
    from gptoss_jax.loading import choose_mesh, load

    prompts = drift.read_prompts(arguments.prompts)
    sides = [(arguments.base, None), (arguments.tuned or arguments.base, arguments.adapter)]
    sizes = [_check(path, adapter) for path, adapter in sides]
    # One for both where they are of the same sizes, so that it is said once.
    meshes = {s: choose_mesh(s, arguments.mesh, drift.BATCH) for s in dict.fromkeys(sizes)}
    found = []
    for (path, adapter), each in zip(sides, sizes, strict=True):
        model, tokenizer = load(path, dtype=arguments.dtype, mesh=meshes[each], adapter=adapter)
        assert tokenizer is not None  # `_check` saw to it
        found.append(drift.observe(model, tokenizer, prompts, arguments.max_tokens))
        del model  # one at a time
    if arguments.json:
        asked = [dataclasses.asdict(prompt) for prompt in prompts]
        both = {
            name: dataclasses.asdict(seen)
            for name, seen in zip(("base", "tuned"), found, strict=True)
        }
        print(json.dumps({"prompts": asked} | both))
        return
    print(drift.table(prompts, *found))
    if changed := drift.changed(prompts, *found):
        print(f"\n{changed}")


def _check(path: str, adapter: str | None) -> "Config":
    """The sizes; a UserError for what cannot be asked, before the other has been for minutes."""
    from gptoss_jax.checkpoint.adapters import read_adapter
    from gptoss_jax.checkpoint.load import open_source

    directory = checkpoint_directory(path)
    sizes = open_source(directory).config
    if find_tokenizer(directory, sizes.vocab_size) is None:
        raise UserError(f"{path}: has no tokenizer")
    if adapter is not None:
        read_adapter(adapter, sizes)
    return sizes


if __name__ == "__main__":
    sys.exit(main())
