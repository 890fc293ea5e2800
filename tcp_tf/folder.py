"""A directory tree of photographs as a source of pictures.

Before training every file is read once: what is broken, too small or no picture is named with the reason and left out.
What was learned is kept in an index file in the user's cache, never among the photographs, so the next start reads only
new and changed files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from tqdm import tqdm

from tcp_tf import images

INDEX_VERSION = 1
SMALLEST_SIDE = 8  # px; below this there is nothing to learn from at any resolution
LONGEST_RATIO = 16  # longer side / shorter side; beyond, scaling the short side would make pictures of enormous width

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is known of one file: its path inside the folder with `/`, and either a format and size or a problem."""

    path: str
    format: str
    width: int
    height: int
    problem: str


class FolderSource:
    """The usable pictures of a directory tree; see `tcp_tf.sources.Source`.

    Subdirectories are searched, links followed, hidden files and directories left out. The order is that of the
    sorted paths. A picture belongs to the validation split by a hash of its path inside the folder, so that pictures
    added later do not move the others. The split `test` is the validation split: a folder has no third part.
    """

    def __init__(
        self,
        path: Union[str, Path],
        split: str,
        resolution: int,
        validation_fraction: float,
        index_dir: Optional[Path] = None,
        workers: int = 0,
    ) -> None:
        """Indexes the folder; the training split also reports what was found.

        Args:
            path: the folder; `~` is expanded.
            split: `train`, `validation` or `test`.
            resolution: side of the training pictures in px; a shorter side below a quarter of it is too small.
            validation_fraction: share of the pictures in the validation split.
            index_dir: where the index file is kept; None = the user's cache directory.
            workers: threads that read; 0 = one per CPU.

        Raises:
            ValueError: the path is no directory, or nothing in it is usable.
        """
        self.name = f"folder:{path}"
        self.root = Path(path).expanduser().absolute()
        if not self.root.is_dir():
            raise ValueError(f"data.source: {self.name} is not a directory")
        entries, others = index_folder(self.root, index_dir or user_cache("folders"), workers)
        reasons = {entry.path: entry.problem or _unsuitable(entry, resolution) for entry in entries}
        usable = [entry for entry in entries if not reasons[entry.path]]
        held_out = validation_paths([entry.path for entry in usable], validation_fraction)
        if split == "train" or not usable:
            for path_inside, reason in reasons.items():
                if reason:
                    log.warning("%s: skipped %s: %s", self.name, _printable(path_inside), reason)
            log.info("%s: %s", self.name, _summary(usable, len(entries) - len(usable), others, len(held_out)))
        if not usable:
            raise ValueError(
                f"data.source: {self.name} holds no usable picture: {len(entries)} files looked like pictures and were "
                f"skipped, {others} were of other kinds"
            )
        if len(usable) == 1:
            log.warning("%s: only one picture is usable; it serves for training and for validation", self.name)
        in_split = [entry.path for entry in usable if (entry.path in held_out) == (split != "train")]
        self.paths = in_split or [entry.path for entry in usable]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        """Picture number `index`, uint8 [H, W, 3]; ImageError or OSError when it can no longer be read."""
        path = self.paths[index]
        try:
            return images.decode((self.root / path).read_bytes(), least)
        except images.ImageError as error:
            raise images.ImageError(f"{_printable(path)}: {error}") from error


