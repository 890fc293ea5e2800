"""The four networks: sizes, shapes, and what style maps and regions mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small import enliven, relative_difference, small_config

from tcp_tf import blending, layers, ops
from tcp_tf import config as configuration
from tcp_tf.autoencoder import AutoEncoder, build_encoder, build_generator
from tcp_tf.config import PRECISIONS
from tcp_tf.critics import build_discriminator, build_patch_discriminator
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.encoder import Encoder
from tcp_tf.generator import Generator
from tcp_tf.layers import Conv, RegionStyles, StyledConv

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NARROW: dict[str, Any] = {"channels": 4, "content_dim": 4, "style_dim": 16}


def parameters(network) -> int:
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


def noise(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_normal(shape, [seed, 5])


@pytest.mark.parametrize(
    ("build", "network", "count"),
    [
        (build_encoder, Encoder, 30_584_872),
        (build_generator, Generator, 25_064_743),
        (build_discriminator, Discriminator, 28_859_521),
        (build_patch_discriminator, PatchDiscriminator, 24_522_145),
    ],
)
def test_parameter_counts_of_the_swapping_autoencoder(build, network, count: int) -> None:
    """At 256 px, by the configuration's defaults and by the networks' own."""
    assert parameters(build(configuration.Config())) == count
    assert parameters(network()) == count


def test_widths_of_the_official_ffhq_1024() -> None:
    """Capacities of 0.4 and 0.8, five halvings, crops of 256 px in pictures of 768."""
    config = configuration.load(CONFIGS / "ffhq1024.yaml")
    assert build_encoder(config).widths == [13, 26, 51, 102, 205, 410, 819, 1536]
    assert build_generator(config).widths == [409, 409, 409, 409, 204, 102]
    discriminator = build_discriminator(config)
    assert (discriminator.resolution, discriminator.widths[-1]) == (768, 512)
    assert build_patch_discriminator(config).widths == [16, 32, 64, 128, 256, 384, 384]


def test_widths_follow_the_settings() -> None:
    model: dict[str, float] = {"channels": 8, "max_channels": 64, "downsamples": 3}
    config = configuration.from_dict({"data": {"resolution": 128}, "model": model})
    assert build_encoder(config).widths == [8, 16, 32, 64, 128, 256]
    assert build_generator(config).widths == [64, 64, 64, 32]
    assert build_discriminator(config).widths == [64] * 6
    assert build_patch_discriminator(config).widths == [8, 16, 32, 48, 48, 48]
    model = {**model, "encoder_capacity": 0.5, "generator_capacity": 0.5, "style_dim": 48}
    config = configuration.from_dict({"data": {"resolution": 128}, "model": model})
    assert build_encoder(config).widths == [4, 8, 16, 32, 48, 48]
    assert build_generator(config).widths == [32, 32, 32, 16]


@pytest.mark.parametrize("downsamples", [1, 3, 4])
@pytest.mark.parametrize("grid", [(7, 7), (7, 10), (12, 9)])
def test_any_multiple_of_the_stride(downsamples: int, grid: tuple) -> None:
    encoder = Encoder(downsamples=downsamples, **NARROW)
    generator = Generator(upsamples=downsamples, max_channels=16, **NARROW)
    height, width = (side * 2**downsamples for side in grid)
    codes = encoder(noise(2, height, width, 3))
    assert codes.content.shape == (2, *grid, 4) and codes.style.shape == (2, 16)
    np.testing.assert_allclose(tf.norm(codes.content, axis=-1), np.ones((2, *grid)), atol=1e-4)
    np.testing.assert_allclose(tf.norm(codes.style, axis=-1), np.ones(2), atol=1e-4)
    images = generator(*codes, generator.draw_noise(2, height, width, tf.constant([1, 2])))
    assert images.shape == (2, height, width, 3) and images.dtype == tf.float32
    assert np.all(np.isfinite(images))


def test_unknown_sizes_in_a_graph() -> None:
    """What a served graph does: the same as eagerly, for any batch, height and width."""
    encoder, generator = Encoder(downsamples=2, **NARROW), Generator(upsamples=2, max_channels=16, **NARROW)
    enliven(encoder, generator)
    images = noise(3, 32, 40, 3)
    graph = tf.function(lambda images: generator(*encoder(images)), [tf.TensorSpec([None, None, None, 3])])
    np.testing.assert_allclose(graph(images), generator(*encoder(images)), atol=1e-4)


def test_noise_goes_through_its_learned_strength() -> None:
    generator = Generator(upsamples=1, max_channels=16, **NARROW)
    content, style = noise(2, 8, 8, 4), noise(2, 16)
    maps = generator.draw_noise(2, 16, 16, tf.constant([1, 2]))
    assert [tuple(each.shape) for each in maps] == [(2, 8, 8, 1)] * 4 + [(2, 16, 16, 1)] * 2
    np.testing.assert_array_equal(generator(content, style, maps), generator(content, style))  # strengths start at 0
    enliven(generator)
    assert np.abs(generator(content, style, maps) - generator(content, style)).max() > 0.01
    again = generator.draw_noise(2, 16, 16, tf.constant([1, 2]))
    np.testing.assert_array_equal(maps[3], again[3])
    assert not np.array_equal(maps[0], maps[1])


def test_a_styled_convolution_by_its_formula() -> None:
    """`sqrt(2) leaky_relu(conv + strength noise + bias)`: the gain, folded into the weights, reaches all three."""
    layer = StyledConv(3, 5, 16, level=0)
    enliven(layer)
    maps, style, grain = noise(2, 6, 6, 3), noise(2, 16), noise(2, 6, 6, 1, seed=1)
    factors = layer.conv.modulation.affine(style)[:, None, None]
    factors *= tf.math.rsqrt(tf.reduce_mean(factors**2, axis=-1, keepdims=True))
    kernel = layer.conv.kernel.numpy()
    kernel /= np.linalg.norm(kernel.reshape(-1, 5), axis=0)
    plain = tf.nn.conv2d(maps * factors, kernel, 1, "SAME") + grain * layer.noise_strength.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(layer(maps, style, grain), 2**0.5 * tf.nn.leaky_relu(plain, 0.2), atol=1e-4)


def test_a_gain_is_a_factor_on_the_result() -> None:
    images, style, grain = noise(2, 6, 6, 3), noise(2, 16), noise(2, 6, 6, 1, seed=1)
    for make, inputs in (
        (lambda gain: Conv(3, 5, 3, gain=gain), (images,)),
        (lambda gain: Conv(3, 5, 3, activate=False, gain=gain), (images,)),
        (lambda gain: StyledConv(3, 5, 16, level=0, gain=gain), (images, style, grain)),
    ):
        plain, halved = make(1.0), make(0.5)
        enliven(plain)
        for weight, other in zip(halved.weights, plain.weights):
            weight.assign(other)
        np.testing.assert_allclose(halved(*inputs), 0.5 * plain(*inputs), atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_folded_networks_compute_the_same(precision: str) -> None:
    config = small_config()
    trained = AutoEncoder.from_config(config)
    enliven(trained.encoder, trained.generator)
    before = [weight.numpy() for weight in trained.generator.weights]
    folded = trained.folded(config, precision)
    images, looks, masks = noise(2, 16, 16, 3), noise(2, 16, 16, 3, seed=1), tf.fill([2, 16, 16, 1], 0.4)
    error = 1e-5 if precision == "float32" else 0.05
    for own, other in zip(folded.encode(images), trained.encode(images)):
        assert relative_difference(own, other) < error
    for strategy in blending.STRATEGIES:
        edits = [each.masked_blend(images, looks, masks, strategy=strategy) for each in (folded, trained)]
        assert relative_difference(*edits) < error
    for weights, others in zip(folded.weights, trained.weights):
        assert [weight.shape for weight in weights] == [other.shape for other in others]
        assert {tf.as_dtype(weight.dtype).name for weight in weights} == {precision.replace("mixed_", "")}
    folded.generator.weights[-1].assign_add(tf.ones_like(folded.generator.weights[-1]))
    for weight, old in zip(trained.generator.weights, before):
        np.testing.assert_array_equal(weight, old)


def test_folding_what_is_folded_changes_nothing() -> None:
    config = small_config()
    once = AutoEncoder.from_config(config).folded(config)
    for weights, others in zip(once.folded(config).weights, once.weights):
        for weight, other in zip(weights, others):
            np.testing.assert_array_equal(weight, other)
    with pytest.raises(ValueError, match="precision must be one of float32, mixed_bfloat16, got 'float16'"):
        once.folded(config, "float16")


def test_the_codes_lengths_do_not_matter() -> None:
    generator = Generator(upsamples=1, max_channels=16, **NARROW)
    enliven(generator)
    content, style = noise(2, 8, 8, 4), noise(2, 16)
    np.testing.assert_allclose(generator(5 * content, 0.1 * style), generator(content, style), atol=1e-4)


@pytest.fixture(scope="module")
def generator() -> Generator:
    network = Generator(upsamples=2, max_channels=16, **NARROW)
    enliven(network)
    return network


@pytest.mark.parametrize("grid", [(1, 1), (6, 8), (24, 32), (5, 3)])
def test_a_constant_style_map_is_the_vector(generator: Generator, grid: tuple) -> None:
    content, style = noise(2, 6, 8, 4), noise(2, 16)
    style_map = tf.tile(style[:, None, None], [1, *grid, 1])
    np.testing.assert_allclose(generator(content, style_map), generator(content, style), atol=2e-5)


def regions(generator: Generator, share: np.ndarray, styles: tf.Tensor) -> RegionStyles:
    """The same shares at every position: `[N, R]` of styles `[N, R, Cs]` for pictures of 24 x 32."""
    levels = range(generator.upsamples + 1)
    shares = tf.constant(share, tf.float32)[:, None, None]
    return RegionStyles(styles, [tf.tile(shares, [1, 24 >> level, 32 >> level, 1]) for level in levels])


def test_a_region_that_has_everything_is_its_vector(generator: Generator) -> None:
    content, styles = noise(2, 6, 8, 4), noise(2, 3, 16)
    mixed = regions(generator, np.eye(3)[[0, 2]], styles)
    chosen = tf.stack([styles[0, 0], styles[1, 2]])
    np.testing.assert_allclose(generator(content, mixed), generator(content, chosen), atol=2e-5)


def test_regions_of_one_style_are_its_vector(generator: Generator) -> None:
    content, style = noise(2, 6, 8, 4), noise(2, 16)
    mixed = regions(generator, np.array([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]]), tf.tile(style[:, None], [1, 3, 1]))
    np.testing.assert_allclose(generator(content, mixed), generator(content, style), atol=2e-5)


def test_a_style_map_acts_where_it_is(generator: Generator) -> None:
    """Left half one style, right half another: far from the middle each half is that style's picture."""
    content, styles = noise(1, 8, 48, 4), noise(2, 16)
    style_map = tf.repeat(tf.tile(styles[None, None], [1, 8, 1, 1]), 24, axis=2)  # 1 8 48 16
    half = generator(content, style_map)
    first, second = generator(content, styles[:1]), generator(content, styles[1:])
    np.testing.assert_allclose(half[:, :, :64], first[:, :, :64], atol=2e-5)
    np.testing.assert_allclose(half[:, :, -64:], second[:, :, -64:], atol=2e-5)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("resolution", [16, 48, 64, 80])
