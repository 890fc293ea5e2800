"""Where an edit meets the photograph: seamless borders, and a change made small put onto a large picture.

Arrays are NumPy's float32 of one picture, `[H, W, C]`; colours in [-1, 1].
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from PIL import Image

SMALLEST_WINDOW = 2  # radius in pixels of the small picture
EPSILON = 0.01  # added to the variance of colours in [-1, 1]: below it the affine map does not follow an edge


def box_mean(image: np.ndarray, radius: int) -> np.ndarray:
    """Mean over (2 radius + 1)^2 pixels, as far as the picture goes: `[H, W, C]` -> `[H, W, C]`."""
    if radius < 1:
        return image
    for axis in (0, 1):
        length = image.shape[axis]
        sums = np.cumsum(image, axis=axis, dtype=np.float64)
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis=axis)), sums], axis=axis)
        places = np.arange(length)
        first, last = np.maximum(places - radius, 0), np.minimum(places + radius + 1, length)
        counts = (last - first).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        total = np.take(sums, last, axis=axis) - np.take(sums, first, axis=axis)
        image = (total / counts).astype(np.float32)
    return image


def feather(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Softens a mask's edge over about `pixels` to either side: `[H, W]` in [0, 1] -> `[H, W]`.

    Three box filters in a row, which is close to a Gaussian filter.
    """
    radius = round(pixels / 3)
    for _ in range(3 if radius else 0):
        mask = box_mean(mask[..., None], radius)[..., 0]
    # What is left of sums that should have cancelled would count as painted.
    return np.where(mask < 1e-4, 0.0, np.minimum(mask, 1.0)).astype(np.float32)


def ramp(mask: np.ndarray, radius: int) -> np.ndarray:
    """0 outside a mask, rising from its border to 1 about `radius` pixels inside: `[H, W]` -> `[H, W]`.

    Strokes thinner than that have no inside; there the width of the stroke takes the place of the radius, so that
    thin strokes keep their middle.
    """
    painted = (mask > 0).astype(np.float32)
    if radius < 1:
        return painted
    near = box_mean(painted[..., None], radius)
    window = 2 * radius + 1
    most = tf.nn.max_pool2d(near[None], [window, 1], 1, "SAME")
    most = tf.nn.max_pool2d(most, [1, window], 1, "SAME")[0].numpy()
    inside = near / np.maximum(most, 1e-6)
    steep = np.clip(2.0 * inside - 1.0, 0.0, 1.0)[..., 0]
    return painted * steep * steep * (3.0 - 2.0 * steep)


def seamless(
    original: np.ndarray,
    hybrid: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    amount: np.ndarray,
    edge: int,
    depth: int,
) -> np.ndarray:
    """An edit inside its mask, the original outside, and no seam between them.

    Along the border the *change* `hybrid - reconstruction` is added to the original, so that what the networks cannot
    reconstruct makes no step; `depth` pixels inside, the edit is what the generator made. The outermost `edge` pixels
    lead over to the original, because the generator's own transition reaches a little beyond the mask.

    Args:
        original, hybrid, reconstruction: `[H, W, 3]`.
        mask: `[H, W]` in [0, 1].
        amount: `[H, W]` in [0, 1], the mask times its strength: with little of it, little of the original is replaced.
        edge, depth: pixels.
    Returns:
        `[H, W, 3]`, equal to `original` where the mask is 0.
    """
    corrected = hybrid + (1.0 - amount * ramp(mask, depth))[..., None] * (original - reconstruction)
    return onto(original, corrected - original, mask, edge)


def onto(original: np.ndarray, change: np.ndarray, mask: np.ndarray, edge: int) -> np.ndarray:
    """Adds a change inside the mask only: `[H, W, 3]`, equal to `original` where the mask is 0."""
    share = ramp(mask, edge)[..., None]
    return np.where(share > 0, original + share * change, original)


def enlarge(change: np.ndarray, guide: np.ndarray, share: np.ndarray, original: np.ndarray) -> np.ndarray:
    """A change made on a small copy of a picture, for the picture itself, with all of the picture's own detail.

    A guided filter (He, Sun and Tang, ECCV 2010) whose coefficients are enlarged (He and Sun, arXiv 1505.00996): in
    each window of the small picture the change is modelled as `share * (A colour + b)`, by least squares, and A and b
    are applied to the large picture. So edges stay where the photograph has them, and what is not explained by its
    colours, such as the small generator's own texture, is left out.

    Args:
        change: `[h, w, 3]`.
        guide: the small picture `[h, w, 3]`.
        share: `[h, w]` in [0, 1], how much of the change belongs to the map that is looked for; 1 for a global one.
        original: the large picture `[H, W, 3]`.
    Returns:
        `A colour + b`, `[H, W, 3]`, good wherever a window had some share; the caller multiplies by the large mask.
    """
    scale = original.shape[0] / change.shape[0]
    radius = min(max(SMALLEST_WINDOW, round(scale / 2)), min(change.shape[:2]) // 4)
    slopes, offsets = _local_affine(guide, change, share, radius)
    size = original.shape[1::-1]
    result = np.empty_like(original)
    for channel in range(change.shape[-1]):
        total = _resized(offsets[..., channel], size)
        for source in range(guide.shape[-1]):
            total += _resized(slopes[..., channel, source], size) * original[..., source]
        result[..., channel] = total
    return result


def _local_affine(
    guide: np.ndarray, change: np.ndarray, share: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of `change` on `share * (A guide + b)` in windows: A `[h, w, 3, 3]` (out, in), b `[h, w, 3]`."""

    def mean(maps: np.ndarray) -> np.ndarray:
        return box_mean(maps.reshape(*maps.shape[:2], -1), radius).reshape(maps.shape)

    weight, change = (share**2)[..., None], share[..., None] * change
    total = mean(weight) + 1e-6
    colour, value = mean(weight * guide) / total, mean(change) / total
    second = mean((weight * guide)[..., :, None] * guide[..., None, :]) / total[..., None]
    variance = second - colour[..., :, None] * colour[..., None, :]
    covariance = mean(change[..., :, None] * guide[..., None, :]) / total[..., None]
    covariance = covariance - value[..., :, None] * colour[..., None, :]
    regular = variance + EPSILON * np.eye(guide.shape[-1], dtype=np.float32)
    slopes = np.linalg.solve(regular, covariance.swapaxes(-1, -2)).swapaxes(-1, -2).astype(np.float32)
    offsets = value - np.einsum("hwck,hwk->hwc", slopes, colour)
    smooth = mean(total)  # windows count by how much they have seen
    return mean(total[..., None] * slopes) / smooth[..., None], mean(total * offsets) / smooth


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.array(resized)
