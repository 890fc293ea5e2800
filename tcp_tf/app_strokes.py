"""Brush strokes from the page, and the masks that they paint.

The page sends what a hand has drawn, not pictures of it: strokes as points relative to the picture. They are small,
fit any size, and the same list paints the live preview and the full-size result. A position belongs to the region that
painted it last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

MAX_REGIONS = 4
MAX_STROKES = 500
MAX_NUMBERS = 20_000  # coordinates of one drawing, two per point
_SUPERSAMPLED_TO = 2048  # px; masks of smaller pictures are drawn larger and reduced, which smooths their edges


class Stroke(NamedTuple):
    """One stroke of the brush, or, without points, the whole picture."""

    region: int
    erase: bool  # brings the original back, whatever region is there
    width: float  # diameter as a share of the picture's short side
    points: tuple[float, ...]  # x, y, x, y, ... as shares of the picture's width and height


class Drawing(NamedTuple):
    """All strokes in the order in which they were made, and the region that is being worked on."""

    picture: int  # number of the picture that was painted on; 0 before the first
    active: int
    strokes: tuple[Stroke, ...]

    @property
    def regions(self) -> list[int]:
        """Regions that something was painted for, erased or painted over since or not."""
        return sorted({stroke.region for stroke in self.strokes if not stroke.erase})


EMPTY = Drawing(0, 0, ())


def parse(value: Any) -> Drawing:
    """The drawing that the page has sent: `{"picture", "active", "strokes": [{"r", "e", "w", "p"}]}`.

    Raises:
        ValueError: it is not such a drawing, or holds more than the page can draw.
    """
    if not value:
        return EMPTY
    try:
        picture, active = int(value["picture"]), int(value["active"])
        strokes = value["strokes"]
        if len(strokes) > MAX_STROKES or sum(len(stroke["p"]) for stroke in strokes) > MAX_NUMBERS:
            raise ValueError(f"a drawing may have {MAX_STROKES} strokes, and not too long ones: undo some, or clear")
        drawing = Drawing(picture, active, tuple(_stroke(stroke) for stroke in strokes))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("the drawing did not arrive whole: reload the page") from error
    if not 0 <= active < MAX_REGIONS:
        raise ValueError(f"there are {MAX_REGIONS} regions, counted from 0, got region {active}")
    return drawing


def _stroke(value: Any) -> Stroke:
    region, width, points = int(value["r"]), float(value["w"]), tuple(float(number) for number in value["p"])
    if not 0 <= region < MAX_REGIONS:
        raise ValueError(f"there are {MAX_REGIONS} regions, counted from 0, got region {region}")
    if len(points) % 2 or not all(math.isfinite(number) and -2.0 <= number <= 3.0 for number in points):
        raise ValueError("the drawing did not arrive whole: reload the page")
    if not 0.0 < width <= 2.0:
        raise ValueError(f"a brush is wider than 0 and at most twice the picture's short side, got {width:g}")
    return Stroke(region, bool(value["e"]), width, points)


def paint(strokes: Sequence[Stroke], size: tuple[int, int]) -> dict[int, Image.Image]:
    """The masks of all painted regions.

    Args:
        strokes: in the order in which they were made.
        size: PIL's (width, height) in pixels.
    Returns:
        8-bit grey pictures of `size` by region, 255 where the region is; regions with an empty mask are left out. No
        two masks overlap, but for the pixels of a common edge, where they add up to 255.
    """
    factor = max(1, min(4, _SUPERSAMPLED_TO // max(size)))
    large = size[0] * factor, size[1] * factor
    labels = Image.new("L", large, 0)  # 1 + region, 0 for the background
    for stroke in strokes:
        _draw(labels, stroke, 0 if stroke.erase else 1 + stroke.region)
    masks = {}
    for region in sorted({stroke.region for stroke in strokes if not stroke.erase}):
        mask = labels.point([255 if level == 1 + region else 0 for level in range(256)])
        mask = mask.reduce(factor) if factor > 1 else mask
        if mask.getbbox() is not None:
            masks[region] = mask
    return masks


def _draw(canvas: Image.Image, stroke: Stroke, colour: int) -> None:
    """Draws a line with round ends and joints; a stroke without points covers everything."""
    if not stroke.points:
        canvas.paste(colour, (0, 0, *canvas.size))
        return
    draw = ImageDraw.Draw(canvas)
    diameter = stroke.width * min(canvas.size)
    width, height = canvas.size  # Pillow counts from the middle of the first pixel
    points = [(x * width - 0.5, y * height - 0.5) for x, y in zip(stroke.points[0::2], stroke.points[1::2])]
    draw.line(points, fill=colour, width=max(1, round(diameter)))
    for x, y in points:
        draw.ellipse((x - diameter / 2, y - diameter / 2, x + diameter / 2, y + diameter / 2), fill=colour)
