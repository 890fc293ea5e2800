"""How masks mix several styles in one picture, at feature level: one implementation for training and use.

Where TCP mixes is not stated in any source that we know; the three candidates are inferred (docs/method.md).

- `encoder_features`: the global transfers are encoded again and mixed with the input's deep features e; both heads
  read the mixture, and the generator decodes its codes. The closest to the paper's wording.
- `style_map`: the input's content is decoded once, with each layer modulated per position by the mixed styles.
- `generator_features`: every stage of the generator runs once per style on the same maps, and the results are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from tcp_tf import ops
from tcp_tf.encoder import Encoder
from tcp_tf.generator import Generator, Noise
from tcp_tf.layers import RegionStyles

STRATEGIES = ("encoder_features", "style_map", "generator_features")


def region_weights(masks: tf.Tensor, strength: Optional[tf.Tensor] = None) -> tf.Tensor:
    """Each region's share at each position, the background first.

    Args:
        masks: `[N, R, H, W, 1]` in [0, 1], 1 where a region takes its style. Where masks overlap to more than one,
            they share the position in proportion.
        strength: `[N]` in [0, 1]; scales all masks of an example. Default 1.
    Returns:
        `[N, H, W, 1 + R]`, summing to one over the last axis.
    """
    shares = tf.transpose(masks[..., 0], [0, 2, 3, 1])  # N H W R
    total = tf.reduce_sum(shares, axis=-1, keepdims=True)
    shares /= tf.maximum(total, 1.0)
    if strength is not None:
        shares *= strength[:, None, None, None]
    return tf.concat([1.0 - tf.reduce_sum(shares, axis=-1, keepdims=True), shares], axis=-1)


def repeat_regions(tensor: tf.Tensor, regions: int) -> tf.Tensor:
    """Every example `regions` times in a row: `[N, ...]` -> `[N * regions, ...]`."""
    return tf.repeat(tensor, regions, axis=0) if regions > 1 else tensor


def mix(stacked: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Weighted sum of maps: `[N * R, h, w, C]` and `[N, h, w, R]` -> `[N, h, w, C]`."""
    regions = weights.shape[-1]
    maps = tf.reshape(stacked, tf.concat([[-1, regions], tf.shape(stacked)[1:]], axis=0))  # N R h w C
    mixed = tf.add_n([maps[:, r] * tf.cast(weights[..., r, None], stacked.dtype) for r in range(regions)])
    return tf.ensure_shape(mixed, [None, *stacked.shape[1:]])


def blend(
    strategy: str,
    encoder: Encoder,
    generator: Generator,
    content: tf.Tensor,
    styles: tf.Tensor,
    weights: tf.Tensor,
    features: tf.Tensor,
    noise: Optional[Noise] = None,
    transfer_features: Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Decodes one content with a style per region.

    Args:
        strategy: one of `STRATEGIES`.
        content: `[N, h, w, Cc]` of the input picture.
        styles: `[N, 1 + R, Cs]`, the input's own style first, then one per region.
        weights: `[N, H, W, 1 + R]` from `region_weights`.
        features: `[N, h, w, deep]`, the encoder's trunk on the input picture (used by `encoder_features`).
        noise: as `Generator.draw_noise`, or None.
        transfer_features: `[N * R, h, w, deep]`, the trunk on the global transfers, where the caller has it already.
    Returns:
        `[N, H, W, 3]` hybrid pictures.
    Raises:
        ValueError: the strategy does not exist.
    """
    if strategy == "style_map":
        levels = ops.pyramid(weights, generator.upsamples)
        return generator(content, RegionStyles(styles, levels), noise)
    if strategy == "encoder_features":
        return _encoder_features(encoder, generator, content, styles, weights, features, noise, transfer_features)
    if strategy == "generator_features":
        return _generator_features(generator, content, styles, weights, noise)
    raise ValueError(f"blend.strategy must be one of {STRATEGIES}, got {strategy!r}")


def _encoder_features(encoder, generator, content, styles, weights, features, noise, transfer_features) -> tf.Tensor:
    regions = styles.shape[1] - 1
    if transfer_features is None:
        transfers = generator(
            repeat_regions(content, regions),
            tf.reshape(styles[:, 1:], [-1, styles.shape[2]]),
            None if noise is None else _repeat_noise(noise, content, regions),
        )
        transfer_features = encoder.trunk(transfers)  # N*R h w deep
    shape = tf.concat([[-1, regions], tf.shape(transfer_features)[1:]], axis=0)
    stacked = tf.concat([features[:, None], tf.reshape(transfer_features, shape)], axis=1)
    stacked = tf.reshape(stacked, tf.concat([[-1], tf.shape(features)[1:]], axis=0))
    stacked = tf.ensure_shape(stacked, [None, *features.shape[1:]])
    coarse = ops.pyramid(weights, encoder.downsamples)[-1]
    codes = encoder.heads(mix(stacked, coarse))
    return generator(codes.content, codes.style, noise)


def _generator_features(generator, content, styles, weights, noise) -> tf.Tensor:
    regions = styles.shape[1]
    levels = ops.pyramid(weights, generator.upsamples)
    maps, flat = generator.entry(content, tf.reshape(styles, [-1, styles.shape[2]]))
    level = generator.upsamples
    for stage, stage_noise in zip(generator.stages, generator.split_noise(noise)):
        stage_noise = [None if n is None else _repeat_noise([n], content, regions)[0] for n in stage_noise]
        stacked = generator.run(stage, repeat_regions(maps, regions), flat, stage_noise)
        level = stage.noise_levels[-1] if stage.noise_levels else level
        maps = mix(stacked, levels[level])
    return tf.cast(maps, tf.float32)


def _repeat_noise(noise: Sequence[tf.Tensor], content: tf.Tensor, regions: int) -> Sequence[tf.Tensor]:
    """The same noise for every region of an example; noise of batch 1 fits any batch as it is."""
    return [n if n.shape[0] == 1 and content.shape[0] != 1 else repeat_regions(n, regions) for n in noise]
