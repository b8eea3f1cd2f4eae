"""``export_onnx``: a module as an ONNX model whose shared weights stay shared.

A shared weight becomes three initializers' worth of ONNX that every runtime reads::

    NAME = Gather(NAME.centroids, Cast(NAME.codes, int32), axis=0)     # codes: uint8

:func:`tvm_compress.load` makes a codebook of such a Gather again, with the same codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import UnsupportedError
from tvm_compress.files import write_whole
from tvm_compress.ops import flat_codes
from tvm_compress.ops.layout import axes_between, spatial
from tvm_compress.tensors import TensorSpec, input_specs, output_specs

__all__ = ["export_onnx"]

_OPSET, _IR_VERSION = 17, 8


def export_onnx(
    mod: tvm.IRModule, path: str | PathLike[str] | None = None, *, name: str = "model"
) -> onnx.ModelProto:
    """Write a canonical module as ONNX (opset 17).

    Args:
        mod: a module as :func:`tvm_compress.load` and the passes give it, of static shapes.
        path: where the file goes, whole or not at all; without it nothing is written.
        name: the name of the ONNX graph.

    Returns:
        The model. Inputs, outputs and parameters have the names of the module; codes of shared
        weights are uint8. A weight of several codebooks has them end to end, and its codes count
        through all of them.

    Raises:
        UnsupportedError: an operator, or a form of one, that has no ONNX form here.
        OptionError: the path cannot be written.
    """
    writer = _Writer()
    function = ir.main_function(mod)
    inputs, outputs = input_specs(mod), output_specs(mod)
    named = ir.parameters(mod)
    for param in function.params:
        writer.names[param] = edge.var_name(param)
    writer.taken.update(spec.name for spec in (*inputs, *outputs))
    for binding in ir.bindings(function):
        bound = edge.var_name(binding.var)
        if bound in named:
            writer.parameter(binding.var, named[bound])
        else:
            writer.binding(binding.var, binding.value)
    for spec, (_, var) in zip(outputs, edge.outputs_of(function)[0], strict=True):
        writer.output(spec.name, var)
    graph = helper.make_graph(
        writer.nodes, name, [_info(s) for s in inputs], [_info(s) for s in outputs], writer.tensors
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="tvm-compress",
    )
    onnx.checker.check_model(model)
    if path is not None:
        data = model.SerializeToString(deterministic=True)
        write_whole(Path(path), lambda stream: stream.write(data))
    return model


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)


class _Writer:
    """The nodes and initializers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.names: dict[Any, str] = {}  # of variables
        self.taken: set[str] = set()

    def unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def tensor(self, value: NDArray[Any], wanted: str = "constant") -> str:
        """Add an initializer."""
        name = self.unique(wanted)
        self.tensors.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], wanted: str = "value", **attrs: Any) -> str:
        """Add a node of one output."""
        name = self.unique(wanted)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def parameter(self, var: Any, parameter: ir.Parameter) -> None:
        name = parameter.name
        if parameter.codes is None or parameter.centroids is None:
            self.names[var] = self.tensor(parameter.value, name)
            return
        codes = flat_codes(parameter.codes, parameter.centroids.shape)
        if codes.dtype != np.uint8:  # beyond 256 entries in all codebooks together
            codes = codes.astype(np.uint8 if codes.max(initial=0) < 256 else np.int32)
        stored = self.tensor(codes, f"{name}.codes")
        if codes.dtype == np.uint8:
            stored = self.node("Cast", [stored], f"{name}.indices", to=onnx.TensorProto.INT32)
        centroids = self.tensor(parameter.centroids.reshape(-1), f"{name}.centroids")
        self.names[var] = self.node("Gather", [centroids, stored], name, axis=0)

    def argument(self, expr: Any) -> str:
        """Give the name of an operand."""
        if isinstance(expr, edge.Constant):
            return self.tensor(edge.constant_value(expr))
        return self.names[expr]

    def binding(self, var: Any, value: Any) -> None:
        name = edge.var_name(var)
        if isinstance(value, relax.Var):
            self.names[var] = self.names[value]
            return
        if isinstance(value, edge.Constant):  # a scalar
            self.names[var] = self.tensor(edge.constant_value(value), name)
            return
        operator = edge.op_name(value)
        rule = _RULES.get(operator or "")
        if rule is None:
            what = operator or type(value).__name__
            raise UnsupportedError(
                f"export_onnx: {what} (bound to {name}) has no ONNX form here; expected one of "
                f"{', '.join(sorted(r.removeprefix('relax.') for r in _RULES))}."
            )
        self.names[var] = rule(self, value, name)

    def output(self, name: str, var: Any) -> None:
        # The name was kept free, so that an input or a parameter can be an output too.
        self.nodes.append(helper.make_node("Identity", [self.argument(var)], [name], name=name))


