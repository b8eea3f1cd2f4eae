"""``prune-channels``: which channels go, together with what, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from tests.training.nets import module
from tvm_compress import ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import PruneChannels, ShareWeights
from tvm_compress.targets import reference

Array = NDArray[Any]
RNG = np.random.default_rng(3)
X = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)


def filters(*norms: float, inputs: int = 2, size: int = 1) -> Array:
    """One filter of each mean magnitude, with signs by chance."""
    signs = RNG.choice([-1.0, 1.0], (len(norms), inputs, size, size))
    return (signs * np.reshape(norms, (-1, 1, 1, 1))).astype(np.float32)


def chain(w1: Array, w2: Array, b1: Array | None = None) -> tvm.IRModule:
    def body(x: Any, w1: Any, w2: Any, *bias: Any) -> Any:
        y = op.nn.conv2d(x, w1)
        y = op.add(y, bias[0]) if bias else y
        return op.nn.conv2d(op.nn.relu(y), w2, padding=1)

    given = {"w1": w1, "w2": w2} | ({} if b1 is None else {"b1": b1})
    return tc.load(module({"x": (1, 2, 5, 5)}, given, body))


def value(mod: tvm.IRModule, name: str) -> Array:
    return ir.parameters(mod)[name].value


def test_the_smallest_filters_go_with_their_readers() -> None:
    w1, w2 = filters(3, 1, 4, 2), filters(1, 1, 1, inputs=4, size=3)
    b1 = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    made = PruneChannels(0.5)(chain(w1, w2, b1))
    np.testing.assert_array_equal(value(made, "w1"), w1[[0, 2]])
    np.testing.assert_array_equal(value(made, "b1"), b1[:, [0, 2]])
    np.testing.assert_array_equal(value(made, "w2"), w2[:, [0, 2]])
    # The outputs are those of the network whose second layer takes the channels for zero.
    masked = w2.copy()
    masked[:, [1, 3]] = 0
    (expected,) = reference.run(chain(w1, masked, b1), X).values()
    (found,) = reference.run(made, X).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_norms_differ() -> None:
    w1 = np.asarray([[0, 5], [3, 3], [9, 9]], np.float32).reshape(3, 2, 1, 1)
    w2 = filters(1, inputs=3)
    kept = {n: value(PruneChannels(0.34, n)(chain(w1, w2)), "w1") for n in ("l1", "l2")}
    np.testing.assert_array_equal(kept["l1"], w1[[1, 2]])  # 5 < 6
    np.testing.assert_array_equal(kept["l2"], w1[[0, 2]])  # 25 > 18


def two_layers() -> tvm.IRModule:
    w1, w2, w3 = filters(5, 6, 7, 8), filters(1, 2, 3, 9, inputs=4), filters(1, 1, inputs=4)

    def body(x: Any, w1: Any, w2: Any, w3: Any) -> Any:
        y = op.nn.relu(op.nn.conv2d(op.nn.relu(op.nn.conv2d(x, w1)), w2))
        return op.nn.conv2d(y, w3)

    return tc.load(module({"x": (1, 2, 5, 5)}, {"w1": w1, "w2": w2, "w3": w3}, body))


def sizes(mod: tvm.IRModule) -> list[int]:
    return [w.parameter.value.shape[0] for w in ir.weights(mod).values()]


def test_scopes_and_patterns() -> None:
    mod = two_layers()
    assert sizes(PruneChannels(0.5)(mod)) == [2, 2, 2]
    assert sizes(PruneChannels(0.375, scope="global")(mod)) == [4, 1, 2]
    assert sizes(PruneChannels(0.5, layers={"w1": 0.25})(mod)) == [3, 2, 2]
    assert sizes(PruneChannels(0.25, scope="global", layers={"w2": 0.0})(mod)) == [3, 4, 2]


def test_every_layer_keeps_its_largest_channel() -> None:
    made = PruneChannels(1.0)(two_layers())
    assert sizes(made) == [1, 1, 2]
    assert np.abs(value(made, "w1")).max() == 8
    assert np.abs(value(made, "w2")).max() == 9


def test_nothing_is_pruned_at_zero() -> None:
    mod = two_layers()
    tvm.ir.assert_structural_equal(PruneChannels(0.0)(mod), mod)


def test_channels_tied_by_addition_and_depthwise_go_together() -> None:
    w1, d, w2, w3 = (
        filters(1, 9, 2, 5),
        filters(1, 1, 1, 1, inputs=1, size=3),
        filters(9, 1, 4, 5, inputs=4),
        filters(1, inputs=4),
    )

    def body(x: Any, w1: Any, d: Any, w2: Any, w3: Any) -> Any:
        y = op.nn.conv2d(op.nn.conv2d(x, w1), d, padding=1, groups=4)
        return op.nn.conv2d(op.add(op.nn.conv2d(op.nn.relu(y), w2), y), w3)

    given = {"w1": w1, "d": d, "w2": w2, "w3": w3}
    mod = tc.load(module({"x": (1, 2, 5, 5)}, given, body))
    made = PruneChannels(0.25)(mod)
    # Sums over both filters: 2 * 1 + 4 * 9, 2 * 9 + 4 * 1, 2 * 2 + 4 * 4, 2 * 5 + 4 * 5.
    np.testing.assert_array_equal(value(made, "w1"), w1[[0, 1, 3]])
    assert value(made, "d").shape == (3, 1, 3, 3)
    np.testing.assert_array_equal(value(made, "w2"), w2[[0, 1, 3]][:, [0, 1, 3]])


@given(st.floats(0, 1))
def test_the_share_is_rounded_down(sparsity: float) -> None:
    made = PruneChannels(sparsity)(chain(filters(*range(1, 8)), filters(1, inputs=7)))
    assert value(made, "w1").shape[0] == max(1, 7 - int(sparsity * 7 + 1e-9))


def test_refuses_options() -> None:
    for options, sentence in (
        ({"sparsity": 1.5}, "the sparsity is 1.5; expected a number from 0 to 1."),
        ({"layers": {"w": -1.0}}, "the sparsity is -1.0; expected a number from 0 to 1."),
        ({"norm": "l3"}, "the norm is l3; expected l1 or l2."),
        ({"scope": "row"}, "the scope is row; expected layer or global."),
    ):
        with pytest.raises(OptionError) as caught:
            PruneChannels(**options)  # type: ignore[arg-type]
        assert str(caught.value) == f"prune-channels: {sentence}"


def test_refuses_a_pattern_without_weight_and_a_shared_weight() -> None:
    with pytest.raises(OptionError) as caught:
        PruneChannels(layers={"fc*": 0.5})(two_layers())
    assert str(caught.value) == (
        "prune-channels: the pattern fc* fits no weight; the weights are w1, w2, w3."
    )
    with pytest.raises(PassError) as refused:
        PruneChannels()(ShareWeights(2)(two_layers()))
    assert str(refused.value) == (
        "prune-channels: the weight w1 is already shared; expected a dense weight: run "
        "prune-channels before share-weights, and share-weights once."
    )
