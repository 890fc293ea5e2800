"""Our weights for the PyTorch networks, and the proof that both compute the same before anything is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch

from benchmarks.cases import network_sizes, random_images, stripes
from benchmarks.children import SIZES, WEIGHTS, Request
from benchmarks.reference_torch import Networks, crops
from benchmarks.torch_cases import load_networks
from tcp_tf import config as configuration
from tcp_tf import official_names, ops
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config
from tcp_tf.critics import build_discriminator, build_patch_discriminator
from tcp_tf.discriminators import Discriminator, PatchDiscriminator

TOLERANCE = 1e-5  # norm of the difference over norm


def run(request: Request) -> dict[str, float]:
    """Writes freshly drawn weights of ours and the networks' sizes to `request.weights`, a directory, and compares.

    Biases are drawn too, since at zero they would hide mistakes. The strengths of the noise stay zero.

    Returns:
        The relative error of every output, by name.
    Raises:
        ValueError: one is above TOLERANCE.
    """
    keras.utils.set_random_seed(2)  # with 1 a logit happens to be near zero, which makes its relative error large
    config = configuration.load(request.config, request.overrides)
    ours = AutoEncoder.from_config(config)
    critics = build_discriminator(config), build_patch_discriminator(config)
    for network in (ours.encoder, ours.generator, *critics):
        for variable in network.trainable_variables:
            if variable.name == "bias":
                variable.assign_add(tf.random.normal(variable.shape, stddev=0.1))
    directory = Path(str(request.weights))
    write(directory, config, ours, *critics)
    errors = compare(config, ours, *critics, load_networks(directory, grouped=True))
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE:
        raise ValueError(f"{worst}: the PyTorch network differs by {errors[worst]:.1e}, more than {TOLERANCE:.0e}")
    return errors


def write(
    directory: Path, config: Config, ours: AutoEncoder, critic: Discriminator, patch_critic: PatchDiscriminator
) -> None:
    """The weights in the official order and layout, and the sizes that the PyTorch networks are built from."""
    entries = official_names.entries(ours.encoder, ours.generator, critic, patch_critic)
    arrays = official_names.export([entry for entry in entries if entry.layout is not None])
    np.savez(directory / WEIGHTS, **arrays)
    (directory / SIZES).write_text(json.dumps(network_sizes(config, ours, critic, patch_critic)), encoding="utf-8")


def nchw(images: tf.Tensor) -> torch.Tensor:
    """`[..., H, W, C]` of TensorFlow as `[..., C, H, W]` of PyTorch."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images.numpy(), -1, -3)))


def relative_error(ours: tf.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over norm; both in the same layout, or maps in each one's own."""
    values = np.asarray(ours, np.float64)
    values = np.moveaxis(values, -1, -3) if values.ndim > 3 else values
    other = theirs.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(other - values) / np.linalg.norm(values))


def compare(
    config: Config,
    ours: AutoEncoder,
    critic: Discriminator,
    patch_critic: PatchDiscriminator,
    theirs: Networks,
) -> dict[str, float]:
    """Relative errors of codes, pictures, a masked blend, logits, crops and patch logits, for two pictures."""
    side, patch = config.data.resolution, config.model.patch_size
    images, looks = random_images(2, side, 5), random_images(4, side, 6)
    looks = tf.reshape(looks, [2, 2, side, side, 3])
    masks = stripes(2, 2, side)
    boxes = tf.constant([[[0.1, 0.2, 0.2, 0.15], [0.7, 0.9, 0.25, -0.2]]] * 2)  # the second crop is mirrored
    codes = ours.encode(images)
    cut = ops.crop_and_resize(images, boxes, patch)
    features = patch_critic.features(cut)
    with torch.no_grad():
        content, style = theirs.encoder(nchw(images))
        their_cut = crops(nchw(images), torch.from_numpy(boxes.numpy()), patch)
        their_features = theirs.patch_discriminator.features(their_cut)
        pairs: dict[str, tuple[Any, torch.Tensor]] = {
            "content": (codes.content, content),
            "style": (codes.style, style),
            "swap": (ours.decode(codes.content, codes.style[::-1]), theirs.generator(content, style.flip(0))),
            "masked_blend": (
                ours.masked_blend(images, looks, masks, strategy="style_map"),
                theirs.masked_blend(nchw(images), nchw(looks), nchw(masks)[:, :, 0]),
            ),
            "logits": (critic(images), theirs.discriminator(nchw(images))),
            "crops": (cut, their_cut),
            "patch_logits": (
                patch_critic.pair(features, features[::-1]),
                theirs.patch_discriminator(their_features, their_features.flip(0)),
            ),
        }
    return {name: relative_error(*pair) for name, pair in pairs.items()}
