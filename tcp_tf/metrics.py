"""How far pictures are from what they should be: L1, PSNR, SSIM, and the mean of many with its standard error.

Pictures are floats [N, H, W, C] in [-1, 1]; every measure gives one value per picture, [N]. `where` [N, H, W] or
[N, H, W, 1] says which pixels count (bool, or weights >= 0). Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

PEAK = 2.0  # difference between white and black

# Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, 2004.
SSIM_SIGMA = 1.5  # px
SSIM_RADIUS = 5  # px
SSIM_K1, SSIM_K2 = 0.01, 0.03

Summary = dict[str, Any]


def _weights(where: Optional[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """`where` as float64 [N, H, W, 1] (ones for None), checked against pictures of `shape`."""
    if where is None:
        return np.ones((*shape[:3], 1))
    weights = np.asarray(where, np.float64)
    weights = weights[..., None] if weights.ndim == 3 else weights
    if weights.shape != (*shape[:3], 1):
        raise ValueError(f"where must be {[*shape[:3]]} or {[*shape[:3], 1]}, got {list(np.shape(where))}")
    empty = np.flatnonzero(weights.sum((1, 2, 3)) <= 0)
    if empty.size:
        raise ValueError(f"where leaves no pixel of picture {empty[0]}")
    return weights


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"two batches of pictures [N, H, W, C] of one shape are needed, got {a.shape} and {b.shape}")
    return a, b


def _mean_over(values: np.ndarray, where: Optional[np.ndarray]) -> np.ndarray:
    """Mean of [N, H, W, C] over channels and the pixels that count: [N]."""
    weights = _weights(where, values.shape)
    return (values.mean(-1, keepdims=True) * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def l1(a: np.ndarray, b: np.ndarray, where: Optional[np.ndarray] = None) -> np.ndarray:
    """Mean absolute difference: [N]. Raises ValueError for unequal shapes or a `where` that leaves no pixel."""
    a, b = _pair(a, b)
    return _mean_over(np.abs(a - b), where)


def mse(a: np.ndarray, b: np.ndarray, where: Optional[np.ndarray] = None) -> np.ndarray:
    """Mean squared difference: [N]. Raises ValueError as `l1`."""
    a, b = _pair(a, b)
    return _mean_over((a - b) ** 2, where)


def to_decibels(squared_error: Union[float, np.ndarray], peak: float = PEAK) -> np.ndarray:
    """10 log10(peak^2 / MSE), any shape; infinite for an error of 0."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(peak**2 / np.asarray(squared_error, np.float64))


def psnr(a: np.ndarray, b: np.ndarray, where: Optional[np.ndarray] = None, peak: float = PEAK) -> np.ndarray:
    """Peak signal-to-noise ratio in dB: [N]; infinite for equal pictures. Raises ValueError as `l1`."""
    return to_decibels(mse(a, b, where), peak)


def ssim(a: np.ndarray, b: np.ndarray, where: Optional[np.ndarray] = None, peak: float = PEAK) -> np.ndarray:
    """Structural similarity (Wang et al. 2004): mean over channels and over all windows inside the picture, [N].

    Windows are Gaussian, sigma 1.5 px, 11 x 11 px. With `where`, pixels that do not count are left out of the windows
    too, and the mean is over the windows whose centre counts.

    Raises:
        ValueError: as `l1`, a side below 11 px, or no window that counts.
    """
    a, b = _pair(a, b)
    side = 2 * SSIM_RADIUS + 1
    if min(a.shape[1:3]) < side:
        raise ValueError(f"SSIM needs pictures of {side} px a side, got {a.shape[1]} x {a.shape[2]}")
    weights = _weights(where, a.shape)
    total = gaussian_windows(weights)

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_windows(values * weights) / np.where(total > 0, total, 1.0)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * peak) ** 2, (SSIM_K2 * peak) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return _mean_over(similarity, weights[:, SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS])


def gaussian_windows(values: np.ndarray) -> np.ndarray:
    """SSIM's weighted sums at every place where the window fits: [N, H, W, C] -> [N, H - 10, W - 10, C]."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    kernel = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel /= kernel.sum()
    height, width = values.shape[1] - 2 * SSIM_RADIUS, values.shape[2] - 2 * SSIM_RADIUS
    rows = sum(weight * values[:, i : i + height] for i, weight in enumerate(kernel))
    return sum(weight * rows[:, :, i : i + width] for i, weight in enumerate(kernel))


def seam_energy(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Gradient magnitude across a mask's edge: mean absolute difference over all neighbours that it separates, [N].

    Args:
        pictures: [N, H, W, C].
        masks: [N, H, W, 1]; 0.5 and more is inside.
    Raises:
        ValueError: a mask without an edge.
    """
    inside = np.asarray(masks)[..., 0] >= 0.5
    if inside.shape != pictures.shape[:3]:
        raise ValueError(f"masks must be {[*pictures.shape[:3], 1]}, got {list(np.shape(masks))}")
    down, right = inside[:, 1:] != inside[:, :-1], inside[:, :, 1:] != inside[:, :, :-1]
    count = down.sum((1, 2)) + right.sum((1, 2))
    if not count.all():
        raise ValueError(f"mask {np.flatnonzero(count == 0)[0]} has no edge")
    steps_down = np.abs(pictures[:, 1:] - pictures[:, :-1]).mean(-1)
    steps_right = np.abs(pictures[:, :, 1:] - pictures[:, :, :-1]).mean(-1)
    return ((steps_down * down).sum((1, 2)) + (steps_right * right).sum((1, 2))) / count


def summarize(values: np.ndarray) -> Summary:
    """Mean of one value per picture, its standard error (sample deviation / sqrt n) and n.

    Raises ValueError for no value or one that is not finite.
    """
    values = np.asarray(values, np.float64).ravel()
    if not values.size:
        raise ValueError("no values to average")
    if not np.isfinite(values).all():
        raise ValueError(f"cannot average {values[~np.isfinite(values)][0]}, value of picture "
                         f"{np.flatnonzero(~np.isfinite(values))[0]}")  # fmt: skip
    count = len(values)
    error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return {"mean": float(values.mean()), "standard_error": error, "count": count}


def summarize_ratio(values: np.ndarray, references: np.ndarray) -> Summary:
    """Mean of values over mean of references, of the same pictures, with its standard error by the delta method.

    Raises ValueError as `summarize`, or for references that are all 0.
    """
    values, references = np.asarray(values, np.float64), np.asarray(references, np.float64)
    if not references.any():
        raise ValueError("a ratio to references that are all 0")
    mean = references.mean()
    ratio = float(values.mean() / mean)
    residual = summarize((values - ratio * references) / mean)
    return {**residual, "mean": ratio}


def summarize_psnr(squared_errors: np.ndarray, peak: float = PEAK) -> Summary:
    """`summarize` of the PSNRs of one mean squared error per picture, and the PSNR of their mean as `pooled`.

    The headline is the mean of the PSNRs: a few pictures that fail badly rule the pooled one. Equal pictures count with
    an error of half a grey level, 2 * (0.5/255), because their PSNR is infinite.
    """
    squared_errors = np.maximum(np.asarray(squared_errors, np.float64), (peak * 0.5 / 255.0) ** 2)
    return {**summarize(to_decibels(squared_errors, peak)), "pooled": float(to_decibels(squared_errors.mean(), peak))}
