"""The network on which several passes are tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir

_RNG = np.random.default_rng(0)
CONV = _RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
FC = _RNG.standard_normal((4, 3)).astype(np.float32)
BIAS = _RNG.standard_normal((1, 4, 1, 1)).astype(np.float32)


def conv_net(conv: NDArray[Any] = CONV, fc: NDArray[Any] = FC) -> tvm.IRModule:
    """Input (1, 2, 5, 5) -> convolution -> bias -> ReLU -> mean -> product: (1, 3)."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, conv.shape[1], 5, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(conv), "conv_weight")
            y = builder.emit(relax.op.nn.conv2d(x, w), "conv")
            b = builder.emit(edge.constant(BIAS), "conv_bias")
            y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(y, b), "biased")), "relu")
            y = builder.emit(relax.op.mean(y, [2, 3]), "mean")
            w = builder.emit(edge.constant(fc), "fc_weight")
            y = builder.emit_output(builder.emit(relax.op.matmul(y, w), "fc"), "y")
        builder.emit_func_output(y)
    return builder.get()


def values(mod: tvm.IRModule) -> dict[str, NDArray[Any]]:
    """The dense value of each parameter."""
    return {name: parameter.value for name, parameter in ir.parameters(mod).items()}


def spoilt_by(number: float) -> NDArray[Any]:
    """The weights of the product with one of them replaced."""
    weight = FC.copy()
    weight[1, 2] = number
    return weight
