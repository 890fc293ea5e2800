"""`scenes`: the data set that this project draws itself, as a TFDS builder. Nothing is downloaded.

Each example is a picture render(layout, look) with its label map and both seeds, so that for any two examples the true
swap and the true region edit can be drawn (`scene_render`). Splits share neither layouts nor looks; the same example at
another size is the same picture at another resolution. `prepare` writes it, `load_arrays` or TFDS itself
(`prepare(64).as_dataset(split="train")`) reads it.

`python -m tcp_tf.datasets.scenes --grid FILE.png` draws layouts (rows) under looks (columns).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tcp_tf.datasets import scene_render, scene_shards

# First seed of each split, for layouts and for looks alike (they come from separate random streams).
FIRST_SEED = {"train": 0, "validation": 1_000_000, "test": 2_000_000}

_UNFINISHED = ".unfinished-"  # prefix of the folders in which a data set is being written
_ABANDONED_S = 3600.0  # an unfinished folder untouched for so long belongs to a killed process


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
    """size: side in pixels; train, validation, test: number of examples."""

    size: int = 64
    train: int = 12_000
    validation: int = 500
    test: int = 500


def _config(size: int, train: int) -> ScenesConfig:
    return ScenesConfig(name=str(size), description=f"{size} x {size} pixels", size=size, train=train)


class _LocalInfo(tfds.core.DatasetInfo):
    """Metadata of a data set that no bucket on the network knows."""

    def initialize_from_bucket(self) -> None:
        return


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Drawn landscapes: picture, label map of region kinds, layout seed, look seed."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First drawing."}
    BUILDER_CONFIGS = [_config(64, 12_000), _config(128, 8_000), _config(256, 4_000)]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return _LocalInfo(
            builder=self,
            description="Landscapes drawn as render(layout, look): each swap and region edit has a known true picture.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), dtype=np.uint8, encoding_format="png"),
                    "label_map": tfds.features.Image(shape=(size, size, 1), dtype=np.uint8, encoding_format="png"),
                    "layout_seed": np.int64,
                    "look_seed": np.int64,
                }
            ),
            disable_shuffling=True,  # examples stay in the order of their seeds
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in FIRST_SEED}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count, first = getattr(self.builder_config, split), FIRST_SEED[split]
        scenes = scene_shards.draw_many(self.builder_config.size, first, count, workers=os.cpu_count() or 1)
        for i, (image, label_map) in enumerate(scenes):
            example = {"image": io.BytesIO(image), "label_map": io.BytesIO(label_map)}
            yield i, {**example, "layout_seed": first + i, "look_seed": first + i}


def prepare(size: int | ScenesConfig = 64, data_dir: str | os.PathLike[str] | None = None) -> Scenes:
    """Writes the data set if it is not there yet, and returns its builder, ready to read.

    It is written into a folder beside its place and then moved there, so a killed or a second process never leaves half
    a data set to be read; what is found half-written is written again.

    Args:
      size: 64, 128 or 256, or a config of your own.
      data_dir: TFDS data directory; default: TFDS's own (`TFDS_DATA_DIR` or ~/tensorflow_datasets).

    Raises:
      ValueError: another size.
    """
    sizes = [config.size for config in Scenes.BUILDER_CONFIGS]
    if not isinstance(size, ScenesConfig) and size not in sizes:
        raise ValueError(f"scenes are {', '.join(map(str, sizes))} pixels wide, got {size}")
    config = size if isinstance(size, ScenesConfig) else str(size)
    builder = Scenes(config=config, data_dir=data_dir)
    place = pathlib.Path(builder.data_dir)
    if _is_complete(builder):
        return builder

    root = place.parents[2]  # DATA_DIR/scenes/CONFIG/VERSION
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(_UNFINISHED + "*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=root) as unfinished:
        made = Scenes(config=config, data_dir=unfinished)
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of a download and of the folder that is moved away
            made.download_and_prepare(
                download_dir=os.path.join(unfinished, "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        if not _is_complete(Scenes(config=config, data_dir=data_dir)):  # another process may have been faster
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made.data_dir, place)
    return Scenes(config=config, data_dir=data_dir)


def _is_complete(builder: Scenes) -> bool:
    """Is every file that the builder's metadata names on disk, with the expected number of examples?"""
    splits = builder.info.splits
    return set(splits) == set(FIRST_SEED) and all(
        splits[split].num_examples == getattr(builder.builder_config, split)
        and all(os.path.exists(path) for path in splits[split].filepaths)
        for split in FIRST_SEED
    )


def load_arrays(
    size: int | ScenesConfig, split: str, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads a whole split into memory, in the order of its seeds, preparing the data set first where needed.

    Returns:
      images uint8 [N, S, S, 3], label_maps uint8 [N, S, S], layout_seeds int64 [N], look_seeds int64 [N].

    Raises:
      ValueError: an unknown split or size.
    """
    if split not in FIRST_SEED:
        raise ValueError(f"split must be one of {', '.join(FIRST_SEED)}, got {split!r}")
    builder = prepare(size, data_dir)
    side, count = builder.builder_config.size, builder.info.splits[split].num_examples
    arrays = {
        "images": np.empty((count, side, side, 3), np.uint8),
        "label_maps": np.empty((count, side, side), np.uint8),
        "layout_seeds": np.empty(count, np.int64),
        "look_seeds": np.empty(count, np.int64),
    }
    done = 0
    for batch in tfds.as_numpy(builder.as_dataset(split=split, batch_size=256, shuffle_files=False)):
        end = done + len(batch["image"])
        arrays["images"][done:end] = batch["image"]
        arrays["label_maps"][done:end] = batch["label_map"][..., 0]
        arrays["layout_seeds"][done:end] = batch["layout_seed"]
        arrays["look_seeds"][done:end] = batch["look_seed"]
        done = end
    if done != count:
        raise ValueError(f"split {split} in {builder.data_dir} holds {done} examples, its metadata says {count}")
    order = np.argsort(arrays["layout_seeds"], kind="stable")
    return arrays if np.all(order == np.arange(count)) else {name: array[order] for name, array in arrays.items()}


def grid(layouts: Sequence[int], looks: Sequence[int], size: int = 128, gap: int = 2) -> np.ndarray:
    """Every layout (rows) under every look (columns), white gaps between: uint8 [H, W, 3]."""
    sheet = np.full((len(layouts) * (size + gap) + gap, len(looks) * (size + gap) + gap, 3), 255, np.uint8)
    styles = [scene_render.sample_look(look) for look in looks]
    for i, layout in enumerate(layouts):
        shares = scene_render.sample_layout(layout, 2 * size)
        for j, look in enumerate(styles):
            top, left = gap + i * (size + gap), gap + j * (size + gap)
            sheet[top : top + size, left : left + size] = scene_render.render(shares, look, size)
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tcp_tf.datasets.scenes", description="Draw layouts under looks.")
    parser.add_argument("--grid", required=True, metavar="FILE.png", help="PNG file to write")
    parser.add_argument("--size", type=int, default=128, help="side of one picture in pixels (default 128)")
    parser.add_argument("--rows", type=int, default=5, help="number of layouts (default 5)")
    parser.add_argument("--columns", type=int, default=8, help="number of looks (default 8)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED["test"], help="first seed (default: the test split's)")
    options = parser.parse_args(arguments)
    seed = options.seed
    sheet = grid(range(seed, seed + options.rows), range(seed, seed + options.columns), options.size)
    pathlib.Path(options.grid).write_bytes(scene_shards.encode_png(sheet))


if __name__ == "__main__":
    main()
