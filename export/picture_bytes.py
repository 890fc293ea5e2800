"""Encoded pictures inside a graph: bytes in, pixels out, and a sentence instead of an exception where that fails.

What a server decodes comes from strangers. So the size is read from the header and checked before memory is taken,
and an op that fails on damaged bytes ends in a sentence for its own example: other requests in the same batch, which
the server may have merged, keep their answers.

JPEG and PNG are accepted, the two that every TensorFlow server since 2.15 decodes. As in the rest of the project:
16 bits per channel keep their upper 8, transparency is laid over a plain background, a JPEG's EXIF orientation is
applied; a JPEG that was cut off is recovered as far as it goes.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import tensorflow as tf

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
EXIF_MAGIC = b"Exif\x00\x00"
HEADER_BYTES = 64
EXIF_REACH = 1 << 17  # an EXIF block starts in front of the picture and is itself at most 64 KiB
ORIENTATION_TAG = 0x0112
END_OF_JPEG = b"\xff\xd9"
RECOVERED_SHARE = 0.1  # share of a damaged JPEG's lines that must be decoded for it to count as a picture
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

WHITE, BLACK = 255, 0


class Picture(NamedTuple):
    """A decoded picture, or none and the reason."""

    pixels: tf.Tensor  # uint8 [H, W, 3]; [0, 0, 3] where there is an error
    error: tf.Tensor  # scalar string, empty where all is well


def attempt(function: Callable[[tf.Tensor], Any], data: tf.Tensor, fallback: Any) -> Any:
    """`function(data)`, or `fallback` where an op in it raises: the only try/except that a graph can hold.

    A data set of one element that drops what fails, followed by the fallback, of which the first element is taken.
    """
    dataset = tf.data.Dataset.from_tensors(data).map(function).ignore_errors()
    return dataset.concatenate(tf.data.Dataset.from_tensors(fallback)).take(1).get_single_element()


def decode(data: tf.Tensor, name: str, max_pixels: int, background: int = WHITE) -> Picture:
    """Decodes one JPEG or PNG.

    Args:
        data: scalar string.
        name: what the sentences call it.
        max_pixels: more than these are refused by the header, before they are decoded.
        background: level 0..255 that transparent pixels are laid over.
    """
    header = tf.strings.substr(data, 0, HEADER_BYTES)
    is_png = tf.equal(tf.strings.substr(header, 0, len(PNG_MAGIC)), PNG_MAGIC)
    is_jpeg = tf.equal(tf.strings.substr(header, 0, len(JPEG_MAGIC)), JPEG_MAGIC)
    height, width = tf.unstack(
        tf.cond(is_jpeg, lambda: attempt(_jpeg_size, data, tf.zeros([2], tf.int64)), lambda: _png_size(header))
    )
    damaged = tf.constant(f"{name} is damaged and cannot be decoded")
    error = first_error(
        (tf.equal(tf.strings.length(data), 0), f"{name} is empty"),
        (_is_webp(header), f"{name} is a WebP file, which is not accepted here: send JPEG or PNG"),
        (~(is_png | is_jpeg), f"{name} is not a JPEG or PNG file"),
        ((height < 1) | (width < 1), damaged),
        # Sides first: their product is then far from the end of int64.
        (
            (height > max_pixels) | (width > max_pixels) | (height * width > max_pixels),
            size_sentence(name, height, width, f"; at most {max_pixels} in all are accepted"),
        ),
    )
    nothing = tf.zeros([0, 0, 3], tf.uint8)
    pixels = tf.cond(
        tf.equal(error, ""),
        lambda: tf.cond(
            is_png,
            lambda: attempt(lambda value: _decode_png(value, background), data, nothing),
            lambda: attempt(_decode_jpeg, data, nothing),
        ),
        lambda: nothing,
    )
    pixels = tf.ensure_shape(pixels, [None, None, 3])
    failed = tf.equal(error, "") & tf.equal(tf.size(pixels), 0)
    return Picture(pixels, tf.where(failed, damaged, error))


def first_error(*cases: tuple[tf.Tensor, Any]) -> tf.Tensor:
    """The sentence of the first condition that holds, or the empty string. Conditions and sentences are scalars."""
    error = tf.constant("")
    for wrong, sentence in reversed(cases):
        error = tf.where(wrong, sentence, error)
    return error


def size_sentence(name: str, height: tf.Tensor, width: tf.Tensor, rest: str) -> tf.Tensor:
    """`NAME: W x H pixels REST`, a scalar string."""
    sides = [tf.strings.as_string(width), " x ", tf.strings.as_string(height)]
    return tf.strings.join([name, ": ", *sides, " pixels", rest])


def luminance(pixels: tf.Tensor) -> tf.Tensor:
    """A mask's level: uint8 `[H, W, 3]` -> float32 `[H, W, 1]` in [0, 1]; grey pixels give exactly grey / 255."""
    levels = tf.cast(pixels, tf.float32)
    grey = tf.reduce_sum(levels * tf.constant(LUMA), axis=-1, keepdims=True)
    is_grey = tf.equal(tf.reduce_max(pixels, -1, keepdims=True), tf.reduce_min(pixels, -1, keepdims=True))
    return tf.where(is_grey, levels[..., :1], grey) / 255.0


