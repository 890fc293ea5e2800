"""Pure tensor maths without variables: normalisation, resampling, modulated convolution, crops, swap of pairs.

Everything is N H W C. Functions take and return tensors only; weights come in already scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Union

import numpy as np
import tensorflow as tf

from tcp_tf import target

SQRT2 = 2.0**0.5
EPSILON = 1e-8
FAST = (tf.float32, tf.bfloat16)  # what products on a CPU are quick at
LARGE = 2**22  # weights of a kernel: a pass over it counts beside the convolution
LARGE_FOR_FEW, FEW = 2**20, 2**10  # the same of a convolution to so few places
WEIGHTS_FROM, SIDE_TO = 2**19, 16  # of a kernel and of the maps that it meets, see `small_for`
CLUSTER_WIDTH = 0.05  # squared distance of colours at which a cluster's share falls to 1/e

Padding = tuple[int, int]
Side = Union[int, tf.Tensor]  # number of pixels, or a scalar tensor where it is not known yet


def normalize(codes: tf.Tensor) -> tf.Tensor:
    """Scales the last axis to unit L2 norm, `v * rsqrt(sum v^2 + 1e-8)`; the sum is taken in float32.

    Args:
        codes: `[..., C]`.
    Returns:
        `[..., C]` of the same dtype. A zero vector stays zero.
    """
    wide = tf.cast(codes, tf.float32)
    scale = tf.math.rsqrt(tf.reduce_sum(tf.square(wide), axis=-1, keepdims=True) + EPSILON)
    return tf.cast(wide * scale, codes.dtype)


def normalize_mean_square(style: tf.Tensor) -> tf.Tensor:
    """Scales the last axis to unit mean square, `s * rsqrt(mean s^2 + 1e-8)`: `[..., C]` -> `[..., C]`."""
    wide = tf.cast(style, tf.float32)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True) + EPSILON)
    return tf.cast(wide * scale, style.dtype)


def unit_mixture(weights: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """Weights whose mixture of vectors is what `normalize_mean_square` makes of the given weights' mixture.

    A mixture's mean square is a quadratic form of its weights, which are fewer than channels.

    Args:
        weights: `[N, H, W, R]`.
        vectors: `[N, R, C]`.
    Returns:
        `[N, H, W, R]`, of the dtype of the weights.
    """
    wide, shares = tf.cast(vectors, tf.float32), tf.cast(weights, tf.float32)
    products = tf.matmul(wide, wide, transpose_b=True) / vectors.shape[-1]  # N R R
    squares = tf.reduce_sum(tf.einsum("nhwr,nrs->nhws", shares, products) * shares, axis=-1, keepdims=True)
    return tf.cast(shares * tf.math.rsqrt(tf.maximum(squares, 0.0) + EPSILON), weights.dtype)


def pad(images: tf.Tensor, padding: Padding, mode: str = "CONSTANT") -> tf.Tensor:
    """Pads height and width by (before, after) pixels: `[N, H, W, C]` -> `[N, H + b + a, W + b + a, C]`."""
    if padding == (0, 0):
        return images
    return tf.pad(images, [[0, 0], padding, padding, [0, 0]], mode=mode)


def reflect(images: tf.Tensor, padding: Padding) -> tf.Tensor:
    """`pad` by reflection as one gather, which on a CPU takes a fraction of the time; its gradient does not.

    Args:
        images: `[N, H, W, C]`.
        padding: pixels (before, after) on both axes, fewer than there are.
    """
    height, width = spatial_shape(images)
    before, after = padding
    rows, columns = (side - 1 - tf.abs(side - 1 - tf.abs(tf.range(-before, side + after))) for side in (height, width))
    lines = tf.reshape(images, [-1, height * width, images.shape[3]])
    return tf.gather(lines, rows[:, None] * width + columns, axis=1)


def conv(images: tf.Tensor, kernel: tf.Tensor, padding: Padding = (0, 0)) -> tf.Tensor:
    """Convolution of stride 1 of maps padded with zeros, which are left to it: it makes no padded copy.

    Args:
        images: `[N, H, W, Cin]`.
        kernel: `[k, k, Cin, Cout]`.
        padding: as in `pad`.
    Returns:
        `[N, H + b + a - k + 1, ..., Cout]`.
    """
    half = kernel.shape[0] // 2
    if padding == (half, half) and kernel.shape[0] % 2:
        return tf.nn.conv2d(images, kernel, 1, padding="SAME")
    if padding == (0, 0):
        return tf.nn.conv2d(images, kernel, 1, padding="VALID")
    return tf.nn.conv2d(images, kernel, 1, padding=[[0, 0], list(padding), list(padding), [0, 0]])


def blur(images: tf.Tensor, taps: Sequence[float], padding: Padding, gain: float = 1.0, stride: int = 1) -> tf.Tensor:
    """Separable low-pass filter with zero padding, the same for every channel; optionally strided.

    Args:
        images: `[N, H, W, C]`.
        taps: one-dimensional filter, e.g. `[1, 3, 3, 1]`; made to sum to one in both directions, then times `gain`.
        padding: zeros (before, after) on both axes.
    Returns:
        `[N, (H + b + a - len(taps)) // stride + 1, ..., C]`.
    """
    line = np.asarray(taps, np.float64) / np.sum(taps)
    if target.xla():
        return _blur_by_shifts(images, line, padding, gain, stride)
    kernel = np.tile((np.outer(line, line) * gain)[:, :, None, None], (1, 1, images.shape[-1], 1))
    zeros = [[0, 0], list(padding), list(padding), [0, 0]]  # left to the convolution, which makes no padded copy
    maps = tf.nn.depthwise_conv2d(images, tf.constant(kernel, images.dtype), [1, stride, stride, 1], padding=zeros)
    # With oneDNN, TensorFlow makes one operation of this and a bias that follows at once, loses the padding on the way
    # and aborts the process.
    return tf.ensure_shape(maps, maps.shape)


def _blur_by_shifts(images: tf.Tensor, line: np.ndarray, padding: Padding, gain: float, stride: int) -> tf.Tensor:
    """`blur` as sums of shifted maps, down and then across: for XLA, whose depthwise convolution is slow."""
    maps = pad(images, padding)
    height, width = ((side - len(line)) // stride + 1 for side in maps.shape[1:3])
    weights = [tf.constant(weight * gain**0.5, images.dtype) for weight in line]
    rows = [slice(start, start + stride * (height - 1) + 1, stride) for start in range(len(line))]
    columns = [slice(start, start + stride * (width - 1) + 1, stride) for start in range(len(line))]
    maps = tf.add_n([weight * maps[:, part] for weight, part in zip(weights, rows)])
    return tf.add_n([weight * maps[:, :, part] for weight, part in zip(weights, columns)])


def upsample_bilinear(images: tf.Tensor) -> tf.Tensor:
    """Twice the height and width, bilinear with half-pixel centres and clamped edges: `[N, 2H, 2W, C]`."""
    if target.xla():
        return _upsample_by_shifts(images)
    height, width = spatial_shape(images)
    return resize_bilinear(images, 2 * height, 2 * width)


def _upsample_by_shifts(images: tf.Tensor) -> tf.Tensor:
    """`upsample_bilinear` as sums of shifted maps: of XLA's own resize, a pixel reads nine others instead of four."""
    for axis in (1, 2):
        side, shape = images.shape[axis], [-1, *images.shape[1:]]
        shape[axis] = 2 * side
        first, later = tf.split(images, [1, side - 1], axis)
        earlier, last = tf.split(images, [side - 1, 1], axis)
        before, after = tf.concat([first, earlier], axis), tf.concat([later, last], axis)
        both = [0.25 * before + 0.75 * images, 0.75 * images + 0.25 * after]
        images = tf.reshape(tf.stack(both, axis + 1), shape)
    return images


