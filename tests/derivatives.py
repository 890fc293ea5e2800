"""How operations with gradients of their own are compared with TensorFlow's."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf


def draw(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_normal(shape, [seed, len(shape)])


def derivatives(function: Callable[..., tf.Tensor], *inputs: tf.Tensor) -> list[tf.Tensor]:
    """The result; the gradients of the sum of its cubes; and those of the sum of their squares."""
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            result = function(*inputs)
            total = tf.reduce_sum(result**3)
        first = inner.gradient(total, inputs)
        squares = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
    return [result, *first, *outer.gradient(squares, inputs)]


def assert_same(ours: list[tf.Tensor], plain: list[tf.Tensor]) -> None:
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain):
        assert float(tf.norm(a - b)) < 1e-5 * float(tf.norm(b))
