"""Random masks: binary, of the wanted area, each kind by itself and mixed, a pure function of their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tcp_tf import masks
from tcp_tf.config import MASK_KINDS

SIDE = 64


def uniform(count: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_uniform([count, masks.NUMBERS], [seed, 3])


def test_the_configuration_knows_every_kind() -> None:
    assert set(masks.KINDS) == set(MASK_KINDS)


@pytest.mark.parametrize("kinds", [*([kind] for kind in MASK_KINDS), list(MASK_KINDS)], ids="+".join)
def test_area_and_values(kinds: list) -> None:
    drawn = masks.random_masks(uniform(200), SIDE, SIDE, kinds, 0.1, 0.6, complement_probability=0.0).numpy()
    assert drawn.shape == (200, SIDE, SIDE, 1) and drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0, 1}
    area = drawn.mean((1, 2, 3))
    # An upright edge can only move by whole rows of the grid on which the area is set.
    margin = 1.5 / masks.QUANTILE_GRID if "rectangle" in kinds else 0.02
    assert area.min() > 0.1 - 0.02 and area.max() < 0.6 + margin
    assert abs(area.mean() - 0.35) < 0.04 and area.std() == pytest.approx(0.5 / 12**0.5, abs=0.03), "uniform"


@pytest.mark.parametrize("area", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [(16, 16), (48, 96), (37, 21)])
def test_area_at_other_sizes(size: tuple, area: float) -> None:
    height, width = size
    drawn = masks.random_masks(uniform(50), height, width, list(MASK_KINDS), area, area, 0.0).numpy()
    assert drawn.shape == (50, height, width, 1)
    assert np.all(np.abs(drawn.mean((1, 2, 3)) - area) < 0.09)


def test_complement() -> None:
    numbers = uniform(100)
    never, always, half = (
        masks.random_masks(numbers, 32, 32, complement_probability=share).numpy() for share in (0.0, 1.0, 0.5)
    )
    np.testing.assert_array_equal(always, 1 - never)
    turned = np.array([np.array_equal(one, other) for one, other in zip(half, always)])
    np.testing.assert_array_equal(turned, numbers[:, 2].numpy() < 0.5)


def test_every_kind_is_drawn_and_draws_what_it_draws_alone() -> None:
    numbers = uniform(80)
    mixed = masks.random_masks(numbers, 32, 32).numpy()
    choice = (numbers[:, 1].numpy() * len(masks.KINDS)).astype(int)
    assert set(choice) == set(range(len(masks.KINDS)))
    for number, kind in enumerate(masks.KINDS):
        alone = masks.random_masks(numbers, 32, 32, [kind]).numpy()
        np.testing.assert_array_equal(mixed[choice == number], alone[choice == number])


def test_a_mask_depends_on_its_own_numbers_only() -> None:
    numbers = uniform(20)
    drawn = masks.random_masks(numbers, 32, 32).numpy()
    np.testing.assert_array_equal(masks.random_masks(numbers[7:9], 32, 32), drawn[7:9])
    assert len({mask.tobytes() for mask in drawn}) == 20, "no two alike"


def connected(mask: np.ndarray) -> bool:
    """Whether the ones hang together, edge to edge."""
    inside = mask[..., 0] > 0
    reached = np.zeros_like(inside)
    reached[tuple(np.argwhere(inside)[0])] = True
    while True:
        padded = np.pad(reached, 1)
        grown = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | reached) & inside
        if np.array_equal(grown, reached):
            return bool(np.array_equal(reached, inside))
        reached = grown


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_shape_is_one_piece(kind: str) -> None:
    drawn = masks.random_masks(uniform(20), 32, 32, [kind], 0.15, 0.6, complement_probability=0.0).numpy()
    assert all(connected(mask) for mask in drawn)


def test_a_rectangle_is_one() -> None:
    for mask in masks.random_masks(uniform(20), 32, 32, ["rectangle"], complement_probability=0.0).numpy()[..., 0]:
        np.testing.assert_array_equal(mask, np.outer(mask.max(1), mask.max(0)))


@pytest.mark.parametrize("kinds", [[], ["rectangle", "star"]])
def test_unknown_kinds_are_refused(kinds: list) -> None:
    with pytest.raises(ValueError, match="mask kinds must be some of"):
        masks.random_masks(uniform(2), 16, 16, kinds)
