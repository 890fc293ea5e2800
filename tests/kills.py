"""Kills and damage for tests: a process that stops dead at a chosen moment, and files that are not what they were."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow as tf

from tcp_tf import callbacks


class Killed(BaseException):
    """Nothing handles it: from here on the process does nothing any more."""


def cut(file: Path) -> None:
    """Takes the end of a file away."""
    os.truncate(file, max(0, file.stat().st_size - 10))


def flip(file: Path, place: float = 0.5) -> None:
    """Changes one bit, without a trace in size or time."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 8
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def half_a_checkpoint(write: Callable, checkpoint: tf.train.Checkpoint, prefix: str) -> None:
    """What is on the disk when TensorFlow is killed while it writes."""
    write(checkpoint, prefix)
    for file in Path(prefix).parent.iterdir():
        os.truncate(file, file.stat().st_size // 3)


def half_a_line(tick: Callable, metrics: callbacks.Metrics) -> None:
    """What is in the log when the process is killed while it writes a line."""
    with open(metrics.file, "a", encoding="utf-8") as file:
        file.write('{"step": ')


class Kill:
    """A context in which so many calls that change files, or calls of one name, happen; at the next the process ends.

    In the body, that call does nothing or the half of its work and raises `Killed`, as does everything after it: what
    stays on the disk is what a real kill leaves.

    Attributes:
        moment: name of the function at which it ended, empty where it did not.
    """

    MOMENTS: tuple[tuple[Any, str, Any], ...] = (
        *((os, "replace", None), (os, "fsync", None), (shutil, "rmtree", None)),
        *((Path, "unlink", None), (Path, "write_text", None)),
        (tf.train.Checkpoint, "write", half_a_checkpoint),
        (callbacks.Metrics, "on_tick", half_a_line),
    )

    def __init__(self, calls: int, name: str = "") -> None:
        self.left, self.name, self.moment = calls, name, ""
        self.patches = contextlib.ExitStack()

    def __enter__(self) -> Kill:
        for owner, name, halfway in self.MOMENTS:
            self.patches.enter_context(mock.patch.object(owner, name, self._counted(owner, name, halfway)))
        return self

    def __exit__(self, *details: Any) -> bool:
        self.patches.close()
        return details[0] is Killed

    def _counted(self, owner: Any, name: str, halfway: Any) -> Callable:
        function = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= self.name in ("", name)
            if self.left >= 0:
                return function(*arguments, **named)
            if not self.moment:
                self.moment = name
                if halfway:
                    halfway(function, *arguments)
            raise Killed

        return call
