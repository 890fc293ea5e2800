"""A small folder of pictures that we did not draw: overlapping crops of the photographs that scikit-image bundles.

    python -m benchmarks.photographs runs/photographs
    python -m benchmarks.study --only sa tcp/style_map --seeds 0 --kimg 8 --set data.source=folder:runs/photographs \
        --set data.validation_fraction=0.2 --set loss.gan_start_kimg=4 --set loss.consistency_start_kimg=4.5 \
        --runs runs/study_photographs --records benchmarks/results/photographs

Crops of one photograph are on both sides of the split into training and test pictures, so the scores compare two
trainings and say nothing of other photographs. scikit-image comes with the extra `dev`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from PIL import Image

NAMES = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "retina", "rocket")
SHORT_SIDE = 512  # px, of a photograph before it is cut
SIDES = (128, 192)  # px, of the crops; each overlaps the next by half
SIZE = 64  # px, of what is written


def crops(photograph: Image.Image) -> Iterator[Image.Image]:
    """Square crops of both sizes, row by row, scaled to `SIZE`."""
    scale = SHORT_SIDE / min(photograph.size)
    width, height = (round(scale * side) for side in photograph.size)
    whole = photograph.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    for side in SIDES:
        for top in range(0, height - side + 1, side // 2):
            for left in range(0, width - side + 1, side // 2):
                yield whole.resize((SIZE, SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def write(folder: Path) -> int:
    """Writes every crop of every photograph as `NAME-NUMBER.png`; returns how many."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in NAMES:
        for number, crop in enumerate(crops(Image.fromarray(getattr(data, name)()))):
            crop.save(folder / f"{name}-{number:03d}.png")
            count += 1
    return count


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Writes the folder. Returns the exit code: 0, or 2 without scikit-image."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photographs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the crops go")
    options = parser.parse_args(arguments)
    try:
        count = write(options.folder)
    except ImportError as error:
        print(f"benchmarks.photographs: {error}; it comes with the extra `dev`", file=sys.stderr)
        return 2
    print(f"wrote {count} pictures of {SIZE} x {SIZE} px to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
