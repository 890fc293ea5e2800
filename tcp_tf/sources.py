"""Where pictures come from: numbered, readable in any order, as uint8.

    source = open_source(config.data, "train")
    source.image(7)                                        # uint8 [H, W, 3]

`scenes` is the embedded data set, `folder:PATH` a directory of photographs, `tfds:NAME` any TFDS data set of images;
several are joined so that each is seen equally often.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Protocol, Union

import numpy as np

from tcp_tf import images
from tcp_tf.config import DataConfig
from tcp_tf.folder import FolderSource, user_cache

SPLITS = ("train", "validation", "test")
SCENE_SIZES = (64, 128, 256)  # px, the sizes of the embedded data set

log = logging.getLogger(__name__)


class Source(Protocol):
    """Pictures by number. Reading is safe from several threads at once."""

    name: str

    def __len__(self) -> int:
        """How many pictures there are, 1 or more."""
        ...

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        """Picture `index` of 0..len-1, uint8 [H, W, 3].

        `least` says which short side in px is enough, so that a source may decode less; it need not.

        Raises:
            ImageError, OSError: this picture cannot be read (any more).
        """
        ...


def open_source(data: DataConfig, split: str) -> Source:
    """Opens what `data.source` or `data.sources` names, for the split `train`, `validation` or `test`.

    Raises:
        ValueError: the name is none of the three kinds, or the data is missing, empty or cannot be had.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    sources = [_open_one(name, data, split) for name in data.all_sources]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open_one(name: str, data: DataConfig, split: str) -> Source:
    kind, _, rest = name.partition(":")
    if name == "scenes":
        return ScenesSource(split, scenes_size(data.short_side), data.data_dir)
    if kind == "folder" and rest:
        index_dir = Path(data.data_dir).expanduser() / "folders" if data.data_dir else None
        return FolderSource(rest, split, data.resolution, data.validation_fraction, index_dir, data.workers)
    if kind == "tfds" and rest:
        return TFDSSource(rest, split, data.data_dir, data.validation_fraction)
    raise ValueError(f"data.source: must be 'scenes', 'folder:PATH' or 'tfds:NAME', got {name!r}")


def scenes_size(side: int) -> int:
    """The size in px at which scenes are drawn for pictures of `side` px: the next larger one, or the largest."""
    return next((size for size in SCENE_SIZES if size >= side), SCENE_SIZES[-1])


def scenes_dir(data_dir: Optional[Union[str, Path]]) -> str:
    """Where scenes are kept: `data_dir`, or with None the user's cache directory."""
    return str(Path(data_dir).expanduser() if data_dir else user_cache("tensorflow_datasets"))


class ScenesSource:
    """The embedded data set in memory, with what is known of each picture in `arrays` (see `scenes.load_arrays`)."""

    def __init__(self, split: str, size: int, data_dir: Optional[Union[str, Path]] = None) -> None:
        """Draws and writes the data set if it is not there yet, then reads the whole split.

        Args:
            split: `train`, `validation` or `test`.
            size: side in px, one of SCENE_SIZES.
            data_dir: TFDS directory; None = the user's cache directory.
        """
        from tcp_tf.datasets import scenes  # imports TFDS, which takes seconds

        self.name = "scenes"
        self.arrays = scenes.load_arrays(size, split, scenes_dir(data_dir))  # images, label_maps, layout and look seeds
        self.images = self.arrays["images"]  # uint8 [N, S, S, 3]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        """Picture `index`, uint8 [S, S, 3]."""
        return self.images[index]


class TFDSSource:
    """The images of any TFDS data set, read in any order.

    The split `validation` is the data set's own `validation` or else `test` split, `test` likewise the other way
    round. Where it has neither, the last `validation_fraction` of `train` (one picture at least) is held out for both.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: Optional[Union[str, Path]] = None,
        validation_fraction: float = 0.05,
    ) -> None:
        """Opens the data set, and downloads and prepares it if need be.

        Args:
            name: as TFDS knows it: `celeb_a_hq/256`, `lsun/church_outdoor`, with `:version` if wanted.
            split: `train`, `validation` or `test`.
            data_dir: TFDS's directory; None = TFDS's own default.
            validation_fraction: share of `train` held out where the data set has no other split.

        Raises:
            ValueError: no such data set, it cannot be prepared, or it holds no uint8 images.
        """
        self.name = f"tfds:{name}"
        builder = _prepared_builder(name, data_dir)
        self.key = _image_feature(builder, self.name)
        own_split, self.indices = _choose_examples(builder, split, validation_fraction, self.name)
        self._records = _open_records(builder, own_split, self.key)

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        """Picture `index`, uint8 [H, W, 3]."""
        example = self.indices[index]
        try:
            return images.decode(self._records[example], least)
        except OSError:
            raise
        except Exception as error:  # damaged records fail in protobuf, array_record or here, each in its own way
            raise images.ImageError(f"{self.name}, example {example}: {error}") from error


class JoinedSource:
    """Several sources as one, for training across domains.

    Each source is seen equally often: there are (number of sources) * (size of the largest) pictures, number i is
    from source i modulo the number of sources, and the smaller sources come round again.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = " + ".join(source.name for source in self.sources)

    def __len__(self) -> int:
        return len(self.sources) * max(len(source) for source in self.sources)

    def locate(self, index: int) -> tuple[Source, int]:
        """The source that picture `index` is from, and its number there."""
        round_number, position = divmod(index, len(self.sources))
        source = self.sources[position]
        return source, round_number % len(source)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        """Picture `index`, uint8 [H, W, 3]."""
        source, number = self.locate(index)
        return source.image(number, least)


