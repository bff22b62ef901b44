"""The network over 8 fake devices: the same numbers on every mesh that divides."""

import dataclasses
import functools
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gptoss_jax.nano
from gptoss_jax import bench, convert, sharding
from gptoss_jax.errors import UserError
from gptoss_jax.inference.engine import Engine
from gptoss_jax.inference.requests import Request
from gptoss_jax.model.config import PRESETS, Config, read_config
from gptoss_jax.model.transformer import GptOss, abstract

CONFIG = Config(
    num_layers=2,
    num_experts=8,
    experts_per_token=2,
    hidden_size=64,
    expert_width=96,
    num_heads=16,
    num_kv_heads=4,
    head_dim=12,
    vocab_size=160,
    sliding_window=8,
    rope_original_context=64,
    max_context=256,
)
GOLDEN = Path(__file__).parent / "sharding_golden.json"
GOLDEN_MESHES = (
    *("expert=8", "expert=4,tensor=2", "data=2,expert=32,tensor=2", "expert=128"),
    *("fsdp=4,expert=8", "fsdp=32,expert=8"),  # experts over both axes; over fsdp alone
)


def shapes(devices: int, axes: tuple[str, ...]) -> list[dict[str, int]]:
    sizes = itertools.product((1, 2, 4, 8), repeat=len(axes))
    every = [dict(zip(axes, each, strict=True)) for each in sizes if np.prod(each) == devices]
    return [shape for shape in every if not sharding._problem(CONFIG, shape)]


MESHES = shapes(8, ("data", "expert", "tensor"))


# Each of these compiles for ten seconds; every mesh runs with the slow tests.
SOME = (
    *({"expert": 8}, {"expert": 4, "tensor": 2}, {"data": 2, "expert": 2, "tensor": 2}),
    *({"context": 8}, {"data": 2, "context": 2, "expert": 2}),
)


def few(shapes):
    kept = [{k: n for k, n in shape.items() if n > 1} for shape in shapes]
    return [
        shape if shape in SOME else pytest.param(shape, marks=pytest.mark.slow) for shape in kept
    ]


def name(shape: dict[str, int]) -> str:
    return sharding.describe(shape)


@functools.cache
def model(dtype: str = "float32", *, packed: bool = True) -> GptOss:
    built = GptOss(
        CONFIG,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.float32,
        packed_experts=packed,
        rngs=nnx.Rngs(1),
    )
    rng = np.random.default_rng(2)
    # Large enough that logits differ, and no bias or sink zero.
    return jax.tree.map(
        lambda x: (
            x if x.dtype == jnp.uint8 else x * 2 + rng.normal(0, 0.1, x.shape).astype(x.dtype)
        ),
        built,
    )


def on(shape: dict[str, int], network: GptOss):
    """(mesh, split, specs, the network over it)."""
    mesh = sharding.make_mesh(CONFIG, shape, jax.devices())
    split = sharding.split_of(CONFIG, dict(mesh.shape))
    specs = sharding.parameter_specs(network, split)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return mesh, split, specs, jax.device_put(network, shardings)


def logits(shape: dict[str, int], network: GptOss, tokens: np.ndarray) -> np.ndarray:
    mesh, split, specs, spread = on(shape, network)
    batch = sharding.batch_spec(split)
    forward = jax.shard_map(
        lambda model, tokens: model(tokens),
        mesh=mesh,
        in_specs=(specs, batch),
        out_specs=batch,
        check_vma=False,
    )
    placed = jax.device_put(tokens, NamedSharding(mesh, batch))
    return np.asarray(jax.jit(forward)(spread, placed))


@functools.cache
def alone(dtype: str = "float32") -> np.ndarray:
    return np.asarray(jax.jit(lambda model, tokens: model(tokens))(model(dtype), tokens()))


def tokens(batch: int = 8, length: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (batch, length), np.int32)


