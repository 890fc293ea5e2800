"""Draws the small pictures that the README's commands edit: two scenes and a mask.

    python examples/sample_pictures.py --output examples/pictures

`scene.png` and `look.png` are of the embedded data set's test split, which no training has seen; `mask.png` is white
where `scene.png` has sky or water.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tcp_tf import pictures, sources
from tcp_tf.config import DataConfig
from tcp_tf.datasets.scene_render import REGION_KINDS

PAINTED = ("sky", "water")


def painted(source: sources.ScenesSource, number: int) -> Image.Image:
    """The mask of a scene's sky and water."""
    kinds = [REGION_KINDS.index(kind) for kind in PAINTED]
    mask = np.isin(source.arrays["label_maps"][number], kinds)
    return Image.fromarray(np.uint8(255) * mask.astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=int, default=0, help="number of the picture in the test split")
    parser.add_argument("--look", type=int, default=1, help="number of the other one")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()

    source = sources.open_source(DataConfig(source="scenes", resolution=64), "test")
    pictures.save(Image.fromarray(source.image(options.scene)), options.output / "scene.png")
    pictures.save(Image.fromarray(source.image(options.look)), options.output / "look.png")
    pictures.save(painted(source, options.scene), options.output / "mask.png")
    print(f"written to {options.output}/")


if __name__ == "__main__":
    main()
