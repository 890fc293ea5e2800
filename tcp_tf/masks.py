"""Random region masks for content alignment, as a pure function of uniform numbers.

Each kind of mask is a score field over the unit square, thresholded at the quantile that gives the wanted area: the
area is what was drawn, whatever the shape, its place or how much of it the border cuts off. Which shapes the paper
used is not known to us; these four are our own choice (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import tensorflow as tf

# Uniform numbers per mask: area, kind, complement, then the shape's own.
SHAPE_NUMBERS = 13
NUMBERS = 3 + SHAPE_NUMBERS

STROKE_POINTS = 5
QUANTILE_GRID = 32  # the area is set on a grid of about this many cells a side


def _offsets(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor):
    """Coordinates relative to a random centre, along random axes, with a random aspect ratio of 1:3 to 3:1."""
    dx, dy = x - shape[:, 0, None, None], y - shape[:, 1, None, None]
    angle = shape[:, 2, None, None] * math.pi
    stretch = tf.exp((shape[:, 3, None, None] - 0.5) * math.log(3.0))
    along = dx * tf.cos(angle) + dy * tf.sin(angle)
    across = dy * tf.cos(angle) - dx * tf.sin(angle)
    return along * stretch, across / stretch


def rectangle(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """An upright rectangle around a random centre."""
    stretch = tf.exp((shape[:, 3, None, None] - 0.5) * math.log(3.0))
    return tf.maximum(tf.abs(x - shape[:, 0, None, None]) * stretch, tf.abs(y - shape[:, 1, None, None]) / stretch)


def ellipse(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """A turned ellipse around a random centre."""
    along, across = _offsets(shape, x, y)
    return tf.sqrt(along**2 + across**2)


def half_plane(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Everything on one side of a straight line of random direction."""
    angle = shape[:, 2, None, None] * (2.0 * math.pi)
    return x * tf.cos(angle) + y * tf.sin(angle)


def brush(shape: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """A thick stroke: the distance to a bent line through random points."""
    points = tf.reshape(shape[:, 3 : 3 + 2 * STROKE_POINTS], [-1, STROKE_POINTS, 2])
    distance = None
    for i in range(STROKE_POINTS - 1):
        ax, ay = points[:, i, 0, None, None], points[:, i, 1, None, None]
        bx, by = points[:, i + 1, 0, None, None], points[:, i + 1, 1, None, None]
        length = (bx - ax) ** 2 + (by - ay) ** 2 + 1e-6
        share = tf.clip_by_value(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0.0, 1.0)
        gap = tf.sqrt((x - ax - share * (bx - ax)) ** 2 + (y - ay - share * (by - ay)) ** 2)
        distance = gap if distance is None else tf.minimum(distance, gap)
    return distance


KINDS: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "rectangle": rectangle,
    "ellipse": ellipse,
    "brush": brush,
    "half_plane": half_plane,
}


def random_masks(
    uniform: tf.Tensor,
    height: int,
    width: int,
    kinds: Sequence[str] = tuple(KINDS),
    min_area: float = 0.1,
    max_area: float = 0.6,
    complement_probability: float = 0.5,
) -> tf.Tensor:
    """One binary mask per row of uniform numbers.

    Args:
        uniform: `[N, NUMBERS]` in [0, 1).
        height, width: of the masks in pixels.
        kinds: names out of `KINDS`, each equally likely.
        min_area, max_area: the share of the picture that a shape covers is uniform between them.
        complement_probability: how often the region outside the shape is taken instead.
    Returns:
        `[N, height, width, 1]` float32, 1 inside the region and 0 outside.
    Raises:
        ValueError: no kinds, or one that does not exist.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"mask kinds must be some of {sorted(KINDS)}, got {list(kinds)}")
    y = (tf.range(height, dtype=tf.float32)[None, :, None] + 0.5) / height
    x = (tf.range(width, dtype=tf.float32)[None, None, :] + 0.5) / width
    shape = uniform[:, 3:]
    full = [-1, height, width]
    zeros = tf.zeros_like(x) + tf.zeros_like(y)
    scores = tf.stack([tf.reshape(KINDS[kind](shape, x, y) + zeros, full) for kind in kinds], axis=1)  # N k H W
    choice = tf.minimum(tf.cast(uniform[:, 1] * len(kinds), tf.int32), len(kinds) - 1)
    score = tf.gather(scores, choice, axis=1, batch_dims=1)  # N H W

    step_y, step_x = max(1, height // QUANTILE_GRID), max(1, width // QUANTILE_GRID)
    coarse = score[:, step_y // 2 :: step_y, step_x // 2 :: step_x]
    cells = coarse.shape[1] * coarse.shape[2]
    ordered = tf.sort(tf.reshape(coarse, [-1, cells]), axis=1)
    area = min_area + (max_area - min_area) * uniform[:, 0]
    rank = tf.cast(tf.round(area * (cells - 1)), tf.int32)
    threshold = tf.gather(ordered, rank, axis=1, batch_dims=1)[:, None, None]  # N 1 1
    inside = tf.cast(score <= threshold, tf.float32)
    flip = tf.cast(uniform[:, 2] < complement_probability, tf.float32)[:, None, None]
    return tf.abs(inside - flip)[..., None]
