"""Tensor maths, against numbers worked out by hand or by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import numpy as np
import pytest
import tensorflow as tf

from tcp_tf import ops, target

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_normalize() -> None:
    np.testing.assert_allclose(ops.normalize(tf.constant([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(ops.normalize_mean_square(tf.constant([[1.0, 7.0]])), [[0.2, 1.4]], atol=1e-6)
    large = tf.constant([[300.0, 400.0]], tf.float16)  # its squares are beyond float16
    assert ops.normalize(large).dtype == tf.float16
    np.testing.assert_allclose(ops.normalize(large), [[0.6, 0.8]], atol=1e-3)


def test_weights_of_a_unit_mixture() -> None:
    vectors, weights = tf.constant(draw(2, 3, 16)), tf.constant(RNG.dirichlet([1, 1, 1], (2, 4, 5)), tf.float32)
    unit = tf.einsum("nhwr,nrc->nhwc", ops.unit_mixture(weights, vectors), vectors)
    mixed = tf.einsum("nhwr,nrc->nhwc", weights, vectors)
    np.testing.assert_allclose(unit, ops.normalize_mean_square(mixed), atol=1e-5)
    opposed = tf.stack([vectors[:, 0], -vectors[:, 0]], axis=1)
    halves = tf.fill([2, 1, 1, 2], 0.5)
    with tf.GradientTape() as tape:
        tape.watch(opposed)
        nothing = tf.einsum("nhwr,nrc->nhwc", ops.unit_mixture(halves, opposed), opposed)
    np.testing.assert_allclose(nothing, tf.zeros([2, 1, 1, 16]), atol=1e-2)  # and not 0 / 0
    assert np.isfinite(tape.gradient(nothing, opposed)).all()


def test_blur_keeps_the_mean_and_has_its_taps() -> None:
    impulse = np.zeros((1, 7, 7, 2), np.float32)
    impulse[0, 3, 3] = [1, 2]
    answer = ops.blur(tf.constant(impulse), [1, 3, 3, 1], (2, 1), gain=4.0).numpy()
    line = np.array([1, 3, 3, 1]) / 8
    assert answer.shape == (1, 7, 7, 2)
    np.testing.assert_allclose(answer[0, 2:6, 2:6, 0], 4 * np.outer(line, line), atol=1e-6)
    np.testing.assert_allclose(answer[0, ..., 1], 2 * answer[0, ..., 0], atol=1e-6)
    images = draw(1, 8, 8, 3)
    whole, strided = (ops.blur(tf.constant(images), [1, 2, 1], (1, 0), stride=stride) for stride in (1, 2))
    np.testing.assert_allclose(strided, whole[:, ::2, ::2], atol=1e-6)


@pytest.mark.parametrize("size", [9, None])
def test_a_blur_before_a_bias(size: Optional[int]) -> None:
    """Of a graph, TensorFlow with oneDNN would make one operation of the two and abort the process."""
    bias = tf.Variable(draw(8))

    def biased(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.leaky_relu(tf.nn.bias_add(ops.blur(images, [1, 3, 3, 1], (1, 1)), tf.convert_to_tensor(bias)), 0.2)

    images = tf.constant(draw(2, 9, 9, 8))
    graph = tf.function(biased, [tf.TensorSpec([2, size, size, 8])])
    np.testing.assert_allclose(graph(images), biased(images), atol=1e-6)


@pytest.mark.parametrize(
    "filtered",
    [
        lambda x: ops.blur(x, [1, 3, 3, 1], (2, 1), gain=4.0),
        lambda x: ops.blur(x, [1, 2, 1], (1, 0), stride=2),
        ops.upsample_bilinear,
    ],
)
def test_filters_for_xla_are_the_same_filters(filtered: Callable[[tf.Tensor], tf.Tensor]) -> None:
    maps = tf.constant(draw(2, 5, 8, 3))
    weights = tf.constant(draw(*filtered(maps).shape))

    def both(maps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        result = filtered(maps)
        return result, tf.gradients(tf.reduce_sum(result * weights), maps)[0]

    expected = tf.function(both, autograph=False)(maps)
    with target.assumed(xla=True):
        found = tf.function(both, autograph=False, jit_compile=True)(maps)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("padding", [(1, 1), (2, 1), (0, 3)])
def test_reflect(padding: tuple[int, int]) -> None:
    images = draw(2, 4, 5, 3)
    expected = np.pad(images, [(0, 0), padding, padding, (0, 0)], mode="reflect")
    np.testing.assert_array_equal(ops.reflect(tf.constant(images), padding), expected)
    assert tf.function(ops.reflect).get_concrete_function(images, padding).output_shapes == expected.shape
    unknown = tf.function(lambda x: ops.reflect(x, padding), input_signature=[tf.TensorSpec([None, None, None, 3])])
    np.testing.assert_array_equal(unknown(images), expected)


def test_upsample_bilinear_has_half_pixel_centres() -> None:
    line = tf.constant([[[[0.0], [4.0]]]])  # 1 1 2 1
    np.testing.assert_allclose(ops.upsample_bilinear(line)[0, :, :, 0], [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_pyramid_averages_areas() -> None:
    images = draw(2, 8, 4, 3)
    levels = ops.pyramid(tf.constant(images), 2)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 4, 3), (2, 4, 2, 3), (2, 2, 1, 3)]
    np.testing.assert_allclose(levels[2][:, 0, 0], images[:, :4].mean((1, 2)), atol=1e-6)


def test_conv_up_is_the_gradient_of_a_strided_convolution() -> None:
    images, kernel = draw(1, 3, 5, 2), draw(3, 3, 4, 2)
    answer = ops.conv_up(tf.constant(images), tf.constant(kernel), 7, 11).numpy()
    expected = np.zeros((1, 7, 11, 4), np.float32)
    for y in range(3):
        for x in range(5):
            expected[0, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] += kernel @ images[0, y, x]
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_demodulated_filters_have_the_norm_asked_for() -> None:
    kernel = tf.constant(5 * draw(3, 3, 4, 6))
    for axis, factors, norm in ((2, {}, 1.0), (3, {}, 1.0), (3, {"gain": 0.1, "norm": 2.0}, 2.0)):
        filters = np.moveaxis(ops.demodulated(kernel, axis, **factors).numpy(), axis, 0)
        np.testing.assert_allclose(np.linalg.norm(filters.reshape(len(filters), -1), axis=1), norm, atol=1e-5)
    nothing = ops.demodulated(tf.ones([1, 1, 1, 2]), 3, gain=1e-4).numpy()  # as large as the square root of the 1e-8
    np.testing.assert_allclose(nothing, 0.5**0.5, rtol=1e-5)


def test_a_modulated_convolution_is_the_grouped_one_of_the_official_code() -> None:
    """Scaling the input equals scaling the weight of every example."""
    images, factors, kernel = draw(2, 5, 5, 3), draw(2, 3), draw(3, 3, 3, 4)
    ours = tf.nn.conv2d(images * factors[:, None, None], kernel, 1, "SAME")
    for i in range(2):
        own = tf.nn.conv2d(images[i : i + 1], kernel * factors[i, :, None], 1, "SAME")
        np.testing.assert_allclose(ours[i : i + 1], own, atol=1e-4)


def test_swap_pairs() -> None:
    codes = tf.reshape(tf.range(12), [6, 2])
    np.testing.assert_array_equal(ops.swap_pairs(codes)[:, 0], [2, 0, 6, 4, 10, 8])
    np.testing.assert_array_equal(ops.swap_pairs(ops.swap_pairs(codes)), codes)
    halves = [ops.swap_pairs(half) for half in tf.split(codes, [4, 2])]
    np.testing.assert_array_equal(tf.concat(halves, axis=0), ops.swap_pairs(codes))  # however a batch is split
    unknown = tf.function(ops.swap_pairs, input_signature=[tf.TensorSpec([None, 2], tf.int32)])
    np.testing.assert_array_equal(unknown(codes), ops.swap_pairs(codes))
    with pytest.raises(ValueError, match="must be even to swap pairs, got 3"):
        ops.swap_pairs(codes[:3])


def boxes(*values: float) -> tf.Tensor:
    return tf.constant(values, tf.float32)[None, None]


def test_crops() -> None:
    images = draw(1, 8, 8, 3)
    np.testing.assert_allclose(ops.crop_and_resize(images, boxes(0, 0, 1, 1), 8)[0, 0], images[0], atol=1e-5)
    cut = ops.crop_and_resize(images, boxes(0.25, 0.5, 0.5, 0.5), 4)[0, 0]
    np.testing.assert_allclose(cut, images[0, 2:6, 4:8], atol=1e-5)
    mirrored = ops.crop_and_resize(images, boxes(0.25, 1.0, 0.5, -0.5), 4)[0, 0]
    np.testing.assert_allclose(mirrored, images[0, 2:6, 4:8][:, ::-1], atol=1e-5)


def test_crops_agree_with_tensorflow_and_belong_to_their_own_picture() -> None:
    images = draw(2, 16, 16, 3)
    # Inside the picture by more than half a pixel: at the border conventions differ.
    corners = np.array([[[0.1, 0.2, 0.5, 0.6], [0.3, 0.25, 0.4, 0.3]], [[0.2, 0.1, 0.7, 0.5], [0.5, 0.4, 0.3, 0.4]]])
    ours = ops.crop_and_resize(tf.constant(images), tf.constant(corners, tf.float32), 5).numpy()
    assert ours.shape == (2, 2, 5, 5, 3)
    top_left, size = 16 * corners[..., :2], 16 * corners[..., 2:]
    first, last = top_left + size * 0.5 / 5 - 0.5, top_left + size * 4.5 / 5 - 0.5  # centres of the outer samples
    theirs = tf.image.crop_and_resize(
        images, np.concatenate([first, last], -1).reshape(4, 4) / 15, [0, 0, 1, 1], [5, 5]
    ).numpy()
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_conv_is_that_of_padded_maps(size: int) -> None:
    generator = np.random.default_rng(0)
    images, kernel = generator.normal(size=(2, 7, 6, 3)), generator.normal(size=(size, size, 3, 4))
    for padding in {(0, 0), (size // 2, size // 2), (2, 1)}:
        padded = np.pad(images, [(0, 0), padding, padding, (0, 0)])
        plain = tf.nn.conv2d(padded, kernel, 1, padding="VALID")
        np.testing.assert_allclose(ops.conv(images, kernel, padding), plain, atol=1e-5)


def test_mix_colours() -> None:
    images = tf.constant([[[[0.5, -0.25, 0.75]]], [[[0.5, -0.25, 0.75]]]])
    exchange = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -2.0]]  # red and green change places, blue is inverted
    maps = tf.constant([[*exchange, [0.1, 0.0, 0.0]], [*np.eye(3), [0.0, 0.0, 0.5]]])[:, None, None]
    mixed = ops.mix_colours(images, maps, tf.constant([1.0, 0.5]))
    np.testing.assert_allclose(mixed[:, 0, 0], [[-0.15, 0.5, -1.0], [0.5, -0.25, 1.0]], atol=1e-6)
    np.testing.assert_array_equal(ops.mix_colours(images, maps, tf.zeros([2])), images)


def test_colours_are_mixed_otherwise_elsewhere() -> None:
    """A grid of two by two on four by six pixels: each corner has its own map; between them they are interpolated."""
    images = tf.ones([1, 4, 6, 3])
    offsets = tf.reshape(tf.constant([0.1, 0.2, 0.3, 0.4]), [1, 2, 2, 1])
    maps = tf.pad(tf.tile(offsets, [1, 1, 1, 3])[..., None, :], [[0, 0], [0, 0], [0, 0], [3, 0], [0, 0]])
    mixed = ops.mix_colours(images, maps, tf.ones([1])).numpy()[0, :, :, 0]
    np.testing.assert_allclose(mixed[[0, 0, -1, -1], [0, -1, 0, -1]], [0.1, 0.2, 0.3, 0.4], atol=1e-6)
    # Second row: a quarter of the way down, weights 3/4 and 1/4 over the root of the sum of their squares.
    np.testing.assert_allclose(mixed[1, 0], (0.75 * 0.1 + 0.25 * 0.3) / np.hypot(0.75, 0.25), atol=1e-6)

    noise = np.random.default_rng(0).normal(size=(4000, 3, 3, 4, 3)).astype(np.float32) * 0.1
    noise[..., :3, :] = 0
    field = ops.mix_colours(tf.zeros([4000, 8, 8, 3]), tf.constant(noise), tf.ones([4000])).numpy()
    np.testing.assert_allclose(field.std(0), np.full((8, 8, 3), 0.1), rtol=0.06)


def test_regions_are_mixed_each_by_itself() -> None:
    """Two colours in two halves, a cluster in each: every region has its cluster's new colour and contrast."""
    ripple = np.where(np.arange(6) % 2, 0.01, -0.01)[:, None, None]
    picture = np.full((6, 8, 3), 0.7, np.float32)
    picture[:, 4:] = [-0.6, 0.1, -0.2]
    images = tf.constant((picture + ripple)[None].repeat(2, axis=0), tf.float32)
    places = tf.constant([[0.0, 0.999], [0.999, 0.0]])  # the first pixel, in the left half, and the last, in the right
    maps = tf.constant([[[*np.eye(3) * -2.0, [0.3, 0.2, 0.1]], [*np.zeros((3, 3)), [-0.5, 0.0, 0.5]]]] * 2, tf.float32)
    mixed = ops.mix_clusters(images, places, maps, tf.ones([2])).numpy()
    for number, (inverted, flat) in enumerate([(slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))]):
        np.testing.assert_allclose(mixed[number, :, flat], np.broadcast_to([-0.5, 0.0, 0.5], (6, 4, 3)), atol=1e-4)
        lines = mixed[number, 1:, inverted] - mixed[number, :-1, inverted]
        np.testing.assert_allclose(np.abs(lines), np.full((5, 4, 3), 0.04), atol=1e-4)
        # The centre is a mean over two or three lines, so it may be off the region's by the ripple.
        np.testing.assert_allclose(mixed[number, :, inverted].mean((0, 1)), [0.3, 0.2, 0.1], atol=0.021)
    half = ops.mix_clusters(images, places, maps, tf.fill([2], 0.5)).numpy()
    np.testing.assert_allclose(half, (images + mixed) / 2, atol=1e-6)
    np.testing.assert_array_equal(ops.mix_clusters(images, places, maps, tf.zeros([2])), images)


def test_interpolation_rows_sum_to_one() -> None:
    rows = ops.interpolation_matrix(tf.constant([-3.0, 2.5, 7.0]), tf.constant([4.0, 3.3, -7.0]), 8, 6)
    assert rows.shape == (3, 6, 8)
    np.testing.assert_allclose(tf.reduce_sum(rows, -1), np.ones((3, 6)), atol=1e-6)
    assert np.min(rows) >= 0


@pytest.mark.parametrize("kernels", [1, 3])
def test_kernels_of_1x1_for_each_picture(kernels: int) -> None:
    draws = np.random.default_rng(0)
    images, each = (tf.constant(draws.normal(size=shape), tf.float32) for shape in ([3, 5, 4, 6], [kernels, 6, 2]))
    expected = [tf.nn.conv2d(images[n : n + 1], each[n % kernels][None, None], 1, "VALID")[0] for n in range(3)]
    np.testing.assert_allclose(ops.conv1x1_each(images, each), tf.stack(expected), atol=1e-5)
