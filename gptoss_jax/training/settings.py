"""The fields of a training config, the files that set them, and overrides from the command line.

A config is a `ml_collections.ConfigDict` with exactly the fields of `defaults`, so that a mistyped
one is an error wherever it stands. Imports no JAX.
"""

import difflib
import itertools
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gptoss_jax.errors import UsageError, UserError
from gptoss_jax.model.adapter import Adapter

# A `ConfigDict` with the fields of `defaults`. To a type checker any field of a ConfigDict may be
# anything that one can hold.
Settings = Any

_MIXTURE = "data.mixture."  # followed by any task's name
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class ConfigError(UsageError):
    """A mistake in a config file or an override: wrong usage, exit 2."""


def defaults() -> Settings:
    """Every field there is, with its type and a value; locked against others.

    Sizes and lengths are in tokens, steps in optimizer steps.
    """
    config = ConfigDict()
    config.seed = 0  # of the initial parameters
    config.base = ""  # a checkpoint to begin from, with its sizes; empty: nothing, `model`'s
    config.tokenizer = ""  # a file or directory; empty: the base's, else o200k_harmony
    config.dtype = "float32"  # of activations; parameters are float32
    config.steps = 1000
    config.batch_size = 8  # rows of data.sequence_length tokens a step
    config.accumulation = 1  # how many parts a step's rows are gone through in
    config.balance_coefficient = 0.01  # of the router's load-balance loss
    config.qat_start = -1  # first step with experts rounded to MXFP4; -1: never
    config.remat = False  # recompute activations in the backward pass: less memory, slower
    config.log_every = 10
    config.eval_every = 100
    config.eval_batches = 4
    config.checkpoint_every = 100
    config.keep = 3  # checkpoints
    config.model = _model()
    config.lora = _lora()
    config.preference = _preference()
    config.data = _data()
    config.optimizer = _optimizer()
    return config.lock()


def _model() -> Settings:
    """The sizes of `model.config.Config`; the constants not here are the published models'."""
    model = ConfigDict()
    model.num_layers = 4
    model.num_experts = 8
    model.experts_per_token = 2
    model.hidden_size = 64
    model.expert_width = 96
    model.num_heads = 8
    model.num_kv_heads = 2
    model.head_dim = 16
    model.vocab_size = 0  # 0: the tokenizer's
    model.sliding_window = 32
    model.initializer_range = 0.02
    model.rope_theta = 150_000.0
    model.rope_factor = 8.0
    model.rope_original_context = 256
    model.max_context = 2048
    return model


def _lora() -> Settings:
    """The fields of `model.adapter.Adapter`; without targets everything is trained."""
    lora = ConfigDict()
    lora.targets = ()  # q, k, v, o, gate_up, down, router, sinks, unembedding
    lora.layers = ()  # as ("0-11", "23"); empty: all
    lora.rank = 8
    lora.alpha = 16.0
    lora.rslora = False
    lora.dropout = 0.0  # of what goes into the factors
    return lora


def _preference() -> Settings:
    """Of data.kind "pairs": DPO, https://arxiv.org/abs/2305.18290."""
    preference = ConfigDict()
    preference.beta = 0.1  # how dear it is to leave the base: larger stays closer
    return preference


def _data() -> Settings:
    data = ConfigDict()
    data.kind = "jsonl"  # or "pairs" of conversations, or "tasks", generated problems
    data.paths = ()
    data.validation_paths = ()
    data.mixture = ConfigDict()  # of tasks: name to weight
    data.seed = 0  # of the order, and of generated tasks
    data.sequence_length = 1024
    data.train_on = ("analysis", "final", "calls", "preamble")
    data.keep_analysis = False  # show the analysis of earlier turns too
    data.skip_bad = False  # count bad lines instead of stopping at them
    data.open_rows = 16  # how many rows are being filled at once
    return data


def _optimizer() -> Settings:
    optimizer = ConfigDict()
    optimizer.lr = 1e-3
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.1  # of matrices; not of norms, biases and sinks
    optimizer.clip = 1.0  # largest global norm of the gradient
    optimizer.schedule = "cosine"  # or "wsd": warm-up, stable, linear decay
    optimizer.warmup_steps = 100
    optimizer.decay_steps = 200  # of wsd, the last ones; of a shorter run all are in the decay
    optimizer.final_fraction = 0.1  # of lr, at the last step
    return optimizer


