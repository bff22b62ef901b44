"""The one typed configuration, its presets, and the published `config.json` dialects."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from gptoss_jax.errors import UserError

MXFP4_GROUP = 32
ARCHITECTURE = "GptOssForCausalLM"

LayerType = Literal["sliding_attention", "full_attention"]


def alternating_layers(num_layers: int) -> tuple[LayerType, ...]:
    """Layer i slides if i is even: the pattern of both published models."""
    return tuple("sliding_attention" if i % 2 == 0 else "full_attention" for i in range(num_layers))


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and constants of one gpt-oss network; the letters are the dimension key's.

    Defaults are the values both published models share (their `config.json`).

    Raises:
      UserError: on construction, when two values contradict each other.
    """

    num_layers: int
    num_experts: int  # E
    experts_per_token: int = 4  # X
    hidden_size: int = 2880  # D
    expert_width: int = 2880  # F
    num_heads: int = 64  # N
    num_kv_heads: int = 8  # K
    head_dim: int = 64  # H
    vocab_size: int = 201_088  # V
    sliding_window: int = 128  # W, the token itself included
    layer_types: tuple[LayerType, ...] = ()  # empty: alternating, sliding first
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0  # 1.0: plain RoPE
    rope_original_context: int = 4096
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = False
    max_context: int = 131_072
    rms_norm_eps: float = 1e-5
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    initializer_range: float = 0.02  # standard deviation of weights before training

    def __post_init__(self):
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating_layers(self.num_layers))
        for key, problem in self._problems():
            raise UserError(f"{key}: {problem}")

    def _problems(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                yield field.name, f"{value} must be positive"
        if len(self.layer_types) != self.num_layers:
            yield "layer_types", f"{len(self.layer_types)} entries for {self.num_layers} layers"
        for kind in set(self.layer_types) - {"sliding_attention", "full_attention"}:
            yield "layer_types", f"{kind!r} is neither sliding_attention nor full_attention"
        if self.num_heads % self.num_kv_heads:
            yield "num_heads", f"{self.num_heads} is no multiple of {self.num_kv_heads} kv heads"
        if self.experts_per_token > self.num_experts:
            yield "experts_per_token", f"{self.experts_per_token} of only {self.num_experts}"
        if self.rope_theta == 1:
            yield "rope_theta", "1 gives every pair one frequency"
        yield from self._yarn_problems()
        if self.head_dim % 2:
            yield "head_dim", f"{self.head_dim} must be even for rotary pairs"
        for name in ("hidden_size", "expert_width"):
            if getattr(self, name) % MXFP4_GROUP:
                yield name, f"{getattr(self, name)} is no multiple of MXFP4's group of 32"

    def _yarn_problems(self):
        if self.rope_factor < 1:
            yield "rope_factor", f"{self.rope_factor} is less than 1"
        if self.rope_beta_fast <= self.rope_beta_slow:
            shown = f"{self.rope_beta_fast} must be more than the slow one, {self.rope_beta_slow}"
            yield "rope_beta_fast", shown
        # Plain RoPE stretches nothing: its original context is without effect.
        if self.rope_factor > 1 and self.max_context < self.rope_original_context:
            shown = f"the original context, {self.rope_original_context}"
            yield "max_context", f"{self.max_context} is less than {shown}"

    @property
    def attention_width(self) -> int:
        """A: all query heads side by side (4096 in the published models, not D)."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """C: all key/value heads side by side."""
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, or None where it attends to everything before it."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


PRESETS = {
    "20b": Config(num_layers=24, num_experts=32),
    "120b": Config(num_layers=36, num_experts=128),
    # The published vocabulary on a network of 52 MB, to try the commands with.
    "tiny": Config(
        num_layers=4,
        num_experts=8,
        hidden_size=64,
        expert_width=96,
        num_heads=8,
        num_kv_heads=2,
        head_dim=16,
        sliding_window=32,
    ),
}

# Our field -> the key in the published `config.json` / in the original layout's.
_HF_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "hidden_size": "hidden_size",
    "expert_width": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "max_context": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
_HF_ROPE_KEYS = {
    "rope_theta": "rope_theta",
    "rope_factor": "factor",
    "rope_original_context": "original_max_position_embeddings",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
}
_ORIGINAL_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_experts": "num_experts",
    "experts_per_token": "experts_per_token",
    "hidden_size": "hidden_size",
    "expert_width": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "swiglu_limit": "swiglu_limit",
    "rope_theta": "rope_theta",
    "rope_factor": "rope_scaling_factor",
    "rope_original_context": "initial_context_length",
    "rope_beta_slow": "rope_ntk_alpha",
    "rope_beta_fast": "rope_ntk_beta",
}
# What names the hub's files as gpt-oss's; one of the two is enough.
_FAMILY = {"architectures": [ARCHITECTURE], "model_type": "gpt_oss"}
# What gpt-oss has no choice in, though the hub's files say it.
_FIXED = {"tie_word_embeddings": False, "attention_bias": True, "hidden_act": "silu"}
_FIELD_TYPES = {field.name: field.type for field in dataclasses.fields(Config)}


def read_config(path: str | Path) -> Config:
    """Reads a `config.json` in any published dialect.

    Understood: the hub's (`rope_scaling` and a top-level `rope_theta`), transformers v5's
    (`rope_parameters`), and the original layout's own keys.

    Args:
      path: the file, or the directory that holds it.

    Raises:
      UserError: a file that cannot be read, an unknown architecture, a missing key, a value of the
        wrong type or one that contradicts another; one line that names file and key.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    raw = read_json_object(path)
    if "architectures" in raw or "model_type" in raw:
        fields, key_of = _fields_from_hf(raw, path)
    elif "num_experts" in raw:
        fields, key_of = _take(raw, _ORIGINAL_KEYS, path), _ORIGINAL_KEYS
        reach = _original_reach(fields["rope_factor"], fields["rope_original_context"])
        # Two finite factors may have an infinite product, which is no context.
        fields["max_context"] = _number(reach, int, path, _ORIGINAL_KEYS["rope_factor"])
    else:
        raise UserError(
            f"{path}: key 'architectures' is missing; this is no gpt-oss config.json "
            f'(expected "architectures": ["{ARCHITECTURE}"], or the original layout\'s keys)'
        )
    _check_spellings(raw, fields, key_of, path)
    try:
        return Config(**fields)
    except UserError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"{path}: key {key_of.get(field, field)!r}: {problem}") from None


