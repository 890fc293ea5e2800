"""Bytes to images: the batches that training sees, and the one image convention.

Inside the program an image is float32 [N, H, W, 3], RGB, in [-1, 1]; outside it is uint8 in 0..255. `to_model` and
`to_uint8` are the only way between them.

The order of the pictures and every random draw are functions of (seed, step, position in the global batch): a dataset
that starts at step s gives exactly what an uninterrupted one gives from its step s on, for any number of replicas.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tcp_tf import images
from tcp_tf.config import Config, DataConfig
from tcp_tf.images import to_uint8
from tcp_tf.sources import JoinedSource, Source, open_source

__all__ = ["evaluation_images", "open_source", "to_model", "to_uint8", "training_dataset"]

# Each use of randomness has a stream of its own: its number, above the seed's 31 bits, is part of the stateless seed.
ORDER_STREAM = 1 << 40
DRAWS_STREAM = 2 << 40
ATTEMPTS = 64  # neighbours tried in place of a picture that cannot be read; then the disk itself must be gone
MEMORY_SHARE = 0.6  # of the machine's memory that pictures kept there may take

log = logging.getLogger(__name__)


def to_model(image: Union[np.ndarray, tf.Tensor]) -> tf.Tensor:
    """uint8 0..255 to float32 in [-1, 1], any shape."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def training_dataset(
    config: Config, source: Source, start_step: int = 0, part: int = 0, parts: int = 1
) -> tf.data.Dataset:
    """The endless training batches from step `start_step` on.

    Each epoch is a fresh permutation of the source; batches run over its end into the next one. A picture that cannot
    be read is logged once and its nearest readable successor taken instead.

    Args:
        part, parts: only this one, counted from 0, of so many equal parts of each batch is read.
    Returns:
        A dataset of {"image": float32 [B, R, R, 3] in [-1, 1], "position": int32 [B], the example's index in the
        global batch}, with B = data.batch_size / parts and R = data.resolution.

    Raises:
        ValueError: `start_step` is negative, or `data.cache: memory` needs more memory than there is.
    """
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more, got {start_step}")
    data = config.data
    size, side = data.batch_size // parts, data.resolution
    first = part * size
    pictures = _Pictures(source, data, data.cache == "memory")
    dataset = _plan(config, len(source), start_step)
    if parts > 1:
        dataset = dataset.map(lambda *drawn: tuple(values[first : first + size] for values in drawn))
    if data.cache == "memory":  # a call per picture would cost more than copying the picture does
        read = _from_python(partial(_crops, pictures, side), (size, side, side, 3))
        dataset = dataset.map(read)
    else:
        read = _from_python(partial(_crop, pictures, side), (side, side, 3))
        dataset = dataset.unbatch().map(read, _readers(data.workers)).batch(size, drop_remainder=True)

    def finish(crops: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image": to_model(crops), "position": tf.range(first, first + size)}

    options = tf.data.Options()
    options.deterministic = True
    # There is nothing to tune, and the tuner looks up once a minute only: until then its end would be waited for.
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return dataset.map(finish).prefetch(2).apply(endless).with_options(options)


def evaluation_images(source: Source, count: int, config: Config) -> np.ndarray:
    """The first `count` pictures of a source (all, if it has fewer), centre crop, never mirrored.

    Returns:
        float32 [n, R, R, 3] in [-1, 1].

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    pictures, side = _Pictures(source, config.data, in_memory=False), config.data.resolution
    crops = []
    for picture in _in_threads(pictures.__getitem__, min(count, len(source)), config.data.workers):
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        crops.append(picture[top : top + side, left : left + side])
    return to_model(np.stack(crops)).numpy()


class _Pictures:
    """The pictures of a source at the size from which crops are taken, by the source's numbers.

    A joined source's pictures are those of its parts: `memory` holds each once, however often it comes round.
    """

    def __init__(self, source: Source, data: DataConfig, in_memory: bool) -> None:
        self.data = data
        self.parts = source.sources if isinstance(source, JoinedSource) else [source]
        self.failed: set[tuple[int, int]] = set()
        self.memory = self._read_all() if in_memory else None

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 [h, w, 3] with h = w = R (`resize`) or the shorter of them = the short side (`short_side_and_crop`)."""
        number, part = divmod(index, len(self.parts))
        number %= len(self.parts[part])
        return self._read(part, number) if self.memory is None else self.memory[part][number]

    def _read(self, part: int, number: int) -> np.ndarray:
        """Picture `number` of a part, or the next one that can be read."""
        source, data = self.parts[part], self.data
        reason: Optional[Exception] = None
        attempts = min(ATTEMPTS, len(source))
        for attempt in range(attempts):
            number_tried = (number + attempt) % len(source)
            try:
                picture = source.image(number_tried, least=data.short_side)
            except (images.ImageError, OSError) as error:
                reason = error
                if (part, number_tried) not in self.failed:
                    self.failed.add((part, number_tried))
                    log.warning("%s: number %d is replaced by another picture: %s", source.name, number_tried, error)
                continue
            if data.preprocess == "resize":
                return images.resize(picture, data.resolution, data.resolution)
            return images.resize_short_side(picture, data.short_side)
        raise OSError(f"{source.name}: {attempts} pictures in a row cannot be read, the last one: {reason}") from reason

    def _read_all(self) -> list[list[np.ndarray]]:
        first, count = self._read(0, 0), sum(len(part) for part in self.parts)
        needed, installed = first.nbytes * count, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > MEMORY_SHARE * installed:
            raise ValueError(
                f"data.cache: memory would take about {needed / 2**30:.1f} GiB for {count} pictures, the machine has "
                f"{installed / 2**30:.1f}; use none"
            )
        kept = []
        for part, source in enumerate(self.parts):
            read = _in_threads(partial(self._read, part), len(source), self.data.workers)
            name = f"keeping {source.name} in memory"
            kept.append(list(tqdm(read, name, len(source), unit="image", disable=None)))
        return kept


def _in_threads(read: Callable[[int], np.ndarray], count: int, workers: int) -> Iterator[np.ndarray]:
    """read(0), read(1), ..., read(count - 1), several at a time; decoding lets other threads run."""
    with ThreadPoolExecutor(_readers(workers)) as pool:
        yield from pool.map(read, range(count))


def _readers(workers: int) -> int:
    """How many pictures are read at a time where the configuration's `data.workers` is this."""
    return workers or os.cpu_count() or 1


def _plan(config: Config, count: int, start_step: int) -> tf.data.Dataset:
    """Per step: which pictures, int64 [B]; which are mirrored, bool [B]; each crop's place, float64 [B, 2] in [0, 1).

    The numbers of an epoch are one stateless shuffle, drawn when the epoch begins.
    """
    size = config.data.batch_size
    epoch, begun = divmod(start_step * size, count)

    def order(number: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([tf.constant(config.seed + ORDER_STREAM, tf.int64), number])
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seed)
        return tf.data.Dataset.from_tensor_slices(shuffled[tf.where(number == epoch, begun, 0) :])

    def draw(indices: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        seed = tf.stack([tf.constant(config.seed + DRAWS_STREAM, tf.int64), step])
        uniform = tf.random.stateless_uniform([size, 3], seed, dtype=tf.float64)
        return indices, (uniform[:, 0] < 0.5) & config.data.flip, uniform[:, 1:]

    indices = tf.data.Dataset.range(epoch, tf.int64.max).flat_map(order).batch(size, drop_remainder=True)
    return tf.data.Dataset.zip((indices, tf.data.Dataset.range(start_step, tf.int64.max))).map(draw)


def _crop(pictures: _Pictures, side: int, index: int, mirror: bool, place: np.ndarray) -> np.ndarray:
    """uint8 [side, side, 3]: the crop of picture `index` whose corner is at `place` of where it can be."""
    picture = pictures[int(index)]
    top = int(place[0] * (picture.shape[0] - side + 1))
    left = int(place[1] * (picture.shape[1] - side + 1))
    crop = picture[top : top + side, left : left + side]
    return np.ascontiguousarray(crop[:, ::-1] if mirror else crop)


def _crops(pictures: _Pictures, side: int, indices: np.ndarray, mirror: np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint8 [B, side, side, 3]: `_crop` of a whole batch."""
    return np.stack([_crop(pictures, side, *each) for each in zip(indices, mirror, places)])


def _from_python(read: Callable[..., np.ndarray], shape: tuple[int, ...]) -> Callable[..., tf.Tensor]:
    """`read`, a pure function of arrays that returns uint8 of `shape`, as a function for `Dataset.map`."""
    # Not stateful: otherwise `enable_op_determinism` would have tf.data read one picture after the other.
    call = partial(tf.numpy_function, _CALLS.counted(read, shape), Tout=tf.uint8, stateful=False)
    return lambda *drawn: tf.ensure_shape(call(list(drawn)), shape)


class _Calls:
    """The calls that the pipelines' own threads make into Python, so that the program can end.

    A pipeline reads ahead. A thread of it that calls into Python while the interpreter is being taken down never comes
    back, and the iterator's destructor, run by that same interpreter, waits for it for ever (under op determinism 7 of
    30 programs never ended; with this, none of 41). So at exit reading becomes a mere formality, and the exit waits
    until the pipelines' buffers are full.
    """

    STILL_S = 0.2  # no call for so long means that no thread is about to make one
    PATIENCE_S = 10.0

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.latest = 0.0
        self.ending = False
        self.registered = False

    def counted(self, read: Callable[..., np.ndarray], shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
        """`read`, counted while it runs; at exit it gives zeros of `shape` instead."""
        with self.lock:
            if not self.registered:
                atexit.register(self.end)
                self.registered = True

        def call(*arguments: Any) -> np.ndarray:
            with self.lock:
                self.running += 1
            try:
                return np.zeros(shape, np.uint8) if self.ending else read(*arguments)
            finally:
                with self.lock:
                    self.running -= 1
                    self.latest = time.monotonic()

        return call

    def end(self) -> None:
        """Waits until no pipeline calls any more."""
        self.ending = True
        begun = self.latest = time.monotonic()
        while time.monotonic() < begun + self.PATIENCE_S:
            with self.lock:
                if not self.running and time.monotonic() > self.latest + self.STILL_S:
                    return
            time.sleep(self.STILL_S / 10)


_CALLS = _Calls()
