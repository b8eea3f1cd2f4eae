"""What a network or a ``.tcz`` file consists of: parameters, their densities and sizes, operators.

And where the tensors between the operators lie in memory. Coded sizes are never estimated: a
module is coded as :func:`tvm_compress.save` would code it, and a file is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from tvm_compress import codec, edge, ir
from tvm_compress.codec.container import Header
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.layouts import (
    BANK_CODE_BITS,
    WEIGHT_DTYPES,
    Bank,
    Block,
    DenseCodes,
    GapCodes,
    best_gap_bits,
)
from tvm_compress.ops import flat_codes
from tvm_compress.passes.bank_prune import to_rows
from tvm_compress.tensors import TensorSpec, input_specs, output_specs

__all__ = [
    "Bin",
    "Centroid",
    "Histogram",
    "Inspection",
    "Memory",
    "MemoryStep",
    "MemoryTensor",
    "ParameterReport",
    "histogram",
    "inspect",
    "inspect_file",
    "memory",
    "smallest_layout",
]


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
        coded_bytes: bytes that it takes of the section weights of the ``.tcz`` file, its codebook
            included, or None where no file can hold the network. Rounded so that the sum over all
            parameters is the rounded sum.
        bits_per_weight: bits of the file for each value, or None as above.
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
    coded_bytes: int | None
    bits_per_weight: float | None


@dataclass(frozen=True)
class Inspection:
    """All about a network.

    Attributes:
        inputs: of the network.
        outputs: of the network.
        operators: number of calls by operator.
        parameters: in the order of the network.
        file: the header of the ``.tcz`` file, given or as it would be written, or None where
            nothing was coded or no file can hold the network.
        no_file: why there is no file, else "".
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    parameters: tuple[ParameterReport, ...]
    file: Header | None
    no_file: str = ""

    @property
    def totals(self) -> dict[str, float]:
        """Number of parameters, share of those that are not zero, bytes dense, packed and coded.

        ``coded_bytes`` (of all parameters) and ``file_bytes`` (the whole file, header, graph and
        all) are there where a ``.tcz`` file can hold the network.
        """
        coded: dict[str, float] = {}
        if self.file is not None:
            coded["coded_bytes"] = sum(p.coded_bytes or 0 for p in self.parameters)
            coded["file_bytes"] = self.file.file_bytes
        sizes = [int(np.prod(p.shape)) for p in self.parameters]
        nonzero = sum(round(p.density * n) for p, n in zip(self.parameters, sizes, strict=True))
        return {
            "parameters": sum(sizes),
            "density": nonzero / sum(sizes) if sum(sizes) else 0.0,
            "dense_bytes": sum(p.dense_bytes for p in self.parameters),
            "packed_bytes": sum(p.packed_bytes for p in self.parameters),
            **coded,
        }

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return {**asdict(self), "totals": self.totals}


def inspect(mod: tvm.IRModule, *, profile: str | None = "flash") -> Inspection:
    """Read a canonical module, and code it to see how large it is.

    Args:
        mod: a canonical module.
        profile: of the ``.tcz`` file: ``flash``, or ``archive``, which is smaller and takes about
            a minute for each few million weights; None codes nothing.

    Raises:
        OptionError: an unknown profile.
        PassError: the module is not one straight-line function main.
        UnsupportedError: an input or output has a dynamic shape.
    """
    if profile is None:
        return _inspection(mod, {}, None)
    codec.check_profile(profile)
    try:
        data = codec.pack(mod, profile)
    except UnsupportedError as error:
        return _inspection(mod, {}, None, str(error))
    return _inspection(mod, codec.measure(data)[1], codec.read_header(data))


def inspect_file(path: str | PathLike[str]) -> Inspection:
    """Read a ``.tcz`` file: what its own bytes are spent on.

    Raises:
        ModelFormatError: it is no such file, or is damaged.
    """
    data = Path(path).read_bytes()
    mod, bits = codec.measure(data, str(path))
    return _inspection(load(mod), bits, codec.read_header(data))


def _inspection(
    mod: tvm.IRModule, bits: Mapping[str | None, float], file: Header | None, no_file: str = ""
) -> Inspection:
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
        _reports(mod, weights, None if file is None else bits),
        file,
        no_file,
    )


