"""Preference tuning: pairs from files into rows, their score, the reference, and a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax import sharding, train
from gptoss_jax.checkpoint import load_model
from gptoss_jax.errors import UserError
from gptoss_jax.training import preference, reference, settings, spread
from gptoss_jax.training.examples import Example, Pair
from gptoss_jax.training.packing import rows_of
from gptoss_jax.training.sources import open_sources
from gptoss_jax.training.step import Trainer

USER = {"role": "user", "content": "What is 2 + 3?"}


def said(text):
    return {"role": "assistant", "content": text}


def line(number):
    """Pairs whose better answer is short, of lengths that differ."""
    prompt = [{"role": "user", "content": f"What is {number} + 1?"}]
    worse = [said("well, " * (number % 5 + 1) + "who knows")]
    return json.dumps({"prompt": prompt, "chosen": [said(f"{number + 1}")], "rejected": worse})


@pytest.fixture
def pairs(tmp_path, config, base_path):
    """A config of 20 pairs, for an adapter of the tiny base."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(line(n) + "\n" for n in range(20)))
    config.base = str(base_path)
    config.lora.targets = ("q", "v", "gate_up", "unembedding")
    config.data.kind = "pairs"
    config.data.paths = config.data.validation_paths = (str(path),)
    return config


def test_only_what_follows_the_common_beginning_is_learned(pairs, tokenizer):
    one = open_sources(pairs, tokenizer).train[3]
    texts = [tokenizer.decode(x.ids_S[x.learn_S].tolist()) for x in one.segments]
    assert texts[0] == "4<|return|>"
    assert texts[1].startswith("well, ")
    assert texts[1].endswith("who knows<|return|>")
    assert one.length == sum(len(x.ids_S) - 1 for x in one.segments)


