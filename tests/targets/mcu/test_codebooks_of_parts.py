"""Weights with a codebook for each part, in C: never stored dense.

Groups of output channels are read by the kernels, other blocks through the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.passes.nets import conv_net
from tests.targets.mcu.nets import assert_close, network, normal, stock_tvm
from tvm_compress import edge, ir
from tvm_compress.ops import CODEBOOK, codebook
from tvm_compress.passes import ShareWeights
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.lower import lower

op = relax.op


def parts(shape: tuple[int, ...], groups: tuple[int, ...], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, shape).astype(np.uint8)
    centroids = rng.standard_normal((*groups, 4)).astype(np.float32)
    return codebook(edge.constant(codes), edge.constant(centroids))


NETWORKS: dict[str, Any] = {
    "convolution": ((1, 4, 6, 6), lambda net, x: op.nn.conv2d(x, net(CONV))),
    "product": ((1, 6), lambda net, x: op.matmul(x, net(parts((6, 4), (1, 2))))),
    "blocks both ways": ((1, 6), lambda net, x: op.matmul(x, net(parts((6, 4), (3, 2))))),
    "one block": ((1, 6), lambda net, x: op.matmul(x, net(parts((6, 4), (1, 1))))),
    "depthwise": (
        (1, 4, 6, 6),
        lambda net, x: op.nn.conv2d(x, net(parts((4, 1, 3, 3), (4, 1, 1, 1))), groups=4),
    ),
}
LAYOUTS: dict[str, set[str]] = {"blocks both ways": set()}
CONV = parts((6, 4, 3, 3), (3, 1, 1, 1))


def dense_bytes(mod: tvm.IRModule) -> int:
    """The size of the float constants that the lowered module holds."""
    constants: list[NDArray[Any]] = []
    relax.analysis.post_order_visit(
        ir.main_function(mod),
        lambda e: (
            constants.append(edge.constant_value(e)) if isinstance(e, edge.Constant) else None
        ),
    )
    return sum(c.nbytes for c in constants if c.dtype.kind == "f")


@pytest.mark.parametrize("name", NETWORKS)
def test_no_dense_weight_is_stored(name: str) -> None:
    shape, describe = NETWORKS[name]
    mod = network({"x": shape}, lambda net, x: net(describe(net, x)))
    x = normal(*shape)
    expected = reference.run(mod, x)["y"]
    lowered, layers = lower(mod)
    assert {layer.layout for layer in layers.values()} == LAYOUTS.get(name, {"dense_codes"})
    assert CODEBOOK not in lowered.script()
    (weight,) = ir.parameters(mod).values()
    assert weight.centroids is not None
    assert dense_bytes(lowered) == weight.centroids.nbytes
    (y,) = stock_tvm(lowered, x)
    assert_close(y, expected, 1e-5)


def test_a_network_in_c() -> None:
    mod = ShareWeights(2, groups=2)(conv_net())
    assert ir.parameters(mod)["conv_weight"].parts == 2
    x = normal(1, 2, 5, 5)
    (expected,) = reference.run(mod, x).values()
    (y,) = tc.build(mod, target="c").run(x).values()
    assert_close(y, expected, 1e-5)
