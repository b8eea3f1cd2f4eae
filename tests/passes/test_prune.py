"""``prune``: how many weights, which ones, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import Prune, ShareWeights, prune
from tvm_compress.passes.prune import keep_largest

FC1 = np.asarray([[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]], np.float32)
FC2 = np.asarray([[7, -8], [9, 1], [-2, 3]], np.float32)


def network(fc1: NDArray[Any] = FC1, fc2: NDArray[Any] = FC2) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, fc1.shape[0]), str(fc1.dtype)))
    with builder.function("main", [x]):
        with builder.dataflow():
            w1 = builder.emit(edge.constant(fc1), "fc1_weight")
            y = builder.emit(relax.op.matmul(x, w1), "fc1")
            bias = builder.emit(edge.constant(np.ones(fc1.shape[1], fc1.dtype)), "fc1_bias")
            y = builder.emit(relax.op.add(y, bias), "biased")
            if fc2.dtype != fc1.dtype:
                y = builder.emit(relax.op.astype(y, str(fc2.dtype)), "cast")
            w2 = builder.emit(edge.constant(fc2), "fc2_weight")
            y = builder.emit_output(builder.emit(relax.op.matmul(y, w2), "fc2"), "y")
        builder.emit_func_output(y)
    return builder.get()


def values(mod: tvm.IRModule) -> dict[str, NDArray[Any]]:
    return {name: parameter.value for name, parameter in ir.parameters(mod).items()}


def expect(mod: tvm.IRModule, fc1: Any, fc2: Any) -> None:
    expected = network(np.asarray(fc1, np.float32), np.asarray(fc2, np.float32))
    tvm.ir.assert_structural_equal(mod, ir.replace_parameters(expected, {}))


def test_each_layer() -> None:
    expect(
        Prune(sparsity=0.5)(network()),
        [[0, 0, 0], [-0.4, 0.5, -0.6]],
        [[7, -8], [9, 0], [0, 0]],
    )


def test_all_layers_by_one_threshold() -> None:
    expect(Prune(sparsity=0.5, scope="global")(network()), np.zeros((2, 3)), FC2)
    expect(
        Prune(sparsity=8 / 12, scope="global")(network()),
        np.zeros((2, 3)),
        [[7, -8], [9, 0], [0, 3]],
    )


def test_by_pattern_the_first_that_fits() -> None:
    made = Prune(sparsity=1.0, layers={"fc1*": 0.5, "fc*": 0.0})
    expect(made(network()), [[0, 0, 0], [-0.4, 0.5, -0.6]], FC2)


def test_by_pattern_apart_from_the_global_threshold() -> None:
    made = Prune(sparsity=0.5, scope="global", layers={"fc1_weight": 0.0})
    expect(made(network()), FC1, [[7, -8], [9, 0], [0, 0]])


def test_biases_and_names_are_kept() -> None:
    before, after = values(network()), values(Prune(sparsity=1.0)(network()))
    assert list(before) == list(after) == ["fc1_weight", "fc1_bias", "fc2_weight"]
    np.testing.assert_array_equal(after["fc1_bias"], before["fc1_bias"])
    assert not after["fc1_weight"].any() and not after["fc2_weight"].any()


def test_dtypes_are_kept_by_a_global_threshold() -> None:
    after = values(Prune(0.5, scope="global")(network(FC1, FC2.astype(np.float64))))
    assert [str(v.dtype) for v in after.values()] == ["float32", "float32", "float64"]


def test_pruning_twice_changes_nothing() -> None:
    once = Prune(sparsity=0.5)(network())
    tvm.ir.assert_structural_equal(Prune(sparsity=0.5)(once), once)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=4, max_side=5),
        elements=st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]),
    ),
    st.floats(0, 1),
)
def test_the_count_is_exact_and_the_largest_stay(weights: NDArray[Any], sparsity: float) -> None:
    before = weights.copy()
    kept = keep_largest(weights, sparsity)
    np.testing.assert_array_equal(weights, before)
    drop = round(sparsity * weights.size)
    # By sorting (magnitude, later position first): what is dropped is the head of that order.
    order = sorted(range(weights.size), key=lambda i: (abs(float(weights.flat[i])), -i))
    expected = weights.copy().reshape(-1)
    expected[order[:drop]] = 0
    np.testing.assert_array_equal(kept, expected.reshape(weights.shape))


@given(
    st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.float64, np.float16]),
            hnp.array_shapes(max_dims=2, max_side=6),
            elements=st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
    st.integers(1, 7),
)
def test_one_threshold_over_several_tensors_is_that_of_their_elements_in_a_row(
    tensors: list[NDArray[Any]], sparsity: float, piece: int
) -> None:
    row = np.concatenate([t.ravel().astype(np.float64) for t in tensors])
    order = sorted(range(row.size), key=lambda i: (abs(row[i]), -i))
    row[order[: round(sparsity * row.size)]] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "_PIECE", piece)
        kept = list(prune._keep_largest(tensors, sparsity))[::-1]
    assert [(k.dtype, k.shape) for k in kept] == [(t.dtype, t.shape) for t in tensors]
    np.testing.assert_array_equal(np.concatenate([k.ravel() for k in kept]), row)


def test_a_transposed_array_is_pruned_at_its_places() -> None:
    kept = keep_largest(FC1.T, 0.5)
    np.testing.assert_array_equal(kept, np.asarray([[0, -0.4], [0, 0.5], [0, -0.6]], np.float32))


@pytest.mark.parametrize("sparsity", [-0.1, 1.01, float("nan"), 90])
def test_refuses_a_sparsity_outside_its_range(sparsity: float) -> None:
    sentence = f"prune: the sparsity is {sparsity}; expected a number from 0 to 1."
    for options in ({"sparsity": sparsity}, {"layers": {"fc1": sparsity}}):
        with pytest.raises(OptionError) as caught:
            Prune(**options)
        assert str(caught.value) == sentence


def test_refuses_an_unknown_scope() -> None:
    with pytest.raises(OptionError) as caught:
        Prune(scope="row")  # type: ignore[arg-type]
    assert str(caught.value) == "prune: the scope is row; expected layer or global."


def test_refuses_a_pattern_without_weight() -> None:
    with pytest.raises(OptionError) as caught:
        Prune(layers={"conv*": 0.5})(network())
    assert str(caught.value) == (
        "prune: the pattern conv* fits no weight; the weights are fc1_weight, fc2_weight."
    )


def test_refuses_a_shared_weight() -> None:
    with pytest.raises(PassError) as caught:
        Prune()(ShareWeights(2)(network()))
    assert str(caught.value) == (
        "prune: the weight fc1_weight is already shared; expected a dense weight: run prune before "
        "share-weights, and share-weights once."
    )


def test_refuses_an_integer_weight() -> None:
    with pytest.raises(PassError) as caught:
        Prune()(network(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)))
    assert str(caught.value) == (
        "prune: the weight fc1_weight is int8; expected float32: run prune before the network is "
        "quantised."
    )


def test_refuses_nan() -> None:
    spoilt = FC2.copy()
    spoilt[0] = np.nan
    with pytest.raises(PassError) as caught:
        Prune()(network(fc2=spoilt))
    assert str(caught.value) == (
        "prune: the weight fc2_weight holds 2 NaN; expected numbers: load the network again or "
        "lower the learning rate."
    )


def test_first_and_last_are_found_in_the_graph() -> None:
    after = values(Prune(1.0, first=0.0)(network()))
    np.testing.assert_array_equal(after["fc1_weight"], FC1)
    assert not after["fc2_weight"].any()
    after = values(Prune(1.0, last=0.5)(network()))
    assert not after["fc1_weight"].any() and np.count_nonzero(after["fc2_weight"]) == 3
    # A pattern goes before both, and a global threshold leaves them out.
    after = values(Prune(1.0, first=0.0, layers={"fc1*": 0.5})(network()))
    assert np.count_nonzero(after["fc1_weight"]) == 3
    after = values(Prune(0.5, scope="global", last=0.0)(network()))
    assert np.count_nonzero(after["fc1_weight"]) == 3 and after["fc2_weight"].all()


def test_sparsities_of_first_and_last_are_checked() -> None:
    for options in ({"first": -0.5}, {"last": -0.5}):
        with pytest.raises(OptionError) as caught:
            Prune(**options)  # type: ignore[arg-type]
        assert str(caught.value) == "prune: the sparsity is -0.5; expected a number from 0 to 1."
