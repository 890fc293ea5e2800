"""Drawn scenes: determinism, the truth of swaps and region edits, reading back, and the TFDS builder's round trip."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tcp_tf.datasets import scene_layout, scene_look, scene_render, scene_shards
from tcp_tf.datasets.scene_render import REGION_KINDS

RECORDED_BLOCKS = [
    [82.0, 83.3, 85.1, 79.1],
    [91.0, 91.1, 87.0, 95.6],
    [109.3, 89.9, 88.0, 106.9],
    [94.4, 98.8, 104.6, 102.8],
]
RECORDED_AREAS = [1351, 0, 608, 0, 1226, 434, 113, 70, 294]


def _block_means(picture: np.ndarray, blocks: int) -> np.ndarray:
    side = picture.shape[0] // blocks
    return picture.reshape(blocks, side, blocks, side, -1).mean((1, 3))


def test_a_scene_never_changes():
    # Means over 4 x 4 blocks, recorded once. A tolerance, because sines differ in their last bit between platforms.
    recorded = np.array(RECORDED_BLOCKS, np.float64)
    np.testing.assert_allclose(_block_means(scene_render.render(7, 11, 64), 4).mean(-1), recorded, atol=1.0)
    areas = np.bincount(scene_layout.sample_layout(7, 64).ravel(), minlength=len(REGION_KINDS))
    np.testing.assert_allclose(areas, RECORDED_AREAS, atol=6)


def test_seeds_decide_everything_and_differ():
    assert np.array_equal(scene_render.render(3, 4, 32), scene_render.render(3, scene_look.sample_look(4), 32))
    layouts = {scene_layout.sample_layout(seed, 32).tobytes() for seed in range(300)}
    looks = {scene_look.sample_look(seed).base.tobytes() for seed in range(300)}
    assert len(layouts) == len(looks) == 300


@pytest.mark.parametrize("seed", [0, 5, 1_000_003])
def test_label_maps_agree_across_sizes(seed: int):
    small, large = scene_layout.sample_layout(seed, 64), scene_layout.sample_layout(seed, 256)
    assert small.dtype == np.uint8 and small.shape == (64, 64) and large.shape == (256, 256)
    assert large.max() < len(REGION_KINDS)
    assert np.mean(np.kron(small, np.ones((4, 4), np.uint8)) == large) > 0.96


def test_pictures_agree_across_sizes():
    for seed in range(5):
        small, large = scene_render.render(seed, seed, 64), scene_render.render(seed, seed, 256)
        assert np.abs(_block_means(large, 64) - small).mean() < 3.0


def test_every_kind_is_common_and_big_enough_to_learn():
    maps = np.stack([scene_layout.sample_layout(seed, 32) for seed in range(300)])
    for kind, name in enumerate(REGION_KINDS):
        shown = (maps == kind).any((1, 2)).mean()
        assert shown > 0.6, f"{name} is shown in {shown:.0%} of the layouts"
    assert all(((m == scene_layout.SKY).mean() > 0.1) for m in maps)


def test_texture_does_not_depend_on_layout():
    # Where two layouts show the same kind on the whole pixel, one look gives both the same colour.
    a, b = scene_render.coverage(1, 64), scene_render.coverage(2, 64)
    same = ((a == 1) & (b == 1)).any(0)
    pictures = scene_render.render(1, 9, 64), scene_render.render(2, 9, 64)
    assert same.mean() > 0.3
    assert np.array_equal(pictures[0][same], pictures[1][same])


def test_render_is_the_mosaic_of_kind_pictures():
    picture, kinds = scene_render.render(6, 8, 64), scene_render.kind_pictures(8, 64)
    shares = scene_render.coverage(6, 64)
    np.testing.assert_allclose(shares.sum(0), 1.0)
    np.testing.assert_allclose(np.einsum("khw,khwc->hwc", shares, kinds), picture, atol=1.5)


def test_render_takes_label_maps():
    np.testing.assert_array_equal(
        scene_render.render(scene_layout.sample_layout(5, 128), 1, 64), scene_render.render(5, 1, 64)
    )
    plain = scene_render.render(np.full((64, 64), 3, np.uint8), 1, 64)
    np.testing.assert_array_equal(plain, scene_render.kind_pictures(1, 64)[3])


def test_region_edit_changes_the_mask_and_nothing_else():
    mask = np.zeros((64, 64), np.float32)
    mask[10:40, 20:50] = 1
    edit = scene_render.render_region_edit(4, 1, 2, mask, 64)
    before, after = scene_render.render(4, 1, 64), scene_render.render(4, 2, 64)
    np.testing.assert_array_equal(edit[mask == 0], before[mask == 0])
    np.testing.assert_array_equal(edit[mask == 1], after[mask == 1])
    half = scene_render.render_region_edit(4, 1, 2, np.full((64, 64, 1), 0.5), 64)
    np.testing.assert_allclose(half, (before.astype(float) + after) / 2, atol=0.51)


def test_label_map_can_be_read_back():
    right = [
        np.mean(
            scene_render.read_label_map(scene_render.render(s, s + 50, 64), s + 50) == scene_layout.sample_layout(s, 64)
        )
        for s in range(20)
    ]
    assert np.mean(right) > 0.95 and np.min(right) > 0.90
    # The wrong look reads badly, so the measure means something.
    wrong = [
        np.mean(
            scene_render.read_label_map(scene_render.render(s, s + 50, 64), s + 51) == scene_layout.sample_layout(s, 64)
        )
        for s in range(20)
    ]
    assert np.mean(wrong) < 0.7


def test_copying_a_picture_is_a_bad_answer_to_a_swap():
    def psnr(a: np.ndarray, b: np.ndarray) -> float:
        return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))

    content, style = [], []
    for s in range(30):
        truth = scene_render.render(s, s + 1, 64)
        content.append(psnr(scene_render.render(s, s, 64), truth))
        style.append(psnr(scene_render.render(s + 1, s + 1, 64), truth))
    assert np.mean(content) < 14 and np.mean(style) < 16


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="-1"):
        scene_layout.sample_layout(-1, 64)
    with pytest.raises(ValueError, match="-2"):
        scene_look.sample_look(-2)
    with pytest.raises(ValueError, match="got 4"):
        scene_layout.sample_layout(0, 4)
    with pytest.raises(ValueError, match="kind 9"):
        scene_render.render(np.full((64, 64), 9, np.uint8), 0, 64)
    with pytest.raises(ValueError, match=r"\(32, 32, 1\)"):
        scene_render.render_region_edit(0, 0, 1, np.zeros((32, 32)), 64)


def test_workers_give_what_one_process_gives():
    count = 230
    alone = list(scene_shards.draw_many(8, 40, count, workers=1))
    assert list(scene_shards.draw_many(8, 40, count, workers=2)) == alone


def test_png_round_trip():
    import tensorflow as tf

    picture = scene_render.render(1, 2, 32)
    for array in (picture, picture[..., :1]):
        np.testing.assert_array_equal(tf.io.decode_png(scene_shards.encode_png(array)).numpy(), array)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    from tcp_tf.datasets import scenes

    config = scenes.ScenesConfig(name="tiny", size=16, train=7, validation=3, test=2)
    return config, str(tmp_path_factory.mktemp("tfds"))


def test_builder_round_trip_without_network(tiny, monkeypatch: pytest.MonkeyPatch):
    from tcp_tf.datasets import scenes

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"reached for the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    config, data_dir = tiny
    seeds: dict[str, set[int]] = {}
    for split, count in (("train", 7), ("validation", 3), ("test", 2)):
        arrays = scenes.load_arrays(config, split, data_dir)
        assert arrays["images"].shape == (count, 16, 16, 3) and arrays["label_maps"].shape == (count, 16, 16)
        assert arrays["images"].dtype == arrays["label_maps"].dtype == np.uint8
        seeds[split] = set(arrays["layout_seeds"].tolist()) | set(arrays["look_seeds"].tolist())
        for i in range(count):
            layout, look = int(arrays["layout_seeds"][i]), int(arrays["look_seeds"][i])
            np.testing.assert_array_equal(arrays["images"][i], scene_render.render(layout, look, 16))
            np.testing.assert_array_equal(arrays["label_maps"][i], scene_layout.sample_layout(layout, 16))
    assert not seeds["train"] & seeds["test"] and not seeds["train"] & seeds["validation"]
    assert not seeds["validation"] & seeds["test"]


def test_shipped_splits_are_disjoint():
    from tcp_tf.datasets import scenes

    for config in scenes.Scenes.BUILDER_CONFIGS:
        spans = sorted((first, first + getattr(config, split)) for split, first in scenes.FIRST_SEED.items())
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:]))


def test_prepare_is_idempotent_and_mends_half_a_data_set(tiny):
    from tcp_tf.datasets import scenes

    config, data_dir = tiny
    place = pathlib.Path(scenes.prepare(config, data_dir).data_dir)
    made = (place / "dataset_info.json").stat().st_mtime_ns
    scenes.prepare(config, data_dir)
    assert (place / "dataset_info.json").stat().st_mtime_ns == made
    next(place.glob("*train*")).unlink()
    assert len(scenes.load_arrays(config, "train", data_dir)["images"]) == 7
    (place / "dataset_info.json").unlink()
    assert len(scenes.load_arrays(config, "test", data_dir)["images"]) == 2
    assert json.loads((place / "dataset_info.json").read_text())["name"] == "scenes"
    assert not list(pathlib.Path(data_dir).glob(".unfinished-*"))


def test_unknown_size_and_split_are_named(tiny):
    from tcp_tf.datasets import scenes

    with pytest.raises(ValueError, match="got 65"):
        scenes.prepare(65, tiny[1])
    with pytest.raises(ValueError, match="'dev'"):
        scenes.load_arrays(64, "dev", tiny[1])


def test_grid_command(tmp_path: pathlib.Path):
    root = pathlib.Path(scene_render.__file__).parents[2]
    target = tmp_path / "grid.png"
    command = [sys.executable, "-m", "tcp_tf.datasets.scenes", "--grid", str(target)]
    command += ["--size", "16", "--rows", "2", "--columns", "3"]
    subprocess.run(command, check=True, cwd=root, env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2"))
    data = target.read_bytes()
    assert data[:4] == b"\x89PNG"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (3 * 18 + 2, 2 * 18 + 2)
