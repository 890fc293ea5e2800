"""Draws scenes: picture = render(layout, look), and the true answers of swaps and region edits.

A picture is a mosaic: for a look and a kind of region k, the colour T_k at (x, y) depends on the position alone, and
    render(layout, look)[y, x] = sum over kinds k of coverage_k(layout)[y, x] * T_k(look)[y, x],
where coverage is the share of the pixel's area that belongs to k (2 x 2 samples). Texture phase and grain are fixed
functions of the position, never of the layout. Hence the true swap of A's layout and B's look is
render(layout_A, look_B), and a region map can be read back from a picture by the nearest T_k. Pictures are uint8 sRGB
[S, S, 3].
"""

from __future__ import annotations

import functools

import numpy as np

from tcp_tf.datasets.scene_layout import REGION_KINDS, SKY, WALL_PITCH, sample_layout
from tcp_tf.datasets.scene_look import Look, sample_look

__all__ = ["REGION_KINDS", "Look", "coverage", "kind_pictures", "read_label_map", "render", "render_region_edit",
           "sample_layout", "sample_look"]  # fmt: skip

_SUPERSAMPLE = 2
_LATTICE = np.random.Generator(np.random.PCG64(20210823)).uniform(-1, 1, (64, 64)).astype(np.float32)


def _square(phase: np.ndarray) -> np.ndarray:
    """A square wave with soft edges: phase in cycles, value in (-1, 1)."""
    return np.tanh(np.float32(4.5) * np.sin(np.float32(2 * np.pi) * phase))