def _reports(
    mod: tvm.IRModule, weights: Mapping[str, ir.Weight], bits: Mapping[str | None, float] | None
) -> tuple[ParameterReport, ...]:
    reports, so_far = [], 0.0
    for name, parameter in ir.parameters(mod).items():
        # Each from one rounded sum to the next, for tensors of an archive share words.
        before, so_far = so_far, so_far + (bits or {}).get(name, 0.0) / 8
        coded = None if bits is None else (round(so_far) - round(before), so_far - before)
        reports.append(_report(parameter, weights.get(name), coded))
    return tuple(reports)


def _report(
    parameter: ir.Parameter, weight: ir.Weight | None, coded: tuple[int, float] | None
) -> ParameterReport:
    value = parameter.value
    layout, packed = smallest_layout(parameter, weight.output_axis if weight else 0)
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
        coded_bytes=None if coded is None else coded[0],
        bits_per_weight=None if coded is None else 8 * coded[1] / max(1, value.size),
    )


def _code_bits(centroids: NDArray[Any]) -> int:
    return max(1, int(centroids.shape[-1] - 1).bit_length())


def smallest_layout(parameter: ir.Parameter, output_axis: int) -> tuple[str, int]:
    """Give the name of the packed layout that takes fewest bytes of flash, and these bytes."""
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
            if bits <= BANK_CODE_BITS:
                banks = Bank.pack(to_rows(codes, output_axis))
                sizes["bank"] = banks.nbytes + centroids.nbytes
    elif value.dtype in WEIGHT_DTYPES and not value.all() and np.isfinite(value).all():
        rows = _rows(value, output_axis)
        sizes["gap_codes"] = GapCodes.pack_values(rows, best_gap_bits(rows, 0)).nbytes
        sizes["block"] = Block.pack(to_rows(value, output_axis)).nbytes
    name = min(sizes, key=lambda layout: sizes[layout])
    return name, sizes[name]


def _rows(tensor: NDArray[Any], output_axis: int) -> NDArray[Any]:
    moved = np.moveaxis(tensor, output_axis, 0)
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))


@dataclass(frozen=True)
class Bin:
    """Values from ``low`` to below ``high``; the last bin takes its ``high`` too.

    Attributes:
        low: lower end.
        high: upper end.
        count: number of values.
        centroids: number of centroids, of all codebooks, that some weight uses.
    """

    low: float
    high: float
    count: int
    centroids: int


@dataclass(frozen=True)
class Centroid:
    """A centroid: its codebook, its code, its value, and how many weights have it."""

    codebook: int
    code: int
    value: float
    count: int


@dataclass(frozen=True)
class Histogram:
    """How the values of a parameter are spread.

    Attributes:
        name: the parameter's name.
        size: number of its values.
        zeros: number of those that are 0; they are in no bin.
        bins: of equal width, from the least value that is not 0 to the largest; infinities are
            in the first and the last.
        centroids: of a shared weight, all of all codebooks in order; else empty.
    """

    name: str
    size: int
    zeros: int
    bins: tuple[Bin, ...]
    centroids: tuple[Centroid, ...]


