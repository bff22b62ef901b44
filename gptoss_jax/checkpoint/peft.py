"""Adapters in the layout of Hugging Face's PEFT: adapter_config.json, adapter_model.safetensors.

Names and shapes are those of PEFT 0.17 and later: `target_modules` for matrices, and for the
parameters of experts and router `target_parameters`, whose factors of all E experts lie in one
matrix each: lora_A [E r, in] has the expert major, lora_B [out, r E] the rank.

What PEFT has no place for, trained sinks, is written beside it into sinks.safetensors, which PEFT
ignores and `load` here reads.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_jax.checkpoint import peft_fields, recode
from gptoss_jax.checkpoint.output import created, write_json
from gptoss_jax.checkpoint.safetensors_file import (
    DTYPES,
    Entry,
    Tensor,
    read_header,
    read_metadata,
    read_rows,
    write_file,
)
from gptoss_jax.errors import UserError
from gptoss_jax.model.adapter import Adapter, scale
from gptoss_jax.model.config import Config
from gptoss_jax.model.lora import Trained

CONFIG, WEIGHTS, SINKS = "adapter_config.json", "adapter_model.safetensors", "sinks.safetensors"
_PREFIX = "base_model.model."
# PEFT's module of each matrix in a layer: our path of it, and the target's name.
_MATRICES = {
    "self_attn.q_proj": ("attention.w_q_AD", "q"),
    "self_attn.k_proj": ("attention.w_k_CD", "k"),
    "self_attn.v_proj": ("attention.w_v_CD", "v"),
    "self_attn.o_proj": ("attention.w_o_DA", "o"),
    "mlp.router": ("moe.w_router_ED", "router"),
}
_EXPERTS = "mlp.experts"
_GATE_UP, _DOWN = "moe.w_gate_up_EDF", "moe.w_down_EFD"
_TARGET_OF = {path: target for path, target in _MATRICES.values()} | {
    _GATE_UP: "gate_up",
    _DOWN: "down",
    "attention.sinks_N": "sinks",
}
_PARAMETERS = {
    "gate_up": "mlp.experts.gate_up_proj",
    "down": "mlp.experts.down_proj",
    "router": "mlp.router.weight",
}
_MODULES = {target: f"self_attn.{target}_proj" for target in "qkvo"}
_HEAD, _HEAD_PATH, _UNEMBEDDING = "lm_head", "unembedding_VD", "unembedding"
_HEAD_COPY = f"{_PREFIX}{_HEAD}.base_layer.weight"
_SINKS_NAME = "model.layers.{}.self_attn.sinks"
_BASE = "gpt_oss_base"  # in a file's metadata, which PEFT does not read


def save(trained: Trained, sizes: Config, base: str, directory: Path) -> None:
    """Writes an adapter directory.

    Args:
      trained: float32 values on the host or a device.
      sizes: of the network it is for.
      base: what adapter_config.json calls the model it is for.
      directory: to make, or an empty one; nothing is left of what could not be finished.

    Raises:
      UserError: the directory is not empty.
      OSError: it cannot be written.
    """
    values = {path: np.asarray(value) for path, value in trained.values.items()}
    factors = dict(_published(values, sizes))
    sinks = {
        _SINKS_NAME.format(path.split(".")[1]): value
        for path, value in values.items()
        if path.endswith("sinks_N")
    }
    with created(directory):
        _write(directory / WEIGHTS, factors, sizes)
        if sinks:
            _write(directory / SINKS, sinks, sizes)
        write_json(directory / CONFIG, _config(trained, sizes, base))


def not_held(trained: Trained) -> list[str]:
    """What PEFT's layout has no place for, a line for a user each."""
    found = []
    if "sinks" in trained.adapter.targets:
        found.append(
            f"PEFT has no place for trained sinks: they are in {SINKS}, which PEFT does not read; "
            "convert --to hf merges them"
        )
    if trained.adapter.dropout and not _PARAMETERS.keys().isdisjoint(trained.adapter.targets):
        found.append(
            f"PEFT has no dropout of experts' and router's factors: {CONFIG} has lora_dropout 0"
        )
    return found


