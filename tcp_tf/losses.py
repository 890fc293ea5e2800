"""Arithmetic of the losses: tensors in, one value per example out, no weights.

Names follow the paths in the configuration. S: Swapping Autoencoder (arXiv 2007.00653); T: TCP (arXiv 2108.08674).
"""

from __future__ import annotations

import tensorflow as tf

ROUNDING = 1e-4  # of pictures in [-1, 1]: an eightieth of a level of 255


def _mean(values: tf.Tensor) -> tf.Tensor:
    """Mean over all axes but the first: `[N, ...]` -> `[N]`."""
    return tf.reduce_mean(values, axis=list(range(1, len(values.shape)))) if len(values.shape) > 1 else values


def l1(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Mean absolute difference, `[N, ...]`, `[N, ...]` -> `[N]`. Reconstruction (S eq. 1) and code consistency (T)."""
    return _mean(tf.abs(a - b))


def judged_real(logits: tf.Tensor) -> tf.Tensor:
    """`-log sigmoid(x) = softplus(-x)`: small where the critic says real. `[N, ...]` -> `[N]` (S eq. 2 and 4)."""
    return _mean(tf.nn.softplus(-logits))


def judged_fake(logits: tf.Tensor) -> tf.Tensor:
    """`-log(1 - sigmoid(x)) = softplus(x)`: small where the critic says generated. `[N, ...]` -> `[N]`."""
    return _mean(tf.nn.softplus(logits))


def content_alignment(hybrid: tf.Tensor, transfer: tf.Tensor, real: tf.Tensor, masks: tf.Tensor) -> tf.Tensor:
    """`L1(I_h M, I_g M) + L1(I_h (1 - M), I_A (1 - M))`: inside like the transfer, outside like the input (T).

    Args:
        hybrid, transfer, real: `[N, H, W, 3]`; I_h, I_g and I_A of the formula.
        masks: `[N, H, W, 1]`, M, 1 where the style is edited.
    Returns:
        `[N]`; both means are over the whole picture, so each side counts by its area.

    Where a mask covers all that a pixel depends on, hybrid and transfer are equal but for rounding, and the gradient of
    their distance would be the sign of that rounding. Differences below ROUNDING therefore count as none.
    """
    inside, outside = hybrid - transfer, hybrid - real
    inside = tf.where(tf.abs(inside) < ROUNDING, tf.zeros_like(inside), inside)
    return _mean(tf.abs(inside) * masks + tf.abs(outside) * (1.0 - masks))


def gradient_penalty(gradients: tf.Tensor) -> tf.Tensor:
    """`|grad|^2`, the sum of squares over everything but the example: `[N, ...]` -> `[N]` (R1, arXiv 1801.04406)."""
    return tf.reduce_sum(tf.square(gradients), axis=list(range(1, len(gradients.shape))))
