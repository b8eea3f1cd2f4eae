"""``equalize``: the function stays, the weights of a pair reach equally far, the rest is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

from tests.passes.nets import values
from tests.passes.test_quantize import net
from tvm_compress import edge
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import Equalize, Quantize, ShareWeights
from tvm_compress.targets.reference import run

RNG = np.random.default_rng(3)


def uneven(*shape: int, seed: int = 0) -> NDArray[Any]:
    """Weights whose output channels differ a lot in reach."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.uniform(-1.2, 1.2, (shape[0], *[1] * (len(shape) - 1))))
    return (rng.standard_normal(shape) * spread).astype(np.float32)


def layers(
    between: Any = relax.op.nn.relu,
    depthwise: bool = False,
    layout: str = "NCHW",
    seed: int = 0,
) -> tvm.IRModule:
    """Convolution a, bias, ``between``, convolution b (8 channels between them), ReLU, c."""
    shape = (1, 3, 8, 8) if layout == "NCHW" else (1, 8, 8, 3)

    def build(b: Any, x: Any) -> Any:
        def conv(x: Any, name: str, weight: NDArray[Any], **how: Any) -> Any:
            w = b.emit(edge.constant(weight), name)
            return b.emit(relax.op.nn.conv2d(x, w, data_layout=layout, **how))

        y = conv(x, "a", uneven(8, 3, 3, 3, seed=seed), padding=1)
        bias = RNG.standard_normal((8, 1, 1) if layout == "NCHW" else (8,)).astype(np.float32)
        y = b.emit(relax.op.add(y, b.emit(edge.constant(bias), "a_bias")))
        y = b.emit(between(y))
        if depthwise:
            y = conv(y, "b", uneven(8, 1, 3, 3, seed=seed + 1), groups=8, padding=1)
        else:
            y = conv(y, "b", uneven(8, 4, 1, 1, seed=seed + 1), groups=2)
        y = b.emit(relax.op.nn.relu(y))
        return conv(y, "c", uneven(5, 8, 1, 1, seed=seed + 2))

    return net(build, shape)


def reach(weight: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.asarray(np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(1))


@given(st.booleans(), st.sampled_from(["NCHW", "NHWC"]), st.integers(0, 100))
@settings(max_examples=12)
def test_the_function_stays(depthwise: bool, layout: str, seed: int) -> None:
    mod = layers(depthwise=depthwise, layout=layout, seed=seed)
    even = Equalize().apply(mod)
    shape = (3, 3, 8, 8) if layout == "NCHW" else (3, 8, 8, 3)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    want, got = run(mod, x)["out"], run(even, x)["out"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert all((values(even)[n] != values(mod)[n]).any() for n in ("a", "a_bias", "b", "c"))


def test_both_weights_of_a_pair_reach_equally_far() -> None:
    found = values(Equalize(limit=1e4).apply(layers(depthwise=True)))
    a, b, c = reach(found["a"], 0), reach(found["b"], 0), reach(found["c"], 1)
    np.testing.assert_allclose(a, b, rtol=2e-3)
    np.testing.assert_allclose(b, c, rtol=2e-3)


def test_groups_of_channels() -> None:
    mod = layers()
    found, old = values(Equalize(rounds=1, limit=1e4).apply(mod)), values(mod)
    # Input channel 5 is the second one of group 1, whose outputs are 4 to 7.
    second = np.abs(old["b"][4:, 1]).max()
    factor = np.sqrt(reach(old["a"], 0)[5] / second)
    np.testing.assert_allclose(found["a"][5], old["a"][5] / factor, rtol=1e-5)
    np.testing.assert_allclose(
        found["a_bias"].ravel()[5], old["a_bias"].ravel()[5] / factor, rtol=1e-5
    )


def test_products_and_pools_between_convolutions() -> None:
    def build(b: Any, x: Any) -> Any:
        w = b.emit(edge.constant(np.array([[8.0, 1], [0, 2]], np.float32)), "first")
        y = b.emit(relax.op.nn.leakyrelu(b.emit(relax.op.matmul(x, w)), 0.1))
        w = b.emit(edge.constant(np.array([[2.0, 0, 1], [0, 0.5, 0]], np.float32)), "second")
        return b.emit(relax.op.matmul(y, w))

    found = values(Equalize().apply(net(build, (1, 2))))
    np.testing.assert_allclose(found["first"], [[4, 0.5], [0, 1]])
    np.testing.assert_allclose(found["second"], [[4, 0, 2], [0, 1, 0]])
    pooled = layers(lambda y: relax.op.nn.max_pool2d(relax.op.nn.relu(y), (2, 2)))
    assert (values(Equalize().apply(pooled))["a"] != values(pooled)["a"]).any()


@pytest.mark.parametrize(
    "between",
    [
        lambda y: relax.op.clip(y, 0, 6),
        relax.op.sigmoid,
        lambda y: relax.op.nn.pad(y, (0,) * 4 + (1,) * 4, pad_value=2.0),
        lambda y: relax.op.add(y, relax.op.nn.relu(y)),
        lambda y: relax.op.permute_dims(y, (0, 1, 3, 2)),
    ],
)
def test_what_lets_no_factor_through_is_left(between: Any) -> None:
    mod = layers(between)
    found = values(Equalize().apply(mod))
    for name in ("a", "a_bias"):
        np.testing.assert_array_equal(found[name], values(mod)[name])
    assert (found["b"] != values(mod)["b"]).any()  # the pair of b and c


def test_zeros_and_shared_weights_stay() -> None:
    mod = layers(depthwise=True)
    shared = ShareWeights(layers={"b": 3, "*": 0}).apply(mod)
    tvm.ir.assert_structural_equal(Equalize().apply(shared), shared)
    from tvm_compress.passes import Prune

    pruned = Prune(sparsity=0.5).apply(mod)
    found = values(Equalize().apply(pruned))
    for name in ("a", "b", "c"):
        np.testing.assert_array_equal(found[name] == 0, values(pruned)[name] == 0)


def test_the_limit_holds_over_all_rounds() -> None:
    mod = layers(depthwise=True)
    found, old = values(Equalize(limit=1.5).apply(mod)), values(mod)
    factors = reach(old["a"], 0) / reach(found["a"], 0)
    assert factors.max() <= 1.5001 and factors.min() >= 1 / 1.5001
    assert np.isclose(factors.max(), 1.5, rtol=1e-4)
    tvm.ir.assert_structural_equal(Equalize(limit=1.0).apply(mod), mod)


def test_refuses() -> None:
    x = RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    with pytest.raises(PassError) as quantised:
        Equalize().apply(Quantize().on(x)(layers()))
    assert str(quantised.value) == (
        "equalize: the module is quantised already; expected a float network: run equalize before "
        "quantize, or dequantize first."
    )
    with pytest.raises(OptionError) as rounds:
        Equalize(rounds=0)
    assert str(rounds.value) == ("equalize: there are 0 rounds; expected a whole number from 1 on.")
    for limit in (0.5, np.inf, np.nan):
        with pytest.raises(OptionError) as outside:
            Equalize(limit=limit)
        assert str(outside.value) == (
            f"equalize: the limit is {limit}; expected a finite number of at least 1."
        )