def _config(trained: Trained, sizes: Config, base: str) -> dict[str, Any]:
    adapter, layers_of = trained.adapter, _layers_of(trained.values)

    def named(names: Mapping[str, str]) -> list[str]:
        found: list[str] = []
        for target, layers in layers_of.items():
            if target not in names:
                continue
            everywhere = len(layers) == sizes.num_layers
            places = [""] if everywhere else [f"model.layers.{n}." for n in sorted(layers)]
            found += [f"{place}{names[target]}" for place in places]
        return found

    head = [_HEAD] if _UNEMBEDDING in layers_of else []
    parameters = named(_PARAMETERS)
    return {
        **peft_fields.PLAIN,
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "init_lora_weights": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0 if parameters else adapter.dropout,
        "use_rslora": adapter.rslora,
        "target_modules": [*named(_MODULES), *head],
        "target_parameters": parameters or None,
    }


def _published(values: Mapping[str, np.ndarray], sizes: Config) -> Iterator[tuple[str, np.ndarray]]:
    """The factors by PEFT's names, in its shapes."""
    for path, a in values.items():
        stem, _, field = path.rpartition(".")
        if field != "a":
            continue
        b = values[f"{stem}.b"]
        module = _module(stem, values)
        if a.ndim == 3:
            if stem.endswith(_GATE_UP):
                b = recode.interleave(b)
            a, b = a.reshape(-1, a.shape[-1]), b.transpose(2, 1, 0).reshape(b.shape[-1], -1)
        else:
            b = b.T
        yield f"{_PREFIX}{module}.lora_A.weight", np.ascontiguousarray(a)
        yield f"{_PREFIX}{module}.lora_B.weight", np.ascontiguousarray(b)


def _module(stem: str, values: Mapping[str, np.ndarray]) -> str:
    if stem == _HEAD_PATH:
        return _HEAD
    _, layer, inner = stem.split(".", 2)
    if inner in (_GATE_UP, _DOWN):
        # PEFT wraps the experts once a parameter, the first it finds innermost.
        both = f"layers.{layer}.{_DOWN}.a" in values
        inside = ".base_layer" if inner == _GATE_UP and both else ""
        return f"model.layers.{layer}.{_EXPERTS}{inside}"
    (name,) = [name for name, (path, _) in _MATRICES.items() if path == inner]
    return f"model.layers.{layer}.{name}"


def load(directory: Path, sizes: Config) -> Trained:
    """Reads an adapter directory, of this project or of PEFT.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      sizes: of the network it is to fit.

    Returns:
      The adapter, float32 values on the host.

    Raises:
      UserError: no adapter, one of a kind that is not LoRA's plain one, or one that does not fit;
        one line that names the file and the tensor.
    """
    inside = directory / "export"
    if not (directory / CONFIG).exists() and (inside / CONFIG).exists():
        raise UserError(f"{directory}: a run's directory; give its adapter, {inside}")
    fields = peft_fields.read(directory / CONFIG)
    file = directory / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file}: no such file; an adapter's weights belong there")
    rank, values = _evened(directory / CONFIG, fields, _factors(file, sizes))
    values |= _sinks(directory / SINKS, sizes)
    if not values:
        raise UserError(f"{file}: has no factors")
    trained = Trained(_adapter(fields, rank, values), values)
    _check_named(file, fields, _layers_of(values), sizes)
    if not peft_fields.chooses_layers(directory / CONFIG):
        _check_whole(file, fields, _layers_of(values), sizes)
    return trained


def _evened(
    file: Path, fields: peft_fields.Fields, values: Mapping[str, np.ndarray]
) -> tuple[int, dict[str, np.ndarray]]:
    """(rank, factors), all of one rank and scale, where PEFT's patterns give modules their own.

    Zeros fill smaller factors up, and each b takes what its scale is of the whole adapter's.
    """
    stems = [path.removesuffix(".a") for path in values if path.endswith(".a")]
    ranks = {stem: values[f"{stem}.a"].shape[-2] for stem in stems}
    rank = max(ranks.values(), default=fields.rank)
    evened = {}
    for stem, own in ranks.items():
        module = _transformers_name(stem)
        if own != fields.rank_of(module):
            said = f"key 'r': {fields.rank_of(module)} for {module}, but factors of {own}"
            raise UserError(f"{file}: {said}")
        a, b = (_filled(values[f"{stem}.{factor}"], rank) for factor in "ab")
        share = fields.scale_of(module) / scale(rank, fields.alpha, fields.rslora)
        evened |= {f"{stem}.a": a, f"{stem}.b": b if share == 1 else b * np.float32(share)}
    return rank, evened


def _filled(factor: np.ndarray, rank: int) -> np.ndarray:
    """[…, r, n] with zeros up to [..., rank, n]."""
    missing = rank - factor.shape[-2]
    return np.pad(factor, [(0, 0)] * (factor.ndim - 2) + [(0, missing), (0, 0)])


