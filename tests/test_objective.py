"""Weights, intervals and replicas."""

from __future__ import annotations

import pytest
import tensorflow as tf
from small import small_config

from tcp_tf.objective import Objective

LOSS = small_config("loss.g.l1=2", "loss.d.r1=0.5", "loss.r1_every=16", "loss.consistency_every=8").loss
TERMS = {
    "g/l1": tf.constant([1.0, 3.0]),  # mean 2, weight 2
    "g/gan_rec": tf.constant([4.0]),  # weight 0.5
    "g/content_alignment": tf.constant([5.0, 5.0]),  # weight 1, not multiplied by its interval
    "d/gan_real": tf.constant([7.0, 9.0]),  # mean 8, weight 1
    "d/r1": tf.constant([0.5]),  # weight 0.5, times 16
    "dp/r1": tf.constant([1.0]),  # weight 1, times 16
}


@pytest.mark.parametrize("replicas", [1, 2])
def test_total(replicas: int) -> None:
    objective = Objective(LOSS, replicas, 4)
    assert float(objective.total(("g",), TERMS)) * replicas == pytest.approx(4 + 2 + 5)
    assert float(objective.total(("d",), TERMS)) * replicas == pytest.approx(8 + 4)
    assert float(objective.total(("d", "dp"), TERMS)) * replicas == pytest.approx(12 + 16)
    assert float(objective.total(("g",), {})) == 0


@pytest.mark.parametrize(("replicas", "parts"), [(1, 1), (2, 3)])
def test_shares_are_what_single_values_count_for_in_the_total(replicas: int, parts: int) -> None:
    """7 and 9 at weight 1 and a mean of two, 0.5 at weight 0.5 times 16, a term without a weight."""
    shares = Objective(LOSS, replicas, 12, parts).shares({"d/gan_real": 2, "d/r1": 1, "g/not_a_term": 3})
    assert shares.shape == [6]
    assert (shares * replicas * parts).numpy().tolist() == pytest.approx([0.5, 0.5, 8, 0, 0, 0])


def test_intervals_of_the_lazy_terms() -> None:
    assert Objective(LOSS, 1, 4).intervals == {
        **dict.fromkeys(["d/r1", "dp/r1"], 16),
        **dict.fromkeys(["g/code_consistency/content", "g/code_consistency/style", "g/content_alignment"], 8),
    }


def test_steps_on_which_a_term_is_due() -> None:
    loss = small_config("loss.r1_every=4", "loss.consistency_every=3", "loss.consistency_start_kimg=0.03").loss
    objective = Objective(loss, 1, 8)  # 30 pictures are seen after 4 steps

    def steps(name: str) -> list:
        return [step for step in range(10) if objective.due(name, step)]

    assert steps("g/l1") == list(range(10))
    assert steps("dp/r1") == [0, 4, 8]
    assert steps("g/content_alignment") == [6, 9]
    assert bool(objective.due("d/r1", tf.constant(4, tf.int64))) and not objective.due("d/r1", tf.constant(5, tf.int64))


def test_nothing_but_the_reconstruction_is_due_before_the_adversaries_start() -> None:
    settings = ("loss.gan_start_kimg=0.03", "loss.consistency_start_kimg=0.01", "loss.consistency_every=1")
    objective = Objective(small_config(*settings).loss, 1, 8)
    assert objective.warm_up == 4
    for name in objective.weights:
        assert bool(objective.due(name, 3)) == (name == "g/l1") and (objective.due(name, 4) or "r1" in name), name


def test_weight_0_is_not_wanted() -> None:
    objective = Objective(small_config("loss.g.content_alignment=0", "loss.d.r1=0").loss, 1, 4)
    assert objective.wants("g/l1") and objective.wants("d/r1", "dp/r1")
    assert not objective.wants("d/r1") and not objective.wants("g/content_alignment", "d/r1")
    assert "d/r1" not in objective.intervals and "g/content_alignment" not in objective.intervals
