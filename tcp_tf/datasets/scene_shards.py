"""Draws many scenes in several processes and hands them over in order, as PNG bytes.

The workers are plain child processes of this module, which import numpy and nothing heavier. They write to their
standard output: per scene the picture's PNG and the label map's PNG, each after its length (little-endian uint32).
Unlike a pool of forked or spawned workers they neither inherit TensorFlow's threads nor run the caller's main module
again.
"""

from __future__ import annotations

import os
import pathlib
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tcp_tf.datasets import scene_render


def encode_png(picture: np.ndarray) -> bytes:
    """PNG (8 bits, no interlace) of uint8 [H, W], [H, W, 1] (grey) or [H, W, 3] (sRGB). Source: RFC 2083.

    Raises:
      ValueError: another dtype or shape.
    """
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ValueError(f"PNG needs uint8 [H, W], [H, W, 1] or [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    height, width, channels = picture.shape
    rows = picture.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # filter "Up": each byte minus the one above
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 3)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def draw(size: int, seed: int) -> tuple[bytes, bytes]:
    """PNGs of the picture and of the label map of scene `seed`, which is layout `seed` under look `seed`."""
    return (
        encode_png(scene_render.render(seed, seed, size)),
        encode_png(scene_render.sample_layout(seed, size)),
    )


def draw_many(size: int, first: int, count: int, workers: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields `draw(size, seed)` for `count` seeds from `first`, in order, drawn by `workers` processes.

    Raises:
      RuntimeError: a worker died; its error is on standard error.
    """
    workers = min(workers, (count + 199) // 200)  # starting a process costs as much as some hundred small scenes
    if workers <= 1:
        for seed in range(first, first + count):
            yield draw(size, seed)
        return
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    environment = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    commands = [
        [sys.executable, "-m", "tcp_tf.datasets.scene_shards", *map(str, (size, first + w, first + count, workers))]
        for w in range(workers)
    ]
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
    try:
        for i in range(count):
            pipe = children[i % workers].stdout
            yield _read(pipe, first + i), _read(pipe, first + i)
    finally:
        for child in children:
            if child.stdout:
                child.stdout.close()
            child.kill()
            child.wait()


def _read(pipe: Any, seed: int) -> bytes:
    head = pipe.read(4)
    length = struct.unpack("<I", head)[0] if len(head) == 4 else -1
    data = pipe.read(length) if length >= 0 else b""
    if len(data) != length:
        raise RuntimeError(f"the worker that draws scenes stopped before scene {seed}")
    return data


def _work(size: int, first: int, stop: int, step: int) -> None:
    out = sys.stdout.buffer
    for seed in range(first, stop, step):
        for data in draw(size, seed):
            out.write(struct.pack("<I", len(data)))
            out.write(data)
    out.flush()


if __name__ == "__main__":
    _work(*(int(argument) for argument in sys.argv[1:]))
