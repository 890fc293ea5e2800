"""Data: what training sees is a function of (seed, step); what folders hold is survived and named."""

from __future__ import annotations

import atexit
import io
import logging
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tcp_tf import data, folder, images, sources
from tcp_tf.config import Config, from_dict


class Arrays:
    """A source over arrays in memory; `broken` numbers cannot be read."""

    def __init__(self, pictures: list[np.ndarray], name: str = "arrays", broken: tuple[int, ...] = ()) -> None:
        self.name, self.pictures, self.broken = name, pictures, broken

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        if index in self.broken:
            raise OSError(f"number {index} is gone")
        return self.pictures[index]


def numbered(count: int, side: int = 64, first: int = 0) -> list[np.ndarray]:
    """Pictures whose grey level is their number, darker in the left half by 100 so that a mirror image shows."""
    pictures = [np.full((side, side, 3), first + i + 100, np.uint8) for i in range(count)]
    for picture in pictures:
        picture[:, : side // 2] -= 100
    return pictures


def configure(**values: Any) -> Config:
    settings = {"resolution": 64, "preprocess": "resize", "batch_size": 4, **values}
    return from_dict({"seed": 5, "data": settings, "model": {"downsamples": 3}})


def batches(config: Config, source: sources.Source, count: int, start_step: int = 0) -> list[np.ndarray]:
    taken = data.training_dataset(config, source, start_step).take(count)
    return [batch["image"] for batch in taken.as_numpy_iterator()]


def numbers_and_flips(batch: np.ndarray) -> list[tuple[int, bool]]:
    """What `numbered` put into each picture: (number, mirrored)."""
    corners = data.to_uint8(batch)[:, 0, [0, -1], 0].astype(int)
    return [(min(left, right), left > right) for left, right in corners]


def photograph(height: int = 96, width: int = 128) -> np.ndarray:
    """A smooth picture without symmetry: red grows to the right, green downwards, blue is 40."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 40)], -1).astype(np.uint8)


def encode(picture: np.ndarray, file_format: str, mode: Optional[str] = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(picture)
    (image.convert(mode) if mode else image).save(stream, file_format, **options)
    return stream.getvalue()


def oriented(picture: np.ndarray, orientation: int, file_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture, file_format, exif=exif.tobytes(), quality=95)


# ---- one image convention


def test_conversions() -> None:
    np.testing.assert_allclose(data.to_model(np.array([0, 255], np.uint8)), [-1.0, 1.0])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(data.to_uint8(data.to_model(every)), every)
    np.testing.assert_array_equal(data.to_uint8(np.array([-3.0, 0.0, 7.0])), [0, 128, 255])


# ---- order and draws


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_batches_are_a_function_of_seed_and_step(cache: str) -> None:
    config = configure(cache=cache)
    source = Arrays(numbered(10))
    whole = batches(config, source, 9)
    np.testing.assert_array_equal(whole, batches(config, source, 9))
    for step in (1, 4, 8):  # within an epoch, over its end, in the fourth
        np.testing.assert_array_equal(whole[step:], batches(config, source, 9 - step, start_step=step))
    other = config.model_copy(update={"seed": 6})
    assert not np.array_equal(whole, batches(other, source, 9))


def test_every_picture_once_per_epoch_and_epochs_differ() -> None:
    seen = [pair for batch in batches(configure(), Arrays(numbered(10)), 15) for pair in numbers_and_flips(batch)]
    epochs = [[number for number, _ in seen[start : start + 10]] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    mirrored = sum(flip for _, flip in seen)
    assert 15 < mirrored < 45
    unflipped = batches(configure(flip=False), Arrays(numbered(10)), 5)
    assert not any(flip for batch in unflipped for _, flip in numbers_and_flips(batch))


def test_batch_layout() -> None:
    dataset = data.training_dataset(configure(), Arrays(numbered(1)))  # one picture fills a batch
    assert dataset.element_spec["image"] == tf.TensorSpec([4, 64, 64, 3], tf.float32)
    batch = next(iter(dataset))
    np.testing.assert_array_equal(batch["position"], [0, 1, 2, 3])
    assert batch["position"].dtype == tf.int32
    with pytest.raises(ValueError, match="start_step must be 0 or more, got -1"):
        data.training_dataset(configure(), Arrays(numbered(1)), -1)


@pytest.mark.parametrize("preprocess", ["resize", "short_side_and_crop"])
def test_memory_equals_none(preprocess: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(90, 120), (200, 80), (64, 64), (70, 71), (300, 300)]
    source = Arrays([rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes])
    load_size = {} if preprocess == "resize" else {"load_size": 72}
    none, memory = (configure(preprocess=preprocess, cache=cache, **load_size) for cache in ("none", "memory"))
    np.testing.assert_array_equal(batches(none, source, 6), batches(memory, source, 6))


def test_crops_reach_every_place() -> None:
    config = configure(preprocess="short_side_and_crop", load_size=66, flip=False)
    rows, columns = np.mgrid[:66, :70]
    source = Arrays([np.stack([rows, columns, rows], -1).astype(np.uint8)])
    corners = {tuple(corner[:2]) for batch in batches(config, source, 60) for corner in data.to_uint8(batch)[:, 0, 0]}
    assert corners == {(top, left) for top in range(3) for left in range(7)}


def test_two_replicas_share_the_global_batch() -> None:
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("needs two logical CPU devices")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for cache in ("none", "memory"):
        config = configure(cache=cache)
        source = Arrays(numbered(10))
        dataset = data.training_dataset(config, source)
        batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
        parts = strategy.experimental_local_results(batch["image"])
        assert [len(part) for part in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), batches(config, source, 1)[0])
        positions = strategy.experimental_local_results(batch["position"])
        np.testing.assert_array_equal(np.concatenate(positions), [0, 1, 2, 3])


def test_evaluation_images_are_centred_and_upright() -> None:
    rows, columns = np.mgrid[:64, :80]
    source = Arrays([np.stack([rows, columns, rows], -1).astype(np.uint8)] * 3)
    crops = data.evaluation_images(source, 5, configure(preprocess="short_side_and_crop"))
    assert crops.shape == (3, 64, 64, 3) and crops.dtype == np.float32
    assert data.to_uint8(crops)[0, 0, 0, :2].tolist() == [0, 8]
    with pytest.raises(ValueError, match="got 0"):
        data.evaluation_images(source, 0, configure())


# ---- failures during training


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_unreadable_picture_is_replaced_and_named_once(cache: str, caplog: pytest.LogCaptureFixture) -> None:
    source = Arrays(numbered(6), broken=(2, 3))
    with caplog.at_level(logging.WARNING, "tcp_tf"):
        seen = [n for batch in batches(configure(cache=cache), source, 6) for n, _ in numbers_and_flips(batch)]
    assert Counter(seen) == {0: 4, 1: 4, 4: 12, 5: 4}
    assert sorted(record.message for record in caplog.records) == [
        f"arrays: number {i} is replaced by another picture: number {i} is gone" for i in (2, 3)
    ]


def test_exit_waits_for_the_reading_threads() -> None:
    calls = data._Calls()
    begun, go_on = threading.Event(), threading.Event()

    def read(index: int) -> np.ndarray:
        begun.set()
        go_on.wait(5)
        return np.full((2, 2, 3), index, np.uint8)

    counted = calls.counted(read, (2, 2, 3))
    reader = threading.Thread(target=counted, args=(7,))
    reader.start()
    begun.wait(5)
    ending = threading.Thread(target=calls.end)
    ending.start()
    ending.join(2 * calls.STILL_S)
    assert ending.is_alive()  # a call is under way
    go_on.set()
    ending.join(5)
    assert not ending.is_alive() and not reader.is_alive()
    assert not counted(7).any()  # from then on nothing is read
    atexit.unregister(calls.end)


def test_nothing_readable_any_more_stops() -> None:
    with pytest.raises(tf.errors.OpError, match="3 pictures in a row cannot be read"):
        batches(configure(), Arrays(numbered(3), broken=(0, 1, 2)), 1)


def test_memory_that_the_machine_lacks_is_refused() -> None:
    class Endless(Arrays):
        def __len__(self) -> int:
            return 10**9

    with pytest.raises(ValueError, match="data.cache: memory would take about .* GiB for 1000000000 pictures"):
        data.training_dataset(configure(cache="memory"), Endless(numbered(1)))


# ---- decoding


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(file_format: str, orientation: int) -> None:
    upright = photograph()
    undo = {1: None, **images._UPRIGHT}[orientation]
    # The transposition that makes the stored picture is the inverse of the one that makes it upright.
    inverse = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = np.asarray(Image.fromarray(upright).transpose(inverse.get(undo, undo))) if undo is not None else upright
    encoded = oriented(stored, orientation, file_format)
    decoded = images.decode(encoded)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 4
    assert images.examine(encoded) == (file_format, 128, 96)
    if file_format == "JPEG":
        small = images.decode(encoded, least=16)
        assert small.shape == (24, 32, 3)  # a quarter; an eighth would be below 1.5 * 16
        assert np.abs(small.astype(int) - images.resize(upright, 24, 32)).mean() < 5


def test_rotation_by_hand() -> None:
    """Orientation 6: the camera was turned; the stored left column is the upright top row."""
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:, :8] = 255
    decoded = images.decode(oriented(stored, 6, "PNG"))
    assert decoded.shape == (64, 32, 3) and decoded[:8].min() == 255 and decoded[8:].max() == 0


def test_unusual_modes() -> None:
    picture = photograph()
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    np.testing.assert_array_equal(images.decode(encode(grey, "PNG")), np.repeat(grey[..., None], 3, 2))
    alpha = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    alpha[:10, :, 3] = 0
    decoded = images.decode(encode(alpha, "PNG"))
    assert (decoded[:10] == 255).all()  # over white
    np.testing.assert_array_equal(decoded[10:], picture[10:])
    deep = (grey.astype(np.uint16) << 8) + 255
    np.testing.assert_array_equal(images.decode(encode(deep, "PNG")), np.repeat(grey[..., None], 3, 2))
    palette = images.decode(encode(picture, "PNG", mode="P"))
    assert palette.shape == picture.shape and np.abs(palette.astype(int) - picture).mean() < 30
    see_through = encode(np.zeros((9, 9), np.uint8), "PNG", mode="P", transparency=0)
    assert (images.decode(see_through) == 255).all()
    cmyk = images.decode(encode(picture, "JPEG", mode="CMYK", quality=95))
    assert np.abs(cmyk.astype(int) - picture).mean() < 8
    assert set(np.unique(images.decode(encode(grey, "PNG", mode="1")))) == {0, 255}
    np.testing.assert_array_equal(images.decode(encode(picture, "BMP")), picture)


def test_bytes_that_are_no_picture_are_refused() -> None:
    jpeg, png = encode(photograph(), "JPEG"), encode(photograph(), "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    for broken in (b"", b"GIF89a", b"not a picture", jpeg[: len(jpeg) // 2], png[: len(png) // 2], bytes(flipped)):
        with pytest.raises(images.ImageError):
            images.decode(broken)
        with pytest.raises(images.ImageError):
            images.examine(broken)
    gif = encode(photograph(), "GIF")
    with pytest.raises(images.ImageError, match="not a JPEG, PNG, WebP or BMP picture"):
        images.decode(gif)


def test_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = encode(np.zeros((1, 1), np.uint8), "BMP")
    size = (30_000).to_bytes(4, "little")
    with pytest.raises(images.ImageError, match="900000000|30000x30000"):
        images.decode(bomb[:18] + size + size + bomb[26:])


# ---- folders


def write_zoo(root: Path) -> None:
    """Eight good pictures and everything that people's folders hold besides."""
    (root / "deep" / "er").mkdir(parents=True)
    photo = photograph()
    (root / "a.jpg").write_bytes(encode(photo, "JPEG"))
    (root / "B.JPEG").write_bytes(encode(photo, "JPEG"))
    (root / "deep" / "webp.webp").write_bytes(encode(photo, "WEBP"))
    (root / "deep" / "bmp.bmp").write_bytes(encode(photo, "BMP"))
    (root / "deep" / "grey.png").write_bytes(encode(photo[..., 0], "PNG"))
    (root / "deep" / "er" / "alpha.png").write_bytes(encode(np.dstack([photo, photo[..., :1]]), "PNG"))
    (root / "deep" / "er" / "turned.jpg").write_bytes(oriented(photo, 6))
    (root / "deep" / "er" / "sixteen.png").write_bytes(encode(photo[..., 0].astype(np.uint16) * 256, "PNG"))
    (root / "truncated.jpg").write_bytes(encode(photo, "JPEG")[:-200])
    (root / "text.jpg").write_text("I am no picture")
    (root / "five.png").write_bytes(encode(photo[:5, :5], "PNG"))
    (root / "narrow.png").write_bytes(encode(np.zeros((16, 400, 3), np.uint8), "PNG"))
    (root / "empty.png").write_bytes(b"")
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "notes.txt").write_text("ignored")
    (root / "._a.jpg").write_bytes(b"ignored")
    (root / "nothing here").mkdir()
    (root / "deep" / "loop").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.jpg")  # opening it would wait for ever


