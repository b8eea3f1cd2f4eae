"""A canonical module seen as a graph: its parameters, its weights, and one way to rewrite it.

A canonical module has one function ``main`` whose parameters are the network's inputs and whose
body is one dataflow block. A *parameter* of the network is a binding of that block whose value is
a constant or ``tvm_compress.codebook`` of two constants; the name of the bound variable is the
parameter's name, so a weight keeps its name while passes change how it is represented.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, fixed_point
from tvm_compress.errors import PassError
from tvm_compress.ops import CODEBOOK, codebook_numpy

__all__ = [
    "Parameter",
    "Rewriter",
    "Weight",
    "biases",
    "bindings",
    "dequantized",
    "first_weights",
    "identifier",
    "last_weights",
    "main_function",
    "parameters",
    "replace_parameters",
    "scales",
    "weights",
]


@dataclass(frozen=True)
class Parameter:
    """One named parameter of a network.

    ``codes`` and ``centroids`` are given for a shared weight alone (see
    :mod:`tvm_compress.ops.codebook` for their shapes); ``value`` is always the dense tensor. All
    arrays are read-only views of the IR's memory, but for the value of a shared weight: that is
    made when it is first asked for.
    """

    name: str
    dense: NDArray[Any] | None
    codes: NDArray[np.uint8] | None = None
    centroids: NDArray[Any] | None = None

    @cached_property
    def value(self) -> NDArray[Any]:
        """The dense tensor."""
        if self.dense is not None:
            return self.dense
        assert self.codes is not None and self.centroids is not None
        return codebook_numpy(self.codes, self.centroids)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense tensor, which this does not make."""
        return self.value.shape if self.codes is None else self.codes.shape

    @property
    def shared(self) -> bool:
        """Whether the values are given by a codebook."""
        return self.codes is not None

    @property
    def parts(self) -> int:
        """How many codebooks the weight has: 1 of a plain one, 0 of a dense parameter."""
        return 0 if self.centroids is None else int(np.prod(self.centroids.shape[:-1]))


@dataclass(frozen=True)
class Weight:
    """A parameter that an operator multiplies with its input: what compression works on.

    ``operator`` is the operator's name and ``output_axis`` the axis of the output channels.
    """

    parameter: Parameter
    operator: str
    output_axis: int

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.parameter.name


def identifier(name: str) -> str:
    """Turn any name into one that TVMScript and C take.

    >>> identifier("block.0/conv:weight")
    'block_0_conv_weight'
    """
    clean = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return clean if clean and not clean[0].isdigit() else f"p{clean}"


def main_function(mod: tvm.IRModule) -> relax.Function:
    """Give the function ``main``."""
    if not isinstance(mod, tvm.IRModule):
        raise PassError(
            f"A {type(mod).__name__} was given; expected an IRModule: use load() first."
        )
    names = [var.name_hint for var in mod.get_global_vars()]
    if "main" not in names:
        raise PassError(
            f"The module has no function main (it has {', '.join(names) or 'none'}); "
            "rename the entry function to main."
        )
    return mod["main"]


def bindings(function: relax.Function) -> Iterator[relax.VarBinding]:
    """Give the bindings of a straight-line function in order."""
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding):
                raise PassError(
                    f"The binding of {edge.var_name(binding.var)} is a {type(binding).__name__}; "
                    "expected plain bindings: remove run-time shape checks from the module."
                )
            if isinstance(binding.value, relax.If | relax.Function):
                raise PassError(
                    f"{edge.var_name(binding.var)} is bound to a {type(binding.value).__name__}; "
                    "expected straight-line code: export the network without control flow."
                )
            yield binding


def _unique(name: str, taken: set[str]) -> str:
    """Make a name an identifier that is not taken, and take it."""
    unique, number = identifier(name), 1
    while unique in taken:
        number += 1
        unique = f"{identifier(name)}_{number}"
    taken.add(unique)
    return unique


