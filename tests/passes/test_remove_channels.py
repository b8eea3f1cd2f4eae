"""``remove-channels``: what goes, what stays, and that outputs stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax
from tvm.relax import op

import tvm_compress as tc
from tests.training.nets import module
from tvm_compress import ir
from tvm_compress.errors import OptionError
from tvm_compress.passes import RemoveChannels, ShareWeights
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs

Array = NDArray[Any]


def weights(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes]


def net(
    shape: tuple[int, ...], parameters: dict[str, Any], body: Callable[..., Any]
) -> tvm.IRModule:
    return tc.load(module({"x": shape}, parameters, body))


def shapes(mod: tvm.IRModule) -> dict[str, tuple[int, ...]]:
    return {name: p.value.shape for name, p in ir.parameters(mod).items()}


def outputs(mod: tvm.IRModule, samples: int = 3) -> list[Array]:
    (spec,) = input_specs(mod)
    x = np.random.default_rng(1).normal(size=(samples, *spec.shape[1:])).astype(np.float32)
    return list(reference.run(mod, x).values())


def removed(mod: tvm.IRModule, **options: Any) -> tvm.IRModule:
    """Remove channels, and check that nothing else changed."""
    made = RemoveChannels(**options)(mod)
    for before, after in zip(outputs(mod), outputs(made), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    tvm.ir.assert_structural_equal(RemoveChannels(**options)(made), made)
    return made


def two_convolutions(
    padding: int = 0, bias: float = 0.5, change: Callable[[Array], Any] = lambda w: w
) -> tvm.IRModule:
    """Filter 1 of 4 is zero; its constant is relu(bias)."""
    w1, b1, w2, b2 = weights(0, (4, 2, 3, 3), (1, 4, 1, 1), (3, 4, 3, 3), (1, 3, 1, 1))
    w1[1] = 0
    b1[0, 1] = bias

    def body(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        y = op.nn.relu(op.add(op.nn.conv2d(x, w1), b1))
        return op.add(op.nn.conv2d(y, w2, padding=padding), b2)

    given = {"w1": change(w1), "b1": b1, "w2": change(w2), "b2": b2}
    return net((1, 2, 9, 9), given, body)


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
def test_a_dead_filter_moves_into_the_next_bias(bias: float) -> None:
    mod = two_convolutions(bias=bias)
    made = removed(mod)
    assert shapes(made) == {
        "w1": (3, 2, 3, 3),
        "b1": (1, 3, 1, 1),
        "w2": (3, 3, 3, 3),
        "b2": (1, 3, 1, 1),
    }
    before, after = ir.parameters(mod), ir.parameters(made)
    np.testing.assert_array_equal(after["w1"].value, before["w1"].value[[0, 2, 3]])
    np.testing.assert_array_equal(after["w2"].value, before["w2"].value[:, [0, 2, 3]])
    moved = before["w2"].value[:, 1].sum((1, 2), dtype=np.float64) * max(bias, 0)
    expected = before["b2"].value.ravel() + moved
    np.testing.assert_allclose(after["b2"].value.ravel(), expected, rtol=1e-6)


def test_a_constant_ends_at_padding() -> None:
    assert shapes(removed(two_convolutions(padding=1, bias=0.5)))["w1"][0] == 4
    assert shapes(removed(two_convolutions(padding=1, bias=-0.5)))["w1"][0] == 3


def test_a_bias_is_made_where_there_is_none() -> None:
    w1, b1, w2 = weights(0, (4, 2, 1, 1), (1, 4, 1, 1), (3, 4, 1, 1))
    w1[2], b1[0, 2] = 0, 1.5

    def body(x: Any, w1: Any, b1: Any, w2: Any) -> Any:
        return op.nn.conv2d(op.nn.relu(op.add(op.nn.conv2d(x, w1), b1)), w2)

    mod = net((1, 2, 4, 4), {"w1": w1, "b1": b1, "w2": w2}, body)
    made = shapes(removed(mod))
    assert made["w1"] == (3, 2, 1, 1) and made["w2"] == (3, 3, 1, 1)
    assert list(made.values())[-1] == (1, 3, 1, 1)


def test_what_nobody_reads_goes_and_what_it_alone_read_too() -> None:
    w1, w2, w3 = weights(0, (5, 6), (6, 4), (4, 2))
    w3[1] = 0  # nobody reads unit 1 of the second layer
    w2[3, [0, 2, 3]] = 0  # unit 3 of the first is read by that unit alone

    def body(x: Any, w1: Any, w2: Any, w3: Any) -> Any:
        y = op.tanh(op.matmul(op.tanh(op.matmul(x, w1)), w2))
        return op.matmul(y, w3)

    made = removed(net((1, 5), {"w1": w1, "w2": w2, "w3": w3}, body))
    assert shapes(made) == {"w1": (5, 5), "w2": (5, 3), "w3": (3, 2)}


def test_through_depthwise_pooling_mean_and_flatten() -> None:
    w1, d, b, w2, w3 = weights(0, (4, 2, 3, 3), (8, 1, 3, 3), (1, 8, 1, 1), (5, 8, 1, 1), (45, 3))
    w1[2] = 0
    b[0, 4:6, 0, 0] = [-1, 2]  # the two depthwise outputs of channel 2: a zero and a constant

    def body(x: Any, w1: Any, d: Any, b: Any, w2: Any, w3: Any) -> Any:
        y = op.nn.max_pool2d(op.nn.relu(op.nn.conv2d(x, w1, padding=1)), (2, 2), (2, 2))
        y = op.clip(op.add(op.nn.conv2d(y, d, padding=1, groups=4), b), 0, 6)
        y = op.nn.avg_pool2d(op.nn.conv2d(y, w2), (2, 2), (2, 2))
        return op.matmul(op.reshape(y, (1, 45)), w3)

    w2[4] = 0  # nine constants behind the flatten
    given = {"w1": w1, "d": d, "b": b, "w2": w2, "w3": w3}
    made = removed(net((1, 2, 12, 12), given, body))
    found = shapes(made)
    assert found["w1"] == (3, 2, 3, 3)
    assert found["d"] == (6, 1, 3, 3)
    assert found["w2"] == (4, 6, 1, 1)
    assert found["w3"] == (36, 3)


def residual(dead: dict[str, list[int]]) -> tvm.IRModule:
    w1, w2, w3 = weights(0, (4, 2, 1, 1), (4, 4, 1, 1), (3, 4, 1, 1))
    for name, filters in dead.items():
        {"w1": w1, "w2": w2}[name][filters] = 0

    def body(x: Any, w1: Any, w2: Any, w3: Any) -> Any:
        y = op.nn.conv2d(x, w1)
        return op.nn.conv2d(op.nn.relu(op.add(op.nn.conv2d(y, w2), y)), w3)

    return net((1, 2, 4, 4), {"w1": w1, "w2": w2, "w3": w3}, body)


def test_an_addition_lets_go_what_both_branches_let_go() -> None:
    assert shapes(removed(residual({"w1": [1], "w2": [0, 1]})))["w3"] == (3, 3, 1, 1)
    assert shapes(removed(residual({"w2": [0, 1]})))["w3"] == (3, 4, 1, 1)
    assert shapes(removed(residual({"w1": [1]})))["w3"] == (3, 4, 1, 1)


def test_concatenation_and_transpose() -> None:
    w1, w2, w3 = weights(0, (3, 2, 1, 1), (4, 2, 1, 1), (7, 5))
    w1[2], w2[0] = 0, 0

    def body(x: Any, w1: Any, w2: Any, w3: Any) -> Any:
        y = op.concat([op.nn.conv2d(x, w1), op.nn.conv2d(x, w2)], axis=1)
        return op.matmul(op.permute_dims(y, [0, 2, 3, 1]), w3)

    made = removed(net((1, 2, 4, 3), {"w1": w1, "w2": w2, "w3": w3}, body))
    assert list(shapes(made).values())[:3] == [(2, 2, 1, 1), (3, 2, 1, 1), (5, 5)]


def test_a_network_of_zeros_keeps_one_channel_a_layer() -> None:
    mod = two_convolutions(change=np.zeros_like)
    assert shapes(removed(mod))["w1"] == (1, 2, 3, 3)


def test_inputs_outputs_and_unknown_operators_hold_their_channels() -> None:
    w1, w2 = weights(0, (2, 3), (3, 4))
    w1[:] = 0

    def body(x: Any, w1: Any, w2: Any) -> Any:
        return op.matmul(op.nn.softmax(op.matmul(x, w1)), w2)

    mod = net((1, 2), {"w1": w1, "w2": w2}, body)
    tvm.ir.assert_structural_equal(removed(mod), mod)


def test_a_weight_that_two_layers_use_is_cut_for_each() -> None:
    (w,) = weights(0, (3, 3, 1, 1))
    w[1] = 0

    def body(x: Any, w: Any) -> Any:
        return op.nn.conv2d(op.nn.relu(op.nn.conv2d(x, w)), w)

    made = removed(net((1, 3, 2, 2), {"w": w}, body))
    assert sorted(shapes(made).values()) == [(2, 3, 1, 1), (3, 2, 1, 1)]


def test_a_shared_weight_stays_shared_with_its_centroids() -> None:
    mod = ShareWeights(3)(two_convolutions())
    made = removed(mod)
    for name in ("w1", "w2"):
        before, after = ir.parameters(mod)[name], ir.parameters(made)[name]
        np.testing.assert_array_equal(after.centroids, before.centroids)
        assert after.shared
    np.testing.assert_array_equal(
        ir.parameters(made)["w1"].codes, ir.parameters(mod)["w1"].codes[[0, 2, 3]]
    )


def test_a_codebook_of_each_half_is_copied_to_its_channels() -> None:
    codes = np.array([[1, 2], [0, 0], [1, 1], [2, 1]], np.uint8).reshape(4, 2, 1, 1)
    centroids = np.array([[0, 1, 2], [0, -1, 5]], np.float32).reshape(2, 1, 1, 1, 3)
    (w2,) = weights(0, (3, 4, 1, 1))

    def body(x: Any, w1: Any, w2: Any) -> Any:
        return op.nn.conv2d(op.nn.relu(op.nn.conv2d(x, w1)), w2)

    made = removed(net((1, 2, 3, 3), {"w1": (codes, centroids), "w2": w2}, body))
    found = ir.parameters(made)["w1"]
    assert found.centroids is not None and found.centroids.shape == (3, 1, 1, 1, 3)
    np.testing.assert_array_equal(found.value.reshape(3, 2), [[1, 2], [-1, -1], [5, -1]])


def test_remains_of_weight_decay_count_as_zero() -> None:
    def faint(w: Array) -> Array:
        return np.where(w == 0, np.float32(1e-10) * np.abs(w).max(), w).astype(np.float32)

    mod = two_convolutions(change=faint)
    assert shapes(removed(mod))["w1"][0] == 3
    assert shapes(removed(mod, tolerance=0.0))["w1"][0] == 4


def test_refuses_a_tolerance_outside_its_range() -> None:
    for tolerance in (-1e-9, 1.0, float("nan")):
        with pytest.raises(OptionError) as caught:
            RemoveChannels(tolerance)
        assert str(caught.value) == (
            f"remove-channels: the tolerance is {tolerance}; expected a number from 0 to below 1, "
            "such as 1e-9."
        )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0, 1]), st.booleans(), st.booleans())
def test_outputs_stay_whatever_is_zero(seed: int, padding: int, add: bool, depthwise: bool) -> None:
    rng = np.random.default_rng(seed)
    w1, w2, w3, b1, b2 = weights(
        seed, (5, 2, 1, 1), (5, 5, 3, 3), (10, 4), (1, 5, 1, 1), (1, 5, 1, 1)
    )
    d = weights(seed + 1, (5, 1, 3, 3))[0]
    for w in (w1, w2, d):
        w[rng.random(5) < 0.5] = 0
    w3[rng.random(10) < 0.3] = 0
    b1[rng.random(b1.shape) < 0.3] = 0
    w2[:, rng.random(5) < 0.3] = 0

    def body(x: Any, w1: Any, w2: Any, w3: Any, b1: Any, b2: Any, d: Any) -> Any:
        y = op.nn.relu(op.add(op.nn.conv2d(x, w1), b1))
        if depthwise:
            y = op.nn.conv2d(y, d, padding=1, groups=5)
        z = op.sigmoid(op.add(op.nn.conv2d(y, w2, padding=padding), b2))
        if add and padding:
            z = op.add(z, y)
        z = op.concat([op.mean(z, [2, 3]), op.max(y, [2, 3])], axis=1)
        return op.matmul(z, w3)

    parameters = {"w1": w1, "w2": w2, "w3": w3, "b1": b1, "b2": b2, "d": d}
    if not depthwise:
        del parameters["d"]
        inner = body

        def body(x: Any, *rest: Any) -> Any:
            return inner(x, *rest, None)

    removed(net((1, 2, 4, 4), parameters, body))


@pytest.mark.shared_data
def test_the_dead_channels_of_a_published_network(shared_data: Path) -> None:
    mod = tc.load(shared_data / "mlperf_tiny" / "vww_96_float.onnx")

    def pointwise(mod: tvm.IRModule) -> int:
        found = [w.parameter.value.shape for w in ir.weights(mod).values()]
        return sum(s[0] for s in found if len(s) == 4 and s[1] > 1 and s[2:] == (1, 1))

    made = RemoveChannels()(mod)
    assert (pointwise(mod), pointwise(made)) == (1488, 1488 - 971)
    x = np.random.default_rng(0).random((2, 96, 96, 3)).astype(np.float32)
    (before,), (after,) = (reference.run(m, x).values() for m in (mod, made))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_behind_a_stock_pass_that_moves_constants_into_calls() -> None:
    mod = relax.transform.CanonicalizeBindings()(two_convolutions())
    found = [p.value.shape for p in ir.parameters(RemoveChannels()(mod)).values()]
    assert (3, 2, 3, 3) in found
