"""How near the pictures of a trained model in a coarser arithmetic come to those in float32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.datasets import scene_render
from tcp_tf.metrics import psnr
from tcp_tf.sources import scenes_size

LEAST_PSNR = 40.0  # dB, of edits on average: a difference of 2.5 of 255 levels, root mean square
PICTURES = 8
_FIRST_SEED = 2_600_000  # behind all splits of the data set, and behind the scenes of the web page


class Agreement(NamedTuple):
    """Peak signal-to-noise ratios in dB, infinite for equal pictures."""

    mean: float  # over the pictures
    least: float
    pictures: int


def measure(coarse: AutoEncoder, exact: AutoEncoder, side: int, pictures: int = PICTURES) -> Agreement:
    """Edits by two networks of the same weights, beside each other: everything that they can do is in an edit.

    Scenes that this package draws take the look of others on their left half. They are there for every model, and what
    rounding does to its numbers hardly depends on what its pictures show.

    Args:
        side: of the pictures in px, as in training.
    """
    mask = np.zeros([1, side, side, 1], np.float32)
    mask[:, :, : side // 2] = 1.0
    distances = []
    for number in range(pictures):
        scene, look = (_scene(_FIRST_SEED + 2 * number + i, side) for i in range(2))
        edits = [network.masked_blend(scene, look, tf.constant(mask)) for network in (coarse, exact)]
        distances.append(psnr(*(np.clip(edit, -1.0, 1.0) for edit in edits))[0])
    return Agreement(float(np.mean(distances)), float(np.min(distances)), pictures)


def _scene(seed: int, side: int) -> tf.Tensor:
    """A drawn scene `[1, side, side, 3]` in [-1, 1]."""
    drawn = scene_render.render(seed, seed, scenes_size(side))
    resized = tf.image.resize(drawn[None], [side, side], method="bicubic")
    return tf.clip_by_value(resized / 127.5 - 1.0, -1.0, 1.0)
