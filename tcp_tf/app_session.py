"""What the page's server remembers of each visitor: a picture, its regions, the styles that were brought along.

All of it is bounded: so many visitors, so many styles each, pictures of so many pixels, in memory only. Whoever was
away for long, or came before many others, is forgotten and told so.
"""

from __future__ import annotations

import io
import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Optional, Union

import numpy as np
from PIL import Image, ImageOps

from tcp_tf import allocator, app_strokes, images
from tcp_tf.app_strokes import MAX_REGIONS, Drawing
from tcp_tf.editor import Editor, Picture, Region

MAX_PIXELS = 25_000_000  # of an opened picture
MAX_SESSIONS = 16
MAX_IDLE = 3600.0  # seconds
MAX_OWN_STYLES = 8
PREVIEW = 768  # px, the long side of what is computed and shown while painting
STYLE_SIDE = 1024  # px, the long side at which a style picture is encoded
THUMBNAIL = 128  # px

_NUMBERS = itertools.count(1)  # no two opened pictures share a number

Source = Union[str, Path, Image.Image]


@dataclass
class Style:
    """A look to paint with: a small picture of it, and its code, encoded on first use."""

    name: str
    picture: Image.Image
    thumbnail: Image.Image
    code: Optional[np.ndarray] = None  # [Cs]

    def encoded(self, editor: Editor) -> np.ndarray:
        """The style's code `[Cs]`."""
        if self.code is None:
            self.code = editor.encode_style(self.picture)
        return self.code


@dataclass
class Settings:
    """How one region is filled."""

    style: int  # number in the visitor's gallery
    strength: float = 1.0
    feather: float = 0.02  # share of the picture's short side


@dataclass
class Session:
    """One visitor."""

    editor: Editor
    library: Sequence[Style]
    own: list[Style] = field(default_factory=list)
    preserve: bool = True
    name: str = "picture"
    number: int = 0  # of the picture, so that a stroke made on the last one is not painted on this
    drawing: Drawing = app_strokes.EMPTY
    full: Optional[Image.Image] = None  # as it came in
    preview: Optional[Picture] = None
    regions: list[Settings] = field(default_factory=list)
    used: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.regions = [Settings(style % max(1, len(self.styles))) for style in range(MAX_REGIONS)]

    @property
    def styles(self) -> list[Style]:
        """The gallery: what the server offers, then what the visitor has brought."""
        return [*self.library, *self.own]

    @property
    def gallery(self) -> list[tuple[str, Image.Image]]:
        """(name, small picture) of all styles."""
        return [(style.name, style.thumbnail) for style in self.styles]

    def open(self, source: Source, name: str) -> Image.Image:
        """Takes a picture to work on and encodes it; returns it upright at preview size.

        Raises:
            ValueError: it cannot be used; the picture before it stays.
        """
        image = read(source)
        preview = self.editor.open(shrink(image, PREVIEW))
        self.full, self.preview, self.name = image, preview, name
        self.number = next(_NUMBERS)
        self.drawing = Drawing(self.number, 0, ())
        return preview.image

    def add_style(self, source: Source, name: str) -> int:
        """Puts a picture into the visitor's gallery; returns its number there.

        Raises:
            ValueError: it cannot be used, or there are `MAX_OWN_STYLES` already.
        """
        if len(self.own) >= MAX_OWN_STYLES:
            raise ValueError(f"up to {MAX_OWN_STYLES} styles of your own are kept: reload the page to start again")
        style = make_style(source, name)
        style.encoded(self.editor)
        self.own.append(style)
        return len(self.styles) - 1

    def draw(self, drawing: Drawing) -> None:
        """Takes over what the page has drawn, unless that was drawn on an earlier picture.

        Raises:
            ValueError: the picture that was drawn on is not here any more.
        """
        if drawing.picture and self.preview is None:
            raise ValueError("the server has let go of this picture after a long pause: take it again")
        if drawing.picture == self.number:
            self.drawing = drawing

    def render(self) -> Image.Image:
        """The preview with all regions filled.

        Raises:
            ValueError: there is no picture yet, or the editor refuses.
        """
        return self._edit(self._opened())

    def render_full(self) -> Image.Image:
        """The same at the picture's own size. What a large picture needs for that is not kept: it is large.

        Raises:
            ValueError: as `render`.
        """
        preview = self._opened()
        assert self.full is not None
        return self._edit(preview if preview.size == self.full.size else self.editor.open(self.full))

    def strip(self, steps: int) -> list[Image.Image]:
        """`steps` previews on the way from the picture's own look to the style of the region in work.

        Raises:
            ValueError: there is no picture yet, or no style.
        """
        return self._opened().interpolate([self._style(self.regions[self.drawing.active])], steps)

    def _opened(self) -> Picture:
        if self.preview is None:
            raise ValueError("there is no picture yet: take a sample or upload one")
        return self.preview

    def _style(self, settings: Settings) -> np.ndarray:
        styles = self.styles
        if not styles:
            raise ValueError("there is no style yet: upload a picture that has the look you want")
        return styles[settings.style].encoded(self.editor)

    def _edit(self, picture: Picture) -> Image.Image:
        short = min(picture.size)
        filled = []
        for number, mask in app_strokes.paint(self.drawing.strokes, picture.size).items():
            settings = self.regions[number]
            filled.append(Region(mask, self._style(settings), settings.strength, settings.feather * short))
        return picture.edit(filled, preserve_background=self.preserve) if filled else picture.image


