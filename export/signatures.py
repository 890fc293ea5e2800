"""The served functions: names, shapes, checks, and what they compute.

Conventions at this border, and only here: pictures are float32 `[B, H, W, 3]` in [0, 1] or encoded files; every input
and output has the batch as its first axis. What the functions compute is `tcp_tf.autoencoder.AutoEncoder`'s.

| signature | inputs | outputs |
|---|---|---|
| `masked_blend_bytes` | `image_bytes`, `style_image_bytes`, `mask_bytes`, `strength` [B] | `image_bytes`, `error` |
| `masked_blend` | `images`, `style_images`, `masks` [B,H,W,1], `strength` [B] | `images` |
| `swap` | `images`, `style_images` | `images` |
| `interpolate` | `images`, `first_style_images`, `second_style_images`, `weights` [B] | `images` |
| `encode` | `images` | `content`, `style` |
| `encode_bytes` | `image_bytes` [B] | `content`, `style`, `error` |
| `decode` | `content`, `style` | `images` |

The array signatures refuse bad values with an exception that fails the whole run; those with encoded files answer each
example by itself, in `error`, which is empty where all is well. `masked_blend_bytes` comes first and so is also
`serving_default`: three files in, one file out, whatever their sizes, is what most people want, and it is the
only edit whose wrong inputs cannot hurt a neighbour in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import tensorflow as tf

from export import picture_bytes
from export.picture_bytes import first_error, size_sentence
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

DEFAULT = "masked_blend_bytes"
SMALLEST_TRUNK = 7  # positions per side that the encoder's style head needs
MAX_PIXELS = 1 << 21  # a little more than 1920 x 1080; a 256-px model of the default widths then takes some 11 GiB
STYLE_FACTOR = 8  # a style picture may have this many times as many pixels: it is reduced before it is encoded

Outputs = dict[str, tf.Tensor]


class Signature(NamedTuple):
    """One served function: a named `TensorSpec` per positional argument."""

    name: str
    function: Callable[..., Outputs]
    inputs: tuple[tf.TensorSpec, ...]


def build(autoencoder: AutoEncoder, config: Config, max_pixels: int = MAX_PIXELS) -> list[Signature]:
    """All signatures of a model, `DEFAULT` first.

    Args:
        max_pixels: bound on height times width of a picture that is edited.
    """
    arrays, files = _Arrays(autoencoder, max_pixels), _Files(autoencoder, config, max_pixels)
    pictures, vector, strings = (None, None, None, 3), (None,), (None,)

    def spec(name: str, shape: tuple[Any, ...] = pictures, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype, name)

    def file(name: str) -> tf.TensorSpec:
        return spec(name, strings, tf.string)

    masks, strength = spec("masks", (None, None, None, 1)), spec("strength", vector)
    content = spec("content", (None, None, None, autoencoder.encoder.content_dim))
    style = spec("style", (None, autoencoder.encoder.style_dim))
    return [
        Signature(
            DEFAULT, files.masked_blend, (file("image_bytes"), file("style_image_bytes"), file("mask_bytes"), strength)
        ),
        Signature("masked_blend", arrays.masked_blend, (spec("images"), spec("style_images"), masks, strength)),
        Signature("swap", arrays.swap, (spec("images"), spec("style_images"))),
        Signature(
            "interpolate",
            arrays.interpolate,
            (spec("images"), spec("first_style_images"), spec("second_style_images"), spec("weights", vector)),
        ),
        Signature("encode", arrays.encode, (spec("images"),)),
        Signature("encode_bytes", files.encode, (file("image_bytes"),)),
        Signature("decode", arrays.decode, (content, style)),
    ]


def smallest_side(autoencoder: AutoEncoder) -> int:
    """Height and width in pixels that a picture must have at least."""
    return SMALLEST_TRUNK * autoencoder.stride


def to_model(images: tf.Tensor) -> tf.Tensor:
    """[0, 1] -> [-1, 1]."""
    return images * 2.0 - 1.0


def from_model(images: tf.Tensor) -> tf.Tensor:
    """About [-1, 1] -> [0, 1], clipped."""
    return tf.clip_by_value((images + 1.0) * 0.5, 0.0, 1.0)


class _Arrays:
    """The signatures that take and return arrays. Everything is checked before the networks start."""

    def __init__(self, autoencoder: AutoEncoder, max_pixels: int):
        self.autoencoder, self.max_pixels = autoencoder, max_pixels

    def encode(self, images: tf.Tensor) -> Outputs:
        (images,) = self._checked(images=images)
        codes = self.autoencoder.encode(to_model(images))
        return {"content": codes.content, "style": codes.style}

    def decode(self, content: tf.Tensor, style: tf.Tensor) -> Outputs:
        encoder, stride = self.autoencoder.encoder, self.autoencoder.stride
        content = _with_shape(content, (None, None, None, encoder.content_dim))
        style = _with_shape(style, (None, encoder.style_dim))
        size = tf.cast(tf.shape(content)[1:3], tf.int64)
        most = self.max_pixels // stride**2
        checks = [
            *_same_batch(content=content, style=style),
            (tf.reduce_all(size > 0), "content must be at least 1 high and 1 wide"),
            (tf.reduce_prod(size) <= most, f"content must have at most {most} positions"),
            (tf.reduce_all(tf.math.is_finite(content)), "content must be finite"),
            (tf.reduce_all(tf.math.is_finite(style)), "style must be finite"),
        ]
        content, style = _after(checks, content, style)
        return {"images": from_model(self.autoencoder.decode(content, style))}

    def swap(self, images: tf.Tensor, style_images: tf.Tensor) -> Outputs:
        images, style_images = self._checked(images=images, style_images=style_images)
        return {"images": from_model(self.autoencoder.swap(to_model(images), to_model(style_images)))}

    def interpolate(
        self, images: tf.Tensor, first_style_images: tf.Tensor, second_style_images: tf.Tensor, weights: tf.Tensor
    ) -> Outputs:
        images, first, second, weights = self._checked(
            images=images,
            first_style_images=first_style_images,
            second_style_images=second_style_images,
            weights=weights,
        )
        mixed = self.autoencoder.interpolate(to_model(images), to_model(first), to_model(second), weights)
        return {"images": from_model(mixed)}

    def masked_blend(
        self, images: tf.Tensor, style_images: tf.Tensor, masks: tf.Tensor, strength: tf.Tensor
    ) -> Outputs:
        images, style_images, masks, strength = self._checked(
            images=images, style_images=style_images, masks=masks, strength=strength
        )
        hybrid = self.autoencoder.masked_blend(to_model(images), to_model(style_images), masks, strength)
        return {"images": from_model(hybrid)}

    def _checked(self, **inputs: tf.Tensor) -> list[tf.Tensor]:
        """The inputs, available once all checks have passed. `masks` belong to `images`; rank 1 means a share."""
        inputs = {name: _with_shape(value, value.shape.as_list()) for name, value in inputs.items()}
        checks = _same_batch(**inputs)
        for name, value in inputs.items():
            hint = "; divide levels of 0..255 by 255" if "images" in name else ""
            inside = tf.reduce_all((value >= 0.0) & (value <= 1.0))  # false for NaN
            if name == "masks":
                same = tf.reduce_all(tf.equal(tf.shape(value)[1:3], tf.shape(inputs["images"])[1:3]))
                checks.append((same, "masks must have the height and width of images"))
            elif len(value.shape) == 4:
                checks += self._size_checks(name, value)
            checks.append((inside, f"{name} must be numbers in [0, 1]{hint}"))
        return _after(checks, *inputs.values())

    def _size_checks(self, name: str, images: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        size, stride = tf.cast(tf.shape(images)[1:3], tf.int64), self.autoencoder.stride
        least = smallest_side(self.autoencoder)
        fits = tf.reduce_all(tf.equal(size % stride, 0)) & tf.reduce_all(size >= least)
        rule = f"; height and width must be multiples of {stride} and at least {least}"
        small = tf.reduce_prod(size) <= self.max_pixels
        return [
            (fits, size_sentence(name, size[0], size[1], rule)),
            (small, size_sentence(name, size[0], size[1], f"; at most {self.max_pixels} in all are accepted")),
        ]


class _Files:
    """The signatures that take encoded files, each example by itself.

    Pictures differ in size, so the networks run once per example; memory is bounded by one picture, not by the batch.
    """

    def __init__(self, autoencoder: AutoEncoder, config: Config, max_pixels: int):
        self.autoencoder, self.max_pixels, self.data = autoencoder, max_pixels, config.data
        self.least = smallest_side(autoencoder)

    def masked_blend(
        self, image_bytes: tf.Tensor, style_image_bytes: tf.Tensor, mask_bytes: tf.Tensor, strength: tf.Tensor
    ) -> Outputs:
        inputs = dict(
            image_bytes=image_bytes, style_image_bytes=style_image_bytes, mask_bytes=mask_bytes, strength=strength
        )
        inputs = {name: _with_shape(value, (None,)) for name, value in inputs.items()}
        return tf.map_fn(
            self._blend_one,
            _after(_same_batch(**inputs), *inputs.values()),
            fn_output_signature={"image_bytes": tf.TensorSpec([], tf.string), "error": tf.TensorSpec([], tf.string)},
            parallel_iterations=1,
        )

    def encode(self, image_bytes: tf.Tensor) -> Outputs:
        side = self.data.resolution
        image_bytes = _with_shape(image_bytes, (None,))
        (image_bytes,) = _after(_same_batch(image_bytes=image_bytes), image_bytes)
        pixels, error = tf.map_fn(
            self._training_crop,
            image_bytes,
            fn_output_signature=(tf.TensorSpec([side, side, 3], tf.uint8), tf.TensorSpec([], tf.string)),
            parallel_iterations=1,
        )
        codes = self.autoencoder.encode(_levels_to_model(pixels))
        usable = tf.cast(tf.equal(error, ""), tf.float32)
        return {
            "content": codes.content * usable[:, None, None, None],
            "style": codes.style * usable[:, None],
            "error": error,
        }

    def _blend_one(self, inputs: Sequence[tf.Tensor]) -> Outputs:
        image_data, style_data, mask_data, strength = inputs
        image = picture_bytes.decode(image_data, "image_bytes", self.max_pixels)
        style = picture_bytes.decode(style_data, "style_image_bytes", STYLE_FACTOR * self.max_pixels)
        mask = picture_bytes.decode(mask_data, "mask_bytes", self.max_pixels, picture_bytes.BLACK)
        size, mask_size = tf.shape(image.pixels)[:2], tf.shape(mask.pixels)[:2]
        style_size = self._style_size(tf.shape(style.pixels)[:2])
        mask_rule = size_sentence("mask_bytes", mask_size[0], mask_size[1], "; it must have the size of the image: ")
        error = first_error(
            *((tf.not_equal(picture.error, ""), picture.error) for picture in (image, style, mask)),
            (
                tf.reduce_any(size < self.least),
                size_sentence("image_bytes", size[0], size[1], f"; each side must have at least {self.least}"),
            ),
            (
                tf.reduce_any(tf.not_equal(size, mask_size)),
                tf.strings.join([mask_rule, tf.strings.as_string(size[1]), " x ", tf.strings.as_string(size[0])]),
            ),
            (self._too_long(style_size), "style_image_bytes is too long and narrow"),
            (
                ~((strength >= 0.0) & (strength <= 1.0)),
                tf.strings.join(["strength must be in [0, 1], got ", tf.strings.as_string(strength, shortest=True)]),
            ),
        )

        def edit() -> tf.Tensor:
            hybrid = self.autoencoder.masked_blend(
                self._padded(_levels_to_model(image.pixels)),
                _levels_to_model(picture_bytes.resize(style.pixels, style_size[0], style_size[1]))[None],
                self._padded(picture_bytes.luminance(mask.pixels)),
                strength[None],
            )
            return picture_bytes.encode_png(hybrid[0, : size[0], : size[1]])

        result = tf.cond(tf.equal(error, ""), edit, lambda: tf.constant(""))
        return {"image_bytes": result, "error": error}

    def _padded(self, image: tf.Tensor) -> tf.Tensor:
        """`[H, W, C]` -> `[1, H', W', C]`: reflected at the bottom and the right up to multiples of the stride."""
        missing = -tf.shape(image)[:2] % self.autoencoder.stride
        padded = tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]], mode="REFLECT")[None]
        return tf.ensure_shape(padded, [1, None, None, image.shape[2]])

    def _style_size(self, size: tf.Tensor) -> tf.Tensor:
        """The size nearest to int32 (H, W) that the encoder takes and that has no more than about `max_pixels`."""
        sides = tf.maximum(tf.cast(size, tf.float32), 1.0)
        scale = tf.minimum(1.0, tf.sqrt(self.max_pixels / tf.reduce_prod(sides)))
        trunk = tf.maximum(tf.round(sides * scale / self.autoencoder.stride), SMALLEST_TRUNK)
        return tf.cast(trunk, tf.int32) * self.autoencoder.stride

    def _too_long(self, size: tf.Tensor) -> tf.Tensor:
        """Whether making a narrow picture wide enough has made it too large."""
        return tf.reduce_prod(tf.cast(size, tf.int64)) > 2 * max(self.max_pixels, self.least**2)

    def _training_crop(self, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One file -> uint8 `[R, R, 3]` as evaluation sees it, and the error."""
        side = self.data.resolution
        picture = picture_bytes.decode(data, "image_bytes", STYLE_FACTOR * self.max_pixels)
        size = tf.shape(picture.pixels)[:2]
        if self.data.preprocess == "resize":
            scaled = tf.constant([side, side])
        else:
            sides = tf.cast(tf.maximum(size, 1), tf.float64)  # as `images.resize_short_side` reckons
            scaled = tf.cast(tf.round(sides * float(self.data.short_side) / tf.reduce_min(sides)), tf.int32)
        error = first_error(
            (tf.not_equal(picture.error, ""), picture.error),
            (self._too_long(scaled), "image_bytes is too long and narrow"),
        )

        def crop() -> tf.Tensor:
            resized = picture_bytes.resize(picture.pixels, scaled[0], scaled[1])
            top, left = tf.unstack((scaled - side) // 2)
            return resized[top : top + side, left : left + side]

        pixels = tf.cond(tf.equal(error, ""), crop, lambda: tf.zeros([side, side, 3], tf.uint8))
        return tf.ensure_shape(pixels, [side, side, 3]), error


def _levels_to_model(pixels: tf.Tensor) -> tf.Tensor:
    """uint8 -> float32 in [-1, 1], as `data.to_model`."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def _with_shape(value: tf.Tensor, shape: Sequence[Optional[int]]) -> tf.Tensor:
    """The tensor, with rank and channels checked at run time: a server feeds what it was sent."""
    return tf.raw_ops.EnsureShape(input=value, shape=shape)


def _same_batch(**inputs: tf.Tensor) -> list[tuple[tf.Tensor, str]]:
    """Checks that the inputs are for as many examples, and for one at least: convolutions of none fail obscurely."""
    (first, one), *others = inputs.items()
    batch = tf.shape(one)[0]
    same = [(tf.equal(tf.shape(other)[0], batch), name) for name, other in others]
    return [
        *((condition, f"{name} has another number of examples than {first}") for condition, name in same),
        (batch > 0, f"{first} has no examples"),
    ]


def _after(checks: list[tuple[tf.Tensor, Any]], *values: tf.Tensor) -> list[tf.Tensor]:
    """The values, available only once every condition of `checks` has been seen to hold, in their order."""
    available = list(values)
    for condition, sentence in checks:
        with tf.control_dependencies([tf.debugging.Assert(condition, [sentence])]):
            available = [tf.identity(value) for value in available]
    return available
