"""Our Adam is Keras's, in another order of rounding."""

from __future__ import annotations

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
    for one, other in zip(*state):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-7)
