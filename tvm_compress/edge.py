"""The one module that touches parts of TVM which are private or change between releases.

Everything here was tried on apache-tvm 0.27.0.post1; ``tests/test_edge.py`` names what broke when
another release is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import _ffi_api as ir_ffi
from tvm.relax.transform.legalize_ops.common import register_legalize

from tvm_compress import errors

__all__ = [
    "Constant",
    "call_op",
    "constant",
    "constant_value",
    "dtype_of",
    "op_name",
    "outputs_of",
    "register_op",
    "static_shape",
    "straight_line",
    "substitute",
    "tensor_type",
    "type_info",
    "var_name",
]

Constant = tvm.ir.GenericConst

# TVM runs passes from C++, which carries an exception by the name of its class alone: a class that
# is not registered would arrive as RuntimeError.
for _name in errors.__all__:
    tvm_ffi.register_error(_name, getattr(errors, _name))


def register_op(
    name: str,
    doc: str,
    *,
    arguments: Sequence[tuple[str, str]],
    infer_type: Callable[[Any, Any], Any],
    legalize: Callable[[Any, Any], Any],
) -> None:
    """Register a pure Relax operator; a second call with the same name changes nothing."""
    if name in set(tvm.ir.Op.list_op_names()):
        return
    ir_ffi.RegisterOp(name, doc)
    op = tvm.ir.Op.get(name)
    op.set_num_inputs(len(arguments))
    for argument, description in arguments:
        op.add_argument(argument, "Tensor", description)
    tvm.ir.register_op_attr(name, "FInferType", infer_type)
    tvm.ir.register_op_attr(name, "FPurity", True)
    register_legalize(name, legalize)


def call_op(name: str, args: Sequence[Any], attrs: dict[str, Any] | None = None) -> tvm.ir.Expr:
    """Call a registered operator; attributes are given as a dictionary."""
    return tvm.ir.Call(tvm.ir.Op.get(name), list(args), tvm.ir.DictAttrs(attrs or {}))


def op_name(expr: Any) -> str | None:
    """Give the operator's name of a call (``relax.nn.conv2d``), else None."""
    if isinstance(expr, tvm.ir.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return None


def tensor_type(expr: Any) -> relax.TensorType:
    """Give the tensor type of an expression."""
    return expr.ty


def is_tensor(expr: Any) -> bool:
    """Whether an expression is a tensor, and not a tuple or a shape."""
    return isinstance(expr.ty, relax.TensorType)


def dtype_of(ty: Any) -> str:
    """Give the dtype of a tensor type (or of an expression) as numpy spells it."""
    if not isinstance(ty, relax.TensorType):
        ty = ty.ty
    dtype = ty.dtype
    return str(getattr(dtype, "dtype", dtype))


def dtype_of_or_none(expr: Any) -> str | None:
    """Give the dtype of a tensor expression, or None of anything else."""
    return dtype_of(expr) if is_tensor(expr) else None


def static_shape(ty: Any) -> tuple[int, ...] | None:
    """Give the shape of a tensor type (or of an expression), or None if it is not static."""
    if not isinstance(ty, relax.TensorType):
        ty = ty.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        return None
    sizes = getattr(ty.shape, "values", None)
    if sizes is None or not all(isinstance(size, tvm.tirx.IntImm) for size in sizes):
        return None
    return tuple(int(size) for size in sizes)


def constant(value: NDArray[Any]) -> tvm.ir.Expr:
    """Make a constant of the array's dtype."""
    # Not ascontiguousarray, which makes a vector of a scalar.
    return relax.const(np.asarray(value, order="C"), str(value.dtype))


def constant_value(expr: Any) -> NDArray[Any]:
    """Give a constant's payload: a read-only view, or a copy where numpy lacks the dtype."""
    try:
        view: NDArray[Any] = np.from_dlpack(expr.value)
    except (RuntimeError, BufferError):  # bfloat16 and narrower floats
        return np.asarray(expr.value.numpy())
    view.flags.writeable = False
    return view


def type_info(value: Any) -> Any:
    """Give what TVM says of an object's type: its ``type_key`` and its ``fields`` with names."""
    return type(value).__tvm_ffi_type_info__


def var_name(var: Any) -> str:
    """Give a Relax variable's name."""
    return str(var.name)


def substitute(expr: Any, new: Mapping[Any, Any]) -> Any:
    """Replace variables in one binding's value (calls, tuples and their items)."""
    if isinstance(expr, relax.Var):
        return new.get(expr, expr)
    if isinstance(expr, tvm.ir.Tuple):
        return tvm.ir.Tuple([substitute(field, new) for field in expr.fields])
    if isinstance(expr, tvm.ir.TupleGetItem):
        return tvm.ir.TupleGetItem(substitute(expr.tuple_value, new), expr.index)
    if isinstance(expr, tvm.ir.Call):
        return with_args(expr, [substitute(arg, new) for arg in expr.args])
    return expr


def with_args(call: Any, args: Sequence[Any]) -> Any:
    """Give the same call with other arguments; its type is inferred anew."""
    # call_tir and its like state their result's type in ty_args.
    return tvm.ir.Call(call.op, list(args), call.attrs, ty_args=list(call.ty_args) or None)


def with_attrs(call: Any, args: Sequence[Any], **changes: Any) -> Any:
    """Give the same operator with other arguments and some other attributes."""
    info = type_info(call.attrs)
    if isinstance(call.attrs, tvm.ir.DictAttrs):
        fields = dict(call.attrs.items())
    else:
        fields = {field.name: getattr(call.attrs, field.name) for field in info.fields}
    return tvm.ir.Call(
        call.op, list(args), tvm.ir.make_node(info.type_key, **{**fields, **changes})
    )


def variables_in(expr: Any) -> Iterator[Any]:
    """Give the variables of one binding's value, in order, each as often as it is used."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, tvm.ir.Tuple):
        for field in expr.fields:
            yield from variables_in(field)
    elif isinstance(expr, tvm.ir.TupleGetItem):
        yield from variables_in(expr.tuple_value)
    elif isinstance(expr, tvm.ir.Call):
        for arg in expr.args:
            yield from variables_in(arg)


def primitive(
    params: Sequence[Any], bindings: Sequence[relax.VarBinding], result: Any
) -> relax.Function:
    """Make a function that TVM's FuseTIR turns into one loop nest."""
    builder = relax.BlockBuilder()
    bound = []
    for binding in bindings:
        value = builder.normalize(binding.value)
        bound.append(relax.VarBinding(binding.var, value))
    value = builder.normalize(result)
    out = relax.Var("out", value.ty)
    block = relax.DataflowBlock([*bound, relax.VarBinding(out, value)])
    body = builder.normalize(relax.SeqExpr([block], out))
    attrs = tvm.ir.make_node("ir.DictAttrs", **{"Primitive": True})
    return relax.Function(list(params), body, attrs=attrs)


def use_counts(function: relax.Function) -> Counter[Any]:
    """Count how often each variable is used by bindings and by the result."""
    counts: Counter[Any] = Counter(variables_in(function.body.body))
    for block in function.body.blocks:
        for binding in block.bindings:
            counts.update(variables_in(binding.value))
    return counts


def convolution(
    call: Any, data: Any, weight: Any, kernel_layout: str, groups: int | None = None
) -> Any:
    """Give the convolution of ``call`` with another weight, laid out in ``kernel_layout``."""
    a = call.attrs
    build = getattr(relax.op.nn, str(call.op.name).rsplit(".", 1)[1])
    return build(
        data,
        weight,
        strides=list(a.strides),
        padding=list(a.padding),
        dilation=list(a.dilation),
        groups=a.groups if groups is None else groups,
        data_layout=a.data_layout,
        kernel_layout=kernel_layout,
        out_layout=a.out_layout,
        out_dtype=a.out_dtype,
    )


def integer_convolution(call: Any, data: Any, weight: Any) -> Any:
    """Give the convolution of ``call`` on padded integers, summed in int32."""
    a = call.attrs
    build = getattr(relax.op.nn, str(call.op.name).rsplit(".", 1)[1])
    return build(
        data,
        weight,
        strides=list(a.strides),
        padding=0,
        dilation=list(a.dilation),
        groups=a.groups,
        data_layout=a.data_layout,
        kernel_layout=a.kernel_layout,
        out_layout=a.out_layout,
        out_dtype="int32",
    )


def outputs_of(function: relax.Function) -> tuple[list[tuple[str, Any]], bool]:
    """Give (name, variable) of each output and whether the function returns a tuple."""
    result = function.body.body
    bound = {b.var: b.value for block in function.body.blocks for b in block.bindings}
    seen = bound.get(result)
    if isinstance(seen, tvm.ir.Tuple):  # a tuple that is bound to a variable and then returned
        result = seen
    is_tuple = isinstance(result, tvm.ir.Tuple)
    fields = list(result.fields) if is_tuple else [result]
    return [(var_name(f) if isinstance(f, relax.Var) else "output", f) for f in fields], is_tuple


def straight_line(
    function: relax.Function,
    inputs: Sequence[Any],
    bindings: Sequence[relax.VarBinding],
    outputs: Sequence[tuple[str, Any]],
    is_tuple: bool,
) -> relax.Function:
    """Make a function of one dataflow block that has the attributes of ``function``."""
    results = [relax.Var(name, value.ty) for name, value in outputs]
    body = [
        *bindings,
        *(relax.VarBinding(var, value) for var, (_, value) in zip(results, outputs, strict=True)),
    ]
    returned = tvm.ir.Tuple(results) if is_tuple else results[0]
    sequence = relax.SeqExpr([relax.DataflowBlock(body)], returned)
    sequence = relax.BlockBuilder().normalize(sequence)
    return relax.Function(list(inputs), sequence, attrs=function.attrs)


def tensor_fields(ty: Any) -> list[Any]:
    """Give the tensor types within a type: itself, or a tuple's fields."""
    if isinstance(ty, relax.TensorType):
        return [ty]
    if isinstance(ty, relax.TupleType):
        return [tensor for field in ty.fields for tensor in tensor_fields(field)]
    return []


# ---- importers -----------------------------------------------------------------------------------


def import_onnx(
    model: Any, converters: Mapping[str, Callable[[Any, Any, Any], Any]] | None = None
) -> tuple[tvm.IRModule, list[Any]]:
    """Run TVM's ONNX importer: the module and the tensors of its last arguments.

    Args:
        model: an ``onnx.ModelProto``.
        converters: by operator a function (block builder, inputs, attributes) -> expression that
            goes before the importer's own.
    """
    from tvm.relax.frontend import detach_params
    from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

    original = onnx_frontend._get_convert_map
    table = original()
    for operator, convert in (converters or {}).items():

        def call(bb: Any, inputs: Any, attrs: Any, params: Any, convert: Any = convert) -> Any:
            return convert(bb, inputs, attrs)

        made = {"_impl_v1": staticmethod(call)}
        table[operator] = type(operator, (onnx_frontend.OnnxOpConverter,), made)
    onnx_frontend._get_convert_map = lambda: table
    try:
        mod, params = detach_params(from_onnx(model, keep_params_in_input=True))
    finally:
        onnx_frontend._get_convert_map = original
    return mod, list(params.get("main", []))


def onnx_importer_takes(operator: str) -> bool:
    """Whether TVM's ONNX importer has a converter for an operator."""
    from tvm.relax.frontend.onnx import onnx_frontend

    return operator == "Constant" or operator in onnx_frontend._get_convert_map()


def import_tflite(model: Any, shapes: dict[str, tuple[int, ...]]) -> tvm.IRModule:
    """Run TVM's TensorFlow Lite importer; its second reference to the weights is dropped."""
    from tvm.relax.frontend.tflite import from_tflite

    mod = from_tflite(model, shape_dict=shapes or None, op_converter=_tflite_converter())
    mod, _ = relax.frontend.detach_params(mod)
    return mod


# Operators that move the integers of a tensor and leave their scale.
_TFLITE_MOVES = """
EXPAND_DIMS MIRROR_PAD PACK PAD PADV2 RESIZE_NEAREST_NEIGHBOR SLICE SPLIT SPLIT_V SQUEEZE
STRIDED_SLICE TRANSPOSE UNPACK
"""


def _tflite_converter() -> Any:
    """Give the importer's class, mended where it falls short of quantised networks.

    Its own average is one of integers that truncates: -3 / 2 is -1 and 3 / 2 is 1, where TensorFlow
    Lite rounds to the nearest. And it refuses to move integers about, which it could.
    """
    from tvm.relax.frontend.tflite import tflite_frontend

    class Converter(tflite_frontend.OperatorConverter):
        _SUPPORTED_QUANTIZED_OPS = tflite_frontend.OperatorConverter._SUPPORTED_QUANTIZED_OPS | {
            *_TFLITE_MOVES.split()
        }

        def _convert_resize(self, method: str, op: Any) -> Any:
            resized = super()._convert_resize(method, op)
            a = resized.attrs
            if method != "nearest_neighbor" or a.coordinate_transformation_mode != "align_corners":
                return resized
            # Ties go up there; the importer leaves them to TVM, which rounds to even.
            return relax.op.image.resize2d(
                *resized.args, None, a.layout, method, "align_corners", "round_prefer_ceil"
            )

        def convert_pool2d(self, op: Any, pool_type: str) -> Any:
            pooled = super().convert_pool2d(op, pool_type)
            tensor = self.get_input_tensors(op)[0]
            if pool_type != "average" or not tensor.qnn_params:
                return pooled
            # [clip of] astype(avg_pool2d(astype(x, "int32")), "int8")
            clip = pooled if op_name(pooled) == "relax.clip" else None
            pool = (pooled if clip is None else clip.args[0]).args[0]
            real = self.dequantize(pool.args[0].args[0], tensor)
            steps = self.quantize(with_args(pool, [real]), self.get_output_tensors(op)[0])
            return steps if clip is None else with_args(clip, [steps, *clip.args[1:]])

    return Converter


def import_torch(
    program: Any, converters: Mapping[str, Callable[[Any, Any], Any]] | None = None
) -> tuple[tvm.IRModule, list[Any]]:
    """Run TVM's importer of exported programs.

    Args:
        program: a ``torch.export.ExportedProgram``.
        converters: by operator (``mm.default``) a function (node, importer) -> variable.
    """
    from tvm.relax.frontend import detach_params
    from tvm.relax.frontend.torch import from_exported_program

    mod = from_exported_program(
        program,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        custom_convert_map=dict(converters or {}),
    )
    mod, params = detach_params(mod)
    return mod, list(params.get("main", []))


def _te_replacements() -> dict[Any, Callable[..., Any]]:
    from tvm import topi

    def scalar(value: Any, like: Any) -> Any:
        return relax.const(value, dtype_of(like)) if isinstance(value, int | float) else value

    def pad(mode: str) -> Callable[..., Any]:
        def build(x: Any, before: Any, after: Any, value: Any = 0.0) -> Any:
            widths = [int(w) for pair in zip(before, after, strict=True) for w in pair]
            return relax.op.nn.pad(x, widths, pad_mode=mode, pad_value=float(value))

        return build

    return {
        topi.maximum: lambda a, b: relax.op.maximum(a, scalar(b, a)),
        topi.minimum: lambda a, b: relax.op.minimum(a, scalar(b, a)),
        topi.nn.pad: pad("constant"),
        topi.nn.replicate_pad: pad("replicate"),
        topi.nn.circular_pad: pad("circular"),
        topi.nn.mirror_pad: lambda x, before, after, mode: pad("reflect")(x, before, after),
        topi.flip: lambda x, axis: relax.op.flip(x, axis),
        topi.tile: lambda x, reps: relax.op.tile(x, [int(r) for r in reps]),
        topi.einsum: lambda equation, *xs: relax.op.einsum(tuple(xs), equation),
    }


@contextmanager
def relax_operators_for_te() -> Iterator[None]:
    """Make importers emit Relax operators where they would emit loops (Clip, Pad, Tile...).

    Loops in an imported module could be compiled, but neither read, folded nor trained.
    """
    table = _te_replacements()
    original = relax.BlockBuilder.emit_te

    def emit_te(self: relax.BlockBuilder, function: Any, *args: Any, **kwargs: Any) -> Any:
        build = table.get(function)
        if build is None or (set(kwargs) - {"axis"}):
            return original(self, function, *args, **kwargs)
        return self.emit(build(*args, **kwargs))

    relax.BlockBuilder.emit_te = emit_te
    try:
        yield
    finally:
        relax.BlockBuilder.emit_te = original


def dtype_of_prim(expr: Any) -> str:
    """Give the dtype of a TIR expression or type; of a buffer's type that of its elements."""
    ty = getattr(expr, "ty", expr)
    dtype = ty.dtype
    return str(getattr(dtype, "dtype", dtype))


def var_name_of_global(var: Any) -> str:
    """Give a global variable's name."""
    return str(var.name_hint)
