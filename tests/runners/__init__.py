"""Two ways of answering requests with a SavedModel, with nothing of this project in them: C and a Session.

A request is (signature, {input: array}), with bytes in object arrays; an answer {output: array}, or the message of
the error.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

HERE = Path(__file__).parent
FLOAT, STRING = 1, 7  # of tensorflow.DataType

Request = tuple[str, dict[str, Any]]
Answer = Union[dict[str, np.ndarray], str]


def environment() -> dict[str, str]:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}


def compile_c_runner(folder: Path) -> Path:
    """The C program, compiled against the headers and the library that the TensorFlow package brings."""
    package = Path(tf.__file__).parent
    libraries = [str(file) for file in sorted(package.glob("libtensorflow_*.so.2"))]
    binary = folder / "c_api_runner"
    command = ["cc", "-std=c99", "-O1", "-Wall", "-Werror", str(HERE / "c_api_runner.c"), "-o", str(binary)]
    command += [f"-I{package / 'include'}", *libraries, f"-Wl,-rpath,{package}"]
    # What those libraries need in turn the loader finds through their own paths.
    command += ["-Wl,--unresolved-symbols=ignore-in-shared-libs"]
    subprocess.run(command, check=True)
    return binary


class CRunner:
    """The C program, started once: it loads the model and answers request after request, the bad ones too."""

    def __init__(self, binary: Path, directory: Path):
        saved = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
        self.signatures = saved.meta_graphs[0].signature_def
        command = [str(binary), str(directory)]
        self.process = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(name, inputs) for name, inputs in requests]

    def close(self) -> int:
        """Ends the program; returns its exit code."""
        self.process.communicate(timeout=60)
        return self.process.returncode

    def _answer(self, name: str, inputs: dict[str, Any]) -> Answer:
        signature = self.signatures[name]
        message = struct.pack("<I", len(inputs))
        for alias, value in inputs.items():
            message += _place(signature.inputs[alias].name) + _tensor(value)
        message += struct.pack("<I", len(signature.outputs))
        message += b"".join(_place(tensor.name) for tensor in signature.outputs.values())
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(message)
        self.process.stdin.flush()
        file = self.process.stdout
        code, length = struct.unpack("<II", file.read(8))
        text = file.read(length).decode()
        return text if code else {alias: _read_tensor(file) for alias in signature.outputs}


def answers_in_session(directory: Path, requests: Sequence[Request], folder: Path) -> list[Answer]:
    """All requests through one Session, in a process that cannot import this project."""
    (folder / "requests.pickle").write_bytes(pickle.dumps(list(requests)))
    files = [str(folder / f"{name}.pickle") for name in ("requests", "answers")]
    command = [sys.executable, "-I", str(HERE / "session_runner.py"), str(directory), *files]
    subprocess.run(command, check=True, env=environment(), cwd=folder, timeout=300)
    return pickle.loads((folder / "answers.pickle").read_bytes())


def _place(name: str) -> bytes:
    operation, output = name.split(":")
    return struct.pack("<I", len(operation)) + operation.encode() + struct.pack("<I", int(output))


def _tensor(value: Any) -> bytes:
    value = np.asarray(value)
    strings = value.dtype == object
    head = struct.pack("<II", STRING if strings else FLOAT, value.ndim) + struct.pack(f"<{value.ndim}q", *value.shape)
    if strings:
        return head + b"".join(struct.pack("<Q", len(each)) + each for each in value.ravel())
    assert value.dtype == np.float32
    return head + struct.pack("<Q", value.nbytes) + value.tobytes()


def _read_tensor(file: IO[bytes]) -> np.ndarray:
    dtype, rank = struct.unpack("<II", file.read(8))
    shape = struct.unpack(f"<{rank}q", file.read(8 * rank))
    if dtype == STRING:
        values = np.empty(int(np.prod(shape)), object)
        for i in range(len(values)):
            values[i] = file.read(struct.unpack("<Q", file.read(8))[0])
        return values.reshape(shape)
    assert dtype == FLOAT
    return np.frombuffer(file.read(struct.unpack("<Q", file.read(8))[0]), np.float32).reshape(shape)
