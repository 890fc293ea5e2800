"""Trainings side by side in pictures: reconstructions, swaps and region edits of held-out pairs, good and bad ones.

    python -m benchmarks.gallery runs/study/sa-0 runs/study/tcp-style_map-0 --output docs/pictures/study_gallery.png

Columns: picture, style picture and, where it is known, the true swap; the reconstruction and the swap of every run; the
region, the true edit, and every run's edit. Rows: where the truth is known, from the pair that the last run swaps best
to the one that it swaps worst, at even distances in between; else the first pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from tcp_tf import answers, images, metrics, pictures, run_dir
from tcp_tf.pairs import Pairs, load_pairs

PAIRS = 128  # of the test split, from which rows are chosen
GAP = 4  # px between groups of columns
SCALE = 2


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, trained on the same data")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="picture to write")
    parser.add_argument("--rows", type=int, default=8, help="pairs to show (%(default)s)")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows: must be 1 or more, got {options.rows}")
    return options


def chosen(swaps: np.ndarray, pairs: Pairs, rows: int) -> np.ndarray:
    """Numbers of the pairs to show."""
    if pairs.truth is None:
        return np.arange(min(rows, len(pairs)))
    order = np.argsort(metrics.mse(swaps, pairs.truth.swaps))
    return order[np.linspace(0, len(order) - 1, rows).round().astype(int)]


def gallery(pairs: Pairs, found: Sequence[answers.Answers], rows: int) -> np.ndarray:
    """The whole picture, uint8 [H, W, 3]."""
    truth = pairs.truth
    groups = [[pairs.images, pairs.style_images, *([truth.swaps] if truth else [])]]
    groups += [[each.reconstruction, each.swap] for each in found]
    groups.append([np.repeat(2 * pairs.masks - 1, 3, axis=-1), *([truth.edits] if truth else [])])
    groups[-1] += [each.edit for each in found]
    lines = []
    for number in chosen(found[-1].swap, pairs, rows):
        cells = [np.concatenate([column[number] for column in group], axis=1) for group in groups]
        gap = np.ones([cells[0].shape[0], GAP, 3], np.float32)
        lines.append(np.concatenate([part for cell in cells for part in (cell, gap)][:-1], axis=1))
    return images.to_uint8(np.concatenate(lines)).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, or 2 where a run cannot be used."""
    options = parse(arguments)
    try:
        loaded = [run_dir.load_autoencoder(run) for run in options.runs]
        pairs = load_pairs(loaded[0][1], PAIRS, "test")
    except ValueError as error:
        print(f"benchmarks.gallery: {error}", file=sys.stderr)
        return 2
    found = [answers.answer(autoencoder, pairs) for autoencoder, _ in loaded]
    pictures.save(Image.fromarray(gallery(pairs, found, options.rows)), options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
