"""The smallest models that have every part of the method, and what several tests do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tcp_tf import config as configuration
from tcp_tf import run_dir
from tcp_tf.config import Config

TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"
# 16 px, one halving: the least that the style head and the discriminators can work on.
SETTINGS = ("data.resolution=16", "model.downsamples=1")


def small_config(*overrides: str) -> Config:
    """configs/tiny.yaml at 16 px, with overrides such as "loss.g.l1=0"."""
    return configuration.load(TINY, [*SETTINGS, *overrides])


def small_batch(config: Config, seed: int = 0) -> dict[str, tf.Tensor]:
    """A batch of noise as training sees it."""
    size, side = config.data.batch_size, config.data.resolution
    images = tf.random.stateless_uniform([size, side, side, 3], [seed, 1], -1.0, 1.0)
    return {"image": images, "position": tf.range(size)}


class Noise:
    """A source of fixed noise pictures, as `sources` has them; `paths` as a folder's."""

    name = "noise"

    def __init__(self, count: int, side: int, paths: tuple[str, ...] = ()) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        return self.pictures[index]


def enliven(*networks: Any) -> None:
    """Draws every weight from a fixed seed, and biases and noise strengths too, whose start at zero hides mistakes."""
    for network in networks:
        for number, variable in enumerate(network.weights):
            drawn = tf.random.stateless_normal(variable.shape, [number, 7])
            if kind(variable) == "kernel":
                variable.assign(drawn)
            else:
                variable.assign_add(0.3 * drawn)


def checkpoint_arrays(run: Path, name: Optional[str] = None) -> dict[str, np.ndarray]:
    """Everything in a run's newest checkpoint, or this one, but the number of savings, which a stop adds to."""
    prefix = str(run / run_dir.CHECKPOINTS / name) if name else run_dir.latest_checkpoint(run)
    reader = tf.train.load_checkpoint(prefix)
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith(("save_counter", "_CHECK"))]
    return {name: reader.get_tensor(name) for name in names}


def kind(variable: Any) -> str:
    """The last part of a variable's name, without the path and number that Keras 2 puts around it."""
    return str(variable.name).split("/")[-1].split(":")[0]


def label(variable: Any) -> str:
    """A variable's name for messages: its path, which Keras 2 does not know."""
    return str(getattr(variable, "path", variable.name))


def relative_difference(ours: Any, expected: Any) -> float:
    """Norm of the difference over norm, of two arrays or two lists of arrays."""
    lists = [values if isinstance(values, (list, tuple)) else [values] for values in (ours, expected)]
    flat = [np.concatenate([np.ravel(np.asarray(value, np.float64)) for value in values]) for values in lists]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
