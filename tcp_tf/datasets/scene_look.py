"""What a drawn scene looks like: two colours and a texture per kind of region, light and haze, from an integer seed.

A look is composed from three independent palettes (a sky with its light, a land, a town) that are then moved
continuously: hue, chroma and lightness of each group and of each colour, haze, light gradient. So looks never repeat,
yet stay coherent: everything on the ground is seen in the light of the sky above it. Colours are sRGB in [0, 1]; moves
are made in OKLab (Ottosson 2020, https://bottosson.github.io/posts/oklab/).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tcp_tf.datasets.scene_layout import FIELD, HILL, MOUNTAIN, REGION_KINDS, ROOF, SKY, SUN, TREE, WALL, WATER

_LOOK_STREAM = 0x100C5  # separates looks from layouts of the same seed

# Sky: colour at the top, at the horizon, of sun or moon; light = factor on all else; haze = most haze to be drawn.
_SKIES: tuple[tuple[str, str, str, str, tuple[float, float, float], float], ...] = (
    ("noon", "3f8fd8", "bfe3f5", "fff3b0", (1.00, 1.00, 1.00), 0.3),
    ("clear", "1f6fc4", "8fd0ee", "fffbe0", (1.05, 1.03, 1.00), 0.2),
    ("dawn", "6a7fc1", "ffd0a8", "ff8f6b", (1.00, 0.92, 0.88), 0.4),
    ("dusk", "4b3b78", "ff8f5a", "ffdf7a", (0.92, 0.74, 0.74), 0.4),
    ("night", "0e1540", "2b3a6b", "f2efd5", (0.42, 0.47, 0.70), 0.3),
    ("moonlight", "06222e", "1f5a63", "e6f5ec", (0.42, 0.56, 0.62), 0.4),
    ("overcast", "8b98a5", "cfd5d8", "fbf6e0", (0.86, 0.88, 0.90), 0.5),
    ("storm", "39424f", "7c868c", "d8cfa0", (0.62, 0.66, 0.70), 0.4),
    ("dust", "d9a04f", "f7e2b0", "fff9e8", (1.00, 0.91, 0.78), 0.5),
    ("mint", "4fb39b", "d8f5d0", "ffe36a", (0.92, 1.00, 0.94), 0.4),
    ("candy", "c77fc4", "ffd9e4", "fff4c4", (1.00, 0.93, 0.97), 0.4),
    ("ember", "6f2530", "e58a5c", "ffe9c2", (0.92, 0.72, 0.66), 0.4),
    ("aurora", "101c3d", "2fa58a", "e8fff2", (0.46, 0.62, 0.68), 0.2),
    ("frost", "9fc4e0", "eef4f7", "ffe9a8", (0.97, 1.00, 1.03), 0.4),
    ("violet", "4f3a9c", "b79cf0", "ffe17a", (0.84, 0.80, 1.00), 0.3),
    ("print", "e8d3a0", "f9f1dc", "d9483f", (1.00, 0.97, 0.90), 0.3),
)
# Land: mountain, hill, field, water, tree.
_LANDS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("spring", "7d93b5", "6fae62", "bcdc70", "4aa3c7", "2f7d4b"),
    ("summer", "6c86a8", "4f9446", "a3c44f", "2f86b5", "1a5a36"),
    ("autumn", "8a7a94", "c07a34", "e6c257", "4d89a1", "b03a26"),
    ("snow", "98aec6", "cfdfeb", "f6f9fb", "5f9ac0", "335a5f"),
    ("desert", "b0604a", "d6955a", "f1d59c", "3fa6a0", "66823c"),
    ("savanna", "93806f", "b3984a", "e0cb70", "6d9aa6", "506a2c"),
    ("tropics", "4a8797", "2f9e6e", "f4dfa6", "25b5c4", "117042"),
    ("lavender", "7480b4", "9068c0", "cbb0e6", "5a9ac9", "3a7550"),
    ("sakura", "8c9ac0", "84b87c", "cfe3a8", "62aed2", "f090ae"),
    ("alien", "6f4fa0", "d05a8f", "f6ad80", "36d0b0", "38347f"),
    ("mars", "6d3434", "a8503a", "dc9060", "8a70b8", "45202c"),
    ("lava", "3f3d48", "5e5450", "8a7a6e", "ee6a2f", "223a2f"),
    ("moor", "5f7184", "7d6a50", "a6a462", "3d6074", "3a4c2a"),
    ("paddies", "7fa3a0", "3a9c76", "d3e37c", "98d0dc", "1c6354"),
    ("ink", "9a9aa0", "6e6e76", "dcd8cc", "b0bcc4", "2c2c32"),
    ("clay", "8f6a80", "c4785e", "e9b890", "5cb0b8", "4f7a4a"),
)
# Town: wall, roof, window or other ornament of the wall.
_TOWNS: tuple[tuple[str, str, str, str], ...] = (
    ("lime", "f2e9dc", "b5412f", "5c7a94"),
    ("stone", "b9b0a2", "4a5566", "2f3846"),
    ("brick", "a8553f", "3d3a44", "f0dca8"),
    ("ochre", "e2b45c", "8a4a2f", "6b4a3a"),
    ("island", "f7f7f4", "2f6fc0", "6fa8dc"),
    ("rose", "f0a8a0", "6a4a78", "fff4ee"),
    ("pistachio", "a5d8c0", "d46a4a", "3f6e5e"),
    ("timber", "8a5f3f", "d0aa66", "f4dda4"),
    ("fjord", "b23a33", "e8e2d6", "f4efe2"),
    ("slate", "3f3f52", "d9a441", "f2c14e"),
    ("lilac", "c0a5e0", "4a3f8c", "fff0b0"),
    ("lemon", "f5e06a", "3f8c8c", "5a6a70"),
    ("paper", "e8e2d2", "38343a", "8a8078"),
    ("coral", "f58a6a", "f7ead0", "3f6a80"),
)

# Textures that suit each kind: name, odds, least and most cycles per unit (16 would be a period of 4 px at 64 px).
TEXTURES: dict[int, tuple[tuple[str, float, float, float], ...]] = {
    SKY: (("plain", 2, 1, 2), ("clouds", 4, 2.0, 4.5), ("bands", 2, 3, 7), ("stripes", 1, 4, 8)),
    SUN: (("plain", 2, 1, 2), ("bands", 2, 10, 14)),
    MOUNTAIN: (
        ("plain", 2, 1, 2),
        ("snowcap", 3, 4, 9),
        ("strata", 2, 5, 9),
        ("stripes", 2, 6, 11),
        ("blobs", 1, 5, 9),
    ),
    HILL: (("plain", 1, 1, 2), ("stripes", 3, 6, 12), ("blobs", 2, 5, 10), ("checks", 1, 5, 9), ("dots", 2, 7, 11)),
    FIELD: (
        ("plain", 1, 1, 2),
        ("furrows", 3, 2, 4),
        ("waves", 2, 5, 10),
        ("checks", 2, 4, 8),
        ("blobs", 2, 4, 8),
        ("dots", 2, 6, 10),
    ),
    WATER: (("plain", 1, 1, 2), ("waves", 5, 6, 12), ("glitter", 3, 6, 11)),
    WALL: (("plain", 0.5, 1, 2), ("windows", 6, 12, 12), ("bricks", 2, 10, 12), ("stripes", 2, 9, 14)),
    ROOF: (("plain", 1, 1, 2), ("scales", 3, 10, 13), ("bands", 2, 9, 13), ("stripes", 2, 9, 13)),
    TREE: (("plain", 1, 1, 2), ("blobs", 3, 8, 13), ("dots", 2, 9, 13), ("bands", 2, 9, 13), ("stripes", 1, 9, 13)),
}
_NIGHT_SKY = (("plain", 1, 1, 2), ("clouds", 2, 2.0, 4.5), ("bands", 1, 3, 7), ("stars", 4, 6, 10))
# Angles that stripes may take, radians from vertical stripes, per kind; others any angle.
_UPRIGHT = (WALL, ROOF)


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """One look. K = number of region kinds, rows in the order of `REGION_KINDS`.

    base, second: sRGB in [0, 1], float64 [K, 3]; a texture mixes the two.
    horizon: sRGB, colour of the sky at the horizon (its `base` is the colour at the top) [3].
    texture: name of each kind's texture.
    cycles: texture frequency, cycles per unit [K]; angle: radians [K].
    contrast: largest share of `second` in the mix, 0..1 [K].
    shade: relative brightness from top to bottom within a kind [K].
    light: relative brightness along x and y over the whole picture [2].
    grain: amplitude of the fixed per-pixel grain.
    name: which palettes it was composed from, for captions only.
    """

    base: np.ndarray
    second: np.ndarray
    horizon: np.ndarray
    texture: tuple[str, ...]
    cycles: np.ndarray
    angle: np.ndarray
    contrast: np.ndarray
    shade: np.ndarray
    light: np.ndarray
    grain: float
    name: str


def _srgb(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[i : i + 2], 16) / 255.0 for i in (0, 2, 4))
    return red, green, blue


_TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
_TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
_FROM_LAB, _FROM_LMS = np.linalg.inv(_TO_LAB), np.linalg.inv(_TO_LMS)


def srgb_to_oklab(colour: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1], [..., 3], to OKLab (lightness 0..1, a, b)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((np.maximum(colour, 0.0) + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab [..., 3] to sRGB, clipped to [0, 1]."""
    linear = np.clip((lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_SKY_COLOURS = srgb_to_oklab(np.array([[_srgb(c) for c in row[1:4]] for row in _SKIES]))  # [skies, 3, 3]
_LAND_COLOURS = srgb_to_oklab(np.array([[_srgb(c) for c in row[1:]] for row in _LANDS]))  # [lands, 5, 3]
_TOWN_COLOURS = srgb_to_oklab(np.array([[_srgb(c) for c in row[1:]] for row in _TOWNS]))  # [towns, 3, 3]


def _move(lab: np.ndarray, rng: np.random.Generator, hue: float) -> np.ndarray:
    """Turns and stretches a group of colours together, and each of them a little by itself. hue: radians."""
    count = len(lab)
    turn = hue + rng.normal(0, 0.10, count)
    chroma = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, count)
    light = rng.normal(0, 0.02) + rng.normal(0, 0.018, count)
    a, b = lab[:, 1] * chroma, lab[:, 2] * chroma
    return np.stack([lab[:, 0] + light, a * np.cos(turn) - b * np.sin(turn), a * np.sin(turn) + b * np.cos(turn)], -1)


def _draw_base(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Base colours [K, 3], horizon [3], ornament of walls [3], light [3] (factor on all but the sky), name."""
    i, j, k = rng.integers(len(_SKIES)), rng.integers(len(_LANDS)), rng.integers(len(_TOWNS))
    # Most palettes turn a little; some lands and towns turn a lot, which is where the stranger worlds come from.
    strange = rng.random(2) < 0.15
    turns = rng.normal(0, (0.18, 0.9 if strange[0] else 0.22, 1.2 if strange[1] else 0.3))
    groups = (_SKY_COLOURS[i], _LAND_COLOURS[j], _TOWN_COLOURS[k])
    colours = oklab_to_srgb(np.concatenate([_move(lab, rng, turn) for lab, turn in zip(groups, turns)]))
    sky, ground, light = colours[:3], colours[3:], np.array(_SKIES[i][4])
    base = np.empty((len(REGION_KINDS), 3))
    base[SKY], base[SUN] = sky[0], sky[2]
    base[[MOUNTAIN, HILL, FIELD, WATER, TREE, WALL, ROOF]] = ground[:7] * light
    base[WATER] += 0.30 * (0.5 * (sky[0] + sky[1]) - base[WATER])  # water mirrors the sky
    haze = _SKIES[i][5] * rng.random()
    base[MOUNTAIN] += haze * (sky[1] - base[MOUNTAIN])
    base[HILL] += 0.4 * haze * (sky[1] - base[HILL])
    name = f"{_SKIES[i][0]}/{_LANDS[j][0]}/{_TOWNS[k][0]}"
    return np.clip(base, 0.0, 1.0), sky[1], ground[7], light, name


def _draw_second(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Second colours [K, 3]: lighter or darker than `base` by a visible step, and turned a little."""
    count = len(base)
    lab = srgb_to_oklab(base)
    step = rng.uniform(0.09, 0.17, count) * np.where(rng.random(count) < 0.5, -1, 1)
    step[SKY] = abs(step[SKY])  # clouds are lighter than the sky
    step = np.where(lab[:, 0] + step > 0.97, -step, np.where(lab[:, 0] + step < 0.12, np.abs(step), step))
    return oklab_to_srgb(lab + np.stack([step, rng.normal(0, 0.025, count), rng.normal(0, 0.025, count)], -1))


def colour_separation(base: np.ndarray, horizon: np.ndarray) -> float:
    """Smallest Euclidean sRGB distance between two kinds' colours (the sky counts with its top and its horizon)."""
    colours = np.concatenate([base, horizon[None]])
    distance = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    distance[SKY, -1] = distance[-1, SKY] = np.inf
    return float(distance.min())


def sample_look(seed: int) -> Look:
    """Draws look `seed`.

    Colours are drawn again while two kinds are too close in sRGB (0.13 in full light, less in the dark; 12 draws at
    most, then the best is kept), so that a region map can be read back from a picture.

    Raises:
      ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"look seed must be >= 0, got {seed}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_LOOK_STREAM, seed])))
    best, best_separation = None, -1.0
    for _ in range(12):
        drawn = _draw_base(rng)
        separation = colour_separation(drawn[0], drawn[1]) / min(float(drawn[3].mean()), 1.0)
        if separation > best_separation:
            best, best_separation = drawn, separation
        if separation > 0.13:
            break
    assert best is not None  # every separation is greater than the first best one
    base, horizon, ornament, light_colour, name = best
    brightness = float(light_colour.mean())
    second = _draw_second(rng, base)

    count = len(REGION_KINDS)
    draws = rng.random((count, 4))
    texture, cycles, angle = [], np.empty(count), np.empty(count)
    for kind, u in enumerate(draws):
        options = TEXTURES[kind]
        if kind == SKY:  # stars only come out in the dark, clouds only stay in the light
            options = _NIGHT_SKY if brightness < 0.62 else options
        odds = np.cumsum([o[1] for o in options])
        choice, _, low, high = options[int(np.searchsorted(odds, u[0] * odds[-1], side="right"))]
        texture.append(choice)
        cycles[kind] = low + (high - low) * u[1]
        angle[kind] = 0.0 if kind in _UPRIGHT else np.pi * u[2]
    contrast = 0.55 + 0.45 * draws[:, 3]
    contrast[SKY] *= 0.8
    if texture[WALL] == "windows":
        contrast[WALL] = 0.95
        second[WALL] = ornament * np.minimum(light_colour, 1.0)
        if brightness < 0.7 and rng.random() < 0.7:  # lamps are lit when it is dark
            second[WALL] = (0.98, 0.80 + 0.1 * rng.random(), 0.35 + 0.3 * rng.random())
    if texture[SKY] == "stars":
        second[SKY] = (0.98, 0.96, 0.85)
        contrast[SKY] = 0.9
    turn = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.0, 0.18) * np.array([np.cos(turn), np.sin(turn)])
    shade = rng.normal(0, 0.10, count)
    shade[[SKY, SUN]] = 0.0
    for array in (base, second, horizon, cycles, angle, contrast, shade, light):
        array.setflags(write=False)
    grain = rng.uniform(0.0, 0.008)
    return Look(base, second, horizon, tuple(texture), cycles, angle, contrast, shade, light, grain, name)
