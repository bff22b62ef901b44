"""What must hold before any of JAX is there: imports, the list of verbs, the help."""

import importlib.util
import subprocess
import sys
import time

import pytest

import gptoss_jax
from gptoss_jax.__main__ import _VERBS

pytestmark = pytest.mark.fast


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_no_jax():
    shown = run("-c", "import gptoss_jax, sys; print('jax' in sys.modules)")
    assert shown.stdout.strip() == "False", shown.stderr


def test_public_names_resolve():
    for name in gptoss_jax.__all__:
        assert callable(getattr(gptoss_jax, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = gptoss_jax.nothing


def test_lists_the_verbs():
    shown = run("-m", "gptoss_jax").stdout
    for verb in _VERBS:
        assert verb in shown
        assert importlib.util.find_spec(f"gptoss_jax.{verb}") is not None


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_help_imports_no_jax_and_shows_two_examples(verb):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{verb}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('gptoss_jax.{verb}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('code', end.code, 'jax', 'jax' in sys.modules)\n"
    )
    shown = run("-c", code)
    assert "code 0 jax False" in shown.stdout, shown.stderr
    assert shown.stdout.count(f"python -m gptoss_jax.{verb} ") >= 2


def test_an_interrupted_verb_does_not_wait_for_what_is_under_way():
    """A thread stands for the device call, which the interpreter's end waits for just so."""
    code = (
        "import argparse, sys, threading, time\n"
        "from gptoss_jax import cli\n"
        "def main(arguments):\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    print('kept')\n"
        "    raise KeyboardInterrupt\n"
        "sys.exit(cli.run(main, argparse.Namespace(debug=False)))\n"
    )
    began = time.perf_counter()
    shown = run("-c", code)
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "kept\n", "")
    assert time.perf_counter() - began < 30