def _is_parameter(value: Any) -> bool:
    return isinstance(value, edge.Constant) or (
        edge.op_name(value) == CODEBOOK and all(isinstance(a, edge.Constant) for a in value.args)
    )


def _parameter(name: str, value: Any) -> Parameter | None:
    if isinstance(value, edge.Constant):
        return Parameter(name, edge.constant_value(value))
    if _is_parameter(value):
        codes, centroids = (edge.constant_value(arg) for arg in value.args)
        return Parameter(name, None, codes, centroids)
    return None


def parameters(mod: tvm.IRModule) -> dict[str, Parameter]:
    """Give all named parameters of a module, in the order of their bindings."""
    found: dict[str, Parameter] = {}
    for binding in bindings(main_function(mod)):
        parameter = _parameter(edge.var_name(binding.var), binding.value)
        if parameter is not None:
            found[parameter.name] = parameter
    return found


def _output_axis(call: Any, argument: int) -> int | None:
    """Give the axis of the output channels where ``argument`` of ``call`` is a weight."""
    name = edge.op_name(call) or ""
    if name.startswith("relax.nn.conv") and argument == 1:
        return str(call.attrs.kernel_layout).index("O")
    if name == "relax.matmul":
        rank = int(edge.tensor_type(call.args[argument]).ndim)
        return rank - 1 if argument == 1 else rank - 2
    return None


def dequantized(function: relax.Function) -> dict[Any, str]:
    """Give the names of the parameters that ``relax.dequantize`` gives, by its variable."""
    held = {b.var for b in bindings(function) if _is_parameter(b.value)}
    return {
        binding.var: edge.var_name(binding.value.args[0])
        for binding in bindings(function)
        if edge.op_name(binding.value) == "relax.dequantize" and binding.value.args[0] in held
    }


def weights(mod: tvm.IRModule) -> dict[str, Weight]:
    """Give the parameters of two or more dimensions that a convolution or a product uses.

    Of a quantised weight that is the integer parameter, which a ``dequantize`` stands behind. A
    parameter used in several places is listed once, with its first use.
    """
    named = parameters(mod)
    quantised = dequantized(main_function(mod))
    found: dict[str, Weight] = {}
    for binding in bindings(main_function(mod)):
        if not isinstance(binding.value, tvm.ir.Call):
            continue
        for index, arg in enumerate(binding.value.args):
            if not isinstance(arg, relax.Var):
                continue
            parameter = named.get(quantised.get(arg, edge.var_name(arg)))
            if parameter is None or len(parameter.shape) < 2 or parameter.name in found:
                continue
            axis = _output_axis(binding.value, index)
            if axis is not None:
                operator = edge.op_name(binding.value) or ""
                found[parameter.name] = Weight(parameter, operator, axis)
    return found


def _weights_of(call: Any, named: Mapping[str, Weight], quantised: Mapping[Any, str]) -> set[str]:
    """Give the names of the weights that an operator multiplies with."""
    if not isinstance(call, tvm.ir.Call):
        return set()
    names = {
        quantised.get(arg, edge.var_name(arg))
        for index, arg in enumerate(call.args)
        if isinstance(arg, relax.Var) and _output_axis(call, index) is not None
    }
    return names & set(named)


def first_weights(mod: tvm.IRModule) -> set[str]:
    """Give the weights whose input has gone through no other weight."""
    named, found = weights(mod), set()
    quantised = dequantized(main_function(mod))
    behind: set[Any] = set()  # variables that a weight has a part in
    for binding in bindings(main_function(mod)):
        mine = _weights_of(binding.value, named, quantised)
        fed = any(var in behind for var in edge.variables_in(binding.value))
        if mine and not fed:
            found |= mine
        if mine or fed:
            behind.add(binding.var)
    return found


