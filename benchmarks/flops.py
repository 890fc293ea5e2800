"""Floating point operations of a traced function: its convolutions and matrix products, counted from their shapes.

A multiplication and an addition count as two operations. Element-wise work is not counted, since no machine is bound
by its arithmetic. Only nodes that the outputs or the side effects depend on count, as only those run. Padding counts
like any other value, and a strided gradient like the convolution that it belongs to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import tensorflow as tf

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
CONDITIONS = ("If", "StatelessIf")
LOOPS = ("While", "StatelessWhile")


def count(function: Any) -> dict[str, int]:
    """FLOPs of one call of a `tf.types.experimental.ConcreteFunction`, by kind.

    Of a `tf.cond` the costlier branch counts, and of a loop as many turns as its `maximum_iterations` allow.

    Returns:
        {"convolution": ..., "depthwise": ..., "matmul": ...}; a kind that does not occur is 0.
    Raises:
        ValueError: a shape is not known before the function runs, or how often a loop with a convolution or matrix
            product turns at most.
    """
    found = _of_graph(function.graph)
    return {kind: found[kind] for kind in ("convolution", "depthwise", "matmul")}


def total(function: Any) -> int:
    """FLOPs of one call of a concrete function, all kinds together; see `count`."""
    return sum(count(function).values())


def _of_graph(graph: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for operation in needed([*(tensor.op for tensor in graph.outputs), *graph.control_outputs]):
        found.update(_of_operation(operation))
    return found


def needed(operations: Iterable[tf.Operation]) -> Iterator[tf.Operation]:
    """These operations of a graph and all that they wait for, by data or by control, each once."""
    waiting = list(operations)
    seen = set(waiting)
    while waiting:
        operation = waiting.pop()
        yield operation
        for before in [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]:
            if before not in seen:
                seen.add(before)
                waiting.append(before)


def _of_operation(operation: tf.Operation) -> Counter[str]:
    if operation.type in CALLS:
        return _of_graph(_body(operation, "f"))
    if operation.type in CONDITIONS:
        branches = [_of_graph(_body(operation, name)) for name in ("then_branch", "else_branch")]
        return max(branches, key=lambda branch: sum(branch.values()))
    if operation.type in LOOPS:
        turn = _of_graph(_body(operation, "body"))
        most = tf.get_static_value(operation.inputs[1])  # the second of two counters of TensorFlow's own, -1 for any
        if turn and (most is None or most < 0):
            inside = sum(turn.values())
            raise ValueError(f"{operation.name}: {inside:,} FLOPs in a loop of unknown length cannot be counted")
        return Counter({kind: int(most) * found for kind, found in turn.items()})
    if operation.type in RULES:
        kind, rule = RULES[operation.type]
        return Counter({kind: 2 * rule(operation)})
    return Counter()


def _body(operation: tf.Operation, attribute: str) -> Any:
    # There is no public way from a call to the graph that it calls; the same one since TensorFlow 2.15.
    return operation.graph._get_function(operation.get_attr(attribute).name).graph


def _shape(tensor: tf.Tensor) -> list[int]:
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{tensor.name}: shape {tensor.shape} is not known before the function runs")
    return list(tensor.shape)


# Multiplications of each kind of operation. Kernels are [height, width, input channels of a group, output channels],
# those of depthwise convolutions [height, width, channels, multiplier].


def _convolution(operation: tf.Operation) -> int:
    return math.prod(_shape(operation.outputs[0])) * math.prod(_shape(operation.inputs[1])[:3])


def _convolution_input_gradient(operation: tf.Operation) -> int:
    _, kernel, pulls = operation.inputs
    return math.prod(_shape(pulls)) * math.prod(_shape(kernel)[:3])


def _convolution_kernel_gradient(operation: tf.Operation) -> int:
    return math.prod(_shape(operation.inputs[2])) * math.prod(_shape(operation.outputs[0])[:3])


def _depthwise(operation: tf.Operation) -> int:
    return math.prod(_shape(operation.outputs[0])) * math.prod(_shape(operation.inputs[1])[:2])


def _depthwise_input_gradient(operation: tf.Operation) -> int:
    _, kernel, pulls = operation.inputs
    return math.prod(_shape(pulls)) * math.prod(_shape(kernel)[:2])


def _depthwise_kernel_gradient(operation: tf.Operation) -> int:
    return math.prod(_shape(operation.inputs[2])) * math.prod(_shape(operation.outputs[0])[:2])


def _matmul(operation: tf.Operation) -> int:
    left = _shape(operation.inputs[0])
    return math.prod(_shape(operation.outputs[0])) * left[0 if operation.get_attr("transpose_a") else 1]


def _batch_matmul(operation: tf.Operation) -> int:
    left = _shape(operation.inputs[0])
    return math.prod(_shape(operation.outputs[0])) * left[-2 if operation.get_attr("adj_x") else -1]


def _einsum(operation: tf.Operation) -> int:
    """Every element of the output sums over the labels that it has not; one operand alone is no product."""
    if len(operation.inputs) < 2:
        return 0
    terms, _, result = operation.get_attr("equation").decode().partition("->")
    summed: dict[str, int] = {}
    for labels, operand in zip(terms.split(","), operation.inputs):
        before, ellipsis, after = labels.partition("...")
        shape = _shape(operand)
        sizes = list(zip(before, shape)) + (list(zip(reversed(after), reversed(shape))) if ellipsis else [])
        summed.update({label: size for label, size in sizes if label not in result})
    return math.prod(_shape(operation.outputs[0])) * math.prod(summed.values())


RULES: dict[str, tuple[str, Callable[[tf.Operation], int]]] = {
    "Conv2D": ("convolution", _convolution),
    "Conv2DBackpropInput": ("convolution", _convolution_input_gradient),
    "Conv2DBackpropFilter": ("convolution", _convolution_kernel_gradient),
    "DepthwiseConv2dNative": ("depthwise", _depthwise),
    "DepthwiseConv2dNativeBackpropInput": ("depthwise", _depthwise_input_gradient),
    "DepthwiseConv2dNativeBackpropFilter": ("depthwise", _depthwise_kernel_gradient),
    "MatMul": ("matmul", _matmul),
    "BatchMatMul": ("matmul", _batch_matmul),
    "BatchMatMulV2": ("matmul", _batch_matmul),
    "BatchMatMulV3": ("matmul", _batch_matmul),
    "Einsum": ("matmul", _einsum),
}