def resize_bilinear(images: tf.Tensor, height: Side, width: Side) -> tf.Tensor:
    """Bilinear resize with half-pixel centres, without antialiasing: `[N, H, W, C]` -> `[N, height, width, C]`."""
    return tf.cast(tf.image.resize(images, [height, width], method="bilinear"), images.dtype)


def batch_size(images: tf.Tensor) -> Side:
    """Length of the first axis: a Python number where it is known, a scalar tensor elsewhere."""
    return tf.shape(images)[0] if images.shape[0] is None else images.shape[0]


def spatial_shape(images: tf.Tensor) -> tuple[Side, Side]:
    """Height and width of `[N, H, W, C]`: Python numbers where they are known, scalar tensors elsewhere."""
    dynamic = tf.shape(images)
    return tuple(dynamic[axis] if images.shape[axis] is None else images.shape[axis] for axis in (1, 2))


def half_size(images: tf.Tensor) -> tf.Tensor:
    """Averages 2x2 blocks: `[N, H, W, C]` -> `[N, H/2, W/2, C]`."""
    return tf.nn.avg_pool2d(images, ksize=2, strides=2, padding="VALID")


def pyramid(images: tf.Tensor, levels: int) -> list[tf.Tensor]:
    """Area-averaged copies: level `l` of the returned `levels + 1` is `[N, H / 2^l, W / 2^l, C]`."""
    result = [images]
    for _ in range(levels):
        result.append(half_size(result[-1]))
    return result