def histogram(mod: tvm.IRModule, name: str, *, bins: int = 16) -> Histogram:
    """Count the values of a parameter by bins, and of a shared one by centroids.

    Args:
        mod: a canonical module.
        name: of the parameter.
        bins: their number, 1 or more.

    Raises:
        OptionError: no such parameter, or a number of bins below 1.
        PassError: the module is not one straight-line function main.
    """
    named = ir.parameters(mod)
    if name not in named:
        raise OptionError(
            f"There is no parameter {name}; expected {', '.join(named) or 'none: there are none'}."
        )
    if bins < 1:
        raise OptionError(f"A histogram of {bins} bins; expected 1 or more.")
    parameter = named[name]
    values = parameter.value.astype(np.float64).ravel()
    kept = values[values != 0]
    centroids: tuple[Centroid, ...] = ()
    used = np.zeros(0)
    if parameter.codes is not None and parameter.centroids is not None:
        table = parameter.centroids.astype(np.float64).ravel()
        flat = flat_codes(parameter.codes, parameter.centroids.shape)
        counts = np.bincount(flat.ravel(), minlength=table.size)
        levels = parameter.centroids.shape[-1]
        centroids = tuple(
            Centroid(i // levels, i % levels, float(table[i]), int(counts[i]))
            for i in range(table.size)
        )
        used = table[(counts > 0) & (table != 0)]
    return Histogram(name, values.size, values.size - kept.size, _bins(kept, used, bins), centroids)


def _bins(kept: NDArray[Any], centroids: NDArray[Any], number: int) -> tuple[Bin, ...]:
    finite = kept[np.isfinite(kept)]
    if not kept.size:
        return ()
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    edges = np.histogram_bin_edges(finite, number, (low, high))
    counts = np.histogram(np.clip(kept, edges[0], edges[-1]), edges)[0]
    of_centroids = np.histogram(np.clip(centroids, edges[0], edges[-1]), edges)[0]
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), int(of_centroids[i]))
        for i in range(number)
    )


@dataclass(frozen=True)
class MemoryStep:
    """One step of the C code: its name in the IR, its kind, and the bytes of the arena it holds."""

    name: str
    kind: str
    live_bytes: int


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor, or the scratch memory of a kernel, in the arena.

    Attributes:
        name: of the tensor.
        offset: its first byte.
        size_bytes: its size in bytes.
        first: index of the step that writes it.
        last: index of the last step that reads it.
        over: the tensor whose bytes it takes while that is read for the last time, or None.
    """

    name: str
    offset: int
    size_bytes: int
    first: int
    last: int
    over: str | None


@dataclass(frozen=True)
class Memory:
    """The memory plan of a network's C code.

    Attributes:
        arena_bytes: size of the arena in bytes.
        bound_bytes: the most bytes that are live at one step: no plan is smaller.
        input_bytes: bytes of the caller's input buffers, which are not in the arena.
        output_bytes: bytes of the caller's output buffers, which are not in the arena.
        steps: in the order in which they run.
        tensors: what lies in the arena, in the order in which it is written.
    """

    arena_bytes: int
    bound_bytes: int
    input_bytes: int
    output_bytes: int
    steps: tuple[MemoryStep, ...]
    tensors: tuple[MemoryTensor, ...]


def memory(
    mod: tvm.IRModule, *, board: str | PathLike[str] | None = None, fallback: str = "error"
) -> Memory:
    """Plan the memory of a network as the target ``c`` does.

    Args:
        mod: a canonical module.
        board: name of a board or path of its TOML file; its kernels may need scratch memory or
            write in place. Without one the plan is that of plain C.
        fallback: as of :func:`tvm_compress.build`.

    Raises:
        OptionError: no such board or fallback.
        UnsupportedError: an operator has no C form.
    """
    from tvm_compress.build import prepare
    from tvm_compress.targets.mcu.boards import get_board
    from tvm_compress.targets.mcu.lower import lower
    from tvm_compress.targets.mcu.program import make_program

    chosen = None if board is None else get_board(str(board))
    dsp, mve = (chosen.has_dsp, chosen.has_mve) if chosen is not None else (False, False)
    program = make_program(*lower(prepare(mod, fallback), dsp=dsp, mve=mve))
    plan, lifetimes = program.plan, program.lifetimes
    assert plan is not None
    # The program's names end in a number, which two results of one call alone need.
    short = {life.name: life.name.rpartition("#")[0] for life in lifetimes}
    often = Counter(short.values())
    names = {name: text if often[text] == 1 else name for name, text in short.items()}
    return Memory(
        plan.arena_bytes,
        plan.bound_bytes,
        sum(spec.size_bytes for spec in program.inputs),
        sum(spec.size_bytes for spec in program.outputs),
        tuple(
            MemoryStep(step.name, step.kind, live)
            for step, live in zip(program.steps, program.live_bytes, strict=True)
        ),
        tuple(
            MemoryTensor(
                names[life.name],
                plan.offsets[life.name],
                life.size_bytes,
                life.first,
                life.last,
                names[plan.over[life.name]] if life.name in plan.over else None,
            )
            for life in lifetimes
        ),
    )
