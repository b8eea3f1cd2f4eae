"""What a network consists of: its parameters with their densities and sizes, and its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import edge, ir
from tvm_compress.layouts import DenseCodes, GapCodes, best_gap_bits
from tvm_compress.tensors import TensorSpec, input_specs, output_specs

__all__ = ["Inspection", "ParameterReport", "inspect"]


@dataclass(frozen=True)
class ParameterReport:
    """One parameter of a network.

    Attributes:
        name: the parameter's name.
        shape: its shape.
        dtype: dtype of its values.
        operator: the operator that multiplies with it, or None for biases and their like.
        density: share of the values that are not zero, 0..1.
        distinct: number of distinct values.
        bits: bits of a value, or of a code where the values are shared.
        dense_bytes: bytes of the dense tensor.
        packed_bytes: bytes in flash in the smallest packed layout that fits, dense included;
            an estimate, for a target may take a faster one.
        layout: name of that layout.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    operator: str | None
    density: float
    distinct: int
    bits: int
    dense_bytes: int
    packed_bytes: int
    layout: str


@dataclass(frozen=True)
class Inspection:
    """All about a network: inputs, outputs, number of calls by operator, and parameters."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    parameters: tuple[ParameterReport, ...]

    @property
    def totals(self) -> dict[str, float]:
        """Number of parameters, of those that are not zero, and bytes dense and packed."""
        sizes = [int(np.prod(p.shape)) for p in self.parameters]
        nonzero = sum(round(p.density * n) for p, n in zip(self.parameters, sizes, strict=True))
        return {
            "parameters": sum(sizes),
            "density": nonzero / sum(sizes) if sum(sizes) else 0.0,
            "dense_bytes": sum(p.dense_bytes for p in self.parameters),
            "packed_bytes": sum(p.packed_bytes for p in self.parameters),
        }

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return {**asdict(self), "totals": self.totals}


def inspect(mod: tvm.IRModule) -> Inspection:
    """Read a canonical module.

    Raises:
        PassError: the module is not one straight-line function main.
        UnsupportedError: an input or output has a dynamic shape.
    """
    weights = ir.weights(mod)
    operators = Counter(
        name.removeprefix("relax.")
        for binding in ir.bindings(ir.main_function(mod))
        if (name := edge.op_name(binding.value)) is not None
    )
    return Inspection(
        input_specs(mod),
        output_specs(mod),
        dict(operators.most_common()),
        tuple(_report(p, weights.get(p.name)) for p in ir.parameters(mod).values()),
    )


def _report(parameter: ir.Parameter, weight: ir.Weight | None) -> ParameterReport:
    value = parameter.value
    layout, packed = _smallest_layout(parameter, weight.output_axis if weight else 0)
    return ParameterReport(
        name=parameter.name,
        shape=value.shape,
        dtype=str(value.dtype),
        operator=weight.operator.removeprefix("relax.") if weight else None,
        density=int(np.count_nonzero(value)) / value.size if value.size else 0.0,
        distinct=int(np.unique(value).size),
        bits=8 * value.itemsize if parameter.centroids is None else _code_bits(parameter.centroids),
        dense_bytes=value.nbytes,
        packed_bytes=packed,
        layout=layout,
    )


def _code_bits(centroids: NDArray[Any]) -> int:
    return max(1, int(centroids.shape[-1] - 1).bit_length())


def _smallest_layout(parameter: ir.Parameter, output_axis: int) -> tuple[str, int]:
    value, codes, centroids = parameter.value, parameter.codes, parameter.centroids
    sizes = {"dense": value.nbytes}
    if not value.size or not value.ndim:
        return "dense", value.nbytes
    if codes is not None and centroids is not None:
        bits, rows = _code_bits(centroids), _rows(codes, output_axis)
        sizes["dense_codes"] = DenseCodes.pack(rows, bits).nbytes + centroids.nbytes
        if not centroids[..., 0].any():  # gap_codes leaves out what has code 0
            packed = GapCodes.pack(rows, best_gap_bits(rows, bits), bits)
            sizes["gap_codes"] = packed.nbytes + centroids.nbytes
    elif value.dtype == np.float32 and not value.all() and np.isfinite(value).all():
        rows = _rows(value, output_axis)
        sizes["gap_codes"] = GapCodes.pack_values(rows, best_gap_bits(rows, 0)).nbytes
    name = min(sizes, key=lambda layout: sizes[layout])
    return name, sizes[name]


def _rows(tensor: NDArray[Any], output_axis: int) -> NDArray[Any]:
    moved = np.moveaxis(tensor, output_axis, 0)
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))
