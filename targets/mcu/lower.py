"""From a canonical module to one whose every step is a loop nest: the C target's pipeline.

Convolutions and products with constant weights become calls of the kernels of
:mod:`tvm_compress.targets.mcu.kernels`, with the elementwise operators behind them inside and
their weights packed in the layout that takes the fewest bytes. Everything else is legalised and
fused by TVM's own passes. The result is an ordinary Relax module: TVM can compile and run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, te
from tvm.tirx import FloatImm

from tvm_compress import edge, ir
from tvm_compress.layouts import (
    BANK_CODE_BITS,
    WEIGHT_DTYPES,
    Bank,
    Block,
    DenseCodes,
    GapCodes,
    best_gap_bits,
)
from tvm_compress.ops import CODEBOOK
from tvm_compress.passes.channels_last import ChannelsLast
from tvm_compress.targets.mcu.dsp import Preference, dsp_kernel, dsp_kernels, dsp_takes_sum
from tvm_compress.targets.mcu.dsp.assembler import AssemblyFunction
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.residual import Addition
from tvm_compress.targets.mcu.dsp.steps import find_dsp_steps
from tvm_compress.targets.mcu.geometry import Geometry, geometry_of
from tvm_compress.targets.mcu.integer_groups import (
    IntegerGroup,
    find_integer_groups,
    with_residuals,
)
from tvm_compress.targets.mcu.integer_steps import Step
from tvm_compress.targets.mcu.joins import write_parts
from tvm_compress.targets.mcu.kernels import Epilogue, build_kernel, build_stub
from tvm_compress.targets.mcu.mve import mve_kernel
from tvm_compress.targets.mcu.mve.groups import find_vector_groups
from tvm_compress.targets.mcu.weights import (
    Dense,
    PackedBanks,
    PackedBlocks,
    PackedCodes,
    PackedGaps,
    Source,
    stream_order,
)

__all__ = ["OUTPUT_NAMES", "LoweredLayer", "choose_layout", "lower"]

Expr = Any


# The attribute of the lowered main that names its outputs.
OUTPUT_NAMES = "tvm_compress.output_names"


@dataclass(frozen=True)
class LoweredLayer:
    """What is known of a step that multiplies weights: for reports, symbols and memory."""

    name: str
    kind: str
    layout: str
    weight: str
    macs: int
    operands: int  # how many of the call's last arguments are the weight's arrays
    in_place: tuple[int, ...] = ()  # the arguments whose bytes the output may take
    assembly: AssemblyFunction | None = None  # what computes it, in place of its loop nest
    scratch_bytes: int = 0  # of the assembly


# Scalar meanings of the operators that may follow a sum in its kernel.
_SCALAR: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": lambda a, b: tvm.tirx.max(a, b),
    "minimum": lambda a, b: tvm.tirx.min(a, b),
    "nn.relu": lambda a: tvm.tirx.max(a, FloatImm("float32", 0.0)),
    "sigmoid": lambda a: tvm.tirx.sigmoid(a),
    "tanh": lambda a: tvm.tirx.tanh(a),
    "negative": lambda a: FloatImm("float32", 0.0) - a,
    "abs": lambda a: tvm.tirx.abs(a),
    "exp": lambda a: tvm.tirx.exp(a),
}


@dataclass
class _Group:
    """A sum and the elementwise operators behind it."""

    call: Any
    geometry: Geometry
    weight: Any
    names: list[str]  # of the variables that hold the sum and what follows it
    # (operator's call, which argument is the running value)
    tail: list[tuple[Any, int]] = field(default_factory=list)


def lower(
    mod: tvm.IRModule, *, dsp: bool = False, mve: bool = False, preference: Preference | None = None
) -> tuple[tvm.IRModule, dict[str, LoweredLayer]]:
    """Lower a canonical module; ``dsp`` and ``mve`` say which extension the core has.

    ``preference`` is what kernels in assembly are chosen by.

    Returns:
        The lowered module (``call_tir`` and ``reshape`` alone are left in ``main``) and what is
        known of the calls that multiply weights, by the name of the variable they are bound to.
    """
    if dsp or mve:  # plain C takes within 4 % the same instructions either way
        mod = ChannelsLast().apply(mod)
    fuse = _FuseLayers(mod)
    if dsp and not mve:
        fuse.take_sums(
            mod, lambda group: edge.dtype_of(group.x) == "int8" and dsp_takes_sum(group.layer())
        )
        preference = preference or Preference()
        fuse.take_kernels(lambda layers: dsp_kernels(layers, preference))
        fuse.take_steps(find_dsp_steps(mod, preference.byte_cost))
    if mve:
        # A core with MVE has the DSP extension too.
        price = (preference or Preference()).byte_cost
        fuse.take_kernels(
            lambda layers: [
                mve_kernel(layer, price) or dsp_kernel(layer, byte_cost=price)
                for layer, _ in layers
            ]
        )
        fuse.take_steps(find_vector_groups(mod))
    mod = write_parts(fuse.run())
    passes = [
        # A reshape moves nothing: the memory planner gives both names the same bytes.
        relax.transform.LegalizeOps({"relax.reshape": lambda builder, call: call}),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
    layers = dict(fuse.layers)
    for binding in ir.bindings(ir.main_function(mod)):
        # The passes drop `output = value`, and the call takes the output's name.
        if isinstance(binding.value, relax.Var) and edge.var_name(binding.value) in layers:
            layers[edge.var_name(binding.var)] = layers[edge.var_name(binding.value)]
    names = [name for name, _ in edge.outputs_of(ir.main_function(mod))[0]]
    lowered = tvm.transform.Sequential(passes)(mod)
    # The outputs may be named after inputs now, or two after one result: keep their own names.
    lowered.update_func(
        lowered.get_global_var("main"), lowered["main"].with_attr(OUTPUT_NAMES, names)
    )
    return lowered, layers


class _AssemblyKernel(Protocol):
    """What computes an integer layer in assembly."""

    @property
    def layout(self) -> str:
        """How the weights lie in the stream."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch that a call takes."""

    def stream(self) -> NDArray[Any]:
        """Give the weights and constants, uint32, as the function reads them."""

    def function(self) -> AssemblyFunction:
        """Write ``void f(const void *x, const void *stream, void *y, void *scratch)``."""