class TFRecords:
    """Raw image bytes of a TFRecord split by number, through an index of offsets made in one pass over the headers."""

    def __init__(self, paths: Sequence[Union[str, Path]], features: Any, key: str) -> None:
        """`features`: the data set's features; `key`: its image feature.

        Raises ValueError naming a file that is cut off.
        """
        import tensorflow_datasets as tfds

        self._features = tfds.decode.PartialDecoding({key: True}).extract_features(features)
        self._decoders = {key: tfds.decode.SkipDecoding()}
        self._key = key
        self._paths = [os.fspath(path) for path in paths]
        found = [_record_offsets(path) for path in self._paths]
        self._file = np.repeat(np.arange(len(found)), [len(offsets) for offsets in found])
        self._span = np.concatenate(found) if found else np.zeros((0, 2), np.int64)  # [N, 2]: offset, length

    def __len__(self) -> int:
        return len(self._span)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self._span[index]
        with open(self._paths[self._file[index]], "rb", buffering=0) as file:
            file.seek(offset)
            record = file.read(length)
        return bytes(self._features.deserialize_example_np(record, decoders=self._decoders)[self._key])


class _DataSourceImages:
    """The same over a TFDS data source, for files with random access of their own (array_record)."""

    def __init__(self, data_source: Any, key: str) -> None:
        self._data_source, self._key = data_source, key

    def __len__(self) -> int:
        return len(self._data_source)

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._data_source[int(index)][self._key])


def _record_offsets(path: str) -> np.ndarray:
    """int64 [N, 2]: offset and length of each record's data.

    A TFRecord is a length (uint64), its checksum (uint32), the data and its checksum (uint32): tensorflow/core/lib/io.
    """
    spans = []
    position, size = 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position < size:
            file.seek(position)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if position + 16 + length > size:
                raise ValueError(f"data.source: {path} is damaged or cut off at byte {position} of {size}")
            spans.append((position + 12, length))
            position += 16 + length
    return np.asarray(spans, np.int64).reshape(-1, 2)


def _prepared_builder(name: str, data_dir: Optional[Union[str, Path]]) -> Any:
    import tensorflow_datasets as tfds

    where = None if data_dir is None else str(Path(data_dir).expanduser())
    told = f"in {where}" if where else "in TFDS's default directory"
    try:
        builder = tfds.builder(name, data_dir=where)
    except Exception as error:  # unknown names, versions and configs, each with a class of its own
        raise ValueError(f"data.source: tfds:{name} is unknown to TFDS and not {told}: {_line(error)}") from error
    if not builder.info.splits:
        log.info("tfds:%s is not %s yet: downloading and preparing it", name, told)
        try:
            builder.download_and_prepare()
        except Exception as error:  # no network, no disk, archives that must be fetched by hand, missing packages, ...
            raise ValueError(f"data.source: tfds:{name} is not {told} and cannot be had: {_line(error)}") from error
    return builder


def _image_feature(builder: Any, name: str) -> str:
    """The top-level feature that is a uint8 (or 16-bit) image; `image` where there are several."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    fitting = [
        key
        for key, feature in features.items()
        if type(feature) is tfds.features.Image  # not its subclasses, which are label maps
        and np.dtype(feature.np_dtype) in (np.dtype(np.uint8), np.dtype(np.uint16))
    ]
    if not fitting:
        raise ValueError(f"data.source: {name} has no feature that is an 8 or 16 bit image, only {', '.join(features)}")
    colour = [key for key in fitting if features[key].shape[-1] in (3, 4)]
    candidates = colour or fitting
    return "image" if "image" in candidates else candidates[0]


def _choose_examples(builder: Any, split: str, fraction: float, name: str) -> tuple[str, range]:
    """The data set's own split to read, and which of its examples."""
    splits = {key: value.num_examples for key, value in builder.info.splits.items() if value.num_examples}
    wanted = {"train": ("train",), "validation": ("validation", "test"), "test": ("test", "validation")}[split]
    for own_split in wanted if split != "train" else ():
        if own_split in splits:
            return own_split, range(splits[own_split])
    if not splits:
        raise ValueError(f"data.source: {name} is empty")
    own_split = "train" if "train" in splits else max(splits, key=splits.__getitem__)
    count = splits[own_split]
    if "validation" in splits or "test" in splits or count == 1:
        return own_split, range(count)
    held_out = min(max(1, round(count * fraction)), count - 1)
    return own_split, range(count - held_out) if split == "train" else range(count - held_out, count)


def _open_records(builder: Any, split: str, key: str) -> Any:
    import tensorflow_datasets as tfds

    file_format = getattr(builder.info.file_format, "value", "tfrecord")
    if file_format == "tfrecord":
        records: Any = TFRecords(builder.info.splits[split].filepaths, builder.info.features, key)
    else:
        pictures = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
        raw = {name: tfds.decode.SkipDecoding() for name in pictures}
        records = _DataSourceImages(builder.as_data_source(split, decoders=raw), key)
    expected = builder.info.splits[split].num_examples
    if len(records) != expected:
        raise ValueError(
            f"data.source: tfds:{builder.name} has {len(records)} instead of {expected} examples in split {split}"
        )
    return records


def _line(error: Exception) -> str:
    """An error's text as one line, without TFDS's list of all the data sets that it knows."""
    text = " ".join(str(error).partition("Available datasets")[0].split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
