"""Makes the README's pictures with the model in the box, from scenes that no training has seen.

python examples/readme_pictures.py --model pretrained/scenes64 --output docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sample_pictures import painted

from tcp_tf import Editor, Region, pictures, sources
from tcp_tf.config import DataConfig

CONTENTS, LOOKS = (22, 24, 3, 40, 26, 6), (8, 42, 7, 2, 49, 0)  # numbers in the test split
EDITS = ((26, 8), (24, 42), (3, 7), (39, 49), (6, 0))  # picture and look
STEPS = 5
WHITE = np.full((64, 64, 3), 255, np.uint8)


def tile(rows: Sequence[Sequence[object]]) -> Image.Image:
    """Rows of equally large pictures as one, every pixel four."""
    whole = np.concatenate([np.concatenate([np.asarray(each) for each in row], axis=1) for row in rows])
    return Image.fromarray(whole).resize((2 * whole.shape[1], 2 * whole.shape[0]), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args()
    editor = Editor.load(options.model)
    source = sources.open_source(DataConfig(source="scenes", resolution=64), "test")

    opened = {number: editor.open(source.image(number)) for number in {*CONTENTS, *(a for a, _ in EDITS)}}
    looks = {number: editor.encode_style(source.image(number)) for number in {*LOOKS, *(b for _, b in EDITS)}}
    rows = [[WHITE, WHITE, *(source.image(number) for number in LOOKS)]]
    for number in CONTENTS:
        own = opened[number].swap(opened[number].style)
        rows.append([source.image(number), own, *(opened[number].swap(looks[look]) for look in LOOKS)])
    pictures.save(tile(rows), options.output / "swap.png")

    rows = []
    for number, look in EDITS:
        mask = painted(source, number)
        edited = opened[number].edit([Region(mask, looks[look])], preserve_background=True)
        own = opened[number].edit([Region(mask, looks[look])])
        rows.append([source.image(number), source.image(look), mask.convert("RGB"), edited, own])
    pictures.save(tile(rows), options.output / "edit.png")

    number, look = EDITS[0]
    pictures.save(tile([opened[number].interpolate([looks[look]], steps=STEPS)]), options.output / "strip.png")
    print(f"written to {options.output}/")


if __name__ == "__main__":
    main()
