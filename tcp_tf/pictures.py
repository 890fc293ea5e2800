"""Pictures and masks as people have them, to arrays and back: what a file knows beside its colours is kept.

A picture comes in as a path, a `PIL.Image` or a NumPy array and goes out as a `PIL.Image` of the same size, in colour,
with the alpha channel and the RGB colour profile that it came with. Profiles are carried along, not applied.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from PIL import Image

from tcp_tf import images

PictureLike = Union[str, Path, Image.Image, np.ndarray]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
JPEG_QUALITY = 95
_RGB_PROFILE = b"RGB "  # ICC.1:2022, 7.2.6: the colour space at bytes 16 to 19


class PictureError(ValueError):
    """A picture or mask that cannot be used; one line that names it and says why."""


class Photo(NamedTuple):
    """A picture taken apart, upright."""

    pixels: np.ndarray  # uint8 [H, W, 3]; under transparent pixels whatever the file holds there
    alpha: Optional[np.ndarray]  # uint8 [H, W]
    profile: Optional[bytes]  # ICC

    @property
    def visible(self) -> np.ndarray:
        """The colours, uint8 `[H, W, 3]`, with white where a pixel is fully transparent: what a network may see."""
        if self.alpha is None or self.alpha.all():
            return self.pixels
        return np.where(self.alpha[..., None] == 0, np.uint8(255), self.pixels)


def read(picture: PictureLike, name: str = "image") -> Photo:
    """Reads a picture.

    Args:
        picture: a path, a `PIL.Image`, or an array `[H, W]` or `[H, W, 1 to 4]` of uint8, uint16, bool or floats
            in [0, 1]; two and four channels end with alpha.
        name: what an error calls it when it has no path.
    Raises:
        PictureError: it is none of these, or cannot be read.
    """
    image = _open(picture, name)
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[16:20] != _RGB_PROFILE:
        profile = None
    if not images.is_transparent(image):
        return Photo(images.to_rgb(image), None, profile)
    layer = np.array(image.convert("RGBA"))
    return Photo(layer[..., :3], layer[..., 3], profile)


def read_mask(mask: PictureLike, size: tuple[int, int], name: str = "mask") -> np.ndarray:
    """Reads a mask as float32 `[H, W]` in [0, 1], 1 where it is painted.

    Brightness counts, with transparent laid over black; but where everything visible has one colour and the alpha
    channel varies (a layer of brush strokes, of any colour), alpha is the mask.

    Args:
        mask: as `read`; floats keep their precision. Another size is resized to `size`.
        size: (width, height) of the picture that it belongs to.
    Raises:
        PictureError: as `read`.
    """
    if isinstance(mask, np.ndarray) and mask.dtype.kind == "f" and (mask.ndim == 2 or mask.shape[2:] == (1,)):
        level = _checked_floats(mask, name).reshape(mask.shape[:2]).astype(np.float32)
    else:
        photo = read(mask, name)
        level = _level(photo)
    if level.shape[::-1] == tuple(size):
        return level
    resized = Image.fromarray(level).resize(size, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0.0, 1.0)


def to_image(pixels: np.ndarray, photo: Photo) -> Image.Image:
    """uint8 `[H, W, 3]` as a `PIL.Image` with the alpha channel and the profile of the picture it was made from."""
    if photo.alpha is not None:
        pixels = np.concatenate([pixels, photo.alpha[..., None]], axis=-1)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if photo.profile is not None:
        image.info["icc_profile"] = photo.profile
    return image


def save(image: Image.Image, path: Union[str, Path]) -> None:
    """Writes a picture whole or not at all, in the format of the name's ending, with its colour profile.

    JPEG has no alpha channel: transparent pixels are laid over white. Missing folders are made.

    Raises:
        PictureError: the ending is not that of a format that is written.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in images.FORMATS:
        known = ", ".join(images.SUFFIXES)
        raise PictureError(f"{path}: pictures are written as one of {known}, got {path.suffix or 'no ending'!r}")
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")} if kind != "BMP" else {}
    if kind == "JPEG":
        options |= {"quality": JPEG_QUALITY, "subsampling": 0}
        image = Image.fromarray(images.to_rgb(image)) if image.mode != "RGB" else image
    elif kind == "WEBP":
        options |= {"quality": JPEG_QUALITY}
    write(path, lambda file: image.save(file, format=kind, **options))


def write(path: Union[str, Path], fill: Any) -> None:
    """Calls `fill(file)` with an open binary file, which becomes `path` when that has succeeded and vanishes if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives the owner alone the right to read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _open(picture: PictureLike, name: str) -> Image.Image:
    if isinstance(picture, (str, Path)):
        try:
            return images.load(Path(picture).read_bytes())
        except images.ImageError as error:
            raise PictureError(f"{picture}: {error}") from None
        except OSError as error:
            raise PictureError(f"{picture}: {error.strerror or error}") from None
    if isinstance(picture, Image.Image):
        if picture.mode == "F":
            raise PictureError(f"{name}: Pillow's mode F has no fixed range; hand over an array of floats in [0, 1]")
        return images.upright(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name)
    raise PictureError(f"{name}: must be a path, a PIL.Image or an array, got {type(picture).__name__}")


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
        raise PictureError(f"{name}: an array must have the shape [H, W] or [H, W, 1 to 4], got {array.shape}")
    if array.dtype == np.bool_:
        levels = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        levels = (array >> 8).astype(np.uint8)
    elif array.dtype.kind == "f":
        levels = np.rint(_checked_floats(array, name) * 255.0).astype(np.uint8)
    elif array.dtype == np.uint8:
        levels = array
    else:
        raise PictureError(f"{name}: an array must be of uint8, uint16, bool or floats in [0, 1], got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[2] == 1 else levels))


def _checked_floats(array: np.ndarray, name: str) -> np.ndarray:
    if not (array.size and np.all((array >= 0) & (array <= 1))):  # also false for NaN
        found = f"{np.min(array)} to {np.max(array)}" if array.size else "nothing"
        raise PictureError(f"{name}: an array of floats must be within [0, 1], got {found}")
    return array


def _level(photo: Photo) -> np.ndarray:
    if photo.alpha is not None and photo.alpha.min() != photo.alpha.max():
        seen = photo.pixels[photo.alpha > 0]
        if (seen == seen[0]).all():
            return photo.alpha.astype(np.float32) / 255.0
    pixels = photo.pixels
    if photo.alpha is not None:
        share = photo.alpha[..., None].astype(np.int32)
        pixels = ((pixels.astype(np.int32) * share + 127) // 255).astype(np.uint8)
    levels = pixels.astype(np.float32)
    is_grey = pixels.max(axis=-1) == pixels.min(axis=-1)
    return np.where(is_grey, levels[..., 0], levels @ LUMA) / np.float32(255.0)
