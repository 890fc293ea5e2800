"""Region-wise blending: what masks, strengths and several regions must mean, for each of the three strategies."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from small import enliven

from tcp_tf import blending, ops
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.encoder import Encoder
from tcp_tf.generator import Generator

SIDE = 64
# Where a style is mixed inside the generator, a whole mask is the global transfer. `encoder_features` reads the
# transfer again with the encoder and decodes it a second time, which is not the same picture.
IN_THE_GENERATOR = ("style_map", "generator_features")
every_strategy = pytest.mark.parametrize("strategy", blending.STRATEGIES)


@pytest.fixture(scope="module")
def model() -> AutoEncoder:
    encoder = Encoder(channels=4, downsamples=1, content_dim=4, style_dim=16)
    generator = Generator(channels=16, max_channels=16, upsamples=1, content_dim=4, style_dim=16)
    enliven(encoder, generator)
    return AutoEncoder(encoder, generator)


def pictures(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_uniform([*shape, SIDE, SIDE, 3], [seed, 9], -1.0, 1.0)


IMAGES, LOOKS = pictures(2), pictures(2, 2, seed=1)


def stripes(*edges: int) -> np.ndarray:
    """`[2, R, SIDE, SIDE, 1]`: region r covers the columns from edges[r] to edges[r + 1]."""
    masks = np.zeros((2, len(edges) - 1, SIDE, SIDE, 1), np.float32)
    for r in range(len(edges) - 1):
        masks[:, r, :, edges[r] : edges[r + 1]] = 1
    return masks


def same(a: tf.Tensor, b: tf.Tensor) -> None:
    np.testing.assert_allclose(a, b, atol=3e-5)


def different(a: tf.Tensor, b: tf.Tensor) -> None:
    assert np.abs(a - b).max() > 1e-2


def ones(*shape: int) -> np.ndarray:
    return np.ones((*shape, SIDE, SIDE, 1), np.float32)


def test_strategies_give_different_pictures(model: AutoEncoder) -> None:
    answers = [model.masked_blend(IMAGES, LOOKS, stripes(8, 24, 40), strategy=s) for s in blending.STRATEGIES]
    for answer in answers:
        assert answer.shape == IMAGES.shape and np.all(np.isfinite(answer))
    different(answers[0], answers[1])
    different(answers[0], answers[2])
    different(answers[1], answers[2])


@every_strategy
def test_no_mask_is_the_reconstruction(model: AutoEncoder, strategy: str) -> None:
    reconstruction = model.decode(*model.encode(IMAGES))
    same(model.masked_blend(IMAGES, LOOKS, 0 * ones(2, 2), strategy=strategy), reconstruction)
    same(model.masked_blend(IMAGES, LOOKS, ones(2, 2), tf.zeros([2]), strategy), reconstruction)


@every_strategy
def test_a_whole_mask_is_the_global_transfer(model: AutoEncoder, strategy: str) -> None:
    transfer = model.swap(IMAGES, LOOKS[:, 0])
    blend = model.masked_blend(IMAGES, LOOKS[:, 0], ones(2), strategy=strategy)
    if strategy in IN_THE_GENERATOR:
        same(blend, transfer)
    else:
        same(blend, model.decode(*model.encode(transfer)))
    same(model.masked_blend(IMAGES, LOOKS[:, 0], ones(2), tf.ones([2]), strategy), blend)


@pytest.mark.parametrize("strategy", IN_THE_GENERATOR)
def test_every_region_has_its_own_style(model: AutoEncoder, strategy: str) -> None:
    """Away from the edges, further than the generator sees: background, first style, second style."""
    images = tf.concat([IMAGES, IMAGES], axis=2)  # 2 64 128 3
    masks = np.concatenate([stripes(42, 64, 64), stripes(0, 22, 64)], axis=3)
    blend = model.masked_blend(images, LOOKS, masks, strategy=strategy)
    expected = [model.decode(*model.encode(images)), model.swap(images, LOOKS[:, 0]), model.swap(images, LOOKS[:, 1])]
    for answer, columns in zip(expected, (slice(0, 20), slice(63, 65), slice(108, 128))):
        same(blend[:, :, columns], answer[:, :, columns])
    different(expected[1], expected[0])
    different(expected[1], expected[2])


@every_strategy
def test_regions_may_come_in_any_order_and_be_cut_in_two(model: AutoEncoder, strategy: str) -> None:
    masks = stripes(8, 30, 50)
    blend = model.masked_blend(IMAGES, LOOKS, masks, strategy=strategy)
    same(model.masked_blend(IMAGES, LOOKS[:, ::-1], masks[:, ::-1], strategy=strategy), blend)
    three = tf.concat([LOOKS, LOOKS[:, 1:]], axis=1)
    same(model.masked_blend(IMAGES, three, stripes(8, 30, 41, 50), strategy=strategy), blend)


@every_strategy
def test_one_region_needs_no_region_axis(model: AutoEncoder, strategy: str) -> None:
    masks = stripes(16, 40)
    same(
        model.masked_blend(IMAGES, LOOKS[:, 0], masks[:, 0], strategy=strategy),
        model.masked_blend(IMAGES, LOOKS[:, :1], masks, strategy=strategy),
    )


@every_strategy
def test_strength_is_a_softer_mask(model: AutoEncoder, strategy: str) -> None:
    masks, strength = stripes(8, 30, 50), tf.constant([0.3, 0.8])
    softer = masks * strength.numpy()[:, None, None, None, None]
    by_strength = model.masked_blend(IMAGES, LOOKS, masks, strength, strategy)
    same(by_strength, model.masked_blend(IMAGES, LOOKS, softer, strategy=strategy))
    different(by_strength, model.masked_blend(IMAGES, LOOKS, masks, strategy=strategy))


@every_strategy
def test_soft_masks_go_smoothly_between_both_ends(model: AutoEncoder, strategy: str) -> None:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    steps = [model.masked_blend(IMAGES, LOOKS[:, 0], share * ones(2), strategy=strategy) for share in shares]
    lengths = [float(tf.norm(after - before)) for before, after in zip(steps, steps[1:])]
    assert max(lengths) < 0.75 * float(tf.norm(steps[-1] - steps[0])), "no step makes most of the way"


@every_strategy
def test_an_example_does_not_depend_on_its_neighbours(model: AutoEncoder, strategy: str) -> None:
    masks, strength = stripes(8, 30, 50), tf.constant([0.5, 1.0])
    masks[1] = 1 - masks[1]
    both = model.masked_blend(IMAGES, LOOKS, masks, strength, strategy)
    for i in range(2):
        one = slice(i, i + 1)
        same(model.masked_blend(IMAGES[one], LOOKS[one], masks[one], strength[one], strategy), both[one])


@every_strategy
def test_sizes_are_free_in_a_graph(model: AutoEncoder, strategy: str) -> None:
    """Unknown batch, height and width; style images of another size than the picture."""
    signature = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, 2, None, None, 3])]
    signature += [tf.TensorSpec([None, 2, None, None, 1]), tf.TensorSpec([None])]
    graph = tf.function(lambda a, b, m, s: model.masked_blend(a, b, m, s, strategy), signature)
    images, looks, masks = IMAGES[:, :48, :32], LOOKS[:, :, :40, :56], stripes(8, 20, 30)[:, :, :48, :32]
    strength = tf.constant([0.5, 1.0])
    same(graph(images, looks, masks, strength), model.masked_blend(images, looks, masks, strength, strategy))


def test_region_weights() -> None:
    masks = np.array([[0.25, 0.5], [1.0, 1.0], [0.0, 0.0], [1.0, 0.6]], np.float32)[:, :, None, None, None]  # 4 2 1 1 1
    weights = blending.region_weights(masks)
    expected = [[0.25, 0.25, 0.5], [0, 0.5, 0.5], [1, 0, 0], [0, 0.625, 0.375]]
    np.testing.assert_allclose(weights[:, 0, 0], expected, atol=1e-6)
    halved = blending.region_weights(masks, tf.constant([0.5, 0.5, 0.5, 0.0]))
    np.testing.assert_allclose(
        halved[:, 0, 0], [[0.625, 0.125, 0.25], [0.5, 0.25, 0.25], [1, 0, 0], [1, 0, 0]], atol=1e-6
    )


def test_encoder_features_mixes_what_the_trunk_sees(model: AutoEncoder) -> None:
    """e_h = m e(I_g) + (1 - m) e(I_A); both heads read e_h; I_h = G(C_h, S_h)."""
    masks = stripes(9, 40)
    transfer = model.swap(IMAGES, LOOKS[:, 0])
    share = ops.pyramid(tf.constant(masks[:, 0]), 1)[-1]
    features = share * model.encoder.trunk(transfer) + (1 - share) * model.encoder.trunk(IMAGES)
    expected = model.decode(*model.encoder.heads(features))
    same(model.masked_blend(IMAGES, LOOKS[:, :1], masks, strategy="encoder_features"), expected)
    # with the transfer's features at hand, as in training
    codes, style = model.encode(IMAGES), model.encode(LOOKS[:, 0]).style
    given = blending.blend(
        "encoder_features",
        model.encoder,
        model.generator,
        codes.content,
        tf.stack([codes.style, style], axis=1),
        blending.region_weights(masks),
        model.encoder.trunk(IMAGES),
        model.fixed_noise(codes.content),
        model.encoder.trunk(transfer),
    )
    same(given, expected)


@every_strategy
def test_noise_per_example_stays_with_its_example(model: AutoEncoder, strategy: str) -> None:
    """In training every example has noise of its own: a whole mask must be decoded with the swap's."""
    codes, style = model.encode(IMAGES), model.encode(LOOKS[:, 0]).style
    noise = model.generator.draw_noise(2, SIDE, SIDE, tf.constant([4, 2]))
    styles = tf.stack([codes.style, style, codes.style], axis=1)
    features = model.encoder.trunk(IMAGES)

    def blend(*shares: float) -> tf.Tensor:
        weights = tf.tile(tf.constant(shares)[None, None, None], [2, SIDE, SIDE, 1])
        arguments = (model.encoder, model.generator, codes.content, styles, weights, features, noise)
        return blending.blend(strategy, *arguments)

    same(blend(1.0, 0.0, 0.0), model.generator(codes.content, codes.style, noise))
    transfer = model.generator(codes.content, style, noise)
    if strategy not in IN_THE_GENERATOR:
        transfer = model.generator(*model.encode(transfer), noise)
    same(blend(0.0, 1.0, 0.0), transfer)


def test_what_does_not_fit_is_refused(model: AutoEncoder) -> None:
    with pytest.raises(ValueError, match="blend.strategy must be one of .* got 'pixels'"):
        model.masked_blend(IMAGES, LOOKS, ones(2, 2), strategy="pixels")
    with pytest.raises(ValueError, match="blend.strategy must be one of .* got 'pixels'"):
        AutoEncoder(model.encoder, model.generator, "pixels")
    with pytest.raises(ValueError, match="as many styles as masks are needed, got 2 and 3"):
        model.masked_blend(IMAGES, LOOKS, ones(2, 3))


def test_interpolation(model: AutoEncoder) -> None:
    first, second = LOOKS[:, 0], LOOKS[:, 1]
    ends = model.interpolate(IMAGES, first, second, tf.constant([0.0, 1.0]))
    same(ends[:1], model.swap(IMAGES, first)[:1])
    same(ends[1:], model.swap(IMAGES, second)[1:])
    middle = ops.normalize(model.encode(first).style + model.encode(second).style)
    expected = model.decode(model.encode(IMAGES).content, middle)
    same(model.interpolate(IMAGES, first, second, tf.constant([0.5, 0.5])), expected)
