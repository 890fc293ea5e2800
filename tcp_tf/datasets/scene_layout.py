"""Where things are in a drawn scene: label maps of region kinds, functions of an integer seed.

Conventions: the picture is the unit square, x to the right and y downwards, a pixel is sampled at its centre.
Everything is drawn in those coordinates, so the same seed at another size is the same picture at another resolution. A
label map is uint8 [S, S] holding indices into `REGION_KINDS`. Nothing here knows colours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

REGION_KINDS: tuple[str, ...] = ("sky", "sun", "mountain", "hill", "field", "water", "wall", "roof", "tree")
SKY, SUN, MOUNTAIN, HILL, FIELD, WATER, WALL, ROOF, TREE = range(len(REGION_KINDS))

# Walls stand on a fixed grid of this pitch (unit square), because the texture of walls may be rows of windows at fixed
# places: a building then always shows whole windows although its texture does not know where the building stands.
WALL_PITCH = 1.0 / 12.0

_Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]  # is the point (x, y) inside?
_LAYOUT_STREAM = 0x5CE7E5  # separates layouts from looks of the same seed


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A height profile y(x): straight line + waves + peaks (tents), all in unit coordinates."""

    level: float
    tilt: float
    waves: tuple[tuple[float, float, float], ...] = ()  # amplitude, cycles per unit, phase in radians
    peaks: tuple[tuple[float, float, float], ...] = ()  # x of the tip, height, half width

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = self.level + self.tilt * (x - 0.5)
        for amplitude, cycles, phase in self.waves:
            y = y + amplitude * np.sin(2 * np.pi * cycles * x + phase)
        if self.peaks:
            top = np.zeros_like(x)
            for tip, height, half_width in self.peaks:
                top = np.maximum(top, height * (1 - np.abs(x - tip) / half_width))
            y = y - top
        return y


@functools.lru_cache(maxsize=8)
def _axis(size: int) -> np.ndarray:
    axis = (np.arange(size, dtype=np.float64) + 0.5) / size
    axis.setflags(write=False)
    return axis


