"""PyTorch checkpoint files without PyTorch: reads and writes a dictionary of tensors, and nothing else.

A `.pth` file is a pickle that says which tensors there are, with their bytes beside it: since PyTorch 1.6 in a ZIP
archive (`NAME/data.pkl`, `NAME/data/0`, ...), before that one behind the other in one file. A pickle is a program and
could run anything. This one is run by an interpreter that knows five words (`ALLOWED`), each replaced by a harmless
stand-in of ours; a file that asks for any other is refused by the name it asked for. No code of the file's choosing is
imported or called, and no byte of a tensor is read before the whole description has been checked.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple, Union

import numpy as np

# Storage class of PyTorch -> how its elements lie in the file, little endian. bfloat16 is widened after reading.
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
ALLOWED = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.*Storage")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_AXES = 8


class TorchFileError(ValueError):
    """A file that is not a readable dictionary of tensors; the message is one line that names the file."""


class Tensor(NamedTuple):
    """Where a tensor lies: `shape` and `strides` (in elements) over the storage `key`, from element `offset` on."""

    key: str
    storage: str  # a key of STORAGES
    length: int  # elements in the storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """The pickle asks for something outside `ALLOWED`, or uses it in another way than PyTorch does."""


class _StorageType(NamedTuple):
    name: str


class _Dictionary(collections.OrderedDict):
    """What the file gets for an OrderedDict; the attributes that it sets (PyTorch's `_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        del state


class _Unpickler(pickle.Unpickler):
    """The interpreter of `ALLOWED`. Everything it can build is a plain Python value or one of the stand-ins here."""

    def find_class(self, module: str, name: str) -> Union[type, Callable, _StorageType]:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dictionary
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGES:
            return _StorageType(name)
        raise _Refused(f"its pickle asks for {module}.{name}; only {', '.join(ALLOWED)} are let through")

    def persistent_load(self, identifier: object) -> Tensor:
        """("storage", type, key, device, elements), and None as a sixth in the old format."""
        if isinstance(identifier, tuple) and len(identifier) in (5, 6) and identifier[0] == "storage":
            kind, key, _, length = identifier[1:5]
            view = identifier[5] if len(identifier) == 6 else None
            if isinstance(kind, _StorageType) and isinstance(key, str) and _is_size(length) and view is None:
                return Tensor(key, kind.name, length, 0, (length,), (1,))
        raise _Refused("its pickle refers to a storage in an unknown way")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> Tensor:
    """Stands in for PyTorch's function of that name; what follows the strides concerns gradients and hooks."""
    sizes_known = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_AXES
    if not (isinstance(storage, Tensor) and sizes_known and all(map(_is_size, (offset, *shape, *strides)))):
        raise _Refused("its pickle describes a tensor in an unknown way")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
    if 0 not in shape and max(last + 1, math.prod(shape)) > storage.length:
        raise _Refused(f"a tensor of shape {shape} does not fit its storage of {storage.length} elements")
    return storage._replace(offset=offset, shape=shape, strides=strides)


def read(path: Union[str, Path]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint file by name, in the file's order; bfloat16 comes as float32.

    Raises:
        TorchFileError: the file cannot be opened, is cut short or damaged, is no PyTorch file, asks for more than
            tensors, or holds something else than a dictionary of named tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read(file)
    except OSError as error:
        raise TorchFileError(f"{path}: {error.strerror or error}") from None
    except _Refused as error:
        raise TorchFileError(f"{path}: {error}") from None


def _read(file: IO[bytes]) -> dict[str, np.ndarray]:
    start = file.read(4)
    file.seek(0)
    try:
        return _read_zip(file) if start == b"PK\x03\x04" else _read_legacy(file)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
        # Python's ZIP reader has all of these for archives that are not well formed.
        raise _Refused(f"a damaged or incomplete file ({str(error) or type(error).__name__})") from None


def _unpickle(file: IO[bytes]) -> object:
    """Runs one pickle of the file; a damaged one may fail in any way, so every exception means the same here."""
    try:
        _check_memory(file)
        return _Unpickler(file, encoding="utf-8").load()
    except _Refused:
        raise
    except Exception as error:
        raise _Refused(f"not a PyTorch checkpoint, or a damaged one ({type(error).__name__} in its pickle)") from None


def _check_memory(file: IO[bytes]) -> None:
    """Refuses what would make the interpreter take memory that the pickle's own length does not account for.

    It keeps what is to be used again in an array, as long as the largest number that the pickle gives to any of it, and
    makes a byte array as long as it is said to be before there is a byte of it.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "BYTEARRAY8" or (opcode.name.endswith("PUT") and int(str(argument)) > count):
            raise _Refused(f"not a PyTorch checkpoint, or a damaged one ({opcode.name} {argument} in its pickle)")
    file.seek(start)


def _described(content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise _Refused(f"holds a {type(content).__name__.lstrip('_')} instead of a dictionary of tensors")
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise _Refused(f"holds an entry named by a {type(name).__name__} instead of a string")
        if not isinstance(tensor, Tensor):
            raise _Refused(f"entry {name!r} is not a tensor but a {type(tensor).__name__.lstrip('_')}")
    return dict(content.items())


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("an archive, but not of PyTorch: no data.pkl in it")
        folder = pickles[0][: -len("data.pkl")]
        # PyTorch never compresses. A compressed member could grow without bounds when it is read.
        packed = [m.filename for m in members.values() if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1]
        if packed:
            raise _Refused(f"{packed[0]} is compressed or encrypted, which PyTorch's own files never are")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise _Refused("written on a big-endian machine")
        with archive.open(pickles[0]) as stream:
            tensors = _described(_unpickle(stream))

        def storage(tensor: Tensor) -> bytes:
            name = f"{folder}data/{tensor.key}"
            if name not in members:
                raise _Refused(f"{name} is missing from the archive")
            return archive.read(name)

        return _materialise(tensors, storage)


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Five pickles (magic number, protocol, machine, content, order of the storages), then each storage's bytes."""
    if _unpickle(file) != LEGACY_MAGIC or _unpickle(file) != LEGACY_PROTOCOL:
        raise _Refused("not a PyTorch checkpoint")
    machine = _unpickle(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refused("written on a big-endian machine")
    tensors = _described(_unpickle(file))
    order = _unpickle(file)
    if not isinstance(order, list):
        raise _Refused("not a PyTorch checkpoint, or a damaged one (no list of storages)")
    widths = {tensor.key: np.dtype(STORAGES[tensor.storage]).itemsize for tensor in tensors.values()}
    places = {}
    end = os.fstat(file.fileno()).st_size
    for key in order:
        length = int.from_bytes(file.read(8), "little")
        start = file.tell()
        size = length * widths.get(key, 0)
        if key not in widths or start + size > end:
            raise _Refused(f"a damaged or incomplete file: storage {key!r} is not whole")
        places[key] = (start, size)
        file.seek(start + size)

    def storage(tensor: Tensor) -> bytes:
        if tensor.key not in places:
            raise _Refused(f"a damaged or incomplete file: storage {tensor.key!r} is not whole")
        start, size = places[tensor.key]
        file.seek(start)
        return file.read(size)

    return _materialise(tensors, storage)


def _materialise(tensors: Mapping[str, Tensor], storage: Callable[[Tensor], bytes]) -> dict[str, np.ndarray]:
    """Read-only views of the storages, each of which is read once however many tensors lie in it."""
    storages: dict[tuple[str, str], np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        place = (tensor.key, tensor.storage)
        if place not in storages:
            elements = np.frombuffer(storage(tensor), np.dtype(STORAGES[tensor.storage]))
            if tensor.storage == "BFloat16Storage":  # the upper half of a float32
                elements = (elements.astype("<u4") << 16).view("<f4")
            storages[place] = elements
        elements = storages[place]
        if elements.size != tensor.length:
            raise _Refused(f"{name}: {elements.size} elements stored, {tensor.length} announced")
        strides = [stride * elements.itemsize for stride in tensor.strides]
        rest = elements[tensor.offset :] if 0 not in tensor.shape else elements[:0]
        arrays[name] = np.lib.stride_tricks.as_strided(rest, tensor.shape, strides, writeable=False)
    return arrays


def write(path: Union[str, Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes float32 and int64 arrays as `torch.save` writes a state dict, for `torch.load(weights_only=True)`.

    The file appears whole or not at all: it is written under a temporary name beside `path` and then renamed.

    Raises:
        TypeError: an array of another type.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", b"".join(_pickled(arrays)))
            archive.writestr("archive/byteorder", "little")
            for key, array in enumerate(arrays.values()):
                archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array, _stored_as(array)[1]).tobytes())
            archive.writestr("archive/version", "3\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stored_as(array: np.ndarray) -> tuple[str, str]:
    for name, code in (("FloatStorage", "<f4"), ("LongStorage", "<i8")):
        if array.dtype == np.dtype(code):
            return name, code
    raise TypeError(f"only float32 and int64 are written, got {array.dtype}")


def _pickled(arrays: Mapping[str, np.ndarray]) -> Iterable[bytes]:
    """The pickle of an OrderedDict of tensors, spelled out, because Python's own would import what it names."""

    def word(text: str) -> bytes:
        encoded = text.encode()
        return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded

    def named(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def number(value: int) -> bytes:
        if value < 2**31:
            return pickle.BININT + value.to_bytes(4, "little")
        return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little")

    def numbers(values: Iterable[int]) -> bytes:
        return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE

    empty = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    yield pickle.PROTO + b"\x02" + empty + pickle.MARK
    for key, (name, array) in enumerate(arrays.items()):
        storage = named("torch", _stored_as(array)[0]) + word(str(key)) + word("cpu") + number(array.size)
        yield word(name) + named("torch._utils", "_rebuild_tensor_v2") + pickle.MARK
        yield pickle.MARK + word("storage") + storage + pickle.TUPLE + pickle.BINPERSID
        strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
        yield number(0) + numbers(array.shape) + numbers(strides) + pickle.NEWFALSE + empty
        yield pickle.TUPLE + pickle.REDUCE
    yield pickle.SETITEMS + pickle.STOP
