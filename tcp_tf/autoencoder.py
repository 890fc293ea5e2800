"""What a trained model does for a person: encode, decode, swap, masked blend, interpolate. No training in here.

Pictures are float32 N H W C in [-1, 1]; height and width are multiples of the stride 2^downsamples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional

import keras
import tensorflow as tf

from tcp_tf import blending, layers, ops
from tcp_tf.config import PRECISIONS, Config
from tcp_tf.encoder import Codes, Encoder
from tcp_tf.generator import Generator

NOISE_SEED = (20210824, 2108)  # any fixed pair: the same request must give the same picture


def build_encoder(config: Config, name: str = "encoder", recompute: bool = False) -> Encoder:
    """The encoder that the configuration describes, freshly drawn."""
    model = config.model
    return Encoder(
        channels=model.channels,
        downsamples=model.downsamples,
        content_dim=model.content_dim,
        style_dim=model.style_dim,
        capacity=model.encoder_capacity,
        recompute=recompute,
        name=name,
    )


def build_generator(config: Config, name: str = "generator", recompute: bool = False) -> Generator:
    """The generator that the configuration describes, freshly drawn; at full resolution 4 times the encoder's width."""
    model = config.model
    return Generator(
        channels=4 * model.channels,
        max_channels=model.max_channels,
        upsamples=model.downsamples,
        content_dim=model.content_dim,
        style_dim=model.style_dim,
        capacity=model.generator_capacity,
        recompute=recompute,
        name=name,
    )


