"""How operations with gradients of their own are compared with TensorFlow's."""

from __future__ import annotations

from typing import Callable

import tensorflow as tf

from tcp_tf import gradients


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


def plain_conv(maps: tf.Tensor, kernel: tf.Tensor, padding: int) -> tf.Tensor:
    return tf.nn.conv2d(tf.pad(maps, [[0, 0], [padding, padding], [padding, padding], [0, 0]]), kernel, 1, "VALID")


def assert_convolution(maps: tf.Tensor, kernel: tf.Tensor, padding: int) -> None:
    """`gradients.conv` and `gradients.kernel_gradient` have the derivatives of TensorFlow's."""
    expected = derivatives(lambda x, k: plain_conv(x, k, padding), maps, kernel)
    assert_same(derivatives(lambda x, k: gradients.conv(x, k, padding), maps, kernel), expected)
    pulls = draw(*expected[0].shape, seed=1)
    assert_same(
        derivatives(lambda x, g: gradients.kernel_gradient(x, g, padding, kernel.shape[0]), maps, pulls),
        derivatives(lambda x, g: plain_kernel_gradient(x, g, kernel, padding), maps, pulls),
    )


def plain_kernel_gradient(maps: tf.Tensor, pulls: tf.Tensor, kernel: tf.Tensor, padding: int) -> tf.Tensor:
    """TensorFlow's gradient of `sum(pulls * plain_conv(maps, kernel, padding))` with respect to the kernel."""
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(plain_conv(maps, kernel, padding) * pulls)
    return tape.gradient(total, kernel)


def assert_same(ours: list[tf.Tensor], plain: list[tf.Tensor]) -> None:
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain):
        assert float(tf.norm(a - b)) < 1e-5 * float(tf.norm(b))
