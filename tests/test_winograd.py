"""Convolutions by minimal filtering: equal to the plain ones, to any order of gradient and at any size."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from derivatives import assert_convolution, assert_same, derivatives, draw, plain_kernel_gradient

from tcp_tf import gradients, layers, target, winograd

WIDE = winograd.CHANNELS_FROM


def exact(maps: tf.Tensor, kernel: tf.Tensor, padding: int) -> np.ndarray:
    """Convolution in float64, a sum of nine matrix products."""
    padded = np.pad(maps.numpy().astype(np.float64), [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    parts = [padded[:, i : i + height, j : j + width] @ kernel[i, j].numpy() for i in range(3) for j in range(3)]
    return np.sum(parts, axis=0)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions, too, are computed in this way when they are trained."""
    monkeypatch.setattr(winograd, "pays", lambda *arguments, **named: True)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14), (3, 7)])
def test_convolution(height: int, width: int, padding: int) -> None:
    maps, kernel = draw(2, height, width, 5), draw(3, 3, 5, 4)
    expected = exact(maps, kernel, padding)
    answer = winograd.conv(maps, kernel, padding)
    assert answer.shape == expected.shape
    assert np.linalg.norm(answer - expected) < 2e-6 * np.linalg.norm(expected)
    turned = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
    np.testing.assert_allclose(winograd.conv(maps, turned, padding, transposed=True), answer, atol=1e-4)


def test_error_of_the_widest_convolution() -> None:
    """512 channels; with the usual points it would be 4.6e-6."""
    maps, kernel = draw(1, 32, 32, 512), draw(3, 3, 512, 512)
    expected = exact(maps, kernel, 1)
    assert np.linalg.norm(winograd.conv(maps, kernel, 1) - expected) < 3e-6 * np.linalg.norm(expected)


def test_error_in_bfloat16() -> None:
    """Some 1.6 % of the result's norm, where a direct convolution's is 0.2 %; the kernel's gradient has 2 %."""
    maps, kernel, pulls = (
        tf.cast(each, tf.bfloat16) for each in (draw(1, 32, 32, 256), draw(3, 3, 256, 64), draw(1, 32, 32, 64, seed=1))
    )
    wide = [tf.cast(each, tf.float32) for each in (maps, kernel, pulls)]
    for coarse, fine in (
        (winograd.conv(maps, kernel, 1), winograd.conv(wide[0], wide[1], 1)),
        (winograd.kernel_gradient(maps, pulls, 1), winograd.kernel_gradient(wide[0], wide[2], 1)),
    ):
        assert coarse.dtype == tf.bfloat16
        error = tf.norm(tf.cast(coarse, tf.float32) - fine) / tf.norm(fine)
        assert 0.005 < error < 0.025


def test_error_of_a_kernel_mapped_in_bfloat16() -> None:
    """1.7e-3 is what rounding the result leaves; TensorFlow without oneDNN sums in bfloat16 and leaves twice that."""
    taps = tf.cast(draw(9, 1024), tf.bfloat16)
    expected = winograd.KERNEL @ tf.cast(taps, tf.float32).numpy()
    mapped = tf.cast(winograd._mapped_kernel(winograd.KERNEL, taps), tf.float32)
    assert np.linalg.norm(mapped - expected) < 3.6e-3 * np.linalg.norm(expected)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_gradients_of_any_order(padding: int) -> None:
    maps, kernel = draw(2, 9, 6, 3), draw(3, 3, 3, 4) / 5
    assert_convolution(maps, kernel, padding)


