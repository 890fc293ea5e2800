"""Decoding inside a graph: as Pillow decodes for the rest of the project, and never with an exception."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photographs

from export import picture_bytes
from tcp_tf import images

LIMIT = 1 << 16
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def decode() -> Callable[[bytes], tuple[np.ndarray, str]]:
    """A file's pixels and its error, from one traced graph."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decoded(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(picture_bytes.decode(value, "it", LIMIT))

    def run(value: bytes) -> tuple[np.ndarray, str]:
        pixels, error = decoded(value)
        return pixels.numpy(), error.numpy().decode("ascii")

    return run


def photograph(height: int = 90, width: int = 120) -> Image.Image:
    return Image.fromarray(photographs.astronaut()).resize((width, height), Image.Resampling.BICUBIC)


def file(image: Image.Image, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, **options)
    return written.getvalue()


def transparent() -> Image.Image:
    image = photograph().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen_bits() -> Image.Image:
    levels = np.asarray(photograph().convert("L")).astype(np.uint16) * 257
    return Image.fromarray(levels)


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: file(photograph(), format="PNG"),
    "png, grey": lambda: file(photograph().convert("L"), format="PNG"),
    "png, black and white": lambda: file(photograph().convert("1"), format="PNG"),
    "png, palette": lambda: file(photograph().quantize(64), format="PNG"),
    "png, transparent palette": lambda: file(photograph().quantize(64), format="PNG", transparency=3),
    "png, transparent": lambda: file(transparent(), format="PNG"),
    "png, transparent grey": lambda: file(transparent().convert("LA"), format="PNG"),
    "png, 16 bits": lambda: file(sixteen_bits(), format="PNG"),
    "jpeg": lambda: file(photograph(), format="JPEG"),
    "jpeg, progressive": lambda: file(photograph(), format="JPEG", progressive=True),
    "jpeg, all colours": lambda: file(photograph(), format="JPEG", subsampling=0, quality=100),
    "jpeg, grey": lambda: file(photograph().convert("L"), format="JPEG"),
}


def grey_png(bits: int, transparent: bool) -> bytes:
    """16 pixels of few bits, which Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 1, bits, 0, 0, 0, 0))
    header += chunk(b"tRNS", b"\x00\x01") if transparent else b""
    rows = zlib.compress(bytes([0, *(0b00011011 * i % 256 for i in range(2 * bits))]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "transparent"), [(1, False), (1, True), (2, False), (4, False)])
def test_grey_of_few_bits(bits: int, transparent: bool, decode: Callable[..., Any]) -> None:
    data = grey_png(bits, transparent)
    pixels, error = decode(data)
    assert error == "" and np.array_equal(pixels, images.decode(data))


@pytest.mark.parametrize("what", FILES)
def test_pixels_are_those_of_the_rest_of_the_project(what: str, decode: Callable[..., Any]) -> None:
    data = FILES[what]()
    pixels, error = decode(data)
    assert error == "" and pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - images.decode(data))
    assert difference.max() <= (1 if "transparent" in what else 0)


def test_cmyk_is_converted(decode: Callable[..., Any]) -> None:
    pixels, error = decode(file(photograph().convert("CMYK"), format="JPEG", quality=95))
    assert error == "" and np.abs(pixels.astype(int) - np.asarray(photograph())).mean() < 4


@pytest.mark.parametrize("byte_order", ["MM", "II"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, byte_order: str, decode: Callable[..., Any]) -> None:
    exif = Image.Exif()
    exif.endian = ">" if byte_order == "MM" else "<"
    exif[0x010F] = "a camera"
    exif[ORIENTATION] = orientation
    data = file(photograph(), format="JPEG", exif=exif, comment=b"in front or behind")
    assert b"Exif\x00\x00" + byte_order.encode() in data
    np.testing.assert_array_equal(decode(data)[0], images.decode(data))


def test_broken_exif_counts_as_upright(decode: Callable[..., Any]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = file(photograph(), format="JPEG", exif=exif)
    place = data.index(b"Exif\x00\x00") + 6
    for broken in (b"\xff" * 8, b"MM\x00\x2a\x7f\xff\xff\xff", b"II\x2a\x00\xff\xff\x00\x00"):
        pixels, error = decode(data[:place] + broken + data[place + 8 :])
        assert error == "" and pixels.shape == (90, 120, 3)


def test_a_transparent_mask_counts_as_black() -> None:
    image = Image.new("LA", (4, 2), (255, 0))
    image.putpixel((1, 0), (255, 255))
    picture = picture_bytes.decode(tf.constant(file(image, format="PNG")), "it", LIMIT, picture_bytes.BLACK)
    levels = picture_bytes.luminance(picture.pixels).numpy()[..., 0]
    np.testing.assert_array_equal(levels, [[0, 1, 0, 0], [0, 0, 0, 0]])


def test_luminance_keeps_grey_and_weighs_colours() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(picture_bytes.luminance(tf.constant(grey))[0, :, 0], np.arange(256, dtype="f") / 255)
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(picture_bytes.luminance(tf.constant(colours))[0, :, 0], [0.299, 0.587, 0.114], atol=1e-6)


@pytest.mark.parametrize("size", [(90, 120), (48, 64), (135, 240), (33, 121)])
def test_resizing_is_pillows_up_to_its_roundings(size: tuple[int, int]) -> None:
    pixels = np.asarray(photograph())
    resized = picture_bytes.resize(tf.constant(pixels), *size).numpy()
    difference = np.abs(resized.astype(int) - images.resize(pixels, *size))
    assert resized.dtype == np.uint8 and difference.mean() < 0.25


def test_png_is_written_as_everywhere_else() -> None:
    values = np.linspace(-1.2, 1.2, 3 * 4 * 5, dtype=np.float32).reshape(4, 5, 3)
    written = images.decode(picture_bytes.encode_png(tf.constant(values)).numpy())
    np.testing.assert_array_equal(written, np.rint(np.clip((values + 1) * 127.5, 0, 255)).astype(np.uint8))


def test_a_file_on_which_tensorflows_own_recovery_never_returns(decode: Callable[..., Any]) -> None:
    """Found by fuzzing."""
    began = time.monotonic()
    pixels, error = decode((Path(__file__).parent / "data" / "hangs_tensorflow.jpg").read_bytes())
    assert (error == "") == (pixels.size > 0) and time.monotonic() - began < 5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_off_is_recovered(progressive: bool, decode: Callable[..., Any]) -> None:
    data = file(photograph(), format="JPEG", progressive=progressive)
    whole, _ = decode(data)
    pixels, error = decode(data[: len(data) * 95 // 100])
    assert error == "" and pixels.shape == whole.shape
    assert np.array_equal(pixels[:40], whole[:40]) or (progressive and np.abs(pixels.astype(int) - whole).mean() < 4)


@pytest.mark.parametrize("name", ["png", "png, transparent", "jpeg", "jpeg, progressive"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(draw=st.data())
def test_no_bytes_raise(name: str, decode: Callable[..., Any], draw: st.DataObject) -> None:
    octets = bytearray(FILES[name]())
    for _ in range(draw.draw(st.integers(0, 6))):
        octets[draw.draw(st.integers(0, len(octets) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(octets)) | st.just(len(octets)))
    pixels, error = decode(bytes(octets[:cut]))
    assert (error == "") == (pixels.size > 0) and pixels.size <= 3 * LIMIT


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP"]), rest=st.binary()
)
def test_nothing_but_pictures_is_a_picture(start: bytes, rest: bytes, decode: Callable[..., Any]) -> None:
    pixels, error = decode(start + rest)
    assert error.startswith("it") and pixels.size == 0
