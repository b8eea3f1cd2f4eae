"""``Cast(MatMulInteger(x, w)) * scale``, which dynamic quantisation writes, as a float product."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tvm_compress.frontends.onnx_integers.graph import attributes_of, inputs_of
from tvm_compress.frontends.onnx_integers.qdq_nodes import QdqGraph

__all__ = ["make_float", "scaled_products"]


def scaled_products(graph: QdqGraph) -> dict[str, tuple[onnx.NodeProto, str, str]]:
    """Find the products of integers that are only cast to float and scaled.

    By the name of the scaled output: the product, and the names of the scales of x and of w; the
    first is empty where the file holds one scale for both.
    """
    found = {}
    for node in graph.model.graph.node:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        for cast_name, scale in (tuple(node.input), tuple(node.input)[::-1]):
            cast = graph.producers.get(cast_name)
            if cast is None or cast.op_type != "Cast" or graph.uses[cast_name] != 1:
                continue
            product = graph.producers.get(cast.input[0])
            whole = attributes_of(cast).get("to") == TensorProto.FLOAT
            if product is None or not whole or graph.uses[cast.input[0]] != 1:
                continue
            scales = _two_scales(graph, scale)
            if product.op_type in ("MatMulInteger", "ConvInteger") and scales is not None:
                if _by_channel(graph, product, scales[1]):
                    found[node.output[0]] = (product, *scales)
                break
    return found


def _two_scales(graph: QdqGraph, scale: str) -> tuple[str, str] | None:
    if graph.constant(scale) is not None:
        return "", scale
    both = graph.producers.get(scale)
    if both is None or both.op_type != "Mul":
        return None
    a, b = both.input
    if graph.constant(b) is None:
        a, b = b, a
    one = graph.rank_of(a) == 0 or graph.types.get(a) is None
    return (a, b) if graph.constant(b) is not None and one else None


def _by_channel(graph: QdqGraph, product: onnx.NodeProto, scale: str) -> bool:
    """Whether a constant scale is one, or one for each output channel of the product."""
    value, rank = graph.constant(scale), graph.rank_of(product.input[1])
    if value is None or value.size == 1:
        return value is not None
    if product.op_type == "MatMulInteger":
        return bool(value.shape[-1] == value.size)
    return rank is not None and value.ndim == rank - 1 and value.shape[0] == value.size


def make_float(
    graph: QdqGraph, node: onnx.NodeProto, product: onnx.NodeProto, x_scale: str, w_scale: str
) -> None:
    """Add the float product that gives the scaled output ``node`` of an integer ``product``."""
    x, w, xz, wz = inputs_of(product, 4)
    x_scale = x_scale or graph.value(np.asarray(1, np.float32), f"{x}_step")
    matrix = product.op_type == "MatMulInteger"
    inputs = [
        graph.dequantized(product, x, x_scale, xz, axis=-2 if matrix else None),
        graph.dequantized(product, w, w_scale, wz, axis=-1 if matrix else 0),
    ]
    operator = "MatMul" if matrix else "Conv"
    graph.node(operator, inputs, node.output[0], **attributes_of(product))