def _noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise with one knot per unit, fixed for ever (a table of 64 x 64 knots, repeated), about -1..1."""
    xf, yf = np.floor(x), np.floor(y)
    u, v = x - xf, y - yf
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    c0, r0 = xf.astype(np.int64) & 63, yf.astype(np.int64) & 63
    c1, r1 = (c0 + 1) & 63, (r0 + 1) & 63
    top = _LATTICE[r0, c0] * (1 - u) + _LATTICE[r0, c1] * u
    return top * (1 - v) + (_LATTICE[r1, c0] * (1 - u) + _LATTICE[r1, c1] * u) * v


def _texture(name: str, x: np.ndarray, y: np.ndarray, f: float, angle: float) -> np.ndarray:
    """Texture value in [-1, 1] at points of the unit square; f in cycles per unit, angle in radians."""
    if name == "plain":
        return np.full_like(x, -1.0)
    if name == "stripes":
        return _square(f * (np.float32(np.cos(angle)) * (x - 0.5) + np.float32(np.sin(angle)) * (y - 0.5)))
    if name == "bands":
        return _square(f * y)
    if name == "waves":
        return _square(f * y + 0.22 * np.sin(np.float32(4 * np.pi) * x + 9 * y))
    if name == "checks":
        return _square(0.5 * f * (x + 0.6 * y)) * _square(0.5 * f * (x - 0.6 * y))
    if name == "dots":
        a, b = np.float32(np.pi) * f * (x + y), np.float32(np.pi) * f * (x - y)
        return np.tanh(4 * (np.cos(a) + np.cos(b) - 0.7))
    if name == "blobs":
        return np.tanh(7 * _noise(f * x, f * y))
    if name == "glitter":
        return np.tanh(7 * (_noise(0.55 * f * x, 1.5 * f * y) - 0.15))
    if name == "clouds":
        return np.tanh(6 * (_noise(f * x, 2.2 * f * y) + 0.4 * _noise(2 * f * x, 4.4 * f * y) - 0.15))
    if name == "strata":
        return _square(f * y + 0.5 * _noise(3 * x, 3 * y))
    if name == "snowcap":
        zigzag = 0.035 * np.abs(((f * x) % 1) * 2 - 1) + 0.015 * _noise(9 * x, 9 * y)
        return np.tanh(60 * (0.30 + 0.012 * f - 0.1 * angle / np.pi + zigzag - y))
    if name == "stars":
        u, v = f * x, f * y
        uf, vf = np.floor(u), np.floor(v)
        c, r = uf.astype(np.int64) & 63, vf.astype(np.int64) & 63
        du, dv = u - uf - 0.5 - 0.28 * _LATTICE[r, c], v - vf - 0.5 - 0.28 * _LATTICE[c, r]
        bright = _LATTICE[(r + 17) & 63, (c + 5) & 63] > 0.0
        return np.where(bright, 2 * np.exp(-(du * du + dv * dv) / 0.018), 0.0) - 1
    if name == "furrows":  # rows of a field that meet far away above the picture's middle
        return _square(f * (x - 0.5) / (y - 0.18))
    if name == "bricks":
        row = f * y
        shift = 0.5 * (np.floor(row) % 2)
        across = np.abs((0.55 * f * x + shift) % 1 - 0.5)
        down = np.abs(row % 1 - 0.5)
        return np.tanh(12 * (np.maximum(across / 0.9, down) - 0.40))
    if name == "scales":
        row = f * y
        across = 0.8 * f * x + 0.5 * (np.floor(row) % 2)
        return np.tanh(3 * (2 * (row % 1) - 1 + 0.6 * np.cos(np.float32(2 * np.pi) * across)))
    if name == "windows":
        across, down = np.abs((x / WALL_PITCH) % 1 - 0.5), np.abs((y / WALL_PITCH) % 1 - 0.5)
        wide, high = 0.20 + 0.04 * np.cos(angle), 0.24 + 0.04 * np.sin(angle)
        return np.tanh(14 * np.minimum(wide - across, high - down))
    raise ValueError(f"unknown texture {name!r}")


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and grain of every pixel, each float32 [S * S]."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = (g.ravel() for g in np.meshgrid(axis, axis))
    grain = np.random.Generator(np.random.PCG64(size)).standard_normal(size * size).astype(np.float32)
    for array in (x, y, grain):
        array.setflags(write=False)
    return x, y, grain


def _paint(look: Look, kind: int, size: int, where: np.ndarray | slice) -> np.ndarray:
    """Colour of one kind under one look at the chosen pixels (index into [S * S]): float32 [P, 3], about 0..1."""
    x, y, grain = (g[where] for g in _grid(size))
    t = _texture(look.texture[kind], x, y, np.float32(look.cycles[kind]), look.angle[kind])
    mix = (np.float32(0.5 * look.contrast[kind]) * (1 + t))[:, None]
    base, second = look.base[kind].astype(np.float32), look.second[kind].astype(np.float32)
    if kind == SKY:
        down = np.minimum(y * np.float32(1 / 0.6), 1)[:, None]
        fade = down * (look.horizon - look.base[kind]).astype(np.float32)
        colour = base + fade + mix * (1 - 0.5 * down) * (second - base)
    else:
        colour = base + mix * (second - base)
    light = 1 + np.float32(look.light[0]) * (x - 0.5) + np.float32(look.light[1] + look.shade[kind]) * (y - 0.5)
    return colour * light[:, None] + np.float32(look.grain) * grain[:, None]


@functools.lru_cache(maxsize=8)
def _pixel_of_sample(size: int, factor: int) -> np.ndarray:
    """The pixel (row * size + column) that each sample of a finer map lies in: int64 [size * factor, size * factor]."""
    place = np.arange(size * factor) // factor
    pixels = place[:, None] * size + place[None, :]
    pixels.setflags(write=False)
    return pixels


def coverage(layout: int | np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel belongs to each kind: float32 [K, S, S], sums to 1 over kinds.

    Args:
      layout: a layout seed (edges antialiased over 2 x 2 samples), or a label map [n S, n S] (antialiased over n x n).
      size: S.
    """
    if isinstance(layout, (int, np.integer)):
        layout = sample_layout(int(layout), size * _SUPERSAMPLE)
    labels = np.asarray(layout)
    if labels.ndim != 2 or labels.shape[0] != labels.shape[1] or labels.shape[0] % size:
        raise ValueError(f"label map must be [S, S] or a multiple of it with S = {size}, got shape {labels.shape}")
    if labels.max() >= len(REGION_KINDS):
        raise ValueError(f"label map holds kind {labels.max()}, known are 0..{len(REGION_KINDS) - 1}")
    factor = labels.shape[0] // size
    # One counter per (pixel, kind).
    counters = _pixel_of_sample(size, factor) * len(REGION_KINDS) + labels
    counts = np.bincount(counters.ravel(), minlength=size * size * len(REGION_KINDS)).reshape(size, size, -1)
    return counts.transpose(2, 0, 1).astype(np.float32) / np.float32(factor * factor)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(layout: int | np.ndarray, look: int | Look, size: int = 64) -> np.ndarray:
    """Draws a layout under a look.

    Args:
      layout: a layout seed, or a label map (see `coverage`).
      look: a look, or its seed.
      size: side S in pixels.

    Returns:
      uint8 sRGB [S, S, 3].
    """
    return _render_shares(coverage(layout, size), look)


