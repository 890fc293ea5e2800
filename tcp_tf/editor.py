"""What a person does with a trained model: open a picture, paint regions, give them styles, keep everything else.

    editor = Editor.load("runs/quickstart")
    picture = editor.open("photo.jpg")                  # encoded once
    picture.edit([Region("sky.png", "sunset.jpg")], preserve_background=True).save("edited.png")

Pictures are paths, `PIL.Image`s or arrays (`tcp_tf.pictures`), of any size; results are `PIL.Image`s of the same size.

A model knows things at the scale of its training pictures. So a picture that is much larger is worked on at a reduced
size, and the *change* is carried over to the full size, where the photograph keeps its own detail; `work_size` says at
which size. Large working sizes are computed in tiles.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf
from PIL import Image

from tcp_tf import compositing, exported, pictures, run_dir, styles, tiling
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import SMALLEST_STYLE_GRID, Config
from tcp_tf.encoder import Codes
from tcp_tf.images import to_uint8
from tcp_tf.pictures import PictureLike

StyleLike = Union[PictureLike, np.ndarray]  # an array of one axis is an encoded style, anything else a picture
WorkSize = Union[int, str]

AUTO, FULL = "auto", "full"
AUTO_FACTOR = 1.5  # a short side of up to so many training sides is worked on as it is, a longer one is reduced to one
EDGE = 0.5  # width of the transition inside a mask's border, in strides of the network
DEPTH = 2.0  # from here inwards an edit is wholly the generator's, in strides
KEPT_TRANSFERS = 8  # feature maps of global transfers that an open picture remembers


class EditError(ValueError):
    """An edit that cannot be made; one line that says why."""


class Region(NamedTuple):
    """Where, what look, how much."""

    mask: PictureLike  # any size; 1 where it is painted
    style: StyleLike
    strength: float = 1.0  # in [0, 1]
    feather: float = 0.0  # softness of the mask's edge, in pixels of the picture


class Editor:
    """A trained model for people: pictures of any size in, pictures of the same size out.

    Attributes:
        stride: pixels per position of the content code.
        resolution: side of the training pictures, in pixels.
        strategy: where masks mix styles, one of `blending.STRATEGIES`.
    """

    def __init__(
        self, autoencoder: AutoEncoder, config: Config, tile: int = tiling.TILE, work_size: WorkSize = AUTO
    ) -> None:
        """See `load`, which is the usual way to an editor."""
        self.networks = tiling.TiledAutoEncoder(autoencoder, tile)
        self.stride, self.strategy = autoencoder.stride, autoencoder.strategy
        self.resolution, self.config = config.data.resolution, config
        self.least = SMALLEST_STYLE_GRID * self.stride
        self.work_size = _checked_work_size(work_size)

    @classmethod
    def load(
        cls,
        path: Union[str, Path],
        tile: int = tiling.TILE,
        work_size: WorkSize = AUTO,
        precision: str = "float32",
    ) -> Editor:
        """The model of a run directory (its averaged networks), or of an exported SavedModel.

        Args:
            path: `runs/NAME` or what has the same shape; or what `python -m export` wrote, with or without version.
            tile: side in pixels of what the networks see at a time; bounds the memory.
            work_size: default of `open`.
            precision: the networks' arithmetic, one of `config.PRECISIONS`; `mixed_bfloat16` is the faster one where
                the processor has it.
        Raises:
            ValueError: there is no model, or not one that can be used; one line that names the path.
        """
        where = Path(path)
        if not where.is_dir():
            raise EditError(f"{path}: there is no such directory; a run directory or an exported model is wanted")
        if (where / run_dir.CONFIG).is_file():
            autoencoder, config = run_dir.load_autoencoder(where)
            return cls(autoencoder.folded(config, precision), config, tile, work_size)
        try:
            version = exported.newest_version(where)
        except exported.ExportedModelError:
            wanted = f"neither a run directory (no {run_dir.CONFIG}) nor an exported model (no {exported.GRAPH})"
            raise EditError(f"{path}: {wanted}") from None
        return cls(*exported.load_autoencoder(version, precision), tile, work_size)

    def open(self, image: PictureLike, work_size: Optional[WorkSize] = None) -> Picture:
        """Encodes a picture once; everything that is then done with it only decodes.

        Args:
            work_size: short side in pixels at which the networks work, `"full"` for the picture's own, `"auto"` for
                the training pictures' where the picture is more than 1.5 times as large; default the editor's.
        Raises:
            PictureError: the picture cannot be read.
        """
        chosen = self.work_size if work_size is None else _checked_work_size(work_size)
        return Picture(self, pictures.read(image), chosen)

    def encode_style(self, image: StyleLike) -> np.ndarray:
        """A picture's look as a vector `[Cs]` of unit norm; a vector is returned normalised.

        A picture is resized to whole strides first, at the scale that "auto" gives.
        """
        if isinstance(image, np.ndarray) and image.ndim == 1:
            length = self.config.model.style_dim
            if image.shape != (length,) or not np.isfinite(image).all():
                raise EditError(f"style: this model's styles are {length} finite numbers, got shape {image.shape}")
            return styles.normalized(image)
        pixels = pictures.read(image, "style").visible
        sides = np.array(self.work_shape(pixels.shape[:2], AUTO))
        height, width = np.maximum(np.round(sides / self.stride), SMALLEST_STYLE_GRID).astype(int) * self.stride
        return self.networks.heads(self.networks.features(_to_model(_resized(pixels, height, width)))).style

    def encode(self, image: PictureLike, work_size: Optional[WorkSize] = None) -> Codes:
        """`Codes(content [h, w, Cc], style [Cs])` of a picture, as arrays."""
        return self.open(image, work_size).codes

    def decode(self, content: np.ndarray, style: np.ndarray) -> Image.Image:
        """The picture of codes `[h, w, Cc]` and `[Cs]`, of h and w times the stride pixels."""
        content, depth = np.asarray(content, np.float32), self.config.model.content_dim
        if content.ndim != 3 or content.shape[2] != depth or not np.isfinite(content).all():
            raise EditError(f"content: finite numbers of shape [h, w, {depth}] are wanted, got {content.shape}")
        decoded = self.networks.decode(content, self.encode_style(np.asarray(style)))
        return Image.fromarray(to_uint8(decoded))

    def swap(self, image: PictureLike, style: StyleLike) -> Image.Image:
        """The whole picture in the look of another."""
        return self.open(image).swap(style)

    def masked_blend(
        self,
        image: PictureLike,
        style: StyleLike,
        mask: PictureLike,
        strength: float = 1.0,
        feather: float = 0.0,
        preserve_background: bool = False,
    ) -> Image.Image:
        """One region of a picture in the look of another; see `Picture.edit`."""
        return self.edit(image, [Region(mask, style, strength, feather)], preserve_background)

    def edit(self, image: PictureLike, regions: Sequence[Region], preserve_background: bool = False) -> Image.Image:
        """Several regions with a look each, at once; see `Picture.edit`."""
        return self.open(image).edit(regions, preserve_background)

    def interpolate(self, image: PictureLike, looks: Sequence[StyleLike], steps: int) -> list[Image.Image]:
        """The picture on the way through several looks; see `Picture.interpolate`."""
        return self.open(image).interpolate(looks, steps)

    def library(self, images: dict[str, PictureLike]) -> styles.StyleLibrary:
        """Encodes pictures, by name, into a library of styles."""
        encoded = [self.encode_style(image) for image in images.values()]
        return styles.StyleLibrary(tuple(images), np.array(encoded).reshape(len(encoded), self.config.model.style_dim))

    def random_style(self, library: styles.StyleLibrary, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """A style `[Cs]` that the library does not hold but could: a random mixture of three of its own."""
        return self.encode_style(library.random(rng))

    def work_shape(self, shape: tuple[int, ...], work_size: WorkSize) -> tuple[int, int]:
        """(height, width) at which the networks work on a picture of (height, width): never less than they can take."""
        height, width = shape[:2]
        short = min(height, width)
        if work_size == AUTO:
            side = short if short <= AUTO_FACTOR * self.resolution else self.resolution
        else:
            side = short if work_size == FULL else min(short, int(work_size))
        side = max(side, self.least)
        return max(side, round(height * side / short)), max(side, round(width * side / short))


class Picture:
    """An opened picture: encoded once, edited as often as wanted.

    Attributes:
        image: the picture as it came in, upright.
        size: its (width, height).
        codes: `Codes(content [h, w, Cc], style [Cs])` at the working size.
        reduced: whether that is less than the picture's own. Then an edit changes nothing outside its masks, with
            `preserve_background` or without.
    """

    def __init__(self, editor: Editor, photo: pictures.Photo, work_size: WorkSize) -> None:
        self.editor, self.photo = editor, photo
        self.image = pictures.to_image(photo.pixels, photo)
        self.size: tuple[int, int] = self.image.size
        self.shape = photo.pixels.shape[:2]
        self.work_shape = editor.work_shape(self.shape, work_size)
        self._original = _to_model(photo.visible)
        self.reduced = self.work_shape[0] < self.shape[0]
        small = Image.fromarray(photo.visible)
        if self.work_shape != self.shape:
            small = small.resize(self.work_shape[::-1], Image.Resampling.BICUBIC)
        self._small = _to_model(np.asarray(small))
        features = editor.networks.features(tiling.reflected(self._small, editor.stride))
        self.codes: Codes = editor.networks.heads(features)
        self._features = features if editor.strategy == "encoder_features" else None
        self._transfers: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._own: Optional[np.ndarray] = None

    @property
    def style(self) -> np.ndarray:
        """The picture's own look, `[Cs]`."""
        return np.asarray(self.codes.style)

    def edit(self, regions: Sequence[Region], preserve_background: bool = False) -> Image.Image:
        """The picture with a look per region, mixed at feature level. Where masks overlap they share in proportion.

        Args:
            regions: none gives the reconstruction.
            preserve_background: pixels outside all masks stay those of the picture, exactly; inside, the edit is
                joined to them without a seam.
        Raises:
            EditError: a strength or feather out of range.
            PictureError: a mask or style that cannot be read.
        """
        masks = np.zeros((len(regions), *self.shape), np.float32)
        for mask, region in zip(masks, regions):
            _check_region(region)
            mask[:] = compositing.feather(pictures.read_mask(region.mask, self.size), region.feather)
        encoded = [self.editor.encode_style(region.style) for region in regions]
        strengths = np.array([region.strength for region in regions], np.float32)
        if preserve_background and not (masks > 0).any():
            return self.image.copy()
        if self.reduced:
            return self._edit_reduced(encoded, masks, strengths)
        hybrid = self._at_full_size(self._hybrid(encoded, masks, strengths) if regions else self._reconstruction())
        if not preserve_background:
            return self._finished(hybrid)
        painted = np.minimum(masks.sum(axis=0), 1.0)
        amount = np.minimum(np.tensordot(strengths, masks, axes=1), 1.0)
        edge, depth = (self._full_pixels(strides * self.editor.stride) for strides in (EDGE, DEPTH))
        own = self._at_full_size(self._reconstruction())
        joined = compositing.seamless(self._original, hybrid, own, painted, amount, edge, depth)
        return self._finished(joined, painted)

    def swap(self, style: StyleLike) -> Image.Image:
        """The whole picture in the look of another."""
        decoded = self._decoded(self.editor.encode_style(style))
        if not self.reduced:
            return self._finished(self._at_full_size(decoded))
        everywhere = np.ones(self.work_shape, np.float32)
        change = compositing.enlarge(decoded - self._reconstruction(), self._small, everywhere, self._original)
        return self._finished(self._original + change)

    def interpolate(self, looks: Sequence[StyleLike], steps: int) -> list[Image.Image]:
        """`steps` pictures on the way through the looks, evenly spaced, ends included.

        One look is approached from the picture's own.
        """
        encoded = [self.editor.encode_style(look) for look in looks]
        encoded = [self.style, *encoded] if len(encoded) == 1 else encoded
        return [self.swap(style) for style in styles.path_through(encoded, steps)]

    def _hybrid(self, looks: list[np.ndarray], masks: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """The blend at the working size, `[h, w, 3]`."""
        networks, strategy = self.editor.networks, self.editor.strategy
        small = np.stack([tiling.reflected(self._mask_at_work(mask), self.editor.stride) for mask in masks])
        if self._features is None:
            return self._cropped(networks.blend(self.codes, np.stack(looks), small, strengths, strategy))
        transfers = np.stack([self._transfer(look) for look in looks])
        codes = networks.mix_features(self._features, transfers, small, strengths)
        return self._cropped(networks.decode(codes.content, codes.style))

    def _transfer(self, look: np.ndarray) -> np.ndarray:
        """The feature map of the picture's global transfer; the latest few are remembered."""
        networks, key = self.editor.networks, look.tobytes()
        if key not in self._transfers:
            self._transfers[key] = networks.features(networks.decode(self.codes.content, look))
        self._transfers.move_to_end(key)
        while len(self._transfers) > KEPT_TRANSFERS:
            self._transfers.popitem(last=False)
        return self._transfers[key]

    def _decoded(self, look: np.ndarray) -> np.ndarray:
        return self._cropped(self.editor.networks.decode(self.codes.content, look))

    def _cropped(self, decoded: np.ndarray) -> np.ndarray:
        return np.clip(decoded[: self.work_shape[0], : self.work_shape[1]], -1.0, 1.0)

    def _reconstruction(self) -> np.ndarray:
        if self._own is None:
            self._own = self._decoded(self.style)
        return self._own

    def _mask_at_work(self, mask: np.ndarray) -> np.ndarray:
        if self.work_shape == self.shape:
            return mask
        resized = Image.fromarray(mask).resize(self.work_shape[::-1], Image.Resampling.BILINEAR)
        return np.clip(np.asarray(resized), 0.0, 1.0)

    def _edit_reduced(self, looks: list[np.ndarray], masks: np.ndarray, strengths: np.ndarray) -> Image.Image:
        """The blend's change against the reconstruction, region by region carried over to the full size."""
        result = self._original.copy()
        if not looks:
            return self._finished(result)
        change = self._hybrid(looks, masks, strengths) - self._reconstruction()
        total = np.maximum(masks.sum(axis=0), 1.0)
        for mask in masks:
            share = mask / total
            full = compositing.enlarge(change, self._small, self._mask_at_work(share), self._original)
            result += share[..., None] * full
        return self._finished(result, masks.max(axis=0))

    def _at_full_size(self, hybrid: np.ndarray) -> np.ndarray:
        """What the networks made of a picture that is not reduced, at the picture's size."""
        if self.work_shape == self.shape:
            return hybrid
        return _to_model(_resized(to_uint8(hybrid), *self.shape))

    def _full_pixels(self, pixels: float) -> int:
        """A length at the working size, in whole pixels of the picture."""
        return math.ceil(pixels * self.shape[0] / self.work_shape[0])

    def _finished(self, result: np.ndarray, painted: Optional[np.ndarray] = None) -> Image.Image:
        """The result as a picture; outside what is painted, and where nothing can be seen, it is the original."""
        levels = to_uint8(result)
        if painted is not None:
            levels = np.where(painted[..., None] > 0, levels, self.photo.pixels)
        if self.photo.alpha is not None:
            levels = np.where(self.photo.alpha[..., None] > 0, levels, self.photo.pixels)
        return pictures.to_image(levels, self.photo)


def _check_region(region: Region) -> None:
    if not 0.0 <= region.strength <= 1.0:
        raise EditError(f"strength must be in [0, 1], got {region.strength}")
    if not 0.0 <= region.feather < math.inf:
        raise EditError(f"feather must be 0 pixels or more, got {region.feather}")


def _checked_work_size(work_size: WorkSize) -> WorkSize:
    if work_size in (AUTO, FULL) or (isinstance(work_size, int) and work_size > 0):
        return work_size
    raise EditError(f"work_size must be a number of pixels, {AUTO!r} or {FULL!r}, got {work_size!r}")


def _to_model(levels: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1], as `data.to_model`."""
    return levels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, antialiased, to whole levels, as the served model resizes style pictures: uint8 `[H, W, 3]`."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = tf.image.resize(pixels, [height, width], method="bicubic", antialias=True).numpy()
    return np.rint(np.clip(resized, 0.0, 255.0)).astype(np.uint8)
