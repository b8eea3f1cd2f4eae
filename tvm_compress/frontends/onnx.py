"""ONNX: a few rewrites on the ONNX graph, then TVM's importer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm

from tvm_compress import edge
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends.named import bind_parameters, check_shapes
from tvm_compress.frontends.onnx_integers import to_qdq
from tvm_compress.frontends.onnx_integers.graph import inferred
from tvm_compress.frontends.onnx_integers.int32 import INTEGER_CONVERTERS

__all__ = ["import_bytes", "import_model"]


def import_bytes(
    data: bytes, path: Path, shapes: Mapping[str, Sequence[int]] | None
) -> tvm.IRModule:
    """Import the bytes of an ONNX file; ``path`` is where its external data lies.

    Raises:
        ModelFormatError: the bytes are not an ONNX model.
        UnsupportedError: see :func:`import_model`.
    """
    try:
        model = onnx.load_from_string(data)
        if not model.graph.node and not model.graph.output:
            raise ValueError("it has no graph")
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFormatError(
            f"{path} is none of the known formats ({reason[0]}); expected ONNX, .tflite, a "
            "torch.export program (.pt2), .tcz or a Relax module saved as JSON."
        ) from error
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFormatError(
            f"{path} keeps weights in another file, which cannot be read ({reason[0]}); expected "
            "it beside the model: copy both files."
        ) from error
    return import_model(model, shapes)


def import_model(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None
) -> tvm.IRModule:
    """Import an ONNX model with static shapes and named parameters.

    Raises:
        ModelFormatError: the model is not a valid ONNX model.
        UnsupportedError: an operator or a dynamic shape that the importer does not take.
    """
    model = to_qdq(_with_static_inputs(_modern(model), shapes))
    _check_operators(model)
    model = inferred(model)
    _explicit_padding(model.graph)
    _constant_sizes(model.graph)
    try:
        with warnings.catch_warnings(), edge.relax_operators_for_te():
            warnings.simplefilter("ignore")  # the importer repeats the checker's remarks
            mod = edge.import_onnx(model, INTEGER_CONVERTERS)
    except (UnsupportedError, ModelFormatError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"TVM's ONNX importer cannot take this model: {lines[-1].strip()} Simplify the graph "
            "or export it with another opset."
        ) from error
    return bind_parameters(*mod, outputs=[output.name for output in model.graph.output])


# The importer knows the operators' old forms less well than their present ones.
_OLDEST_OPSET = 13


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert an old opset to one that the importer knows well, where ONNX can."""
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if version is None or version >= _OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _OLDEST_OPSET)
    except Exception:  # an operator without an adapter: the importer may take the old form
        return model