def last_weights(mod: tvm.IRModule) -> set[str]:
    """Give the weights whose result reaches an output through no other weight."""
    function = main_function(mod)
    named, found = weights(mod), set()
    quantised = dequantized(function)
    outputs, _ = edge.outputs_of(function)
    reaching = {var for _, value in outputs for var in edge.variables_in(value)}
    for binding in reversed(list(bindings(function))):
        if binding.var in reaching:
            mine = _weights_of(binding.value, named, quantised)
            found |= mine
            reaching.update(() if mine else edge.variables_in(binding.value))
    return found


def biases(mod: tvm.IRModule) -> set[str]:
    """Give the dense float parameters that are added to the sums of weights."""
    function, named = main_function(mod), weights(mod)
    quantised = dequantized(function)
    bound = {binding.var: binding.value for binding in bindings(function)}
    found = set()
    for value in bound.values():
        if edge.op_name(value) != "relax.add":
            continue
        for total, bias in (value.args, reversed(value.args)):
            held = bound.get(bias) if isinstance(bias, relax.Var) else None
            if (
                isinstance(held, edge.Constant)
                and edge.dtype_of(held).startswith("float")
                and isinstance(total, relax.Var)
                and _weights_of(bound.get(total), named, quantised)
            ):
                found.add(edge.var_name(bias))
    return found - set(named)


def scales(function: relax.Function) -> dict[str, str]:
    """Give the parameters that scale the sums of weights in fixed point (see ``fixed-point``).

    By the name of the weight: the scale's name.
    """
    bound = {binding.var: binding.value for binding in bindings(function)}
    found: dict[str, str] = {}
    for value in bound.values():
        if edge.op_name(value) != "relax.multiply":
            continue
        total, scale = value.args
        call = bound.get(total) if isinstance(total, relax.Var) else None
        held = bound.get(scale) if isinstance(scale, relax.Var) else None
        if not isinstance(held, edge.Constant):
            continue
        if not isinstance(call, tvm.ir.Call):
            continue
        for index, arg in enumerate(call.args):
            weight: Any = bound.get(arg) if isinstance(arg, relax.Var) else None
            if (
                edge.op_name(weight) == CODEBOOK
                and _is_parameter(weight)
                and _output_axis(call, index) is not None
                and fixed_point.step_of(edge.constant_value(weight.args[1])) is not None
            ):
                found[edge.var_name(arg)] = edge.var_name(scale)
    return found


