"""Encoded styles: mixing them, and libraries of them in a file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from tcp_tf import pictures


class StyleError(ValueError):
    """Styles that cannot be used; one line that says why."""


class StyleLibrary(NamedTuple):
    """Named styles of one model."""

    names: tuple[str, ...]
    styles: np.ndarray  # float32 [N, Cs], unit L2 norm each

    def save(self, path: Union[str, Path]) -> None:
        """Writes `names` and `styles` as an .npz file."""
        names, styles = np.array(self.names, dtype=np.str_), np.asarray(self.styles, np.float32)
        pictures.write(path, lambda file: np.savez(file, names=names, styles=styles))

    @classmethod
    def load(cls, path: Union[str, Path]) -> StyleLibrary:
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            StyleError: it is not such a file.
        """
        read = read_arrays(path, ("names", "styles"), "not a library of styles")
        try:
            names, styles = tuple(str(name) for name in read["names"]), read["styles"].astype(np.float32)
        except ValueError as error:
            raise StyleError(f"{path}: not a library of styles: {error}") from None
        if styles.ndim != 2 or len(names) != len(styles):
            raise StyleError(f"{path}: not a library of styles: {len(names)} names, styles of shape {styles.shape}")
        return cls(names, styles)

    def random(self, rng: Optional[np.random.Generator] = None, mix: int = 3) -> np.ndarray:
        """A random mixture of `mix` of the styles, `[Cs]`; 1 takes one as it is.

        Raises:
            StyleError: the library is empty, or `mix` is not positive.
        """
        if not self.names:
            raise StyleError("the library holds no style")
        if mix < 1:
            raise StyleError(f"mix must be at least 1, got {mix}")
        rng = rng or np.random.default_rng()
        chosen = rng.choice(len(self.names), min(mix, len(self.names)), replace=False)
        return normalized(rng.dirichlet(np.ones(len(chosen))) @ self.styles[chosen])


def read_arrays(path: Union[str, Path], names: Sequence[str], complaint: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by their names; nothing in the file is executed.

    Raises:
        StyleError: it cannot be read or lacks one; `complaint` says in a few words what the file is not.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StyleError(f"{path}: {complaint}: {reason}") from None


def normalized(style: np.ndarray) -> np.ndarray:
    """Unit L2 norm along the last axis, float32, as the encoder gives styles: `[..., Cs]` -> `[..., Cs]`."""
    wide = np.asarray(style, np.float64)
    return (wide / np.sqrt(np.sum(wide**2, axis=-1, keepdims=True) + 1e-8)).astype(np.float32)


def path_through(styles: Sequence[np.ndarray], steps: int) -> list[np.ndarray]:
    """`steps` styles `[Cs]` on the way through all of `styles`, evenly spaced, ends included.

    Between two, codes are mixed linearly and normalised again, as the Swapping Autoencoder does.

    Raises:
        StyleError: fewer than two styles or steps.
    """
    if len(styles) < 2:
        raise StyleError(f"an interpolation needs two styles or more, got {len(styles)}")
    if steps < 2:
        raise StyleError(f"steps must be at least 2, got {steps}")
    result = []
    for place in np.linspace(0.0, len(styles) - 1, steps):
        start = min(int(place), len(styles) - 2)
        share = place - start
        result.append(normalized((1.0 - share) * styles[start] + share * styles[start + 1]))
    return result
