"""Quantised programs of torch.export: the operators of ``torch.ops.quantized_decomposed``.

Before, in the exported graph::

    w = quantized_decomposed.dequantize_per_channel(weight, scales, zero_points, 0, -127, 127, int8)
    y = aten.conv2d(x, w, bias)

After, in Relax::

    w = R.dequantize(weight, scales, zero_points, axis=0)
    y = R.nn.conv2d(x, w) + bias

The ``convert_pt2e`` of torch and of torchao writes such programs. torch rounds ``x * (1 / scale)``
where Relax, ONNX and TensorFlow Lite round ``x / scale``: a hair beside a half the two are one step
apart. Biases stay float, as the program has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge
from tvm_compress.errors import ModelFormatError, UnsupportedError

__all__ = ["converters", "register_operators"]

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}


def register_operators() -> None:
    """Make torch know its quantised operators, without which no file with them can be read."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def converters(program: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Give converters of the quantised operators for TVM's importer of exported programs.

    Args:
        program: a ``torch.export.ExportedProgram``, which holds the scales.

    Raises:
        ModelFormatError: (the converters) a scale is not finite and positive; a zero point is no
            whole number of the quantised type.
        UnsupportedError: (the converters) a type other than int8 and uint8 (int32 in a bias), or a
            scale that only the run can tell.
    """
    held = {**program.constants, **program.state_dict}
    values = {
        spec.arg.name: held[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.target in held
    }
    names = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target in held
    }

    def convert(node: Any, importer: Any) -> Any:
        return _convert(node, importer, values, names)

    return {
        f"{way}_{kind}": convert
        for way in ("quantize", "dequantize")
        for kind in (
            "per_tensor.default",
            "per_tensor.tensor",
            "per_tensor.tensor2",
            "per_channel.default",
        )
    }


def _convert(node: Any, importer: Any, values: dict[str, Any], names: dict[str, str]) -> Any:
    """Convert one operator: (input, scale, zero point, [axis], least, largest, dtype)."""
    source, scale, zero, *rest = node.args
    dtype = str(rest[-1]).removeprefix("torch.")
    out_dtype = str(node.kwargs.get("out_dtype") or "float32").removeprefix("torch.")
    axis = rest[0] if "per_channel" in node.target.__name__ else 0
    quantizes = node.target.__name__.startswith("quantize")
    if dtype not in _RANGES or (quantizes and dtype == "int32"):
        raise UnsupportedError(
            f"{node.name} is of the quantised type {dtype}, which no frontend takes; expected int8 "
            "or uint8 (int32 for a bias): quantise the network to 8 bits."
        )
    steps = _held(node, "scale", scale, values).astype(np.float32)
    offsets = _held(node, "zero point", zero, values)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        wrong = steps[~(np.isfinite(steps) & (steps > 0))]
        raise ModelFormatError(
            f"{node.name} has the scale {wrong.reshape(-1)[0]}; expected finite numbers over 0: "
            "quantise the network again, with inputs that vary."
        )
    low, high = _RANGES[dtype]
    whole = offsets.astype(np.int64)
    if not ((whole == offsets).all() and (whole >= low).all() and (whole <= high).all()):
        raise ModelFormatError(
            f"{node.name} has the zero point {offsets.reshape(-1)[0]}; expected whole numbers of "
            f"{dtype}, from {low} to {high}: quantise the network again."
        )
    if steps.size == 1:
        steps, whole = steps.reshape(()), whole.reshape(())
    parameters = [edge.constant(steps), edge.constant(whole.astype(dtype))]
    data = importer.env[source]
    if not quantizes:
        target = names.get(source.name, "")
        if target and not target.rsplit(".", 1)[-1].startswith("_frozen_param"):
            # The binding keeps the buffer's name when the importer puts its value in.
            data = importer.block_builder.emit(data, target.replace(".", "_"))
        return importer.block_builder.emit(
            relax.op.dequantize(data, *parameters, axis=axis, out_dtype=out_dtype)
        )
    made = importer.block_builder.emit(
        relax.op.quantize(data, *parameters, axis=axis, out_dtype=dtype)
    )
    least, largest = (int(_held(node, "range", bound, values)) for bound in rest[-3:-1])
    if (least, largest) == (low, high):
        return made
    return importer.block_builder.emit(relax.op.clip(made, least, largest))


def _held(node: Any, what: str, argument: Any, values: dict[str, Any]) -> NDArray[Any]:
    """Give a number, or a tensor that the program holds."""
    if isinstance(argument, int | float):
        return np.asarray(argument)
    name = getattr(argument, "name", "")
    if name not in values:
        raise UnsupportedError(
            f"The {what} of {node.name} is computed at run time; expected one that the program "
            "holds: quantise the network with static ranges."
        )
    return np.asarray(values[name].detach().numpy())