def _transformers_name(stem: str) -> str:
    """What PEFT's patterns are matched with: of a module, or of a parameter that it wraps."""
    if stem == _HEAD_PATH:
        return _HEAD
    _, layer, inner = stem.split(".", 2)
    target = _TARGET_OF[inner]
    return f"model.layers.{layer}.{(_MODULES | _PARAMETERS)[target]}"


def _check_base(file: Path, sizes: Config) -> None:
    """Refuses a file that says it is of another base; only those written here say of which."""
    was, own = read_metadata(file).get(_BASE), _base_of(sizes)
    if was is not None and was != own:
        raise UserError(f"{file}: is of a base with {was}; this one has {own}")


def _base_of(sizes: Config) -> str:
    """What the sizes of gpt-oss differ in: the widths of matrices are alike."""
    return f"{sizes.num_layers} layers of {sizes.num_experts} experts"


def _check_named(
    file: Path, fields: peft_fields.Fields, layers_of: Mapping[str, set[int]], sizes: Config
) -> None:
    """Refuses an adapter that lacks factors in a layer which its config names by its number."""
    for target, name in (_MODULES | _PARAMETERS).items():
        for layer in set(range(sizes.num_layers)) - layers_of.get(target, set()):
            whole = f"model.layers.{layer}.{name}"
            if fields.names(whole, parameter=target in _PARAMETERS, of_a_layer=True):
                raise UserError(f"{file}: has no factors of {whole}, which {CONFIG} names")


def _check_whole(
    file: Path, fields: peft_fields.Fields, layers_of: Mapping[str, set[int]], sizes: Config
) -> None:
    """Refuses an adapter that lacks what its config names, or that is of fewer layers.

    Widths of gpt-oss's sizes are alike, so that one of another base may fit otherwise.
    """
    for target, name in (_MODULES | _PARAMETERS | {_UNEMBEDDING: _HEAD}).items():
        if target not in layers_of and fields.names(name, parameter=target in _PARAMETERS):
            raise UserError(f"{file}: has no factors of {name}, which {CONFIG} names")
    layers = set(range(sizes.num_layers))
    for target, name in (_MODULES | _PARAMETERS).items():  # the unembedding is in no layer
        if missing := layers - layers_of.get(target, layers):
            raise UserError(
                f"{file}: has no factors of {name} in layer {min(missing)} of the model's "
                f"{sizes.num_layers}: it is of another base; if not, {CONFIG} must say so by "
                "layers_to_transform"
            )


def _factors(file: Path, sizes: Config) -> dict[str, np.ndarray]:
    """The factors of a file by our paths, checked against the network."""
    found: dict[str, dict[str, np.ndarray]] = {}
    _check_base(file, sizes)
    for name, entry in read_header(file).items():
        # PEFT saves the unembedding it wraps too: frozen, a copy of the base's, unless it was
        # given other rows.
        if name == _HEAD_COPY and entry.shape == (sizes.vocab_size, sizes.hidden_size):
            continue
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if not match or len(entry.shape) != 2:
            raise UserError(f"{file}: tensor {name!r} {list(entry.shape)} is no factor of a LoRA")
        found.setdefault(match[1], {})[match[2]] = _read(entry)
    values: dict[str, np.ndarray] = {}
    for module, factors in found.items():
        if set(factors) != {"A", "B"}:
            raise UserError(f"{file}: {module}: has one of its two factors alone")
        fitted = _fitted(file, module, factors["A"], factors["B"], sizes)
        if not values.keys().isdisjoint(fitted):
            raise UserError(f"{file}: {module}: its weight has factors already")
        values |= fitted
    return values


def _fitted(
    file: Path, module: str, a: np.ndarray, b: np.ndarray, sizes: Config
) -> dict[str, np.ndarray]:
    """A module's factors by our paths, checked against the network."""
    path = _path(file, module, (a, b), sizes)
    inputs, outputs, experts = _widths(path, sizes)
    rank = len(a) // experts
    if a.shape != (experts * rank, inputs) or b.shape != (outputs, rank * experts) or not rank:
        shown = f"factors of {list(a.shape)} and {list(b.shape)}"
        wanted = f"[{experts} r, {inputs}] and [{outputs}, r {experts}]" if experts > 1 else ""
        wanted = wanted or f"[r, {inputs}] and [{outputs}, r]"
        raise UserError(f"{file}: {module}: {shown} do not fit the model, which takes {wanted}")
    if experts == 1:
        return {f"{path}.a": a, f"{path}.b": np.ascontiguousarray(b.T)}
    b = b.reshape(outputs, rank, experts).transpose(2, 1, 0)
    b = np.ascontiguousarray(b)
    if path.endswith(_GATE_UP):
        columns = b.copy()
        recode.gates_first(columns, b)
    return {f"{path}.a": a.reshape(experts, rank, inputs), f"{path}.b": b}


