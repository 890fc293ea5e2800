"""Weights, intervals and replica arithmetic: the one place where loss terms become objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import tensorflow as tf

from tcp_tf import ops
from tcp_tf.config import LossConfig
from tcp_tf.parts import Terms

RECONSTRUCTION = "g/l1"
CONSISTENCY_TERMS = ("g/code_consistency/content", "g/code_consistency/style", "g/content_alignment")
R1_TERMS = ("d/r1", "dp/r1")
REAL = "d/gan_real"  # what the image discriminator makes of real pictures


class Objective:
    """Turns terms, one value per example and replica, into the scalars that the optimizers descend.

    Gradients are summed over replicas when they are applied, and before over the parts of each replica's pictures; so
    means are divided by the numbers of both. R1 is multiplied by its interval (lazy regularisation, arXiv 1912.04958,
    appendix B); code consistency and content alignment are not.
    """

    def __init__(self, loss: LossConfig, replicas: int, batch_size: int, parts: int = 1):
        self.weights = {name: weight for name, weight in loss.weights.items() if weight > 0}
        self.replicas, self.parts = replicas, parts
        self.intervals: dict[str, int] = {}  # steps from one computation to the next
        self.warm_up = math.ceil(1000 * loss.gan_start_kimg / batch_size)  # steps with `RECONSTRUCTION` alone
        self.starts = {name: self.warm_up for name in self.weights if name != RECONSTRUCTION}  # first computed when
        for name in self.weights:
            if name in R1_TERMS:
                self.intervals[name] = loss.r1_every
            elif name in CONSISTENCY_TERMS:
                self.intervals[name] = loss.consistency_every
                self.starts[name] = max(self.warm_up, math.ceil(1000 * loss.consistency_start_kimg / batch_size))

    def wants(self, *names: str) -> bool:
        """Whether any of these terms has a weight."""
        return any(name in self.weights for name in names)

    def wanted(self, terms: Terms) -> Terms:
        """Those of the terms that have a weight."""
        return {name: values for name, values in terms.items() if self.wants(name)}

    def due(self, name: str, step: Any) -> Any:
        """Whether a term is computed on this step, a number or a scalar tensor; all but the lazy terms always are."""
        return (step % self.intervals.get(name, 1) == 0) & (step >= self.starts.get(name, 0))

    def total(self, groups: Sequence[str], terms: Mapping[str, tf.Tensor], parts: int = 1) -> tf.Tensor:
        """The objective of the terms whose path begins with one of `groups`: a scalar, this replica's share.

        With `parts`, the share of one of so many equal parts of what this replica works on at a time.
        """
        total = tf.constant(0.0)
        for name, values in terms.items():
            if name.split("/")[0] in groups:
                total += self._factor(name) * tf.reduce_mean(values)
        return total / (self.replicas * self.parts * parts)

    def shares(self, counts: Mapping[str, int]) -> tf.Tensor:
        """What each of so many values of each term counts for in this replica's share of the objective, in this order.

        Terms without a weight count for nothing. With it `total` is a sum over values, which can be taken in lots.
        """
        shares = {name: self._factor(name) / (count * self.replicas * self.parts) for name, count in counts.items()}
        return tf.constant([shares[name] for name, count in counts.items() for _ in range(count)])

    def _factor(self, name: str) -> float:
        return self.weights.get(name, 0.0) * (self.intervals[name] if name in R1_TERMS else 1)

    def with_gradients(
        self, compute: Callable[..., Terms], inputs: list[tf.Tensor], variables: list, parts: int = 1
    ) -> tuple[Terms, list[tf.Tensor]]:
        """Terms `compute(*inputs)`, and their objective's gradients: of the inputs, then of the variables.

        With `parts` of one of so many equal parts, its share.
        """
        with tf.GradientTape() as tape:
            own = [tf.identity(x) for x in inputs]
            tape.watch(own)
            terms = compute(*own)
            objective = self.total(("g", "d", "dp"), terms, parts)
        return terms, gradients_or_zeros(tape, objective, [*own, *variables])

    def lazily(
        self, step: tf.Variable, names: list[str], pictures: tf.Tensor, due: Callable, otherwise: Callable
    ) -> tuple[Terms, list[tf.Tensor]]:
        """Terms and gradients that `due` gives on every so-manyth step; nothing without names.

        The gradients are taken where the terms are computed. Left to an outer tape, every activation in there would
        have to leave the branch, and TensorFlow could neither fuse what makes it nor recompute it.

        Args:
            names: terms of one interval that have a weight.
            pictures: as many as each term has values, which are 0 on the other steps. Nothing begins before they are
                there, not the kernels either, which need no picture.
            due: gives the terms by name, and gradients.
            otherwise: gives the gradients of the other steps.
        """
        if not names:
            return {}, []
        none = {name: tf.zeros(pictures.shape[:1]) for name in names}
        (number,) = ops.after([pictures], tf.convert_to_tensor(step))
        return tf.cond(self.due(names[0], number), due, lambda: (none, otherwise()))


def gradients_or_zeros(tape: tf.GradientTape, target: tf.Tensor, sources: list) -> list[tf.Tensor]:
    """Gradients of a scalar; zeros for sources that it does not depend on, such as networks whose terms are removed.

    TensorFlow's `unconnected_gradients="zero"` does not know Keras 3's variables.
    """
    gradients = tape.gradient(target, sources)
    return [tf.zeros(s.shape, s.dtype) if g is None else g for g, s in zip(gradients, sources)]
