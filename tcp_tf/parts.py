"""Terms and gradients of a batch that is worked on in equal parts: at the same time, or one after another.

At the same time, each on its share of the cores, small networks take less time, since their operations are too short to
be divided among cores themselves. One after another, large ones take the memory of one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Union

import tensorflow as tf

from tcp_tf import ops

Terms = dict[str, tf.Tensor]  # name -> one value per example


def mean_terms(terms: Terms) -> tf.Tensor:
    """The mean of each term's values, `[terms]`."""
    return tf.stack([tf.reduce_mean(values) for values in terms.values()])


def sums(gradients: list[tf.Tensor], others: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients with others added; as they are where there are no others."""
    return [a + b for a, b in zip(gradients, others)] if others else gradients


def zeros(sources: list, step: tf.Variable) -> list[tf.Tensor]:
    """Zeros of the shapes and types of tensors or variables, made when they are needed.

    Those that TensorFlow can work out beforehand it keeps, as much as all weights, for as long as the function is
    there.

    Args:
        step: a number from 0, which TensorFlow cannot know.
    """
    zero = step < 0
    return [tf.fill(source.shape, tf.cast(zero, source.dtype)) for source in sources]


def in_parts(values: tf.Tensor, parts: int) -> tf.Tensor:
    """`[N, ...]` as `[parts, N / parts, ...]`."""
    return tf.reshape(values, [parts, values.shape[0] // parts, *values.shape[1:]])


def sums_side_by_side(
    parts: int, compute: Callable[[dict[str, tf.Tensor]], list[tf.Tensor]], batch: dict[str, tf.Tensor]
) -> list[tf.Tensor]:
    """Calls `compute` with equal parts of the batch, none of which waits for another, and adds up what it returns."""
    if parts == 1:
        return compute(batch)
    stacked = {name: in_parts(value, parts) for name, value in batch.items()}
    each = [compute({name: every[number] for name, every in stacked.items()}) for number in range(parts)]
    return [tf.add_n(values) for values in zip(*each)]


def plus_sums_over_parts(
    start: list[tf.Tensor],
    parts: int,
    compute: Callable[[dict[str, tf.Tensor]], tuple[list[tf.Tensor], list[tf.Tensor]]],
    batch: dict[str, tf.Tensor],
    like: Sequence[Union[tf.Tensor, tf.TensorSpec]] = (),
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Calls `compute` with equal parts of the batch, one after another.

    Args:
        start: tensors that are added to; may be empty where there is one part.
        compute: makes, of a part of the batch, tensors to add up and others.
        like: of the shapes and types that the others of all parts have together.
    Returns:
        `start` plus the sums of the first tensors; the others of all parts.
    """
    if parts == 1:
        values, others = compute(batch)
        return sums(values, start), others
    stacked = {name: in_parts(value, parts) for name, value in batch.items()}
    arrays = [tf.TensorArray(a.dtype, parts, element_shape=[a.shape[0] // parts, *a.shape[1:]]) for a in like]

    def add(number: tf.Tensor, totals: list[tf.Tensor], arrays: list[tf.TensorArray]):
        values, others = compute({name: every[number] for name, every in stacked.items()})
        return number + 1, sums(totals, values), [a.write(number, other) for a, other in zip(arrays, others)]

    (first,) = ops.after(list(batch.values()), tf.constant(0))  # else what needs no batch is made long before
    # TensorFlow would work on up to ten parts at the same time.
    _, totals, arrays = tf.while_loop(
        lambda number, *_: number < parts,
        add,
        [first, start, arrays],
        parallel_iterations=1,
        maximum_iterations=parts,
    )
    return totals, [tf.reshape(array.stack(), each.shape) for array, each in zip(arrays, like)]
