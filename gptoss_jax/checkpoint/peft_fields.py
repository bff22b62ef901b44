"""What PEFT's adapter_config.json says, field by field, and what of it is understood here.

Fields are those of PEFT 0.21's LoraConfig; a test goes through those of the installed one.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_jax.errors import UserError
from gptoss_jax.model.adapter import scale
from gptoss_jax.model.config import read_json_object

# What changes the meaning of the factors, or adds to them, and the value that does not.
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
_PLAIN = {name: value for name, value in PLAIN.items() if not name.endswith("_pattern")} | {
    "megatron_config": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "monteclora_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
}
READ = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights"),
    *("rank_pattern", "alpha_pattern"),
)
HARMLESS = (
    # Where it comes from.
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "megatron_core"),
    # What has factors: the tensors' names say it.
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform"),
    "layers_pattern",
    # Of beginnings that are refused by `init_lora_weights`, and of one that is not.
    *("loftq_config", "corda_config", "lora_ga_config", "eva_config"),
    # Of QALoRA, which is refused by its own field; of the gradient alone; gpt-oss ties nothing.
    *("qalora_group_size", "velora_config", "ensure_weight_tying"),
)
# Beginnings that leave the base as it is; all others subtract what the factors begin with, or
# round it.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What an adapter is, but for its targets.

    Attributes:
      rank: of what `ranks` leaves out.
      alpha: of what `alphas` leaves out.
      dropout: of what goes into lora_A.
      rslora: whether alpha is divided by the rank's root.
      ranks: by the ends of modules' names, which are regular expressions.
      alphas: likewise.
      modules: what is listed to have factors, by the ends of names.
      parameters: likewise.
    """

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    ranks: dict[str, int]
    alphas: dict[str, float]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Of a module or parameter, by its whole name in transformers' model."""
        return _by_end(self.ranks, module, self.rank)

    def names(self, name: str, *, parameter: bool, of_a_layer: bool = False) -> bool:
        """Whether a module, or a parameter, is listed; `of_a_layer`: with its layer's number."""
        listed = self.parameters if parameter else self.modules
        if of_a_layer:
            listed = tuple(filter(_has_layer, listed))
        return any(f".{name}".endswith(f".{end}") for end in listed)

    def scale_of(self, module: str) -> float:
        """What the module's product of factors is multiplied by."""
        alpha = _by_end(self.alphas, module, self.alpha)
        return scale(self.rank_of(module), alpha, self.rslora)


def _by_end(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """As PEFT: of the first pattern that the name ends with."""
    return next((value for key, value in patterns.items() if _ending(key).match(module)), otherwise)


def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def read(file: Path) -> Fields:
    """Reads an adapter_config.json.

    Raises:
      UserError: it says something that is not understood here; names the key.
    """
    raw = read_json_object(file)
    for key, value in raw.items():
        _check(file, key, value)
    rank, rslora = raw.get("r"), raw.get("use_rslora", False)
    if type(rank) is not int or rank < 1:
        raise UserError(f"{file}: key 'r': {rank!r} is no whole number from 1")
    if type(rslora) is not bool:
        raise UserError(f"{file}: key 'use_rslora': {rslora!r} is neither true nor false")
    alpha = _number(file, "lora_alpha", raw.get("lora_alpha"))
    dropout = _number(file, "lora_dropout", raw.get("lora_dropout", 0.0))
    if not alpha:
        raise UserError(f"{file}: key 'lora_alpha': 0 leaves nothing of the adapter")
    if dropout >= 1:
        raise UserError(f"{file}: key 'lora_dropout': {dropout} must be below 1")
    ranks, alphas = (
        _patterns(file, key, raw.get(key)) for key in ("rank_pattern", "alpha_pattern")
    )
    modules, parameters = (
        _named(file, key, raw.get(key)) for key in ("target_modules", "target_parameters")
    )
    return Fields(rank, alpha, dropout, rslora, ranks, alphas, modules, parameters)


def _named(file: Path, key: str, value: Any) -> tuple[str, ...]:
    """The names of a list; none of a text, which is a pattern."""
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{file}: key {key!r}: {value!r} is neither a text nor a list of texts")
    return tuple(value)


def _patterns(file: Path, key: str, value: Any) -> dict[str, Any]:
    """A field of numbers by regular expressions; an alpha of 0 leaves a module out."""
    if not isinstance(value or {}, dict):
        raise UserError(f"{file}: key {key!r}: {value!r} is no object")
    for name, number in (value or {}).items():
        inner = f"{key}.{name}"
        if key == "alpha_pattern":
            _number(file, inner, number)
        elif type(number) is not int or number < 1:
            raise UserError(f"{file}: key {inner!r}: {number!r} is no whole number from 1")
        try:
            _ending(name)
        except re.error as error:
            raise UserError(f"{file}: key {inner!r}: no regular expression: {error}") from None
    return dict(value or {})


def chooses_layers(file: Path) -> bool:
    """Whether an adapter_config.json says that some layers may have no factors."""
    raw = read_json_object(file)
    if raw.get("layers_to_transform") is not None or raw.get("exclude_modules"):
        return True
    named = [raw.get("target_modules") or [], raw.get("target_parameters") or []]
    # A string is a pattern, which may mean anything; nothing is named where sinks are all there is.
    return not any(named) or any(
        isinstance(names, str) or any(map(_has_layer, names)) for names in named
    )


def _has_layer(name: str) -> bool:
    """Whether a listed name has the number of a layer."""
    return re.search(r"(^|\.)\d+\.", name) is not None


def _check(file: Path, key: str, value: Any) -> None:
    if key == "init_lora_weights" and value not in _BEGINNINGS:
        raise UserError(
            f"{file}: key {key!r}: {value!r} changes the base's weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    if key in READ or key in HARMLESS or value in (_PLAIN.get(key), None, False, [], {}):
        return
    why = "is not supported" if key in _PLAIN else "is of a field that is not known here"
    raise UserError(f"{file}: key {key!r}: {value!r} {why}")


def _number(file: Path, key: str, value: Any) -> float:
    is_number = type(value) in (int, float) and 0 <= value <= sys.float_info.max  # NaN is not
    if not is_number:
        raise UserError(f"{file}: key {key!r}: {value!r} is no number from 0")
    return float(value)
