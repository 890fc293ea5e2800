"""Distances where no true picture is known: between sets of pictures, and of structure and style between two.

Between sets: Frechet distance (FID's formula) and kernel distance (KID's), of features given as arrays. Between two
pictures: self-similarity distance (structure: which parts of a picture are alike) and single-image Frechet distance
(style: which colours and edges there are, wherever they are). The last two look at the features of `local_features`,
fixed filters that need no trained network, so that their values are the same everywhere; they are not comparable with
values from the literature, which use VGG's or Inception's features. Only numpy is needed.
"""

from __future__ import annotations

import numpy as np

from tcp_tf.metrics import Summary

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows, columns to the neighbour
SCALES = (1, 2, 4)  # px, sides of the squares over which a picture is averaged before its edges are taken
EDGE_WEIGHT = 4.0  # edges in [-1, 1] spread about a quarter as far as colours do
CELLS = 16  # self-similarity compares the cells of a CELLS x CELLS grid


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> np.ndarray:
    """|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the squared Frechet distance of two Gaussians.

    Source: Dowson, Landau: The Frechet distance between multivariate normal distributions, 1982.

    Args:
        mean_a, mean_b: [..., D]; covariance_a, covariance_b: [..., D, D], symmetric, positive or singular.
    Returns:
        [...].
    """
    root_a, root_b = _square_root(covariance_a), _square_root(covariance_b)
    overlap = np.linalg.svd(root_a @ root_b, compute_uv=False).sum(-1)  # = tr (A^1/2 B A^1/2)^1/2
    traces = np.trace(covariance_a, axis1=-2, axis2=-1) + np.trace(covariance_b, axis1=-2, axis2=-1)
    return np.maximum(((mean_a - mean_b) ** 2).sum(-1) + traces - 2.0 * overlap, 0.0)


