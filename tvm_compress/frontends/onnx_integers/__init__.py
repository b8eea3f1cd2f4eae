"""ONNX's quantised operators in one form: DequantizeLinear, float operator, QuantizeLinear.

Before (with the parameters of x, w and y as further inputs)::

    y = QLinearConv(x, w, bias)

After::

    y = QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(bias)))

Weights stay the integers that they are; a bias is dequantised by the scale of x times that of w.
``Cast(MatMulInteger(x, w)) * scale``, which onnxruntime's dynamic quantisation writes, becomes a
float product in the same way. ``MatMulInteger`` and ``ConvInteger`` elsewhere give exact int32:
:mod:`.int32` makes Relax's integer product and convolution of them.

Source: ONNX operators of opset 10 to 23, and docs/ContribOperators.md of onnxruntime for those of
the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tvm_compress.errors import ModelFormatError
from tvm_compress.frontends.onnx_integers import operators
from tvm_compress.frontends.onnx_integers.graph import called, inferred
from tvm_compress.frontends.onnx_integers.qdq_nodes import QdqGraph
from tvm_compress.frontends.onnx_integers.scaled_products import make_float, scaled_products

__all__ = ["to_qdq"]

_DOMAINS = ("", "ai.onnx", "com.microsoft")

# The operators of onnxruntime's and ONNX's quantisers: the least number of inputs, and the rewrite.
_REWRITES: dict[str, tuple[int, Callable[[QdqGraph, onnx.NodeProto], None]]] = {
    "QuantizeLinear": (2, operators.quantize_linear),
    "DequantizeLinear": (2, operators.dequantize_linear),
    "QLinearConv": (8, operators.convolution),
    "QLinearMatMul": (8, operators.product),
    "QGemm": (6, operators.gemm),
    "QLinearAdd": (7, operators.binary("Add")),
    "QLinearMul": (7, operators.binary("Mul")),
    "QLinearConcat": (5, operators.concat),
    "QLinearAveragePool": (4, operators.unary("AveragePool")),
    "QLinearGlobalAveragePool": (4, operators.unary("GlobalAveragePool")),
    "QLinearSigmoid": (4, operators.unary("Sigmoid")),
    "QLinearLeakyRelu": (4, operators.unary("LeakyRelu")),
    "QLinearSoftmax": (4, operators.softmax),
    "ConvInteger": (2, operators.integer),
    "MatMulInteger": (2, operators.integer),
}


def to_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the quantised operators of a model as DequantizeLinear, float operator, QuantizeLinear.

    Args:
        model: an ONNX model.

    Returns:
        The model itself where it has no such operator, else a new one. Its scales (float32, of
        shape () or (channels,)) and zero points are Constant nodes; its initializers, and the
        operators that compute in float, are as they were.

    Raises:
        ModelFormatError: an operator has too few inputs; a scale is not finite and positive; a zero
            point is of another type than its tensor; ONNX finds the model invalid.
        UnsupportedError: integers that are not int8 or uint8 (int32 in a bias), quantisation by
            blocks, or channels that are last.
    """
    quantised = [
        node for node in model.graph.node if node.op_type in _REWRITES and node.domain in _DOMAINS
    ]
    for node in quantised:
        least, _ = _REWRITES[node.op_type]
        if len(node.input) < least:
            raise ModelFormatError(
                f"{called(node)} has {len(node.input)} inputs; expected at least {least}: export "
                "the network again."
            )
    if not quantised:
        return model
    graph = QdqGraph(inferred(model))
    floats = scaled_products(graph)
    for node in graph.model.graph.node:
        if node.output and node.output[0] in floats:
            make_float(graph, node, *floats[node.output[0]])
        elif node.op_type in _REWRITES and node.domain in _DOMAINS:
            _, rewrite = _REWRITES[node.op_type]
            rewrite(graph, node)
        else:
            graph.made.append(node)
    return graph.finished()
