"""Checkpoints that can be trusted: written whole or not at all, verified, and chosen by what their files hold.

    ckpt-40.index, ckpt-40.data-00000-of-00001     TensorFlow's own files
    ckpt-40.json                                   the manifest: their sizes and SHA-256, and facts about the run
    checkpoint                                     TensorFlow's list, for programs that ask it for the newest
    .writing-*/                                    one that is being written, or was when the process was killed

A checkpoint is written in a directory of its own, brought to the disk, moved into place, read back and compared with
its manifest; only then is an older one deleted. The index moves last and is deleted first, so where there is an index
the rest is there too. One without a manifest, as earlier versions wrote it, is taken on trust.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import tensorflow as tf

STEM = "ckpt"
STATE = "checkpoint"
WRITING = ".writing-"
CHUNK = 1 << 20  # bytes

log = logging.getLogger(__name__)


class RunDirectoryError(ValueError):
    """A run directory that cannot be used; one line that names it and says why."""


class Manager:
    """Writes the checkpoints of one directory and keeps the newest of them.

    Make it to write only where nobody else does: it removes what a killed process left half written.

    Attributes:
        latest_checkpoint: prefix of the newest whole checkpoint, or None.
        facts: what every manifest says about the run, beside its files; JSON.
    """

    def __init__(
        self,
        directory: Path,
        checkpoint: tf.train.Checkpoint,
        keep: int,
        say: Callable[[str], None],
        read_only: bool = False,
    ):
        """Looks for the newest whole checkpoint of a directory, which need not exist yet.

        Args:
            checkpoint: what to write; its `save_counter` is increased at every saving.
            keep: so many of the newest stay.
            say: gets a line for every damaged checkpoint that is passed over.
            read_only: somebody else writes.
        Raises:
            RunDirectoryError: there are checkpoints, but none is whole.
        """
        self.directory, self.checkpoint, self.keep = directory, checkpoint, keep
        self.facts: dict[str, Any] = {}
        # Here, where every worker of a training is, and not at the first saving: making a variable may be a collective.
        _ = checkpoint.save_counter
        if not read_only:
            remove_leftovers(directory)
        self.latest_checkpoint = newest(directory, say)

    def save(self, checkpoint_number: Optional[int] = None) -> str:
        """Writes `ckpt-NUMBER` (by default the number of savings) and returns its prefix; it is then the newest.

        Raises:
            OSError, tf.errors.OpError: it cannot be written, or reads back other than it was written; the older ones
                are all still there, and nothing of this one.
        """
        self.checkpoint.save_counter.assign_add(1)
        number = int(self.checkpoint.save_counter.numpy()) if checkpoint_number is None else checkpoint_number
        name = f"{STEM}-{number}"
        self.directory.mkdir(parents=True, exist_ok=True)
        writing = Path(tempfile.mkdtemp(dir=self.directory, prefix=WRITING))
        try:
            self.checkpoint.write(str(writing / name))
            index, manifest = writing / f"{name}.index", writing / f"{name}.json"
            written = {file.name: _measure(file) for file in sorted(writing.iterdir())}
            manifest.write_text(json.dumps({"files": written, "run": self.facts}, indent=1) + "\n", encoding="utf-8")
            data = [file for file in sorted(writing.iterdir()) if file not in (index, manifest)]
            for file in [*data, manifest, index]:
                _to_disk(file)
            for file in [*data, manifest, index]:
                os.replace(file, self.directory / file.name)
            _to_disk(self.directory)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        prefix = str(self.directory / name)
        problem = damage(prefix)
        if problem:
            delete(prefix)
            raise OSError(errno.EIO, f"reads back other than it was written ({problem})", prefix)
        self.latest_checkpoint = prefix
        # One of a later step is a damaged one that will be written again.
        before = [each for each in prefixes(self.directory) if number_of(each) <= number]
        self._list(before[-self.keep :])
        for old in before[: -self.keep]:
            delete(old)
        return prefix

    def _list(self, kept: list[str]) -> None:
        """TensorFlow's `CheckpointState`, a text protocol buffer; relative paths, so that the directory may move."""
        names = [Path(each).name for each in kept]
        lines = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{name}"' for name in names)]
        temporary = self.directory / f"{WRITING}{STATE}"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, self.directory / STATE)