def test_a_pair_may_be_two_whole_conversations(pairs, tokenizer, tmp_path):
    whole = {"chosen": [USER, said("5")], "rejected": [USER, said("6")]}
    parts = {"prompt": [USER], "chosen": [said("5")], "rejected": [said("6")]}
    found = []
    for number, raw in enumerate((whole, parts)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(raw))
        pairs.data.paths = (str(path),)
        found.append(open_sources(pairs, tokenizer).train.fingerprint)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"messages": [USER]}, 'give an object {"prompt": […], "chosen": […], "rejected": […]}'),
        ({"chosen": [said("5")], "rejected": "6"}, "give an object"),
        ({"prompt": "hi", "chosen": [said("5")], "rejected": [said("6")]}, "give an object"),
        ({"chosen": [USER, said("5")], "rejected": [USER, said("5")]}, "do not differ"),
        ({"prompt": [USER], "chosen": [said("5")], "rejected": []}, "rejected: no assistant turn"),
        ({"prompt": [USER], "chosen": ["5"], "rejected": [said("6")]}, "chosen: messages[1]: give"),
        ({"chosen": [USER, said("a" * 200)], "rejected": [USER, said("b" * 200)]}, "more than the"),
    ],
)
def test_a_bad_pair_is_named(pairs, tokenizer, tmp_path, raw, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(line(1) + "\n" + json.dumps(raw))
    pairs.data.paths = (str(path),)
    with pytest.raises(UserError) as caught:
        open_sources(pairs, tokenizer)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert expected in str(caught.value)


def test_pairs_need_a_base(pairs):
    pairs.lora.targets, pairs.base = (), ""
    with pytest.raises(settings.ConfigError, match=r"config\.base: empty; name the checkpoint"):
        settings.check(pairs)


def test_the_score_is_the_formula_pair_by_pair():
    """Also of rows with different numbers of pairs and padding."""
    rng = np.random.default_rng(0)

    def segment(length):
        learn = np.arange(length + 1) >= length // 2
        return Example(np.zeros(length + 1, np.int32), learn, float(rng.normal()))

    lengths = [[(5, 7), (3, 3)], [(9, 2)], []]
    units = [[Pair(segment(a), segment(b)) for a, b in row] for row in lengths]
    batch = rows_of(units, 24)
    losses_BT = rng.exponential(size=(3, 24)).astype(np.float32)
    beta = 0.7
    score = jax.jit(lambda x, b: preference.pairs(x, x, b, beta=beta))
    sums = score(jnp.asarray(losses_BT), jax.tree.map(jnp.asarray, batch))

    margins, gains = [], []
    for row, row_units in enumerate(units):
        start = 0
        for pair in row_units:
            gain = []
            for one in pair.segments:
                place = slice(start, start + one.length)
                gain.append(-losses_BT[row, place][one.learn_S[1:]].sum() - one.reference)
                start += one.length
            margins.append(gain[0] - gain[1])
            gains.append(gain[0])
    margins = np.array(margins)
    expected = np.log1p(np.exp(-beta * margins)).sum()
    np.testing.assert_allclose(sums["loss_sum"], expected, rtol=1e-5)
    np.testing.assert_allclose(sums["margin_sum"], margins.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["chosen_gain_sum"], sum(gains), rtol=1e-5)
    assert float(sums["correct_sum"]) == (margins > 0).sum()
    assert float(sums["weight_sum"]) == 3


@pytest.mark.parametrize("shape", [None, {"fsdp": 2}])
def test_the_reference_is_what_each_conversation_has_alone(pairs, tokenizer, tmp_path, shape):
    """Computed in packed rows, over a mesh too; kept, and refused for other data once begun."""
    alone = load_model(pairs.base, dtype=jnp.dtype("float32"), progress=False)
    mesh = shape and sharding.make_mesh(alone.config, shape, jax.devices())
    base = load_model(pairs.base, dtype=jnp.dtype("float32"), mesh=mesh, progress=False)
    trainer = Trainer(pairs, base.config, mesh, base)
    program = jax.jit(trainer.log_probabilities)
    asked = []

    def log_probabilities(batch):
        asked.append(batch)
        return np.asarray(program(base, spread.placed(batch, base.config, mesh)))

    def sources(base="abc", begun=True):
        found = open_sources(pairs, tokenizer)
        given = {"base": base, "rows": 2, "length": 256, "begun": begun}
        return reference.with_reference(found, tmp_path, log_probabilities, **given)

    one = sources().train[11]
    forward = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    for segment in one.segments:
        ids_S = segment.ids_S
        logp_SV = np.asarray(forward(alone, jnp.asarray(ids_S[None])))[0]
        each = logp_SV[np.arange(len(ids_S) - 1), ids_S[1:]]
        np.testing.assert_allclose(segment.reference, each[segment.learn_S[1:]].sum(), rtol=1e-5)
    calls = len(asked)
    assert sources().train[11].chosen.reference == one.chosen.reference
    assert len(asked) == calls
    with pytest.raises(UserError, match=r"is of another base \(abc, now def\)"):
        sources(base="def")
    (tmp_path / "more.jsonl").write_text(line(1))
    pairs.data.paths = pairs.data.validation_paths = (str(tmp_path / "more.jsonl"),)
    with pytest.raises(UserError, match="is of other train data"):
        sources()
    assert sources(begun=False).train.size == 1
    assert sources().train.size == 1


def test_rows_over_a_mesh_have_the_same_score(pairs, tokenizer):
    source = open_sources(pairs, tokenizer).train
    known = [source[n].with_reference(-0.1 * n, -0.3 * n) for n in range(8)]
    rows = rows_of([known[:4], known[4:]], 512)
    found = []
    for shape in (None, {"fsdp": 2}):
        sizes = load_model(pairs.base, progress=False).config
        mesh = shape and sharding.make_mesh(sizes, shape, jax.devices())
        base = load_model(pairs.base, dtype=jnp.dtype("float32"), mesh=mesh, progress=False)
        trainer = Trainer(pairs, sizes, mesh, base)
        where = jax.tree.map(lambda x: x.sharding, trainer.abstract_state())
        state = jax.jit(trainer.begin_from, out_shardings=where)(base)
        placed = spread.placed(rows, sizes, mesh)
        found.append(jax.device_get(jax.jit(trainer.eval_step)(state.params, base, placed)))
    assert float(found[0]["weight_sum"]) == 8
    for name in ("loss_sum", "correct_sum", "weight_sum", "margin_sum", "chosen_gain_sum"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)


CONFIG = """
from gptoss_jax.training.settings import defaults

def get_config():
    config = defaults()
    config.base, config.tokenizer = {base!r}, {tokenizer!r}
    config.steps, config.batch_size = 10, 2
    config.log_every, config.eval_every, config.checkpoint_every = 1, 10, 5
    config.lora.targets = ("q", "v", "gate_up", "unembedding")
    config.data.kind = "pairs"
    config.data.paths = config.data.validation_paths = ({pairs!r},)
    config.data.sequence_length = 256
    config.optimizer.lr, config.optimizer.warmup_steps = 1e-2, 2
    return config
"""


def test_a_run_comes_to_prefer_what_was_chosen(pairs, tokenizer_path, tmp_path, capsys):
    """It begins at indifference, resumes with the reference it has, and ends with an adapter."""
    names = {"base": pairs.base, "tokenizer": str(tokenizer_path), "pairs": pairs.data.paths[0]}
    (tmp_path / "dpo.py").write_text(CONFIG.format(**names))
    words = ["--config", str(tmp_path / "dpo.py"), "--workdir", str(tmp_path / "run")]
    words += ["--mesh", "data=1"]
    assert train.main([*words, "--config.steps=5"]) == 0
    assert "reference of 20 pairs computed" in capsys.readouterr().err
    kept = tmp_path / "run" / "reference.npz"
    content = kept.read_bytes()
    kept.write_bytes(b"")  # as a power loss may leave it
    assert train.main(words) == 1
    assert f"error: {kept}: not readable" in capsys.readouterr().err
    kept.write_bytes(content)
    assert train.main(words) == 0
    shown = capsys.readouterr().err
    assert "resumed after step 5" in shown
    assert "reference of" not in shown
    records = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in trained] == list(range(1, 11))
    assert trained[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert abs(trained[0]["margin"]) < 1e-3
    validation = records[-1]
    assert validation["split"] == "validation"
    assert validation["accuracy"] > 0.95
    assert validation["margin"] > 1.0
    assert validation["loss"] < np.log(2) - 0.05
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").is_file()
