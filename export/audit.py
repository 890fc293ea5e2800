"""Reads a SavedModel as a file, without running it, and says what a server would refuse or do badly.

    python -m export.audit DIR/3

Checked: the signatures with their dtypes and a free batch axis everywhere; no forced XLA compilation, which a server
refuses by default; no Python inside the graph; only operations of TensorFlow itself; no device named; each weight once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

PYTHON_OPS = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "NumpyFunction"}
SERVED_DTYPES = {tf.float32.as_datatype_enum, tf.string.as_datatype_enum}
INIT_OP = "__saved_model_init_op"  # written by TensorFlow beside the signatures
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
SLACK = 1.05  # room for the checkpoint's own bookkeeping

PathLike = Union[str, Path]


class AuditError(ValueError):
    """A SavedModel that a server could not serve; one line per finding."""


def check(directory: PathLike, parameters: Optional[int] = None) -> None:
    """Raises AuditError where `findings` has any."""
    found = findings(directory, parameters)
    if found:
        raise AuditError("\n".join(f"{directory}: {line}" for line in found))


def findings(directory: PathLike, parameters: Optional[int] = None) -> list[str]:
    """What is wrong with a SavedModel, one sentence each; an empty list where nothing is.

    Args:
        parameters: number of weights that should be there; default what the graph declares.
    Raises:
        AuditError: there is no SavedModel.
    """
    path = Path(directory) / "saved_model.pb"
    if not path.is_file():
        raise AuditError(f"{directory}: not a SavedModel, it has no {path.name}")
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    if [list(graph.meta_info_def.tags) for graph in saved.meta_graphs] != [["serve"]]:
        return ["must have one graph, with the tag serve"]
    graph = saved.meta_graphs[0]
    nodes = list(_all_nodes(graph.graph_def))
    operations = _operations(nodes, list(_served_nodes(graph)))
    return [*_signatures(graph), *operations, *_weights(directory, nodes, parameters)]


def _signatures(graph) -> Iterator[str]:
    if "serving_default" not in graph.signature_def:
        yield "has no serving_default"
    for name, signature in sorted(graph.signature_def.items()):
        if name == INIT_OP:
            continue
        if signature.method_name != "tensorflow/serving/predict":
            yield f"{name}: is for {signature.method_name!r}, not for prediction"
        for alias, tensor in [*signature.inputs.items(), *signature.outputs.items()]:
            sizes = [axis.size for axis in tensor.tensor_shape.dim]
            if tensor.tensor_shape.unknown_rank or not sizes:
                yield f"{name}: {alias} has no batch axis"
            elif sizes[0] != -1:
                yield f"{name}: the batch axis of {alias} is fixed at {sizes[0]}"
            if tensor.dtype not in SERVED_DTYPES:
                yield f"{name}: {alias} is {tf.dtypes.as_dtype(tensor.dtype).name}, not float32 or string"


def _operations(nodes: list, served: list) -> Iterator[str]:
    known = {name for name in dir(tf.raw_ops) if not name.startswith("_")}
    for node in nodes:
        if node.op in PYTHON_OPS:
            yield f"{node.name}: {node.op} calls Python"
        elif node.op not in known:
            yield f"{node.name}: {node.op} is not an operation of TensorFlow"
    for node in served:
        if node.device:
            yield f"{node.name}: is placed on {node.device}"
        if "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b:
            yield f"{node.name}: must be compiled by XLA, which servers refuse by default"


def _weights(directory: PathLike, nodes: list, parameters: Optional[int]) -> Iterator[str]:
    declared: dict[str, int] = {}
    dtypes: set[tf.DType] = set()
    for node in nodes:
        if node.op == "VarHandleOp":
            shape = tf.TensorShape(node.attr["shape"].shape)
            declared[node.attr["shared_name"].s.decode() or node.name] = shape.num_elements() or 0
            dtype = tf.dtypes.as_dtype(node.attr["dtype"].type)
            dtypes.add(dtype)
            if dtype not in (tf.float32, tf.bfloat16):
                yield f"{node.name}: the weight is {dtype.name}, not float32 or bfloat16"
    expected = sum(declared.values()) if parameters is None else parameters
    if sum(declared.values()) != expected:
        yield f"the graph declares {sum(declared.values())} weights, the networks have {expected}"
    reader = tf.train.load_checkpoint(str(Path(directory) / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    names = len(reader.get_tensor(OBJECT_GRAPH)) if OBJECT_GRAPH in shapes else 0
    size = sum(file.stat().st_size for file in Path(directory, "variables").glob("variables.data-*")) - names
    each = 2 if dtypes == {tf.bfloat16} else 4
    if not each * expected <= size <= SLACK * each * expected:
        yield f"the weights take {size} bytes, {expected} of {each} bytes were expected: is each there once?"


def _all_nodes(graph_def) -> Iterator:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _served_nodes(graph) -> Iterator:
    """The nodes that answering a request can reach.

    The rest saves and restores the weights: written by TensorFlow, always with a place on the first CPU.
    """
    top = {node.name: node for node in graph.graph_def.node}
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    waiting = [
        tensor.name.split(":")[0]
        for name, signature in graph.signature_def.items()
        if name != INIT_OP
        for tensor in signature.outputs.values()
    ]
    called: list[str] = []
    reached: set[str] = set()
    while waiting:  # at the top a node runs when an output asks for it
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            yield top[name]
            waiting += [wanted.lstrip("^").split(":")[0] for wanted in top[name].input]
            called += _called(top[name])
    seen: set[str] = set()
    while called:  # in a function everything runs
        name = called.pop()
        if name in functions and name not in seen:
            seen.add(name)
            for node in functions[name].node_def:
                yield node
                called += _called(node)


def _called(node) -> Iterator[str]:
    """The names of functions that a node's attributes hold: branches, loop bodies, functions of data sets."""
    for value in node.attr.values():
        yield from (function.name for function in [value.func, *value.list.func])


def main(arguments: Optional[list[str]] = None) -> int:
    """Prints the findings. Returns 0 where there are none, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="a version of an exported model")
    try:
        found = findings(parser.parse_args(arguments).directory)
    except AuditError as error:
        found = [str(error)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