_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "data.kind": ("jsonl", "pairs", "tasks"),
    "optimizer.schedule": ("cosine", "wsd"),
}
_TRAIN_ON = ("analysis", "final", "calls", "preamble")
_LEAST = {
    **{"seed": 0, "steps": 1, "batch_size": 1, "accumulation": 1, "balance_coefficient": 0},
    **{"qat_start": -1, "log_every": 1, "eval_every": 1, "eval_batches": 1, "keep": 1},
    **{"checkpoint_every": 1, "data.seed": 0, "data.sequence_length": 2, "data.open_rows": 1},
    **{"model.vocab_size": 0, "optimizer.lr": 0, "optimizer.b1": 0, "optimizer.b2": 0},
    # Without eps a parameter that never had a gradient is divided 0 by 0; less is 0 in float32.
    **{"optimizer.eps": 1e-37, "optimizer.weight_decay": 0, "optimizer.clip": 1e-6},
    **{"preference.beta": 1e-6},
    **{"optimizer.warmup_steps": 0, "optimizer.decay_steps": 0, "optimizer.final_fraction": 0},
}
_LISTED = re.compile(r'Other fields present: ".*}"', re.DOTALL)
_MOST = {int: 2**31 - 1, float: 3.4e38}  # what the devices' int32 and float32 hold


