"""The model in the box is what its card says, and everything that a new user tries first takes it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import savedmodel
from tcp_tf import Editor, cli, evaluate, run_dir

ROOT = Path(__file__).resolve().parents[1]
MODEL, PICTURES = ROOT / "pretrained" / "scenes64", ROOT / "examples" / "pictures"


def test_it_is_small_and_its_card_holds_its_evaluation() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < 15e6
    report = json.loads((MODEL / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluate.table(report) in (MODEL / "README.md").read_text(encoding="utf-8")
    measures = report["measures"]
    best = max(measures[f"{name}/psnr"]["mean"] for name in ("content_image", "style_image", "colour_transfer"))
    assert measures["swap/psnr"]["mean"] > best + 2.0


def test_it_scores_what_its_card_says() -> None:
    autoencoder, config = run_dir.load_autoencoder(MODEL)
    written = json.loads((MODEL / "evaluation.json").read_text(encoding="utf-8"))["measures"]
    measured = evaluate.swap_report(autoencoder, config, config.train.evaluate_examples)["measures"]
    for name, measure in measured.items():
        assert measure["mean"] == pytest.approx(written[name]["mean"], abs=2e-3), name


@pytest.mark.one_stack
def test_the_commands_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the scene that comes with the project and on a photograph of 1,500 x 1,001 px."""
    wide = np.linspace(0, 1, 1500)[None, :, None] * np.array([200, 90, 40]) + np.linspace(0, 50, 1001)[:, None, None]
    Image.fromarray(wide.astype(np.uint8)).save(tmp_path / "photo.jpg", quality=95)
    painted = np.zeros((1001, 1500), np.uint8)
    painted[:400, 200:1200] = 255
    Image.fromarray(painted).save(tmp_path / "sky.png")
    for image, mask in (
        (PICTURES / "scene.png", PICTURES / "mask.png"),
        (tmp_path / "photo.jpg", tmp_path / "sky.png"),
    ):
        before = np.asarray(Image.open(image))
        common = ["--model", str(MODEL), "--style", str(PICTURES / "look.png"), "--output"]
        swapped, edited, strip = (tmp_path / f"{image.stem}-{name}.png" for name in ("swapped", "edited", "strip"))
        assert cli.main(["swap", "--content", str(image), *common, str(swapped)]) == 0
        edit = ["edit", "--image", str(image), "--mask", str(mask), "--preserve-background"]
        assert cli.main([*edit, *common, str(edited)]) == 0
        assert cli.main(["interpolate", "--image", str(image), *common, str(strip)]) == 0
        assert np.asarray(Image.open(swapped)).shape == np.asarray(Image.open(edited)).shape == before.shape
        outside = np.asarray(Image.open(mask)) == 0
        after = np.asarray(Image.open(edited))
        np.testing.assert_array_equal(after[outside], before[outside])
        assert np.abs(after[~outside].astype(int) - before[~outside]).mean() > 5
        assert Image.open(strip).height >= before.shape[0]


def test_the_editor_takes_it() -> None:
    edited = Editor.load(MODEL).masked_blend(PICTURES / "scene.png", PICTURES / "look.png", PICTURES / "mask.png")
    assert edited.size == (64, 64)


def test_it_can_be_exported(tmp_path: Path) -> None:
    """A model without noise has weights that no served function reads."""
    assert not run_dir.read_config(MODEL).model.noise
    exported = savedmodel.export(MODEL, tmp_path)
    files = PICTURES / "scene.png", PICTURES / "look.png", PICTURES / "mask.png"
    edits = [np.asarray(Editor.load(path).masked_blend(*files)) for path in (MODEL, tmp_path)]
    np.testing.assert_array_equal(*edits)
    served = tf.saved_model.load(str(exported))  # must stay alive while its signature is used
    inputs = zip(("image_bytes", "style_image_bytes", "mask_bytes"), files)
    answer = served.signatures["masked_blend_bytes"](
        **{name: tf.constant([file.read_bytes()]) for name, file in inputs}, strength=tf.constant([1.0])
    )
    picture = np.asarray(Image.open(io.BytesIO(answer["image_bytes"].numpy()[0])))
    assert np.abs(picture.astype(int) - edits[0]).max() <= 1  # rounding of half a level may go either way
