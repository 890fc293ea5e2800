"""Features of Keras's own InceptionV3, for the Frechet (FID) and kernel (KID) distance between sets of pictures.

They are the 2048 averages of its last layer before the classes, with ImageNet weights. Published FIDs use another port
of that network and other resizing, and tens of thousands of pictures: compare ours only with each other.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

SIDE = 299  # px, the network's input
BATCH = 16


class InceptionUnavailable(ValueError):
    """The weights cannot be had; one line that says why."""


def load(weights: str = "keras") -> keras.Model:
    """InceptionV3 without its classifier.

    Args:
        weights: `keras` downloads Keras's ImageNet weights (or finds them in its cache); else the path of such a file.
    Raises:
        InceptionUnavailable: there are none, or they do not fit.
    """
    if weights != "keras" and not Path(weights).is_file():
        raise InceptionUnavailable(f"no InceptionV3 weights: {weights} is not a file")
    try:
        source = "imagenet" if weights == "keras" else weights
        return keras.applications.InceptionV3(include_top=False, pooling="avg", weights=source)
    except Exception as error:  # no network, no disk, a damaged file, other layers: each with a class of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InceptionUnavailable(f"no InceptionV3 weights from {weights}: {reason[:200]}") from error


def features(network: keras.Model, pictures: np.ndarray) -> np.ndarray:
    """float32 [N, H, W, 3] in [-1, 1] -> [N, 2048]."""

    @tf.function
    def run(batch: tf.Tensor) -> tf.Tensor:
        return network(tf.image.resize(batch, [SIDE, SIDE]), training=False)

    parts = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        filled = np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch), axis=0)])
        parts.append(run(tf.constant(filled, tf.float32)).numpy()[: len(batch)])
    return np.concatenate(parts)
