"""What the networks are traced for: which processor, and TensorFlow's own kernels or XLA.

Ways of computing the same that pay on one of them cost on another. Elsewhere the code asks here and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import tensorflow as tf

_gpu: Optional[bool] = None
_xla = False


def gpu() -> bool:
    """Whether it runs on a GPU: where there is one, unless `assumed` says otherwise."""
    return bool(tf.config.list_logical_devices("GPU")) if _gpu is None else _gpu


def xla() -> bool:
    """Whether XLA compiles it."""
    return _xla


@functools.cache
def tiles() -> bool:
    """Whether the CPU multiplies whole tiles of bfloat16 at a time (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux, without which TensorFlow does not use them
        return False


@contextlib.contextmanager
def assumed(gpu: Optional[bool] = None, xla: bool = False) -> Iterator[None]:
    """Whatever is traced in here is for that processor, None being the one that is there, and for XLA or not."""
    global _gpu, _xla
    before = _gpu, _xla
    _gpu, _xla = gpu, xla
    try:
        yield
    finally:
        _gpu, _xla = before
