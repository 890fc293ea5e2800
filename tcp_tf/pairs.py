"""The pairs of held-out pictures on which models are judged, the same for every model.

Picture i gives the content and picture i + 1 (the last one's is the first) the style, so that each serves once as
either. Pictures, pairs and masks are functions of PAIR_SEED and of the data alone: never of the model or of its seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Optional

import numpy as np

from tcp_tf import data, masks, sources
from tcp_tf.config import Config, DataConfig
from tcp_tf.datasets import scene_render

PAIR_SEED = 20210824


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of pairs of drawn scenes."""

    swaps: np.ndarray  # float32 [N, R, R, 3]: the true swap render(layout of i, look of i + 1)
    edits: np.ndarray  # float32 [N, R, R, 3]: the true region edit for the pairs' masks
    kinds: np.ndarray  # uint8 [N, R, R]: kind of region at each pixel, indices into REGION_KINDS
    style_kinds: np.ndarray  # the same of the style pictures
    shared: np.ndarray  # bool [N, R, R]: pixels of kinds that the style picture shows too; elsewhere truth is undefined
    style_looks: Sequence[scene_render.Look]  # the style pictures' looks
    size: int  # px, side at which the scenes are drawn
    config: Config

    def kind_pictures(self, index: int) -> np.ndarray:
        """How each kind of region looks under the look of style picture `index`: float32 [K, R, R, 3] in [-1, 1]."""
        return _at_resolution(scene_render.kind_pictures(self.style_looks[index], self.size), self.config)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """N pictures, each also the style of the one before, and a region mask for each."""

    images: np.ndarray  # float32 [N, R, R, 3] in [-1, 1]
    masks: np.ndarray  # float32 [N, R, R, 1], 1 in the region to edit, else 0
    truth: Optional[Truth]  # None where the data are not drawn

    def __len__(self) -> int:
        return len(self.images)

    @property
    def style_images(self) -> np.ndarray:
        """float32 [N, R, R, 3]."""
        return styles_of(self.images)


def styles_of(per_picture: np.ndarray) -> np.ndarray:
    """Reorders anything known per picture, [N, ...], such that row i is that of the picture that gives i its style."""
    return np.roll(per_picture, -1, axis=0)


class _Pictures:
    """Some pictures as a source of their own."""

    def __init__(self, name: str, pictures: Sequence[np.ndarray]) -> None:
        self.name, self.pictures = name, pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        return self.pictures[index]


class _Chosen:
    """Some of a source's pictures, in an order of their own."""

    def __init__(self, source: sources.Source, numbers: np.ndarray) -> None:
        self.name, self.source, self.numbers = source.name, source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, index: int, least: Optional[int] = None) -> np.ndarray:
        return self.source.image(int(self.numbers[index]), least)


def load_pairs(config: Config, examples: int, split: str = "test") -> Pairs:
    """At most `examples` pairs of a split.

    Raises:
        ValueError: an unknown split, data that cannot be used, or fewer than two pictures.
    """
    if examples < 2:
        raise ValueError(f"a swap needs two pictures: examples must be 2 or more, got {examples}")
    source = sources.open_source(config.data, split)
    if len(source) < 2:
        raise ValueError(f"a swap needs two pictures: the {split} split of {source.name} has {len(source)}")
    rng = np.random.Generator(np.random.PCG64(PAIR_SEED))
    numbers = rng.permutation(len(source))[:examples]
    pictures = data.evaluation_images(_Chosen(source, numbers), len(numbers), config)
    uniform = np.random.Generator(np.random.PCG64(PAIR_SEED + 1)).random((len(numbers), masks.NUMBERS))
    side = config.data.resolution
    regions = masks.random_masks(uniform.astype(np.float32), side, side).numpy()
    truth = _truth(source, numbers, pictures, regions, config) if isinstance(source, sources.ScenesSource) else None
    return Pairs(pictures, regions, truth)


def _truth(
    source: sources.ScenesSource, numbers: np.ndarray, images: np.ndarray, regions: np.ndarray, config: Config
) -> Truth:
    size, count = source.images.shape[1], len(numbers)
    layouts = [int(seed) for seed in source.arrays["layout_seeds"][numbers]]
    looks = [scene_render.sample_look(int(seed)) for seed in styles_of(source.arrays["look_seeds"][numbers])]
    swaps = _at_resolution([scene_render.render(*scene, size) for scene in zip(layouts, looks)], config)
    # What render_region_edit draws: the picture itself is render(layout, own look).
    edits = images * (1.0 - regions) + swaps * regions
    kinds = _crop_labels(source.arrays["label_maps"][numbers], config.data)
    style_kinds = styles_of(kinds)
    shared = np.stack([np.isin(kinds[i], style_kinds[i]) for i in range(count)])
    return Truth(swaps, edits, kinds, style_kinds, shared, looks, size, config)


def _at_resolution(pictures: Sequence[np.ndarray], config: Config) -> np.ndarray:
    return data.evaluation_images(_Pictures("true pictures", pictures), len(pictures), config)


def _crop_labels(label_maps: np.ndarray, settings: DataConfig) -> np.ndarray:
    """[N, S, S] -> [N, R, R]: each pixel's label where `data.evaluation_images` takes its colour, without mixing."""
    short, side = settings.short_side, settings.resolution
    rows = ((np.arange(short) + 0.5) * label_maps.shape[1] / short).astype(int)
    rows = rows[(short - side) // 2 :][:side]
    return label_maps[:, rows][:, :, rows]