class _FuseLayers(ir.Rewriter):
    """Replaces each group of a sum and its tail by one call of a kernel."""

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.layers: dict[str, LoweredLayer] = {}
        self._kernels = relax.BlockBuilder()
        self._named = ir.parameters(mod)
        self._groups = _find_groups(mod, self._named)
        self._integers = find_integer_groups(mod, self._named)
        # What a group computes on its way is dropped with its variables.
        self._inside = {name for group in self._groups.values() for name in group.names}
        self._inside |= {name for group in self._integers.values() for name in group.names}
        self._assembly: dict[str, _AssemblyKernel | None] = {}
        self._steps: dict[str, Step] = {}

    def take_sums(self, mod: tvm.IRModule, takes: Callable[[IntegerGroup], bool]) -> None:
        """Let kernels take in the additions behind them."""
        self._integers = with_residuals(mod, self._integers, takes)
        self._inside |= {name for group in self._integers.values() for name in group.names}

    def take_kernels(
        self,
        choose: Callable[
            [Sequence[tuple[IntegerLayer, Addition | None]]], Sequence[_AssemblyKernel | None]
        ],
    ) -> None:
        """Let kernels in assembly compute the integer layers, where there are some."""
        groups = {n: g for n, g in self._integers.items() if edge.dtype_of(g.x) == "int8"}
        kernels = choose([(group.layer(), group.sum) for group in groups.values()])
        self._assembly = dict(zip(groups, kernels, strict=True))

    def take_steps(self, steps: dict[str, Step]) -> None:
        """Let kernels compute these steps too, but for those that a layer has taken in."""
        taken = self._inside | set(self._integers)
        self._steps = {n: step for n, step in steps.items() if not taken & {n, *step.names}}
        self._inside |= {name for step in self._steps.values() for name in step.names}

    def rewrite(self, name: str, value: Any) -> Any:
        group = self._groups.get(name)
        if group is not None:
            return self._call(name, group)
        if name in self._steps:
            return self._step_call(name, self._steps[name])
        if name in self._integers:
            return self._integer_call(name, self._integers[name])
        if name in self._inside or not isinstance(value, tvm.ir.Call):
            return value
        return self._with_gather(value) if any(map(self._shared, value.args)) else value

    def _shared(self, arg: Any) -> bool:
        return isinstance(arg, relax.Var) and edge.op_name(self.value(arg)) == CODEBOOK

    def _with_gather(self, call: Any) -> Any:
        """Let an operator without a kernel of ours read its weight through the codebook.

        The gather and the operator become one primitive function, so that the two end in one loop
        nest, where the gather is inlined: the dense weight is never stored.
        """
        passed: list[Any] = []
        bound: list[relax.VarBinding] = []
        params: list[relax.Var] = []

        def parameter(expr: Any) -> relax.Var:
            passed.append(expr)
            params.append(relax.Var(f"p{len(params)}", expr.ty))
            return params[-1]

        args = []
        for arg in call.args:
            if self._shared(arg):
                codes, centroids = (parameter(part) for part in self.value(arg).args)
                weight = relax.DataflowVar(f"w{len(bound)}", arg.ty)
                gathered = self._kernels.call_te(_gather, codes, centroids)
                bound.append(relax.VarBinding(weight, gathered))
                args.append(weight)
            else:
                args.append(parameter(arg) if isinstance(arg, relax.Var) else arg)
        function = edge.primitive(params, bound, edge.with_args(call, args))
        name = (edge.op_name(call) or "call").rsplit(".", 1)[-1]
        return tvm.ir.Call(self._kernels.add_func(function, f"{name}_shared"), passed)

    def run(self) -> tvm.IRModule:
        mod = super().run()
        for var, function in self._kernels.get().functions_items():
            mod.update_func(var, function)
        return mod

    def _call(self, name: str, group: _Group) -> Any:
        geometry = group.geometry
        parameter = self._named[edge.var_name(group.weight)]
        source = choose_layout(parameter, geometry)
        extra = [arg for call, index in group.tail for i, arg in enumerate(call.args) if i != index]
        extra = [arg for arg in extra if edge.is_tensor(arg) and not _scalar(arg)]
        shapes = tuple((edge.static_shape(arg) or (), edge.dtype_of(arg)) for arg in extra)
        epilogue = Epilogue(_compose(group.tail), shapes)
        kind = _kind(group.call, geometry)
        function = build_kernel(geometry, source, epilogue)
        kernel = self._kernels.add_func(function, f"{kind}_{source.layout}")
        operands = source.operands()
        # An operand of the epilogue that has the output's elements is read one by one, each right
        # before the element of the output is stored.
        in_place = tuple(
            1 + i
            for i, (shape, dtype) in enumerate(shapes)
            if dtype == "float32" and math.prod(shape) == math.prod(geometry.out_shape)
        )
        self.layers[name] = LoweredLayer(
            name, kind, source.layout, parameter.name, geometry.macs, len(operands), in_place
        )
        args = [group.call.args[0], *extra]
        args = [edge.substitute(arg, self._new) for arg in args]
        args += [edge.constant(operand.value) for operand in operands]
        result = relax.TensorType(geometry.out_shape, "float32")
        return relax.call_tir(kernel, args, result)

    def _integer_call(self, name: str, group: IntegerGroup) -> Any:
        geometry = group.geometry
        kind = _kind(group.call, geometry)
        x = edge.substitute(group.x, self._new)
        kernel = self._assembly.get(name)
        others = [] if group.sum is None else [edge.substitute(group.residual, self._new)]
        arrays: list[NDArray[Any]]
        if kernel is not None:
            arrays, layout = [kernel.stream()], kernel.layout
            if isinstance(kernel, Convolution):
                arrays += kernel.tables
            constants = len(arrays)
            inputs = [(geometry.in_shape, edge.dtype_of(x))]
            inputs += [(geometry.out_shape, edge.dtype_of(other)) for other in others]
            inputs += [(array.shape, str(array.dtype)) for array in arrays]
            function = build_stub(inputs, (geometry.out_shape, group.out_dtype))
        else:
            source = choose_layout(group.parameter, geometry)
            epilogue, extra = group.epilogue()
            function = build_kernel(geometry, source, epilogue, group.arithmetic())
            arrays = [*extra, *(operand.value for operand in source.operands())]
            layout, constants = source.layout, len(source.operands())
        called = self._kernels.add_func(function, f"{kind}_{layout}")
        assembly = None if kernel is None else kernel.function()
        self.layers[name] = LoweredLayer(
            name,
            kind,
            layout,
            group.parameter.name,
            geometry.macs,
            constants,
            () if assembly is None else assembly.in_place,
            assembly,
            0 if kernel is None else kernel.scratch_bytes,
        )
        result = relax.TensorType(geometry.out_shape, group.out_dtype)
        return relax.call_tir(called, [x, *others, *map(edge.constant, arrays)], result)

    def _step_call(self, name: str, step: Step) -> Any:
        kernel, assembly = step.kernel, step.kernel.function()
        inputs = [edge.substitute(x, self._new) for x in step.inputs]
        inputs += map(edge.constant, kernel.arrays)
        types = [edge.tensor_type(x) for x in inputs]
        shapes = [(edge.static_shape(ty) or (), edge.dtype_of(ty)) for ty in types]
        function = build_stub(shapes, (step.out_shape, step.out_dtype))
        called = self._kernels.add_func(function, f"{step.kind}_{kernel.layout}")
        self.layers[name] = LoweredLayer(
            name,
            step.kind,
            kernel.layout,
            "",
            0,
            len(kernel.arrays),
            assembly.in_place,
            assembly,
            kernel.scratch_bytes,
        )
        result = relax.TensorType(step.out_shape, step.out_dtype)
        return relax.call_tir(called, inputs, result)