class Rewriter:
    """Rebuilds ``main`` binding by binding.

    Subclasses override :meth:`rewrite`. Inside it ``self.value(var)`` gives what a new variable is
    bound to, so a rule can look through its arguments.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        """Take the module to rewrite; :meth:`run` does it."""
        self.mod = mod
        self._builder = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []
        self._bound: dict[Any, Any] = {}
        self._names: set[str] = set()
        self._uses: dict[Any, int] = {}
        self._new: dict[Any, Any] = {}  # old variable -> new expression
        self._wanted: dict[Any, str] = {}  # the name of a new variable, while not yet unique
        self._owners: dict[Any, tuple[str, str]] = {}  # or: the name of another one, and a suffix

    def rewrite(self, name: str, value: Any) -> Any:
        """Give the new value of the binding ``name``; ``value`` has new arguments already."""
        return value

    def result(self, value: Any) -> Any:
        """Give what an output is bound to in the new function."""
        return value

    def input_type(self, param: Any) -> Any:
        """Give the type of an input in the new function."""
        return param.ty

    def value(self, expr: Any) -> Any:
        """Give what a variable is bound to in the new function, or the expression itself."""
        return self._bound.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def used_once(self, expr: Any) -> bool:
        """Whether a new variable stands for one that is used once in the old function."""
        return self._uses.get(expr, 1) == 1

    def emit(self, value: Any, name: str) -> Any:
        """Bind ``value`` to a new variable whose name is ``name``, made unique."""
        if isinstance(value, relax.Var | relax.ShapeExpr):
            return value
        value = self._builder.normalize(value)
        var = relax.DataflowVar(self._unique(name), value.ty)
        self._bindings.append(relax.VarBinding(var, value))
        self._bound[var] = value
        self._wanted[var] = name
        return var

    def _unique(self, name: str) -> str:
        return _unique(name, self._names)

    def _finish(self, results: list[Any], taken: set[str]) -> tuple[list[Any], list[Any]]:
        """Give the bindings that the results need, and the results.

        Parameters go in front of their first use, and names are given anew: a binding that a rule
        made superfluous must not keep a weight from its name.
        """
        used = {var for result in results for var in edge.variables_in(result)}
        live = []
        for binding in reversed(self._bindings):
            if binding.var in used:
                live.append(binding)
                used.update(edge.variables_in(binding.value))
        live.reverse()
        constants = {b.var: b for b in live if _is_parameter(b.value)}
        computed = [b for b in live if b.var not in constants]
        final: dict[str, str] = {}
        for var in [*(v for v in constants if v not in self._owners), *(b.var for b in computed)]:
            final[edge.var_name(var)] = _unique(self._wanted[var], taken)
        for var in (v for v in constants if v in self._owners):
            owner, suffix = self._owners[var]
            final[edge.var_name(var)] = _unique(final.get(owner, owner) + suffix, taken)

        placed: list[Any] = []
        new: dict[Any, Any] = {}

        def place(binding: Any) -> None:
            for var in edge.variables_in(binding.value):
                if var in constants and var not in new:
                    place(constants[var])
            var = relax.DataflowVar(final[edge.var_name(binding.var)], binding.var.ty)
            placed.append(relax.VarBinding(var, edge.substitute(binding.value, new)))
            new[binding.var] = var

        for binding in computed:
            place(binding)
        for result in results:
            for var in edge.variables_in(result):
                if var in constants and var not in new:
                    place(constants[var])
        return placed, [edge.substitute(result, new) for result in results]

    def run(self) -> tvm.IRModule:
        """Give the module with ``main`` rewritten and its dead bindings removed."""
        function = main_function(self.mod)
        names = [self._unique(edge.var_name(p)) for p in function.params]
        inputs = [
            relax.Var(name, self.input_type(p))
            for name, p in zip(names, function.params, strict=True)
        ]
        new = self._new
        new.update(zip(function.params, inputs, strict=True))
        outputs, is_tuple = edge.outputs_of(function)
        names = [self._unique(name) for name, _ in outputs]
        uses = edge.use_counts(function)
        for binding in bindings(function):
            name = edge.var_name(binding.var)
            value = self.rewrite(name, edge.substitute(binding.value, new))
            var = new[binding.var] = self.emit(value, name)
            if isinstance(var, relax.Var):
                # An alias adds the uses of its name and is itself one use less.
                alias = var in self._uses or isinstance(value, relax.Var)
                before = self._uses.get(var, 1) - 1 if alias else 0
                self._uses[var] = before + uses.get(binding.var, 0)
        # The alias `output = value` is made anew, under the name that the output had.
        results = [self.result(edge.substitute(value, new)) for _, value in outputs]
        taken = {*names, *(edge.var_name(var) for var in inputs)}
        placed, results = self._finish(results, taken)
        named = list(zip(names, results, strict=True))
        rewritten = edge.straight_line(function, inputs, placed, named, is_tuple)
        mod = self.mod.clone()
        mod.update_func(mod.get_global_var("main"), rewritten)
        return relax.transform.DeadCodeElimination(["main"])(mod)


def replace_parameters(
    mod: tvm.IRModule, change: Mapping[str, tvm.ir.Expr] | Callable[[Parameter], Any]
) -> tvm.IRModule:
    """Rebind parameters: by name to new values, or by a function that gives None for no change."""

    class Replace(Rewriter):
        def rewrite(self, name: str, value: Any) -> Any:
            parameter = _parameter(name, value)
            if parameter is None:
                return value
            new = change(parameter) if callable(change) else change.get(name)
            return value if new is None else new

    return Replace(mod).run()
