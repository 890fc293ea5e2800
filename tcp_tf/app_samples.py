"""Pictures and styles that the page offers: those of a folder, or scenes that the project draws itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Union

from PIL import Image

from tcp_tf.app_session import PREVIEW, read, shrink
from tcp_tf.datasets import scene_render
from tcp_tf.images import SUFFIXES

MAX_PICTURES = 60  # of a folder, in the order of their names
SCENES_SIDES = (64, 256)  # px, the least and the most at which scenes are drawn
_FIRST_SEED = 2_500_000  # behind all splits of the data set

log = logging.getLogger(__name__)


def from_folder(folder: Union[str, Path]) -> list[tuple[str, Image.Image]]:
    """(name, picture) of the first `MAX_PICTURES` usable pictures of a folder, reduced to what the page shows.

    Raises:
        ValueError: there is no such folder, or no usable picture in it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    pictures: list[tuple[str, Image.Image]] = []
    for file in sorted(Path(folder).iterdir()):
        if file.suffix.lower() not in SUFFIXES or len(pictures) == MAX_PICTURES:
            continue
        try:
            pictures.append((file.stem, shrink(read(file), PREVIEW)))
        except ValueError as error:
            log.warning("%s is left out: %s", file, error)
    if not pictures:
        raise ValueError(f"{folder}: no picture in it that can be used ({', '.join(SUFFIXES)})")
    return pictures


def scenes(count: int, side: int, first: int = 0) -> list[tuple[str, Image.Image]]:
    """(name, picture) of `count` drawn scenes, each in a look of its own, at about `side` px.

    Args:
        first: where to start in the endless row of scenes.
    """
    side = min(max(side, SCENES_SIDES[0]), SCENES_SIDES[1])
    seeds = range(_FIRST_SEED + first, _FIRST_SEED + first + count)
    return [
        (f"scene-{number}", Image.fromarray(scene_render.render(seed, seed, side)))
        for number, seed in enumerate(seeds, 1 + first)
    ]
