"""The reader of PyTorch files: right on what PyTorch 2.13 wrote, and nothing but a clear line for anything else."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tcp_tf import torch_file
from tcp_tf.torch_file import TorchFileError

DATA = Path(__file__).parent / "data"


class Shell:
    """What it unpickles to is the result of a shell command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def archive(path: Path, content: bytes, storages: tuple = (), compression: int = zipfile.ZIP_STORED) -> Path:
    """A file laid out as PyTorch does, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for key, values in enumerate(storages):
            file.writestr(f"archive/data/{key}", values)
    return path


def legacy(content: bytes) -> bytes:
    header = torch_file.LEGACY_MAGIC, torch_file.LEGACY_PROTOCOL, {"little_endian": True}
    return b"".join(pickle.dumps(value, 2) for value in header) + content


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_reads_what_pytorch_wrote(name):
    base = np.arange(20, dtype=np.float32).reshape(4, 5)
    expected = {
        "plain": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "transposed": base.T,
        "slice": base[1:3, 2:4],
        "long": np.array([7], np.int64),
        "half": np.array([0.5, -2.0], np.float16),
        "bfloat16": np.array([0.5, -2.0], np.float32),
        "double": np.array(0.25),
        "empty": np.zeros((0, 3), np.float32),
    }
    arrays = torch_file.read(DATA / name)
    assert list(arrays) == list(expected)
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


def some_arrays() -> dict:
    generator = np.random.default_rng(0)
    return {
        "E.a": generator.standard_normal((2, 3, 4, 5)).astype(np.float32),
        "E.b": generator.standard_normal((70000,)).astype(np.float32),
        "E.c": generator.standard_normal((6, 5)).astype(np.float32).T,
        "scalar": np.array(1.5, np.float32),
        "steps": np.array([2**40], np.int64),
    }


def test_written_files_read_back(tmp_path):
    arrays = some_arrays()
    torch_file.write(tmp_path / "a.pth", arrays)
    again = torch_file.read(tmp_path / "a.pth")
    assert list(again) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which the project does not")
    arrays = some_arrays()
    torch_file.write(tmp_path / "a.pth", arrays)
    again = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(again) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key].numpy(), array, err_msg=key)


def test_other_types_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="float64"):
        torch_file.write(tmp_path / "a.pth", {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_a_callable_is_refused_by_name_and_not_called(tmp_path, kind, protocol):
    content = pickle.dumps({"E.a": Shell(f"touch {tmp_path}/ran")}, protocol)
    path = tmp_path / "a.pth"
    if kind == "zip":
        archive(path, content)
    else:
        path.write_bytes(legacy(content) if kind == "legacy" else content)
    with pytest.raises(TorchFileError, match=rf"a\.pth: its pickle asks for {os.system.__module__}\.system; only"):
        torch_file.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # to be used again as number 2,147,483,647: an array of 16 GiB and more
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"ab.",  # a byte array of 1 TiB
        b"p99999999999\n.",
    ],
)
def test_a_short_pickle_takes_little_memory(tmp_path, content):
    """Found by fuzzing: each of these once took gigabytes or half a minute."""
    for file in (legacy(content), content):
        (tmp_path / "a.pth").write_bytes(file)
        with pytest.raises(TorchFileError, match="not a PyTorch checkpoint, or a damaged one"):
            torch_file.read(tmp_path / "a.pth")
    with pytest.raises(TorchFileError, match="not a PyTorch checkpoint, or a damaged one"):
        torch_file.read(archive(tmp_path / "b.pth", content))


def test_pytorchs_own_other_functions_are_refused(tmp_path):
    path = archive(tmp_path / "a.pth", b"ctorch.serialization\nload\n.")
    with pytest.raises(TorchFileError, match=r"asks for torch\.serialization\.load"):
        torch_file.read(path)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_every_cut_is_noticed(tmp_path, name):
    whole = (DATA / name).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(TorchFileError) as error:
            torch_file.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path):
    arrays = {"a": np.full(100, 1.0, np.float32)}
    torch_file.write(tmp_path / "a.pth", arrays)
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[content.index(arrays["a"].tobytes()) + 50] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(TorchFileError, match="Bad CRC-32"):
        torch_file.read(tmp_path / "a.pth")


def tensor_pickle(length: int, shape: tuple, strides: tuple) -> bytes:
    """The pickle of {"a": tensor} that describes a storage of `length` floats in this way."""
    stream = io.BytesIO()
    plain = {"a": np.zeros(length, np.float32)}
    stream.write(b"".join(torch_file._pickled(plain)))
    described = pickle.MARK + pickle.BININT + length.to_bytes(4, "little") + pickle.TUPLE
    ours = b"".join(
        pickle.MARK + b"".join(pickle.BININT + value.to_bytes(4, "little") for value in values) + pickle.TUPLE
        for values in (shape, strides)
    )
    default = described + pickle.MARK + pickle.BININT + (1).to_bytes(4, "little") + pickle.TUPLE
    assert stream.getvalue().count(default) == 1
    return stream.getvalue().replace(default, ours)


@pytest.mark.parametrize(
    ("shape", "strides"), [((5,), (1,)), ((2, 3), (2, 1)), ((2**20, 2**20), (0, 0)), ((2,), (2**30,))]
)
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape, strides):
    path = archive(tmp_path / "a.pth", tensor_pickle(4, shape, strides), (bytes(16),))
    with pytest.raises(TorchFileError, match="does not fit its storage of 4 elements"):
        torch_file.read(path)


def test_a_storage_of_another_length_is_refused(tmp_path):
    path = archive(tmp_path / "a.pth", tensor_pickle(4, (4,), (1,)), (bytes(12),))
    with pytest.raises(TorchFileError, match="a: 3 elements stored, 4 announced"):
        torch_file.read(path)


def test_a_missing_storage_is_named(tmp_path):
    path = archive(tmp_path / "a.pth", tensor_pickle(4, (4,), (1,)))
    with pytest.raises(TorchFileError, match="archive/data/0 is missing"):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list instead of a dictionary of tensors"),
        ({}, "holds a dict instead"),
        ({"E": {"a": 1}}, "entry 'E' is not a tensor but a dict"),
        ({"E.a": 3.0}, "entry 'E.a' is not a tensor but a float"),
        ({5: 3.0}, "an entry named by a int instead of a string"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, message):
    path = archive(tmp_path / "a.pth", pickle.dumps(content, 2))
    with pytest.raises(TorchFileError, match=message):
        torch_file.read(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(TorchFileError, match="No such file"):
        torch_file.read(path)
    with pytest.raises(TorchFileError, match="Is a directory"):
        torch_file.read(tmp_path)
    path.write_text("<html>not found</html>")
    with pytest.raises(TorchFileError, match="not a PyTorch checkpoint"):
        torch_file.read(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(TorchFileError, match=r"no data\.pkl"):
        torch_file.read(tmp_path / "a.npz")
    archive(path, tensor_pickle(4, (4,), (1,)), (bytes(16),), zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="compressed"):
        torch_file.read(path)
