"""A published model is the run's averages, small, with a card that tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tcp_tf import evaluate, publish, run_dir


@pytest.fixture(scope="module")
def published(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("published") / "model"
    assert publish.main(["--run-dir", str(tiny_run), "--output", str(output), "--note", "Made by a test."]) == 0
    return output


def test_it_is_the_same_model_and_nothing_else(tiny_run: Path, published: Path) -> None:
    before, config = run_dir.load_autoencoder(tiny_run)
    after, published_config = run_dir.load_autoencoder(published)
    assert published_config == config
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(before.swap(images, images[::-1]), after.swap(images, images[::-1]))
    parameters = sum(int(np.prod(v.shape)) for v in after.encoder.weights + after.generator.weights)
    size = sum(file.stat().st_size for file in published.rglob("*") if file.is_file())
    assert size < 1.05 * 4 * parameters + 100_000


def test_the_card_is_what_the_evaluation_says(published: Path) -> None:
    autoencoder, config = run_dir.load_autoencoder(published)
    table = evaluate.table(evaluate.full_report(autoencoder, config, config.train.evaluate_examples))
    card = (published / "README.md").read_text(encoding="utf-8")
    assert table in card
    assert "Made by a test." in card and "0.016 kimg" in card
    assert "reconstruction/psnr" in json.loads((published / "evaluation.json").read_text(encoding="utf-8"))["measures"]


def test_nothing_is_overwritten_or_left_half_written(
    tiny_run: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert publish.main(["--run-dir", str(tiny_run), "--output", str(published)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert publish.main(["--run-dir", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_hours_are_those_of_the_training(tmp_path: Path) -> None:
    lines = [{"kimg": 36.0, "images_per_second": 10.0}, {"kimg": 108.0, "images_per_second": 20.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert publish.training_hours(tmp_path) == (108.0, 2.0)
