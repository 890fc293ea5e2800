"""The evaluation as a whole: fixed pairs, answers whose scores are known, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tcp_tf import answers, evaluate, inception, measures, pairs, run_dir, sources
from tcp_tf.answers import Answers
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.datasets import scene_render
from tcp_tf.pairs import Pairs


def with_data(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


@pytest.fixture(scope="module")
def scenes(tiny_config: Config) -> Pairs:
    return pairs.load_pairs(tiny_config, 12, "test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Config:
    """A folder of pictures of which nothing is known."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(40):
        picture = Image.fromarray(scene_render.render(seed, seed, 64)).resize((96, 72))
        picture.save(folder / f"{seed}.png")
    return with_data(tiny_config, source=f"folder:{folder}", validation_fraction=0.2)


def perfect(scenes: Pairs, swap: np.ndarray | None = None) -> Answers:
    """The answers of a model that makes no mistake, or only one with its swaps."""
    assert scenes.truth is not None
    swap = scenes.truth.swaps if swap is None else swap
    rng = np.random.default_rng(0)
    content, style = rng.normal(size=(len(scenes), 8, 8, 4)), rng.normal(size=(len(scenes), 16))
    return Answers(scenes.images, swap, scenes.truth.edits, content, style, content, pairs.styles_of(style))


def test_pairs_are_the_same_for_every_model(tiny_config: Config, scenes: Pairs) -> None:
    again = pairs.load_pairs(tiny_config.model_copy(update={"seed": 7}), 12, "test")
    np.testing.assert_array_equal(scenes.images, again.images)
    np.testing.assert_array_equal(scenes.masks, again.masks)
    np.testing.assert_array_equal(scenes.style_images[:-1], scenes.images[1:])
    np.testing.assert_array_equal(scenes.style_images[-1], scenes.images[0])
    fewer = pairs.load_pairs(tiny_config, 5, "test")
    np.testing.assert_array_equal(fewer.images, scenes.images[:5])


def test_truth_is_what_the_renderer_draws(scenes: Pairs, tiny_config: Config) -> None:
    truth = scenes.truth
    assert truth is not None
    source = sources.open_source(tiny_config.data, "test")
    assert isinstance(source, sources.ScenesSource)
    seeds = {picture.tobytes(): seed for picture, seed in zip(source.images, source.arrays["layout_seeds"])}
    shown = np.rint((scenes.images + 1) * 127.5).astype(np.uint8)
    layouts = [int(seeds[picture.tobytes()]) for picture in shown]
    for i in (0, 11):
        layout, look = layouts[i], layouts[(i + 1) % 12]  # a scene's look has the seed of its layout
        swap = scene_render.render(layout, look) / 127.5 - 1.0
        np.testing.assert_allclose(truth.swaps[i], swap, atol=1e-6)
        edit = scene_render.render_region_edit(layout, layout, look, scenes.masks[i]) / 127.5 - 1.0
        np.testing.assert_allclose(truth.edits[i], edit, atol=1e-6)
        kinds, style_kinds = (scene_render.sample_layout(seed, 64) for seed in (layout, look))
        np.testing.assert_array_equal(truth.kinds[i], kinds)
        np.testing.assert_array_equal(truth.shared[i], np.isin(kinds, np.unique(style_kinds)))
        np.testing.assert_allclose(truth.kind_pictures(i), scene_render.kind_pictures(look) / 127.5 - 1.0, atol=1e-6)


def test_truth_at_a_resolution_between_those_of_the_scenes(tiny_config: Config) -> None:
    config = with_data(tiny_config, resolution=48, preprocess="short_side_and_crop", load_size=56)
    loaded = pairs.load_pairs(config, 3, "validation")
    truth = loaded.truth
    assert truth is not None and truth.swaps.shape == (3, 48, 48, 3) and truth.kinds.shape == (3, 48, 48)
    patterns = truth.kind_pictures(1)
    flat = np.take_along_axis(patterns, truth.kinds[1][None, :, :, None].astype(int), axis=0)[0]
    off = np.abs(flat - truth.swaps[1]).mean(-1) > 0.1
    assert off.mean() < 0.15  # the labels lie on the pictures, but for mixed pixels at the edges


def test_a_model_without_mistakes_has_none(scenes: Pairs) -> None:
    found = measures.all_measures(perfect(scenes), scenes)
    best = 20 * np.log10(255 / 0.5)
    for name in ("reconstruction/psnr", "swap/psnr", "edit/background/psnr_to_input", "edit/inside/psnr_to_truth"):
        assert found[name]["mean"] == pytest.approx(best), name
    for name in ("swap/look_error", "swap/code_consistency/content", "swap/code_consistency/style_relative",
                 "edit/outside/l1_to_truth", "reconstruction/l1"):  # fmt: skip
        assert found[name]["mean"] == pytest.approx(0.0, abs=1e-6), name
    assert found["swap/ssim"]["mean"] == pytest.approx(1.0)
    assert found["edit/seam_to_truth"]["mean"] == pytest.approx(1.0)
    assert found["swap/layout_error"] == found["true_swap/layout_error"]
    assert found["swap/layout_error"]["mean"] < 0.12 < 0.3 < found["style_image/layout_error"]["mean"]
    assert found["swap/drift"]["mean"] < 0.05 < 0.8 < found["style_image/drift"]["mean"]
    assert all(measure["count"] == 12 for measure in found.values())