def _path(file: Path, module: str, factors: tuple[np.ndarray, np.ndarray], sizes: Config) -> str:
    if module == _HEAD:
        return _HEAD_PATH
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    inner = match[2].removesuffix(".base_layer") if match else ""
    if match is None or (inner != _EXPERTS and inner not in _MATRICES):
        raise UserError(f"{file}: {module}: no such module in gpt-oss")
    layer = int(match[1])
    if layer >= sizes.num_layers:
        raise UserError(f"{file}: {module}: the model has {sizes.num_layers} layers")
    if inner in _MATRICES:
        return f"layers.{layer}.{_MATRICES[inner][0]}"
    # PEFT's module is that of both, and which it wraps innermost its affair. Inputs and outputs
    # together tell them apart: [D, 2F] and [F, D] are never the same.
    a, b = factors
    is_gate_up = (a.shape[-1], len(b)) == (sizes.hidden_size, 2 * sizes.expert_width)
    return f"layers.{layer}.{_GATE_UP if is_gate_up else _DOWN}"


def _widths(path: str, sizes: Config) -> tuple[int, int, int]:
    """(inputs, outputs, experts) of the weight at a path."""
    width, attention, kv = sizes.hidden_size, sizes.attention_width, sizes.kv_width
    known = {
        "w_q_AD": (width, attention, 1),
        "w_k_CD": (width, kv, 1),
        "w_v_CD": (width, kv, 1),
        "w_o_DA": (attention, width, 1),
        "w_router_ED": (width, sizes.num_experts, 1),
        "w_gate_up_EDF": (width, 2 * sizes.expert_width, sizes.num_experts),
        "w_down_EFD": (sizes.expert_width, width, sizes.num_experts),
        "unembedding_VD": (width, sizes.vocab_size, 1),
    }
    return known[path.rpartition(".")[2]]


def _layers_of(values: Mapping[str, Any]) -> dict[str, set[int]]:
    """The layers in which each target has values; none of the unembedding, which is in none."""
    found: dict[str, set[int]] = {}
    for path in values:
        stem = path.removesuffix(".a").removesuffix(".b")
        if stem == _HEAD_PATH:
            found[_UNEMBEDDING] = set()
            continue
        _, layer, inner = stem.split(".", 2)
        found.setdefault(_TARGET_OF[inner], set()).add(int(layer))
    return found


def _adapter(fields: peft_fields.Fields, rank: int, values: Mapping[str, np.ndarray]) -> Adapter:
    targets = _layers_of(values)
    layers = sorted(set[int]().union(*targets.values()))
    return Adapter(
        rank=rank,
        alpha=fields.alpha,
        rslora=fields.rslora,
        dropout=fields.dropout,
        targets=tuple(targets),
        layers=tuple(layers),
    )


def _sinks(file: Path, sizes: Config) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    _check_base(file, sizes)
    found = {name: _read(entry) for name, entry in read_header(file).items()}
    known = {
        _SINKS_NAME.format(n): f"layers.{n}.attention.sinks_N" for n in range(sizes.num_layers)
    }
    for name, value in found.items():
        if name not in known or value.shape != (sizes.num_heads,):
            raise UserError(f"{file}: tensor {name!r} {list(value.shape)} does not fit the model")
    return {known[name]: value for name, value in found.items()}


def _read(entry: Entry) -> np.ndarray:
    if entry.dtype not in ("F32", "BF16", "F16"):
        raise UserError(
            f"{entry.file}: tensor {entry.name!r}: {entry.dtype} is none of F32, BF16, F16"
        )
    out = np.empty(entry.shape, DTYPES[entry.dtype])
    read_rows(entry, 0, out)
    values = out.astype(np.float32)
    # In a batch other requests' rows meet them too, and zero times infinity is not zero.
    if not np.isfinite(values).all():
        raise UserError(f"{entry.file}: tensor {entry.name!r} has values that are not finite")
    return values


def _write(file: Path, arrays: Mapping[str, np.ndarray], sizes: Config) -> None:
    tensors = [Tensor(name, array.shape, "F32") for name, array in arrays.items()]
    write_file(
        file,
        tensors,
        lambda tensor: [np.ascontiguousarray(arrays[tensor.name], np.float32)],
        {_BASE: _base_of(sizes)},
    )
