"""Classical colour transfer: the answer to a swap that needs no learning, for comparison."""

from __future__ import annotations

import numpy as np

# Below this variance (of values in [-1, 1]) a direction of colour counts as constant: a twentieth of a grey level.
LEAST_VARIANCE = (2.0 * 0.05 / 255.0) ** 2


def colour_transfer(images: np.ndarray, style_images: np.ndarray) -> np.ndarray:
    """Maps the colours of each picture so that mean and covariance of RGB become those of its style picture.

    Of the many affine maps that do so this is the one that moves colours least, the linear Monge-Kantorovich solution
    t(x) = T (x - mean_a) + mean_b,  T = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2  with covariances A and B.
    Source: Pitie, Kokaram: The linear Monge-Kantorovitch linear colour mapping for example-based colour transfer, 2007.

    Args:
        images, style_images: [N, H, W, 3] and [N, H', W', 3], any range.
    Returns:
        float64 [N, H, W, 3], not clipped. Where a picture has no variance in some direction of colour there is nothing
        to stretch, and the result has none either.
    """
    a = np.asarray(images, np.float64)
    pixels = a.reshape(len(a), -1, a.shape[-1])  # N P 3
    others = np.asarray(style_images, np.float64).reshape(len(a), -1, a.shape[-1])
    mean_a, covariance_a = _moments(pixels)
    mean_b, covariance_b = _moments(others)
    root, inverse = _power(covariance_a, 0.5), _power(covariance_a, -0.5)
    transform = inverse @ _power(root @ covariance_b @ root, 0.5) @ inverse
    return ((pixels - mean_a) @ transform + mean_b).reshape(a.shape)


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, P, C] -> mean [N, 1, C] and covariance [N, C, C]."""
    mean = pixels.mean(1, keepdims=True)
    centred = pixels - mean
    return mean, centred.transpose(0, 2, 1) @ centred / pixels.shape[1]


def _power(matrices: np.ndarray, exponent: float) -> np.ndarray:
    """Power of symmetric positive matrices [N, C, C]; a negative one leaves directions without variance at 0."""
    values, vectors = np.linalg.eigh(matrices)
    if exponent < 0:
        values = np.where(values > LEAST_VARIANCE, np.maximum(values, LEAST_VARIANCE) ** exponent, 0.0)
    else:
        values = np.maximum(values, 0.0) ** exponent
    return (vectors * values[:, None, :]) @ vectors.transpose(0, 2, 1)
