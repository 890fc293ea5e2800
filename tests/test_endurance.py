"""Trainings that are killed, damaged, moved to other devices or data, or diverge, and go on.

Real processes that are killed are in `test_training.py`; here kills are played in one process, twenty of them in the
time of one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small import TINY, Noise, small_config

import train
from tcp_tf import callbacks, checkpoints, data, run_dir, sources, training
from tcp_tf.config import Config
from tcp_tf.model import TCP

TESTS = Path(__file__).resolve().parent
KILLS = 20


@pytest.mark.long
@pytest.mark.slow(60)
def test_twenty_kills_change_not_one_bit(tmp_path: Path) -> None:
    """Kills in steps, while a line is logged, while a checkpoint is written or an old one deleted, and damage."""
    command = [sys.executable, str(TESTS / "runners" / "chaos_runner.py"), str(tmp_path), str(KILLS), "0"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run(command, env=variables, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["variables"] > 250 and found["differing"] == []
    assert found["same_log"] and found["steps"] == list(range(1, 61))
    assert sum(found["moments"].values()) == KILLS and {"write", "on_tick", "replace"} <= set(found["moments"])
    assert found["passed_over"] >= 3
    kinds = ("data-00000-of-00001", "index", "json")
    assert found["files"] == sorted(["checkpoint", *(f"ckpt-{step}.{kind}" for step in (54, 57, 60) for kind in kinds)])


# ---- one training at a time, full disks


def test_a_second_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_dir.claimed(tmp_path / "run"):
        assert train.main(["--config", str(TINY), "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train.py: {tmp_path / 'run'}: process {os.getpid()} on ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert train.main(["--config", str(TINY), "--run-dir", str(tmp_path / "file" / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ") and str(tmp_path / "file") in line


# ---- other circumstances


def test_what_is_not_as_it_was_is_said() -> None:
    one, two = (tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)]) for count in (1, 2))
    before = training.facts(one, Noise(3, 16, ("a", "b", "c")))
    assert training.differences(before, before) == [] and training.differences({}, before) == []
    (line,) = training.differences(before, training.facts(two, Noise(3, 16, ("a", "b", "c"))))
    assert line.startswith("replicas 1 -> 2: ") and "cannot be equal bit for bit" in line
    for other in (Noise(3, 16, ("a", "b", "d")), Noise(3, 16, ("b", "a", "c")), Noise(4, 16, ("a", "b", "c", "d"))):
        (line,) = training.differences(before, training.facts(one, other))
        assert line.startswith(f"the training pictures have changed, from 3 to {len(other)} or in their names: ")
    joined = sources.JoinedSource([Noise(3, 16), Noise(2, 16)])
    assert (
        training.facts(one, joined)["fingerprint"]
        != training.facts(one, sources.JoinedSource([Noise(2, 16), Noise(3, 16)]))["fingerprint"]
    )
    assert training.facts(one, joined)["pictures"] == 6


def test_steps_of_another_size_are_refused(tmp_path: Path) -> None:
    """kimg are counted in steps; a run that has made none yet, such as a converted model, may choose."""
    run_dir.write_config(tmp_path, small_config())
    manager = run_dir.manager(tmp_path, tf.train.Checkpoint(), 3)
    lines: list[str] = []
    larger = small_config("data.batch_size=8")
    manager.save(checkpoint_number=0)
    training.check_resumption(tmp_path, larger, lines.append)
    assert lines == [f"{tmp_path}: goes on with data.batch_size 4 -> 8"]
    manager.save(checkpoint_number=7)
    with pytest.raises(ValueError, match=r"has 7 steps of another size \(data.batch_size 4 -> 8\)"):
        training.check_resumption(tmp_path, larger, lines.append)


# ---- divergence


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A training that is quick to trace, and whose pictures become NaN at step 6 in its first two orders."""

    def gradients(model: TCP, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], dict[str, tf.Tensor]]:
        level = tf.reduce_mean(batch["image"], axis=[1, 2, 3])
        sides = {"g": model.generator_side, "d": model.discriminator_side}
        found = {side: [tf.fill(v.shape, tf.reduce_mean(level)) for v in each] for side, each in sides.items()}
        return found, {"g/l1": level}

    original = data.training_dataset
    seeds = [training.reordered(small_config(), times).seed for times in (0, 1)]

    def spoilt(config: Config, source: Any, start: int = 0) -> tf.data.Dataset:
        def spoil(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            bad = (number == 5) & (config.seed in seeds)
            return {**batch, "image": batch["image"] + tf.where(bad, math.nan, 0.0)}

        return original(config, source, start).enumerate(start).map(spoil)

    monkeypatch.setattr(TCP, "gradients", gradients)
    monkeypatch.setattr(training.data, "training_dataset", spoilt)
    monkeypatch.setattr(training.sources, "open_source", lambda settings, split: Noise(30, 16))
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # which takes long
    settings = [f"train.{key}" for key in ("kimg=0.032", "checkpoint_kimg=0.008", "tick_kimg=0.004", "rollbacks=1")]
    yield small_config(*settings)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def test_orders_differ(diverging: Config) -> None:
    seeds = {training.reordered(diverging, times).seed for times in range(1000)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)
    assert training.reordered(diverging, 0) == diverging


@pytest.mark.slow
def test_rolling_back_is_bounded_and_takes_another_order(diverging: Config, tmp_path: Path) -> None:
    lines: list[str] = []
    good = tmp_path / "checkpoints" / "ckpt-4"
    message = f"g/l1, gradients/d, gradients/g not finite at step 6; last good checkpoint: {good}"
    with pytest.raises(callbacks.NonFiniteLoss, match=message):
        training.train(diverging, tmp_path, lines.append)
    assert lines == [f"{message}; goes back to it with another order of pictures, 1 of 1 times"]
    assert checkpoints.newest(tmp_path / "checkpoints") == str(good)
    more = diverging.model_copy(update={"train": diverging.train.model_copy(update={"rollbacks": 5})})
    del lines[:]
    model = training.train(more, tmp_path, lines.append)
    assert lines[:2] == [f"{tmp_path}: goes on with train.rollbacks 1 -> 5", f"resumed from {good}"]
    assert [line[len(message) :] for line in lines[2:]] == [
        f"; goes back to it with another order of pictures, {times} of 5 times" for times in (1, 2)
    ]
    assert model.step.numpy() == 8 and all(np.all(np.isfinite(weight)) for weight in model.weights)
    assert checkpoints.facts(str(tmp_path / "checkpoints" / "ckpt-8"))["rollbacks"] == 2
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 9))