def test_discriminator(resolution: int) -> None:
    discriminator = Discriminator(resolution, channels=4, max_channels=16)
    images = noise(4, resolution, resolution, 3)
    logits = discriminator(images)
    assert logits.shape == (4,) and logits.dtype == tf.float32
    np.testing.assert_allclose(discriminator(images[1:2]), logits[1:2], atol=1e-4)  # no example touches another


@pytest.mark.parametrize("resolution", [4, 50, 100])
def test_discriminator_refuses_other_resolutions(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"got {resolution}"):
        Discriminator(resolution)


def test_patch_discriminator() -> None:
    critic = PatchDiscriminator(32, channels=4, max_channels=16, dense=(8, 8))
    enliven(critic)
    reference, query = noise(2, 3, 32, 32, 3), noise(2, 5, 32, 32, 3, seed=1)
    features = [critic.features(crops) for crops in (reference, query)]
    assert features[0].shape == (2, 3, critic.feature_size) and critic.feature_size == 4 * critic.widths[-1]
    logits = critic.pair(*features)
    assert logits.shape == (2, 5) and logits.dtype == tf.float32
    turned = critic.pair(features[0][:, ::-1], features[1])
    np.testing.assert_allclose(turned, logits, atol=1e-4)  # the reference is the mean of its crops
    np.testing.assert_allclose(critic.pair(features[0], features[1][:, 2:3]), logits[:, 2:3], atol=1e-4)
    same_count = query[:, :3]
    np.testing.assert_allclose(critic(reference, same_count), logits[:, :3], atol=1e-4)


