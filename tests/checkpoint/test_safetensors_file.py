import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gptoss_jax.checkpoint.safetensors_file import Tensor, read_header, read_rows, write_file
from gptoss_jax.errors import UserError


def arrays():
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, 256, (5, 3), np.uint8),  # odd size: what follows must stay aligned
        "weight": rng.standard_normal((7, 4)).astype(ml_dtypes.bfloat16),
        "bias": rng.standard_normal(3).astype(np.float32),
    }


NAMES = {"uint8": "U8", "bfloat16": "BF16", "float32": "F32"}


def write(file, values):
    tensors = [Tensor(name, x.shape, NAMES[x.dtype.name]) for name, x in values.items()]
    write_file(file, tensors, lambda tensor: iter(np.array_split(values[tensor.name], 2)))


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    write(tmp_path / "x.safetensors", arrays())
    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {name: x.tobytes() for name, x in theirs.items()} == {
        name: x.tobytes() for name, x in arrays().items()
    }
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_rows_of_what_the_safetensors_library_writes(tmp_path):
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays(), file)
    for name, entry in read_header(file).items():
        expected = arrays()[name][1:3]
        out = np.empty_like(expected)
        read_rows(entry, 1, out)
        assert out.tobytes() == expected.tobytes()


def test_columns_of_a_matrix(tmp_path):
    file = tmp_path / "x.safetensors"
    matrix = np.arange(7 * 11, dtype=np.float32).reshape(7, 11)
    safetensors.numpy.save_file({"m": matrix}, file)
    out = np.full((3, 11), -1.0, np.float32)
    read_rows(read_header(file)["m"], 2, out, (4, 9))
    np.testing.assert_array_equal(out[:, 4:9], matrix[2:5, 4:9])
    assert (out[:, :4] == -1).all() and (out[:, 9:] == -1).all()


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BROKEN = {
    "empty": (b"", "truncated"),
    "header cut": (raw({"a": entry()})[:20], "truncated within its header"),
    "absurd header": (b"\xff" * 8, "not a safetensors file"),
    "not json": (raw(b"{]"), "not a safetensors file"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not a safetensors file"),
    "no object": (raw([]), "not a safetensors file"),
    "data cut": (raw({"a": entry()}, b"1"), "truncated within tensor 'a'"),
    "trailing": (raw({"a": entry()}, b"123"), "1 bytes follow"),
    "gap": (raw({"a": entry(offsets=(1, 3))}, b"123"), "tensor 'a': a gap"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(1, 3))}, b"123"), "tensor 'b': a gap"),
    "size": (raw({"a": entry(shape=(3,))}, b"12"), "tensor 'a': 2 bytes for U8 [3]"),
    "dtype": (raw({"a": entry("U7")}, b"12"), "tensor 'a': unknown dtype 'U7'"),
    "negative": (raw({"a": entry(shape=(-2,))}, b"12"), "tensor 'a': a broken header entry"),
    "fraction": (raw({"a": entry(shape=(2.0,))}, b"12"), "tensor 'a': a broken header entry"),
    "no shape": (raw({"a": {"dtype": "U8"}}, b"12"), "tensor 'a': a broken header entry"),
    "no entry": (raw({"a": 3}, b"12"), "tensor 'a': a broken header entry"),
    "list dtype": (raw({"a": entry([])}, b"12"), "tensor 'a'"),
    "twice": (
        raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), b"12"),
        "header: 'a' stands twice",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, name):
    content, message = BROKEN[name]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_header(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_metadata_is_no_tensor(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw({"__metadata__": {"format": "pt"}, "a": entry()}, b"12"))
    assert list(read_header(file)) == ["a"]


def test_a_file_cut_after_its_header_was_read(tmp_path):
    file = tmp_path / "x.safetensors"
    write(file, arrays())
    tensor = read_header(file)["codes"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated within tensor 'codes'"):
        read_rows(tensor, 0, np.empty((5, 3), np.uint8))


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(ValueError, match="codes"):
        write_file(tmp_path / "x.safetensors", [Tensor("codes", (5, 3), "U8")], lambda _: [])
    assert not list(tmp_path.iterdir())