def open_folder(root: Path, cache: Path, split: str = "train", resolution: int = 64) -> folder.FolderSource:
    return folder.FolderSource(root, split, resolution, 0.25, index_dir=cache, workers=2)


def test_folder_names_what_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "photos"
    write_zoo(root)
    with caplog.at_level(logging.INFO, "tcp_tf"):
        train = open_folder(root, tmp_path / "cache")
    skipped = {}
    for record in caplog.records:
        if record.levelno == logging.WARNING:
            path, _, reason = record.message.partition("skipped ")[2].partition(": ")
            skipped[path] = reason
    assert sorted(skipped) == [
        "empty.png", "five.png", "gone.jpg", "narrow.png", "pipe.jpg", "text.jpg", "truncated.jpg"
    ]  # fmt: skip
    assert "truncated" in skipped["truncated.jpg"]
    assert "not a JPEG" in skipped["text.jpg"]
    assert "too small: 5x5 px, the shorter side must have 16" in skipped["five.png"]
    assert "16 to 1" in skipped["narrow.png"] and "empty" in skipped["empty.png"]
    assert "cannot be read" in skipped["gone.jpg"] and "regular" in skipped["pipe.jpg"]
    summary = caplog.records[-1].message
    for part in ("8 usable pictures (1 BMP, 3 JPEG, 3 PNG, 1 WEBP; ", "7 skipped", "2 files of other kinds"):
        assert part in summary
    validation = open_folder(root, tmp_path / "cache", "validation")
    assert len(train) + len(validation) == 8 and not set(train.paths) & set(validation.paths)
    for source in (train, validation):
        assert source.paths == sorted(source.paths)
        for index, path in enumerate(source.paths):
            assert source.image(index).shape == ((128, 96, 3) if path.endswith("turned.jpg") else (96, 128, 3))
    assert len(batches(configure(), train, 4)) == 4


