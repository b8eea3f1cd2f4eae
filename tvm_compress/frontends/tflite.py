"""TensorFlow Lite: TVM's importer on the flat buffer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tvm

from tvm_compress import edge
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends.named import bind_parameters, check_shapes
from tvm_compress.ops import ROUNDING
from tvm_compress.qdq import is_quantised

__all__ = ["import_bytes"]


def import_bytes(
    data: bytes, path: str, shapes: Mapping[str, Sequence[int]] | None
) -> tvm.IRModule:
    """Import a TensorFlow Lite flat buffer.

    Quantised models come as dequantize, float operator, quantize; their function has the attribute
    ``tvm_compress.rounding`` = ``double``, by which ``to-integers`` computes as TensorFlow Lite's
    reference kernels do.

    Raises:
        ModelFormatError: the buffer is damaged.
        UnsupportedError: an operator or quantisation scheme that the importer does not take.
    """
    import tflite

    try:
        model = tflite.Model.GetRootAsModel(data, 0)
        graph = model.Subgraphs(0)
        tensors = [graph.Tensors(graph.Outputs(i)) for i in range(graph.OutputsLength())]
        outputs = [tensor.Name().decode() for tensor in tensors]
        inputs = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
        sizes = {
            tensor.Name().decode(): (
                [int(tensor.Shape(i)) for i in range(tensor.ShapeLength())],
                [int(tensor.ShapeSignature(i)) for i in range(tensor.ShapeSignatureLength())],
            )
            for tensor in inputs
        }
    except Exception as error:
        raise ModelFormatError(
            f"{path} is a damaged TensorFlow Lite file ({type(error).__name__}); expected a whole "
            "flat buffer: convert or copy the model again."
        ) from error
    given = {name: tuple(int(s) for s in shape) for name, shape in (shapes or {}).items()}
    _check_given(given, sizes)
    try:
        mod = edge.import_tflite(model, given)
    except tvm.error.OpNotImplemented as error:
        operators = ", ".join(sorted(set(re.findall(r"'([A-Z0-9_]+)'", str(error)))))
        raise UnsupportedError(
            f"No frontend takes the TensorFlow Lite operator {operators or 'of this model'}: "
            f"{str(error).strip().splitlines()[-1].rstrip('.')}. Convert the network without it, "
            "or bring it by ONNX or torch.export."
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"TVM's TensorFlow Lite importer cannot take {path}: {lines[-1].strip()} Convert the "
            "model again, in float or fully in int8."
        ) from error
    mod = bind_parameters(mod, [], outputs=outputs)
    if is_quantised(mod):
        rounding = mod["main"].with_attr(ROUNDING, "double")
        mod.update_func(mod.get_global_var("main"), rounding)
    return mod


def _check_given(
    given: Mapping[str, tuple[int, ...]], sizes: Mapping[str, tuple[list[int], list[int]]]
) -> None:
    check_shapes(given)
    for name, shape in given.items():
        if name not in sizes:
            raise UnsupportedError(f"There is no input {name}; expected {', '.join(sizes)}.")
        stated, signature = sizes[name]
        if len(shape) != len(stated):
            raise UnsupportedError(
                f"The input {name} has {len(stated)} dimensions; the shape {shape} was given: give "
                "as many sizes."
            )
        for axis, (size, wanted) in enumerate(zip(stated, shape, strict=True)):
            free = len(signature) == len(stated) and signature[axis] < 0
            if not free and size != wanted:
                raise UnsupportedError(
                    f"The input {name} has the static size {size} on axis {axis}; {wanted} was "
                    "given: give the sizes that the model leaves open."
                )