_Rule = Callable[[_Writer, Any, str], str]
_RULES: dict[str, _Rule] = {}


def _rule(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update({f"relax.{operator}": rule for operator in operators})
        return rule

    return register


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _shape(expr: Any) -> tuple[int, ...]:
    return edge.static_shape(expr) or ()


# Operators that differ by their name alone.
_SAME = {
    **{n: n.capitalize() for n in ("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh")},
    **{n: n.capitalize() for n in ("ceil", "cos", "cosh", "erf", "exp", "floor", "log", "round")},
    **{n: n.capitalize() for n in ("sigmoid", "sign", "sin", "sinh", "sqrt", "tan", "tanh")},
    **{"negative": "Neg", "nn.relu": "Relu", "add": "Add", "subtract": "Sub"},
    **{"multiply": "Mul", "divide": "Div", "power": "Pow", "maximum": "Max", "minimum": "Min"},
    **{"matmul": "MatMul"},
}


def _same(onnx_name: str) -> _Rule:
    def rule(self: _Writer, call: Any, name: str) -> str:
        return self.node(onnx_name, [self.argument(arg) for arg in call.args], name)

    return rule


for _name, _onnx_name in _SAME.items():
    _RULES[f"relax.{_name}"] = _same(_onnx_name)


@_rule("clip")
def _clip(self: _Writer, call: Any, name: str) -> str:
    dtype = edge.dtype_of(call)
    bounds = [self.tensor(np.asarray(float(bound.value), dtype)) for bound in call.args[1:]]
    return self.node("Clip", [self.argument(call.args[0]), *bounds], name)


@_rule("nn.leakyrelu")
def _leaky_relu(self: _Writer, call: Any, name: str) -> str:
    x = self.argument(call.args[0])
    return self.node("LeakyRelu", [x], name, alpha=float(call.attrs.alpha))


@_rule("nn.softmax", "nn.log_softmax")
def _softmax(self: _Writer, call: Any, name: str) -> str:
    kind = "Softmax" if edge.op_name(call) == "relax.nn.softmax" else "LogSoftmax"
    return self.node(kind, [self.argument(call.args[0])], name, axis=int(call.attrs.axis))


@_rule("astype")
def _cast(self: _Writer, call: Any, name: str) -> str:
    to = helper.np_dtype_to_tensor_dtype(np.dtype(edge.dtype_of(call)))
    return self.node("Cast", [self.argument(call.args[0])], name, to=to)


@_rule("reshape")
def _reshape(self: _Writer, call: Any, name: str) -> str:
    shape = self.tensor(np.asarray(_shape(call), np.int64), f"{name}.shape")
    return self.node("Reshape", [self.argument(call.args[0]), shape], name)


@_rule("permute_dims")
def _transpose(self: _Writer, call: Any, name: str) -> str:
    rank = len(_shape(call))
    axes = call.attrs.axes
    perm = list(range(rank))[::-1] if axes is None else [int(a) % rank for a in axes]
    return self.node("Transpose", [self.argument(call.args[0])], name, perm=perm)


@_rule("concat")
def _concat(self: _Writer, call: Any, name: str) -> str:
    if not isinstance(call.args[0], tvm.ir.Tuple):
        raise _unsupported(call, name, "a list of its parts")
    parts = [self.argument(part) for part in call.args[0].fields]
    axis = call.attrs.axis
    if axis is None:
        raise _unsupported(call, name, "an axis")
    return self.node("Concat", parts, name, axis=int(axis))


@_rule("strided_slice")
def _slice(self: _Writer, call: Any, name: str) -> str:
    axes, begin, end, *rest = (_ints(i.value for i in arg.fields) for arg in call.args[1:])
    steps = rest[0] if rest else [1] * len(axes)
    given = [self.tensor(np.asarray(v, np.int64)) for v in (begin, end, axes, steps)]
    return self.node("Slice", [self.argument(call.args[0]), *given], name)


@_rule("mean", "max", "min", "sum", "prod")
def _reduce(self: _Writer, call: Any, name: str) -> str:
    kind = (edge.op_name(call) or "").removeprefix("relax.").capitalize()
    rank = len(_shape(call.args[0]))
    axes = list(range(rank)) if call.attrs.axis is None else _ints(call.attrs.axis)
    inputs, options = [self.argument(call.args[0])], {"keepdims": int(call.attrs.keepdims)}
    if kind == "Sum":  # whose axes became an input earlier than those of the others
        inputs.append(self.tensor(np.asarray(axes, np.int64)))
        return self.node("ReduceSum", inputs, name, **options)
    return self.node(f"Reduce{kind}", inputs, name, axes=axes, **options)


@_rule("nn.pad")
def _pad(self: _Writer, call: Any, name: str) -> str:
    widths, mode = _ints(call.attrs.pad_width), str(call.attrs.pad_mode)
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise _unsupported(call, name, "the mode constant, reflect or replicate")
    pads = self.tensor(np.asarray(widths[::2] + widths[1::2], np.int64))
    inputs = [self.argument(call.args[0]), pads]
    if mode == "constant":
        value = np.asarray(float(call.attrs.pad_value), edge.dtype_of(call))
        inputs.append(self.tensor(value))
    return self.node("Pad", inputs, name, mode=modes[mode])


def _unsupported(call: Any, name: str, expected: str) -> UnsupportedError:
    return UnsupportedError(
        f"export_onnx: this form of {edge.op_name(call)} (bound to {name}) has no ONNX form here; "
        f"expected {expected}: rewrite the operator in the network."
    )


def _in_channels_first(
    self: _Writer, x: str, layout: str, name: str, build: Callable[[str, str], str]
) -> str:
    """Bring the data to NC + spatial, as ONNX has it, and the result back."""
    first = "NC" + spatial(len(layout) - 2)
    if layout == first:
        return build(x, name)
    x = self.node("Transpose", [x], perm=axes_between(layout, first))
    return self.node("Transpose", [build(x, "value")], name, perm=axes_between(first, layout))


@_rule("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _conv(self: _Writer, call: Any, name: str) -> str:
    a = call.attrs
    data, weight = (self.argument(arg) for arg in call.args)
    kernel, wanted = str(a.kernel_layout), "OI" + spatial(len(str(a.kernel_layout)) - 2)
    if kernel != wanted:
        weight = self.node("Transpose", [weight], perm=axes_between(kernel, wanted))
    options: dict[str, Any] = {
        "strides": _ints(a.strides),
        "pads": _ints(a.padding),
        "dilations": _ints(a.dilation),
        "group": int(a.groups),
    }

    def build(x: str, name: str) -> str:
        return self.node("Conv", [x, weight], name, **options)

    return _in_channels_first(self, data, str(a.data_layout), name, build)


@_rule(*(f"nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)))
def _pool(self: _Writer, call: Any, name: str) -> str:
    a = call.attrs
    average = "avg" in (edge.op_name(call) or "")
    options: dict[str, Any] = {
        "kernel_shape": _ints(a.pool_size),
        "strides": _ints(a.strides),
        "pads": _ints(a.padding),
        "ceil_mode": int(a.ceil_mode),
    }
    if average and any(d != 1 for d in _ints(a.dilation)):
        raise _unsupported(call, name, "a dilation of 1")
    if average:
        options["count_include_pad"] = int(a.count_include_pad)
    else:
        options["dilations"] = _ints(a.dilation)
    kind = "AveragePool" if average else "MaxPool"
    return _in_channels_first(
        self,
        self.argument(call.args[0]),
        str(a.layout),
        name,
        lambda x, n: self.node(kind, [x], n, **options),
    )


@_rule(*(f"nn.adaptive_avg_pool{rank}d" for rank in (1, 2, 3)))
def _adaptive_pool(self: _Writer, call: Any, name: str) -> str:
    a = call.attrs
    if a.output_size is None or any(size != 1 for size in _ints(a.output_size)):
        raise _unsupported(call, name, "an output size of 1, the mean over all places")
    return _in_channels_first(
        self,
        self.argument(call.args[0]),
        str(a.layout),
        name,
        lambda x, n: self.node("GlobalAveragePool", [x], n),
    )