def check_directory(path: Path) -> None:
    """Raises a UserError if the path is no directory; of a file it proposes the file's."""
    if path.is_file():
        raise UserError(f"{path} is a file; give its directory {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a file that must hold one JSON object; a one-line UserError names it otherwise."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    # ValueError: no UTF-8, no JSON, or more digits than Python converts; the other: too deep.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds a JSON {type(raw).__name__}, not an object")
    return raw


def _fields_from_hf(raw: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    _check_family(raw, path)
    fields = _take(raw, _HF_KEYS, path)
    rope_key, rope = _rope(raw, path)
    fields |= _rope_fields(rope, rope_key, path)
    for field in ("swiglu_alpha", "swiglu_limit", "initializer_range"):
        if field in raw:
            fields |= _take(raw, {field: field}, path)
    if (kinds := raw.get("layer_types")) is not None:
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise UserError(f"{path}: key 'layer_types': {kinds!r} is no list of names")
        fields["layer_types"] = tuple(kinds)
    for key, expected in _FIXED.items():
        if raw.get(key, expected) != expected:
            shown = f"{raw[key]!r} is not gpt-oss (expected {expected!r})"
            raise UserError(f"{path}: key {key!r}: {shown}")
    _check_quantization(raw.get("quantization_config"), path)
    key_of = _HF_KEYS | {k: f"{rope_key}.{v}" for k, v in _HF_ROPE_KEYS.items()}
    return fields, key_of


def _check_family(raw: dict[str, Any], path: Path) -> None:
    """Refuses another architecture than gpt-oss, whichever key names it."""
    given = [key for key in _FAMILY if raw.get(key)] or ["architectures"]
    for key in given:
        if raw.get(key) != _FAMILY[key]:
            raise UserError(f"{path}: key {key!r}: {raw.get(key)!r} is not gpt-oss")


def _check_quantization(given: Any, path: Path) -> None:
    """Refuses weights packed by another method: their codes would be read as MXFP4's."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise UserError(f"{path}: key 'quantization_config': {given!r} is no object")
    method = given.get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise UserError(f"{path}: key 'quantization_config.quant_method': {method!r} is not mxfp4")


def _original_reach(factor: float, original_context: int) -> int | float:
    """The context of an original layout, which says nothing of the trained length itself."""
    reach = factor * original_context
    return int(reach) if math.isfinite(reach) else reach


def _rope_fields(rope: dict[str, Any], rope_key: str, path: Path) -> dict[str, Any]:
    kind = rope.get("rope_type")
    if kind == "yarn":
        fields = _take(rope, _HF_ROPE_KEYS, path, inside=rope_key)
        # transformers rounds the ramp's bounds unless told not to; gpt-oss tells it not to.
        truncate = rope.get("truncate", True)
        if not isinstance(truncate, bool):
            raise UserError(f"{path}: key '{rope_key}.truncate': {truncate!r} is no true or false")
        fields["rope_truncate"] = truncate
    elif kind == "default":
        fields = _take(rope, {"rope_theta": "rope_theta"}, path, inside=rope_key)
        fields["rope_factor"] = 1.0
    else:
        raise UserError(f"{path}: key '{rope_key}.rope_type': {kind!r} is neither yarn nor default")
    _check_attention_factor(rope, fields["rope_factor"], rope_key, path)
    return fields


def _check_attention_factor(rope: dict[str, Any], factor: float, inside: str, path: Path) -> None:
    """Refuses another attention factor than YaRN's own, the only one the model has.

    transformers takes `attention_factor` as it is, or else divides 0.1 m ln(factor) + 1 at m =
    `mscale` by the same at m = `mscale_all_dim`: YaRN's own at 1 and 0.
    """
    # A factor below 1 is for Config to refuse.
    own = 0.1 * math.log(max(factor, 1.0)) + 1.0
    for key, expected in {"attention_factor": own, "mscale": 1.0, "mscale_all_dim": 0.0}.items():
        shown = f"{inside}.{key}"
        if rope.get(key) is None:
            continue
        if abs(_number(rope[key], float, path, shown) - expected) > 1e-6:
            raise UserError(f"{path}: key {shown!r}: {rope[key]!r} is not YaRN's {expected:.7g}")


def _rope(raw: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """The key of the rotary parameters, and these with `rope_theta` among them."""
    v5, hub = raw.get("rope_parameters"), raw.get("rope_scaling")
    rope_key, rope = ("rope_scaling", hub) if v5 is None else ("rope_parameters", v5)
    if not isinstance(rope, dict):
        raise UserError(f"{path}: key {rope_key!r} is missing; add gpt-oss's YaRN parameters")
    hub = hub if isinstance(hub, dict) else {}
    for key, again in hub.items():
        _same(f"{rope_key}.{key}", rope.get(key, again), f"rope_scaling.{key}", again, path)
    # What only rope_scaling says holds too.
    rope = {"rope_theta": raw.get("rope_theta")} | hub | rope
    if rope["rope_theta"] is None:
        raise UserError(f"{path}: key 'rope_theta' is missing")
    return rope_key, rope


def _check_spellings(
    raw: dict[str, Any], fields: dict[str, Any], key_of: dict[str, str], path: Path
) -> None:
    """Refuses a value that stands again, differently, under the other dialect's name for it."""
    for keys in (_HF_KEYS, _ORIGINAL_KEYS):
        for field, key in keys.items():
            if field in fields and field in key_of and raw.get(key) is not None:
                _same(key_of[field], fields[field], key, raw[key], path)


def _same(key: str, value: Any, other: str, again: Any, path: Path) -> None:
    if value != again:
        raise UserError(f"{path}: keys {key!r} and {other!r} differ: {value!r} and {again!r}")


def _take(
    raw: dict[str, Any], keys: dict[str, str], path: Path, inside: str = ""
) -> dict[str, Any]:
    fields = {}
    for field, key in keys.items():
        shown = f"{inside}.{key}" if inside else key
        if key not in raw:
            raise UserError(f"{path}: key {shown!r} is missing")
        fields[field] = _number(raw[key], _FIELD_TYPES[field], path, shown)
    return fields


def _number(value: Any, kind: Any, path: Path, key: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path}: key {key!r}: {value!r} is not a number")
    if not _is_finite(value):
        raise UserError(f"{path}: key {key!r}: {value!r} is not finite")
    if kind is int and value != int(value):
        raise UserError(f"{path}: key {key!r}: {value!r} is not a whole number")
    return kind(value)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def to_hf_json(config: Config, *, packed_experts: bool) -> dict[str, Any]:
    """The `config.json` of the published layout for this config.

    Args:
      config: the network.
      packed_experts: whether the directory's experts are MXFP4 (adds `quantization_config`).
    """
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt_oss",
        **{key: getattr(config, field) for field, key in _HF_KEYS.items()},
        "attention_bias": True,
        "attention_dropout": 0.0,
        # o200k_harmony's; transformers refuses an id it has no row for.
        "eos_token_id": 200_002 if config.vocab_size > 200_002 else None,
        "pad_token_id": 199_999 if config.vocab_size > 199_999 else None,
        "experts_per_token": config.experts_per_token,
        "hidden_act": "silu",
        "initial_context_length": config.rope_original_context,
        "initializer_range": config.initializer_range,
        "layer_types": list(config.layer_types),
        "output_router_logits": False,
        "rope_scaling": {
            "rope_type": "yarn",
            "truncate": config.rope_truncate,
            **{
                key: getattr(config, field)
                for field, key in _HF_ROPE_KEYS.items()
                if key != "rope_theta"
            },
        },
        "rope_theta": config.rope_theta,
        "router_aux_loss_coef": 0.9,
        "swiglu_alpha": config.swiglu_alpha,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if packed_experts:
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
        raw["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [*kept, "model.embed_tokens", "lm_head"],
        }
    return raw


def to_original_json(config: Config) -> dict[str, Any]:
    """The original layout's own `config.json`.

    Raises:
      UserError: the config uses what that layout cannot say.
    """
    implied = {
        "layer_types": alternating_layers(config.num_layers),
        "max_context": _original_reach(config.rope_factor, config.rope_original_context),
        # The published value of whatever else has no key there.
        "rms_norm_eps": Config.rms_norm_eps,
        "swiglu_alpha": Config.swiglu_alpha,
        "rope_truncate": Config.rope_truncate,
    }
    for field, value in implied.items():
        if getattr(config, field) != value:
            shown = f"{field}={getattr(config, field)!r}"
            raise UserError(f"the original layout cannot hold {shown}, it implies {value!r}")
    return {key: getattr(config, field) for field, key in _ORIGINAL_KEYS.items()}
