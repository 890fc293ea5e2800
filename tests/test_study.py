"""The study: what it trains, that it goes on where it stopped, and that its page says what the records say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import gallery, photographs, study, study_report
from benchmarks.study import Training
from tcp_tf import config as configuration
from tcp_tf.pairs import Pairs

pytestmark = pytest.mark.one_stack


def test_what_is_trained() -> None:
    every = study.trainings()
    assert len(every) == len(set(every)) == 12
    assert [training for training in every if training.seed > 0] == every[2:6]
    assert sorted({training.name for training in every[:6]}) == list(study.MAIN_PAIR)
    published = configuration.load(study.ROOT / "configs" / "sa_quickstart.yaml")
    assert configuration.load(study.BASE, study.OBJECTIVES["sa"]) == published
    baseline = configuration.load(study.BASE, Training("sa", 2).overrides())
    assert baseline.seed == 2 and baseline.loss.weights == published.loss.weights
    for training in every:
        weights = configuration.load(study.BASE, training.overrides()).loss.weights
        objective, _, strategy = training.name.partition("/")
        assert (weights["g/code_consistency/content"] > 0) == (objective in ("cc", "tcp"))
        assert (weights["g/content_alignment"] > 0) == (objective in ("ca", "tcp")) == bool(strategy)
        assert training.strategies == ((strategy,) if strategy else study.STRATEGIES)


def test_where_a_training_is_judged() -> None:
    assert study.stops(16, 4) == [4, 8, 12, 16]
    assert study.stops(10, 4) == [4, 8, 10]
    assert study.stops(3, 3) == [3]


def record(name: str, seed: int, level: float) -> dict[str, Any]:
    measures = {
        measure: {"mean": level + 0.01 * seed, "standard_error": 0.5, "count": 9}
        for measure, *_ in study_report.COLUMNS
    }
    for extra in ("content_image/psnr", "style_image/psnr", "colour_transfer/psnr", "true_swap/layout_error",
                  "pasted/seam_to_truth", *(measure for measure, *_ in study_report.WITHOUT_TRUTH)):  # fmt: skip
        measures.setdefault(extra, {"mean": 7.25, "standard_error": 0.1, "count": 9})
    curve = [{"kimg": kimg, "measures": measures} for kimg in (4, 8)]
    strategies = Training(name, seed).strategies
    reports = {strategy: {"measures": copy.deepcopy(measures)} for strategy in strategies}
    told = {"kimg": 8, "hours": 0.2, "commit": "abc", "machine": "a machine", "overrides": []}
    return {"name": name, "seed": seed, "curve": curve, "reports": reports, **told}


def test_the_page_says_what_the_records_say(tmp_path: Path) -> None:
    records = [record("sa", seed, 2.0) for seed in (0, 1, 2)] + [record("tcp/style_map", s, 1.0) for s in (0, 1, 2)]
    records.append(record("ca/encoder_features", 0, 3.0))
    for each in records:
        (tmp_path / f"{each['name'].replace('/', '-')}-{each['seed']}.json").write_text(json.dumps(each))
    assert study_report.read(tmp_path) == sorted(records, key=lambda r: (r["name"], r["seed"]))
    text = study_report.page(records, [])
    # Means of 2.00, 2.01, 2.02 and 1.00, 1.01, 1.02; standard error 0.01 / sqrt(3) each, 0.00816 of the difference.
    assert "| layout error | 2.010 ± 0.006 | 1.010 ± 0.006 | -49.8% | +122.5 |" in text
    assert "| swap, dB | 2.01 ± 0.01 | 1.01 ± 0.01 | -1.00 dB | -122.5 |" in text
    assert "| + content alignment | `encoder_features` | 1 | 3.00 ± 0.50 |" in text
    assert "the colour transfer gives 7.25 dB" in text
    assert text.count("| Swapping Autoencoder | `") == 3  # with every blending
    assert "Not yet trained." in study_report.page(records[:3], [])
    asides = [study_report.Aside(tmp_path, "Elsewhere", "Other pictures.", study_report.WITHOUT_TRUTH)]
    section = study_report.page(records, asides).partition("## Elsewhere")[2]
    assert section.count("| Swapping Autoencoder | `") == 3 and "| `ca/encoder_features` | 0 |" in section
    assert "| + content alignment | `encoder_features` | 1 | 3.00 ± 0.50 | 7.2500 ± 0.1000 |" in section
    assert "Nowhere" not in study_report.page(records, [asides[0]._replace(records=tmp_path / "none", title="Nowhere")])
    assert study_report.main(["--records", str(tmp_path / "none")]) == 2


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, float]] = []
    allowed = 3

    def train(training: Training, options: Any, directory: Path, kimg: float) -> None:
        if len(trained) == allowed:
            raise study.NotEnded(f"{training.file_name} has not come to {kimg:g} kimg")
        assert directory == tmp_path / "runs" / training.file_name
        trained.append((training.file_name, kimg))

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "load_pairs", lambda *_: None)
    monkeypatch.setattr(study, "judge_curve", lambda *_: {"swap/psnr": {"mean": 1.0}})
    monkeypatch.setattr(study, "judge", lambda directory, strategies, pairs: dict.fromkeys(strategies))
    monkeypatch.setattr(study.publish, "training_hours", lambda directory: (4.0, 0.1))
    command = ["--only", *study.MAIN_PAIR, "--seeds", "0", "--kimg", "4", "--every", "2"]
    command += ["--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    assert study.main(command) == 2
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["sa-0.json"]
    allowed = 9
    assert study.main(command) == 0 and study.main(command) == 0
    assert trained == [("sa-0", 2.0), ("sa-0", 4.0), ("tcp-style_map-0", 2.0), ("tcp-style_map-0", 4.0)]
    written = json.loads((tmp_path / "records" / "tcp-style_map-0.json").read_text())
    assert [point["kimg"] for point in written["curve"]] == [2.0, 4.0] and list(written["reports"]) == ["style_map"]


def test_photographs_are_cut_into_overlapping_crops(tmp_path: Path) -> None:
    wide = Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (2, 1, 3)).reshape(256, 1, 3))
    cut = list(photographs.crops(wide.resize((384, 256))))
    assert {crop.size for crop in cut} == {(64, 64)}
    # 768 x 512 px: 11 x 7 crops of 128, 7 x 4 of 192
    assert len(cut) == 77 + 28
    np.testing.assert_array_equal(cut[0], cut[1])  # rows of the same height
    first, below = (np.asarray(cut[number], int)[:, 0, 0] for number in (0, 11))
    np.testing.assert_allclose(first[32:], below[:32], atol=2)
    assert photographs.main([str(tmp_path / "crops")]) == 0
    assert len(list((tmp_path / "crops").iterdir())) == 705


def test_the_gallery_goes_from_the_best_swap_to_the_worst() -> None:
    grey = np.zeros([5, 4, 4, 3], np.float32)
    errors = np.array([0.4, 0.1, 0.5, 0.2, 0.3], np.float32)
    swaps = grey + errors[:, None, None, None]
    truth: Any = SimpleNamespace(swaps=grey, edits=grey)
    pairs = Pairs(grey, grey[..., :1], truth)
    assert list(gallery.chosen(swaps, pairs, 3)) == [1, 4, 2]
    assert list(gallery.chosen(swaps, Pairs(grey, grey[..., :1], None), 3)) == [0, 1, 2]
    found: Any = SimpleNamespace(reconstruction=grey, swap=swaps, edit=grey)
    picture = gallery.gallery(pairs, [found, found], 3)
    columns, gaps = 3 + 2 + 2 + 4, 3  # mask, true edit, two edits
    assert picture.shape == (gallery.SCALE * 3 * 4, gallery.SCALE * (4 * columns + gallery.GAP * gaps), 3)
    left = gallery.SCALE * (4 * 3 + gallery.GAP + 4)
    assert [int(picture[gallery.SCALE * 4 * row, left, 0]) for row in range(3)] == [140, 166, 191]