def test_a_model_that_answers_with_the_style_image_scores_as_the_style_image(scenes: Pairs) -> None:
    found = measures.all_measures(perfect(scenes, swap=scenes.style_images), scenes)
    for measure in ("psnr", "ssim", "layout_error", "drift", "look_error", "self_similarity_distance"):
        assert found[f"swap/{measure}"] == found[f"style_image/{measure}"]
    assert found["edit/seam_to_pasted"]["mean"] != 1.0


def test_batches_are_filled_up_and_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PIXELS_PER_BATCH", 3 * 4)
    shapes = []

    def run(pictures: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shapes.append(pictures.shape[0])
        return pictures, 2.0 * pictures[:, 0, 0]

    pictures = np.arange(7 * 4 * 3, dtype=np.float32).reshape(7, 2, 2, 3)
    same, corners = answers.in_batches(run, pictures)
    np.testing.assert_array_equal(same, pictures)
    np.testing.assert_array_equal(corners, 2.0 * pictures[:, 0, 0])
    assert shapes == [3, 3, 3]


def save(autoencoder: AutoEncoder, config: Config, folder: Path) -> None:
    """A run directory as a training leaves it, with nothing but the averages."""
    autoencoder.swap(tf.zeros([1, 64, 64, 3]), tf.zeros([1, 64, 64, 3]))
    run_dir.write_config(folder, config)
    averages = tf.train.Checkpoint(encoder_ema=autoencoder.encoder, generator_ema=autoencoder.generator)
    run_dir.manager(folder, tf.train.Checkpoint(model=averages), keep=1).save(checkpoint_number=3)


def test_the_short_report_agrees_with_the_full_one(tiny_config: Config, scenes: Pairs) -> None:
    autoencoder = AutoEncoder.from_config(tiny_config)
    short = evaluate.swap_report(autoencoder, tiny_config, pairs=scenes)
    full = evaluate.full_report(autoencoder, tiny_config, pairs=scenes)
    assert set(short["measures"]) == {
        f"{name}/psnr" for name in ("reconstruction", "swap", "content_image", "style_image", "colour_transfer")
    }
    for name, measure in short["measures"].items():
        assert full["measures"][name]["mean"] == pytest.approx(measure["mean"], abs=1e-4)


def test_the_command_line_on_scenes(tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(AutoEncoder.from_config(tiny_config), tiny_config, tmp_path / "run")
    target = tmp_path / "reports" / "report.json"
    command = ["--run-dir", str(tmp_path / "run"), "--json", str(target), "--inception", str(tmp_path / "none.h5")]
    assert evaluate.main(command) == 0
    report = json.loads(target.read_text())
    assert report["examples"] == tiny_config.train.evaluate_examples
    assert report["run_dir"] == "run" and report["checkpoint"] == "ckpt-3"
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert f"{report['measures']['swap/psnr']['mean']:.4f}" in lines["swap/psnr"] and "higher" in lines["swap/psnr"]
    assert "lower" in lines["swap/drift"]
    assert f"FID and KID are left out: no InceptionV3 weights: {tmp_path / 'none.h5'} is not a file" in printed


def test_data_of_which_nothing_is_known(photos: Config) -> None:
    report = evaluate.full_report(AutoEncoder.from_config(photos), photos, examples=6)
    found = report["measures"]
    assert report["examples"] == 6 and report["notes"] == []
    assert "edit/seam_to_pasted" in found and "swap/self_similarity_distance" in found
    assert not any("truth" in name or name.endswith(("drift", "layout_error")) for name in found)
    short = evaluate.swap_report(AutoEncoder.from_config(photos), photos, examples=6)
    assert set(short["measures"]) == {"reconstruction/psnr"}


def test_what_cannot_be_judged_is_refused_in_one_line(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--run-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path) in error
    with pytest.raises(ValueError, match="examples must be 2 or more, got 1"):
        pairs.load_pairs(tiny_config, 1)
    with pytest.raises(ValueError, match="nowhere"):
        pairs.load_pairs(tiny_config, 2, "nowhere")


@pytest.mark.slow
def test_fid_and_kid_with_weights_from_a_file(tmp_path: Path, scenes: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "BATCH", 4)
    keras.utils.set_random_seed(0)
    drawn = keras.applications.InceptionV3(include_top=False, pooling="avg", weights=None)
    drawn.save_weights(tmp_path / "inception.weights.h5")
    network = inception.load(str(tmp_path / "inception.weights.h5"))
    features = inception.features(network, scenes.images[:5])
    assert features.shape == (5, 2048)
    resized = tf.image.resize(scenes.images[:5], [299, 299])
    np.testing.assert_allclose(features, drawn(resized, training=False), atol=1e-5)
    found = measures.set_measures(perfect(scenes, swap=scenes.style_images), scenes, network)
    assert found["reconstruction/fid"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert found["swap/fid"]["mean"] == pytest.approx(0.0, abs=1e-6)  # the same pictures in another order
    assert found["swap/kid"]["mean"] <= 0.0
    (tmp_path / "damaged.h5").write_bytes(b"not weights")
    with pytest.raises(inception.InceptionUnavailable, match="damaged.h5"):
        inception.load(str(tmp_path / "damaged.h5"))