def _render_shares(shares: np.ndarray, look: int | Look) -> np.ndarray:
    look = sample_look(int(look)) if isinstance(look, (int, np.integer)) else look
    size = shares.shape[-1]
    picture = np.zeros((size * size, 3), np.float32)
    for kind, share in enumerate(shares.reshape(len(shares), -1)):
        where = np.flatnonzero(share)
        if where.size:
            picture[where] += share[where, None] * _paint(look, kind, size, where)
    return _to_bytes(picture).reshape(size, size, 3)


def render_region_edit(
    layout: int | np.ndarray, look: int | Look, other: int | Look, mask: np.ndarray, size: int = 64
) -> np.ndarray:
    """The true region edit: the same layout, `other` inside the mask and `look` outside.

    Args:
      layout: a layout seed or label map.
      look: the picture's own look (mask 0).
      other: the look to put where the mask is 1.
      mask: [S, S] or [S, S, 1], bool or numbers in [0, 1]; between the two the colours mix.
      size: S.

    Returns:
      uint8 sRGB [S, S, 3].
    """
    mask = np.asarray(mask, np.float32)
    mask = mask[..., None] if mask.ndim == 2 else mask
    if mask.shape != (size, size, 1):
        raise ValueError(f"mask must be [{size}, {size}] or [{size}, {size}, 1], got shape {mask.shape}")
    if mask.min() < 0 or mask.max() > 1:
        raise ValueError(f"mask values must lie in [0, 1], got {mask.min()} .. {mask.max()}")
    shares = coverage(layout, size)
    outside, inside = _render_shares(shares, look), _render_shares(shares, other)
    return (outside * (1 - mask) + inside * mask + 0.5).astype(np.uint8)


def kind_pictures(look: int | Look, size: int = 64) -> np.ndarray:
    """T_k: what the whole picture would be if everything were of one kind. uint8 [K, S, S, 3]."""
    look = sample_look(int(look)) if isinstance(look, (int, np.integer)) else look
    pictures = [_to_bytes(_paint(look, kind, size, slice(None))) for kind in range(len(REGION_KINDS))]
    return np.stack(pictures).reshape(-1, size, size, 3)


def read_label_map(picture: np.ndarray, look: int | Look, blur: int = 1) -> np.ndarray:
    """Reads a region map off a picture: at each pixel the kind with the nearest true colour and texture.

    "True" is `kind_pictures(look)`.

    Args:
      picture: [S, S, 3], uint8 or float in 0..255.
      look: the look that the picture should have.
      blur: side of the box (odd) over which squared distances are averaged first; 3 forgives noise and costs edges.

    Returns:
      uint8 [S, S], indices into `REGION_KINDS`.
    """
    if blur < 1 or blur % 2 == 0:
        raise ValueError(f"blur must be an odd number >= 1, got {blur}")
    size = picture.shape[0]
    distance = ((kind_pictures(look, size).astype(np.float32) - picture.astype(np.float32)) ** 2).sum(-1)  # [K, S, S]
    if blur > 1:
        half = blur // 2
        padded = np.pad(distance, ((0, 0), (half, half), (half, half)), mode="edge")
        distance = sum(padded[:, i : i + size, j : j + size] for i in range(blur) for j in range(blur))
    return distance.argmin(0).astype(np.uint8)