def _square_root(matrices: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def frechet_distance_of_samples(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the samples' means and covariances (divisor n - 1).

    Args:
        a, b: [n, D] and [m, D]; fewer samples than dimensions are welcome, though the distance is then biased upwards
            and only comparable at equal n and m.
    Raises:
        ValueError: fewer than two samples or unequal D.
    """
    a, b = _samples(a, b)
    if max(len(a), len(b)) > a.shape[1]:
        moments = [(each.mean(0), np.atleast_2d(np.cov(each, rowvar=False))) for each in (a, b)]
        return float(frechet_distance(*moments[0], *moments[1]))
    # With A = X'X and B = Y'Y, the eigenvalues of A B are the squared singular values of X Y': only n x m numbers.
    centred = [(each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (a, b)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum((each**2).sum() for each in centred)
    return max(float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2.0 * overlap), 0.0)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> Summary:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3: KID, which may be negative.

    Source: Binkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018. All samples at once instead of random
    subsets; the standard error is the jackknife's, over both sets.

    Args:
        a, b: [n, D] and [m, D], n and m at least 3.
    Returns:
        {"mean", "standard_error", "count"}.
    """
    a, b = _samples(a, b, least=3)
    n, m, dimensions = len(a), len(b), a.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dimensions + 1.0) ** 3

    within_a, within_b, between = kernel(a, a), kernel(b, b), kernel(a, b)
    rows_a = within_a.sum(1) - np.diag(within_a)  # of each sample to the others of its set
    rows_b = within_b.sum(1) - np.diag(within_b)
    cross_a, cross_b = between.sum(1), between.sum(0)
    term_a, term_b, cross = rows_a.sum() / (n * (n - 1)), rows_b.sum() / (m * (m - 1)), between.mean()
    without_a = (rows_a.sum() - 2 * rows_a) / ((n - 1) * (n - 2)) - 2 * (between.sum() - cross_a) / ((n - 1) * m)
    without_b = (rows_b.sum() - 2 * rows_b) / ((m - 1) * (m - 2)) - 2 * (between.sum() - cross_b) / ((m - 1) * n)
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return {"mean": float(term_a + term_b - 2 * cross), "standard_error": float(np.sqrt(variance)), "count": n}


def _samples(a: np.ndarray, b: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(f"two sets of at least {least} samples [n, D] of equal D are needed, got {a.shape}, {b.shape}")
    return a, b


def local_features(pictures: np.ndarray) -> np.ndarray:
    """Colour and edges around each pixel: [N, H, W, 3] -> [N, H, W, 3 + 4 * 3].

    The colour itself, and for each of the scales 1, 2 and 4 px the absolute differences of luma to the neighbours in
    four directions, times EDGE_WEIGHT. H and W are cut to multiples of 4.
    """
    pictures = _cut(np.asarray(pictures, np.float64), SCALES[-1])
    height, width = pictures.shape[1:3]
    features = [pictures]
    for scale in SCALES:
        edges = EDGE_WEIGHT * edge_magnitudes(_cell_means(pictures @ LUMA, height // scale, width // scale))
        features.append(edges.repeat(scale, axis=1).repeat(scale, axis=2))
    return np.concatenate(features, axis=-1)


def edge_magnitudes(grey: np.ndarray) -> np.ndarray:
    """Absolute differences to the neighbours in four directions (border repeated): [N, H, W] -> [N, H, W, 4]."""
    padded = np.pad(grey, ((0, 0), (0, 1), (1, 1)), mode="edge")
    height, width = grey.shape[1:]
    neighbours = [padded[:, down : down + height, 1 + right : 1 + right + width] for down, right in DIRECTIONS]
    return np.abs(np.stack(neighbours, axis=-1) - grey[..., None])


def _cut(pictures: np.ndarray, multiple: int) -> np.ndarray:
    height, width = pictures.shape[1:3]
    if min(height, width) < multiple:
        raise ValueError(f"pictures must be {multiple} px a side or more, got {height} x {width}")
    return pictures[:, : height - height % multiple, : width - width % multiple]


def _cell_means(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[N, H, W, ...] -> means over a grid of equal cells, [N, rows, columns, ...]."""
    count, height, width, *rest = values.shape
    return values.reshape(count, rows, height // rows, columns, width // columns, *rest).mean((2, 4))


def self_similarity_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How differently the parts of two pictures resemble each other: [N] in 0 .. 2, 0 for equal structure.

    Features are averaged over a 16 x 16 grid of cells and each is standardised over the picture, so that another
    brightness, contrast or texture strength alone changes little; between all cells the cosine distances d_ij are
    taken, each column divided by its sum, and the result is mean over j of sum over i of |d^a_ij - d^b_ij|.
    Source of the comparison: Kolkin, Salavon, Shakhnarovich: Style transfer by relaxed optimal transport and
    self-similarity, 2019 (there of VGG's features).

    Args:
        a, b: [N, H, W, 3]; sides are cut to multiples of 16.
    Raises:
        ValueError: a side below 16 px.
    """
    matrices = [_self_similarity(pictures) for pictures in (a, b)]
    return np.abs(matrices[0] - matrices[1]).sum(1).mean(-1)


def _self_similarity(pictures: np.ndarray) -> np.ndarray:
    """Column-normalised cosine distances between cells: [N, H, W, 3] -> [N, CELLS^2, CELLS^2]."""
    cells = _cell_means(local_features(_cut(np.asarray(pictures, np.float64), CELLS)), CELLS, CELLS)
    cells = cells.reshape(len(cells), CELLS * CELLS, -1)
    cells = cells - cells.mean(1, keepdims=True)
    cells /= cells.std(1, keepdims=True) + 1e-3
    cells /= np.sqrt((cells**2).sum(-1, keepdims=True)) + 1e-6
    cells = cells.astype(np.float32)  # the matrices of all pairs of cells are large
    distance = np.maximum(1.0 - cells @ cells.transpose(0, 2, 1), 0.0)
    return distance / (distance.sum(1, keepdims=True) + 1e-9)


def single_image_frechet_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Frechet distance of the two pictures' local features, each picture's pixels being the samples: [N].

    Source of the idea: Shaham, Dekel, Michaeli: SinGAN, 2019 (there of Inception's features).
    """
    return frechet_distance(*_feature_moments(a), *_feature_moments(b))


def _feature_moments(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = local_features(pictures)
    features = features.reshape(len(features), -1, features.shape[-1])
    mean = features.mean(1)
    centred = features - mean[:, None]
    return mean, centred.transpose(0, 2, 1) @ centred / (features.shape[1] - 1)