def test_folder_index_is_reused_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tmp_path / "photos", tmp_path / "cache"
    write_zoo(root)
    before = sorted(os.listdir(root))
    first = open_folder(root, cache)
    assert sorted(os.listdir(root)) == before  # nothing is written among the photographs
    read: list[str] = []
    examine = folder._examine

    def counted(at: Path, path: str) -> tuple[folder.Entry, bool]:
        read.append(path)
        return examine(at, path)

    monkeypatch.setattr(folder, "_examine", counted)
    assert open_folder(root, cache).paths == first.paths and read == []
    (root / "text.jpg").write_bytes(encode(photograph(), "JPEG"))
    second = open_folder(root, cache)
    assert read == ["text.jpg"]
    together = set(second.paths) | set(open_folder(root, cache, "validation").paths)
    assert "text.jpg" in together and len(together) == 9
    index = next(cache.iterdir())
    index.write_text("{half")
    assert open_folder(root, cache).paths == second.paths


def test_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder:.*missing is not a directory"):
        open_folder(tmp_path / "missing", tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="no usable picture: 0 files"):
        open_folder(tmp_path / "photos", tmp_path / "cache")
    (tmp_path / "photos" / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="no usable picture: 1 files"):
        open_folder(tmp_path / "photos", tmp_path / "cache", "validation")
    (tmp_path / "photos" / "one.png").write_bytes(encode(photograph(), "PNG"))
    for split in ("train", "validation"):
        assert open_folder(tmp_path / "photos", tmp_path / "cache", split).paths == ["one.png"]


