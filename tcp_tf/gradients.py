"""Operations of networks that are being trained, where TensorFlow's own gradients cost more than they must.

Each gives what the plain operation gives, and the same gradient to any order. A network that is only asked does without
them, so that nothing of this stands in a served graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Callable

import tensorflow as tf

from tcp_tf import ops, target, winograd

SIDE_FROM = 8  # of maps that are made smaller; else most of what their gradient is convolved from is zeros
FOLDED_TO = 2**20  # numbers of maps whose reflected edges are folded back by slices
MATRIX_PRODUCTS_FROM = 64  # channels; with fewer, TensorFlow's gradient of a strided kernel is as fast


def bias_add(values: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """`values + bias`, a bias per channel: `[..., C]` and `[C]`.

    On a CPU, TensorFlow's gradient takes longer than a matrix product with ones, and sums bfloat16 in bfloat16, where
    256 + 1 is 256: of maps of 256 x 256 nearly all is lost. The product is taken in float32.
    """
    if values.dtype == tf.float32 and (target.gpu() or target.xla()):
        return tf.nn.bias_add(values, bias)

    @tf.custom_gradient
    def add(values: tf.Tensor, bias: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return gradient, _summed(tf.reshape(gradient, [-1, bias.shape[0]]))[0]

        return tf.nn.bias_add(values, bias), gradients

    return add(values, bias)


def scaled(maps: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """`maps * factors`: `[N, H, W, C]`, H and W known, with a factor per channel, `[N, 1, 1, C]`, or per number."""
    if factors.shape[1:3] != (1, 1) or target.gpu() or target.xla():
        return maps * factors

    @tf.custom_gradient
    def multiply(maps: tf.Tensor, factors: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            height, width, channels = maps.shape[1:]
            each = tf.reshape(maps * gradient, [-1, height * width, channels])
            return scaled(gradient, factors), _summed(each)[:, None]

        return maps * factors, gradients

    return multiply(maps, factors)


def _summed(values: tf.Tensor) -> tf.Tensor:
    """Sums over the last axis but one: `[..., M, C]` -> `[..., 1, C]`, added up in float32.

    As a product with ones, which on a CPU takes a third of the time of TensorFlow's sum where M is large.
    """
    ones = tf.ones([*[1] * (len(values.shape) - 1), tf.shape(values)[-2]], values.dtype)
    return tf.matmul(ones, values)


def blur(
    images: tf.Tensor, taps: Sequence[float], padding: ops.Padding, gain: float = 1.0, stride: int = 1
) -> tf.Tensor:
    """`ops.blur` of `[N, H, W, C]`, H and W known, whose gradient is a filter again: `blur_transposed`.

    On a CPU, TensorFlow's gradient of a depthwise convolution takes three times as long as the convolution, and of
    bfloat16 up to 25 times.
    """
    if target.gpu() or target.xla():
        return ops.blur(images, taps, padding, gain, stride)
    height, width = images.shape[1:3]

    @tf.custom_gradient
    def apply(images: tf.Tensor):
        return ops.blur(images, taps, padding, gain, stride), (
            lambda gradient: blur_transposed(gradient, taps, padding, gain, stride, height, width)
        )

    return apply(images)


def blur_transposed(
    maps: tf.Tensor, taps: Sequence[float], padding: ops.Padding, gain: float, stride: int, height: int, width: int
) -> tf.Tensor:
    """The transpose of `blur`: `[N, h, w, C]`, what that makes of H x W, -> `[N, height, width, C]`, these H and W.

    The same filter from its last tap to its first, of the maps with `stride - 1` zeros after each pixel.
    """

    @tf.custom_gradient
    def apply(maps: tf.Tensor):
        rows, columns, channels = maps.shape[1:]
        # Zeros below each pixel, and to its right as channels of its own.
        zeros = [[0, 0], [0, stride - 1], [0, 0], [0, (stride - 1) * channels]]
        spread = tf.pad(tf.reshape(maps, [-1, 1, columns, channels]), zeros) if stride > 1 else maps
        spread = tf.reshape(spread, [-1, stride * rows, stride * columns, channels])
        before = len(taps) - 1 - padding[0]
        after = max(0, padding[0] + max(height - stride * rows, width - stride * columns))
        whole = ops.blur(spread, taps[::-1], (before, after), gain)
        return whole[:, :height, :width], lambda gradient: blur(gradient, taps, padding, gain, stride)

    return apply(maps)


def reflect(images: tf.Tensor, padding: ops.Padding) -> tf.Tensor:
    """`ops.reflect` of `[N, H, W, C]` with a gradient that costs less than a gather's.

    On a CPU, padding by reflection takes TensorFlow three times as long as the gather, and a gather's gradient takes
    longer than that padding's, which for small maps is slower than folding each axis by slices.
    """
    if target.gpu() or target.xla():
        return ops.pad(images, padding, "REFLECT")
    sides = [[0, 0], list(padding), list(padding), [0, 0]]
    numbers = images.shape.num_elements()
    small = numbers is not None and numbers <= FOLDED_TO and min(images.shape[1:3]) >= sum(padding) + 2

    @tf.custom_gradient
    def apply(images: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tf.Tensor:
            if small:
                return _folded(_folded(gradient, 2, padding), 1, padding)
            return tf.raw_ops.MirrorPadGrad(input=gradient, paddings=sides, mode="REFLECT")

        return ops.reflect(images, padding), gradients

    return apply(images)


def _folded(maps: tf.Tensor, axis: int, padding: ops.Padding) -> tf.Tensor:
    """The transpose of a reflection along one axis, of `before + after + 2` pixels or more without what it added.

    What lies beyond the first pixel is added to what lies as far on its other side, and so at the last.
    """
    before, after = padding
    length = maps.shape[axis] - before - after

    def part(start: int, end: int) -> tf.Tensor:
        """Counted from the first pixel that is not a reflection."""
        return maps[(slice(None),) * axis + (slice(before + start, before + end),)]

    near_first = part(1, before + 1) + tf.reverse(part(-before, 0), [axis])
    near_last = part(length - 1 - after, length - 1) + tf.reverse(part(length, length + after), [axis])
    between = part(before + 1, length - 1 - after)
    return tf.concat([part(0, 1), near_first, between, near_last, part(length - 1, length)], axis)


def upsample_bilinear(images: tf.Tensor) -> tf.Tensor:
    """`ops.upsample_bilinear` of `[N, H, W, C]`, all known, that keeps nothing for its gradient.

    TensorFlow's own gradient asks the images for their size, and so keeps them.
    """
    if target.xla():
        return ops.upsample_bilinear(images)

    @tf.custom_gradient
    def double(images: tf.Tensor):
        return ops.upsample_bilinear(images), lambda gradient: _upsampled_transposed(gradient)

    return double(images)


@tf.custom_gradient
def _upsampled_transposed(maps: tf.Tensor):
    """The transpose of `upsample_bilinear`: `[N, 2H, 2W, C]` -> `[N, H, W, C]`."""
    batch, height, width, channels = maps.shape
    with tf.control_dependencies([maps]):
        size = tf.raw_ops.Empty(shape=[batch, height // 2, width // 2, channels], dtype=maps.dtype)  # and nothing else
    summed = tf.raw_ops.ResizeBilinearGrad(
        grads=tf.cast(maps, tf.float32), original_image=size, half_pixel_centers=True
    )
    return summed, upsample_bilinear


def leaky_relu(values: tf.Tensor, slope: float, signs_only: bool = False) -> tf.Tensor:
    """Leaky ReLU, differentiated by its result, which has the sign of what came in.

    What came in need not be kept, and a convolution, its bias and its activation can become one operation. Where what
    follows does not keep the result either, `signs_only` keeps a byte for each number of it.
    """

    @tf.custom_gradient
    def activate(values: tf.Tensor):
        result = tf.nn.leaky_relu(values, slope)
        signs = result > 0 if signs_only else tf.stop_gradient(result)

        def gradients(gradient: tf.Tensor) -> tf.Tensor:
            features = tf.cast(ops.after([gradient], signs)[0], gradient.dtype) if signs_only else signs
            return tf.raw_ops.LeakyReluGrad(gradients=gradient, features=features, alpha=slope)

        return result, gradients

    return activate(values)


_kernels_first = True


@contextlib.contextmanager
def of_maps_alone() -> Iterator[None]:
    """No kernel's gradient is wanted of what is differentiated in here, and none is waited for."""
    global _kernels_first
    before, _kernels_first = _kernels_first, False
    try:
        yield
    finally:
        _kernels_first = before


