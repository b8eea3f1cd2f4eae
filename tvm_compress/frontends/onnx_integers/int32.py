"""``MatMulInteger`` and ``ConvInteger`` as Relax's integer product and convolution: exact int32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from tvm_compress import edge
from tvm_compress.errors import UnsupportedError

__all__ = ["INTEGER_CONVERTERS"]


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