class Sessions:
    """The visitors, the most recent last; safe from several threads."""

    def __init__(self, editor: Editor, library: Sequence[Style], limit: int = MAX_SESSIONS, idle: float = MAX_IDLE):
        self.editor, self.library, self.limit, self.idle = editor, library, limit, idle
        self._held: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str) -> Session:
        """The visitor's session, a new one where there is none (any more)."""
        now = time.monotonic()
        with self._lock:
            idle = [name for name, session in self._held.items() if now - session.used > self.idle]
        self._forget(idle)
        with self._lock:
            session = self._held.pop(key, None) or Session(self.editor, self.library)
            session.used = now
            self._held[key] = session
            oldest = list(self._held)[: max(0, len(self._held) - self.limit)]
        self._forget(oldest)
        return session

    def drop(self, key: str) -> None:
        """Forgets a visitor who has left."""
        self._forget([key])

    def _forget(self, keys: Sequence[str]) -> None:
        """Drops sessions; the memory that held them, and what was computed for them, goes back to the system."""
        with self._lock:
            forgotten = [self._held.pop(key, None) for key in keys]
        if any(forgotten):
            del forgotten
            allocator.trim()


def read(source: Source) -> Image.Image:
    """A picture from a file or from memory.

    Raises:
        ValueError: it is not a picture that can be read, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return source
    try:
        data = Path(source).read_bytes()
        width, height = _size(data)
        if width * height > MAX_PIXELS:
            limit = MAX_PIXELS // 1_000_000
            raise ValueError(f"this picture has {width} x {height} pixels, up to {limit} million are taken")
        images.examine(data)
        return _load(data)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error
    except images.ImageError as error:
        raise ValueError(f"this file cannot be used as a picture: {error}") from error


def _size(data: bytes) -> tuple[int, int]:
    """(width, height) by the header, before any memory is taken for the pixels."""
    try:
        return Image.open(io.BytesIO(data), formats=images.FORMATS).size
    except Exception:  # `images` knows what to say of each kind of bad file
        return images.examine(data)[1:]


def _load(data: bytes) -> Image.Image:
    """Upright; greys, transparency and colour profile stay as they are, rarer kinds of pixels become RGB."""
    image = Image.open(io.BytesIO(data), formats=images.FORMATS)
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return ImageOps.exif_transpose(image)
    return Image.fromarray(images.decode(data))


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The picture with a long side of at most `side` px."""
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.BICUBIC)
    return smaller


def make_style(source: Source, name: str) -> Style:
    """A style of a picture, not yet encoded.

    Raises:
        ValueError: as `read`.
    """
    picture = shrink(read(source), STYLE_SIDE)
    return Style(name, picture, shrink(picture, THUMBNAIL).convert("RGB"))
