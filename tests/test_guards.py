"""What stops a training that diverges, and what only warns of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small import small_config

from tcp_tf import guards
from tcp_tf.model import TCP


def test_the_length_of_all_gradients() -> None:
    gradients = [tf.constant([[1.0, 2.0], [2.0, 4.0]]), tf.constant([6.0]), tf.constant(math.sqrt(3.0))]
    assert float(guards.norm(gradients)) == pytest.approx(8.0)
    for bad in (math.nan, math.inf, -math.inf):
        assert not math.isfinite(float(guards.norm([*gradients, tf.constant([0.0, bad])])))


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "graph"])
def test_what_is_not_finite_is_named(traced: bool) -> None:
    variable = tf.Variable(0.0)

    def change(values: dict[str, tf.Tensor]) -> None:
        with tf.control_dependencies([guards.assert_finite(values)]):
            variable.assign_add(1.0)

    run = tf.function(change) if traced else change
    run({"g/l1": tf.constant(1.0), "d/r1": tf.constant(0.0), "d/gan_real": tf.constant(2.0)})
    assert float(variable) == 1.0
    values = {"g/l1": tf.constant(math.nan), "d/r1": tf.constant(-math.inf), "d/gan_real": tf.constant(2.0)}
    with pytest.raises(tf.errors.InvalidArgumentError) as refused:
        run(values)
    assert guards.not_finite(refused.value) == "d/r1, g/l1"
    assert float(variable) == 1.0
    assert guards.not_finite(tf.errors.InvalidArgumentError(None, None, "another mistake")) is None


def everything(model: TCP, strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    """Every variable of a model and its optimizers, each replica's own copy."""
    variables = [*model.weights, model.step, *model.optimizer.variables, *model.discriminator_optimizer.variables]
    copies: list[np.ndarray] = []
    for variable in variables:
        value: Any = getattr(variable, "_value", variable)  # Keras 3 wraps TensorFlow's variable
        copies += [copy.numpy() for copy in strategy.experimental_local_results(value)]
    return copies


@pytest.mark.slow
def test_a_step_that_one_replica_spoils_changes_nothing_on_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both optimizers, averages and counters of a traced step on two replicas; gradients that are quick to trace."""

    def gradients(model: TCP, batch: dict[str, tf.Tensor]) -> tuple[dict[str, list[tf.Tensor]], dict[str, tf.Tensor]]:
        sides = {"g": model.generator_side, "d": model.discriminator_side}
        found = {side: [tf.ones(v.shape) for v in variables] for side, variables in sides.items()}
        found["d"][7] *= tf.reduce_mean(batch["image"])
        return found, {"g/l1": tf.ones([2])}

    monkeypatch.setattr(TCP, "gradients", gradients)
    # Without collectives: once aborted, and by another shape, they are spoilt for the other tests of this process.
    devices = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=devices)
    with strategy.scope():
        model = TCP(small_config())
        model.compile()

    def batches(second: float) -> Any:
        images = [tf.ones([2, 16, 16, 3]), second * tf.ones([2, 16, 16, 3])]
        return strategy.experimental_distribute_values_from_function(
            lambda context: {"image": images[context.replica_id_in_sync_group]}
        )

    @tf.function
    def step(given: Any) -> Any:
        return strategy.run(model.train_step, args=(given,))

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # which takes long
    try:
        begun = everything(model, strategy)
        lengths = strategy.experimental_local_results(step(batches(1.0))["gradients/d"])
        expected = 2 * math.sqrt(sum(math.prod(variable.shape) for variable in model.discriminator_side))
        assert float(lengths[0]) == float(lengths[1]) == pytest.approx(expected)
        before = everything(model, strategy)
        assert len(before) > 500 and sum(not np.array_equal(*pair) for pair in zip(begun, before)) > 0.8 * len(before)
        for bad in (math.nan, math.inf):
            with pytest.raises(tf.errors.InvalidArgumentError) as refused:
                step(batches(bad))
            assert guards.not_finite(refused.value) == "gradients/d"
            assert all(np.array_equal(*pair) for pair in zip(before, everything(model, strategy)))
        step(batches(1.0))
        assert model.step.numpy() == 2
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


# ---- bands

HEALTHY = {
    "codes/content_variance": 0.05,
    "codes/style_variance": 1e-4,
    "balance/d": 0.5,
    "balance/dp": 0.6,
    "gradients/g": 2.0,
    "gradients/d": 3.0,
}


def bands() -> guards.Bands:
    return guards.Bands({"content": 8, "style": 2048}, consistency_start=100)


def test_a_healthy_training_is_not_disturbed() -> None:
    watched = bands()
    assert not any(watched.judge({**HEALTHY, "gradients/g": 2.0 + step % 7}, step) for step in range(200))
    assert watched.judge({}, 300) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"codes/content_variance": 0.9e-3}, ["codes/content_variance is 0.0009", "content codes", "collapsed"]),
        ({"codes/style_variance": 3e-6}, ["codes/style_variance is 3e-06", "style codes", "consistency_start_kimg"]),
        ({"balance/d": 0.01}, ["balance/d is 0.01", "image discriminator is never wrong", "raise loss.r1_gamma"]),
        ({"balance/dp": 1.2}, ["balance/dp is 1.2", "patch discriminator", "guessing (0.69)", "lower loss.patch_r1"]),
        ({"gradients/d": 400.0}, ["gradients/d is 4e+02", "usually 3", "diverge"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_leaves_its_band_is_told_once(changed: dict, words: list) -> None:
    watched = bands()
    for step in range(101, 111):
        assert watched.judge(HEALTHY, step) == []
    (line,) = watched.judge({**HEALTHY, **changed}, 111)
    assert all(word in line for word in words) and "\n" not in line, line
    assert watched.judge({**HEALTHY, **changed}, 112) == []
    assert watched.judge(HEALTHY, 113) == []
    assert len(watched.judge({**HEALTHY, **changed}, 114)) == 1


def test_codes_may_be_alike_before_consistency_begins() -> None:
    flat = {**HEALTHY, "codes/content_variance": 0.0}
    watched = bands()
    assert watched.judge(flat, 100) == [] and len(watched.judge(flat, 101)) == 1
    assert guards.Bands({"content": 8, "style": 2048}, consistency_start=None).judge(flat, 10**6) == []


def test_the_balance_of_a_draw() -> None:
    even = {name: guards.DRAW for name in ("d/gan_real", "d/gan_swap", "dp/real", "dp/fake")}
    assert guards.balance(even) == {"balance/d": pytest.approx(0.693147), "balance/dp": pytest.approx(0.693147)}
    assert guards.balance({"d/gan_real": 1.0, "dp/real": 0.2, "dp/fake": 0.4}) == {"balance/dp": pytest.approx(0.3)}