def prefixes(directory: Path) -> list[str]:
    """Prefixes of all checkpoints of a directory, whole or not, oldest first."""
    files = directory.glob(f"{STEM}-*.index") if directory.is_dir() else []
    found = [str(file.with_suffix("")) for file in files if re.fullmatch(rf"{STEM}-\d+", file.stem)]
    return sorted(found, key=number_of)


def number_of(prefix: str) -> int:
    """The number in a checkpoint's name: the step of a training."""
    return int(prefix.rpartition("-")[2])


def newest(directory: Path, say: Callable[[str], None] = log.warning) -> Optional[str]:
    """Prefix of the newest whole checkpoint, or None where there is none at all; every file of it is read once.

    Raises:
        RunDirectoryError: there are checkpoints, but none is whole.
    """
    damaged: list[str] = []
    for prefix in reversed(prefixes(directory)):
        problem = damage(prefix)
        if not problem:
            for line in damaged:
                say(f"{line}; the checkpoint before it is used")
            return prefix
        damaged.append(f"{prefix}: damaged, {problem}")
    if damaged:
        raise RunDirectoryError(f"{directory}: no checkpoint is whole: {'; '.join(damaged)}")
    return None


def damage(prefix: str) -> str:
    """What is wrong with a checkpoint's files, or an empty string; without a manifest nothing is known to be wrong."""
    manifest = Path(f"{prefix}.json")
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in files.items()}
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest.name} cannot be read ({type(error).__name__})"
    present = {file.name for file in _files(prefix)}
    missing = sorted(set(expected) - present)
    if missing:
        return f"{missing[0]} is missing"
    for file in _files(prefix):
        if file.name not in expected:
            return f"{file.name} is not in {manifest.name}"
        size, digest = expected[file.name]
        try:
            if file.stat().st_size != size:
                return f"{file.name} has {file.stat().st_size} bytes instead of {size}"
            if _measure(file)["sha256"] != digest:
                return f"{file.name} holds other bytes than were written"
        except OSError as error:
            return f"{file.name} cannot be read ({error.strerror})"
    return ""


def facts(prefix: str) -> dict[str, Any]:
    """What a whole checkpoint's manifest says about its run; nothing where it has none."""
    manifest = Path(f"{prefix}.json")
    known = json.loads(manifest.read_text(encoding="utf-8")).get("run") if manifest.is_file() else None
    return known if isinstance(known, dict) else {}


def delete(prefix: str) -> None:
    """Deletes a checkpoint, its index first."""
    for file in [Path(f"{prefix}.index"), *_files(prefix), Path(f"{prefix}.json")]:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()


def remove_leftovers(directory: Path) -> None:
    """Deletes what a process that was killed left half written or half deleted."""
    if not directory.is_dir():
        return
    whole = {Path(prefix).name for prefix in prefixes(directory)}
    for entry in list(directory.iterdir()):
        part = re.fullmatch(rf"({STEM}-\d+)(\.data-\d+-of-\d+|\.json)", entry.name)
        # The last two are those of TensorFlow's own manager, which earlier versions used.
        others = entry.name.startswith((WRITING, f"{STATE}.tmp")) or re.fullmatch(rf"{STEM}-\d+_temp", entry.name)
        if not others and (part is None or part[1] in whole):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _files(prefix: str) -> Iterator[Path]:
    """TensorFlow's files of a checkpoint, the small one first."""
    path = Path(prefix)
    index = path.with_name(f"{path.name}.index")
    if index.exists():
        yield index
    yield from sorted(path.parent.glob(f"{path.name}.data-*"))


def _measure(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file as a manifest holds them."""
    digest, size = hashlib.sha256(), 0
    with open(file, "rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _to_disk(path: Path) -> None:
    """Waits until a file or directory is on the disk, and forgets it, so that the next reader sees the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if path.is_file() and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
