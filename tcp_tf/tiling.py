"""The networks on pictures of any size: encoded and decoded in overlapping tiles whose results are exact.

Everything between picture, feature map and picture is local, so a tile that sees a margin as wide as the network's
receptive field computes inside that margin what the whole picture would give; the margins are thrown away and nothing
needs to be blended. What is not local is done on the whole: the style head reads the assembled feature map, and
tiles cut their noise from that of the whole picture.

Arrays in here are NumPy's, of one picture: images `[H, W, 3]` in [-1, 1] with H and W multiples of the stride,
feature maps `[h, w, C]`, masks `[R, H, W]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from tcp_tf import blending, ops
from tcp_tf.autoencoder import NOISE_SEED, AutoEncoder
from tcp_tf.encoder import Codes
from tcp_tf.generator import HeadBlock

TILE = 1024  # default side in pixels: 5 GiB with a 256-px model of the default widths, on a CPU
_ENCODER_REACH = 3  # pixels at a block's input: two 3x3 convolutions and a filter of 3 taps
_UP_REACH = 2.5  # positions at an up block's input: transposed 3x3, filter of 4 taps, 3x3 at the doubled resolution


class Tile(NamedTuple):
    """One tile, in positions of the feature map."""

    core: tuple[slice, slice]  # the part of the whole that this tile answers for
    seen: tuple[slice, slice]  # core and margin, as far as the picture goes
    kept: tuple[slice, slice]  # the core's place inside what is seen

    def times(self, factor: int) -> Tile:
        """The same tile at a resolution that is `factor` times higher."""

        def scaled(pair: tuple[slice, slice]) -> tuple[slice, slice]:
            rows, columns = (slice(part.start * factor, part.stop * factor) for part in pair)
            return rows, columns

        return Tile(*map(scaled, self))


def tiles(height: int, width: int, side: int, margin: int) -> Iterator[Tile]:
    """Tiles that cover a map of height x width positions.

    Args:
        side: a tile is at most this many positions high and wide, margins included.
        margin: positions that a tile sees beyond its core, on each side where the map goes on.
    Raises:
        ValueError: nothing would be left of a tile.
    """
    if max(height, width) > side and side <= 2 * margin:
        raise ValueError(f"a tile of {side} positions leaves nothing between two margins of {margin}")
    rows, columns = _spans(height, side, margin), _spans(width, side, margin)
    for top in rows:
        for left in columns:
            yield Tile((top[0], left[0]), (top[1], left[1]), (top[2], left[2]))


def _spans(length: int, side: int, margin: int) -> list[tuple[slice, slice, slice]]:
    count = 1 if length <= side else math.ceil(length / (side - 2 * margin))
    edges = [round(length * i / count) for i in range(count + 1)]
    spans = []
    for start, stop in zip(edges, edges[1:]):
        first, last = max(0, start - margin), min(length, stop + margin)
        spans.append((slice(start, stop), slice(first, last), slice(start - first, stop - first)))
    return spans


class TiledAutoEncoder:
    """An `AutoEncoder` for single pictures of any size that is a multiple of the stride, in bounded memory.

    Every step is traced once, whatever the sizes; blending once per number of regions.

    Args:
        tile: side in pixels of what the networks see at a time.
    """

    def __init__(self, autoencoder: AutoEncoder, tile: int = TILE):
        self.autoencoder, self.stride = autoencoder, autoencoder.stride
        encoder, generator = autoencoder.encoder, autoencoder.generator
        levels = generator.upsamples
        heads = sum(isinstance(stage, HeadBlock) for stage in generator.stages)
        self.encode_margin = math.ceil(_ENCODER_REACH * (self.stride - 1) / self.stride) + 1
        self.decode_margin = 2 * heads + math.ceil(sum(_UP_REACH / 2**i for i in range(levels))) + 1
        self.side = tile // self.stride
        least = 2 * self.decode_margin + 1
        if self.side < least:
            raise ValueError(f"tile must be at least {least * self.stride} px for this model, got {tile}")
        self.noise_levels = [level for stage in generator.stages for level in stage.noise_levels]
        self._noise = functools.lru_cache(maxsize=2)(self._draw_noise)
        deep = encoder.widths[encoder.downsamples]
        spec = tf.TensorSpec
        self._specs = {
            "images": spec([None, None, None, 3], tf.float32),
            "features": spec([None, None, None, deep], tf.float32),
            "content": spec([1, None, None, encoder.content_dim], tf.float32),
            "style": spec([1, encoder.style_dim], tf.float32),
            "noise": [spec([1, None, None, 1], tf.float32) for _ in self.noise_levels] if autoencoder.noise else [],
        }
        self._trunk = self._function(encoder.trunk, "images")
        self._heads = self._function(encoder.heads, "features")
        self._generate = self._function(self._generated, "content", "style", "noise")
        self._blends: dict[int, Callable[..., Any]] = {}
        self._mixes: dict[int, Callable[..., Any]] = {}

    def features(self, image: np.ndarray) -> np.ndarray:
        """`[H, W, 3]` -> the trunk's map e `[h, w, deep]`."""
        height, width = (side // self.stride for side in image.shape[:2])
        result = None
        for tile in tiles(height, width, self.side, self.encode_margin):
            maps = self._trunk(image[tile.times(self.stride).seen][None])[0].numpy()
            if result is None:
                result = np.empty((height, width, maps.shape[-1]), np.float32)
            result[tile.core] = maps[tile.kept]
        assert result is not None
        return result

    def heads(self, features: np.ndarray) -> Codes:
        """The map e `[h, w, deep]` -> `Codes(content [h, w, Cc], style [Cs])`."""
        codes = self._heads(features[None])
        return Codes(codes.content[0].numpy(), codes.style[0].numpy())

    def decode(self, content: np.ndarray, style: np.ndarray) -> np.ndarray:
        """`[h, w, Cc]` and `[Cs]` -> image `[H, W, 3]`, not clipped."""
        return self._tiled(content, lambda tile, noise: self._generate(content[tile.seen][None], style[None], noise))

    def blend(
        self, codes: Codes, styles: np.ndarray, masks: np.ndarray, strengths: np.ndarray, strategy: str
    ) -> np.ndarray:
        """A style per region, for the strategies that blend inside the generator.

        Args:
            codes: of the picture.
            styles: `[R, Cs]`.
            masks: `[R, H, W]` in [0, 1].
            strengths: `[R]` in [0, 1].
        Returns:
            `[H, W, 3]`, not clipped.
        """
        regions = len(styles)
        if regions not in self._blends:
            self._blends[regions] = self._region_function(regions, strategy)
        run = self._blends[regions]
        stacked = np.concatenate([codes.style[None], styles])[None]

        def part(tile: Tile, noise: list[np.ndarray]) -> tf.Tensor:
            rows, columns = tile.times(self.stride).seen
            shares = masks[:, rows, columns, None][None]
            return run(codes.content[tile.seen][None], stacked, shares, strengths[None], noise)

        return self._tiled(codes.content, part)

    def mix_features(
        self, features: np.ndarray, transfers: np.ndarray, masks: np.ndarray, strengths: np.ndarray
    ) -> Codes:
        """The codes of a mixture of feature maps: the strategy `encoder_features`, up to its decoding.

        Args:
            features: `[h, w, deep]` of the picture.
            transfers: `[R, h, w, deep]` of its global transfers.
            masks: `[R, H, W]`.
            strengths: `[R]`.
        """
        regions = len(transfers)
        if regions not in self._mixes:
            self._mixes[regions] = self._mix_function(regions)
        codes = self._mixes[regions](features[None], transfers, masks[None, ..., None], strengths[None])
        return Codes(codes.content[0].numpy(), codes.style[0].numpy())

    def _tiled(self, content: np.ndarray, part: Callable[[Tile, list[np.ndarray]], tf.Tensor]) -> np.ndarray:
        height, width = content.shape[:2]
        result = np.empty((height * self.stride, width * self.stride, 3), np.float32)
        noise = self._noise(height, width) if self.autoencoder.noise else []
        for tile in tiles(height, width, self.side, self.decode_margin):
            cut = [
                maps[(slice(None), *tile.times(self.stride // 2**level).seen)]
                for maps, level in zip(noise, self.noise_levels)
            ]
            fine = tile.times(self.stride)
            result[fine.core] = part(tile, cut)[0].numpy()[fine.kept]
        return result

    def _draw_noise(self, height: int, width: int) -> list[np.ndarray]:
        seed = tf.constant(NOISE_SEED, tf.int32)
        generator, stride = self.autoencoder.generator, self.stride
        return [np.asarray(maps, np.float32) for maps in generator.draw_noise(1, height * stride, width * stride, seed)]

    def _function(self, function: Callable[..., Any], *names: str) -> Callable[..., Any]:
        return tf.function(function, input_signature=[self._specs[name] for name in names], autograph=False)

    def _cast(self, noise: list[tf.Tensor]) -> Optional[list[tf.Tensor]]:
        """In the dtype of the network's arithmetic; None for a noiseless model."""
        return [tf.cast(maps, self.autoencoder.generator.compute_dtype) for maps in noise] or None

    def _generated(self, content: tf.Tensor, style: tf.Tensor, noise: list[tf.Tensor]) -> tf.Tensor:
        return self.autoencoder.generator(content, style, self._cast(noise))

    def _region_function(self, regions: int, strategy: str) -> Callable[..., Any]:
        encoder, generator = self.autoencoder.encoder, self.autoencoder.generator

        def run(content, styles, masks, strengths, noise):
            weights = region_weights(masks, strengths)
            # No feature map: the strategies that come here do not read it.
            return blending.blend(strategy, encoder, generator, content, styles, weights, None, self._cast(noise))

        self._specs |= {
            f"styles{regions}": tf.TensorSpec([1, 1 + regions, encoder.style_dim], tf.float32),
            f"masks{regions}": tf.TensorSpec([1, regions, None, None, 1], tf.float32),
            f"strengths{regions}": tf.TensorSpec([1, regions], tf.float32),
        }
        names = (f"{name}{regions}" for name in ("styles", "masks", "strengths"))
        return self._function(run, "content", *names, "noise")

    def _mix_function(self, regions: int) -> Callable[..., Any]:
        encoder = self.autoencoder.encoder
        spec, deep = tf.TensorSpec, self._specs["features"].shape[-1]

        def run(features, transfers, masks, strengths):
            coarse = ops.pyramid(region_weights(masks, strengths), encoder.downsamples)[-1]
            return encoder.heads(blending.mix(tf.concat([features, transfers], axis=0), coarse))

        signature = [
            spec([1, None, None, deep], tf.float32),
            spec([regions, None, None, deep], tf.float32),
            spec([1, regions, None, None, 1], tf.float32),
            spec([1, regions], tf.float32),
        ]
        return tf.function(run, input_signature=signature, autograph=False)


def region_weights(masks: tf.Tensor, strengths: tf.Tensor) -> tf.Tensor:
    """`blending.region_weights` with a strength per region: `[N, R, H, W, 1]`, `[N, R]` -> `[N, H, W, 1 + R]`."""
    shares = blending.region_weights(masks)[..., 1:] * strengths[:, None, None, :]
    return tf.concat([1.0 - tf.reduce_sum(shares, axis=-1, keepdims=True), shares], axis=-1)


def reflected(image: np.ndarray, stride: int) -> np.ndarray:
    """`[H, W, ...]` reflected at the bottom and the right up to multiples of the stride, as the served model pads."""
    missing = [(0, -side % stride) for side in image.shape[:2]]
    return np.pad(image, [*missing, *[(0, 0)] * (image.ndim - 2)], mode="reflect")
