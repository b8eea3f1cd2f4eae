"""Small networks in the QDQ form, for the tests of what makes integers of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.passes import Canonicalize

Array = NDArray[Any]
OP = relax.op
RNG = np.random.default_rng(0)


def f32(value: Any) -> Any:
    return edge.constant(np.asarray(value, np.float32))


def i32(value: Any) -> Any:
    return edge.constant(np.asarray(value, np.int32))


def dequantize(x: Any, scale: Any, zero: Any, axis: int = -1) -> Any:
    return OP.dequantize(x, f32(scale), i32(zero), axis=axis)


def quantize(x: Any, scale: Any, zero: Any, dtype: str = "int8") -> Any:
    return OP.quantize(x, f32(scale), i32(zero), axis=-1, out_dtype=dtype)


def net(
    build: Callable[..., Any],
    *inputs: tuple[tuple[int, ...], str],
    rounding: str | None = None,
) -> tvm.IRModule:
    """A canonical module of the inputs ``x0``, ``x1``..., whose result ``build`` gives."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(*ty)) for i, ty in enumerate(inputs)]
    with builder.function("main", params):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(build(*params)), "y")
        builder.emit_func_output(y)
    mod = builder.get()
    if rounding is not None:
        function = mod["main"].with_attr("tvm_compress.rounding", rounding)
        mod.update_func(mod.get_global_var("main"), function)
    return Canonicalize()(mod)


def operators(mod: tvm.IRModule) -> list[str]:
    """The operators in order, without parameters."""
    names = [edge.op_name(binding.value) for binding in ir.bindings(mod["main"])]
    return [name.removeprefix("relax.") for name in names if name]


def floats(mod: tvm.IRModule) -> list[str]:
    return [
        edge.var_name(b.var)
        for b in ir.bindings(mod["main"])
        if any("float" in edge.dtype_of(ty) for ty in edge.tensor_fields(b.var.ty))
    ]


WEIGHT = RNG.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)
SCALES = RNG.uniform(0.005, 0.02, 4).astype(np.float32)
BIAS = RNG.integers(-500, 500, 4).astype(np.int32)
X = (1, 2, 5, 5), "int8"


def convolution(x: Any, *, bias: bool = True, weight: Any = None, **options: Any) -> Any:
    held = edge.constant(WEIGHT) if weight is None else weight
    w = dequantize(held, SCALES, 0, axis=0)
    y = OP.nn.conv2d(dequantize(x, 0.05, 7), w, padding=1, **options)
    if bias:
        b = dequantize(i32(BIAS), SCALES * np.float32(0.05), 0, axis=0)
        y = OP.add(y, OP.reshape(b, (1, 4, 1, 1)))
    return y
