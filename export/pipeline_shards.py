"""What the batch pipeline leaves behind: a directory per finished shard, and nothing that looks like one before.

OUTPUT/00003-of-00100/a/b.png            an edited picture (png), named like the picture that it was made from; or
OUTPUT/00003-of-00100/results.tfrecord   `tf.train.Example`s (tfrecord)
OUTPUT/00003-of-00100/results.jsonl      {"source": ..., "result": ...} per result
OUTPUT/00003-of-00100/dead-letters.jsonl {"source": ..., "reason": ...} per picture that has none
OUTPUT/00003-of-00100/finished.json      how many of both; the shard counts only when this is there

An attempt at a shard writes to a directory of its own, so two workers that were given the same shard cannot mix. It is
renamed when it is complete. On a file system where renaming a directory is not one step (object stores), a
kill in the middle leaves a directory without finished.json, and a restart does that shard again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from typing import Any, Union

import numpy as np
import tensorflow as tf

from export.pipeline_plan import write_whole

ATTEMPTS = ".attempts"
FINISHED = "finished.json"

Value = Union[bytes, np.ndarray]


class Attempt:
    """One try at a shard. Results go to disk as they come; memory does not grow with the shard."""

    def __init__(self, output: str, shard: str, as_png: bool):
        self.shard, self.as_png = shard, as_png
        self.results = self.dead_letters = 0
        self._final = os.path.join(output, shard)
        self._folder = os.path.join(output, ATTEMPTS, f"{shard}.{uuid.uuid4().hex}")
        tf.io.gfile.makedirs(self._folder)
        self._index = tf.io.gfile.GFile(os.path.join(self._folder, "results.jsonl"), "w")
        self._dead = tf.io.gfile.GFile(os.path.join(self._folder, "dead-letters.jsonl"), "w")
        for file in (self._index, self._dead):
            file.write("")  # makes it exist
        self._examples = None if as_png else tf.io.TFRecordWriter(os.path.join(self._folder, "results.tfrecord"))

    def result(self, source: str, name: str, values: dict[str, Value]) -> None:
        """Writes one result: the PNG `values["image"]`, or an example of all values.

        Args:
            name: unique within the run, of the plan.
        """
        if self._examples is None:
            path = os.path.join(self._folder, f"{name}.png")
            tf.io.gfile.makedirs(os.path.dirname(path))
            with tf.io.gfile.GFile(path, "wb") as file:
                file.write(values["image"])
            _line(self._index, {"source": source, "result": f"{name}.png"})
        else:
            self._examples.write(example({"source": source.encode(), **values}))
            _line(self._index, {"source": source, "result": self.results})
        self.results += 1

    def dead_letter(self, source: str, reason: str) -> None:
        """Writes why a picture has no result."""
        _line(self._dead, {"source": source, "reason": reason})
        self.dead_letters += 1

    def close(self) -> None:
        """Closes the files without finishing the shard."""
        for file in (self._index, self._dead, self._examples):
            if file is not None:
                file.close()

    def commit(self) -> bool:
        """Makes the shard finished. False where another attempt at it was faster; this one is then dropped."""
        self.close()
        if is_finished(self._final):
            tf.io.gfile.rmtree(self._folder)
            return False
        if tf.io.gfile.exists(self._final):  # half a rename
            tf.io.gfile.rmtree(self._final)
        tf.io.gfile.rename(self._folder, self._final)
        counts = {"results": self.results, "dead_letters": self.dead_letters}
        write_whole(os.path.join(self._final, FINISHED), json.dumps(counts))
        return True


def is_finished(folder: str) -> bool:
    """Whether a shard's directory is complete."""
    return tf.io.gfile.exists(os.path.join(folder, FINISHED))


def unfinished(output: str, shards: Iterable[str]) -> list[str]:
    """The shards that have still to be done."""
    return [shard for shard in shards if not is_finished(os.path.join(output, shard))]


def clear_attempts(output: str) -> None:
    """Deletes what a run that was killed left of the shards that it had begun."""
    attempts = os.path.join(output, ATTEMPTS)
    if tf.io.gfile.exists(attempts):
        tf.io.gfile.rmtree(attempts)


def totals(output: str, shards: Iterable[str]) -> tuple[int, int]:
    """Results and dead letters of all the shards, which are finished."""
    results = dead_letters = 0
    for shard in shards:
        with tf.io.gfile.GFile(os.path.join(output, shard, FINISHED)) as file:
            counts = json.loads(file.read())
        results, dead_letters = results + counts["results"], dead_letters + counts["dead_letters"]
    return results, dead_letters


def example(values: dict[str, Value]) -> bytes:
    """A serialized `tf.train.Example`: bytes as they are; arrays as floats, with NAME_shape beside them."""
    features = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(value)))
            features[f"{name}_shape"] = tf.train.Feature(int64_list=tf.train.Int64List(value=value.shape))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _line(file: Any, value: dict[str, Any]) -> None:
    file.write(json.dumps(value) + "\n")
