"""ONNX's and onnxruntime's quantised operators: each as a float one between QDQ nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends.onnx_integers.graph import attributes_of, called, inputs_of
from tvm_compress.frontends.onnx_integers.qdq_nodes import QdqGraph

__all__ = [
    "binary",
    "concat",
    "convolution",
    "dequantize_linear",
    "gemm",
    "integer",
    "product",
    "quantize_linear",
    "softmax",
    "unary",
]


def quantize_linear(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Check the numbers of QuantizeLinear."""
    tensor, scale, zero = inputs_of(node, 3)
    _unblocked(node)
    kind = attributes_of(node).get("output_dtype", 0)
    axis = attributes_of(node).get("axis", 1)
    rest = attributes_of(node, "axis", "block_size")
    graph.quantized(node, tensor, scale, zero, axis=axis, kind=kind, **rest)


def dequantize_linear(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Check the numbers of DequantizeLinear."""
    tensor, scale, zero = inputs_of(node, 3)
    _unblocked(node)
    rest = attributes_of(node, "axis", "block_size")
    axis, output = attributes_of(node).get("axis", 1), node.output[0]
    graph.dequantized(node, tensor, scale, zero, axis=axis, output=output, bias=True, **rest)


def _unblocked(node: onnx.NodeProto) -> None:
    if attributes_of(node).get("block_size", 0):
        raise UnsupportedError(
            f"{called(node)} has one scale for each block of "
            f"{attributes_of(node)['block_size']} elements; expected one scale, or one a channel: "
            "quantise the network by tensor or by channel."
        )


def _quantized(
    graph: QdqGraph,
    node: onnx.NodeProto,
    operator: str,
    inputs: list[str],
    scale: str,
    zero: str,
    attributes: Mapping[str, Any] | None = None,
    axis: int | None = None,
) -> None:
    """Add a float operator and the QuantizeLinear that gives the output of ``node``."""
    output = graph.fresh(f"{node.output[0]}_float")
    graph.node(operator, inputs, output, **(attributes or {}))
    graph.quantized(node, output, scale, zero, axis=axis)


def convolution(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Rewrite QLinearConv."""
    x, xs, xz, w, ws, wz, ys, yz, bias = inputs_of(node, 9)
    inputs = [graph.dequantized(node, x, xs, xz), graph.dequantized(node, w, ws, wz, axis=0)]
    if bias:
        inputs.append(graph.dequantized(node, bias, graph.product(bias, xs, ws), axis=0, bias=True))
    _quantized(graph, node, "Conv", inputs, ys, yz, attributes_of(node))


def product(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Rewrite QLinearMatMul: scales of a and y may be by row, those of b by column."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs_of(node, 8)
    inputs = [
        graph.dequantized(node, a, a_scale, a_zero, axis=-2),
        graph.dequantized(node, b, b_scale, b_zero, axis=-1),
    ]
    _quantized(graph, node, "MatMul", inputs, y_scale, y_zero, axis=-2)


def gemm(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Rewrite onnxruntime's QGemm."""
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = inputs_of(node, 9)
    rest = attributes_of(node)
    alpha = np.float32(rest.get("alpha", 1.0))
    inputs = [
        graph.dequantized(node, a, a_scale, a_zero),
        graph.dequantized(node, b, b_scale, b_zero, axis=0 if rest.get("transB", 0) else 1),
    ]
    if c:  # of alpha times both scales, and added as it is
        scale = graph.product(c, a_scale, b_scale)
        if alpha != 1:
            scale = graph.product(c, scale, graph.value(np.asarray(alpha), f"{c}_alpha"))
        inputs.append(graph.dequantized(node, c, scale, axis=-1, bias=True))
    if y_scale:
        _quantized(graph, node, "Gemm", inputs, y_scale, y_zero, rest)
    else:
        graph.node("Gemm", inputs, node.output[0], **rest)


def binary(operator: str) -> Callable[[QdqGraph, onnx.NodeProto], None]:
    """Give the rewrite of an operator of two quantised tensors."""

    def rewrite(graph: QdqGraph, node: onnx.NodeProto) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs_of(node, 8)
        inputs = [
            graph.dequantized(node, a, a_scale, a_zero),
            graph.dequantized(node, b, b_scale, b_zero),
        ]
        _quantized(graph, node, operator, inputs, y_scale, y_zero)

    return rewrite


def unary(operator: str) -> Callable[[QdqGraph, onnx.NodeProto], None]:
    """Give the rewrite of an operator of one quantised tensor."""

    def rewrite(graph: QdqGraph, node: onnx.NodeProto) -> None:
        x, x_scale, x_zero, y_scale, y_zero = inputs_of(node, 5)
        if attributes_of(node).get("channels_last", 0):
            raise UnsupportedError(
                f"{called(node)} has its channels last; expected them behind the batch: export the "
                "network before onnxruntime optimises it."
            )
        rest = attributes_of(node, "channels_last", "opset")
        inputs = [graph.dequantized(node, x, x_scale, x_zero)]
        _quantized(graph, node, operator, inputs, y_scale, y_zero, rest)

    return rewrite


def softmax(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Rewrite onnxruntime's QLinearSoftmax."""
    given, rank = attributes_of(node), graph.rank_of(node.input[0])
    axis = given.get("axis", -1)
    if given.get("opset", 13) < 13 and rank is not None and axis not in (-1, rank - 1):
        raise UnsupportedError(
            f"{called(node)} is a softmax over all axes from {axis} on, as before opset 13; "
            "expected one over the last axis: quantise the network from opset 13 or newer."
        )
    unary("Softmax")(graph, node)


def concat(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Rewrite onnxruntime's QLinearConcat."""
    y_scale, y_zero, *parts = node.input
    if len(parts) % 3:
        raise ModelFormatError(
            f"{called(node)} has {len(node.input)} inputs; expected two, and three for each part: "
            "export the network again."
        )
    inputs = [
        graph.dequantized(node, *parts[start : start + 3]) for start in range(0, len(parts), 3)
    ]
    _quantized(graph, node, "Concat", inputs, y_scale, y_zero, attributes_of(node))


def integer(graph: QdqGraph, node: onnx.NodeProto) -> None:
    """Check an operator whose output is int32; give its zero points as constants."""
    inputs = list(node.input)
    for place, zero in ((0, 2), (1, 3)):
        if len(inputs) <= zero or not inputs[zero]:
            continue
        kind, tensor = graph.type_of(inputs[place]), inputs[place]
        one = graph.value(np.asarray(1, np.float32), f"{tensor}_step")
        graph.parameters(node, tensor, one, inputs[zero], kind)
        value = graph.constant(inputs[zero])
        if value is not None:
            inputs[zero] = graph.value(value, f"{tensor}_zero")
    del node.input[:]
    node.input.extend(inputs)
    graph.made.append(node)
