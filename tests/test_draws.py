"""Random numbers of a step: functions of (seed, step, place in the global batch) and nothing else."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from small import enliven, small_config

from tcp_tf.autoencoder import build_generator
from tcp_tf.config import Config
from tcp_tf.draws import NOISE_RECONSTRUCTION, NOISE_SWAP, Draws

CONFIG = small_config("data.batch_size=8", "patches.crops=50", "augment={content_colours: 0.5, colour_clusters: 3}")
GENERATOR = build_generator(CONFIG)


def everything(config: Config, step: int, *positions: int) -> list[np.ndarray]:
    """Crops, masks, colours and both kinds of noise for examples at these places."""
    draws = Draws(config, tf.constant(step, tf.int64), tf.constant(positions))
    noise = draws.noise(GENERATOR, NOISE_SWAP)
    pairs = draws.noise(GENERATOR, NOISE_RECONSTRUCTION, every=2)
    assert noise is not None and pairs is not None
    colours = *draws.colour_maps(), *draws.colour_clusters()[:2]
    return [array.numpy() for array in (draws.boxes(3), draws.masks(), *colours, *noise, *pairs)]


def test_replicas_see_their_rows_of_the_whole() -> None:
    whole = everything(CONFIG, 5, *range(8))
    parts = [everything(CONFIG, 5, *range(first, first + 4)) for first in (0, 4)]
    for expected, *halves in zip(whole, *parts):
        np.testing.assert_array_equal(np.concatenate(halves), expected)


def test_steps_seeds_and_purposes_differ() -> None:
    first, again = everything(CONFIG, 5, *range(8)), everything(CONFIG, 5, *range(8))
    others = everything(CONFIG, 6, *range(8)), everything(CONFIG.model_copy(update={"seed": 1}), 5, *range(8))
    for ours, same, *changed in zip(first, again, *others):
        np.testing.assert_array_equal(ours, same)
        assert not any(np.array_equal(ours, other) for other in changed)
    noise = first[6:]
    assert len({array.tobytes() for array in noise}) == len(noise), "no two layers share their noise"


def test_crops_lie_inside_and_have_the_sizes_asked_for() -> None:
    boxes = everything(CONFIG, 0, *range(8))[0].reshape(-1, 4)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= 1 + 1e-6).all()
    start, end = np.minimum(left, left + width), np.maximum(left, left + width)
    assert (start >= -1e-6).all() and (end <= 1 + 1e-6).all()
    patches = CONFIG.patches
    for size in (height, np.abs(width)):
        assert patches.min_scale <= size.min() < patches.min_scale + 0.01
        assert patches.max_scale - 0.01 < size.max() <= patches.max_scale
    assert 0.4 < (width < 0).mean() < 0.6, "half of them mirrored"
    assert abs(np.corrcoef(height, np.abs(width))[0, 1]) < 0.1, "independent sides"
    upright = CONFIG.model_copy(update={"patches": patches.model_copy(update={"mirror": False})})
    assert (everything(upright, 0, *range(8))[0][..., 3] > 0).all()


def test_colour_maps() -> None:
    many = small_config("data.batch_size=4096", "augment={content_colours: 0.5, least_colours: 0.2, colour_grid: 2}")
    draws = Draws(many, tf.constant(0, tf.int64), tf.range(4096))
    maps, shares = (array.numpy() for array in draws.colour_maps())
    assert maps.shape == (4096, 2, 2, 4, 3) and shares.shape == (4096,)
    assert 0.1 <= shares.min() < 0.11 and 0.49 < shares.max() <= 0.5
    np.testing.assert_allclose(shares.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose(maps.mean(0), np.zeros((2, 2, 4, 3)), atol=0.06)
    # Three independent channels of unit variance, times the matrix, have unit variance again.
    np.testing.assert_allclose(maps[..., :3, :].var(0), np.full((2, 2, 3, 3), 1 / 3), rtol=0.15)
    np.testing.assert_allclose(maps[..., 3, :].var(0), np.full((2, 2, 3), 0.09), rtol=0.15)
    flat = np.concatenate([maps.reshape(4096, 48), shares[:, None]], axis=1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(49)).max() < 0.12


def test_colour_clusters() -> None:
    augment = "augment={content_colours: 0.5, least_colours: 0.2, colour_clusters: 2}"
    many = small_config("data.batch_size=4096", augment)
    draws = Draws(many, tf.constant(0, tf.int64), tf.range(4096))
    places, maps, shares = (array.numpy() for array in draws.colour_clusters())
    assert places.shape == (4096, 2) and maps.shape == (4096, 2, 4, 3)
    np.testing.assert_array_equal(shares, draws.colour_maps()[1])
    assert places.min() >= 0.0 and places.max() < 1.0
    np.testing.assert_allclose(places.mean(0), [0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(maps.mean(0), np.zeros((2, 4, 3)), atol=0.06)
    np.testing.assert_allclose(maps[..., :3, :].var(0), np.full((2, 3, 3), 1 / 3), rtol=0.15)
    np.testing.assert_allclose(maps[..., 3, :].var(0), np.full((2, 3), 0.36), rtol=0.15)
    flat = np.concatenate([maps.reshape(4096, 24), places, shares[:, None]], axis=1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(27)).max() < 0.12


def test_no_noise() -> None:
    quiet = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"noise": False})})
    assert Draws(quiet, tf.constant(0, tf.int64), tf.range(8)).noise(GENERATOR, NOISE_SWAP) is None


def test_noise_for_one_of_each_pair_fits_the_generator() -> None:
    enliven(GENERATOR)
    noise = Draws(CONFIG, tf.constant(0, tf.int64), tf.range(8)).noise(GENERATOR, NOISE_RECONSTRUCTION, every=2)
    content, style = tf.random.stateless_normal([4, 8, 8, 4], [1, 2]), tf.random.stateless_normal([4, 16], [3, 4])
    assert GENERATOR(content, style, noise).shape == (4, 16, 16, 3)