def conv_down(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolution of stride 2 without padding; of a kernel that is large for the maps, on a CPU, one matrix product.

    TensorFlow's convolution brings a kernel into an order of its own at each call, the product reads it as it is.

    Args:
        images: `[N, H, W, Cin]`.
        kernel: `[k, k, Cin, Cout]`.
    Returns:
        `[N, (H - k) // 2 + 1, (W - k) // 2 + 1, Cout]`.
    """
    size, _, channels, filters = kernel.shape
    sides = spatial_shape(images)
    rows, columns = ((side - size) // 2 + 1 for side in sides)
    few = None not in images.shape[:3] and images.shape[0] * rows * columns <= FEW
    if math.prod(kernel.shape) < (LARGE_FOR_FEW if few else LARGE) or target.gpu():
        return tf.nn.conv2d(images, kernel, 2, padding="VALID")
    lines = (2 * tf.range(rows)[:, None] + tf.range(size))[:, None, :, None]
    places = (2 * tf.range(columns)[:, None] + tf.range(size))[None, :, None, :]
    pixels = tf.reshape(images, [-1, sides[0] * sides[1], channels])
    read = tf.gather(pixels, tf.reshape(lines * sides[1] + places, [-1]), axis=1)  # N (h w k k) Cin
    product = tf.matmul(tf.reshape(read, [-1, size * size * channels]), tf.reshape(kernel, [-1, filters]))
    return tf.reshape(product, [-1, rows, columns, filters])


def conv1x1_each(images: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
    """Convolution of 1x1 with a kernel of its own for each picture, or one for all.

    Args:
        images: `[N, H, W, Cin]`.
        kernels: `[N, Cin, Cout]` or `[1, Cin, Cout]`.
    Returns:
        `[N, H, W, Cout]`.
    """
    height, width = spatial_shape(images)
    pixels = tf.reshape(images, [-1, height * width, images.shape[3]])
    return tf.reshape(tf.matmul(pixels, kernels), [-1, height, width, kernels.shape[2]])


def conv_up(images: tf.Tensor, kernel: tf.Tensor, height: Side, width: Side) -> tf.Tensor:
    """Transposed convolution of stride 2.

    Args:
        images: `[N, h, w, Cin]`.
        kernel: `[k, k, Cout, Cin]`.
        height, width: of the result; (height - k) // 2 + 1 = h.
    Returns:
        `[N, height, width, Cout]`.
    """
    if small_for(images, kernel.shape):
        return overlapped(images, kernel, height, width, stride=2)
    return tf.nn.conv2d_transpose(
        images, kernel, [batch_size(images), height, width, kernel.shape[2]], strides=2, padding="VALID"
    )


def small_for(maps: tf.Tensor, kernel: Sequence[int]) -> bool:
    """Whether these maps are small beside a kernel of this shape, so that a matrix product serves both best.

    On a CPU, TensorFlow's transposed convolutions and kernels' gradients read the kernel anew for each picture: up to
    ten times as long as it takes to read a large one once.
    """
    sides = maps.shape[1:3].as_list()
    return (
        maps.dtype in FAST
        and math.prod(kernel) >= WEIGHTS_FROM
        and None not in sides
        and max(sides) <= SIDE_TO
        and not target.gpu()
    )


def overlapped(maps: tf.Tensor, kernel: tf.Tensor, height: int, width: int, stride: int) -> tf.Tensor:
    """Transposed convolution as one matrix product, whose results are summed where they overlap.

    Args:
        maps: `[N, h, w, Cin]`, h and w known.
        kernel: `[k, k, Cout, Cin]`.
        height, width: of the result; (height - k) // stride + 1 = h.
    Returns:
        `[N, height, width, Cout]`.
    """
    (rows, columns), (size, _, filters, channels) = maps.shape[1:3], kernel.shape
    products = tf.matmul(tf.reshape(maps, [-1, channels]), tf.reshape(kernel, [-1, channels]), transpose_b=True)
    taps = tf.reshape(products, [-1, rows, columns, size, size, filters])
    down, across = -(-height // stride), -(-width // stride)  # blocks of stride x stride pixels

    def every(row: int, column: int) -> tf.Tensor:
        """The pixels in this place of all blocks: `[N, down, across, Cout]`."""
        placed = []
        for i in range(row, size, stride):
            for j in range(column, size, stride):
                before = i // stride, j // stride
                after = down - rows - before[0], across - columns - before[1]
                placed.append(tf.pad(taps[:, :, :, i, j], [[0, 0], *zip(before, after), [0, 0]]))
        return tf.add_n(placed) if placed else tf.zeros_like(taps[:, :, :, 0, 0])  # where k < stride

    blocks = tf.stack([tf.stack([every(i, j) for j in range(stride)], axis=3) for i in range(stride)], axis=2)
    return tf.reshape(blocks, [-1, stride * down, stride * across, filters])[:, :height, :width]


def demodulated(kernel: tf.Tensor, output_axis: int, gain: float = 1.0, norm: float = 1.0) -> tf.Tensor:
    """Each filter of `gain w` at the same L2 norm, `norm gain w rsqrt(sum (gain w)^2 + 1e-8)`: same shape.

    The Swapping Autoencoder's variant of StyleGAN2's demodulation (arXiv 1912.04958, section 2.2): the style is
    normalised by itself and the kernel by itself, so the layer is an ordinary convolution of a scaled input. Both
    factors are here to spend no pass over a large kernel on them.
    """
    axes = [axis for axis in range(4) if axis != output_axis]
    wide = tf.cast(kernel, tf.float32)
    squares = gain**2 * tf.reduce_sum(tf.square(wide), axis=axes, keepdims=True)
    return tf.cast(wide * (norm * gain * tf.math.rsqrt(squares + EPSILON)), kernel.dtype)


def after(others: Sequence[tf.Tensor], *tensors: tf.Tensor) -> list[tf.Tensor]:
    """The same tensors, but not before the others are there.

    What is made of them takes no memory until then, and TensorFlow does not keep what it made of them earlier.
    """
    with tf.control_dependencies(others):
        return [tf.identity(tensor) for tensor in tensors]


def swap_pairs(codes: tf.Tensor) -> tf.Tensor:
    """Exchanges neighbours along the first axis, (0, 1, 2, 3) -> (1, 0, 3, 2): `[N, ...]`, N even, other axes known.

    Neighbours, because they stay on one replica however an even global batch is split, so that one replica and
    many swap the same pairs.
    """
    if codes.shape[0] is not None and codes.shape[0] % 2:
        raise ValueError(f"batch per replica must be even to swap pairs, got {codes.shape[0]}")
    batch = batch_size(codes)
    rest = codes.shape[1:].as_list()
    return tf.reshape(tf.reverse(tf.reshape(codes, [batch // 2, 2, *rest]), axis=[1]), [batch, *rest])


def interpolation_matrix(start: tf.Tensor, extent: tf.Tensor, source: int, target: int) -> tf.Tensor:
    """Rows of bilinear weights that sample `target` points from `[start, start + extent]` of a line of `source`.

    Args:
        start, extent: `[K]` in pixels; sample centres are `start + extent * (i + 0.5) / target - 0.5`, clamped to
            the line's first and last pixel (half-pixel convention). A negative extent mirrors.
    Returns:
        `[K, target, source]` float32; each row sums to one.
    """
    steps = (tf.range(target, dtype=tf.float32) + 0.5) / target
    centres = start[:, None] + extent[:, None] * steps[None, :] - 0.5  # K target
    centres = tf.clip_by_value(centres, 0.0, float(source - 1))
    distance = tf.abs(centres[:, :, None] - tf.range(source, dtype=tf.float32))  # K target source
    return tf.maximum(1.0 - distance, 0.0)


def crop_and_resize(images: tf.Tensor, boxes: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear crops as two small matrix products per image: differentiable, deterministic and XLA-compatible.

    Args:
        images: `[N, H, W, C]`.
        boxes: `[N, K, 4]` = (top, left, height, width) as fractions of the image's sides; a negative width with
            `left` at the right edge mirrors the crop.
        size: side of the square result in pixels.
    Returns:
        `[N, K, size, size, C]`.
    """
    height, width = images.shape[1], images.shape[2]
    batch, crops = -1 if images.shape[0] is None else images.shape[0], boxes.shape[1]
    flat = tf.reshape(tf.cast(boxes, tf.float32), [-1, 4])
    rows = interpolation_matrix(flat[:, 0] * height, flat[:, 2] * height, height, size)
    columns = interpolation_matrix(flat[:, 1] * width, flat[:, 3] * width, width, size)
    rows = tf.cast(tf.reshape(rows, [batch, crops * size, height]), images.dtype)  # N K*s H
    columns = tf.cast(tf.reshape(columns, [batch, crops, size, width]), images.dtype)  # N K s W
    channels = images.shape[3]
    lines = tf.matmul(rows, tf.reshape(images, [batch, height, width * channels]))  # N K*s W*C
    lines = tf.reshape(lines, [batch, crops, size, width, channels])
    return tf.einsum("nktw,nkswc->nkstc", columns, lines)  # N K s s C


def mix_colours(images: tf.Tensor, maps: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Blends each picture with affine maps of its colours that change smoothly from place to place.

    The maps are given on a grid over the picture and interpolated bilinearly, by weights whose squares sum to one:
    independent numbers on the grid give a field of the same variance everywhere.

    Args:
        images: `[N, H, W, 3]`.
        maps: `[N, G, G, 4, 3]`; a pixel's colour is a row times the first three rows, plus the fourth.
        shares: `[N]`, of the mapped colours in the blend.
    Returns:
        `[N, H, W, 3]`, clipped to [-1, 1].
    """
    height, width = images.shape[1], images.shape[2]
    start, extent = tf.zeros([1]), tf.fill([1], float(maps.shape[1]))
    rows, columns = (
        tf.math.l2_normalize(interpolation_matrix(start, extent, maps.shape[1], side)[0], axis=1)
        for side in (height, width)
    )
    # Whole planes of one number each, not a product of 1 x 3 and 3 x 3 for each pixel, which takes six times as long.
    field = tf.matmul(tf.matmul(rows, tf.transpose(maps, [0, 3, 4, 1, 2])), columns, transpose_b=True)  # N 4 3 H W
    colours = tf.transpose(images, [0, 3, 1, 2])[:, :, None]  # N 3 1 H W
    mapped = tf.reduce_sum(colours * field[:, :3], axis=1) + field[:, 3]
    return _blended(images, tf.transpose(mapped, [0, 2, 3, 1]), shares)


def mix_clusters(images: tf.Tensor, places: tf.Tensor, maps: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    """Blends each picture with affine maps of its colours, one for each cluster of them.

    A cluster is what is near the mean colour of 3x3 pixels somewhere in the picture. A pixel belongs to all of them,
    to each by a softmax of its colour's squared distance, so that regions are mapped one by one wherever they lie.

    Args:
        images: `[N, H, W, 3]` in [-1, 1].
        places: `[N, K]` in [0, 1), where clusters have their centres: counted along the rows, as shares of all pixels.
        maps: `[N, K, 4, 3]`; a colour's difference to the centre is a row times the first three rows, plus the fourth.
        shares: `[N]`, of the mapped colours in the blend.
    Returns:
        `[N, H, W, 3]`, clipped to [-1, 1].
    """
    batch, height, width, _ = images.shape
    colours, means = (tf.reshape(x, [batch, -1, 3]) for x in (images, tf.nn.avg_pool2d(images, 3, 1, "SAME")))
    centres = tf.gather(means, tf.cast(places * (height * width), tf.int32), batch_dims=1)  # N K 3
    near = 2.0 * tf.matmul(colours, centres, transpose_b=True) - tf.reduce_sum(centres**2, axis=-1)[:, None]
    membership = tf.nn.softmax(near / CLUSTER_WIDTH)  # N HW K
    offsets = maps[..., 3, :] - tf.einsum("nkd,nkdc->nkc", centres, maps[..., :3, :])
    by_cluster = tf.einsum("npd,nkdc->npkc", colours, maps[..., :3, :]) + offsets[:, None]
    mapped = tf.reshape(tf.reduce_sum(membership[..., None] * by_cluster, axis=2), images.shape)
    return _blended(images, mapped, shares)


def _blended(images: tf.Tensor, mapped: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    share = shares[:, None, None, None]
    return tf.clip_by_value((1.0 - share) * images + share * mapped, -1.0, 1.0)
