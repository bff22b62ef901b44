"""Configs: what is refused, how an override reads, and that a mistake is one line and exit 2."""

import json
import re

import pytest
from ml_collections import ConfigDict

from gptoss_jax import train
from gptoss_jax.training import settings

NANO = "configs/nano.py"


@pytest.fixture
def write(tmp_path):
    def to_file(body):
        path = tmp_path / "config.py"
        path.write_text(f"from gptoss_jax.training.settings import defaults\n{body}\n")
        return path

    return to_file


def test_nano_is_a_config():
    config = settings.load(NANO)
    sizes = settings.model_config(config, 1000)
    assert (sizes.hidden_size, sizes.vocab_size, sizes.num_layers) == (128, 1000, 6)
    assert sizes.num_heads != sizes.head_dim
    assert json.loads(json.dumps(config.to_dict()))["data"]["sequence_length"] == 1280


def test_overrides_are_read_by_the_field_s_type():
    given = {
        "data.kind": "jsonl",
        "data.skip_bad": "true",
        "data.paths": "a,b",
        "steps": "7",
        "optimizer.lr": "1",
    }
    config = settings.load(NANO, list(given.items()))
    values = settings.fields(config)
    assert {name: values[name] for name in given} == {
        **{
            "data.kind": "jsonl",
            "data.skip_bad": True,
            "data.paths": ("a", "b"),
            "steps": 7,
            "optimizer.lr": 1.0,
        }
    }
    assert type(config.optimizer.lr) is float


def test_a_mixture_is_overridden_by_task():
    config = settings.load(NANO, [("data.mixture.addition", "1"), ("data.mixture.sort", "0.5")])
    assert config.data.mixture.to_dict() == {"addition": 1.0, "sort": 0.5}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.mixture.juggling=1", "config.data.mixture: skill 'juggling' is unknown; use one of"),
        ("data.mixture.sort=much", "config.data.mixture.sort: 'much' is not of type float"),
        (
            "data.skipbad=true",
            "config.data.skipbad: no such field; nearest is config.data.skip_bad",
        ),
        ("step=3", "config.step: no such field; nearest is config.steps"),
        ("steps=1.5", "config.steps: '1.5' is not of type int"),
        ("steps=", "config.steps: '' is not of type int"),
        ("data.skip_bad=maybe", "config.data.skip_bad: 'maybe' is not of type bool"),
        ("optimizer.lr=high", "config.optimizer.lr: 'high' is not of type float"),
        ("optimizer.lr=nan", "config.optimizer.lr: nan must be a number up to 3.4e+38"),
        ("optimizer.eps=0", "config.optimizer.eps: 0.0 must be at least 1e-37"),
        ("model.rope_theta=nan", "config.model.rope_theta: nan must be a number"),
        ("model.initializer_range=1e39", "config.model.initializer_range: 1e+39 must be a number"),
        ("model.num_kv_heads=0", "config.model.num_kv_heads: 0 must be positive"),
        ("model.hidden_size=-32", "config.model.hidden_size: -32 must be positive"),
        ("seed=2147483648", "config.seed: 2147483648 must be a number up to 2147483647"),
        ("steps=99999999999", "config.steps: 99999999999 must be a number up to 2147483647"),
        ("tokenizer=/nowhere", "config.tokenizer: /nowhere: no such file; give a tokenizer file"),
        ("model=big", "config.model is a group"),
        ("batch_size=0", "config.batch_size: 0 must be at least 1"),
        ("dtype=float16", "config.dtype: 'float16' is none of float32, bfloat16"),
        ("data.train_on=final,tools", "config.data.train_on: 'tools' is none of"),
        ("accumulation=3", "config.accumulation: 3 does not divide config.batch_size 4"),
        ("data.sequence_length=4096", "config.data.sequence_length: 4096 is more than"),
        ("data.kind=jsonl", "config.data.paths: empty; give"),
        (
            "data.paths=chats.jsonl",
            "config.data.paths: not read with data.kind tasks; give data.kind",
        ),
        ("data.validation_paths=chats.jsonl", "config.data.validation_paths: not read with data.k"),
        (
            "data.mixture=sort",
            "config.data.mixture is a group; give skills weights, as config.data",
        ),
        ("data.mixture.a.b=1", "config.data.mixture.a.b: no such field"),
        ("optimizer.clip=0", "config.optimizer.clip: 0.0 must be at least 1e-06"),
        ("preference.beta=0.5", "config.preference.beta: means nothing without config.data.kind p"),
        ("lora.rank=16", "config.lora.rank: means nothing without config.lora.targets"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(override, expected, tmp_path, capsys):
    """Both spellings, `--config.a=b` and `--config.a b`; nothing is written."""
    workdir = tmp_path / "run"
    for words in ([f"--config.{override}"], f"--config.{override}".split("=")):
        assert train.main(["--config", NANO, "--workdir", str(workdir), *words]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {expected}")
        assert shown.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (("qat_start", "0"), "config.qat_start: an adapter's base stays as it is packed"),
        (("model.hidden_size", "256"), "config.model.hidden_size: the sizes are config.base's"),
        (("lora.targets", ""), "config.lora.alpha: means nothing without"),
        (("lora.rank", "0"), "config.lora.rank: 0"),
        (("lora.targets", "sinks"), "config.lora.alpha: means nothing with sinks as the only"),
    ],
)
def test_what_would_have_no_effect_beside_a_base_is_refused(override, expected):
    config = [("lora.alpha", "32"), override]
    with pytest.raises(settings.ConfigError) as caught:
        settings.load("configs/lora_nano.py", config)
    assert str(caught.value).startswith(expected)


