"""The emulator's model: a SavedModel in a Session, and the rules by which Predict judges a request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.status import StatusError, invalid

DEFAULT_SIGNATURE = "serving_default"
_PYTHONS_PREFIX = "Graph execution error:\n\n"
MAX_ELEMENTS = 1 << 24  # of one tensor; the emulator's own bound: a proto of a few bytes may claim any shape

Arrays = dict[str, np.ndarray]
Key = tuple[str, tuple[str, ...]]  # a signature and the outputs that are asked for: what the server batches by
Run = Callable[[Key, Arrays], Arrays]


def to_array(alias: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The value of a tensor in a request; strings become an object array of bytes.

    Raises:
        StatusError: INVALID_ARGUMENT for a tensor that contradicts itself, as the server says it.
    """
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0 or math.prod(sizes) > MAX_ELEMENTS:
        invalid(f"tensor parsing error: {alias}")
    try:
        return tf.make_ndarray(proto).reshape(sizes)
    except (KeyError, TypeError, ValueError):  # also a type that NumPy does not have
        return invalid(f"tensor parsing error: {alias}")


def pick_outputs(outputs: Mapping[str, object], wanted: Sequence[str]) -> tuple[str, ...]:
    """The aliases to compute: those of the request's output_filter, or all."""
    for place, alias in enumerate(wanted):
        if alias not in outputs:
            expected = ",".join(sorted(outputs))
            invalid(f"output tensor alias not found in signature: {alias} Outputs expected to be in: {{{expected}}}.")
        if alias in wanted[:place]:
            invalid(f"duplicate output tensor alias: {alias}")
    return tuple(wanted) or tuple(sorted(outputs))


class ServedModel:
    """One version of a SavedModel. `run` may be called from many threads."""

    def __init__(self, path: Path, version: int, threads: int = 2):
        self.version = version
        self._graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        with self._graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        self.signatures = dict(meta_graph.signature_def)

    def run(self, key: Key, inputs: Arrays) -> Arrays:
        """Runs a signature once, without batching.

        The arrays go to the C++ Session as they are: `Session.run` would convert them and judge their shapes first,
        in Python, which the server does not.

        Raises:
            StatusError: what the runtime objects to, with its code.
        """
        signature, outputs = self.signatures[key[0]], key[1]
        feeds = {self._tensor(signature.inputs[alias]).ref(): value for alias, value in inputs.items()}
        fetches = [self._tensor(signature.outputs[alias]) for alias in outputs]
        try:
            results = self._session._do_run(None, [], fetches, feeds, None, None)
        except tf.errors.OpError as error:
            raise StatusError(_name(error.error_code), str(error.message).replace(_PYTHONS_PREFIX, "")) from None
        except ValueError as error:  # a string or an object that is no tensor: the server's parser refuses it before
            raise StatusError("INVALID_ARGUMENT", f"tensor parsing error: {error}") from None
        return dict(zip(outputs, results))

    def _tensor(self, info: meta_graph_pb2.TensorInfo) -> tf.Tensor:
        return self._graph.get_tensor_by_name(info.name)


def _name(code: int) -> str:
    return next(name for name, value in vars(tf.errors).items() if name.isupper() and value == code)


def predict(model: ServedModel, run: Run, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answers a Predict request: checks the names of signature, inputs and outputs, then runs it by `run`.

    Raises:
        StatusError: with the server's code and nearly its words.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise StatusError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    signature = model.signatures[name]
    sent, known = set(request.inputs), set(signature.inputs)
    if len(sent) != len(known):
        invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({{{','.join(sorted(sent))}}}) != "
            f"len({{{','.join(sorted(known))}}}). Sent extra: {{{','.join(sorted(sent - known))}}}. "
            f"Missing but required: {{{','.join(sorted(known - sent))}}}."
        )
    for alias in sorted(known - sent):
        invalid(f"Signature input alias: {alias} not found in request and no default value provided.")
    inputs = {alias: to_array(alias, request.inputs[alias]) for alias in known}
    key = name, pick_outputs(signature.outputs, list(request.output_filter))
    response = predict_pb2.PredictResponse(
        model_spec=model_pb2.ModelSpec(name=request.model_spec.name, signature_name=name)
    )
    response.model_spec.version.value = model.version
    for alias, value in run(key, inputs).items():
        response.outputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return response
