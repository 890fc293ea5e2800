"""Our Adam is Keras's, in another order of rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tcp_tf import optimizers
from tcp_tf.config import OptimizerConfig


def trained(optimizer: Any, start: np.ndarray) -> np.ndarray:
    """A variable after six steps along random gradients."""
    variable = keras.Variable(start) if hasattr(keras, "Variable") else tf.Variable(start)
    optimizers.build(optimizer, [variable])

    @tf.function
    def step(gradient: tf.Tensor) -> None:
        optimizer.apply_gradients([(gradient, variable)])

    for seed in range(6):
        step(tf.random.stateless_normal(start.shape, [seed, 0]))
    return np.asarray(variable)


@pytest.mark.parametrize("arguments", [{}, {"beta_1": 0.9, "epsilon": 1e-3}, {"clipnorm": 0.1}, {"amsgrad": True}])
def test_adam_is_that_of_keras(arguments: dict[str, Any]) -> None:
    settings = OptimizerConfig(learning_rate=0.01, args=arguments)
    ours = optimizers.make(settings, "optimizer.generator")
    theirs = keras.optimizers.Adam(learning_rate=0.01, **settings.args)
    start = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weights = [trained(optimizer, start) for optimizer in (ours, theirs)]
    assert np.abs(weights[0] - start).max() > 0.02
    np.testing.assert_allclose(*weights, rtol=1e-5, atol=1e-7)
    state = [optimizers.state(optimizer)._variables for optimizer in (ours, theirs)]
    assert len(state[0]) == len(state[1])
    for one, other in zip(*state):
        if not isinstance(one, optimizers.Zeros):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not hasattr(keras, "Variable"), reason="Keras 2's Adam is its own")
def test_what_adam_does_not_keep_is_zero_in_a_checkpoint(tmp_path: Path) -> None:
    """Without a momentum there is no mean of the gradients; Keras's own Adam goes on from there, and ours from its."""
    settings = OptimizerConfig(learning_rate=0.01)
    start = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    def ours() -> Any:
        return optimizers.make(settings, "optimizer.generator")

    def theirs() -> Any:
        return keras.optimizers.Adam(learning_rate=0.01, **settings.args)

    first = ours()
    trained(first, start)
    assert not hasattr(first, "_momentums") and len(first.variables) == 3
    kept = [np.asarray(each) for each in first.variables]
    prefix = str(tmp_path / "ours")
    tf.train.Checkpoint(optimizer=optimizers.state(first)).write(prefix)
    for name, make in {"theirs": theirs, "back": ours}.items():
        optimizer = make()
        optimizers.build(optimizer, [keras.Variable(start)])
        checkpoint = tf.train.Checkpoint(optimizer=optimizers.state(optimizer))
        checkpoint.read(prefix).assert_consumed()
        iterations, _, *slots = optimizer.variables
        assert int(iterations) == kept[0] == 6
        np.testing.assert_array_equal(slots[-1], kept[2])
        if name == "theirs":
            np.testing.assert_array_equal(slots[0], np.zeros([5, 3]))
            slots[0].assign(np.ones([5, 3]))  # what Keras keeps, and ours does not read
        prefix = str(tmp_path / name)
        checkpoint.write(prefix)
