"""Small networks for the tests of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import op

from tvm_compress import edge
from tvm_compress.ops import codebook


def module(
    inputs: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, Any],
    body: Callable[..., Any],
    *,
    dtype: str = "float32",
) -> tvm.IRModule:
    """``main(inputs)`` that binds each parameter (an array, or codes and centroids) by its name.

    ``body`` gets the inputs and the parameters in order and gives the output, or a tuple of them.
    """
    args = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in inputs.items()]
    builder = relax.BlockBuilder()
    with builder.function("main", args):
        with builder.dataflow():
            named = []
            for name, value in parameters.items():
                if isinstance(value, tuple):
                    bound = builder.normalize(codebook(*map(edge.constant, value)))
                else:
                    bound = edge.constant(value)
                var = relax.DataflowVar(name, bound.ty)
                builder.emit_normalized(relax.VarBinding(var, bound))
                named.append(var)
            output = builder.emit_output(body(*args, *named))
        builder.emit_func_output(output)
    return builder.get()


def dense_net(
    seed: int = 0, *, softmax: bool = True, change: Callable[[NDArray[Any]], Any] | None = None
) -> tvm.IRModule:
    """Two products and a bias: (1, 6) -> (1, 3); ``change`` rewrites the first weight."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.5, shape).astype("float32") for shape in ((6, 8), (8,), (8, 3))]
    first = weights[0] if change is None else change(weights[0])

    def body(x: Any, w1: Any, b1: Any, w2: Any) -> Any:
        y = op.matmul(op.nn.relu(op.add(op.matmul(x, w1), b1)), w2)
        return op.nn.softmax(y) if softmax else y

    return module({"x": (1, 6)}, {"w1": first, "b1": weights[1], "w2": weights[2]}, body)


def pruned(value: NDArray[Any]) -> NDArray[Any]:
    """Half of the elements are zero, the same ones each time."""
    return np.where(np.arange(value.size).reshape(value.shape) % 2, value, 0).astype(value.dtype)


def shared(value: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Four centroids, the first of them the zero."""
    codes = np.random.default_rng(5).integers(0, 4, value.shape).astype("uint8")
    return codes, np.array([0.0, -0.5, 0.3, 0.7], "float32")


def classes_of(count: int, seed: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Samples of three classes that lie apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    centres = rng.normal(0, 2, (3, 6))
    return (centres[y] + rng.normal(size=(count, 6))).astype("float32"), y
