"""What a trained model, and what no model at all, answers to the pairs of pictures on which models are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.colour_transfer import colour_transfer
from tcp_tf.pairs import Pairs

PIXELS_PER_BATCH = 2**17


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model makes of N pairs: pictures float32 [N, R, R, 3] clipped to [-1, 1], and codes."""

    reconstruction: np.ndarray
    swap: np.ndarray
    edit: np.ndarray
    content: np.ndarray  # [N, h, w, Cc] of the pictures
    style: np.ndarray  # [N, Cs] of the pictures
    swap_content: np.ndarray  # of the swaps, encoded again
    swap_style: np.ndarray


def answer(autoencoder: AutoEncoder, pairs: Pairs) -> Answers:
    """Runs a model over the pairs."""

    @tf.function
    def run(images: tf.Tensor, style_images: tf.Tensor, masks: tf.Tensor) -> tuple[tf.Tensor, ...]:
        codes = autoencoder.encode(images)
        reconstruction = autoencoder.decode(*codes)
        swap = autoencoder.decode(codes.content, autoencoder.encode(style_images).style)
        edit = autoencoder.masked_blend(images, style_images, masks)
        again = autoencoder.encode(swap)
        return reconstruction, swap, edit, codes.content, codes.style, again.content, again.style

    results = in_batches(run, pairs.images, pairs.style_images, pairs.masks)
    return Answers(*map(shown, results[:3]), *results[3:])


def reconstruct_and_swap(autoencoder: AutoEncoder, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The two pictures that matter most, clipped to [-1, 1]: reconstructions and swaps, each [N, R, R, 3]."""

    @tf.function
    def run(images: tf.Tensor, style_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        codes, style = autoencoder.encode(images), autoencoder.encode(style_images).style
        return autoencoder.decode(*codes), autoencoder.decode(codes.content, style)

    reconstruction, swap = in_batches(run, pairs.images, pairs.style_images)
    return shown(reconstruction), shown(swap)


def in_batches(function: Callable[..., Any], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Applies a function of batches, which returns a tuple of tensors, to whole arrays [N, H, W, C].

    Batches are bounded by memory; the last is filled up with copies of its last row, so that all have one shape.
    """
    height, width = arrays[0].shape[1:3]
    batch = max(1, min(len(arrays[0]), PIXELS_PER_BATCH // (height * width)))
    parts = []
    for start in range(0, len(arrays[0]), batch):
        rows = [array[start : start + batch] for array in arrays]
        count = len(rows[0])
        filled = [np.concatenate([each, np.repeat(each[-1:], batch - count, axis=0)]) for each in rows]
        results = function(*(tf.constant(each, tf.float32) for each in filled))
        parts.append([np.asarray(result, np.float32)[:count] for result in results])
    return tuple(np.concatenate(results) for results in zip(*parts))


def shown(pictures: np.ndarray) -> np.ndarray:
    """What a person sees of a decoder's output: clipped to [-1, 1]."""
    return np.clip(pictures, -1.0, 1.0)


def trivial_swaps(pairs: Pairs) -> dict[str, np.ndarray]:
    """The swaps that need no model, by name: [N, R, R, 3] in [-1, 1]."""
    transferred = shown(colour_transfer(pairs.images, pairs.style_images))
    return {"content_image": pairs.images, "style_image": pairs.style_images, "colour_transfer": transferred}
