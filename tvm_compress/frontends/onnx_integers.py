"""ONNX's quantised operators in one form: DequantizeLinear, float operator, QuantizeLinear.

Before (with the parameters of x, w and y as further inputs)::

    y = QLinearConv(x, w, bias)

After::

    y = QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(bias)))

Weights stay the integers that they are; a bias is dequantised by the scale of x times that of w.
``Cast(MatMulInteger(x, w)) * scale``, which onnxruntime's dynamic quantisation writes, becomes a
float product in the same way. ``MatMulInteger`` and ``ConvInteger`` elsewhere give exact int32:
:data:`INTEGER_CONVERTERS` make Relax's integer product and convolution of them.

Source: ONNX operators of opset 10 to 23, and docs/ContribOperators.md of onnxruntime for those of
the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_compress import edge
from tvm_compress.errors import ModelFormatError, UnsupportedError

__all__ = ["INTEGER_CONVERTERS", "inferred", "to_qdq"]

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)


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
                f"{_called(node)} has {len(node.input)} inputs; expected at least {least}: export "
                "the network again."
            )
    return _Rewrite(inferred(model)).run() if quantised else model


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add the shapes and types that ONNX infers.

    Raises:
        ModelFormatError: ONNX finds the model invalid.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise ModelFormatError(f"ONNX finds the model invalid: {error}") from error


class _Rewrite:
    """The nodes of a graph made anew, one after another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        for node in graph.node:
            values = [a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")]
            self.tensors.update(dict.fromkeys(node.output, values[0]) if values else {})
        self.uses: dict[str, int] = {}
        for name in [i for n in graph.node for i in n.input] + [o.name for o in graph.output]:
            self.uses[name] = self.uses.get(name, 0) + 1
        self.types = {
            value.name: value.type.tensor_type
            for value in [*graph.input, *graph.value_info, *graph.output]
        }
        self.names = {*self.tensors, *self.producers, *self.types}
        self.made: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        patterns = _scaled_products(self)
        for node in self.model.graph.node:
            if node.output and node.output[0] in patterns:
                _scaled_product(self, node, *patterns[node.output[0]])
            elif node.op_type in _REWRITES and node.domain in _DOMAINS:
                _, rewrite = _REWRITES[node.op_type]
                rewrite(self, node)
            else:
                self.made.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(_live(self.made, self.model.graph.output))
        return self.model

    # -- what is known of a tensor -----------------------------------------------------------------

    def constant(self, name: str) -> NDArray[Any] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def type_of(self, name: str) -> int:
        """Give the element type of a tensor, 0 where nothing tells it."""
        if name in self.tensors:
            return int(self.tensors[name].data_type)
        return int(self.types[name].elem_type) if name in self.types else 0

    def rank_of(self, name: str) -> int | None:
        if name in self.tensors:
            return len(self.tensors[name].dims)
        known = name in self.types and self.types[name].HasField("shape")
        return len(self.types[name].shape.dim) if known else None

    # -- making nodes ------------------------------------------------------------------------------

    def fresh(self, name: str) -> str:
        unique, number = name, 1
        while unique in self.names:
            number += 1
            unique = f"{name}_{number}"
        self.names.add(unique)
        return unique

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node; give the name of its output."""
        self.made.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def value(self, array: NDArray[Any], name: str) -> str:
        tensor = numpy_helper.from_array(array, self.fresh(name))
        self.tensors[tensor.name] = tensor
        return self.node("Constant", [], tensor.name, value=tensor)

    def parameters(
        self,
        owner: onnx.NodeProto,
        tensor: str,
        scale: str,
        zero: str,
        kind: int,
        *,
        bias: bool = False,
        single: bool = False,
    ) -> list[str]:
        """Give scale and zero point as constants, checked, where the file holds them."""
        allowed = (*_EIGHT_BITS, TensorProto.INT32) if bias else _EIGHT_BITS
        if kind and kind not in allowed:
            raise UnsupportedError(
                f"{_called(owner)} has {tensor} as {_type_name(kind)}, which no frontend takes; "
                "expected int8 or uint8 (int32 for a bias): quantise the network to 8 bits."
            )
        zero_kind = self.type_of(zero) if zero else 0
        if kind and zero_kind and zero_kind != kind:
            raise ModelFormatError(
                f"{_called(owner)} has a zero point of type {_type_name(zero_kind)} for {tensor}; "
                f"expected {_type_name(kind)}, the type of the tensor: quantise the network again."
            )
        steps, offsets = self.constant(scale), self.constant(zero) if zero else None
        if steps is None:
            return [scale, zero] if zero else [scale]
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            wrong = steps[~(np.isfinite(steps) & (steps > 0))]
            raise ModelFormatError(
                f"{_called(owner)} has the scale {wrong.reshape(-1)[0]} for {tensor}; expected "
                "finite numbers over 0: quantise the network again, with inputs that vary."
            )
        steps, offsets = _flat(steps), None if offsets is None else _flat(offsets)
        if steps.ndim > 1 or (steps.ndim and single):
            raise UnsupportedError(
                f"{_called(owner)} has scales of shape {steps.shape} for {tensor}; expected one "
                f"scale{'' if single else ', or one a channel'}: quantise the network by tensor or "
                "by channel."
            )
        if offsets is not None:
            if offsets.ndim > 1 or (offsets.ndim and steps.ndim and offsets.size != steps.size):
                raise ModelFormatError(
                    f"{_called(owner)} has zero points of shape {offsets.shape} for {tensor}; "
                    f"expected the shape of its scales, {steps.shape}: quantise the network again."
                )
            # ONNX wants both in one shape.
            steps, offsets = (np.array(a) for a in np.broadcast_arrays(steps, offsets))
        made = [self.value(steps, f"{tensor}_step")]
        if offsets is not None:
            made.append(self.value(offsets, f"{tensor}_zero"))
        elif zero:
            made.append(zero)
        return made

    def dequantized(
        self,
        owner: onnx.NodeProto,
        tensor: str,
        scale: str,
        zero: str = "",
        *,
        axis: int | None = None,
        output: str = "",
        bias: bool = False,
        **attributes: Any,
    ) -> str:
        """Add DequantizeLinear; ``axis`` is that of the channels, where scales may be several."""
        steps = self.parameters(
            owner, tensor, scale, zero, self.type_of(tensor), bias=bias, single=axis is None
        )
        output = output or self.fresh(f"{tensor}_dequantized")
        along = self.along(tensor, steps[0], axis)
        return self.node("DequantizeLinear", [tensor, *steps], output, **along, **attributes)

    def quantized(
        self,
        owner: onnx.NodeProto,
        tensor: str,
        scale: str,
        zero: str,
        *,
        axis: int | None = None,
        kind: int = 0,
        **attributes: Any,
    ) -> str:
        """Add QuantizeLinear, which gives the output of ``owner``."""
        output = owner.output[0]
        kind = kind or (self.type_of(zero) if zero else TensorProto.UINT8)
        steps = self.parameters(owner, output, scale, zero, kind, single=axis is None)
        # ONNX infers nothing of onnxruntime's operators.
        self.types.setdefault(output, onnx.TypeProto.Tensor()).elem_type = kind
        along = self.along(tensor, steps[0], axis)
        return self.node("QuantizeLinear", [tensor, *steps], output, **along, **attributes)

    def along(self, tensor: str, scale: str, axis: int | None) -> dict[str, int]:
        """Give the attribute ``axis``, counted from the front where the rank is known."""
        if axis is None or (scale in self.tensors and not self.tensors[scale].dims):
            return {}
        rank = self.rank_of(tensor)
        return {"axis": axis if axis >= 0 or rank is None else axis + rank}

    def product(self, name: str, a: str, b: str) -> str:
        """Give the scale of a bias."""
        one, two = self.constant(a), self.constant(b)
        if one is None or two is None:
            return self.node("Mul", [a, b], self.fresh(f"{name}_scale"))
        return self.value(np.asarray(_flat(one) * _flat(two), np.float32), f"{name}_scale")


def _called(node: onnx.NodeProto) -> str:
    """Say which node is meant."""
    return f"{node.op_type} (node {node.name or node.output[0]})"


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """Give scales that lie along one axis as a vector, and one scale as a number."""
    long = [size for size in array.shape if size != 1]
    return array.reshape(long) if len(long) < 2 else array


def _attributes(node: onnx.NodeProto, *without: str) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in without}


def _inputs(node: onnx.NodeProto, count: int) -> list[str]:
    """Give ``count`` inputs; those that were left out are empty."""
    return [*node.input, *[""] * count][:count]


def _live(nodes: Sequence[onnx.NodeProto], outputs: Any) -> list[onnx.NodeProto]:
    """Drop nodes that nothing uses any more."""
    used, kept = {value.name for value in outputs}, []
    for node in reversed(nodes):
        if any(name in used for name in node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def _channels_first(node: onnx.NodeProto) -> None:
    if _attributes(node).get("channels_last", 0):
        raise UnsupportedError(
            f"{_called(node)} has its channels last; expected them behind the batch: export the "
            "network before onnxruntime optimises it."
        )


# ---- one function an operator --------------------------------------------------------------------


def _quantize_linear(self: _Rewrite, node: onnx.NodeProto) -> None:
    tensor, scale, zero = _inputs(node, 3)
    _unblocked(node)
    kind = _attributes(node).get("output_dtype", 0)
    axis = _attributes(node).get("axis", 1)
    rest = _attributes(node, "axis", "block_size")
    self.quantized(node, tensor, scale, zero, axis=axis, kind=kind, **rest)


def _dequantize_linear(self: _Rewrite, node: onnx.NodeProto) -> None:
    tensor, scale, zero = _inputs(node, 3)
    _unblocked(node)
    rest = _attributes(node, "axis", "block_size")
    axis, output = _attributes(node).get("axis", 1), node.output[0]
    self.dequantized(node, tensor, scale, zero, axis=axis, output=output, bias=True, **rest)


def _unblocked(node: onnx.NodeProto) -> None:
    if _attributes(node).get("block_size", 0):
        raise UnsupportedError(
            f"{_called(node)} has one scale for each block of "
            f"{_attributes(node)['block_size']} elements; expected one scale, or one a channel: "
            "quantise the network by tensor or by channel."
        )


def _convolution(self: _Rewrite, node: onnx.NodeProto) -> None:
    x, xs, xz, w, ws, wz, ys, yz, bias = _inputs(node, 9)
    inputs = [self.dequantized(node, x, xs, xz), self.dequantized(node, w, ws, wz, axis=0)]
    if bias:
        inputs.append(self.dequantized(node, bias, self.product(bias, xs, ws), axis=0, bias=True))
    output = self.fresh(f"{node.output[0]}_float")
    self.quantized(node, self.node("Conv", inputs, output, **_attributes(node)), ys, yz)


def _product(self: _Rewrite, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    inputs = [
        self.dequantized(node, a, a_scale, a_zero, axis=-2),  # scales of a and y are by row
        self.dequantized(node, b, b_scale, b_zero, axis=-1),
    ]
    output = self.node("MatMul", inputs, self.fresh(f"{node.output[0]}_float"))
    self.quantized(node, output, y_scale, y_zero, axis=-2)


def _gemm(self: _Rewrite, node: onnx.NodeProto) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = _inputs(node, 9)
    rest = _attributes(node)
    alpha = np.float32(rest.get("alpha", 1.0))
    inputs = [
        self.dequantized(node, a, a_scale, a_zero),
        self.dequantized(node, b, b_scale, b_zero, axis=0 if rest.get("transB", 0) else 1),
    ]
    if c:  # of alpha times both scales, and added as it is
        scale = self.product(c, a_scale, b_scale)
        if alpha != 1:
            scale = self.product(c, scale, self.value(np.asarray(alpha), f"{c}_alpha"))
        inputs.append(self.dequantized(node, c, scale, axis=-1, bias=True))
    output = self.fresh(f"{node.output[0]}_float") if y_scale else node.output[0]
    self.node("Gemm", inputs, output, **rest)
    if y_scale:
        self.quantized(node, output, y_scale, y_zero)


def _binary(operator: str) -> Callable[[_Rewrite, onnx.NodeProto], None]:
    def rewrite(self: _Rewrite, node: onnx.NodeProto) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
        inputs = [
            self.dequantized(node, a, a_scale, a_zero),
            self.dequantized(node, b, b_scale, b_zero),
        ]
        output = self.node(operator, inputs, self.fresh(f"{node.output[0]}_float"))
        self.quantized(node, output, y_scale, y_zero)

    return rewrite


def _unary(operator: str) -> Callable[[_Rewrite, onnx.NodeProto], None]:
    def rewrite(self: _Rewrite, node: onnx.NodeProto) -> None:
        x, x_scale, x_zero, y_scale, y_zero = _inputs(node, 5)
        _channels_first(node)
        rest = _attributes(node, "channels_last", "opset")
        output = self.fresh(f"{node.output[0]}_float")
        self.node(operator, [self.dequantized(node, x, x_scale, x_zero)], output, **rest)
        self.quantized(node, output, y_scale, y_zero)

    return rewrite


def _softmax(self: _Rewrite, node: onnx.NodeProto) -> None:
    given, rank = _attributes(node), self.rank_of(node.input[0])
    axis = given.get("axis", -1)
    if given.get("opset", 13) < 13 and rank is not None and axis not in (-1, rank - 1):
        raise UnsupportedError(
            f"{_called(node)} is a softmax over all axes from {axis} on, as before opset 13; "
            "expected one over the last axis: quantise the network from opset 13 or newer."
        )
    _unary("Softmax")(self, node)


def _concat(self: _Rewrite, node: onnx.NodeProto) -> None:
    y_scale, y_zero, *parts = node.input
    if len(parts) % 3:
        raise ModelFormatError(
            f"{_called(node)} has {len(node.input)} inputs; expected two, and three for each part: "
            "export the network again."
        )
    inputs = [
        self.dequantized(node, *parts[start : start + 3]) for start in range(0, len(parts), 3)
    ]
    output = self.fresh(f"{node.output[0]}_float")
    self.quantized(node, self.node("Concat", inputs, output, **_attributes(node)), y_scale, y_zero)


def _integer(self: _Rewrite, node: onnx.NodeProto) -> None:
    """Check an operator whose output is int32; give its zero points as constants."""
    inputs = list(node.input)
    for place, zero in ((0, 2), (1, 3)):
        if len(inputs) <= zero or not inputs[zero]:
            continue
        kind, tensor = self.type_of(inputs[place]), inputs[place]
        one = self.value(np.asarray(1, np.float32), f"{tensor}_step")
        self.parameters(node, tensor, one, inputs[zero], kind)
        value = self.constant(inputs[zero])
        if value is not None:
            inputs[zero] = self.value(value, f"{tensor}_zero")
    del node.input[:]
    node.input.extend(inputs)
    self.made.append(node)


# The operators of onnxruntime's and ONNX's quantisers: the least number of inputs, and the rewrite.
_REWRITES: dict[str, tuple[int, Callable[[_Rewrite, onnx.NodeProto], None]]] = {
    "QuantizeLinear": (2, _quantize_linear),
    "DequantizeLinear": (2, _dequantize_linear),
    "QLinearConv": (8, _convolution),
    "QLinearMatMul": (8, _product),
    "QGemm": (6, _gemm),
    "QLinearAdd": (7, _binary("Add")),
    "QLinearMul": (7, _binary("Mul")),
    "QLinearConcat": (5, _concat),
    "QLinearAveragePool": (4, _unary("AveragePool")),
    "QLinearGlobalAveragePool": (4, _unary("GlobalAveragePool")),
    "QLinearSigmoid": (4, _unary("Sigmoid")),
    "QLinearLeakyRelu": (4, _unary("LeakyRelu")),
    "QLinearSoftmax": (4, _softmax),
    "ConvInteger": (2, _integer),
    "MatMulInteger": (2, _integer),
}


# ---- Cast(ConvInteger or MatMulInteger) * scale --------------------------------------------------

_Found = tuple[onnx.NodeProto, str, str]


def _scaled_products(self: _Rewrite) -> dict[str, _Found]:
    """Find the products of integers that are only cast to float and scaled.

    By the name of the scaled output: the product, and the names of the scales of x and of w; the
    first is empty where the file holds one scale for both.
    """
    found = {}
    for node in self.model.graph.node:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        for cast_name, scale in (tuple(node.input), tuple(node.input)[::-1]):
            cast = self.producers.get(cast_name)
            if cast is None or cast.op_type != "Cast" or self.uses[cast_name] != 1:
                continue
            product = self.producers.get(cast.input[0])
            whole = _attributes(cast).get("to") == TensorProto.FLOAT
            if product is None or not whole or self.uses[cast.input[0]] != 1:
                continue
            scales = _two_scales(self, scale)
            if product.op_type in ("MatMulInteger", "ConvInteger") and scales is not None:
                if _by_channel(self, product, scales[1]):
                    found[node.output[0]] = (product, *scales)
                break
    return found


def _two_scales(self: _Rewrite, scale: str) -> tuple[str, str] | None:
    if self.constant(scale) is not None:
        return "", scale
    both = self.producers.get(scale)
    if both is None or both.op_type != "Mul":
        return None
    a, b = both.input
    if self.constant(b) is None:
        a, b = b, a
    one = self.rank_of(a) == 0 or self.types.get(a) is None
    return (a, b) if self.constant(b) is not None and one else None


def _by_channel(self: _Rewrite, product: onnx.NodeProto, scale: str) -> bool:
    """Whether a constant scale is one, or one for each output channel of the product."""
    value, rank = self.constant(scale), self.rank_of(product.input[1])
    if value is None or value.size == 1:
        return value is not None
    if product.op_type == "MatMulInteger":
        return bool(value.shape[-1] == value.size)
    return rank is not None and value.ndim == rank - 1 and value.shape[0] == value.size


def _scaled_product(
    self: _Rewrite, node: onnx.NodeProto, product: onnx.NodeProto, x_scale: str, w_scale: str
) -> None:
    x, w, xz, wz = _inputs(product, 4)
    x_scale = x_scale or self.value(np.asarray(1, np.float32), f"{x}_step")
    matrix = product.op_type == "MatMulInteger"
    inputs = [
        self.dequantized(product, x, x_scale, xz, axis=-2 if matrix else None),
        self.dequantized(product, w, w_scale, wz, axis=-1 if matrix else 0),
    ]
    operator = "MatMul" if matrix else "Conv"
    self.node(operator, inputs, node.output[0], **_attributes(product))


# ---- exact int32 ---------------------------------------------------------------------------------


def _centred(bb: Any, x: Any, zero: Any, shape: Sequence[int]) -> Any:
    """Take a zero point off; where it is 0, signed integers stay as they are."""
    value = edge.constant_value(zero) if isinstance(zero, edge.Constant) else None
    if zero is None or (value is not None and not value.any()):
        return x if edge.dtype_of(x) == "int8" else bb.normalize(relax.op.astype(x, "int16"))
    zero = bb.normalize(relax.op.astype(zero, "int16"))
    if edge.tensor_type(zero).ndim == 1:
        zero = bb.normalize(relax.op.reshape(zero, list(shape)))
    # int16 holds every difference of two bytes.
    return bb.normalize(relax.op.subtract(relax.op.astype(x, "int16"), zero))


def _convert_product(bb: Any, inputs: Any, attrs: Any) -> Any:
    a = _centred(bb, inputs[0], inputs[2], (-1, 1))
    b = _centred(bb, inputs[1], inputs[3], (1, -1))
    return relax.op.matmul(a, b, out_dtype="int32")


def _convert_convolution(bb: Any, inputs: Any, attrs: Any) -> Any:
    rank = edge.tensor_type(inputs[1]).ndim
    # With the zero point taken off, the border is of zeros as in a float convolution.
    x = _centred(bb, inputs[0], inputs[2], (1,) * rank)
    w = _centred(bb, inputs[1], inputs[3], (-1, *(1,) * (rank - 1)))
    build = {3: relax.op.nn.conv1d, 4: relax.op.nn.conv2d, 5: relax.op.nn.conv3d}.get(rank)
    if build is None:
        raise UnsupportedError(f"A ConvInteger has a weight of {rank} dimensions; expected 3 to 5.")
    return build(
        x,
        w,
        strides=list(attrs.get("strides", [1] * (rank - 2))),
        padding=list(attrs.get("pads", [0] * (2 * (rank - 2)))),
        dilation=list(attrs.get("dilations", [1] * (rank - 2))),
        groups=attrs.get("group", 1),
        out_dtype="int32",
    )


#: Converters of operators whose outputs are int32, for :func:`tvm_compress.edge.import_onnx`.
INTEGER_CONVERTERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "ConvInteger": _convert_convolution,
    "MatMulInteger": _convert_product,
}
