"""Convolution of 3x3 with a quarter of the multiplications: minimal filtering after Winograd.

Tiles of 4x4 outputs, F(4x4, 3x3) of Lavin and Gray (arXiv 1509.09308): a tile's 6x6 inputs and the 3x3 kernel are each
mapped to 36 numbers, multiplied number by number, summed over the input channels, and mapped back. Here the maps are
matrix products too, so any points of interpolation cost the same, and those that round best were searched for: the
error is some 2e-6 of the result's norm with 512 channels, where the usual points 0, 1, -1, 2, -2 leave 5e-6.

In bfloat16 it is 1.6e-2, because what is mapped is rounded again, where a plain convolution's is 2e-3. The pictures of
`pretrained/scenes64` with every convolution of 3x3 made so were at 50 dB (PSNR) from those in float32, and at 54 dB
with none.

Everything is N H W C, float32 or bfloat16. Do not differentiate through these: `gradients.conv` gives the same with the
gradients that are convolutions of this kind again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np
import tensorflow as tf

from tcp_tf import ops, target

TILE, TAPS = 4, 3  # outputs and kernel along one axis
REACH = TILE + TAPS - 1  # inputs of a tile along one axis
POINTS = (0.0, 0.65, -0.65, 1.55, -1.55)  # and infinity
CHANNELS_FROM = 128  # with fewer, the maps cost more than the multiplications saved
GRADIENT_CHANNELS_FROM = 48  # the same of a kernel's gradient: there TensorFlow's own is slower than its convolution
TILES_CHANNELS_FROM, TILES_GRADIENT_CHANNELS_FROM = 256, 128  # both of bfloat16 where tiles of it are multiplied
POSITIONS_FROM = 1024  # N H W; with fewer, the kernel's map does
TRANSPOSED_TO = 128  # filters; oneDNN's product with a factor of so few columns takes a quarter longer than by its rows
TOGETHER_TO = 128  # tiles; a kernel's gradient from so few takes less time as one product of many, in bfloat16 always
PART = 2**23  # numbers of the maps, at most, whose tiles are in memory at a time


def _powers(length: int) -> np.ndarray:
    """Values of the monomials at the points, `[REACH, length]`; at infinity only the last one counts."""
    finite = np.asarray(POINTS)[:, None] ** np.arange(length)
    return np.concatenate([finite, np.eye(length)[-1:]])


def _both_axes(matrix: np.ndarray) -> np.ndarray:
    return np.kron(matrix, matrix).astype(np.float32)


# A product of polynomials is interpolated from its values; filtering is the transpose of that (Toom and Cook).
INPUTS = _both_axes(np.linalg.inv(_powers(REACH)).T)  # 36 x 36
KERNEL = _both_axes(_powers(TAPS))  # 36 x 9
OUTPUTS = _both_axes(_powers(TILE).T)  # 16 x 36


_allowed = True


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Whatever is traced in here convolves directly: to compare with, and to count what a network asks for."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def pays(maps: tf.Tensor, kernel: Sequence[int], padding: int, of_kernel: bool = False) -> bool:
    """Whether this convolution of stride 1 is worth it here: wide 3x3 in `ops.FAST`, to large maps, on the CPU.

    Of the kernel the shape is asked for, `[k, k, Cin, Cout]`. With `of_kernel` its gradient is meant instead.

    What is not known of the maps' size before the function runs is taken to be large. A GPU's library has its own.
    """
    if maps.dtype == tf.bfloat16 and target.tiles():
        channels_from = TILES_GRADIENT_CHANNELS_FROM if of_kernel else TILES_CHANNELS_FROM
    else:
        channels_from = GRADIENT_CHANNELS_FROM if of_kernel else CHANNELS_FROM
    batch, *sides = maps.shape[:3]
    known = None if None in (batch, *sides) else batch * math.prod(side + 2 * padding - TAPS + 1 for side in sides)
    return (
        _allowed
        and tuple(kernel[:2]) == (TAPS, TAPS)
        and min(kernel[2:]) >= channels_from
        and maps.dtype in ops.FAST
        and (known is None or known >= POSITIONS_FROM)
        and not target.gpu()
    )


def conv(maps: tf.Tensor, kernel: tf.Tensor, padding: int, transposed: bool = False) -> tf.Tensor:
    """Convolution of stride 1.

    Args:
        maps: `[N, H, W, Cin]`.
        kernel: `[3, 3, Cin, Cout]`; if `transposed`, `[3, 3, Cout, Cin]`, and read from its last tap to its first.
        padding: zeros on each side, 0 to 2.
    Returns:
        `[N, H + 2 padding - 2, W + 2 padding - 2, Cout]`.
    """
    filters = kernel.shape[2 if transposed else 3]
    matrix = KERNEL[:, ::-1] if transposed else KERNEL
    with tf.control_dependencies([maps]):  # not all kernels at the start of a step
        if not transposed and filters <= TRANSPOSED_TO and maps.dtype == tf.float32:
            kernel, transposed = tf.transpose(kernel, [0, 1, 3, 2]), True
        factors = _mapped_kernel(matrix, tf.reshape(kernel, [TAPS * TAPS, -1]))
    factors = tf.reshape(factors, [REACH * REACH, *kernel.shape[2:]])

    def convolved(maps: tf.Tensor) -> tf.Tensor:
        height, width = (side + 2 * padding - TAPS + 1 for side in ops.spatial_shape(maps))
        rows, columns = _tiles(height), _tiles(width)
        products = tf.matmul(_inputs(maps, padding, rows, columns), factors, transpose_b=transposed)  # 36 tiles Cout
        results = tf.matmul(tf.constant(OUTPUTS, maps.dtype), tf.reshape(products, [REACH * REACH, -1]))
        pixels = tf.reshape(results, [-1, filters])  # 4 4 tiles
        lines, places = tf.range(height), tf.range(width)
        tiles = (lines // TILE)[:, None] * columns + places // TILE  # H W
        inside = (lines % TILE)[:, None] * TILE + places % TILE
        first = rows * columns * tf.range(ops.batch_size(maps))  # tile of each picture
        return tf.gather(pixels, first[:, None, None] + tiles + inside * _odd(ops.batch_size(maps) * rows * columns))

    if maps.shape[:3].num_elements() is None:
        return _in_turn_by_loop(convolved, maps, filters)
    return tf.concat(_in_turn(convolved, maps), axis=0)


def _mapped_kernel(matrix: np.ndarray, taps: tf.Tensor) -> tf.Tensor:
    """`matrix` times `[9, Cin Cout]`, in the dtype of the taps; the matrix itself is not rounded to bfloat16."""
    if taps.dtype == tf.float32:
        return tf.matmul(matrix, taps)
    rounded = tf.cast(matrix, taps.dtype)
    rest = tf.cast(matrix - tf.cast(rounded, tf.float32), taps.dtype)
    return tf.matmul(tf.concat([rounded, rest], axis=1), tf.concat([taps, taps], axis=0))


def fastest_conv(maps: tf.Tensor, kernel: tf.Tensor, padding: int, transposed: bool = False) -> tf.Tensor:
    """`conv` where it pays, else the same directly, for kernels of any size k: see there, with k in the place of 3.

    A transposed one to larger maps is `ops.overlapped` where its kernel is large beside the maps.
    """
    if pays(maps, kernel.shape, padding):
        return conv(maps, kernel, padding, transposed)
    reach = kernel.shape[0] - 1
    if transposed and 2 * padding > reach and ops.small_for(maps, kernel.shape):
        height, width = (side + reach for side in maps.shape[1:3])
        beyond = reach - padding
        whole = ops.overlapped(maps, kernel, height, width, stride=1)
        return whole[:, beyond : height - beyond, beyond : width - beyond]
    if transposed:
        with tf.control_dependencies([maps]):  # not all kernels at the start of a step
            kernel = tf.transpose(tf.reverse(kernel, axis=[0, 1]), [0, 1, 3, 2])
    return ops.conv(maps, kernel, padding=(padding, padding))


def kernel_gradient(maps: tf.Tensor, gradient: tf.Tensor, padding: int) -> tf.Tensor:
    """The gradient of `sum(gradient * conv(maps, kernel, padding))` with respect to the kernel.

    Args:
        maps: `[N, H, W, Cin]`.
        gradient: `[N, H + 2 padding - 2, W + 2 padding - 2, Cout]`.
    Returns:
        `[3, 3, Cin, Cout]`.
    """
    channels, filters = maps.shape[3], gradient.shape[3]
    # Else TensorFlow would keep the tiles that it made for the convolution, 9/4 of the maps.
    (maps,) = ops.after([gradient], maps)

    def factors(maps: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        rows, columns = (_tiles(side) for side in ops.spatial_shape(gradient))
        whole = tf.reshape(_pad(gradient, 0, TILE * rows, TILE * columns), [-1, filters])
        tiled = tf.gather(whole, _tiled(TILE, ops.batch_size(maps), rows, columns))  # 16 tiles Cout
        products = tf.matmul(tf.constant(OUTPUTS, maps.dtype), tf.reshape(tiled, [TILE * TILE, -1]), transpose_a=True)
        products = tf.reshape(products, [REACH * REACH, -1, filters])
        inputs, tiles = _inputs(maps, padding, rows, columns), ops.batch_size(maps) * rows * columns
        if padding and (maps.dtype == tf.bfloat16 or isinstance(tiles, int) and tiles <= TOGETHER_TO):
            # The tile that made their number odd is all padding on one side, and adds nothing.
            return tf.cast(tf.matmul(inputs, products, transpose_a=True), tf.float32)
        both = zip(tf.unstack(inputs), tf.unstack(products))
        # One by one: TensorFlow's product of many has another kernel, a quarter slower with a factor transposed.
        each = [tf.matmul(left[:tiles], right[:tiles], transpose_a=True) for left, right in both]
        return tf.cast(tf.stack(each), tf.float32)  # 36 Cin Cout

    parts = tf.add_n(_in_turn(factors, maps, gradient))
    kernel = tf.matmul(KERNEL, tf.reshape(parts, [REACH * REACH, -1]), transpose_a=True)
    return tf.cast(tf.reshape(kernel, [TAPS, TAPS, channels, filters]), maps.dtype)


def _in_turn(function: Callable[..., tf.Tensor], *batches: tf.Tensor) -> list[tf.Tensor]:
    """What the function makes of some pictures at a time, one part after the other: tiles take 9/4 of their maps."""
    first, widest = batches[0].shape, max(batch.shape[3] for batch in batches)
    if first[:3].num_elements() is None:  # of gradients, which nobody takes where memory is short
        return [function(*batches)]
    share = max(1, PART // (first[1] * first[2] * widest))
    results: list[tf.Tensor] = []
    for start in range(0, first[0], share):
        with tf.control_dependencies(results[-1:]):
            part = [tf.identity(batch[start : start + share]) for batch in batches]
        results.append(function(*part))
    return results


def _in_turn_by_loop(function: Callable[[tf.Tensor], tf.Tensor], maps: tf.Tensor, filters: int) -> tf.Tensor:
    """The same for maps whose number or size is not known before, as in served graphs, put together again."""
    batch, height, width, channels = tf.unstack(tf.shape(maps))
    share = tf.maximum(1, PART // (height * width * channels))
    parts = tf.maximum(1, -(-batch // share))  # an empty batch is one part
    results = tf.TensorArray(maps.dtype, parts, infer_shape=False, element_shape=[None, None, None, filters])

    def one(number: tf.Tensor, results: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        part = maps[number * share : (number + 1) * share]
        return number + 1, results.write(number, function(tf.ensure_shape(part, [None, *maps.shape[1:]])))

    def loop() -> tf.Tensor:
        return tf.while_loop(lambda number, _: number < parts, one, [0, results], parallel_iterations=1)[1].concat()

    # Where all fit into one part, nothing is copied to be put together.
    whole = tf.cond(parts > 1, loop, lambda: function(maps))
    return tf.ensure_shape(whole, [*maps.shape[:1], None, None, filters])


def _tiles(side: ops.Side) -> ops.Side:
    return -(-side // TILE)


def _inputs(maps: tf.Tensor, padding: int, rows: ops.Side, columns: ops.Side) -> tf.Tensor:
    """What the tiles of inputs are mapped to: `[36, _odd(N rows columns), Cin]`."""
    channels = maps.shape[3]
    height, width = TILE * rows + TAPS - 1, TILE * columns + TAPS - 1
    padded = tf.reshape(_pad(maps, padding, height, width), [-1, channels])
    tiles = tf.gather(padded, _tiled(REACH, ops.batch_size(maps), rows, columns))
    mapped = tf.matmul(tf.constant(INPUTS, maps.dtype), tf.reshape(tiles, [REACH * REACH, -1]))
    return tf.reshape(mapped, [REACH * REACH, -1, channels])


def _tiled(reach: int, batch: ops.Side, rows: ops.Side, columns: ops.Side) -> tf.Tensor:
    """Where the tiles' pixels are in maps that these just fill: `[reach^2, _odd(N rows columns)]`.

    In the tile that makes the number odd, all are the first pixel.
    """
    inside = tf.range(reach)
    height, width = TILE * rows + reach - TILE, TILE * columns + reach - TILE
    lines = inside[:, None] + TILE * tf.range(rows)  # reach rows
    places = inside[:, None] + TILE * tf.range(columns)  # reach columns
    lines = lines[:, None, :] + height * tf.range(batch)[:, None]  # reach N rows
    index = width * lines[:, None, :, :, None] + places[:, None, None, :]  # reach reach N rows columns
    tiles = batch * rows * columns
    return tf.pad(tf.reshape(index, [reach**2, tiles]), [[0, 0], [0, _odd(tiles) - tiles]])


def _odd(tiles: ops.Side) -> ops.Side:
    """As many tiles, or one more that stands for nothing, unless there are none: what is mapped is `[36, odd Cin]`.

    Channels and tiles are powers of two, mostly. So would be the distance of its lines in memory, and lines that far
    apart drive each other out of a CPU's caches.
    """
    some = min(tiles, 1) if isinstance(tiles, int) else tf.minimum(tiles, 1)
    return tiles + some * (1 - tiles % 2)


def _pad(maps: tf.Tensor, before: int, height: ops.Side, width: ops.Side) -> tf.Tensor:
    """Zeros around the maps, `before` of them above and to the left: `[N, height, width, C]`."""
    if maps.shape[1:3] == (height, width):
        return maps
    after = [side - before - old for side, old in zip((height, width), ops.spatial_shape(maps))]
    return tf.pad(maps, [[0, 0], [before, after[0]], [before, after[1]], [0, 0]])
