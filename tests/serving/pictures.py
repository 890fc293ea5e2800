"""What the tests of serving send: files and arrays, good and bad ones, and what a server must say to them."""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from export.client import Edit

SIDE = 64  # pixels; eight strides of configs/tiny.yaml


def file(pixels: np.ndarray, **options: Any) -> bytes:
    """A PNG, or what `format=` says."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, **{"format": "PNG", **options})
    return written.getvalue()


def strings(*values: bytes) -> np.ndarray:
    """bytes -> an object array [N]."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def b64(data: bytes) -> dict[str, str]:
    """Bytes as REST wants them."""
    return {"b64": base64.b64encode(data).decode()}


def an_edit(seed: int, height: int = SIDE, width: int = SIDE) -> Edit:
    """A coarse random picture, look and mask; every seed gives another answer."""
    rng = np.random.default_rng(seed)

    def picture(high: int, wide: int) -> np.ndarray:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        return np.asarray(coarse.resize((wide, high), Image.Resampling.BICUBIC))

    mask = np.zeros((height, width), np.uint8)
    mask[: rng.integers(height // 2, height)] = 255
    return Edit(file(picture(height, width)), file(picture(SIDE, SIDE)), file(mask), float(rng.uniform(0.5, 1.0)))


def arrays(seed: int, batch: int = 1, height: int = SIDE, width: int = SIDE) -> dict[str, np.ndarray]:
    """Inputs of `masked_blend`, every element random."""
    rng = np.random.default_rng(seed)
    shapes = {"images": (height, width, 3), "style_images": (SIDE, SIDE, 3), "masks": (height, width, 1)}
    inputs = {name: rng.uniform(0.0, 1.0, (batch, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return {**inputs, "strength": rng.uniform(0.5, 1.0, batch).astype(np.float32)}


@functools.lru_cache
def huge_png(side: int = 30_000) -> bytes:
    """A valid black PNG of side x side RGB pixels, 2.6 MB that decode to 2.7 GB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    # Zeros after a full flush compress to the same octets every time, so that one row stands for all (RFC 1950, 1951).
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = side * (1 + 3 * side)
    row = squeeze.compress(bytes(1 + 3 * side)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    adler = struct.pack(">I", size % 65521 << 16 | 1)
    data = b"\x78\x01" + row * side + squeeze.flush(zlib.Z_FINISH) + adler
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Bad(NamedTuple):
    """A request that must fail: with one of `codes`, and a sentence that matches the pattern `says`."""

    signature: str
    inputs: dict[str, np.ndarray]
    codes: tuple[str, ...]
    says: str


def bad_requests() -> dict[str, Bad]:
    """Every kind of wrong request to the array signatures and of wrong names."""
    good, invalid = arrays(0), ("INVALID_ARGUMENT",)
    nan = good["images"].copy()
    nan[0, 3, 4, 1] = np.nan

    def blend(says: str, **changed: np.ndarray) -> Bad:
        return Bad("masked_blend", {**good, **changed}, invalid, says)

    return {
        "type": blend(r"float|\[0, 1\]", images=(good["images"] * 255).astype(np.int64)),
        "strings for numbers": blend(r"float|type", images=strings(b"not", b"numbers")[:1]),
        "rank": blend(r"[Ss]hape|rank|0th|dimension", images=good["images"][0]),
        "scalar strength": blend(r"[Ss]hape|rank|dimension", strength=np.float32(1.0)),
        "channels": blend(r"[Ss]hape", images=good["images"][..., :1]),
        "size": blend("multiples of 8", images=good["images"][:, :60], masks=good["masks"][:, :60]),
        "too small": blend("at least 56", images=good["images"][:, :8, :8], masks=good["masks"][:, :8, :8]),
        "mask of another size": blend("masks must have the height and width of images", masks=good["masks"][:, :56]),
        "range": blend(r"images must be numbers in \[0, 1\]; divide levels", images=good["images"] * 255),
        "range of strength": blend(r"strength must be numbers in \[0, 1\]", strength=np.array([1.5], np.float32)),
        "NaN": blend(r"images must be numbers in \[0, 1\]", images=nan),
        "batches that differ": blend(r"number of examples|0th-dimension", strength=np.ones(2, np.float32)),
        "empty batch": Bad("masked_blend", arrays(0, batch=0), invalid, r".{10,}"),
        "missing input": Bad("masked_blend", {key: good[key] for key in list(good)[:-1]}, invalid, "strength"),
        "unknown input": Bad("masked_blend", {**good, "wrong": good["strength"]}, invalid, "wrong"),
        "unknown signature": Bad("nonsense", good, ("FAILED_PRECONDITION", *invalid), "nonsense"),
    }


def bad_files() -> dict[str, tuple[Edit, str]]:
    """Every kind of wrong file, as an edit that it is part of, with the sentence that its own answer must have."""
    good = an_edit(0)
    jpeg = file(np.asarray(Image.open(io.BytesIO(good.image))), format="JPEG", quality=90)
    return {
        "truncated JPEG": (good._replace(image=jpeg[: len(jpeg) // 20]), "image_bytes is damaged"),
        "truncated PNG": (good._replace(style=good.style[: len(good.style) // 2]), "style_image_bytes is damaged"),
        "huge PNG": (good._replace(image=huge_png()), "image_bytes: 30000 x 30000 pixels; at most"),
        "text": (good._replace(style=b"a text file, not a picture\n"), "style_image_bytes is not a JPEG or PNG file"),
        "nothing": (good._replace(mask=b""), "mask_bytes is empty"),
        "WebP": (good._replace(image=file(np.zeros((64, 64, 3), np.uint8), format="WEBP")), "image_bytes is a WebP"),
        "mask of another size": (
            good._replace(mask=file(np.zeros((8, 8), np.uint8))),
            "mask_bytes: 8 x 8 pixels; it must have",
        ),
        "strength": (good._replace(strength=2.0), "strength must be in"),
        "NaN": (good._replace(strength=float("nan")), "strength must be in"),
    }
