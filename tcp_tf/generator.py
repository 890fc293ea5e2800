"""The generator: content map and style -> picture.

The Swapping Autoencoder's residual variant of StyleGAN2 (arXiv 2007.00653, appendix B; arXiv 1912.04958): no mapping
network, no RGB skips, the style modulates every layer. Built as a list of `stages` with one interface,
`stage(maps, style, noise)`, so that blending can step through it layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import keras
import tensorflow as tf

from tcp_tf import ops
from tcp_tf.layers import (
    BRANCH_GAIN,
    Conv,
    ModulatedConv,
    Modulation,
    RegionStyles,
    Style,
    StyledConv,
    attach,
    bias_and_activate,
    forgetful,
    upsampled,
)

Noise = Sequence[tf.Tensor]


class ContentModulation(keras.layers.Layer):
    """`content * scale(style) + shift(style)` on the content's own channels; both maps start without bias."""

    noise_levels: tuple[int, ...] = ()

    def __init__(self, content_dim: int, style_dim: int, *, level: int, **kwargs):
        super().__init__(**kwargs)
        self.scale = Modulation(style_dim, content_dim, level=level, name="scale")
        self.shift = Modulation(style_dim, content_dim, level=level, name="shift")
        self.built = True

    def call(self, maps: tf.Tensor, style: Style, noise: Noise = ()) -> tf.Tensor:
        return maps * self.scale(style, maps) + self.shift(style, maps)


class HeadBlock(keras.layers.Layer):
    """Residual block at the content's resolution: `[N, h, w, inputs]` -> `[N, h, w, outputs]`."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, level: int, **kwargs):
        super().__init__(**kwargs)
        self.noise_levels = (level, level)
        self.conv1 = StyledConv(inputs, outputs, style_dim, level=level, name="conv1")
        self.conv2 = StyledConv(
            outputs, outputs, style_dim, level=level, gain=BRANCH_GAIN, signs_only=True, name="conv2"
        )
        self.skip = None
        if inputs != outputs:
            self.skip = Conv(inputs, outputs, 1, bias=False, activate=False, gain=BRANCH_GAIN, name="skip")
        self.built = True

    def call(self, maps: tf.Tensor, style: Style, noise: Noise = (None, None)) -> tf.Tensor:
        main = self.conv2(self.conv1(maps, style, noise[0]), style, noise[1])
        return main + (self.skip(maps) if self.skip else maps * BRANCH_GAIN)


class UpBlock(keras.layers.Layer):
    """Residual block that doubles the resolution: `[N, h, w, inputs]` -> `[N, 2h, 2w, outputs]`.

    `level` is that of the input. The first convolution's noise is already at the doubled resolution.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, level: int, **kwargs):
        super().__init__(**kwargs)
        self.noise_levels = (level - 1, level - 1)
        self.conv1 = StyledConv(inputs, outputs, style_dim, level=level, up=True, name="conv1")
        self.conv2 = StyledConv(
            outputs, outputs, style_dim, level=level - 1, gain=BRANCH_GAIN, signs_only=True, name="conv2"
        )
        self.skip = None
        if inputs != outputs:
            self.skip = Conv(inputs, outputs, 1, gain=BRANCH_GAIN, signs_only=True, name="skip")
        self.built = True

    def call(self, maps: tf.Tensor, style: Style, noise: Noise = (None, None)) -> tf.Tensor:
        main = self.conv2(self.conv1(maps, style, noise[0]), style, noise[1])
        return main + upsampled(self.skip(maps) if self.skip else maps * BRANCH_GAIN, self.trainable)