def _with_static_inputs(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None
) -> onnx.ModelProto:
    """Give a copy whose inputs have static shapes: a dynamic batch is 1."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    del new.graph.value_info[:]
    given = {name: tuple(int(s) for s in shape) for name, shape in (shapes or {}).items()}
    parameters = {tensor.name for tensor in new.graph.initializer}
    inputs = [value for value in new.graph.input if value.name not in parameters]
    # Old files list their weights among the inputs too, which would make inputs of them.
    del new.graph.input[:]
    new.graph.input.extend(inputs)
    inputs = list(new.graph.input)
    check_shapes(given)
    for name in sorted(set(given) - {value.name for value in inputs}):
        raise UnsupportedError(
            f"There is no input {name}; expected {', '.join(value.name for value in inputs)}."
        )
    symbols: dict[str, int] = {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        wanted = given.get(value.name)
        if wanted is not None:
            if dims and len(dims) != len(wanted):
                raise UnsupportedError(
                    f"The input {value.name} has {len(dims)} dimensions; the shape {wanted} was "
                    "given: give as many sizes."
                )
            if not dims:
                dims.extend(onnx.TensorShapeProto.Dimension() for _ in wanted)
        for axis, dim in enumerate(dims):
            size = dim.dim_value if dim.HasField("dim_value") else 0
            if wanted is not None and size > 0 and wanted[axis] != size:
                raise UnsupportedError(
                    f"The input {value.name} has the static size {size} on axis {axis}; "
                    f"{wanted[axis]} was given: give the sizes that the model leaves open."
                )
            if size <= 0:
                size = _free_size(value.name, axis, dim.dim_param, wanted, symbols)
            dim.ClearField("dim_param")
            dim.dim_value = size
    _forget_output_shapes(new.graph)
    return new


def _free_size(
    name: str, axis: int, symbol: str, wanted: tuple[int, ...] | None, symbols: dict[str, int]
) -> int:
    if wanted is not None:
        size = wanted[axis]
    elif symbol and symbol in symbols:
        size = symbols[symbol]
    elif axis == 0:
        size = 1
    else:
        raise UnsupportedError(
            f"The input {name} is dynamic on axis {axis} ({symbol or 'unknown size'}); expected a "
            f'static shape: give it to load with shapes={{"{name}": (...)}}.'
        )
    if symbol:
        symbols[symbol] = size
    return size


def _forget_output_shapes(graph: onnx.GraphProto) -> None:
    """Drop the stated output shapes, which may name the symbols that were just bound."""
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _check_operators(model: onnx.ModelProto) -> None:
    missing = []
    for node in model.graph.node:
        # The importer looks at the name alone, and some of its operators are of com.microsoft.
        known = node.domain in ("", "ai.onnx", "com.microsoft")
        flow = node.op_type in ("If", "Loop", "Scan")
        taken = node.op_type in INTEGER_CONVERTERS or edge.onnx_importer_takes(node.op_type)
        if flow or not known or not taken:
            operator = node.op_type if known else f"{node.domain}.{node.op_type}"
            missing.append(f"{operator} (node {node.name or node.output[0]})")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UnsupportedError(
            f"No frontend takes the ONNX operator {', '.join(missing[:3])}{more}; expected "
            "operators of TVM's importer without control flow: export the network without it."
        )


def _constant_sizes(graph: onnx.GraphProto) -> None:
    """Make short integer initializers constants of the graph.

    They are sizes, axes and indices; as arguments of the imported function they would give types
    that are known at run time only (Expand).
    """
    kept: list[onnx.TensorProto] = []
    moved: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        short = tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) <= 1
        (moved if short else kept).append(tensor)
    nodes = [
        onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        for tensor in moved
    ]
    rest = list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(kept)


def _explicit_padding(graph: onnx.GraphProto) -> None:
    """Replace ``auto_pad`` by explicit pads, so that no padding operator is inserted."""
    known = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.input, *graph.output]
    }
    weights = known | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConvTranspose":
            _padding_of_output(node, known, weights)
        if node.op_type not in ("Conv", "ConvInteger", "MaxPool", "AveragePool", "LpPool"):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        mode = attributes.get("auto_pad", b"NOTSET")
        if mode == b"NOTSET":
            continue
        shape = known.get(node.input[0], [])[2:]
        kernel = attributes.get("kernel_shape") or weights.get(node.input[1], [])[2:]
        if mode != b"VALID" and (not kernel or len(shape) != len(kernel) or 0 in shape):
            continue  # the importer says what it misses
        rank = len(kernel)
        pads = [0] * (2 * rank)
        if mode != b"VALID":
            pads = _same_padding(attributes, shape, kernel, upper=mode == b"SAME_UPPER")
        kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])


def _padding_of_output(
    node: onnx.NodeProto, known: Mapping[str, list[int]], weights: Mapping[str, list[int]]
) -> None:
    """Replace ``output_shape``, which the importer leaves out, by the pads that ONNX defines."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    wanted = attributes.get("output_shape")
    if wanted is None:
        return
    shape = known.get(node.input[0], [])[2:]
    kernel = attributes.get("kernel_shape") or weights.get(node.input[1], [])[2:]
    rank = len(kernel)
    if not rank or len(shape) != rank or 0 in shape:
        raise UnsupportedError(
            f"The ConvTranspose {node.name or node.output[0]} gives its output_shape and has an "
            "input or a kernel of unknown size; expected static shapes: export it with pads."
        )
    strides = np.asarray(attributes.get("strides") or [1] * rank)
    spans = (np.asarray(kernel) - 1) * np.asarray(attributes.get("dilations") or [1] * rank) + 1
    extra = np.asarray(attributes.get("output_padding") or [0] * rank)
    total = strides * (np.asarray(shape) - 1) + extra + spans - np.asarray(wanted)[-rank:]
    # An output larger than the full one is filled at its end.
    extra, total = extra + np.maximum(-total, 0), np.maximum(total, 0)
    small, large = total // 2, total - total // 2
    upper = attributes.get("auto_pad") == b"SAME_UPPER"
    before, after = (small, large) if upper else (large, small)
    gone = ("auto_pad", "pads", "output_shape", "output_padding")
    kept = [a for a in node.attribute if a.name not in gone]
    del node.attribute[:]
    pads = onnx.helper.make_attribute("pads", [int(v) for v in (*before, *after)])
    filled = onnx.helper.make_attribute("output_padding", [int(v) for v in extra])
    node.attribute.extend([*kept, pads, filled])


def _same_padding(
    attributes: Mapping[str, Any], shape: Sequence[int], kernel: Sequence[int], *, upper: bool
) -> list[int]:
    strides = attributes.get("strides") or [1] * len(kernel)
    dilations = attributes.get("dilations") or [1] * len(kernel)
    spans = (np.asarray(kernel) - 1) * np.asarray(dilations) + 1
    outputs = -(-np.asarray(shape) // np.asarray(strides))
    total = np.maximum((outputs - 1) * np.asarray(strides) + spans - np.asarray(shape), 0)
    small, large = total // 2, total - total // 2
    before, after = (small, large) if upper else (large, small)
    return [int(v) for v in (*before, *after)]
