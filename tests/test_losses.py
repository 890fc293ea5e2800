"""Each loss against a constant worked out by hand."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tcp_tf import losses

LN2 = 0.69314718


def same(values: tf.Tensor, expected: list) -> None:
    assert values.shape == (len(expected),), "one value per example"
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_l1_is_the_mean_per_example() -> None:
    same(losses.l1(tf.constant([[1.0, -2.0], [0.0, 0.0]]), tf.constant([[0.0, 0.0], [0.0, 3.0]])), [1.5, 1.5])
    same(losses.l1(tf.ones([2, 3, 4, 5]), tf.zeros([2, 3, 4, 5])), [1, 1])


def test_logistic_losses() -> None:
    logits = tf.constant([0.0, 2.0, -2.0])
    same(losses.judged_real(logits), [LN2, 0.12692801, 2.12692801])  # -log sigmoid(x)
    same(losses.judged_fake(logits), [LN2, 2.12692801, 0.12692801])  # -log(1 - sigmoid(x))
    same(losses.judged_real(tf.constant([[0.0, 2.0], [1000.0, -1000.0]])), [(LN2 + 0.12692801) / 2, 500])


def test_content_alignment() -> None:
    """Two pixels: the hybrid misses the transfer by 0.5 at the first and the input by 2 at the second."""
    grey = tf.ones([1, 1, 2, 3])
    hybrid, transfer, real = grey, 0.5 * grey, -grey
    masks = tf.constant([[[[1.0], [0.0]]]])
    same(losses.content_alignment(hybrid, transfer, real, masks), [(0.5 + 2) / 2])
    same(losses.content_alignment(hybrid, transfer, real, 1 - masks), [(2 + 0.5) / 2])
    same(losses.content_alignment(hybrid, transfer, real, tf.ones_like(masks)), [0.5])
    same(losses.content_alignment(hybrid, transfer, real, tf.zeros_like(masks)), [2])
    same(losses.content_alignment(hybrid, transfer, real, 0.25 * tf.ones_like(masks)), [0.25 * 0.5 + 0.75 * 2])


def test_gradient_penalty_is_the_squared_norm() -> None:
    same(losses.gradient_penalty(tf.reshape(tf.constant([3.0, 4.0, 0.0, 1.0]), [2, 1, 2, 1])), [25, 1])
