"""Carries the look of one collection of pictures over to another, with one model that has learned both.

Train it on the two data sets joined, for example photographs of summer and of winter:

    python train.py --config configs/photos.yaml --run-dir runs/seasons \
        --set 'data.sources=[folder:summer, folder:winter]'

then give every summer picture the winter's average look, and its nearest neighbour's:

    python examples/cross_domain.py --model runs/seasons --from summer --to winter --output winter-in-summer

The average of many styles is the domain itself, without any one picture's accidents. The nearest neighbour is the
picture of the other domain whose style, after both domains' averages are taken off, is most alike: dusk goes to dusk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tcp_tf import Editor
from tcp_tf.images import SUFFIXES
from tcp_tf.pictures import save
from tcp_tf.styles import normalized


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name."""
    return {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "from", "to", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path, dest="source" if name == "from" else name)
    options = parser.parse_args()

    editor = Editor.load(options.model)
    here = editor.library(pictures_in(options.source))
    there = editor.library(pictures_in(options.to))
    average = normalized(there.styles.mean(axis=0))
    own = normalized(here.styles - here.styles.mean(axis=0))
    others = normalized(there.styles - there.styles.mean(axis=0))

    for number, (name, file) in enumerate(pictures_in(options.source).items()):
        picture = editor.open(file)
        nearest = int(np.argmax(others @ own[number]))
        save(picture.swap(average), options.output / "average" / f"{Path(name).stem}.png")
        save(picture.swap(there.styles[nearest]), options.output / "nearest" / f"{Path(name).stem}.png")
        print(f"{name}: most like {there.names[nearest]}")


if __name__ == "__main__":
    main()
