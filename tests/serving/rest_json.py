"""JSON to tensors and back by the rules of the server's REST interface."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.status import StatusError, invalid

_EXACT_FLOAT = (1 << 24) - 1  # the largest whole number that the server writes into a float32
_FLOAT_MAX = float(np.finfo(np.float32).max)

Infos = Mapping[str, meta_graph_pb2.TensorInfo]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _shape(value: Any) -> list[int]:
    """The shape of nested lists, read along their first elements."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _leaf(value: Any, dtype: tf.DType) -> Any:
    """One element of a tensor, or INVALID_ARGUMENT."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if dtype == tf.string and isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if dtype == tf.string and isinstance(value, dict):
        if not _is_base64(value):
            invalid(f"JSON Value: {_short(value)} not formatted correctly for base64 data")
        text = "".join(value["b64"].split())
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4) if not text.endswith("=") else text, validate=True)
        except (binascii.Error, ValueError):
            invalid("Unable to base64 decode")
    if dtype == tf.float32 and number:
        too_large = abs(value) > _EXACT_FLOAT if isinstance(value, int) else _FLOAT_MAX < abs(value) < float("inf")
        if too_large:
            invalid(f"Cannot convert JSON value: {_short(value)} to float without loss of precision.")
        return value
    if dtype in (tf.int32, tf.int64) and isinstance(value, int) and not isinstance(value, bool):
        return value
    return invalid(f"JSON Value: {_short(value)} is not of expected type: {dtype.name}")


def _fill(value: Any, level: int, shape: list[int], dtype: tf.DType, out: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            invalid(
                f"JSON Value: {_short(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        out.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
    for element in value:
        _fill(element, level + 1, shape, dtype, out)


def _tensor(value: Any, info: meta_graph_pb2.TensorInfo) -> np.ndarray:
    dtype, shape = tf.as_dtype(info.dtype), _shape(value)
    out: list[Any] = []
    _fill(value, 0, shape, dtype, out)
    array = np.empty(len(out), object if dtype == tf.string else dtype.as_numpy_dtype)
    array[:] = out
    return array.reshape(shape)


def _rows(instances: list[Any], infos: Infos) -> dict[str, np.ndarray]:
    """Row format: every instance is one example, with exactly the signature's inputs, all of one shape."""
    if not isinstance(instances[0], dict) and len(infos) > 1:
        invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = isinstance(instances[0], dict) and not _is_base64(instances[0])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in infos}
    for place, instance in enumerate(instances):
        if (isinstance(instance, dict) and not _is_base64(instance)) != named:
            invalid(
                f"Expecting {'object but got list' if named else 'value/list but got object'} at item {place} of "
                "input list"
            )
        items = instance if named else {next(iter(infos)): instance}
        for name, value in items.items():
            if name not in infos:
                invalid(
                    f"Failed to process element: {place} key: {name} of 'instances' list. Error: JSON object: does "
                    f"not have named input: {name}"
                )
            tensor = _tensor(value, infos[name])
            first = columns[name][0].shape if columns[name] else tensor.shape
            if tensor.shape != first:
                invalid(
                    f"Failed to process element: {place} key: {name} of 'instances' list. Error: Expecting shape "
                    f"{list(first)} but got: {list(tensor.shape)}"
                )
            columns[name].append(tensor)
        if set(items) != set(infos):
            invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: {_short(instance)} keys must "
                f"be equal to: {','.join(sorted(infos))}"
            )
    return {name: np.stack(tensors) for name, tensors in columns.items()}


def _columns(inputs: Any, infos: Infos) -> dict[str, np.ndarray]:
    """Columnar format: whole tensors by name; names that the signature does not know are passed over."""
    if not isinstance(inputs, dict) or _is_base64(inputs):
        if len(infos) > 1:
            invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        return {name: _tensor(inputs, info) for name, info in infos.items()}
    for name in infos:
        if name not in inputs:
            invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(inputs[name], info) for name, info in infos.items()}


def parse(body: bytes, infos_of: Callable[[str], Infos]) -> tuple[predict_pb2.PredictRequest, bool]:
    """The request that a body means, and whether it came in rows.

    Args:
        infos_of: gives the inputs of a signature by its name ("" is the default one).
    """
    if not body:
        invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        invalid(f"JSON Parse error: {error}")
    if not isinstance(document, dict):
        invalid(f"JSON Value: {_short(document)} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        invalid("JSON Value not formatted correctly. 'signature_name' key must be a string value.")
    infos = infos_of(name)
    if "instances" in document and "inputs" in document:
        invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        if not isinstance(document["instances"], list):
            invalid("Excepting 'instances' to be an list/array")
        if not document["instances"]:
            invalid("No values in 'instances' array")
        tensors = _rows(document["instances"], infos)
    elif "inputs" in document:
        tensors = _columns(document["inputs"], infos)
    else:
        invalid("Missing 'inputs' or 'instances' key")
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = name
    for alias, value in tensors.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value, dtype=infos[alias].dtype, shape=value.shape))
    return request, "instances" in document


def _written(alias: str, value: np.ndarray) -> Any:
    """A tensor as JSON: strings in base64 only under an alias that ends in `_bytes`."""
    if value.dtype != object:
        if value.dtype == np.float16 or value.dtype.name == "bfloat16":
            invalid(f"Failed to write JSON value for tensor type: {value.dtype.name}")
        return value.tolist()
    if value.ndim:
        return [
            _written(alias, element if isinstance(element, np.ndarray) else np.array(element, object))
            for element in value
        ]
    data = value.item()
    if alias.endswith("_bytes"):
        return {"b64": base64.b64encode(data).decode("ascii")}
    return data.decode("utf-8", "replace")


def answer(response: predict_pb2.PredictResponse, rows: bool) -> bytes:
    """The body of a successful answer: `predictions` for rows, `outputs` for columns."""
    outputs = {alias: tf.make_ndarray(proto) for alias, proto in sorted(response.outputs.items())}
    if rows and len({value.shape[:1] for value in outputs.values()}) != 1:
        raise StatusError("INVALID_ARGUMENT", "Tensors have inconsistent batch size")
    written = {alias: _written(alias, value) for alias, value in outputs.items()}
    if len(written) == 1:
        (content,) = written.values()
    elif rows:
        count = len(next(iter(outputs.values())))
        content = [{alias: value[place] for alias, value in written.items()} for place in range(count)]
    else:
        content = written
    return json.dumps({"predictions" if rows else "outputs": content}).encode()
