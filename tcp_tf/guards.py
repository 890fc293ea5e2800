"""Guards against a training that diverges: on the device before weights are touched, on the host in words.

Two failures: numbers that are no longer finite, which stop the step on every replica, and numbers that are finite but
out of the band in which a training learns, which are told once.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Optional

import tensorflow as tf

DRAW = math.log(2.0)  # the logistic loss of a discriminator that cannot tell
BALANCE_BAND = (0.05, 1.0)  # mean of a discriminator's losses for real and for generated
# Codes have unit length, so over all channels together their variance is at most 1. For the content code's usual 8
# channels this is a variance of 0.001 in each.
SMALLEST_SPREAD = 0.008
GRADIENT_FACTOR = 100.0  # times the median of the ticks before
TICKS = 20  # of which the median is taken; nothing is said during the first quarter of them

_NOT_FINITE = re.compile(r"<not finite: (.+?)>")


def norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Euclidean length of all gradients together, a scalar; not finite where one element is not (or beyond 1e19)."""
    return tf.sqrt(2.0 * tf.add_n([tf.zeros([]), *(tf.nn.l2_loss(gradient) for gradient in gradients)]))


def assert_finite(values: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """A scalar to make everything depend on that must not happen when one of these scalars is not finite.

    Raises:
        tf.errors.InvalidArgumentError: see `not_finite`.
    """
    finite = tf.math.is_finite(tf.stack(list(values.values())))

    def refuse() -> tf.Tensor:
        names = tf.boolean_mask(tf.constant(list(values)), tf.logical_not(finite))
        text = tf.strings.join(["<not finite: ", tf.strings.reduce_join(names, separator=", "), ">"])
        tf.debugging.Assert(False, [text])
        return tf.constant(False)

    return tf.cond(tf.reduce_all(finite), lambda: tf.constant(True), refuse)


def not_finite(error: tf.errors.OpError) -> Optional[str]:
    """The names that `assert_finite` refused, sorted and joined by commas; None if that was not the reason."""
    found = _NOT_FINITE.search(str(error))
    return ", ".join(sorted(found[1].split(", "))) if found else None


def balance(means: Mapping[str, float]) -> dict[str, float]:
    """How well each discriminator tells real from swap: 0 = with certainty, `DRAW` = not at all, above = wrongly."""
    pairs = {"balance/d": ("d/gan_real", "d/gan_swap"), "balance/dp": ("dp/real", "dp/fake")}
    return {name: (means[a] + means[b]) / 2.0 for name, (a, b) in pairs.items() if a in means and b in means}


class Bands:
    """Says in words which of a tick's means has left its band; once, until it has been back.

    Args:
        code_sizes: channels of the codes, by the names `content` and `style`.
        consistency_start: first step with code consistency, None where there is none.
    """

    def __init__(self, code_sizes: Mapping[str, int], consistency_start: Optional[int]):
        self.code_sizes, self.consistency_start = code_sizes, consistency_start
        self.outside: set[str] = set()
        self.lengths: dict[str, deque[float]] = {}

    def judge(self, means: Mapping[str, float], step: int) -> list[str]:
        """A sentence for each of these means that was in its band until now and is not any more."""
        problems = {**self._codes(means, step), **self._balances(means), **self._gradients(means)}
        new = [f"{name} is {means[name]:.2g}: {text}" for name, text in problems.items() if name not in self.outside]
        self.outside = set(problems)
        return new

    def _codes(self, means: Mapping[str, float], step: int) -> dict[str, str]:
        if self.consistency_start is None or step <= self.consistency_start:
            return {}
        problems = {}
        for code, size in self.code_sizes.items():
            name = f"codes/{code}_variance"
            if name in means and means[name] * size < SMALLEST_SPREAD:
                problems[name] = (
                    f"the {code} codes of different pictures are almost the same, code consistency has collapsed; "
                    "begin it later (loss.consistency_start_kimg) or lower loss.g.code_consistency"
                )
        return problems

    def _balances(self, means: Mapping[str, float]) -> dict[str, str]:
        problems = {}
        for name, gamma in (("balance/d", "loss.r1_gamma"), ("balance/dp", "loss.patch_r1_gamma")):
            critic = "the image discriminator" if name == "balance/d" else "the patch discriminator"
            if name in means and means[name] < BALANCE_BAND[0]:
                problems[name] = f"{critic} is never wrong, the generator learns little from it; raise {gamma}"
            elif name in means and means[name] > BALANCE_BAND[1]:
                problems[name] = f"{critic} is worse than guessing ({DRAW:.2f}), it does not learn; lower {gamma}"
        return problems

    def _gradients(self, means: Mapping[str, float]) -> dict[str, str]:
        problems = {}
        for name in ("gradients/g", "gradients/d"):
            if name not in means:
                continue
            before = self.lengths.setdefault(name, deque(maxlen=TICKS))
            usual = statistics.median(before) if len(before) >= TICKS // 4 else math.inf
            if means[name] > GRADIENT_FACTOR * usual > 0:
                problems[name] = f"usually {usual:.2g}; the training may be about to diverge, lower the learning rate"
            before.append(means[name])
        return problems
