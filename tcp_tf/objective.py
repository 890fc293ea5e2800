"""Weights, intervals and replica arithmetic: the one place where loss terms become objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tcp_tf.config import LossConfig

RECONSTRUCTION = "g/l1"
CRITICISM_TERMS = ("g/gan_rec", "g/gan_swap", "d/gan_rec", "d/gan_swap", "g/patch_gan", "dp/real", "dp/fake")
CONSISTENCY_TERMS = ("g/code_consistency/content", "g/code_consistency/style", "g/content_alignment")
R1_TERMS = ("d/r1", "dp/r1")


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
                factor = self.intervals[name] if name in R1_TERMS else 1
                total += self.weights[name] * factor * tf.reduce_mean(values)
        return total / (self.replicas * self.parts * parts)