def test_validation_split_is_stable() -> None:
    paths = [f"{i}.jpg" for i in range(1000)]
    held_out = folder.validation_paths(paths, 0.1)
    assert 70 < len(held_out) < 130
    assert folder.validation_paths([*paths, "new.jpg"], 0.1) - {"new.jpg"} == held_out
    for count in (2, 3, 4):
        assert 1 <= len(folder.validation_paths(paths[:count], 1e-6)) < count
        assert 1 <= len(folder.validation_paths(paths[:count], 1.0)) < count
    assert folder.validation_paths(["only.jpg"], 0.5) == set()


def test_file_that_vanishes_during_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encode(photograph(), "PNG"))
    source = open_folder(tmp_path, tmp_path / "cache")
    (tmp_path / source.paths[0]).unlink()
    (tmp_path / source.paths[1]).write_bytes(b"overwritten")
    with caplog.at_level(logging.WARNING, "tcp_tf"):
        assert len(batches(configure(), source, 6)) == 6
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2
    assert all(any(path in record.message for record in caplog.records) for path in source.paths[:2])


# ---- other sources


def test_joined_sources_are_balanced() -> None:
    joined = sources.JoinedSource([Arrays(numbered(3), "few"), Arrays(numbered(12, first=50), "many")])
    assert len(joined) == 24 and joined.name == "few + many"
    for cache in ("none", "memory"):
        epoch = [n for batch in batches(configure(cache=cache), joined, 6) for n, _ in numbers_and_flips(batch)]
        assert Counter(epoch) == {**{i: 4 for i in range(3)}, **{50 + i: 1 for i in range(12)}}


