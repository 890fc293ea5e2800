"""Our networks compute the function of the official Swapping Autoencoder: full size, CPU, float32.

`data/official_sa_256.npz` holds what the official PyTorch networks returned for weights and inputs that the rule below
gives; `test_official_names.py` compares names and shapes with their state dict.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tcp_tf import official_names
from tcp_tf.discriminators import Discriminator, PatchDiscriminator
from tcp_tf.encoder import Encoder
from tcp_tf.generator import Generator

DATA = Path(__file__).parent / "data"
TOLERANCE = 3e-5  # norm of the difference over norm
EVERY = 4  # the pictures are kept at every 4th row and column


def rule(name: str, shape: tuple) -> np.ndarray:
    """The official weights of the parity data: a standard normal draw seeded by the name, scaled by its kind."""
    weights = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("noise.weight"):
        return weights * 0
    if name.endswith("modulation.bias"):
        return 1 + np.float32(0.1) * weights
    if name.endswith("bias"):
        return np.float32(0.1) * weights
    if ".modulation.weight" in name or "SpatialCodeModulation" in name:
        return np.float32(40) * weights
    return weights


def load_rule(network, build) -> None:
    """Gives the network the rule's weights through the official names."""
    entries = list(build(network))
    official_names.load(
        entries,
        {entry.name: rule(entry.name, entry.shape) if entry.constant is None else entry.constant for entry in entries},
    )


def nchw(values: tf.Tensor) -> np.ndarray:
    return np.moveaxis(values.numpy(), -1, 1)


def enlarge(coarse: np.ndarray) -> tf.Tensor:
    """N C h w -> N 16h 16w C, bilinear with half-pixel centres."""
    coarse = tf.constant(np.moveaxis(coarse, 1, -1))
    return tf.image.resize(coarse, [16 * coarse.shape[1], 16 * coarse.shape[2]], method="bilinear")


@pytest.fixture(scope="module")
def data():
    with np.load(DATA / "official_sa_256.npz") as arrays:
        return {name: arrays[name] for name in arrays.files if "/" not in name}


@pytest.fixture
def agree(data, capsys):
    def compare(name: str, ours: np.ndarray) -> None:
        expected = data[name]
        assert ours.shape == expected.shape
        error = np.linalg.norm(ours.astype(np.float64) - expected) / np.linalg.norm(expected)
        with capsys.disabled():
            print(f"\n  {name}: relative error {error:.1e}", end="")
        assert error <= TOLERANCE, f"{name}: relative error {error:.2e} > {TOLERANCE:.0e}"

    return compare


def test_encoder_content_and_style(data, agree):
    encoder = Encoder()
    load_rule(encoder, official_names.encoder_entries)
    codes = encoder(enlarge(data["images_coarse"]))
    agree("content", nchw(codes.content))
    agree("style", codes.style.numpy())


def test_generator_with_a_style_and_with_a_style_map(data, agree):
    generator = Generator()
    load_rule(generator, official_names.generator_entries)
    content, style = tf.constant(np.moveaxis(data["content"], 1, -1)), tf.constant(data["style"])
    agree("reconstruction", nchw(generator(content, style)[:, ::EVERY, ::EVERY]))
    agree("swap", nchw(generator(content, style[::-1])[:, ::EVERY, ::EVERY]))
    rows = tf.stack([style[1], style[1], style[0], style[0]])  # 4 Cs
    style_map = tf.tile(rows[None, :, None, :], [1, 1, 4, 1])  # 1 4 4 Cs
    agree("reconstruction_style_map", nchw(generator(content[:1], style_map)[:, ::EVERY, ::EVERY]))


def test_discriminator_logits(data, agree):
    discriminator = Discriminator()
    load_rule(discriminator, official_names.discriminator_entries)
    agree("logits", discriminator(enlarge(data["images_coarse"])).numpy()[:, None])


def test_patch_discriminator_features_and_logits(data, agree):
    patch_discriminator = PatchDiscriminator()
    load_rule(patch_discriminator, official_names.patch_discriminator_entries)
    crops = tf.reshape(enlarge(data["crops_coarse"]), [2, 2, 128, 128, 3])  # two crops of each of two pictures
    features = patch_discriminator.features(crops)  # N K F, F = 2 2 384 flattened
    mean = tf.broadcast_to(tf.reduce_mean(features, axis=1, keepdims=True), features.shape)
    agree("patch_features", nchw(tf.reshape(features, [4, 2, 2, -1])))
    agree("patch_features_aggregated", nchw(tf.reshape(mean, [4, 2, 2, -1])))
    agree("patch_logits", patch_discriminator.pair(features, features).numpy().reshape(4, 1))
