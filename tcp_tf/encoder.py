"""The encoder: photograph -> content map and style vector (Swapping Autoencoder, arXiv 2007.00653, appendix B)."""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from tcp_tf import ops
from tcp_tf.layers import BRANCH_GAIN, Conv, Dense, attach, blurred, forgetful, reflected


class Codes(NamedTuple):
    """What a picture is split into; both have unit L2 norm along the channels."""

    content: tf.Tensor  # N h w Cc, h = H / 2^downsamples
    style: tf.Tensor  # N Cs


class EncoderBlock(keras.layers.Layer):
    """Residual block that halves the resolution: `[N, H, W, inputs]` -> `[N, H/2, W/2, outputs]`.

    The main path pads by reflection, so that no zero border tells the network where in the picture it is.
    """

    def __init__(self, inputs: int, outputs: int, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = Conv(inputs, inputs, 3, padding=(1, 1), reflect=True, signs_only=True, name="conv1")
        self.conv2 = Conv(inputs, outputs, 3, stride=2, gain=BRANCH_GAIN, signs_only=True, name="conv2")
        self.skip = Conv(inputs, outputs, 1, bias=False, activate=False, gain=BRANCH_GAIN, name="skip")
        self.built = True

    def call(self, images: tf.Tensor) -> tf.Tensor:
        maps = self.conv1(images)
        maps = reflected(maps, (2, 1), self.trainable)
        maps = blurred(maps, [1, 2, 1], (0, 0), self.trainable)  # N H+1 W+1 inputs
        skip = blurred(images, [1, 2, 1], (1, 0), self.trainable, stride=2)  # N H/2 W/2 inputs
        return self.conv2(maps) + self.skip(skip)


def encoder_widths(channels: int, downsamples: int, style_dim: int, capacity: float) -> list[int]:
    """Widths from the picture to the end of the style head; see `Encoder`."""
    return [min(style_dim, round(channels * capacity * 2**i)) for i in range(downsamples + 3)]


class Encoder(keras.Model):
    """Trunk and two heads, fully convolutional.

    `[N, H, W, 3]` in [-1, 1] -> `Codes(content [N, H / 2^d, W / 2^d, content_dim], style [N, style_dim])`, for any
    H and W that are multiples of 2^d and leave the trunk's map at least 7 wide and high (d = `downsamples`).

    Args:
        channels: width at full resolution; doubles with every halving, at most `style_dim`.
        downsamples: halvings in the trunk (d).
        content_dim: channels of the content map (Cc).
        style_dim: length of the style vector (Cs).
        capacity: multiplies every width except the codes'.
        recompute: blocks compute their activations again for the gradient, see `layers.forgetful`.
    """

    def __init__(
        self,
        channels: int = 32,
        downsamples: int = 4,
        content_dim: int = 8,
        style_dim: int = 2048,
        capacity: float = 1.0,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.downsamples, self.content_dim, self.style_dim = downsamples, content_dim, style_dim
        widths = encoder_widths(channels, downsamples, style_dim, capacity)
        deep = widths[downsamples]
        self.from_rgb = Conv(3, widths[0], 1, name="from_rgb")
        self.blocks = attach(
            self, [EncoderBlock(widths[i], widths[i + 1], name=f"down{2**i}") for i in range(downsamples)]
        )
        self.to_content = attach(
            self,
            [Conv(deep, deep, 1, name="content0"), Conv(deep, content_dim, 1, activate=False, name="content1")],
        )
        self.to_style = attach(
            self,
            [
                Conv(widths[i], widths[i + 1], 3, stride=2, name=f"style{i - downsamples}")
                for i in (downsamples, downsamples + 1)
            ],
        )
        self.style_dense = Dense(widths[-1], style_dim, name="style2")
        self.widths = widths
        self.built = True

    def trunk(self, images: tf.Tensor) -> tf.Tensor:
        """`[N, H, W, 3]` -> the deep feature map e `[N, H / 2^d, W / 2^d, deep]` that both heads read."""
        maps = self.from_rgb(images)
        for block in self.blocks:
            maps = forgetful(block, self.recompute)(maps)
        return maps

    def content_head(self, features: tf.Tensor) -> tf.Tensor:
        """The feature map e -> content `[N, h, w, Cc]`, float32."""
        for layer in self.to_content:
            features = layer(features)
        return ops.normalize(tf.cast(features, tf.float32))

    def style_head(self, features: tf.Tensor) -> tf.Tensor:
        """The feature map e -> style `[N, Cs]`, float32."""
        for layer in self.to_style:
            features = layer(features)  # N (h-3)//2+1 (w-3)//2+1 ...
        return ops.normalize(tf.cast(self.style_dense(tf.reduce_mean(features, axis=(1, 2))), tf.float32))

    def heads(self, features: tf.Tensor) -> Codes:
        """The feature map e -> `Codes`, both float32."""
        return Codes(self.content_head(features), self.style_head(features))

    def call(self, images: tf.Tensor) -> Codes:
        return self.heads(self.trunk(images))