def layout_rng(seed: int) -> np.random.Generator:
    """Random numbers of layout `seed`, the same on every platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_LAYOUT_STREAM, seed])))


def sample_layout(seed: int, size: int) -> np.ndarray:
    """Draws the label map of layout `seed`.

    Args:
      seed: any integer >= 0.
      size: side in pixels, >= 8.

    Returns:
      uint8 [size, size], indices into `REGION_KINDS`.

    Raises:
      ValueError: a negative seed or a size below 8.
    """
    if seed < 0:
        raise ValueError(f"layout seed must be >= 0, got {seed}")
    if size < 8:
        raise ValueError(f"scene size must be >= 8 pixels, got {size}")
    rng = layout_rng(seed)
    axis = _axis(size)
    x, y = axis[None, :], axis[:, None]
    labels = np.full((size, size), SKY, np.uint8)

    horizon = rng.uniform(0.40, 0.66)
    tilt, wave = rng.uniform(-0.06, 0.06), (rng.uniform(0, 0.02), rng.uniform(0.5, 1.5), rng.uniform(0, 6.3))
    ground = _Curve(horizon, tilt, (wave,))
    _paint_sun(labels, axis, rng, horizon)
    if rng.random() < 0.8:
        labels[y > _mountains(rng, horizon)(x)] = MOUNTAIN
    if rng.random() < 0.75:
        labels[y > _hills(rng, horizon)(x)] = HILL
    labels[y > ground(x)] = FIELD
    water = _paint_water(labels, axis, rng, ground, horizon)
    _paint_things(labels, axis, rng, ground, water, horizon)
    return labels


def _paint_sun(labels: np.ndarray, axis: np.ndarray, rng: np.random.Generator, horizon: float) -> None:
    shown, cx, cy, radius = rng.random() < 0.8, rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.9), rng.uniform(0.065, 0.13)
    if shown:
        _ellipse(labels, axis, cx, radius + 0.02 + cy * (horizon - 0.1 - radius), radius, radius, SUN)


def _mountains(rng: np.random.Generator, horizon: float) -> _Curve:
    level = horizon - rng.uniform(0.0, 0.08)
    if rng.random() < 0.65:  # jagged
        count = int(rng.integers(2, 5))
        tips = (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count
        heights = rng.uniform(0.10, 0.32, count)
        slopes = rng.uniform(0.7, 1.5, count)
        peaks = tuple((float(t), float(h), float(h / s)) for t, h, s in zip(tips, heights, slopes))
        return _Curve(level, rng.uniform(-0.05, 0.05), ((0.008, 5.0, rng.uniform(0, 6.3)),), peaks)
    waves = (
        (rng.uniform(0.04, 0.09), rng.uniform(0.5, 1.3), rng.uniform(0, 6.3)),
        (0.025, rng.uniform(1.8, 3.2), rng.uniform(0, 6.3)),
    )
    return _Curve(level - 0.10, rng.uniform(-0.10, 0.10), waves)


def _hills(rng: np.random.Generator, horizon: float) -> _Curve:
    waves = (
        (rng.uniform(0.025, 0.07), rng.uniform(0.6, 1.6), rng.uniform(0, 6.3)),
        (rng.uniform(0.0, 0.025), rng.uniform(1.8, 2.8), rng.uniform(0, 6.3)),
    )
    return _Curve(horizon - rng.uniform(0.03, 0.11), rng.uniform(-0.14, 0.14), waves)


def _paint_water(
    labels: np.ndarray, axis: np.ndarray, rng: np.random.Generator, ground: _Curve, horizon: float
) -> _Inside:
    """Paints a lake, a river, a sea or nothing; returns the test "is (x, y) water?" for placing things on dry land."""
    kind = rng.choice(4, p=(0.28, 0.26, 0.26, 0.20))
    a, b, c, d, e = rng.random(5)
    x, y = axis[None, :], axis[:, None]

    if kind == 0:

        def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.zeros(np.broadcast(x, y).shape, bool)

    elif kind == 1:  # lake: a wobbly ellipse
        cy = horizon + 0.12 + 0.75 * a * (0.86 - horizon)
        cx, rx, ry = 0.15 + 0.7 * b, 0.20 + 0.18 * c, 0.065 + 0.07 * d

        def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            u, v = (x - cx) / rx, (y - cy) / ry
            return u * u + v * v < 1 + 0.25 * np.sin(2.5 * u + 6.3 * e) + 0.12 * np.sin(3 * v)

    elif kind == 2:  # river: winds from the horizon to the lower edge and widens
        start, swing, bend = 0.2 + 0.6 * a, 0.10 + 0.16 * b, 6.3 * c
        drift, width = (d - 0.5) * 0.5, 0.13 + 0.10 * e

        def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            t = (y - horizon) / (1 - horizon)  # 0 at the horizon, 1 at the lower edge
            s = np.clip(t, 0, 1)
            middle = start + drift * s + swing * s * np.sin(5 * np.sqrt(s) + bend)
            return np.abs(x - middle) < 0.035 + width * s

    else:  # sea: from the horizon to a shore
        shore = _Curve(horizon + 0.12 + 0.20 * a, 0.3 * (b - 0.5), ((0.03 + 0.03 * c, 0.6 + d, 6.3 * e),))

        def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return y < shore(x)

    labels[inside(x, y) & (y > ground(x))] = WATER
    return inside


def _paint_things(
    labels: np.ndarray, axis: np.ndarray, rng: np.random.Generator, ground: _Curve, water: _Inside, horizon: float
) -> None:
    """Paints buildings and trees on dry land, the far ones first."""
    things: list[tuple[float, int, tuple[float, ...]]] = []
    dice = rng.random((12, 6))
    houses = int(rng.choice(5, p=(0.14, 0.26, 0.28, 0.20, 0.12)))
    trees = int(rng.choice(6, p=(0.12, 0.16, 0.22, 0.22, 0.16, 0.12)))
    taken: list[tuple[float, float]] = []  # spans of x that buildings already use
    for u in dice[:6]:
        if houses == 0:
            break
        nearness = u[0]
        base = np.ceil((horizon + 0.04 + nearness * (0.88 - horizon)) / WALL_PITCH) * WALL_PITCH
        cells = 2 + int(u[1] * (1.6 + nearness))
        left = round(u[2] * (1 - cells * WALL_PITCH) / WALL_PITCH) * WALL_PITCH
        right = left + cells * WALL_PITCH
        storeys = 1 + int(u[3] * 2.6) + (2 if u[5] > 0.85 else 0)
        if base > 0.96 or any(left < b + 0.02 and right > a - 0.02 for a, b in taken):
            continue
        if np.any(water(np.array([left, (left + right) / 2, right]), np.full(3, base))):
            continue
        taken.append((left, right))
        things.append((base, 0, (left, right, storeys, u[4], u[5])))
        houses -= 1
    for u in dice[6:]:
        if trees == 0:
            break
        cx, nearness = 0.03 + 0.94 * u[0], u[1]
        base = ground(np.array(cx)).item() + 0.03 + nearness * (0.97 - horizon - 0.03)
        half_width = (0.055 + 0.05 * u[2]) * (0.9 + 0.6 * nearness)
        if bool(water(np.array(cx), np.array(base))):
            continue
        things.append((base, 1, (cx, half_width, u[3], u[4])))
        trees -= 1
    for base, kind, shape in sorted(things):
        (_paint_house if kind == 0 else _paint_tree)(labels, axis, base, *shape)


def _paint_house(
    labels: np.ndarray,
    axis: np.ndarray,
    base: float,
    left: float,
    right: float,
    storeys: float,
    roof: float,
    eaves: float,
) -> None:
    top = base - storeys * WALL_PITCH
    _box(labels, axis, left, top, right, base, WALL)
    overhang = 0.012 + 0.015 * eaves
    middle, half = (left + right) / 2, (right - left) / 2 + overhang
    if roof < 0.60:  # gable, from flat to steep
        _tent(labels, axis, middle, top, half, half * (0.55 + 1.3 * roof), 0.0, ROOF)
    elif roof < 0.80:  # hip: a gable with its tip cut off
        _tent(labels, axis, middle, top, half, half * 1.2, 0.45, ROOF)
    elif roof < 0.90:  # flat
        _box(labels, axis, left - overhang, top - 0.075, right + overhang, top, ROOF)
    else:  # dome
        rows, columns = _window(axis, left - overhang, top - half, right + overhang, top)
        x, y = axis[None, columns], axis[rows, None]
        labels[rows, columns][(x - middle) ** 2 + (y - top) ** 2 < half**2] = ROOF


def _paint_tree(
    labels: np.ndarray, axis: np.ndarray, base: float, cx: float, half_width: float, kind: float, tall: float
) -> None:
    trunk = 0.018 + 0.10 * half_width
    if kind < 0.40:  # conifer: two or three tents above one another
        height = half_width * (1.6 + 0.5 * tall)
        levels = 2 + int(tall > 0.5)
        for i in range(levels):
            foot = base - 0.015 - i * 0.50 * height
            _tent(labels, axis, cx, foot, half_width * (1 - 0.2 * i), height * (1 - 0.12 * i), 0.0, TREE)
        _box(labels, axis, cx - trunk, base - 0.03, cx + trunk, base + 0.02, TREE)
    elif kind < 0.75:  # round
        radius = half_width * 1.12
        foot = base - radius * (1.3 + 0.5 * tall)
        _ellipse(labels, axis, cx, foot, radius, radius, TREE)
        _box(labels, axis, cx - trunk, foot, cx + trunk, base, TREE)
    elif kind < 0.9:  # poplar
        height = half_width * (1.9 + tall)
        _ellipse(labels, axis, cx, base - height, half_width * 0.8, height, TREE)
    else:  # bush: two half-sunk balls
        _ellipse(labels, axis, cx - half_width * 0.5, base - half_width * 0.5, half_width, half_width * 0.8, TREE)
        _ellipse(labels, axis, cx + half_width * 0.7, base - half_width * 0.4, half_width * 0.8, half_width * 0.6, TREE)


def _window(axis: np.ndarray, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres lie in a box."""
    r0, r1 = np.searchsorted(axis, (top, bottom))
    c0, c1 = np.searchsorted(axis, (left, right))
    return slice(r0, r1), slice(c0, c1)


def _box(labels: np.ndarray, axis: np.ndarray, left: float, top: float, right: float, bottom: float, kind: int) -> None:
    labels[_window(axis, left, top, right, bottom)] = kind


def _ellipse(labels: np.ndarray, axis: np.ndarray, cx: float, cy: float, rx: float, ry: float, kind: int) -> None:
    rows, columns = _window(axis, cx - rx, cy - ry, cx + rx, cy + ry)
    u, v = (axis[None, columns] - cx) / rx, (axis[rows, None] - cy) / ry
    labels[rows, columns][u * u + v * v < 1] = kind


def _tent(
    labels: np.ndarray, axis: np.ndarray, cx: float, foot: float, half: float, height: float, cut: float, kind: int
) -> None:
    """An isosceles triangle on the line y = foot; `cut` is the fraction of its height missing at the tip."""
    rows, columns = _window(axis, cx - half, foot - height * (1 - cut), cx + half, foot)
    u, v = np.abs(axis[None, columns] - cx) / half, (foot - axis[rows, None]) / height
    labels[rows, columns][u + v < 1] = kind
