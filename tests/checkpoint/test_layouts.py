import json
from pathlib import Path

import jax
import pytest

from gptoss_jax.checkpoint.directory import SAFETENSORS_LAYOUTS, rules_of
from gptoss_jax.checkpoint.output import shards
from gptoss_jax.model.config import PRESETS
from gptoss_jax.model.transformer import abstract, parameter

# Of the published checkpoints.
TOTALS = {"20b": (459, 13_761_264_768), "120b": (687, 65_248_815_744)}
INDEX = Path(__file__).parents[3] / "shared/data/model.safetensors.index.20b.json"


def tensors_of(layout, config):
    return [tensor for rule in rules_of(layout, config) for tensor in rule.tensors]


@pytest.mark.parametrize("size", TOTALS)
def test_names_and_bytes_of_the_published_checkpoints(size):
    tensors = tensors_of("hf", PRESETS[size])
    assert (len({t.name for t in tensors}), sum(t.nbytes for t in tensors)) == TOTALS[size]


@pytest.mark.parametrize("size", TOTALS)
def test_the_original_layout_holds_the_same_bytes_in_fewer_tensors(size):
    tensors = tensors_of("original", PRESETS[size])
    assert sum(t.nbytes for t in tensors) == TOTALS[size][1]
    assert len({t.name for t in tensors}) == TOTALS[size][0] - 4 * PRESETS[size].num_layers


@pytest.mark.parametrize("layout", SAFETENSORS_LAYOUTS)
def test_every_parameter_has_one_rule(config, layout):
    model = abstract(config, packed_experts=layout != "hf-bf16")
    rules = rules_of(layout, config)
    paths = [part.path for rule in rules for part in rule.parts]
    assert len(set(paths)) == len(paths)
    leaves = [leaf for path in paths for leaf in jax.tree.leaves(parameter(model, path))]
    assert len(leaves) == len(jax.tree.leaves(model))
    for rule in rules:
        assert sum(part.rows for part in rule.parts) == rule.tensors[0].shape[0]


@pytest.mark.skipif(not INDEX.exists(), reason="the published index is not beside the repository")
def test_the_published_index_tensor_by_tensor():
    index = json.loads(INDEX.read_text())
    placed = shards(tensors_of("hf", PRESETS["20b"]), "hf")
    ours = {tensor.name: file for file, group in placed.items() for tensor in group}
    assert list(ours.items()) == list(index["weight_map"].items())


def names(count, last, dashes="-", first=0):
    return [f"model{dashes}{i:05}-of-{last:05}.safetensors" for i in range(first, first + count)]


def test_shard_names():
    def files(layout, size):
        return list(shards(tensors_of(layout, PRESETS[size]), layout))

    assert files("hf", "20b") == names(3, 2)
    assert files("hf", "120b") == names(15, 14)
    assert files("original", "20b") == ["model.safetensors"]
    assert files("original", "120b") == names(7, 7, "--", first=1)