def load(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Settings:
    """Runs a config file's `get_config()`, applies overrides, checks the values.

    Args:
      path: a Python file.
      overrides: pairs such as ("data.skip_bad", "true").

    Raises:
      ConfigError: one line that names the file or the field.
    """
    config = _from_file(Path(path))
    for field, text in overrides:
        _override(config, field, text)
    check(config)
    return config


def _from_file(path: Path) -> Settings:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except Exception as error:  # the file is the user's: whatever it raises is one line
        # A ConfigDict lists all that it has before it says which field may have been meant.
        said = _LISTED.sub("", str(error)).replace("\\n", " ")
        reason = " ".join(said.split()).strip("' ")[:300] or type(error).__name__
        raise ConfigError(f"--config {path}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config {path}: get_config() returns no ConfigDict")
    known, given = defaults(), fields(config)
    for field, value in given.items():
        if not field.startswith(_MIXTURE):
            _same_type(field, _get(known, field), value)
    if missing := [field for field in fields(known) if field not in given]:
        raise ConfigError(
            f"--config {path}: get_config() gives no {missing[0]}; begin it with "
            "gptoss_jax.training.settings.defaults()"
        )
    return config


def fields(config: Settings) -> dict[str, Any]:
    """The values by dotted name: {"data.seed": 0, …}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in fields(value).items()}
        else:
            flat[name] = value
    return flat


def _get(config: Settings, field: str) -> Any:
    known = fields(config)
    if field in known:
        return known[field]
    skill = field.removeprefix(_MIXTURE)
    if skill != field and "." not in skill:  # the skills' names are checked with all values
        return 0.0
    if field == _MIXTURE.rstrip("."):
        raise ConfigError(
            f"config.{field} is a group; give skills weights, as config.{field}.sort=1"
        )
    inner = [name for name in known if name.startswith(f"{field}.")]
    if inner:
        raise ConfigError(f"config.{field} is a group; set one of its fields, as config.{inner[0]}")
    close = difflib.get_close_matches(field, known, n=1, cutoff=0) or ["steps"]
    raise ConfigError(f"config.{field}: no such field; nearest is config.{close[0]}")


def _same_type(field: str, known: Any, value: Any) -> None:
    kind = type(known)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigError(f"config.{field}: {value!r} is not of type {kind.__name__}")


def _override(config: Settings, field: str, text: str) -> None:
    value = _parse(field, text, type(_get(config, field)))
    *parents, name = field.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    with node.unlocked():  # against all but the mixture's, `_get` has looked
        node[name] = value


def _parse(field: str, text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(filter(None, map(str.strip, text.split(","))))
    if kind is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    raise ConfigError(f"config.{field}: {text!r} is not of type {kind.__name__}")


def check(config: Settings) -> None:
    """Raises a ConfigError that names a field whose value cannot be."""
    values = fields(config)
    for field, known in _CHOICES.items():
        if values[field] not in known:
            raise ConfigError(f"config.{field}: {values[field]!r} is none of {', '.join(known)}")
    for field, value in values.items():
        if type(value) is tuple and not all(isinstance(one, str) for one in value):
            raise ConfigError(f"config.{field}: {value!r} must be a list of strings")
        most = _MOST.get(type(value))
        # Written so that NaN fails too.
        if most is not None and not -most <= value <= most:
            raise ConfigError(f"config.{field}: {value} must be a number up to {most}")
    for field, least in _LEAST.items():
        if values[field] < least:
            raise ConfigError(f"config.{field}: {values[field]} must be at least {least}")
    for channel in config.data.train_on:
        if channel not in _TRAIN_ON:
            known = ", ".join(_TRAIN_ON)
            raise ConfigError(f"config.data.train_on: {channel!r} is none of {known}")
    adapter_of(config)
    _check_mixture(config)
    _check_together(config)
    if not config.base:
        model_config(config, 1)  # before a tokenizer is loaded to say how many tokens it has


def _check_mixture(config: Settings) -> None:
    mixture = config.data.mixture.to_dict()
    for skill, weight in mixture.items():
        if type(weight) not in (int, float) or weight < 0:
            raise ConfigError(f"config.data.mixture.{skill}: {weight!r} must be a number from 0")
    if not mixture:
        return
    # Late: only here are the skills' names needed.
    from gptoss_jax.training import tasks

    try:
        for split in ("train", "validation"):
            tasks.conversation(config.data.seed, 0, split, mixture)
    except UserError as error:
        raise ConfigError(f"config.data.mixture: {error}") from None


def _check_together(config: Settings) -> None:
    data, model = config.data, config.model
    if not data.train_on:
        raise ConfigError("config.data.train_on: empty, so there is nothing to learn")
    if data.kind != "tasks" and not data.paths:
        raise ConfigError("config.data.paths: empty; give --config.data.paths=FILE[,FILE…]")
    if config.batch_size % config.accumulation:
        raise ConfigError(
            f"config.accumulation: {config.accumulation} does not divide config.batch_size "
            f"{config.batch_size}"
        )
    for paths in ("paths", "validation_paths"):
        if data.kind == "tasks" and data[paths]:
            raise ConfigError(
                f"config.data.{paths}: not read with data.kind tasks; give data.kind jsonl or pairs"
            )
    _check_meant(config)
    if config.lora.targets and not config.base:
        raise ConfigError("config.base: empty; name the checkpoint that lora.targets are of")
    if data.kind == "pairs" and not config.base:
        raise ConfigError("config.base: empty; name the checkpoint that pairs are to change")
    if not config.base and data.sequence_length > model.max_context:
        raise ConfigError(
            f"config.data.sequence_length: {data.sequence_length} is more than "
            f"config.model.max_context {model.max_context}"
        )
    for beta in ("b1", "b2"):
        if config.optimizer[beta] >= 1:
            raise ConfigError(f"config.optimizer.{beta}: {config.optimizer[beta]} must be below 1")


# Sinks are trained themselves, and the unembedding is in no layer.
_WITHOUT = {
    "sinks": ("lora.rank", "lora.alpha", "lora.rslora", "lora.dropout"),
    "unembedding": ("lora.layers",),
}


def _check_meant(config: Settings) -> None:
    """Refuses what would be set without effect."""
    if config.lora.targets and config.qat_start >= 0:
        raise ConfigError(
            "config.qat_start: an adapter's base stays as it is packed; leave it at -1, or leave "
            "lora.targets empty to train everything"
        )
    known = fields(defaults())
    for field, value in fields(config).items():
        if value == known.get(field):
            continue
        if field.startswith("lora.") and not config.lora.targets:
            raise ConfigError(f"config.{field}: means nothing without config.lora.targets")
        for target, without in _WITHOUT.items():
            if field in without and set(config.lora.targets) == {target}:
                raise ConfigError(f"config.{field}: means nothing with {target} as the only target")
        if field.startswith("model.") and config.base:
            raise ConfigError(f"config.{field}: the sizes are config.base's; leave it out")
        if field.startswith("preference.") and config.data.kind != "pairs":
            raise ConfigError(f"config.{field}: means nothing without config.data.kind pairs")
        if field.startswith(_MIXTURE) and value and config.data.kind != "tasks":
            raise ConfigError(
                f"config.{field}: means nothing without config.data.kind tasks; 0 leaves it out"
            )


def adapter_of(config: Settings) -> Adapter | None:
    """The adapter a config trains; None where it trains everything.

    Raises:
      ConfigError: names the field.
    """
    chosen = config.lora
    if not chosen.targets:
        return None
    layers = tuple(itertools.chain.from_iterable(map(_range, chosen.layers)))
    fields = {name: chosen[name] for name in ("rank", "alpha", "rslora", "dropout")}
    try:
        return Adapter(targets=tuple(chosen.targets), layers=layers or None, **fields)
    except UserError as error:
        raise ConfigError(f"config.{error}") from None


def _range(text: str) -> range:
    first, dash, last = text.partition("-")
    last = last if dash else first
    # Three digits: the published models have 36 layers, and the range is gone through here.
    if not all(number.isdecimal() and len(number) <= 3 for number in (first, last)):
        raise ConfigError(f"config.lora.layers: {text!r} is neither a number nor two, as 0-11")
    if int(first) > int(last):  # no layer, which would mean all of them
        raise ConfigError(f"config.lora.layers: {text!r} is backwards; give {last}-{first}")
    return range(int(first), int(last) + 1)


def model_config(config: Settings, vocab_size: int):
    """The `model.config.Config` a training config describes, if it is of no base.

    Args:
      config: a checked config.
      vocab_size: the tokenizer's.

    Raises:
      ConfigError: values that contradict each other, or fewer rows than the tokenizer has tokens.
    """
    from gptoss_jax.model.config import Config

    sizes = config.model.to_dict()
    if 0 < sizes["vocab_size"] < vocab_size:
        shown = f"{sizes['vocab_size']} is less than the tokenizer's {vocab_size}"
        raise ConfigError(f"config.model.vocab_size: {shown}")
    sizes["vocab_size"] = sizes["vocab_size"] or vocab_size
    try:
        return Config(**sizes)
    except UserError as error:
        raise ConfigError(f"config.model.{error}") from None
