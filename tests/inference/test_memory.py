"""The cache that an engine makes: for all sequences at their longest, or what devices have free."""

import jax
import pytest
from small import CONFIG, answers, engine_of, over_mesh, prompt

from gptoss_jax.errors import UserError
from gptoss_jax.inference import memory
from gptoss_jax.inference.requests import Request
from gptoss_jax.model.cache import LayerCache

pytestmark = pytest.mark.usefixtures("small_pages")


class Told:
    """A device that tells of its memory."""

    process_index = 0

    def __init__(self, limit: int, in_use: int):
        self._stats = {"bytes_limit": limit, "bytes_in_use": in_use}

    def memory_stats(self) -> dict[str, int]:
        return self._stats


def cached_bytes(engine) -> int:
    """Of the device that holds most."""
    held: dict[int, int] = {}
    for array in jax.tree.leaves(engine._runner._layers):
        for shard in array.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return max(held.values())


@pytest.mark.fast
@pytest.mark.parametrize("shape", [None, {"expert": 2}, {"data": 2}, {"expert": 3, "tensor": 2}])
def test_the_cache_is_what_is_free_of_a_device(model, monkeypatch, shape):
    held = over_mesh(model, shape) if shape else model
    free = cached_bytes(engine_of(held)) * 2 // 3
    monkeypatch.setattr(memory, "_free", lambda *_: free)
    a_page = LayerCache.nbytes(CONFIG, 1, 1, jax.numpy.float32)
    assert free - a_page < cached_bytes(engine_of(held)) <= free


def test_answers_do_not_depend_on_what_is_free(model, monkeypatch):
    asked = [Request(prompt(20, seed), 10, temperature=0.0) for seed in range(3)]
    expected = answers(engine_of(model), asked)
    monkeypatch.setattr(memory, "_free", lambda *_: 60_000)
    assert answers(engine_of(model), asked) == expected


@pytest.mark.fast
def test_what_can_never_fit_is_refused(model, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda *_: 30_000)
    engine = engine_of(model, reuse=False)
    room = engine.limit_of(Request(prompt(8), 88))
    assert room < CONFIG.max_context and room % 16 == 0
    with pytest.raises(UserError, match=f"engine has room for {room} a sequence"):
        engine.submit(Request(prompt(room), 1))
    monkeypatch.setattr(memory, "_free", lambda *_: 1_000)
    with pytest.raises(UserError, match=r"not even .* MiB of cache fit beside the weights"):
        engine_of(model)


@pytest.mark.fast
def test_a_tenth_is_left_to_programs():
    assert memory._free(Told(1000, 600), 4) == 300
    assert memory._free(jax.devices()[0], 2) == pytest.approx(memory._host_bytes() * 0.45, rel=0.2)


@pytest.mark.fast
def test_a_container_s_limit_is_what_the_host_can_give(tmp_path):
    """The least that its group, or one around it, has left; what files take is given up."""
    own, outer = tmp_path / "fs" / "pod" / "box", tmp_path / "fs" / "pod"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/pod/box\n")
    for folder, most in ((own, "max"), (outer, "1000"), (tmp_path / "fs", "9000")):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("700\n")
    (outer / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    left = list(memory._of_groups(tmp_path / "cgroup", tmp_path / "fs"))
    assert left == [450, 8300]
    assert list(memory._of_groups(tmp_path / "none", tmp_path / "none")) == []
