"""Image bytes to arrays: decoding that survives what people's folders hold, and resizing.

Everything returns uint8 RGB of shape [H, W, 3], upright. What happens to the unusual:

- greyscale, palette, black-and-white and CMYK are converted to RGB (embedded colour profiles are not applied);
- 16 bits per channel keep their upper 8;
- transparency is laid over white, because the colours hidden under transparent pixels are arbitrary;
- EXIF orientation is applied; an EXIF block that cannot be parsed counts as upright;
- of an animation the first frame is taken;
- more than `MAX_PIXELS` pixels are refused by the header, before any memory is taken for them.
"""

from __future__ import annotations

import io
import math
from typing import Any, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs, kept where a program has lifted Pillow's
DRAFT_MARGIN = 1.5  # a JPEG is decoded no smaller than this many times the size it is wanted at

_ORIENTATION_TAG = 0x0112
_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for an orientation
_UPRIGHT = {  # EXIF 2.32, 4.6.5.1: what undoes each orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Bytes that are not a usable picture; the message is the reason."""


def decode(data: bytes, least: Optional[int] = None) -> np.ndarray:
    """Decodes the bytes of a JPEG, PNG, WebP or BMP file.

    Args:
        data: the encoded picture.
        least: a short side in pixels that is enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, as long as
            both sides stay at least DRAFT_MARGIN times `least`: two to four times faster for a photograph, and after
            the bicubic reduction that follows, above 41 dB from the full decode (six photographs at quality 90), which
            is less than the JPEG itself has lost. Up to 7 pixels at the right and lower edge are left out then.

    Returns:
        uint8 [H, W, 3], upright.

    Raises:
        ImageError: the bytes are not such a picture, are cut off or damaged, or hold more than MAX_PIXELS pixels.
    """
    return to_rgb(_load(data, least)[0])


def load(data: bytes) -> Image.Image:
    """As `decode`, but with the file's own mode, transparency and colour profile: a picture of Pillow's, upright.

    Raises:
        ImageError: as `decode`.
    """
    return upright(_load(data, None)[0])


def examine(data: bytes) -> tuple[str, int, int]:
    """Reads a picture to its end, as cheaply as that can be done: (format, width, height), width and height upright.

    A JPEG is decoded at an eighth of its size, which still reads all of its bytes and so finds truncation.

    Raises:
        ImageError: as `decode`.
    """
    image, name, (width, height) = _load(data, least=1)
    to_rgb(image)
    return (name, height, width) if _orientation(image) >= 5 else (name, width, height)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic (a = -0.5), antialiased when reducing: uint8 [H, W, 3] to uint8 [height, width, 3]."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_short_side(image: np.ndarray, side: int) -> np.ndarray:
    """`resize` with the proportions kept, so that the shorter side becomes `side` pixels."""
    height, width = image.shape[:2]
    short = min(height, width)
    return resize(image, round(height * side / short), round(width * side / short))


def to_uint8(image: Any) -> np.ndarray:
    """Floats in [-1, 1], an array or a tensor of any shape, to the nearest uint8 0..255; others are clipped."""
    values = np.asarray(image, np.float32)
    return np.rint(np.clip((values + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def upright(image: Image.Image) -> Image.Image:
    """The picture with its EXIF orientation applied, and without the metadata that asked for it."""
    orientation = _orientation(image)
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in _METADATA:
        turned.info.pop(key, None)
    return turned


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a colour or palette entries that count as transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any picture of Pillow's as uint8 [H, W, 3], upright, as the module's first lines say."""
    image = upright(image)
    if image.mode.startswith("I"):  # 16 bits of grey; convert() would clip them instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if is_transparent(image):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(image.convert("RGB"))


def _load(data: bytes, least: Optional[int]) -> tuple[Image.Image, str, tuple[int, int]]:
    """The decoded picture, not yet upright, its format, and its (width, height) at full size.

    MPO, a camera's JPEG with a preview behind it, counts as JPEG.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        size, name = image.size, "JPEG" if image.format == "MPO" else str(image.format)
        if size[0] * size[1] > MAX_PIXELS:
            raise ImageError(f"{size[0]}x{size[1]} pixels are more than the {MAX_PIXELS} that are accepted")
        drafted = None
        if least is not None:
            side = math.ceil(DRAFT_MARGIN * least)
            drafted = image.draft(image.mode, (side, side))
        image.load()
        if drafted is not None:  # the last row and column of a reduced JPEG may stand for less than a whole pixel
            whole = max(1, int(drafted[1][2])), max(1, int(drafted[1][3]))
            image = image if image.size == whole else image.crop((0, 0, *whole))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not a JPEG, PNG, WebP or BMP picture") from None
    except Exception as error:  # decoders meet damaged bytes with OSError, SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error
    return image, name, size


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # metadata that cannot be parsed is no reason to lose the picture
        return 1
    return orientation if orientation in _UPRIGHT else 1