@pytest.mark.parametrize("size", [8, 96])
def test_patch_discriminator_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"power of two and at least 16, got {size}"):
        PatchDiscriminator(size)


def test_a_large_kernel_is_applied_to_scaled_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.Conv(3, 5, 3, padding=(1, 1), reflect=True)
    images = tf.random.stateless_normal([2, 6, 7, 3], [0, 0])
    plain = layer(images)
    monkeypatch.setattr(ops, "LARGE", 0)
    np.testing.assert_allclose(layer(images), plain, atol=1e-6)


@pytest.mark.parametrize(("batch", "known"), [(1, True), (3, True), (1, False), (3, False)])
def test_a_generator_that_is_only_asked(batch: int, known: bool) -> None:
    """It scales kernels instead of maps, and adds noise that all pictures share together with the bias."""
    generator = Generator(**NARROW, max_channels=8, upsamples=2)
    enliven(generator)
    shared = generator.draw_noise(1, 32, 32, tf.constant([1, 2]))
    content, styles = noise(batch, 8, 8, 4), noise(batch, 16, seed=1)
    trained = generator(content, styles, shared)
    generator.trainable = False
    asked = tf.function(lambda content, styles: generator(content, styles, shared), autograph=False)
    first = batch if known else None
    graph = asked.get_concrete_function(tf.TensorSpec([first, 8, 8, 4]), tf.TensorSpec([first, 16]))
    assert relative_difference(graph(content, styles), trained) < 1e-5
    wide = [op for op in graph.graph.get_operations() if op.type == "Mul" and op.outputs[0].shape[1:3] == (32, 32)]
    assert any(op.outputs[0].shape[3] > 1 for op in wide) is not (batch == 1 and known)
