"""``load``: one door for every format."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvm_compress import ir
from tvm_compress.errors import ModelFormatError, PassError, UnsupportedError
from tvm_compress.frontends import onnx as onnx_frontend
from tvm_compress.frontends import tflite as tflite_frontend
from tvm_compress.frontends.named import check_shapes
from tvm_compress.passes.canonicalize import Canonicalize

__all__ = ["load"]

_TAKEN = "ONNX, .tflite, a torch.export program (.pt2), .tcz or a Relax module saved as JSON"


def load(
    source: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example: Any = None,
) -> tvm.IRModule:
    """Load a trained network as a canonical module.

    Args:
        source: a path to ONNX, ``.tflite``, ``.pt2``, ``.tcz`` or Relax JSON; an
            ``onnx.ModelProto``; a ``torch.export.ExportedProgram``; an ``nn.Module`` together
            with ``example``; or a Relax ``IRModule``. Files are told apart by their bytes, not by
            their names.
        shapes: shapes by input name where the model leaves them open. A dynamic first dimension,
            the batch, becomes 1 unless a shape is given.
        example: example inputs of an ``nn.Module`` (one tensor or a tuple).

    Returns:
        A module whose one function ``main`` takes the inputs alone and binds every parameter to a
        variable of its name (see :mod:`tvm_compress.ir`).

    Raises:
        ModelFormatError: the file is missing, damaged or of another format; a parameter is NaN.
        UnsupportedError: an operator that the frontend does not take, control flow, or a shape
            that stays dynamic.
    """
    try:
        mod = Canonicalize()(_import(source, shapes, example))
    except PassError as error:  # what no pass takes, no frontend takes
        raise UnsupportedError(str(error)) from error
    _check_static(mod)
    _check_numbers(mod)
    return mod


def _import(source: Any, shapes: Mapping[str, Sequence[int]] | None, example: Any) -> tvm.IRModule:
    if isinstance(source, str | PathLike):
        return _import_file(Path(source), shapes)
    if isinstance(source, tvm.IRModule):
        return _bind_batch(source, shapes)
    if type(source).__name__ == "ModelProto":
        return onnx_frontend.import_model(source, shapes)
    if "torch" in sys.modules:
        from tvm_compress.frontends import torch as torch_frontend

        if torch_frontend.takes(source):
            return _bind_batch(torch_frontend.import_program(source, example), shapes)
    raise ModelFormatError(f"A {type(source).__name__} cannot be loaded; expected {_TAKEN}.")


def _import_file(path: Path, shapes: Mapping[str, Sequence[int]] | None) -> tvm.IRModule:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFormatError(f"{path} {what}; expected a file: {_TAKEN}.")
    data = path.read_bytes()
    if not data:
        raise ModelFormatError(f"{path} is empty; expected {_TAKEN}.")
    if data.startswith(b"TCZ"):
        from tvm_compress import codec

        return _bind_batch(codec.unpack(data, str(path)), shapes)
    if data[4:8] == b"TFL3":
        return tflite_frontend.import_bytes(data, str(path), shapes)
    head = data[:4096].lstrip()
    if data[:2] == b"PK":
        from tvm_compress.frontends import torch as torch_frontend

        return _bind_batch(torch_frontend.import_file(path), shapes)
    if head.startswith((b"{", b"#[version", b"def @", b"fn (")):
        return _bind_batch(_import_text(path, data), shapes)
    return onnx_frontend.import_bytes(data, path, shapes)


def _import_text(path: Path, data: bytes) -> tvm.IRModule:
    text = data.decode("utf-8", errors="replace")
    if not text.lstrip().startswith("{") or "relay." in text:
        raise ModelFormatError(
            f"{path} is a saved Relay module, and Relay left TVM; expected {_TAKEN}: export the "
            "network from its framework again, by ONNX or torch.export."
        )
    try:
        mod = tvm.ir.load_json(text)
    except Exception as error:
        raise ModelFormatError(
            f"{path} is not a module that this TVM can read ({_first_line(error)}); expected "
            f"{_TAKEN}."
        ) from error
    if not isinstance(mod, tvm.IRModule):
        raise ModelFormatError(f"{path} holds a {type(mod).__name__}; expected an IRModule.")
    return mod


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _bind_batch(mod: tvm.IRModule, shapes: Mapping[str, Sequence[int]] | None) -> tvm.IRModule:
    """Bind the dynamic dimensions of a Relax module: the first one to 1, others as given."""
    from tvm import relax

    from tvm_compress import edge

    function = ir.main_function(mod)
    known: dict[str, int] = {}
    batches: list[str] = []
    given = dict(shapes or {})
    check_shapes(given)
    for param in function.params:
        name, ty = edge.var_name(param), edge.tensor_type(param)
        if not isinstance(ty, relax.TensorType) or ty.shape is None:
            continue
        sizes = list(ty.shape.values)
        wanted = given.pop(name, None)
        if wanted is not None and len(wanted) != len(sizes):
            raise UnsupportedError(
                f"The input {name} has {len(sizes)} dimensions; the shape {tuple(wanted)} was "
                "given: give as many sizes."
            )
        for axis, size in enumerate(sizes):
            if isinstance(size, tvm.tirx.IntImm):
                if wanted is not None and int(wanted[axis]) != int(size):
                    raise UnsupportedError(
                        f"The input {name} has the static size {int(size)} on axis {axis}; "
                        f"{int(wanted[axis])} was given: give the sizes that the model leaves "
                        "open."
                    )
            elif not isinstance(size, tvm.tirx.Var):
                continue  # an expression of other sizes; what stays dynamic is refused later
            elif wanted is not None and known.get(size.name, wanted[axis]) != wanted[axis]:
                raise UnsupportedError(
                    f"The input {name} has the size {size.name} on axis {axis}, which is "
                    f"{known[size.name]} by another input; {int(wanted[axis])} was given: give one "
                    "size for it."
                )
            elif wanted is not None:
                known[size.name] = int(wanted[axis])
            elif axis == 0:
                batches.append(size.name)
    if given:
        raise UnsupportedError(
            f"There is no input {', '.join(given)}; expected "
            f"{', '.join(edge.var_name(p) for p in function.params)}."
        )
    known = dict.fromkeys(batches, 1) | known
    return relax.transform.BindSymbolicVars(known)(mod) if known else mod


def _check_static(mod: tvm.IRModule) -> None:
    from tvm_compress import edge
    from tvm_compress.tensors import input_specs, output_specs

    input_specs(mod)
    output_specs(mod)
    for binding in ir.bindings(ir.main_function(mod)):
        ty = binding.var.ty
        for field in edge.tensor_fields(ty):
            if edge.static_shape(field) is None:
                operator = edge.op_name(binding.value) or type(binding.value).__name__
                raise UnsupportedError(
                    f"{operator} gives {edge.var_name(binding.var)} the dynamic type {field}; "
                    "expected static shapes: export the network with fixed sizes or give them to "
                    "load with shapes={...}."
                )


def _check_numbers(mod: tvm.IRModule) -> None:
    for parameter in ir.parameters(mod).values():
        # The dense tensor of a shared weight is made only where there may be something to tell.
        value = parameter.value if parameter.centroids is None else parameter.centroids
        if value.dtype.kind != "f" or not np.isnan(value).any():
            continue
        value = parameter.value
        if np.isnan(value).any():
            raise ModelFormatError(
                f"The parameter {parameter.name} holds {int(np.isnan(value).sum())} NaN of "
                f"{value.size} values; expected numbers: train or export the network again."
            )