class ToRGB(keras.layers.Layer):
    """Modulated 1x1 convolution to three channels, not demodulated, plus bias; no tanh: `[N, H, W, 3]`."""

    noise_levels: tuple[int, ...] = ()

    def __init__(self, inputs: int, style_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.conv = ModulatedConv(inputs, 3, 1, style_dim, level=0, demodulate=False, name="conv")
        self.bias = self.add_weight(name="bias", shape=(3,), initializer="zeros")
        self.built = True

    def call(self, maps: tf.Tensor, style: Style, noise: Noise = ()) -> tf.Tensor:
        return bias_and_activate(self.conv(maps, style), self.bias, 1.0, activate=False, trained=self.trainable)


def generator_widths(channels: int, max_channels: int, upsamples: int, capacity: float) -> list[int]:
    """Widths from the content's resolution to the picture's; see `Generator`."""
    return [int(min(max_channels, channels * 2 ** (upsamples - i)) * capacity) for i in range(upsamples + 1)]


class Generator(keras.Model):
    """`content [N, h, w, Cc]` and a style -> pictures `[N, h * 2^u, w * 2^u, 3]`, about [-1, 1], float32.

    The style is a vector `[N, Cs]`, a map `[N, hs, ws, Cs]` of any resolution, or `RegionStyles`. Both codes are
    normalised on entry.

    Args:
        channels: width at full resolution (128); doubles downwards, at most `max_channels`.
        upsamples: doublings (u), equal to the encoder's `downsamples`.
        head_blocks: residual blocks at the content's resolution, of linearly growing width.
        capacity: multiplies every width except the codes'.
        recompute: stages compute their activations again for the gradient, see `layers.forgetful`.
    """

    def __init__(
        self,
        channels: int = 128,
        max_channels: int = 512,
        upsamples: int = 4,
        content_dim: int = 8,
        style_dim: int = 2048,
        head_blocks: int = 2,
        capacity: float = 1.0,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.recompute = recompute
        self.upsamples, self.content_dim, self.style_dim = upsamples, content_dim, style_dim
        widths = generator_widths(channels, max_channels, upsamples, capacity)
        heads = [max(content_dim, round(widths[0] * (i + 1) / head_blocks)) for i in range(head_blocks)]
        stages: list[keras.layers.Layer] = [
            ContentModulation(content_dim, style_dim, level=upsamples, name="content_modulation")
        ]
        inputs = content_dim
        for i, width in enumerate(heads):
            stages.append(HeadBlock(inputs, width, style_dim, level=upsamples, name=f"head{i}"))
            inputs = width
        for i, width in enumerate(widths[1:]):
            stages.append(UpBlock(inputs, width, style_dim, level=upsamples - i, name=f"up{i}"))
            inputs = width
        stages.append(ToRGB(inputs, style_dim, name="to_rgb"))
        self.stages = attach(self, stages)
        self.widths = widths
        self.built = True

    def entry(self, content: tf.Tensor, style: Style) -> tuple[tf.Tensor, Style]:
        """Both codes normalised and in the dtype of the network's arithmetic: what the first stage takes."""
        content = tf.cast(ops.normalize(content), self.compute_dtype)
        if isinstance(style, RegionStyles):
            weights = [tf.cast(weight, self.compute_dtype) for weight in style.weights]
            return content, RegionStyles(tf.cast(ops.normalize(style.styles), self.compute_dtype), weights)
        return content, tf.cast(ops.normalize(style), self.compute_dtype)

    @property
    def noise_strengths(self) -> list[tf.Variable]:
        """The weights that nothing reads where there is no noise."""
        noisy = [stage for stage in self.stages if stage.noise_levels]
        return [conv.noise_strength for stage in noisy for conv in (stage.conv1, stage.conv2)]

    def split_noise(self, noise: Optional[Noise]) -> list[Noise]:
        """The flat list of `draw_noise`, one sequence per stage; `None` gives a noiseless network."""
        flat = iter(noise) if noise is not None else None
        return [[None if flat is None else next(flat) for _ in stage.noise_levels] for stage in self.stages]

    def draw_noise(self, batch: int, height: int, width: int, seed: tf.Tensor) -> list[tf.Tensor]:
        """Standard normal maps for every noise input, a stateless function of the seed.

        Args:
            batch, height, width: of the pictures to be made.
            seed: `[2]` int32.
        Returns:
            A list of `[batch, height / 2^level, width / 2^level, 1]` in the network's dtype.
        """
        levels = [level for stage in self.stages for level in stage.noise_levels]
        seeds = tf.random.experimental.stateless_split(seed, len(levels))
        return [
            tf.cast(
                tf.random.stateless_normal([batch, height // 2**level, width // 2**level, 1], seeds[i]),
                self.compute_dtype,
            )
            for i, level in enumerate(levels)
        ]

    def run(self, stage: keras.layers.Layer, maps: tf.Tensor, style: Style, noise: Noise) -> tf.Tensor:
        """One of `stages`; all of them in turn, on what `entry` gives, are the network."""
        if isinstance(style, RegionStyles):
            weights = style.weights  # a gradient is wanted of the styles alone

            def with_regions(maps: tf.Tensor, styles: tf.Tensor) -> tf.Tensor:
                return stage(maps, RegionStyles(styles, weights), noise)

            return forgetful(with_regions, self.recompute)(maps, style.styles)
        return forgetful(lambda maps, style: stage(maps, style, noise), self.recompute)(maps, style)

    def call(self, content: tf.Tensor, style: Style, noise: Optional[Noise] = None) -> tf.Tensor:
        maps, style = self.entry(content, style)
        for stage, stage_noise in zip(self.stages, self.split_noise(noise)):
            maps = self.run(stage, maps, style, stage_noise)
        return tf.cast(maps, tf.float32)
