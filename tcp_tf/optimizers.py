"""Optimizers by their registered names, in both generations of Keras, and what of them a checkpoint holds.

Keras 2 has two classes of optimizers: the newer one is Keras 3's, the older one is what tensorflow-addons is made of
(`Addons>NAME`, see docs/addons.md). The older has no `build`, and an optimizer around another takes only its like.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tcp_tf.config import OptimizerConfig

ADDONS = "Addons>"
INNER = "optimizer"  # the argument by which an optimizer takes the one that it is put around


class OptimizerError(ValueError):
    """An optimizer that cannot be made; one line that begins with the key's dotted path."""


class FusedAdam(keras.optimizers.Adam):
    """Keras 3's Adam with one kernel of TensorFlow's per variable for its dozen of small ones; the formula is the same.

    A network of many small variables spends a tenth of its step on those.
    """

    def _distributed_tf_update_step(self, distribution: Any, grads_and_vars: Any, learning_rate: Any) -> None:
        """Keras's, which calls `update_step` for every variable on every replica; what they share is computed once."""
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, tf.float32)
        beta_1, beta_2, epsilon = (tf.constant(value, tf.float32) for value in (self.beta_1, self.beta_2, self.epsilon))
        self._kernel = functools.partial(
            tf.raw_ops.ResourceApplyAdam,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
        )
        super()._distributed_tf_update_step(distribution, grads_and_vars, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As Keras calls it."""
        if self.amsgrad or variable.dtype != "float32":
            super().update_step(gradient, variable, learning_rate)
            return
        place = self._get_variable_index(variable)
        own, mean, square = (
            each.value if isinstance(each, keras.Variable) else each
            for each in (variable, self._momentums[place], self._velocities[place])
        )
        self._kernel(var=own.handle, m=mean.handle, v=square.handle, grad=tf.cast(gradient, tf.float32))


def make(settings: OptimizerConfig, key: str) -> Any:
    """The registered optimizer of this name, learning rate and arguments.

    An optimizer around another has `args: {optimizer: {name: NAME, args: {...}}}`; the inner one takes the learning
    rate.

    Args:
        key: dotted path of the settings, for messages.
    Raises:
        OptimizerError: no such optimizer in this stack, or other arguments than it takes.
    """
    return _make(settings, key, older=False)


def _make(settings: OptimizerConfig, key: str, older: bool) -> Any:
    name, arguments = settings.name, dict(settings.args)
    inner = None
    if name.startswith(ADDONS):
        _import_addons(name, key)
        inner = arguments.pop(INNER, None)
    if inner is None:
        arguments["learning_rate"] = settings.learning_rate
    else:
        arguments[INNER] = _make(_inner(inner, settings, key), f"{key}.args.{INNER}", older=True)
    optimizer = _class(name, key, older)
    try:
        return optimizer(**arguments)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OptimizerError(f"{key}.args: not what {name!r} takes: {reason[:200]}") from error


def _class(name: str, key: str, older: bool) -> Any:
    """A registered class, or one of Keras's own, whose names are taken in any case.

    Not by `keras.optimizers.get`: in Keras 2 that gives the older class, whose slots are in another order.
    """
    own = keras.optimizers.legacy if older else keras.optimizers
    names = {each.lower(): each for each in dir(own)}
    found = keras.utils.get_registered_object(name) or getattr(own, names.get(name.lower(), ""), None)
    if not isinstance(found, type):
        raise OptimizerError(f"{key}.name: no optimizer {name!r} is registered")
    # Keras 2 hands its optimizers other arguments, and has other names for their parts.
    return FusedAdam if found is keras.optimizers.Adam and hasattr(found, "_get_variable_index") else found


def _import_addons(name: str, key: str) -> None:
    """Registers tensorflow-addons' optimizers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its development has ended, which docs/addons.md says
            importlib.import_module("tensorflow_addons")
    except ImportError as error:  # not installed, or next to a Keras 3, with which it cannot be imported
        raise OptimizerError(
            f"{key}.name: {name!r} needs the addons stack (TensorFlow 2.15 with tensorflow-addons, "
            f"requirements-addons.txt); this is TensorFlow {tf.__version__}"
        ) from error


def _inner(values: Any, outer: OptimizerConfig, key: str) -> OptimizerConfig:
    path = f"{key}.args.{INNER}"
    given = values if isinstance(values, dict) and set(values) <= {"name", "args"} else {}
    name, arguments = given.get("name"), given.get("args", {})
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise OptimizerError(f"{path}: must be a group of keys with a name and perhaps args, got {values!r}")
    if "learning_rate" in arguments:
        raise OptimizerError(f"{path}.args.learning_rate: belongs to the outer one, in {key}.learning_rate")
    return OptimizerConfig.model_validate({**given, "learning_rate": outer.learning_rate})


def build(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes the optimizer's own variables, which must exist before a checkpoint is restored."""
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
    else:
        optimizer._create_all_weights(variables)


def state(optimizer: Any) -> tf.train.Checkpoint:
    """What a checkpoint holds of a built optimizer: steps taken, learning rate, then the slots.

    The layout is the one that Keras 3 gives to its own optimizers, so that both generations write the same checkpoints.
    The learning rate is on record only: a training that is continued takes the configuration's.
    """
    every = optimizer.variables if hasattr(optimizer, "build") else optimizer.weights
    rate = optimizer.learning_rate
    steps, *slots = (variable for variable in every if variable is not rate)
    recorded = tf.Variable(float(rate.numpy()), trainable=False, name="learning_rate")
    return tf.train.Checkpoint(_variables=[steps, recorded, *slots])
