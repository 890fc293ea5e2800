"""Operations of networks that are being trained, where TensorFlow's own gradients cost more than they must.

Each gives what the plain operation gives, and the same gradient to any order. A network that is only asked does without
them, so that nothing of this stands in a served graph.
"""

from __future__ import annotations

import tensorflow as tf

from tcp_tf import ops, winograd

MATRIX_PRODUCTS_FROM = 64  # channels; with fewer, TensorFlow's gradient of a strided kernel is as fast


def leaky_relu(values: tf.Tensor, slope: float) -> tf.Tensor:
    """Leaky ReLU, differentiated by its result, which has the sign of what came in.

    What came in need not be kept, and a convolution, its bias and its activation can become one operation.
    """

    @tf.custom_gradient
    def activate(values: tf.Tensor):
        result = tf.nn.leaky_relu(values, slope)
        signs = tf.stop_gradient(result)
        return result, lambda gradient: tf.raw_ops.LeakyReluGrad(gradients=gradient, features=signs, alpha=slope)

    return activate(values)


def wide_conv(maps: tf.Tensor, kernel: tf.Tensor, padding: int, transposed: bool = False) -> tf.Tensor:
    """`winograd.conv`, with its arguments; so are its gradients."""

    @tf.custom_gradient
    def convolve(maps: tf.Tensor, kernel: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            large, small = (gradient, maps) if transposed else (maps, gradient)
            return (
                wide_conv(gradient, kernel, 2 - padding, not transposed),
                wide_kernel_gradient(large, small, 2 - padding if transposed else padding),
            )

        return winograd.conv(maps, kernel, padding, transposed), gradients

    return convolve(maps, kernel)


def wide_kernel_gradient(maps: tf.Tensor, pulls: tf.Tensor, padding: int) -> tf.Tensor:
    """`winograd.kernel_gradient`, with its arguments; its gradients are convolutions."""

    @tf.custom_gradient
    def correlate(maps: tf.Tensor, pulls: tf.Tensor):
        def gradients(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return wide_conv(pulls, kernel, 2 - padding, transposed=True), wide_conv(maps, kernel, padding)

        return winograd.kernel_gradient(maps, pulls, padding), gradients

    return correlate(maps, pulls)


@tf.custom_gradient
def conv_down(maps: tf.Tensor, kernel: tf.Tensor):
    """Convolution of stride 2 without padding.

    Args:
        maps: `[N, H, W, Cin]`, H and W known.
        kernel: `[k, k, Cin, Cout]`.
    Returns:
        `[N, (H - k) // 2 + 1, (W - k) // 2 + 1, Cout]`.
    """

    def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return conv_up(gradient, kernel, *maps.shape[1:3]), kernel_gradient(maps, gradient, kernel.shape[0])

    return tf.nn.conv2d(maps, kernel, 2, padding="VALID"), gradients


def conv_up(maps: tf.Tensor, kernel: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Transposed convolution of stride 2: the transpose of `conv_down`.

    Args:
        maps: `[N, h, w, Cin]`.
        kernel: `[k, k, Cout, Cin]`.
        height, width: of the result; (height - k) // 2 + 1 = h.
    Returns:
        `[N, height, width, Cout]`.
    """

    @tf.custom_gradient
    def convolve(maps: tf.Tensor, kernel: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return conv_down(gradient, kernel), kernel_gradient(gradient, maps, kernel.shape[0])

        return ops.conv_up(maps, kernel, height, width), gradients

    return convolve(maps, kernel)


def kernel_gradient(large: tf.Tensor, small: tf.Tensor, size: int) -> tf.Tensor:
    """The gradient of `sum(small * conv_down(large, kernel))` with respect to the kernel.

    On a CPU as one matrix product per place in the kernel: places of the same parity read the same quarter of the
    large maps, contiguous once the maps are sorted by parity. With wide maps that is three times as fast as oneDNN's.

    Args:
        large: `[N, H, W, Cl]`.
        small: `[N, h, w, Cs]`, h = (H - size) // 2 + 1.
    Returns:
        `[size, size, Cl, Cs]`.
    """
    channels, (height, width, filters) = large.shape[3], small.shape[1:]
    if channels < MATRIX_PRODUCTS_FROM or tf.config.list_logical_devices("GPU"):
        return tf.raw_ops.Conv2DBackpropFilter(
            input=large,
            filter_sizes=[size, size, channels, filters],
            out_backprop=small,
            strides=[1, 2, 2, 1],
            padding="VALID",
        )
    rows, columns = (2 * (side + (size - 1) // 2) for side in (height, width))
    missing = [[0, max(0, after - before)] for before, after in zip(large.shape[1:3], (rows, columns))]
    whole = tf.pad(large, [[0, 0], *missing, [0, 0]])[:, :rows, :columns]
    halved = tf.reshape(whole, [-1, rows // 2, 2, columns // 2, 2, channels])
    by_parity = tf.transpose(halved, [2, 4, 0, 1, 3, 5])  # 2 2 N rows/2 columns/2 Cl
    flat = tf.reshape(small, [-1, filters])
    taps = []
    for i in range(size):
        for j in range(size):
            part = by_parity[i % 2, j % 2, :, i // 2 : i // 2 + height, j // 2 : j // 2 + width]
            taps.append(tf.matmul(tf.reshape(part, [-1, channels]), flat, transpose_a=True))
    return tf.reshape(tf.stack(taps), [size, size, channels, filters])
