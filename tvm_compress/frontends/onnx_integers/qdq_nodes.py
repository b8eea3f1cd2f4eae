"""DequantizeLinear and QuantizeLinear with checked scales and zero points, in a graph made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends.onnx_integers.graph import Graph, called, type_name

__all__ = ["QdqGraph"]

_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)


class QdqGraph(Graph):
    """A graph that gets DequantizeLinear and QuantizeLinear nodes."""

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
                f"{called(owner)} has {tensor} as {type_name(kind)}, which no frontend takes; "
                "expected int8 or uint8 (int32 for a bias): quantise the network to 8 bits."
            )
        zero_kind = self.type_of(zero) if zero else 0
        if kind and zero_kind and zero_kind != kind:
            raise ModelFormatError(
                f"{called(owner)} has a zero point of type {type_name(zero_kind)} for {tensor}; "
                f"expected {type_name(kind)}, the type of the tensor: quantise the network again."
            )
        steps, offsets = self.constant(scale), self.constant(zero) if zero else None
        if steps is None:
            return [scale, zero] if zero else [scale]
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            wrong = steps[~(np.isfinite(steps) & (steps > 0))]
            raise ModelFormatError(
                f"{called(owner)} has the scale {wrong.reshape(-1)[0]} for {tensor}; expected "
                "finite numbers over 0: quantise the network again, with inputs that vary."
            )
        steps, offsets = _flat(steps), None if offsets is None else _flat(offsets)
        if steps.ndim > 1 or (steps.ndim and single):
            raise UnsupportedError(
                f"{called(owner)} has scales of shape {steps.shape} for {tensor}; expected one "
                f"scale{'' if single else ', or one a channel'}: quantise the network by tensor or "
                "by channel."
            )
        if offsets is not None:
            if offsets.ndim > 1 or (offsets.ndim and steps.ndim and offsets.size != steps.size):
                raise ModelFormatError(
                    f"{called(owner)} has zero points of shape {offsets.shape} for {tensor}; "
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


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """Give scales that lie along one axis as a vector, and one scale as a number."""
    long = [size for size in array.shape if size != 1]
    return array.reshape(long) if len(long) < 2 else array