def user_cache(*parts: str) -> Path:
    """A path in the user's cache directory: $XDG_CACHE_HOME/tcp_tf or ~/.cache/tcp_tf."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().joinpath("tcp_tf", *parts)


def index_folder(root: Path, index_dir: Path, workers: int = 0) -> tuple[list[Entry], int]:
    """Examines every file below `root` that is named like a picture: (entries by sorted path, number of other files).

    The index file is written even when the pass is interrupted, so that a second attempt continues.
    """
    stored_in = index_dir / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"
    known = _read_index(stored_in)
    entries: dict[str, Entry] = {}
    files: dict[str, list[Any]] = {}
    waiting = []
    others = 0
    for path, is_picture in _walk(root):
        if not is_picture:
            others += 1
            continue
        try:
            status = os.stat(root / path)
        except OSError as error:
            entries[path] = Entry(path, "", 0, 0, _reason(error))
            continue
        if not stat.S_ISREG(status.st_mode):
            entries[path] = Entry(path, "", 0, 0, "not a regular file")
            continue
        key = [status.st_size, status.st_mtime_ns]
        if path in known and known[path][:2] == key:
            entries[path] = Entry(path, *known[path][2:])
            files[path] = known[path]
        else:
            waiting.append((path, key))
    if waiting:
        pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
        try:
            examined = pool.map(lambda item: _examine(root, item[0]), waiting)
            progress = tqdm(waiting, f"reading {root}", unit="file", disable=None)
            for (path, key), (entry, lasting) in zip(progress, examined):
                entries[path] = entry
                if lasting:
                    files[path] = [*key, entry.format, entry.width, entry.height, entry.problem]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _write_index(stored_in, files)
    return [entries[path] for path in sorted(entries)], others


def validation_paths(paths: list[str], fraction: float) -> set[str]:
    """The paths held out for validation: those whose hash, as a number in [0, 1), is below `fraction`.

    With two or more paths there is at least one on each side. One path alone is not held out.
    """
    place = {path: int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big") / 2**64 for path in paths}
    held_out = {path for path in paths if place[path] < fraction}
    if len(paths) >= 2 and not held_out:
        held_out = {min(paths, key=place.__getitem__)}
    if len(paths) >= 2 and len(held_out) == len(paths):
        held_out.remove(max(paths, key=place.__getitem__))
    return held_out if len(paths) >= 2 else set()


def _walk(root: Path) -> Iterator[tuple[str, bool]]:
    """(path inside root with `/`, named like a picture), depth first in sorted order, each directory once."""
    seen = set()  # (device, inode): a link to a directory above would otherwise never end
    for directory, subdirectories, names in os.walk(root, followlinks=True, onerror=_report_directory):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(names):
            path = Path(directory, name).relative_to(root).as_posix()
            yield path, name.lower().endswith(images.SUFFIXES) and not name.startswith(".")


def _report_directory(error: OSError) -> None:
    log.warning("skipped directory %s: %s", _printable(str(error.filename)), _reason(error))


def _examine(root: Path, path: str) -> tuple[Entry, bool]:
    """The entry of one file, and whether it holds as long as the file does not change."""
    try:
        data = (root / path).read_bytes()
    except OSError as error:  # permissions or a disk: may be different next time
        return Entry(path, "", 0, 0, _reason(error)), False
    try:
        return Entry(path, *images.examine(data), problem=""), True
    except images.ImageError as error:
        return Entry(path, "", 0, 0, str(error)), True


def _unsuitable(entry: Entry, resolution: int) -> str:
    short, long = sorted((entry.width, entry.height))
    if short < SMALLEST_SIDE or short < resolution / 4:
        wanted = max(SMALLEST_SIDE, -(-resolution // 4))
        return f"too small: {entry.width}x{entry.height} px, the shorter side must have {wanted}"
    if long > LONGEST_RATIO * short:
        return f"too narrow: {entry.width}x{entry.height} px, more than {LONGEST_RATIO} to 1"
    return ""


def _summary(usable: list[Entry], skipped: int, others: int, held_out: int) -> str:
    text = f"{len(usable)} usable pictures"
    if usable:
        formats = Counter(entry.format for entry in usable)
        smallest = min(usable, key=lambda entry: entry.width * entry.height)
        largest = max(usable, key=lambda entry: entry.width * entry.height)
        text += f" ({', '.join(f'{count} {name}' for name, count in sorted(formats.items()))}; "
        text += f"{smallest.width}x{smallest.height} to {largest.width}x{largest.height} px), "
        text += f"{len(usable) - held_out} for training and {held_out} for validation"
    return f"{text}; {skipped} skipped, {others} files of other kinds ignored"


def _read_index(file: Path) -> dict[str, list[Any]]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used and is made again: %s", file, error)
        return {}
    current = isinstance(index, dict) and index.get("version") == INDEX_VERSION
    return dict(index["files"]) if current else {}


def _write_index(file: Path, files: dict[str, list[Any]]) -> None:
    """Replaces the index in one move, so that a reader never sees half of it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as new:
            json.dump({"version": INDEX_VERSION, "files": files}, new)
        os.replace(new.name, file)
    except OSError as error:
        log.warning("%s cannot be written, the next start will read every file again: %s", file, error)


def _reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"


def _printable(path: str) -> str:
    """File names need not be valid Unicode; a terminal's text must be."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
