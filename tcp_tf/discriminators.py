"""The two critics: one for whole pictures, one for the co-occurrence of patches.

StyleGAN2's residual discriminator without minibatch statistics (arXiv 1912.04958) and the Swapping Autoencoder's
patch co-occurrence discriminator (arXiv 2007.00653, section 3.2).
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from tcp_tf import target
from tcp_tf.layers import BRANCH_GAIN, Conv, Dense, attach, blurred, forgetful

TAPS = (1, 3, 3, 1)


class CriticBlock(keras.layers.Layer):
    """Residual block, zero padding throughout: `[N, H, W, inputs]` -> `[N, H/2, W/2, outputs]` (or the same H, W)."""

    def __init__(self, inputs: int, outputs: int, *, down: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.down = down
        signs_only = target.gpu()  # on a CPU, where lots bound what is kept, signs cost more time than they save memory
        self.conv1 = Conv(inputs, inputs, 3, padding=(1, 1), signs_only=signs_only and down, name="conv1")
        stride, padding = (2, (0, 0)) if down else (1, (1, 1))
        self.conv2 = Conv(
            inputs, outputs, 3, stride=stride, padding=padding, gain=BRANCH_GAIN, signs_only=signs_only, name="conv2"
        )
        self.skip = Conv(inputs, outputs, 1, bias=False, activate=False, gain=BRANCH_GAIN, name="skip")
        self.built = True

    def call(self, images: tf.Tensor) -> tf.Tensor:
        maps, skip = self.conv1(images), images
        if self.down:
            # N H+2 W+2 inputs, of which conv2 does not read the last line and column: as in `ModulatedConv`, for the
            # sake of the gradient, which is a transposed convolution.
            maps = blurred(maps, TAPS, (2, 3), self.trainable)
            skip = blurred(images, TAPS, (1, 1), self.trainable, stride=2)  # N H/2 W/2 inputs
        return self.conv2(maps) + self.skip(skip)


def discriminator_widths(steps: int, channels: int, max_channels: int, capacity: float) -> list[int]:
    """Widths from the picture (3 or 4 times 2^steps px) to the last maps; see `Discriminator`."""
    return [max(1, int(min(max_channels, channels * capacity * 256 / 2 ** (steps + 2 - i)))) for i in range(steps + 1)]


class Discriminator(keras.Model):
    """Pictures `[N, R, R, 3]` -> logits `[N]`, float32; large means real.

    Args:
        resolution: R; R / 2^round(log2(R) - 2) must be whole (256 ends at 4x4, 768 at 3x3).
        channels: width at 256 px (128); proportional to 1 / resolution, at most `max_channels`.
        capacity: multiplies the widths before that bound.
        recompute: blocks compute their activations again for the gradient, see `layers.forgetful`.
    """

    def __init__(
        self,
        resolution: int = 256,
        channels: int = 128,
        max_channels: int = 512,
        capacity: float = 1.0,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        steps = round(math.log2(resolution)) - 2
        if steps < 1 or resolution % 2**steps:
            raise ValueError(f"discriminator resolution must be 3, 4 or 5 times a power of two, got {resolution}")
        widths = discriminator_widths(steps, channels, max_channels, capacity)
        side = resolution // 2**steps
        self.resolution, self.widths = resolution, widths
        self.from_rgb = Conv(3, widths[0], 1, name="from_rgb")
        self.blocks = attach(self, [CriticBlock(widths[i], widths[i + 1], name=f"down{i}") for i in range(steps)])
        self.final_conv = Conv(widths[-1], widths[-1], 3, padding=(1, 1), name="final_conv")
        self.dense0 = Dense(widths[-1] * side * side, widths[-1], activate=True, name="dense0")
        self.dense1 = Dense(widths[-1], 1, name="dense1")
        self.built = True

    def call(self, images: tf.Tensor, keep: bool = False) -> tf.Tensor:
        """With `keep` all activations are kept, for a gradient that is differentiated in turn."""
        maps = self.from_rgb(images)
        for block in self.blocks:
            maps = forgetful(block, self.recompute and not keep)(maps)
        maps = self.final_conv(maps)
        flat = tf.reshape(maps, [-1, maps.shape[1] * maps.shape[2] * maps.shape[3]])
        return tf.cast(self.dense1(self.dense0(flat))[:, 0], tf.float32)


def patch_widths(steps: int, channels: int, max_channels: int, capacity: float) -> list[int]:
    """Widths from the crop (4 times 2^steps px) to maps of 4x4; see `PatchDiscriminator`."""
    return [max(1, min(max_channels, int(channels * capacity * 128 / 2 ** (steps + 2 - i)))) for i in range(steps + 1)]


class PatchDiscriminator(keras.Model):
    """Do these crops come from the same picture? `features` of crops, then `pair` of reference and query.

    Args:
        patch_size: P, side of the crops; a power of two, at least 16.
        channels: width at 128 px (32); proportional to 1 / resolution, at most `max_channels` (384).
        capacity: multiplies the convolutions' widths before that bound.
        dense: widths of the three hidden layers on a pair.
        recompute: blocks compute their activations again for the gradient, see `layers.forgetful`.
    """

    def __init__(
        self,
        patch_size: int = 128,
        channels: int = 32,
        max_channels: int = 384,
        capacity: float = 1.0,
        dense: tuple = (2048, 2048, 1024),
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        steps = int(math.log2(patch_size)) - 2
        if patch_size < 16 or patch_size != 2 ** (steps + 2):
            raise ValueError(f"patch_size must be a power of two and at least 16, got {patch_size}")
        widths = patch_widths(steps, channels, max_channels, capacity)
        deep = widths[-1]
        self.patch_size, self.widths, self.feature_size = patch_size, widths, deep * 2 * 2
        self.first = Conv(3, widths[0], 3, padding=(1, 1), name="first")
        self.blocks = attach(self, [CriticBlock(widths[i], widths[i + 1], name=f"down{i}") for i in range(steps)])
        self.widen = CriticBlock(deep, 2 * deep, down=False, name="widen")  # N 4 4 2*deep
        self.last = Conv(2 * deep, deep, 3, name="last")  # N 2 2 deep
        sizes = [2 * self.feature_size, *dense, 1]
        self.dense = attach(
            self,
            [Dense(sizes[i], sizes[i + 1], activate=i < len(dense), name=f"dense{i}") for i in range(len(dense) + 1)],
        )
        self.built = True

    def features(self, crops: tf.Tensor, keep: bool = False) -> tf.Tensor:
        """Crops `[N, K, P, P, 3]` -> `[N, K, F]`; `keep` as in `Discriminator.call`."""
        batch, crops_each = -1 if crops.shape[0] is None else crops.shape[0], crops.shape[1]
        maps = self.first(tf.reshape(crops, [-1, self.patch_size, self.patch_size, 3]))
        for block in self.blocks:
            maps = forgetful(block, self.recompute and not keep)(maps)
        maps = self.last(self.widen(maps))  # N*K 2 2 deep
        return tf.reshape(maps, [batch, crops_each, self.feature_size])

    def pair(self, reference: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """Features `[N, Kr, F]` and `[N, Kq, F]` -> logits `[N, Kq]`, float32.

        The reference is the mean over its crops, paired with each query crop.
        """
        mean = tf.reduce_mean(reference, axis=1, keepdims=True)
        pairs = tf.concat([tf.tile(mean, [1, query.shape[1], 1]), query], axis=-1)
        for layer in self.dense:
            pairs = layer(pairs)
        return tf.cast(pairs[..., 0], tf.float32)

    def call(self, reference: tf.Tensor, query: tf.Tensor, keep: bool = False) -> tf.Tensor:
        """Crops of a reference and of a query picture, each `[N, K, P, P, 3]` -> logits `[N, K]`."""
        crops = tf.shape(reference)[0]
        # Under mixed precision Keras 2 casts a layer's first argument only, Keras 3 every one.
        both = self.features(tf.concat([reference, tf.cast(query, reference.dtype)], axis=0), keep)
        return self.pair(both[:crops], both[crops:])
