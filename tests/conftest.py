"""What every test shares: a quiet TensorFlow with two CPU devices that stand in for two GPUs, and fast tests first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the expected numbers are those of a CPU

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tcp_tf.config import Config, load

if TYPE_CHECKING:
    from serving.emulator import Address

ROOT = Path(__file__).resolve().parents[1]

# Must come before anything initialises TensorFlow, hence here and not in a fixture.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests last, otherwise in the order of the files.

    Where pytest-xdist hands whole files to several processes, files with slow tests come last, those with most of
    them first, which leaves the short ones to fill the end.
    """

    def is_slow(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None

    slow = Counter(item.path for item in items if is_slow(item))
    in_files = bool(config.getoption("dist", "no") != "no" or os.environ.get("PYTEST_XDIST_WORKER"))
    items.sort(key=lambda item: (item.path in slow, -slow[item.path], is_slow(item)) if in_files else is_slow(item))


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The smallest experiment that has every part of the method: configs/tiny.yaml."""
    return load(ROOT / "configs" / "tiny.yaml")


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of configs/tiny.yaml after four steps on twelve coloured pictures, from train.py itself."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((80, 64), Image.Resampling.BICUBIC).save(folder / "photos" / f"{number}.png")
    settings = [f"data.source=folder:{folder / 'photos'}", f"data.data_dir={folder / 'index'}"]
    # Four steps at the usual rate would leave pictures of so little contrast that mistakes in them were not seen.
    settings += ["data.validation_fraction=0.3", "train.grid_kimg=1", "optimizer.generator.learning_rate=0.0002"]
    settings += [f"train.{key}=0.016" for key in ("kimg", "tick_kimg", "checkpoint_kimg")]
    arguments = [part for setting in settings for part in ("--set", setting)]
    tiny = str(ROOT / "configs" / "tiny.yaml")
    _run("train.py", "--config", tiny, "--run-dir", str(folder / "run"), "--no-evaluation", *arguments)
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_export(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's base directory with version 1 of `tiny_run` in it, from `python -m export` itself."""
    base = tmp_path_factory.mktemp("models") / "tcp"
    _run("-m", "export", "--run-dir", str(tiny_run), "--output", str(base))
    return base


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Address]:
    """The emulator of TensorFlow Serving with `tiny_export`, batching on; or the server that TF_SERVING_HOST names."""
    from serving.emulator import emulator, real_server

    address = real_server()
    if address is not None:
        yield address
        return
    with emulator(request.getfixturevalue("tiny_export"), batching={}) as address:
        yield address
