"""Judging swaps of drawn scenes against what is known of them: layout, look, drift.

All three look only at pixels whose kind of region both pictures show: how another kind would look is not to be seen in
the style picture. Pictures are floats [R, R, 3] in [-1, 1], label maps [R, R] hold kinds of region.
"""

from __future__ import annotations

import numpy as np

from tcp_tf.distances import LUMA, edge_magnitudes

READING_BOX = 3  # px, squared distances are averaged over this box before the nearest kind is taken
LEAST_PIXELS = 24  # a region's statistics are compared from this many pixels on

Judgement = dict[str, float]


def read_labels(picture: np.ndarray, kind_pictures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Reads a region map off a picture: at each pixel the kind with the nearest true colour and texture, [R, R].

    Args:
        picture: [R, R, 3].
        kind_pictures: [K, R, R, 3], how each kind looks at each place.
        candidates: bool [K], the kinds to choose from.
    """
    kinds = np.flatnonzero(candidates)
    distance = ((kind_pictures[kinds] - picture) ** 2).sum(-1)  # k R R
    half, side = READING_BOX // 2, picture.shape[0]
    padded = np.pad(distance, ((0, 0), (half, half), (half, half)), mode="edge")
    rows = sum(padded[:, i : i + side] for i in range(READING_BOX))
    return kinds[sum(rows[:, :, i : i + side] for i in range(READING_BOX)).argmin(0)]


def judge(
    pictures: dict[str, np.ndarray],
    true_swap: np.ndarray,
    kinds: np.ndarray,
    style_kinds: np.ndarray,
    kind_pictures: np.ndarray,
) -> dict[str, Judgement]:
    """Judges several answers to one swap.

    - layout_error: share of the pixels that do not read as the kind that the content picture has there.
    - drift: share of the pixels, of those where the two layouts differ, that read as the style picture's kind there.
      NaN where the layouts are equal.
    - look_error: root of colour^2 + texture^2, where `look_error/colour` is the difference of a region's mean colour
      to that in the true swap and `look_error/texture` that of its contrast and of its mean edges in four directions;
      means over the kinds of region with at least 24 pixels; 1 is the difference of black and white.

    Args:
        pictures: answers by name, each [R, R, 3].
        true_swap: [R, R, 3]; kinds, style_kinds: [R, R]; kind_pictures: [K, R, R, 3] under the style picture's look.
    """
    shared = np.isin(kinds, style_kinds)
    candidates = np.isin(np.arange(len(kind_pictures)), [kinds, style_kinds])
    differ = shared & (kinds != style_kinds)
    regions = [kind for kind in np.unique(kinds[shared]) if (kinds == kind).sum() >= LEAST_PIXELS]
    truth = [region_statistics(true_swap, kinds == kind) for kind in regions]
    judgements = {}
    for name, picture in pictures.items():
        read = read_labels(picture, kind_pictures, candidates)
        found = [region_statistics(picture, kinds == kind) for kind in regions]
        gaps = np.abs(np.array(found) - np.array(truth)) / 2.0  # [-1, 1] is 2 wide
        colour = np.sqrt((gaps[:, :3] ** 2).mean(-1))
        texture = np.sqrt((gaps[:, 3:] ** 2).mean(-1))
        judgements[name] = {
            "layout_error": float((read != kinds)[shared].mean()),
            "drift": float((read == style_kinds)[differ].mean()) if differ.any() else float("nan"),
            "look_error": float(np.sqrt(colour**2 + texture**2).mean()),
            "look_error/colour": float(colour.mean()),
            "look_error/texture": float(texture.mean()),
        }
    return judgements


def region_statistics(picture: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Colour and texture of a region: [R, R, 3] and bool [R, R] -> [3 + 3 + 4].

    Mean colour; standard deviation of each colour; mean absolute difference of luma to the neighbours in four
    directions.
    """
    pixels = picture[region]
    edges = edge_magnitudes((picture @ LUMA)[None])[0]
    return np.concatenate([pixels.mean(0), pixels.std(0), edges[region].mean(0)])