def test_open_source(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.png").write_bytes(encode(photograph(), "PNG"))
    names = [f"folder:{tmp_path / name}" for name in ("first", "second")]
    config = configure(sources=names, data_dir=str(tmp_path / "data"))
    joined = data.open_source(config.data, "train")
    assert joined.name == " + ".join(names) and len(joined) == 2
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'all'"):
        data.open_source(config.data, "all")
    with pytest.raises(ValueError, match="got 'flickr'"):
        data.open_source(config.data.model_copy(update={"sources": ["flickr"]}), "train")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared TFDS data set `tiny_pictures`: 5 training examples with an image feature called `photo`."""
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Made for the tests."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "id": np.int64,
                "mask": tfds.features.Image(shape=(None, None, 1)),
                "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i, picture in enumerate(numbered(5, side=32)):
                yield i, {"id": i, "mask": picture[..., :1], "photo": picture}

    folder_of_sets = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=folder_of_sets).download_and_prepare()
    return folder_of_sets


def test_tfds_source(tfds_dir: Path) -> None:
    config = configure(source="tfds:tiny_pictures", data_dir=str(tfds_dir), validation_fraction=0.2)
    train, validation = (data.open_source(config.data, split) for split in ("train", "validation"))
    assert len(train) == 4 and len(validation) == 1
    levels = [int(source.image(i)[0, 0, 0]) for source in (train, validation) for i in range(len(source))]
    assert sorted(levels) == list(range(5))
    assert train.image(0).shape == (32, 32, 3)
    assert len(batches(config, train, 2)) == 2


def test_tfds_record_damaged_in_the_middle_is_replaced(tfds_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = sources.TFDSSource("tiny_pictures", "train", tfds_dir, 0.2)
    file = next(tfds_dir.rglob("*.tfrecord*"))
    whole = file.read_bytes()
    offset, length = source._records._span[0]
    file.write_bytes(whole[:offset] + b"\xff" * length + whole[offset + length :])
    try:
        assert len(batches(configure(), source, 3)) == 3
    finally:
        file.write_bytes(whole)
    told = [record.message for record in caplog.records if record.name == "tcp_tf.data"]
    assert len(told) == 1 and told[0].startswith("tfds:tiny_pictures: number 0 is replaced")


def test_tfds_data_that_cannot_be_had(tfds_dir: Path) -> None:
    with pytest.raises(ValueError, match="data.source: tfds:no_such_pictures is unknown to TFDS") as caught:
        sources.TFDSSource("no_such_pictures", "train", tfds_dir)
    assert "\n" not in str(caught.value)
    record = next(tfds_dir.rglob("*.tfrecord*"))
    whole = record.read_bytes()
    record.write_bytes(whole[:-10])
    try:
        with pytest.raises(ValueError, match="is damaged or cut off at byte"):
            sources.TFDSSource("tiny_pictures", "train", tfds_dir)
    finally:
        record.write_bytes(whole)