@pytest.mark.usefixtures("everywhere")
def test_no_gradient_goes_through_the_maps_of_tiles() -> None:
    """Not even of maps so small that TensorFlow's gradient would do otherwise: there the tiles' is a slow scatter."""

    @tf.function
    def gradient(maps: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(gradients.conv(maps, draw(3, 3, 4, 4), 0) ** 2)
        return tape.gradient(total, maps)

    operations = gradient.get_concrete_function(tf.TensorSpec([2, 4, 4, 4])).graph.get_operations()
    assert not any(op.type in ("UnsortedSegmentSum", "TensorScatterAdd") for op in operations)
    assert sum(op.type == "GatherV2" for op in operations) >= 2  # tiles of the maps and of the gradient


@pytest.mark.parametrize(("most", "padding", "products"), [(8, 1, 1), (8, 2, 1), (7, 1, 36), (8, 0, 36)])
def test_a_kernel_gradient_of_few_tiles_is_one_product(
    most: int, padding: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 tiles, an even number, so that a ninth is made, which must not count."""
    monkeypatch.setattr(winograd, "TOGETHER_TO", most)
    maps, pulls = draw(2, 10 - 2 * padding, 9 - 2 * padding, 3), draw(2, 8, 7, 4, seed=1)
    graph = tf.function(winograd.kernel_gradient).get_concrete_function(maps, pulls, padding)
    matmuls = [op.type for op in graph.graph.get_operations() if "MatMul" in op.type]
    assert len(matmuls) == products + 3 and matmuls.count("BatchMatMulV2") == int(products == 1)  # and three maps
    assert_same([graph(maps, pulls)], [plain_kernel_gradient(maps, pulls, tf.zeros([3, 3, 3, 4]), padding)])


@pytest.mark.usefixtures("everywhere")
def test_parts_of_a_batch_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, kernel = draw(5, 8, 8, 3), draw(3, 3, 3, 4)
    whole = derivatives(lambda x, k: gradients.conv(x, k, 1), maps, kernel)
    monkeypatch.setattr(winograd, "PART", 2 * 8 * 8 * 4)  # two pictures at a time: three parts, the last of one
    traced = tf.function(lambda: winograd.conv(maps, kernel, 1)).get_concrete_function()
    gathers = sum(operation.type == "GatherV2" for operation in traced.graph.get_operations())
    assert gathers == 3 * 2  # of each part the tiles' inputs, then the pixels out of the tiles' outputs
    assert_same(derivatives(lambda x, k: gradients.conv(x, k, 1), maps, kernel), whole)


@pytest.mark.parametrize("part", [winograd.PART, 2 * 8 * 8 * 5])
def test_sizes_that_are_not_known_before(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures at once, or two or one at a time."""
    monkeypatch.setattr(winograd, "PART", part)
    kernel = draw(3, 3, 5, 4)
    function = tf.function(
        lambda maps: winograd.conv(maps, kernel, 1), input_signature=[tf.TensorSpec([None, None, None, 5])]
    )
    for shape in ((1, 8, 8, 5), (5, 8, 8, 5), (3, 5, 20, 5), (0, 8, 8, 5)):
        maps = draw(*shape)
        np.testing.assert_allclose(function(maps), exact(maps, kernel, 1), atol=1e-4)
    gradient = tf.function(
        lambda maps, pulls: winograd.kernel_gradient(maps, pulls, 1),
        input_signature=[tf.TensorSpec([None, None, None, 5]), tf.TensorSpec([None, None, None, 4])],
    )
    maps, pulls = draw(3, 8, 8, 5), draw(3, 8, 8, 4)
    np.testing.assert_allclose(gradient(maps, pulls), winograd.kernel_gradient(maps, pulls, 1), atol=1e-4)


def test_where_it_pays() -> None:
    def pays(shape: tuple, kernel: tuple, dtype: tf.DType = tf.float32, padding: int = 1) -> bool:
        return winograd.pays(tf.TensorSpec(shape, dtype), kernel, padding)

    large, wide = (1, 32, 32, WIDE), (3, 3, WIDE, WIDE)
    assert pays(large, wide)
    assert pays((None, None, None, WIDE), wide)
    assert not pays((1, 16, 16, WIDE), wide)
    assert not pays((64, 4, 4, WIDE), wide, padding=0)  # which gives 2 x 2
    assert not pays(large, (3, 3, WIDE, WIDE - 1))
    assert not pays(large, (1, 1, WIDE, WIDE))
    assert not pays(large, wide, tf.float64)
    with winograd.plain():
        assert not pays(large, wide)
    assert pays(large, wide)


@pytest.mark.parametrize(("tiles", "of_maps", "of_kernel"), [(False, 128, 48), (True, 256, 128)])
def test_where_it_pays_in_bfloat16(tiles: bool, of_maps: int, of_kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies tiles of it needs more channels; its float32 is as elsewhere."""
    monkeypatch.setattr(target, "tiles", lambda: tiles)
    for kernels, channels in ((False, of_maps), (True, of_kernel)):
        for fewer in (0, 1):
            maps = tf.TensorSpec([1, 32, 32, channels - fewer], tf.bfloat16)
            assert winograd.pays(maps, (3, 3, channels, channels - fewer), 1, of_kernel=kernels) == (not fewer)
    assert winograd.pays(tf.TensorSpec([1, 32, 32, 128]), (3, 3, 128, 128), 1)


@pytest.mark.parametrize(("channels", "plain"), [(winograd.GRADIENT_CHANNELS_FROM, 0), (8, 1)])
def test_where_the_kernels_gradient_pays(channels: int, plain: int) -> None:
    """With fewer channels than the convolution itself, which is a plain one here; and both are right."""
    maps, pulls = draw(1, 32, 32, channels), draw(1, 32, 32, channels, seed=1)

    def both(maps: tf.Tensor, pulls: tf.Tensor) -> list[tf.Tensor]:
        gradient = gradients.kernel_gradient(maps, pulls, 1, 3)
        return [gradients.conv(maps, gradient, 1), gradient]

    traced = tf.function(both).get_concrete_function(maps, pulls)
    kinds = [operation.type for operation in traced.graph.get_operations()]
    assert kinds.count("Conv2D") == 1 and kinds.count("Conv2DBackpropFilter") == plain
    with winograd.plain():
        expected = both(maps, pulls)
    assert_same(traced(maps, pulls), expected)


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_wide_layer_equals_the_plain_one(reflect: bool, trainable: bool) -> None:
    layer = layers.Conv(WIDE, WIDE, 3, padding=(1, 1), reflect=reflect)
    layer.trainable = trainable
    maps = draw(1, 32, 32, WIDE)
    traced = tf.function(layer.call).get_concrete_function(maps)
    assert not any(operation.type == "Conv2D" for operation in traced.graph.get_operations())
    with winograd.plain():
        expected = layer(maps)
    assert_same([traced(maps)], [expected])


def test_a_wide_styled_layer_equals_the_plain_one() -> None:
    layer = layers.StyledConv(WIDE, WIDE, 16, level=0)
    maps, style = draw(2, 32, 32, WIDE), draw(2, 16)
    with winograd.plain():
        expected = layer(maps, style)
    assert_same([layer(maps, style)], [expected])