def mean_kl(p_BTV: np.ndarray, q_BTV: np.ndarray) -> float:
    p, q = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (p_BTV, q_BTV))
    return float((jnp.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("shape", MESHES, ids=name)
def test_logits_are_those_of_one_device(shape):
    assert np.ptp(alone()) > 1
    assert np.abs(logits(shape, model(), tokens()) - alone()).max() <= 1e-5 * np.ptp(alone())


@pytest.mark.parametrize("shape", few(MESHES), ids=name)
def test_bfloat16_is_as_near_as_on_one_device(shape):
    spread = logits(shape, model("bfloat16"), tokens())
    assert mean_kl(alone("bfloat16"), spread) <= mean_kl(alone(), alone("bfloat16"))


@pytest.mark.parametrize("shape", few(MESHES), ids=name)
def test_gradients_are_those_of_one_device(shape):
    network = model(packed=False)
    weight_BTV = np.random.default_rng(3).normal(size=(8, 20, CONFIG.vocab_size)).astype(np.float32)

    def loss(network, tokens_BT, weight_BTV):
        return (network(tokens_BT) * weight_BTV).mean() * len(tokens_BT)

    want = jax.jit(jax.grad(loss))(network, tokens(), weight_BTV)
    mesh, split, specs, spread = on(shape, network)
    batch = sharding.batch_spec(split)

    def summed(network, tokens_BT, weight_BTV):
        return sharding.total(loss(network, tokens_BT, weight_BTV), split.batch)

    over = jax.shard_map(
        summed, mesh=mesh, in_specs=(specs, batch, batch), out_specs=P(), check_vma=False
    )
    placed = jax.device_put((tokens(), weight_BTV), NamedSharding(mesh, batch))
    got = jax.jit(jax.grad(over))(spread, *placed)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(want)]
    for path, a, b in zip(paths, jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= 1e-5 * max(np.ptp(a), 1e-9), path


def generated(network: GptOss, prompts: list[list[int]], count: int) -> list[list[int]]:
    engine = Engine(network, [], np.array([], np.int32), max_sequences=len(prompts))
    asked = [
        Request(prompt, count, temperature=0.7, top_p=0.9, seed=3 + index)
        for index, prompt in enumerate(prompts)
    ]
    made = [[] for _ in asked]
    for index, tokens in engine.run(asked):
        made[index] += tokens
    return made


CONTEXT_MESHES = shapes(8, ("data", "context", "expert"))


@pytest.mark.parametrize(
    "shape", few([*MESHES, *(s for s in CONTEXT_MESHES if s["context"] > 1)]), ids=name
)
def test_generates_the_same_tokens(shape):
    prompts = [list(row) for row in tokens(8, 75).tolist()]
    prompts[0] = prompts[0][:3]  # within the ring, and in the first device's part alone
    prompts[1] = prompts[1][:41]
    spread = on(shape, model())[-1]
    assert generated(spread, prompts, 14) == expected()


@functools.cache
def expected() -> list[list[int]]:
    prompts = [list(row) for row in tokens(8, 75).tolist()]
    prompts[0], prompts[1] = prompts[0][:3], prompts[1][:41]
    return generated(model(), prompts, 14)


def test_a_batch_that_does_not_divide_is_refused():
    spread = on({"data": 2, "expert": 4}, model())[-1]
    with pytest.raises(UserError, match="data=2 of the mesh does not divide a batch of 1"):
        generated(spread, [[1, 2]], 2)


def test_decode_has_two_all_reduces_a_layer():
    config = dataclasses.replace(CONFIG, num_layers=5, layer_types=())
    network = GptOss(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mesh = sharding.make_mesh(config, {"expert": 4, "tensor": 2}, jax.devices())
    specs = sharding.parameter_specs(network, sharding.split_of(config, dict(mesh.shape)))

    def step(network, tokens_BT, added_B):
        return network.extend(tokens_BT, added_B, network.empty_cache(2, 64))[0]

    over = jax.shard_map(
        step, mesh=mesh, in_specs=(specs, P(), P()), out_specs=P(), check_vma=False
    )
    arguments = (np.ones((2, 1), np.int32), np.ones(2, np.int32))
    everywhere = NamedSharding(mesh, P())
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    arguments = jax.device_put((network, *arguments), (placed, everywhere, everywhere))
    text = jax.jit(over).lower(*arguments).compile().as_text()
    kinds = re.findall(
        r" = \S+ (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)", text
    )
    # Two a layer, the embedding's rows, and the logits.
    assert sorted(kinds) == ["all-gather"] + ["all-reduce"] * (2 * 5 + 1)


def specs_of(mesh: str) -> dict[str, str]:
    config = PRESETS["120b"]
    split = sharding.split_of(config, sharding.parse(mesh))
    tree = sharding.parameter_specs(abstract(config), split)
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, P))
    found = {}
    for path, spec in leaves:
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        found[re.sub(r"layers\.\d+", "layers.*", dotted)] = str(tuple(spec))
    return found


@pytest.mark.parametrize("mesh", GOLDEN_MESHES)
def test_every_parameter_lies_as_written_down(mesh):
    assert specs_of(mesh) == json.loads(GOLDEN.read_text())[mesh]


@pytest.mark.parametrize(
    ("text", "shape"),
    [("expert=4,tensor=2", {"expert": 4, "tensor": 2}), ("data=1", {"data": 1})],
)
def test_a_mesh_is_read(text, shape):
    assert sharding.parse(text) == shape


@pytest.mark.parametrize(
    "text",
    ["", "expert", "expert=0", "expert=-1", "model=2", "expert=2,expert=2", f"expert={'9' * 5000}"],
)
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(
        UserError, match="is no axis=size; axes are data, fsdp, context, expert, tensor"
    ):
        sharding.parse(text)


def test_verbs_that_take_no_mesh_here_refuse_an_empty_one(capsys):
    with pytest.raises(UserError, match="--mesh is for a whole model"):
        bench.main(bench.build_parser().parse_args(["model", "--mesh="]))
    with pytest.raises(SystemExit):
        convert.main(["--synthetic", "tiny", "none", "--mesh="])
    with pytest.raises(SystemExit):
        convert.main(["nano", "none", "--to", "hf", "--mesh="])
    said = capsys.readouterr().err
    assert "no --to, --adapter or --mesh" in said and "--mesh is for models in memory" in said


def test_a_mesh_that_does_not_divide_is_refused_with_the_nearest_that_do():
    with pytest.raises(UserError) as refused:
        sharding.check(PRESETS["20b"], {"expert": 3, "tensor": 2}, 8)
    assert str(refused.value) == (
        "--mesh expert=3,tensor=2: expert=3 does not divide 32 experts; nearest that divide: "
        "expert=2,tensor=2 or expert=4 or tensor=4"
    )
    with pytest.raises(UserError, match="nearest that divide: data=3,expert=2 or"):
        sharding.check(PRESETS["20b"], {"data": 2, "expert": 3}, 8)
    with pytest.raises(UserError, match="needs 16 devices; there are 8"):
        sharding.check(PRESETS["20b"], {"expert": 16}, 8)


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (PRESETS["20b"], 8, {"expert": 8}),
        (PRESETS["120b"], 64, {"expert": 64}),
        (PRESETS["20b"], 64, {"expert": 32, "tensor": 2}),
        (PRESETS["20b"], 1, {}),
        (PRESETS["20b"], 3, {"expert": 2}),
        # Over expert=128 alone heads, and with them the cache, would not be split at all.
        (PRESETS["120b"], 128, {"expert": 64, "tensor": 2}),
        (PRESETS["120b"], 256, {"expert": 64, "tensor": 2}),
        (read_config(Path(gptoss_jax.nano.__file__).parent), 8, {"expert": 4, "tensor": 2}),
    ],
)
def test_the_default_is_of_the_devices_that_divide(config, devices, expected):
    assert sharding.default_shape(config, devices) == expected


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (PRESETS["20b"], 8, {"expert": 8}),
        (PRESETS["20b"], 256, {"expert": 32, "tensor": 2, "context": 4}),
        (PRESETS["120b"], 256, {"expert": 64, "tensor": 2, "context": 2}),
        (PRESETS["20b"], 3, {"expert": 2}),
    ],
)
def test_of_several_processes_none_is_left_out(config, devices, expected):
    shape = sharding.default_shape(config, devices, whole=True)
    assert shape == expected
    sharding.check(config, shape, devices)