@contextlib.contextmanager
def _policy(dtype: str) -> Iterator[None]:
    """Layers made in here compute in this dtype and keep their weights in it."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


class AutoEncoder:
    """An encoder, a generator and a blending strategy.

    Noise, where the model was trained with it, is a fixed pattern, the same for every example: an answer does not
    depend on its neighbours in the batch.
    """

    def __init__(self, encoder: Encoder, generator: Generator, strategy: str = "style_map", noise: bool = True):
        if strategy not in blending.STRATEGIES:
            raise ValueError(f"blend.strategy must be one of {blending.STRATEGIES}, got {strategy!r}")
        self.encoder, self.generator, self.strategy, self.noise = encoder, generator, strategy, noise

    @classmethod
    def from_config(cls, config: Config) -> AutoEncoder:
        """Freshly drawn networks of the configured sizes as they are trained, though not to be trained."""
        encoder, generator = build_encoder(config), build_generator(config)
        encoder.trainable = generator.trainable = False
        return cls(encoder, generator, config.blend.strategy, config.model.noise)

    @classmethod
    def for_use(cls, config: Config, precision: str) -> AutoEncoder:
        """The same sizes for use alone: folded (`layers.WithKernel`), with weights that are still to be given.

        Args:
            precision: one of `config.PRECISIONS`, of arithmetic and weights. Not what the configuration says, which is
                how its training computes.
        Raises:
            ValueError: there is no such precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        with _policy(precision.replace("mixed_", "")), layers.folded():
            return cls.from_config(config)

    def folded(self, config: Config, precision: str = "float32") -> AutoEncoder:
        """These networks for use alone: what every call would make of the weights alone is made once.

        Args:
            config: the configuration of these networks.
            precision: as of `for_use`.
        """
        result = AutoEncoder.for_use(config, precision)
        layers.fill_folded(result.encoder, self.encoder)
        layers.fill_folded(result.generator, self.generator)
        return result

    @property
    def weights(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """What the encoder reads and what the generator does, which without noise are not all of its weights."""
        unread = [] if self.noise else [id(strength) for strength in self.generator.noise_strengths]
        return list(self.encoder.weights), [each for each in self.generator.weights if id(each) not in unread]

    @property
    def stride(self) -> int:
        """Height and width of pictures are multiples of this many pixels."""
        return 2**self.encoder.downsamples

    def encode(self, images: tf.Tensor) -> Codes:
        """`[N, H, W, 3]` -> `Codes(content [N, h, w, Cc], style [N, Cs])`."""
        return self.encoder(images)

    def decode(self, content: tf.Tensor, style: tf.Tensor) -> tf.Tensor:
        """`[N, h, w, Cc]` and a style vector `[N, Cs]` or map `[N, hs, ws, Cs]` -> `[N, H, W, 3]`."""
        return self.generator(content, style, self.fixed_noise(content))

    def swap(self, images: tf.Tensor, style_images: tf.Tensor) -> tf.Tensor:
        """Content of `images [N, H, W, 3]` with the style of `style_images [N, H', W', 3]` -> `[N, H, W, 3]`."""
        return self.decode(self.encode(images).content, self.encode(style_images).style)

    def masked_blend(
        self,
        images: tf.Tensor,
        style_images: tf.Tensor,
        masks: tf.Tensor,
        strength: Optional[tf.Tensor] = None,
        strategy: Optional[str] = None,
    ) -> tf.Tensor:
        """Region-wise edit: where a mask is 1 the picture takes the look of that region's style image.

        Args:
            images: `[N, H, W, 3]`.
            style_images: `[N, H', W', 3]` for one region, `[N, R, H', W', 3]` for R.
            masks: `[N, H, W, 1]` or `[N, R, H, W, 1]` in [0, 1]; soft masks are welcome.
            strength: `[N]` in [0, 1], default 1.
            strategy: default the model's own.
        Returns:
            `[N, H, W, 3]`.
        """
        if len(masks.shape) == 4:
            masks, style_images = masks[:, None], style_images[:, None]
        regions = masks.shape[1]
        if style_images.shape[1] != regions:
            raise ValueError(f"as many styles as masks are needed, got {style_images.shape[1]} and {regions}")
        flat = tf.reshape(style_images, tf.concat([[-1], tf.shape(style_images)[2:]], axis=0))
        styles = self.encoder(tf.ensure_shape(flat, [None, *style_images.shape[2:]])).style
        styles = tf.reshape(styles, [-1, regions, styles.shape[-1]])
        return self.blend_codes(images, styles, masks, strength, strategy)

    def blend_codes(
        self,
        images: tf.Tensor,
        styles: tf.Tensor,
        masks: tf.Tensor,
        strength: Optional[tf.Tensor] = None,
        strategy: Optional[str] = None,
    ) -> tf.Tensor:
        """`masked_blend` with styles already encoded: `[N, R, Cs]`, masks `[N, R, H, W, 1]` -> `[N, H, W, 3]`."""
        features = self.encoder.trunk(images)
        content, style = self.encoder.heads(features)
        return blending.blend(
            strategy or self.strategy,
            self.encoder,
            self.generator,
            content,
            tf.concat([style[:, None], styles], axis=1),
            blending.region_weights(masks, strength),
            features,
            self.fixed_noise(content),
        )

    def interpolate(self, images: tf.Tensor, first: tf.Tensor, second: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """The look of `images [N, H, W, 3]` on the way from one style image to another.

        Args:
            first, second: style images `[N, H', W', 3]`.
            weights: `[N]`; 0 is the look of `first`, 1 that of `second`.
        Returns:
            `[N, H, W, 3]`. Codes are mixed linearly and normalised again, as the Swapping Autoencoder does.
        """
        style = mix_styles(self.encode(first).style, self.encode(second).style, weights)
        return self.decode(self.encode(images).content, style)

    def fixed_noise(self, content: tf.Tensor) -> Optional[list[tf.Tensor]]:
        """The noise of inference for content maps `[N, h, w, Cc]`: maps of batch 1, or None for a noiseless model."""
        if not self.noise:
            return None
        height, width = ops.spatial_shape(content)
        stride = self.stride
        return self.generator.draw_noise(1, height * stride, width * stride, tf.constant(NOISE_SEED, tf.int32))


def mix_styles(first: tf.Tensor, second: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """`normalize((1 - w) a + w b)`: `[N, Cs]`, `[N, Cs]`, `[N]` -> `[N, Cs]`."""
    share = weights[:, None]
    return ops.normalize(first * (1.0 - share) + second * share)
