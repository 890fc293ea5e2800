"""The networks of an exported SavedModel, out of their served functions again.

A served model has functions but no names for its weights that would be unique. What identifies a weight is the order
in which a function first reads it: `encode` reads all of the encoder's, `decode` all of the generator's. The same
functions are traced here without weights, and the n-th weight read there becomes the n-th read here; kind and shape of
each must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from tcp_tf import config as configuration
from tcp_tf.autoencoder import AutoEncoder
from tcp_tf.config import Config

GRAPH = "saved_model.pb"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
CONFIG = Path("assets.extra") / "config.yaml"

PathLike = Union[str, Path]


class ExportedModelError(ValueError):
    """A SavedModel whose networks cannot be read; one line that names it and says why."""


def newest_version(path: PathLike) -> Path:
    """A SavedModel's directory: `path` itself, or its subdirectory with the highest number.

    Raises:
        ExportedModelError: there is none.
    """
    base = Path(path)
    if (base / GRAPH).is_file():
        return base
    versions = [entry for entry in base.iterdir() if entry.name.isdecimal()] if base.is_dir() else []
    versions = [entry for entry in versions if (entry / GRAPH).is_file()]
    if not versions:
        raise ExportedModelError(f"{path}: not an exported model, neither it nor a numbered folder in it has a {GRAPH}")
    return max(versions, key=lambda entry: int(entry.name))


def load_autoencoder(path: PathLike, precision: str = "float32") -> tuple[AutoEncoder, Config]:
    """The encoder and generator of an export, for use alone.

    Args:
        path: what `python -m export` wrote: the model's base directory (the newest version is taken) or a version.
        precision: as of `AutoEncoder.for_use`. The weights are as the export has them, rounded where it computes in
            less.
    Raises:
        ExportedModelError: it is not such an export, or of a different network or an older version of this project.
        ConfigError: its configuration is not valid.
    """
    directory = newest_version(path)
    if not (directory / CONFIG).is_file():
        raise ExportedModelError(f"{directory}: not exported by this project, it has no {CONFIG}")
    config = configuration.load(directory / CONFIG)
    autoencoder = AutoEncoder.for_use(config, precision)
    try:
        graph = saved_model_pb2.SavedModel.FromString((directory / GRAPH).read_bytes()).meta_graphs[0]
        objects = graph.object_graph_def
        reader = tf.train.load_checkpoint(str(directory / "variables" / "variables"))
        keys = _checkpoint_keys(objects, reader)
    except Exception as error:  # damaged files end in errors of protobuf, TensorFlow and Python
        raise ExportedModelError(f"{directory}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    side = config.data.resolution
    images = tf.TensorSpec([1, side, side, 3])
    content = tf.TensorSpec([1, side // autoencoder.stride, side // autoencoder.stride, config.model.content_dim])
    style = tf.TensorSpec([1, config.model.style_dim])
    functions: list[tuple[str, Callable[..., Any], list[tf.TensorSpec]]] = [
        ("encode", autoencoder.encode, [images]),
        ("decode", autoencoder.decode, [content, style]),
    ]
    for (name, function, inputs), weights in zip(functions, autoencoder.weights):
        ours, stored = _reading_order(weights, function, inputs), _bound(objects, name)
        described = [(_kind(weight.name), tuple(weight.shape)) for weight in ours]
        variables = [objects.nodes[node].variable for node in stored]
        found = [(_kind(variable.name), tuple(axis.size for axis in variable.shape.dim)) for variable in variables]
        if found == [(kind.removeprefix("folded_"), shape) for kind, shape in described]:
            raise ExportedModelError(f"{directory}: exported by an older version of this project; export it again")
        if len(ours) != len(weights) or described != found:
            raise ExportedModelError(f"{directory}: {name!r} does not hold the networks of its {CONFIG.name}")
        for weight, node in zip(ours, stored):
            weight.assign(tf.cast(reader.get_tensor(keys[node]), weight.dtype))
    return autoencoder, config


def _reading_order(weights: Sequence[Any], function: Callable[..., Any], inputs: list[tf.TensorSpec]) -> list[Any]:
    """The weights in the order in which the function first reads them."""
    traced = tf.function(function, autograph=False).get_concrete_function(*inputs)
    by_handle = {id(_variable(weight).handle): weight for weight in weights}
    return [by_handle[id(handle)] for handle in traced.captured_inputs if id(handle) in by_handle]


def _variable(weight: Any) -> tf.Variable:
    """Keras 3 wraps TensorFlow's variables, Keras 2 does not."""
    return weight if isinstance(weight, tf.Variable) else weight.value


def _bound(graph: Any, function: str) -> list[int]:
    """The nodes of all weights that a served function reads, in order."""
    for child in graph.nodes[0].children:
        if child.local_name == function and graph.nodes[child.node_id].function.concrete_functions:
            concrete = graph.concrete_functions[graph.nodes[child.node_id].function.concrete_functions[0]]
            return [node for node in concrete.bound_inputs if graph.nodes[node].WhichOneof("kind") == "variable"]
    return []


def _checkpoint_keys(graph: Any, reader: Any) -> dict[int, str]:
    """The checkpoint's key of every variable's node: both graphs are walked together, by the names of the children."""
    written = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH))
    keys: dict[int, str] = {}
    seen, waiting = {0}, [(0, 0)]
    while waiting:
        node, twin = waiting.pop()
        for attribute in written.nodes[twin].attributes:
            keys[node] = attribute.checkpoint_key
        twins = {child.local_name: child.node_id for child in written.nodes[twin].children}
        for child in graph.nodes[node].children:
            if child.node_id not in seen and child.local_name in twins:
                seen.add(child.node_id)
                waiting.append((child.node_id, twins[child.local_name]))
    return keys


def _kind(name: str) -> str:
    return name.split("/")[-1].split(":")[0]