def _kind(call: Any, geometry: Geometry) -> str:
    kind = (edge.op_name(call) or "").rsplit(".", 1)[-1]
    return f"depthwise_{kind}" if geometry.groups > 1 and geometry.inputs == 1 else kind


def _gather(codes: te.Tensor, centroids: te.Tensor) -> te.Tensor:
    lengths = [int(size) for size in codes.shape]
    counts = [int(count) for count in centroids.shape[:-1]]

    def value(*index: Any) -> Any:
        # Each axis is divided into as many blocks as the codebooks have along it, or none has.
        block = [i // (n // g) for i, n, g in zip(index, lengths, counts, strict=False)]
        return centroids(*block, codes(*index).astype("int32"))

    return te.compute(codes.shape, value, name="gather")


def _scalar(arg: Any) -> bool:
    return isinstance(arg, edge.Constant) and edge.tensor_type(arg).ndim == 0


def _compose(tail: Sequence[tuple[Any, int]]) -> Callable[[Expr, Sequence[Expr]], Expr]:
    """Give the scalar function of a chain of elementwise operators."""

    def apply(total: Expr, elements: Sequence[Expr]) -> Expr:
        rest = list(elements)
        for call, index in tail:
            name = (edge.op_name(call) or "").removeprefix("relax.")
            if name == "clip":
                low, high = (FloatImm("float32", float(bound)) for bound in call.args[1:])
                total = tvm.tirx.min(tvm.tirx.max(total, low), high)
            elif name == "nn.leakyrelu":
                alpha = FloatImm("float32", float(call.attrs.alpha))
                total = tvm.tirx.Select(total > FloatImm("float32", 0.0), total, total * alpha)
            else:
                args = []
                for i, arg in enumerate(call.args):
                    if i == index:
                        args.append(total)
                    elif _scalar(arg):
                        args.append(FloatImm("float32", float(edge.constant_value(arg))))
                    else:
                        args.append(rest.pop(0))
                total = _SCALAR[name](*args)
        return total

    return apply


def _find_groups(mod: tvm.IRModule, named: dict[str, ir.Parameter]) -> dict[str, _Group]:
    """Find the groups, by the name of the variable that holds each group's result."""
    function = ir.main_function(mod)
    uses = edge.use_counts(function)
    open_groups: dict[Any, _Group] = {}
    for binding in ir.bindings(function):
        var, value = binding.var, binding.value
        if edge.dtype_of_or_none(var) != "float32":
            continue
        geometry = geometry_of(value)
        if geometry is not None:
            weight = value.args[1]
            known = isinstance(weight, relax.Var) and edge.var_name(weight) in named
            # Codebooks of other parts than groups of outputs are read through the gather.
            known = known and _by_output(named[edge.var_name(weight)], geometry)
            if known and edge.dtype_of(weight) == "float32":
                open_groups[var] = _Group(value, geometry, weight, [edge.var_name(var)])
            continue
        index = _continues(value, open_groups, uses)
        if index is not None:
            group = open_groups.pop(value.args[index])
            group.tail.append((value, index))
            group.names.append(edge.var_name(var))
            open_groups[var] = group
    return {edge.var_name(var): group for var, group in open_groups.items()}


def _by_output(parameter: ir.Parameter, geometry: Geometry) -> bool:
    """Whether a weight has one codebook, or one for each group of output channels."""
    if parameter.centroids is None or parameter.centroids.ndim == 1:
        return True
    parts = parameter.centroids.shape[:-1]
    return bool(parts[-1 if geometry.rank == 0 else 0] == math.prod(parts))


def _continues(value: Any, groups: dict[Any, _Group], uses: dict[Any, int]) -> int | None:
    """Give which argument of an elementwise call is a group's result that nothing else uses."""
    name = (edge.op_name(value) or "").removeprefix("relax.")
    if name not in _SCALAR and name not in ("clip", "nn.leakyrelu"):
        return None
    shape = edge.static_shape(value)
    candidates = [
        i
        for i, arg in enumerate(value.args)
        if arg in groups and uses[arg] == 1 and groups[arg].geometry.out_shape == shape
    ]
    # Of two sums the later one takes the earlier one's result as an operand.
    order = list(groups)
    return max(candidates, key=lambda i: order.index(value.args[i]), default=None)


# An entry of whole bytes takes half the instructions to decode; it may cost this much more flash.
_BYTE_ENTRY_COST = 1.10


def choose_layout(parameter: ir.Parameter, geometry: Geometry) -> Source:
    """Choose the packed layout of a weight that takes the fewest bytes of flash.

    Entries of ``gap_codes`` are widened to whole bytes where that costs little more.
    """

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        matrix = array.T if geometry.rank == 0 else array.reshape(array.shape[0], -1)
        return np.ascontiguousarray(matrix)

    candidates: list[tuple[int, Source]] = []
    dense = rows(parameter.value)
    if parameter.codes is not None and parameter.centroids is not None:
        codes = rows(parameter.codes)
        bits = max(1, int(codes.max(initial=0)).bit_length())
        centroids = parameter.centroids[..., : 1 << bits]
        if centroids.ndim > 1:
            centroids = centroids.reshape(-1, centroids.shape[-1])
        packed = DenseCodes.pack(codes, bits)
        candidates.append((packed.nbytes + centroids.nbytes, PackedCodes(packed, centroids)))
        if not parameter.centroids[..., 0].any() and (codes == 0).any():
            ordered = stream_order(codes, geometry)
            gaps = _pack_gaps(ordered, bits)
            candidates.append((gaps.nbytes + centroids.nbytes, PackedGaps(gaps, centroids)))
            if bits <= BANK_CODE_BITS:
                banks = Bank.pack(ordered)
                candidates.append((banks.nbytes + centroids.nbytes, PackedBanks(banks, centroids)))
    elif dense.dtype in WEIGHT_DTYPES and (dense == 0).any():
        ordered = stream_order(dense, geometry)
        gaps = GapCodes.pack_values(ordered, best_gap_bits(ordered, 0))
        values = gaps.values if gaps.values is not None else dense[:0]
        candidates.append((gaps.nbytes, PackedGaps(gaps, values)))
        blocks = Block.pack(ordered)
        candidates.append((blocks.nbytes, PackedBlocks(blocks)))
    # A weight of few elements is smaller than its centroids.
    candidates.append((dense.nbytes, Dense(dense)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _pack_gaps(codes: NDArray[Any], bits: int) -> GapCodes:
    best = GapCodes.pack(codes, best_gap_bits(codes, bits), bits)
    if bits < 8 and (best.gap_bits + bits) % 8:
        whole = GapCodes.pack(codes, 8 - bits, bits)
        if whole.nbytes <= best.nbytes * _BYTE_ENTRY_COST:
            return whole
    return best
