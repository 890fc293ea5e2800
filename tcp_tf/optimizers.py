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
    """Keras 3's Adam with few kernels of TensorFlow's per variable for its dozen of small ones; the same formula.

    A network of many small variables spends a tenth of its step on those. Without a momentum (`beta_1` of 0) the mean
    of the gradients is the gradient, so that none is kept.
    """

    def build(self, var_list: Sequence[Any]) -> None:
        """As Keras calls it."""
        self.with_momentum = self.beta_1 != 0 or self.amsgrad or any(each.dtype != "float32" for each in var_list)
        if self.with_momentum:
            super().build(var_list)
        else:
            keras.optimizers.Optimizer.build(self, var_list)
            self._velocities = self.add_optimizer_variables(var_list, "velocity")

    def checkpointed(self, slots: Sequence[Any]) -> list[Any]:
        """These slots of Keras's, and `Zeros` in the places of those that are not kept."""
        squares = set() if self.with_momentum else {id(square) for square in self._velocities}
        return [one for slot in slots for one in ([Zeros(slot.shape), slot] if id(slot) in squares else [slot])]

    def _distributed_tf_update_step(self, distribution: Any, grads_and_vars: Any, learning_rate: Any) -> None:
        """Keras's, which calls `update_step` for every variable on every replica; what they share is computed once."""
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, tf.float32)
        beta_1, beta_2, epsilon = (tf.constant(value, tf.float32) for value in (self.beta_1, self.beta_2, self.epsilon))
        rate = tf.cast(learning_rate, tf.float32)
        if self.with_momentum:
            self._kernel = functools.partial(
                tf.raw_ops.ResourceApplyAdam,
                beta1_power=beta_1**step,
                beta2_power=beta_2**step,
                lr=rate,
                beta1=beta_1,
                beta2=beta_2,
                epsilon=epsilon,
            )
        else:
            share = tf.sqrt(1.0 - beta_2)
            rate *= tf.sqrt(1.0 - beta_2**step) / share
            self._kernel = functools.partial(_without_momentum, beta_2, share, rate, epsilon)
        super()._distributed_tf_update_step(distribution, grads_and_vars, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As Keras calls it."""
        if self.amsgrad or variable.dtype != "float32":
            super().update_step(gradient, variable, learning_rate)
            return
        place = self._get_variable_index(variable)
        kept = {"var": variable, "v": self._velocities[place]}
        if self.with_momentum:
            kept["m"] = self._momentums[place]
        handles = {name: in_place(each).handle for name, each in kept.items()}
        self._kernel(**handles, grad=tf.cast(gradient, tf.float32))


def _without_momentum(
    beta_2: tf.Tensor, share: tf.Tensor, rate: tf.Tensor, epsilon: tf.Tensor, *, var: Any, v: Any, grad: tf.Tensor
) -> None:
    """Adam's step with `beta_1` of 0: Adagrad's, whose sum of squares is first made smaller by `beta_2`.

    Args:
        share: sqrt(1 - beta_2), with which a gradient enters the sum.
        rate: the step's, divided by that.
        var, v: resources.
    """
    before = tf.raw_ops.ReadVariableOp(resource=v, dtype=tf.float32)
    tf.raw_ops.AssignSubVariableOp(resource=v, value=(1.0 - beta_2) * before)  # in place, see `in_place`
    tf.raw_ops.ResourceApplyAdagradV2(var=var, accum=v, lr=rate, epsilon=epsilon, grad=share * grad)


def in_place(variable: Any) -> tf.Variable:
    """TensorFlow's own variable, what is added to which is added in the memory that it has.

    Keras 3's take another tensor's instead: on a CPU, weights would come to lie here and there among what lasts for a
    part of a step, which would find less room in one piece.
    """
    return variable if isinstance(variable, tf.Variable) else variable.value


def subtract(variable: Any, factor: tf.Tensor, values: tf.Tensor) -> None:
    """`variable -= factor * values`, by one kernel."""
    tf.raw_ops.ResourceApplyGradientDescent(var=in_place(variable).handle, alpha=factor, delta=values)


class Zeros(tf.Module):
    """Stands in a checkpoint for a variable that is not kept: written as zeros, and not read."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": tf.zeros(self.shape)}

    def _restore_from_tensors(self, restored_tensors: dict[str, tf.Tensor]) -> Any:
        return tf.no_op()


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


def variables(optimizer: Any) -> list[Any]:
    """What a built optimizer keeps: steps taken, learning rate, slots."""
    return list(optimizer.variables if hasattr(optimizer, "build") else optimizer.weights)


def state(optimizer: Any) -> tf.train.Checkpoint:
    """What a checkpoint holds of a built optimizer: steps taken, learning rate, then the slots.

    The layout is the one that Keras 3 gives to its own optimizers, so that both generations write the same checkpoints.
    The learning rate is on record only: a training that is continued takes the configuration's.
    """
    rate = optimizer.learning_rate
    steps, *slots = (variable for variable in variables(optimizer) if variable is not rate)
    if isinstance(optimizer, FusedAdam):
        slots = optimizer.checkpointed(slots)
    recorded = tf.Variable(float(rate.numpy()), trainable=False, name="learning_rate")
    return tf.train.Checkpoint(_variables=[steps, recorded, *slots])
