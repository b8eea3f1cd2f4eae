"""TensorFlow Lite: TVM's importer on the flat buffer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tvm

from tvm_compress import edge
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends.named import bind_parameters

__all__ = ["import_bytes"]


def import_bytes(
    data: bytes, path: str, shapes: Mapping[str, Sequence[int]] | None
) -> tvm.IRModule:
    """Import a TensorFlow Lite flat buffer.

    Quantised models come as dequantize, float operator, quantize.

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
    except Exception as error:
        raise ModelFormatError(
            f"{path} is a damaged TensorFlow Lite file ({type(error).__name__}); expected a whole "
            "flat buffer: convert or copy the model again."
        ) from error
    given = {name: tuple(int(s) for s in shape) for name, shape in (shapes or {}).items()}
    try:
        mod = edge.import_tflite(model, given)
    except tvm.error.OpNotImplemented as error:
        operators = ", ".join(sorted(set(re.findall(r"'([A-Z0-9_]+)'", str(error)))))
        raise UnsupportedError(
            f"No frontend takes the TensorFlow Lite operator {operators or 'of this model'}: "
            f"{str(error).strip().splitlines()[-1]}"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"TVM's TensorFlow Lite importer cannot take {path}: {lines[-1].strip()} Convert the "
            "model again, in float or fully in int8."
        ) from error
    return bind_parameters(mod, [], outputs=outputs)
