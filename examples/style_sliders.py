"""Finds the directions in which a collection's looks vary, and uses them as sliders.

    python examples/style_sliders.py --model runs/quickstart --collection photos --image photo.jpg --output sliders

Writes `sliders/directions.npz` and one strip per direction: the picture moved by -2, -1, 0, 1 and 2 standard deviations
of the collection. `tcp_tf.directions.Directions.load` reads the file again, and `move` is the slider.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tcp_tf import Editor, directions
from tcp_tf.images import SUFFIXES
from tcp_tf.pictures import save

AMOUNTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "collection", "image", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--count", type=int, default=4, help="directions (%(default)s)")
    options = parser.parse_args()

    editor = Editor.load(options.model)
    files = [file for file in sorted(options.collection.iterdir()) if file.suffix.lower() in SUFFIXES]
    library = editor.library({file.name: file for file in files})
    found = directions.find(library.styles, options.count)
    found.save(options.output / "directions.npz")

    picture = editor.open(options.image)
    for number, share in enumerate(found.explained):
        slider = np.zeros(options.count)
        frames = []
        for slider[number] in AMOUNTS:
            frames.append(np.asarray(picture.swap(found.move(picture.style, slider)).convert("RGB")))
        save(Image.fromarray(np.concatenate(frames, axis=1)), options.output / f"direction-{number}.png")
        print(f"direction {number}: {100 * share:.1f} % of the collection's variance")


if __name__ == "__main__":
    main()
