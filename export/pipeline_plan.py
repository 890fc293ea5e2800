"""The plan of a run of the batch pipeline: which pictures there are and which shard each belongs to, written once.

OUTPUT/plan/settings.json               what was asked, and the fingerprint of the model
OUTPUT/plan/00003-of-00100.jsonl        a line per picture of the shard, or per TFRecord file

The plan is made before the first picture is touched, and a restart follows it: a picture never changes its shard, and
files that were added later belong to another run. Paths are opened by `tf.io.gfile`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from tcp_tf.images import SUFFIXES

EDIT, ENCODE = "edit", "encode"
FORMATS = ("png", "tfrecord")
SETTINGS = "settings.json"
COLUMNS = ("image", "style", "mask", "strength")
MANIFESTS = (".csv", ".jsonl")
PER_SHARD = 256  # pictures, unless the number of shards is chosen

Item = dict[str, Any]  # a line of the plan: image, style, mask, strength, name, problem; or records, name


class Settings(NamedTuple):
    """What was asked for; a restart must ask for the same. `shards` None leaves the number to the plan."""

    command: str
    model: str
    fingerprint: str
    input: str
    style: Optional[str]
    mask: Optional[str]
    strength: float
    format: str
    shards: Optional[int]


def absolute(path: str) -> str:
    """A path that means the same in another process; URLs are left alone."""
    return path if "://" in path else os.path.abspath(path)


def model_version(path: str) -> str:
    """The directory of a SavedModel: the path itself, or its highest version.

    Raises:
        ValueError: there is none.
    """
    if tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        return path
    versions = [name.rstrip("/") for name in tf.io.gfile.listdir(path)] if tf.io.gfile.isdir(path) else []
    numbers = sorted(int(name) for name in versions if name.isdecimal())
    if not numbers:
        raise ValueError(f"{path}: neither an exported model nor a directory of its versions")
    return os.path.join(path, str(numbers[-1]))


def fingerprint(model: str) -> str:
    """SHA-256 of a SavedModel's graph and of the index of its weights, which holds their checksums."""
    digest = hashlib.sha256()
    for file in ("saved_model.pb", "variables/variables.index"):
        with tf.io.gfile.GFile(os.path.join(model, file), "rb") as opened:
            digest.update(opened.read())
    return digest.hexdigest()


def open_or_make(output: str, settings: Settings) -> list[str]:
    """The names of all shards of a run, planned now or before.

    Raises:
        ValueError: the output belongs to a run with other settings, or the input is none.
    """
    folder = os.path.join(output, "plan")
    if tf.io.gfile.exists(os.path.join(folder, SETTINGS)):
        _must_agree(output, Settings(**json.loads(text(os.path.join(folder, SETTINGS)))), settings)
    else:
        _write(output, settings, _items(settings))
    return sorted(name[: -len(".jsonl")] for name in tf.io.gfile.listdir(folder) if name.endswith(".jsonl"))


def _items(settings: Settings) -> list[Item]:
    """One item per unit that shards are made of."""
    if settings.input.endswith(MANIFESTS):
        items = list(_manifest(settings))
    elif tf.io.gfile.isdir(settings.input):
        items = list(_folder(settings))
    else:
        items = list(_tfrecord_files(settings))
    if not items:
        raise ValueError(f"{settings.input}: there is nothing in it to {settings.command}")
    taken: set[str] = set()
    for item in items:
        name, number = item["name"], 2
        while item["name"] in taken:  # a.jpg and a.png, or the same picture twice in a manifest
            item["name"], number = f"{name}-{number}", number + 1
        taken.add(item["name"])
    return items


def _folder(settings: Settings) -> Iterator[Item]:
    """Every picture in a directory tree, in the order of paths; hidden files are left out."""
    partners = {
        part: _by_stem(path)
        for part in ("style", "mask")
        if (path := getattr(settings, part)) and tf.io.gfile.isdir(path)
    }
    for relative in _pictures(settings.input):
        item: Item = {"image": os.path.join(settings.input, relative), "name": os.path.splitext(relative)[0]}
        for part in ("style", "mask") if settings.command == EDIT else ():
            folder = getattr(settings, part)
            item[part] = partners[part].get(item["name"]) if part in partners else folder
            if item[part] is None:
                item["problem"] = f"no {part} for it in {folder}"
        yield {**item, "strength": settings.strength}


def _manifest(settings: Settings) -> Iterator[Item]:
    """A line per picture. Paths are relative to the manifest's directory."""
    base = os.path.dirname(settings.input)
    rows = _csv_rows if settings.input.endswith(".csv") else _json_rows
    for number, row, problem in rows(settings.input):
        where = f"{settings.input}:{number}"
        item: Item = {"source": where, "name": f"line-{number}", "strength": settings.strength}
        if not problem:
            problem = _fill(item, row, settings, base)
        yield {**item, "problem": problem} if problem else item


