"""Directions in the space of styles, as sliders: a principal component analysis of many encoded styles.

Along the first components a collection of pictures differs most: in landscapes typically the hour and the season. A
slider moves a style along one of them, measured in standard deviations of the collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np

from tcp_tf import pictures
from tcp_tf.styles import StyleError, normalized, read_arrays


class Directions(NamedTuple):
    """The K directions in which a collection of styles varies most, the strongest first."""

    mean: np.ndarray  # float32 [Cs]
    axes: np.ndarray  # float32 [K, Cs], orthonormal
    deviations: np.ndarray  # float32 [K], standard deviation of the collection along each axis
    explained: np.ndarray  # float32 [K], share of the collection's variance

    def move(self, style: np.ndarray, amounts: Sequence[float]) -> np.ndarray:
        """A style `[Cs]` moved along the first axes by so many standard deviations each, of unit norm again.

        Raises:
            StyleError: there are more amounts than directions.
        """
        if len(amounts) > len(self.axes):
            raise StyleError(f"there are {len(self.axes)} directions, got {len(amounts)} amounts")
        steps = np.asarray(amounts, np.float32) * self.deviations[: len(amounts)]
        return normalized(style + steps @ self.axes[: len(amounts)])

    def save(self, path: Union[str, Path]) -> None:
        """Writes an .npz file."""
        values = self._asdict()
        pictures.write(path, lambda file: np.savez(file, **values))

    @classmethod
    def load(cls, path: Union[str, Path]) -> Directions:
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            StyleError: it is not such a file.
        """
        return cls(**read_arrays(path, cls._fields, "holds no directions"))


def find(styles: np.ndarray, count: int = 8) -> Directions:
    """Principal components of styles `[N, Cs]`. The sign of each makes its largest entry positive.

    Raises:
        StyleError: too few styles for so many directions.
    """
    if np.ndim(styles) != 2 or not 1 <= count < len(styles):
        raise StyleError(f"{count} directions need more than {count} styles, got {np.shape(styles)}")
    wide = np.asarray(styles, np.float64)
    mean = wide.mean(axis=0)
    _, values, axes = np.linalg.svd(wide - mean, full_matrices=False)
    if count > len(values):
        raise StyleError(f"styles of {wide.shape[1]} channels have at most {len(values)} directions, got {count}")
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    variances = values**2
    return Directions(
        mean.astype(np.float32),
        (axes * signs[:, None])[:count].astype(np.float32),
        np.sqrt(variances / (len(wide) - 1))[:count].astype(np.float32),
        (variances / max(variances.sum(), 1e-12))[:count].astype(np.float32),
    )
