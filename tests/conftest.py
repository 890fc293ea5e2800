"""What every test shares: a quiet TensorFlow with two CPU devices that stand in for two GPUs, and fast tests first."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the expected numbers are those of a CPU
# As `train.py` has it, whose trainings are compared with those in these processes.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

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

    Where pytest-xdist hands whole files to several processes, files with slow tests come last, those that take longest
    first, which leaves the short ones to fill the end.
    """

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("slow")
        return (marker.args[0] if marker.args else 20.0) if marker else 0.0

    of_files: dict[Path, float] = defaultdict(float)
    for item in items:
        of_files[item.path] += seconds(item)
    in_files = config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ

    def key(item: pytest.Item) -> tuple[bool, float, bool]:
        whole = of_files[item.path] if in_files else 0.0
        return whole > 0, -whole, seconds(item) > 0

    items.sort(key=key)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The smallest experiment that has every part of the method: configs/tiny.yaml."""
    return load(ROOT / "configs" / "tiny.yaml")


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, once for all processes of pytest-xdist; nobody changes it afterwards."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    folder = factory.getbasetemp().parent / name  # the parent is all processes' own
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            begun = folder.with_suffix(".begun")
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of configs/tiny.yaml after four steps on twelve coloured pictures, from train.py itself."""
    pictures = _made_once(tmp_path_factory, "pictures", _draw_twelve)
    settings = [f"data.source=folder:{pictures / 'photos'}", f"data.data_dir={pictures / 'index'}"]
    # Four steps at the usual rate would leave pictures of so little contrast that mistakes in them were not seen.
    settings += ["data.validation_fraction=0.3", "train.grid_kimg=1", "optimizer.generator.learning_rate=0.0002"]
    settings += [f"train.{key}=0.016" for key in ("kimg", "tick_kimg", "checkpoint_kimg")]
    arguments = [part for setting in settings for part in ("--set", setting)]
    tiny = str(ROOT / "configs" / "tiny.yaml")

    def make(folder: Path) -> None:
        _run("train.py", "--config", tiny, "--run-dir", str(folder / "run"), "--no-evaluation", *arguments)

    return _made_once(tmp_path_factory, "tiny", make) / "run"


def _draw_twelve(folder: Path) -> None:
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((80, 64), Image.Resampling.BICUBIC).save(folder / "photos" / f"{number}.png")


@pytest.fixture(scope="session")
def tiny_export(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's base directory with version 1 of `tiny_run` in it, from `python -m export` itself."""

    def make(folder: Path) -> None:
        _run("-m", "export", "--run-dir", str(tiny_run), "--output", str(folder / "tcp"))

    return _made_once(tmp_path_factory, "models", make) / "tcp"


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
