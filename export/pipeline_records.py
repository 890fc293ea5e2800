"""The records of a shard of the batch pipeline: a picture each, with all that its edit needs, or the problem it has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from export.pipeline_plan import Item, text

MAX_FILE_BYTES = 1 << 28  # a file that is larger is no picture that the model would take
# What is wrong with the file. Any other error is the file system's: it fails the run, to be started again later.
BROKEN = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,  # a directory
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,
    tf.errors.PermissionDeniedError,
)


class Record(NamedTuple):
    """One picture with all that its edit needs, as encoded files, or the problem that it has."""

    shard: str
    source: str  # where it came from, as the results and the dead letters name it
    name: str  # of the result, without suffix; unique within the run
    image: bytes
    style: bytes
    mask: bytes
    strength: float
    problem: str  # empty where all is well


class End(NamedTuple):
    """Comes after the last record of a shard."""

    shard: str
    records: int


def read(output: str, shard: str) -> Iterator[Record]:
    """Reads a shard's pictures. What cannot be read is a record with a problem."""
    reader = _Reader()
    for line in text(os.path.join(output, "plan", f"{shard}.jsonl")).split("\n")[:-1]:
        item: Item = json.loads(line)
        if "records" in item:
            yield from _tfrecord(shard, item, reader)
        else:
            yield reader.record(shard, item)


class _Reader:
    """Reads files; keeps those that were read last, since a style usually serves many pictures."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def record(self, shard: str, item: Item) -> Record:
        problem, files = item.get("problem", ""), {}
        for part in ("image", "style", "mask"):
            path = item.get(part)
            if path is not None and not problem:
                try:
                    files[part] = self._kept[path] if path in self._kept else _bytes(path)
                except (*BROKEN, ValueError) as error:
                    problem = f"{part} cannot be read: {getattr(error, 'message', error)}"
        self._kept = {item[part]: files[part] for part in ("style", "mask") if part in files}
        return Record(
            shard,
            source=item.get("source") or item["image"],
            name=item["name"],
            image=files.get("image", b""),
            style=files.get("style", b""),
            mask=files.get("mask", b""),
            strength=item["strength"],
            problem=problem,
        )


def _tfrecord(shard: str, item: Item, reader: _Reader) -> Iterator[Record]:
    """The records of one file: `tf.train.Example` with image, style, mask (encoded files) and strength."""
    path, number = item["records"], 0
    examples = iter(tf.data.TFRecordDataset(path, "GZIP" if path.endswith(".gz") else "").as_numpy_iterator())
    while True:
        source, name = f"{path}#{number}", f"{item['name']}-{number:08d}"
        try:
            serialized = next(examples)
        except StopIteration:
            return
        except BROKEN as error:
            problem = f"the file cannot be read from here on: {error.message}"
            yield Record(shard, source, name, b"", b"", b"", 1.0, problem)
            return
        # The command's style and mask are read like those of a plan's line; what the example brings goes before them.
        defaults = reader.record(shard, {**item, "source": source, "name": name})
        yield _from_example(serialized, defaults)
        number += 1


def _from_example(serialized: bytes, defaults: Record) -> Record:
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # protobuf's DecodeError, whose place differs between its versions
        return defaults._replace(problem=f"not a tf.train.Example: {error}")
    found: dict[str, Any] = {}
    for part in ("image", "style", "mask"):
        for key in (part, f"{part}/encoded"):
            if feature[key].bytes_list.value:
                found[part] = feature[key].bytes_list.value[0]
    if feature["strength"].float_list.value:
        found["strength"] = feature["strength"].float_list.value[0]
    if "image" not in found:
        return defaults._replace(problem="the example has neither image nor image/encoded")
    return defaults._replace(**found)


def _bytes(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return data