def _fill(item: Item, row: dict[str, Any], settings: Settings, base: str) -> str:
    """Takes a manifest's row over; returns what is wrong with it."""
    unknown = sorted(set(map(str, row)) - set(COLUMNS))
    if unknown:
        return f"unknown: {', '.join(unknown)}; a line may have {', '.join(COLUMNS)}"
    if not row.get("image"):
        return "the line names no image"
    for part in ("image", "style", "mask") if settings.command == EDIT else ("image",):
        path = row.get(part)
        if path is not None and not isinstance(path, str):
            return f"{part} must be a path, got {path!r}"
        item[part] = os.path.join(base, path) if path else getattr(settings, part)
        if not item[part]:
            return f"the line names no {part}, and --{part} was not given"
    item["source"] = item["image"]
    item["name"] = os.path.splitext(os.path.basename(item["image"]))[0] or item["name"]
    if row.get("strength") not in (None, ""):
        try:
            item["strength"] = float(row["strength"])
        except (TypeError, ValueError):
            return f"strength must be a number, got {row['strength']!r}"
    return ""


def _csv_rows(path: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text(path)), restkey="more", skipinitialspace=True)
    if "image" not in (reader.fieldnames or ()):
        raise ValueError(
            f"{path}: the first line must name the columns, with image among them, got {reader.fieldnames}"
        )
    for row in reader:
        yield reader.line_num, row, ""


def _json_rows(path: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    for number, line in enumerate(text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, {}, f"not JSON: {error}"
            continue
        yield (number, row, "") if isinstance(row, dict) else (number, {}, f"not a JSON object: {line[:80]}")


def _tfrecord_files(settings: Settings) -> Iterator[Item]:
    paths = sorted(tf.io.gfile.glob(settings.input))
    if not paths:
        raise ValueError(f"{settings.input}: no such file or folder")
    for number, path in enumerate(paths):
        if ".tfrecord" not in os.path.basename(path):
            raise ValueError(f"{path}: not a folder, a manifest ({', '.join(MANIFESTS)}) or a .tfrecord file")
        for part in ("style", "mask"):
            if getattr(settings, part) and tf.io.gfile.isdir(getattr(settings, part)):
                raise ValueError(f"{getattr(settings, part)}: with TFRecords --{part} must be one file")
        parts = {part: getattr(settings, part) for part in ("style", "mask")} if settings.command == EDIT else {}
        yield {"records": path, "name": f"{number:05d}", "strength": settings.strength, **parts}


def _pictures(folder: str) -> list[str]:
    """Relative paths, sorted."""
    found = []
    for directory, folders, files in tf.io.gfile.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(directory, name), folder))
    return sorted(found)


def _by_stem(folder: str) -> dict[str, str]:
    return {os.path.splitext(relative)[0]: os.path.join(folder, relative) for relative in _pictures(folder)}


def _must_agree(output: str, before: Settings, now: Settings) -> None:
    for field, old, new in zip(Settings._fields, before, now):
        if old != new:
            raise ValueError(
                f"{output} belongs to a run whose {field} was {old}, now it is {new}: restart it as it was started, or "
                "choose another output"
            )


def _write(output: str, settings: Settings, items: list[Item]) -> None:
    """Writes the plan; it counts when the settings are there, which come last."""
    wanted = settings.shards or math.ceil(len(items) / (1 if "records" in items[0] else PER_SHARD))
    count, folder = min(wanted, len(items)), os.path.join(output, "plan")
    if tf.io.gfile.exists(folder):  # of a run that was killed here
        tf.io.gfile.rmtree(folder)
    tf.io.gfile.makedirs(folder)
    for number in range(count):
        part = items[number * len(items) // count : (number + 1) * len(items) // count]
        with tf.io.gfile.GFile(os.path.join(folder, f"{number:05d}-of-{count:05d}.jsonl"), "w") as file:
            for item in part:
                file.write(json.dumps(item) + "\n")
    write_whole(os.path.join(folder, SETTINGS), json.dumps(settings._asdict(), indent=1))


def write_whole(path: str, content: str) -> None:
    """Writes a file that is never there in part."""
    with tf.io.gfile.GFile(f"{path}.new", "w") as file:
        file.write(content)
    tf.io.gfile.rename(f"{path}.new", path, overwrite=True)


def text(path: str) -> str:
    """The content of a file in UTF-8. Raises ValueError where it is not."""
    with tf.io.gfile.GFile(path, "rb") as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not in UTF-8: {error}") from error
