import dataclasses
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file, save_file

from gptoss_jax import convert
from gptoss_jax.checkpoint import output, write_synthetic


def test_help_needs_no_jax():
    code = (
        "import sys; from gptoss_jax import convert\n"
        "try: convert.main(['--help'])\n"
        "except SystemExit: assert 'jax' not in sys.modules\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--synthetic" in done.stdout
    assert time.perf_counter() - start < 5  # half a second on an idle machine


def test_usage_says_what_is_taken(capsys):
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    usage, _, _ = capsys.readouterr().out.partition("\n\n")
    assert " ".join(usage.split()).endswith("] [SRC] DIR")


@pytest.mark.parametrize("words", ["{} --synthetic tiny", "--synthetic tiny {} --layers 2"])
def test_the_directory_stands_anywhere_among_the_flags(words, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(
        "gptoss_jax.checkpoint.synthetic.write_synthetic", lambda *given: written.append(given[1])
    )
    assert convert.main(words.format(tmp_path).split()) == 0
    assert written == [tmp_path]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "a",
        "a b",
        "a --to hf",
        "a b c --to hf",
        "a b --to gguf",
        "a b --to hf --layers 2",
        "a b --to hf --seed 2",
        "a b --to hf --mesh expert=2",
        "a b --to peft --adapter c --mesh expert=2",
        "a b --synthetic 20b",
        "a --synthetic 20b --to hf",
        "a --synthetic 20b --mesh expert=2",
        "a --synthetic 7b",
        "a --synthetic 20b --layers 0",
        "a --synthetic 20b --layers x",
        "a --synthetic 20b --seed -1",
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main(arguments.split())
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_conversion_there_and_back(published, tmp_path, capsys):
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert convert.main([str(published), there, "--to", "original"]) == 0
    assert convert.main([there, back, "--to", "hf"]) == 0
    files = (published / "model.safetensors", tmp_path / "back" / "model.safetensors")
    assert len({file.read_bytes() for file in files}) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""  # not even a progress bar, where there is no terminal


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_a_terminal_gets_a_bar(published, layout, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert convert.main([str(published), str(tmp_path / "target"), "--to", layout]) == 0
    assert "writing: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("mesh", ["data=1", "tensor=2"])
def test_orbax_warns_of_nothing(published, tmp_path, caplog, mesh):
    target, back = str(tmp_path / "target"), tmp_path / "back"
    assert convert.main([str(published), target, "--to", "orbax", "--mesh", mesh]) == 0
    assert caplog.messages == []
    assert convert.main([target, str(back), "--to", "hf"]) == 0
    files = (published / "model.safetensors", back / "model.safetensors")
    assert len({file.read_bytes() for file in files}) == 1


def test_quantising_is_said(published, tmp_path, capsys):
    dense = str(tmp_path / "dense")
    assert convert.main([str(published), dense, "--to", "hf-bf16"]) == 0
    assert capsys.readouterr().err == ""
    assert convert.main([dense, str(tmp_path / "packed"), "--to", "original"]) == 0
    assert "quantises" in capsys.readouterr().err


def test_mistakes_are_one_line(published, tmp_path, capsys):
    assert convert.main([str(published), str(published), "--to", "hf"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert convert.main([str(tmp_path / "none"), str(tmp_path / "target"), "--to", "hf"]) == 1
    assert "no such directory" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_a_bad_scale_is_a_line_and_leaves_nothing(published, tmp_path, capsys, monkeypatch):
    """Not even the shards before it: the next try finds the directory as this one did."""
    monkeypatch.setattr(output, "_HF_SHARD_BYTES", 100_000)
    source, target = shutil.copytree(published, tmp_path / "source"), tmp_path / "target"
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 3, 1] = 255
    save_file(tensors, source / "model.safetensors")
    for _ in range(2):
        assert convert.main([str(source), str(target), "--to", "hf"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "down_proj_scales': a scale byte is 255" in error
        assert not target.exists()
    target.mkdir()
    assert convert.main([str(source), str(target), "--to", "hf"]) == 1
    assert [file.name for file in target.iterdir()] == []


def test_conversion_does_not_hold_the_checkpoint(config, tmp_path):
    """What the process grows by stays below either of the two large tensors."""
    large = dataclasses.replace(config, vocab_size=600_000)
    write_synthetic(large, tmp_path / "source")
    code = (
        "import resource, sys\n"
        "from gptoss_jax import checkpoint, convert\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert convert.main(sys.argv[1:]) == 0\n"
        "print((peak() - before) * 1024)\n"
    )
    words = [str(tmp_path / "source"), str(tmp_path / "target"), "--to", "original"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
    assert int(done.stdout) < large.vocab_size * large.hidden_size * 2


def test_synthetic_goes_through(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "gptoss_jax.checkpoint.synthetic.write_synthetic", lambda *given: calls.append(given)
    )
    assert convert.main(["--synthetic", "120b", str(tmp_path), "--layers", "2"]) == 0
    assert calls == [("120b", tmp_path, 2, 0)]