def _then(of_kernel: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The gradient of a convolution's result, for that of its maps, once its kernel's is there.

    The maps can then be forgotten before those of the layer below are looked at, and what either gradient is made with
    is not in memory together. Otherwise kernels' gradients, which nothing waits for, come late, and keep all of it.
    """
    return ops.after([of_kernel], gradient)[0] if _kernels_first else gradient


def remade(
    prepare: Callable[..., tf.Tensor],
    convolve: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *inputs: tf.Tensor,
    kernel: tf.Tensor,
) -> tf.Tensor:
    """`convolve(prepare(*inputs), kernel)`, of which the prepared maps are not kept for the gradient.

    They are prepared once more when the gradient is due: for what costs little beside the convolution, and whose inputs
    are kept anyway. What else is traced for that, the convolution itself, has no use there and TensorFlow prunes it.
    """

    @tf.custom_gradient
    def apply(*arguments: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> list[tf.Tensor]:
            again = ops.after([gradient], *arguments)
            with tf.GradientTape() as tape:
                tape.watch(again)
                result = convolve(prepare(*again[:-1]), again[-1])
            return tape.gradient(result, again, gradient)

        return convolve(prepare(*arguments[:-1]), arguments[-1]), gradients

    return apply(*inputs, kernel)


def conv(maps: tf.Tensor, kernel: tf.Tensor, padding: int, transposed: bool = False) -> tf.Tensor:
    """Convolution of stride 1, by minimal filtering where that pays; its gradients are made in the same way.

    On a CPU, TensorFlow's gradient of narrow maps takes up to three times as long as the convolution that it is.

    Args:
        maps: `[N, H, W, Cin]`.
        kernel: `[k, k, Cin, Cout]`; if `transposed`, `[k, k, Cout, Cin]`, and read from its last tap to its first.
        padding: zeros on each side, less than k.
    Returns:
        `[N, H + 2 padding - k + 1, W + 2 padding - k + 1, Cout]`.
    """
    reach = kernel.shape[0] - 1

    @tf.custom_gradient
    def convolve(maps: tf.Tensor, kernel: tf.Tensor):
        def gradients(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            large, small = (gradient, maps) if transposed else (maps, gradient)
            of_kernel = kernel_gradient(large, small, reach - padding if transposed else padding, kernel.shape[0])
            return conv(_then(of_kernel, gradient), kernel, reach - padding, not transposed), of_kernel

        return winograd.fastest_conv(maps, kernel, padding, transposed), gradients

    sides = maps.shape[1:3].as_list()
    shrunk = 2 * padding < reach and None not in sides and min(sides) < SIDE_FROM
    by_tensorflow = (shrunk and not ops.small_for(maps, kernel.shape)) or target.gpu()
    if by_tensorflow and not winograd.pays(maps, kernel.shape, padding):
        return winograd.fastest_conv(maps, kernel, padding, transposed)
    return convolve(maps, kernel)


def kernel_gradient(maps: tf.Tensor, pulls: tf.Tensor, padding: int, size: int) -> tf.Tensor:
    """The gradient of `sum(pulls * conv(maps, kernel, padding))` with respect to the kernel.

    Args:
        maps: `[N, H, W, Cin]`.
        pulls: `[N, H + 2 padding - size + 1, W + 2 padding - size + 1, Cout]`.
    Returns:
        `[size, size, Cin, Cout]`.
    """

    @tf.custom_gradient
    def correlate(maps: tf.Tensor, pulls: tf.Tensor):
        def gradients(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return conv(pulls, kernel, size - 1 - padding, transposed=True), conv(maps, kernel, padding)

        return _kernel_gradient(maps, pulls, padding, size), gradients

    return correlate(maps, pulls)


def _kernel_gradient(maps: tf.Tensor, pulls: tf.Tensor, padding: int, size: int) -> tf.Tensor:
    shape = [size, size, maps.shape[3], pulls.shape[3]]
    if winograd.pays(maps, shape, padding, of_kernel=True):
        return winograd.kernel_gradient(maps, pulls, padding)
    if size == 1:
        rows = (tf.reshape(each, [-1, each.shape[3]]) for each in (maps, pulls))
        return tf.reshape(tf.matmul(*rows, transpose_a=True), shape)
    if ops.small_for(pulls, shape):
        return _by_rows(ops.pad(maps, (padding, padding)), pulls, size, stride=1)
    same = 2 * padding == size - 1
    return tf.raw_ops.Conv2DBackpropFilter(
        input=maps if same else ops.pad(maps, (padding, padding)),
        filter_sizes=shape,
        out_backprop=pulls,
        strides=[1, 1, 1, 1],
        padding="SAME" if same else "VALID",
    )


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
        of_kernel = strided_kernel_gradient(maps, gradient, kernel.shape[0])
        return conv_up(_then(of_kernel, gradient), kernel, *maps.shape[1:3]), of_kernel

    return ops.conv_down(maps, kernel), gradients


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
            of_kernel = strided_kernel_gradient(gradient, maps, kernel.shape[0])
            return conv_down(_then(of_kernel, gradient), kernel), of_kernel

        return ops.conv_up(maps, kernel, height, width), gradients

    return convolve(maps, kernel)


def strided_kernel_gradient(large: tf.Tensor, small: tf.Tensor, size: int) -> tf.Tensor:
    """The gradient of `sum(small * conv_down(large, kernel))` with respect to the kernel.

    Args:
        large: `[N, H, W, Cl]`.
        small: `[N, h, w, Cs]`, h = (H - size) // 2 + 1.
    Returns:
        `[size, size, Cl, Cs]`.
    """
    channels, filters = large.shape[3], small.shape[3]
    if channels < MATRIX_PRODUCTS_FROM or target.gpu():
        return tf.raw_ops.Conv2DBackpropFilter(
            input=large,
            filter_sizes=[size, size, channels, filters],
            out_backprop=small,
            strides=[1, 2, 2, 1],
            padding="VALID",
        )
    return _by_rows(large, small, size, stride=2)


def _by_rows(large: tf.Tensor, small: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """A kernel's gradient as one matrix product per row of it, of what that reads gathered from the large maps.

    With wide maps that is three times as fast on a CPU as oneDNN's of stride 2, and twice as fast as TensorFlow's of
    few positions.
    """
    (large,) = ops.after([small], large)  # else the first row is read, and kept, long before its gradient is due
    channels, (height, width, filters) = large.shape[3], small.shape[1:]
    batch, flat = tf.range(tf.shape(large)[0]), tf.reshape(small, [-1, filters])
    pixels = tf.reshape(large, [-1, channels])
    lines, places = stride * tf.range(height)[:, None, None], stride * tf.range(width)[:, None] + tf.range(size)
    rows: list[tf.Tensor] = []
    for i in range(size):
        index = (batch[:, None, None, None] * large.shape[1] + lines + i) * large.shape[2] + places  # N h w size
        with tf.control_dependencies(rows[-1:]):  # not all copies at a time
            read = tf.reshape(tf.gather(pixels, tf.reshape(index, [-1])), [-1, size * channels])
        rows.append(tf.matmul(read, flat, transpose_a=True))
    return tf.reshape(tf.stack(rows), [size, size, channels, filters])