def resize(pixels: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Bicubic (a = -0.5), antialiased when reducing, to whole levels: uint8 `[H, W, 3]` -> `[height, width, 3]`.

    Pillow rounds between its two passes as well, whose order depends on its version: a photograph then differs by
    less than a quarter of a level on average.
    """
    size = tf.stack([height, width])

    def change() -> tf.Tensor:
        resized = tf.image.resize(pixels, size, method="bicubic", antialias=True)
        return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)

    same = tf.reduce_all(tf.equal(tf.shape(pixels)[:2], size))
    return tf.ensure_shape(tf.cond(same, lambda: pixels, change), [None, None, 3])


def encode_png(image: tf.Tensor) -> tf.Tensor:
    """float `[H, W, 3]` in [-1, 1] -> PNG, a scalar string; values outside are clipped."""
    return tf.io.encode_png(tf.cast(tf.round(tf.clip_by_value((image + 1.0) * 127.5, 0.0, 255.0)), tf.uint8))


def _is_webp(header: tf.Tensor) -> tf.Tensor:
    padded = tf.strings.join([header, b"\x00" * 12])  # substr must not start behind the end
    return tf.equal(tf.strings.substr(padded, 0, 4), b"RIFF") & tf.equal(tf.strings.substr(padded, 8, 4), b"WEBP")


def _png_size(header: tf.Tensor) -> tf.Tensor:
    """int64 (height, width) that IHDR names (PNG specification, 11.2.2); (0, 0) where it is not the first chunk."""
    padded = tf.strings.join([header, b"\x00" * 24])
    numbers = tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 16, 8), tf.uint8), tf.int64)
    places = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width, height = tf.unstack(tf.reduce_sum(tf.reshape(numbers, [2, 4]) * places, axis=-1))
    return tf.where(tf.equal(tf.strings.substr(padded, 12, 4), b"IHDR"), tf.stack([height, width]), 0)


def _jpeg_size(data: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64)


def _decode_png(data: tf.Tensor, background: int) -> tf.Tensor:
    pixels = tf.io.decode_png(data, channels=4)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    # Grey of 1, 2 or 4 bits gets 1, 3 or 15 as the alpha of opaque pixels, not 255; transparent ones have 0.
    depth, kind = tf.unstack(tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 2), tf.uint8), tf.int32), 2)
    opaque = tf.bitwise.left_shift(1, depth) - 1
    small_grey = tf.equal(kind, 0) & (depth < 8)
    alpha = tf.where(small_grey & tf.equal(tf.cast(alpha, tf.int32), opaque), tf.constant(255, tf.uint8), alpha)

    def composite() -> tf.Tensor:
        share, levels = tf.cast(alpha, tf.int32), tf.cast(colour, tf.int32)
        return tf.cast((levels * share + background * (255 - share) + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(alpha, 255)), lambda: colour, composite)


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    # With an end the decoder fills up what was cut off. Its own way, `try_recover_truncated`, never returns on some
    # damaged files (tests/data/hangs_tensorflow.jpg with TensorFlow 2.15 and 2.21).
    pixels = tf.io.decode_jpeg(
        tf.strings.join([data, END_OF_JPEG]),
        channels=3,
        acceptable_fraction=RECOVERED_SHARE,
        dct_method="INTEGER_ACCURATE",  # what Pillow uses: the same levels as everywhere else in the project
    )
    return _upright(pixels, attempt(_orientation, data, tf.constant(1)))


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation (EXIF 2.32, 4.6.5.1): 5 to 8 swap the axes; then come the mirrorings."""

    def when(values: tuple[int, ...], change: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor) -> tf.Tensor:
        chosen = tf.reduce_any(tf.equal(orientation, tf.constant(values)))
        return tf.ensure_shape(tf.cond(chosen, lambda: change(image), lambda: image), [None, None, 3])

    pixels = when((5, 6, 7, 8), lambda image: tf.transpose(image, [1, 0, 2]), pixels)
    pixels = when((3, 4, 7, 8), lambda image: tf.reverse(image, [0]), pixels)
    return when((2, 3, 6, 7), lambda image: tf.reverse(image, [1]), pixels)


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation 1 to 8 in a JPEG's EXIF block; 1 without a block; raises on a block that cannot be read."""
    start = tf.strings.substr(data, 0, EXIF_REACH)
    octets = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32)

    def is_exif(at: tf.Tensor) -> tf.Tensor:  # marker APP1, length, then the name
        return tf.equal(octets[at + 1], 0xE1) & tf.equal(tf.strings.substr(start, at + 4, len(EXIF_MAGIC)), EXIF_MAGIC)

    def is_other_segment(at: tf.Tensor) -> tf.Tensor:  # APP0 to APP15, or a comment
        marker = octets[at + 1]
        return tf.equal(octets[at], 0xFF) & ((tf.equal(marker // 16, 0xE)) | tf.equal(marker, 0xFE)) & ~is_exif(at)

    def next_segment(at: tf.Tensor) -> tuple[tf.Tensor]:
        return (at + 2 + octets[at + 2] * 256 + octets[at + 3],)

    (at,) = tf.while_loop(is_other_segment, next_segment, (tf.constant(2),), maximum_iterations=64)

    def read() -> tf.Tensor:
        tiff = at + 4 + len(EXIF_MAGIC)
        little = tf.equal(tf.strings.substr(start, tiff, 2), b"II")

        def number(places: tf.Tensor, size: int) -> tf.Tensor:
            """Unsigned numbers of `size` octets at the places, in the block's byte order."""
            digits = tf.stack([tf.gather(octets, places + i) for i in range(size)], axis=-1)
            digits = tf.cond(little, lambda: tf.reverse(digits, [-1]), lambda: digits)
            return tf.reduce_sum(digits * tf.constant([256**i for i in reversed(range(size))]), axis=-1)

        directory = tiff + number(tiff + tf.constant([4]), 4)[0]
        entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory[None], 2)[0], 128))
        values = tf.boolean_mask(number(entries + 8, 2), tf.equal(number(entries, 2), ORIENTATION_TAG))
        value = tf.concat([values, [1]], axis=0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(is_exif(at), read, lambda: tf.constant(1))
