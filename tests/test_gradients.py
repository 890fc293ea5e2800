"""Operations with gradients of their own, against TensorFlow's."""

from __future__ import annotations

from typing import Any, Optional

import keras
import numpy as np
import pytest
import tensorflow as tf
from derivatives import assert_convolution, assert_same, derivatives, draw
from small import enliven, small_config

from benchmarks.flops import needed
from tcp_tf import gradients, ops, target
from tcp_tf.autoencoder import build_encoder, build_generator
from tcp_tf.generator import ToRGB
from tcp_tf.layers import Conv, StyledConv


@pytest.mark.parametrize("signs_only", [False, True])
def test_leaky_relu(signs_only: bool) -> None:
    values = tf.concat([draw(50), [0.0]], axis=0)
    assert_same(
        derivatives(lambda x: gradients.leaky_relu(x, 0.2, signs_only), values),
        derivatives(lambda x: tf.nn.leaky_relu(x, 0.2), values),
    )


def traced_gradient(function: Any, *shapes: list[int]) -> tuple[Any, list[Any]]:
    """The graph of a function and of its gradients, pulled by its first argument, and these gradients' operations."""

    @tf.function(autograph=False)
    def gradient(pulls: tf.Tensor, *inputs: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = function(*inputs)
        return tape.gradient(result, inputs, pulls)

    graph = gradient.get_concrete_function(*map(tf.TensorSpec, shapes)).graph
    return graph, [output.op for output in graph.outputs]


def test_of_signs_a_byte_each_is_kept_until_the_gradient_is_there() -> None:
    graph, _ = traced_gradient(lambda x: gradients.leaky_relu(x, 0.2, signs_only=True), [50], [50])
    (found,) = (op for op in graph.get_operations() if op.type == "LeakyReluGrad")
    features = found.inputs[1].op
    assert features.type == "Cast" and features.inputs[0].dtype == tf.bool
    assert graph.inputs[0].op in needed([features])


CONVOLUTIONS = {
    "conv": (lambda x, k: gradients.conv(x, k, 1), 9),
    "conv_down": (gradients.conv_down, 4),
    "conv_up": (lambda x, k: gradients.conv_up(x, k, 19, 19), 19),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_gradient_of_maps_waits_for_that_of_the_kernel(name: str) -> None:
    """Where both are wanted; of maps alone, nothing is made of the kernel's."""
    convolve, side = CONVOLUTIONS[name]
    shapes = [2, side, side, 4], [2, 9, 9, 4], [3, 3, 4, 4]
    _, (of_maps, of_kernel) = traced_gradient(convolve, *shapes)
    assert of_kernel.inputs[0].op in needed([of_maps])
    with gradients.of_maps_alone():
        _, (of_maps, of_kernel) = traced_gradient(convolve, *shapes)
    assert of_kernel.inputs[0].op not in needed([of_maps])


def test_bias_add() -> None:
    inputs = [tf.cast(each, tf.float64) for each in (draw(2, 3, 4, 5), draw(5))]
    assert_same(derivatives(gradients.bias_add, *inputs), derivatives(tf.nn.bias_add, *inputs))


def test_a_bias_in_bfloat16_has_its_gradient() -> None:
    """Of many numbers: TensorFlow's own sum on a CPU is wrong by half."""
    pulls = tf.cast(draw(4, 64, 64, 8) + 0.2, tf.bfloat16)
    bias = tf.zeros([8], tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        result = gradients.bias_add(tf.zeros_like(pulls), bias)
    found = tf.cast(tape.gradient(result, bias, pulls), tf.float32)
    expected = tf.reduce_sum(tf.cast(pulls, tf.float32), axis=(0, 1, 2))
    assert float(tf.norm(found - expected)) < 5e-3 * float(tf.norm(expected))


@pytest.mark.parametrize("kind", [Conv, StyledConv, ToRGB])
def test_a_layer_in_bfloat16_has_the_gradient_of_its_bias(kind: type) -> None:
    sizes: dict[type, tuple] = {Conv: (3, 8, 1), StyledConv: (3, 8, 4), ToRGB: (3, 4)}
    inputs = (draw(4, 64, 64, 3), draw(4, 4))[: 1 if kind is Conv else 2]
    layers, found = [], []
    policy = keras.mixed_precision.global_policy()
    try:
        for name in ("float32", "mixed_bfloat16"):
            keras.mixed_precision.set_global_policy(name)
            layers.append(kind(*sizes[kind], **({"level": 0} if kind is StyledConv else {})))
    finally:
        keras.mixed_precision.set_global_policy(policy)
    layers[1].set_weights(layers[0].get_weights())
    for layer in layers:
        with tf.GradientTape() as tape:
            result = tf.cast(layer(*inputs), tf.float32)
            total = tf.reduce_sum(result * (draw(*result.shape, seed=1) + 0.2))
        found += tape.gradient(total, [layer.bias])
    assert float(tf.norm(found[1] - found[0])) < 0.02 * float(tf.norm(found[0]))


BLURS = [([1, 3, 3, 1], (2, 2), 1), ([1, 3, 3, 1], (1, 1), 2), ([1, 2, 1], (1, 0), 2), ([1, 2, 5, 3], (0, 3), 3)]


@pytest.mark.parametrize(("taps", "padding", "stride"), BLURS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7), (7, 10)])
def test_blur(taps: list[float], padding: tuple[int, int], stride: int, height: int, width: int) -> None:
    images = draw(2, height, width, 3)
    expected = derivatives(lambda x: ops.blur(x, taps, padding, 4.0, stride), images)
    assert_same(derivatives(lambda x: gradients.blur(x, taps, padding, 4.0, stride), images), expected)


@pytest.mark.parametrize(("taps", "padding", "stride"), BLURS)
def test_a_blur_is_differentiated_by_a_blur(taps: list[float], padding: tuple[int, int], stride: int) -> None:
    """TensorFlow's own gradient of a depthwise convolution is the slow one."""

    @tf.function(autograph=False)
    def both(images: tf.Tensor) -> list[tf.Tensor]:
        return derivatives(lambda x: gradients.blur(x, taps, padding, 1.0, stride), images)

    graph = both.get_concrete_function(tf.TensorSpec([2, 8, 8, 3])).graph
    kinds = [op.type for op in needed([output.op for output in graph.outputs])]
    assert "DepthwiseConv2dNative" in kinds and "DepthwiseConv2dNativeBackpropInput" not in kinds


def test_nothing_of_a_gradient_needs_what_came_into_the_activation() -> None:
    """So that TensorFlow can make one operation of convolution, bias and activation."""
    traced = tf.function(lambda: derivatives(lambda x: gradients.leaky_relu(x, 0.2), draw(5))).get_concrete_function()
    found = [op for op in traced.graph.get_operations() if op.type == "LeakyReluGrad"]
    assert found and all(op.inputs[1].op.type == "StopGradient" for op in found)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_upsampling(dtype: tf.DType) -> None:
    images, pulls = tf.cast(draw(2, 3, 5, 4), dtype), tf.cast(draw(2, 6, 10, 4), dtype)
    results = []
    for upsample in (gradients.upsample_bilinear, ops.upsample_bilinear):
        with tf.GradientTape() as tape:
            tape.watch(images)
            result = upsample(images)
        results.append((result, tape.gradient(result, images, pulls)))
    for ours, theirs in zip(*results):
        assert ours.dtype == dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("padding", [(1, 1), (2, 1), (0, 3)])
@pytest.mark.parametrize(("height", "folded_to", "folded"), [(5, 180, True), (5, 179, False), (4, 180, None)])
def test_reflect(
    height: int, folded_to: int, folded: Optional[bool], padding: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five lines the edges can be folded back by slices, of four not with every padding."""
    monkeypatch.setattr(gradients, "FOLDED_TO", folded_to)
    images = draw(2, height, 6, 3)
    assert_same(
        derivatives(lambda x: gradients.reflect(x, padding), images),
        derivatives(lambda x: ops.pad(x, padding, "REFLECT"), images),
    )
    sides = [2, height + sum(padding), 6 + sum(padding), 3]
    graph, _ = traced_gradient(lambda x: gradients.reflect(x, padding), sides, [2, height, 6, 3])
    padded = any(op.type == "MirrorPadGrad" for op in graph.get_operations())
    assert padded is not (sum(padding) == 2 if folded is None else folded)


def test_upsampling_is_differentiated_to_any_order() -> None:
    images = draw(2, 3, 5, 4)
    assert_same(
        derivatives(gradients.upsample_bilinear, images),
        derivatives(ops._upsample_by_shifts, images),
    )


def test_upsampling_keeps_nothing() -> None:
    graph, found = traced_gradient(gradients.upsample_bilinear, [2, 6, 10, 4], [2, 3, 5, 4])
    assert graph.inputs[0].op in needed(found) and graph.inputs[1].op not in needed(found)


@pytest.mark.parametrize("places", [(1, 1), (6, 5)])
def test_scaled(places: tuple[int, int]) -> None:
    inputs = draw(2, 6, 5, 4), draw(2, *places, 4)
    assert_same(derivatives(gradients.scaled, *inputs), derivatives(tf.multiply, *inputs))


def scaled_conv(maps: tf.Tensor, factors: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return gradients.remade(gradients.scaled, lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"), maps, factors, kernel=kernel)


def test_what_is_remade_has_the_same_gradients() -> None:
    inputs = draw(2, 6, 5, 4), draw(2, 1, 1, 4), draw(3, 3, 4, 3)
    plain = derivatives(lambda x, f, k: tf.nn.conv2d(x * f, k, 1, "SAME"), *inputs)
    assert_same(derivatives(scaled_conv, *inputs), plain)


def test_what_is_remade_waits_for_the_gradient() -> None:
    @tf.function
    def gradient(maps: tf.Tensor, factors: tf.Tensor, kernel: tf.Tensor, pulls: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            result = scaled_conv(maps, factors, kernel)
        return tape.gradient(result, kernel, pulls)

    shapes = [2, 6, 5, 4], [2, 1, 1, 4], [3, 3, 4, 3], [2, 6, 5, 3]
    graph = gradient.get_concrete_function(*map(tf.TensorSpec, shapes)).graph
    (found,) = (op for op in graph.get_operations() if op.type == "Conv2DBackpropFilter")
    assert graph.inputs[3].op in needed([found.inputs[0].op])


@pytest.fixture(params=["small kernels", "large kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a test as they are, and as if they were large, and large beside any maps."""
    if request.param == "large kernels":
        monkeypatch.setattr(ops, "WEIGHTS_FROM", 1)
        monkeypatch.setattr(ops, "LARGE", 1)


LARGE, SMALL = (gradients.SIDE_FROM, gradients.SIDE_FROM + 3), (gradients.SIDE_FROM - 1, gradients.SIDE_FROM)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sides", [LARGE, SMALL])
@pytest.mark.parametrize(("size", "padding"), [(1, 0), (3, 0), (3, 1), (3, 2), (4, 1), (5, 2)])
def test_convolutions(size: int, padding: int, sides: tuple[int, int]) -> None:
    maps, kernel = draw(2, *sides, 4), draw(size, size, 4, 3) / size
    assert_convolution(maps, kernel, padding)


@pytest.mark.parametrize(("sides", "padding", "plain"), [(LARGE, 0, 0), (SMALL, 1, 0), (SMALL, 0, 1)])
def test_the_gradient_of_maps_is_a_convolution(sides: tuple[int, int], padding: int, plain: int) -> None:
    @tf.function
    def gradient(maps: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(gradients.conv(maps, draw(3, 3, 4, 4), padding) ** 2)
        return tape.gradient(total, maps)

    operations = gradient.get_concrete_function(tf.TensorSpec([2, *sides, 4])).graph.get_operations()
    assert sum(op.type == "Conv2DBackpropInput" for op in operations) == plain


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("channels", [gradients.MATRIX_PRODUCTS_FROM - 1, gradients.MATRIX_PRODUCTS_FROM])
@pytest.mark.parametrize(("size", "height", "width"), [(3, 9, 7), (3, 8, 10), (1, 5, 6), (4, 9, 8)])
def test_strided_convolutions(channels: int, size: int, height: int, width: int) -> None:
    maps, kernel = draw(2, height, width, channels), draw(size, size, channels, 5) / 8
    plain = derivatives(lambda x, k: tf.nn.conv2d(x, k, 2, padding="VALID"), maps, kernel)
    np.testing.assert_allclose(ops.conv_down(maps, kernel), plain[0], atol=1e-4)
    assert_same(derivatives(gradients.conv_down, maps, kernel), plain)
    small = draw(*plain[0].shape, seed=1)
    shape = [2, height, width, channels]
    plain = derivatives(lambda x, k: tf.nn.conv2d_transpose(x, k, shape, 2, padding="VALID"), small, kernel)
    assert_same(derivatives(lambda x, k: ops.conv_up(x, k, height, width), small, kernel), plain)
    assert_same(derivatives(lambda x, k: gradients.conv_up(x, k, height, width), small, kernel), plain)


@pytest.mark.parametrize(("least", "products"), [(ops.LARGE, 0), (3 * 3 * 4 * 5, 1)])
def test_a_large_strided_kernel_is_read_as_it_is(least: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a matrix product, as a served graph has it: of maps whose size is not known before."""
    monkeypatch.setattr(ops, "LARGE", least)
    down = tf.function(ops.conv_down, autograph=False)
    graph = down.get_concrete_function(tf.TensorSpec([None, None, None, 4]), tf.TensorSpec([3, 3, 4, 5]))
    assert sum(op.type == "MatMul" for op in graph.graph.get_operations()) == products
    maps, kernel = draw(2, 9, 8, 4), draw(3, 3, 4, 5)
    np.testing.assert_allclose(graph(maps, kernel), tf.nn.conv2d(maps, kernel, 2, "VALID"), atol=1e-5)


@pytest.mark.parametrize(("few", "products"), [(2 * 4 * 3, 1), (2 * 4 * 3 - 1, 0)])
def test_a_strided_kernel_that_is_large_for_few_places(
    few: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "LARGE_FOR_FEW", 3 * 3 * 4 * 5)
    monkeypatch.setattr(ops, "FEW", few)
    maps, kernel = draw(2, 9, 8, 4), draw(3, 3, 4, 5)
    graph = tf.function(ops.conv_down, autograph=False).get_concrete_function(maps, kernel)
    assert sum(op.type == "MatMul" for op in graph.graph.get_operations()) == products
    np.testing.assert_allclose(graph(maps, kernel), tf.nn.conv2d(maps, kernel, 2, "VALID"), atol=1e-5)


@pytest.mark.parametrize(("channels", "products"), [(gradients.MATRIX_PRODUCTS_FROM, 3), (8, 0)])
def test_wide_maps_take_matrix_products(channels: int, products: int) -> None:
    inputs = tf.TensorSpec([2, 9, 9, channels]), tf.TensorSpec([2, 4, 4, 5])
    graph = tf.function(lambda a, b: gradients.strided_kernel_gradient(a, b, 3)).get_concrete_function(*inputs).graph
    assert sum(op.type == "MatMul" for op in graph.get_operations()) == products
    gathered = [op for op in graph.get_operations() if op.type == "GatherV2"]
    assert len(gathered) == products
    # What is read of the large maps is not kept from before there are the small ones, which may be a gradient.
    assert all(graph.inputs[1].op in needed([op]) for op in gathered)


@pytest.mark.parametrize(("weights_from", "products"), [(ops.WEIGHTS_FROM, 0), (9 * 4 * 4, 1 + 3)])
def test_a_kernel_that_is_large_beside_the_maps(
    weights_from: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of its maps is one matrix product, its own one for each of its rows."""
    monkeypatch.setattr(ops, "WEIGHTS_FROM", weights_from)

    @tf.function
    def both(maps: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([maps, kernel])
            total = tf.reduce_sum(gradients.conv(maps, kernel, 0) ** 2)
        return tape.gradient(total, [maps, kernel])

    graph = both.get_concrete_function(tf.TensorSpec([2, 4, 4, 4]), tf.TensorSpec([3, 3, 4, 4])).graph
    kinds = [op.type for op in needed([output.op for output in graph.outputs])]
    assert kinds.count("MatMul") == products
    assert any(kind.startswith("Conv2DBackprop") for kind in kinds) == (products == 0)


def test_what_counts_as_small_for_a_kernel() -> None:
    def small(shape: tuple, channels: int = 512, dtype: tf.DType = tf.float32) -> bool:
        return ops.small_for(tf.TensorSpec(shape, dtype), [3, 3, channels, 512])

    assert small((None, ops.SIDE_TO, ops.SIDE_TO, 512))
    assert not small((1, ops.SIDE_TO, ops.SIDE_TO + 1, 512))
    assert not small((1, None, None, 512))
    assert not small((1, 4, 4, 512), channels=64)
    assert small((1, 4, 4, 512), dtype=tf.bfloat16)
    assert not small((1, 4, 4, 512), dtype=tf.float64)
    with target.assumed(gpu=True):
        assert not small((1, 4, 4, 512))


def test_networks_that_are_not_trained_are_plain() -> None:
    """A served graph has no gradients of its own in it, and gives the same answer."""
    config = small_config()
    encoder, generator = build_encoder(config), build_generator(config)
    enliven(encoder)
    enliven(generator)

    def both(images: tf.Tensor) -> tf.Tensor:
        return generator(*encoder(images))

    def own_gradients(function: Any) -> int:
        operations = tf.function(function).get_concrete_function(images).graph.get_operations()
        return sum(op.type == "IdentityN" for op in operations)

    images = draw(2, 16, 16, 3)
    trained = both(images)
    assert own_gradients(both) > 10
    encoder.trainable = generator.trainable = False
    assert own_gradients(both) == 0
    np.testing.assert_allclose(both(images), trained, atol=1e-5)