def test_layers_are_none_of_the_unembeddings():
    both = [("lora.targets", "unembedding"), ("lora.layers", "3")]
    with pytest.raises(settings.ConfigError, match=r"^config\.lora\.layers: means nothing with "):
        settings.load("configs/lora_nano.py", both)
    settings.load("configs/lora_nano.py", [("lora.targets", "unembedding,q"), both[1]])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "def get_config():\n    c = defaults()\n    c.stesp = 3\n    return c",
            'mean "steps" instead',
        ),
        ("def get_config():\n    c = defaults()\n    c.steps = 'x'\n    return c", "steps"),
        ("def get_config():\n    return {}", "returns no ConfigDict"),
        (
            "from ml_collections import ConfigDict as get_config",
            r"gives no accumulation; begin it with gptoss_jax\.training\.settings\.defaults\(\)",
        ),
        ("def get_config(:", "SyntaxError"),
        ("", "get_config"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(write, body, expected):
    with pytest.raises(settings.ConfigError, match=expected) as caught:
        settings.load(write(body))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ({"sort": 1.0, "juggling": 1}, "config.data.mixture: skill 'juggling' is unknown"),
        ({"sort": -1.0}, "config.data.mixture.sort: -1.0 must be a number from 0"),
        ({"sort": float("nan")}, "config.data.mixture.sort: nan must be a number up to"),
        ({"sort": "much"}, "config.data.mixture.sort: 'much' must be a number from 0"),
        ({"sort": 0}, "config.data.mixture: the mixture has no weight above 0"),
        ({"repeat": 1}, "config.data.mixture: nothing but 'repeat', of which no problem is held"),
    ],
)
def test_a_mixture_that_cannot_be(mixture, expected):
    config = settings.load(NANO)
    config.data.mixture = ConfigDict(mixture)
    with pytest.raises(settings.ConfigError, match=re.escape(expected)):
        settings.check(config)


def test_a_mixture_for_files_is_refused():
    config = settings.load(NANO, [("data.mixture.sort", "1")])
    config.data.kind, config.data.paths = "jsonl", ("chats.jsonl",)
    with pytest.raises(settings.ConfigError, match=r"config\.data\.mixture\.sort: means nothing"):
        settings.check(config)


def test_a_list_of_other_than_strings_is_refused():
    config = settings.load(NANO)
    config.data.paths = (3,)
    with pytest.raises(settings.ConfigError, match=r"config\.data\.paths: \(3,\) must be a list"):
        settings.check(config)


def test_a_config_made_without_defaults_is_checked_too(write):
    body = (
        "def get_config():\n    c = defaults().copy_and_resolve_references().unlock()\n"
        "    c.new = 1\n    return c"
    )
    with pytest.raises(settings.ConfigError, match=r"config\.new: no such field"):
        settings.load(write(body))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_heads", 5, r"config\.model\.num_heads: 5 is no multiple of 2"),
        ("vocab_size", 10, r"config\.model\.vocab_size: 10 is less than the tokenizer's 400"),
    ],
)
def test_sizes_that_contradict_each_other(config, field, value, expected):
    config.model[field] = value
    with pytest.raises(settings.ConfigError, match=expected):
        settings.model_config(config, 400)
