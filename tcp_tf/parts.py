"""Terms and gradients of a batch that is worked on in equal parts, one after another, in the memory of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import tensorflow as tf

from tcp_tf import ops

Terms = dict[str, tf.Tensor]  # name -> one value per example


def mean_terms(terms: Terms) -> tf.Tensor:
    """The mean of each term's values, `[terms]`."""
    return tf.stack([tf.reduce_mean(values) for values in terms.values()])


def sums(gradients: list[tf.Tensor], lazy: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients with those of lazy terms added; as they are where there are no such terms."""
    return [a + b for a, b in zip(gradients, lazy)] if lazy else gradients


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


def plus_sums_over_parts(
    start: list[tf.Tensor],
    parts: int,
    compute: Callable[[dict[str, tf.Tensor]], tuple[list[tf.Tensor], list[tf.Tensor]]],
    batch: dict[str, tf.Tensor],
    like: Sequence[tf.Tensor] = (),
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Calls `compute` with equal parts of the batch, one after another.

    Returns:
        `start` plus the sums of its first tensors; its second ones of all parts, which are of the shapes of `like`.
    """
    stacked = {name: in_parts(value, parts) for name, value in batch.items()}
    arrays = [tf.TensorArray(each.dtype, parts, element_shape=in_parts(each, parts).shape[1:]) for each in like]

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
