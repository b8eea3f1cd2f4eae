"""``share-weights``: codebooks in the module, zeros, and what the pass refuses."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvm_compress import clustering, edge, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.targets import reference

RNG = np.random.default_rng(0)
CONV = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
FC = RNG.standard_normal((4, 3)).astype(np.float32)


def network(conv: Any = None, fc: Any = None) -> tvm.IRModule:
    """Bind the weights of a convolution and of a product to what is given, or to constants."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2, 5, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(CONV) if conv is None else conv, "conv_weight")
            y = builder.emit(relax.op.nn.conv2d(x, w), "conv")
            b = builder.emit(edge.constant(np.ones((1, 4, 1, 1), np.float32)), "conv_bias")
            y = builder.emit(relax.op.mean(builder.emit(relax.op.add(y, b)), [2, 3]), "mean")
            w = builder.emit(edge.constant(FC) if fc is None else fc, "fc_weight")
            y = builder.emit_output(builder.emit(relax.op.matmul(y, w), "fc"), "y")
        builder.emit_func_output(y)
    return builder.get()


def test_weights_become_codebooks() -> None:
    shared = ShareWeights(bits=3)(network())
    made = []
    for value in (CONV, FC):
        codes, centroids = clustering.share(value, 3)
        made.append(codebook(edge.constant(codes), edge.constant(centroids)))
    tvm.ir.assert_structural_equal(shared, ir.replace_parameters(network(*made), {}))
    assert list(ir.parameters(shared)) == ["conv_weight", "conv_bias", "fc_weight"]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("method", get_args(clustering.Method))
def test_few_values_zeros_kept_and_near(bits: int, method: Any) -> None:
    pruned = Prune(sparsity=0.4)(network())
    before, after = (ir.parameters(m) for m in (pruned, ShareWeights(bits, method)(pruned)))
    assert not after["conv_bias"].shared
    for name in ("conv_weight", "fc_weight"):
        parameter, dense = after[name], before[name].value
        assert parameter.codes is not None and parameter.centroids is not None
        assert parameter.codes.dtype == np.uint8 and parameter.codes.shape == dense.shape
        assert parameter.centroids.dtype == np.float32
        assert parameter.centroids[0] == 0.0
        np.testing.assert_array_equal(parameter.codes == 0, dense == 0)
        assert parameter.codes.max() < min(2**bits, parameter.centroids.size)
        assert len(np.unique(parameter.value)) <= 2**bits
        # Every value has the nearest of the centroids that are not the zero's.
        live = np.unique(parameter.codes[dense != 0])
        distance = np.abs(dense[dense != 0][:, None] - parameter.centroids[live])
        chosen = np.abs(dense - parameter.value)[dense != 0]
        np.testing.assert_allclose(chosen, distance.min(1), rtol=1e-6)


def test_optimal_is_no_worse_than_any_start() -> None:
    def error(method: Any) -> float:
        shared = ir.parameters(ShareWeights(2, method)(network()))
        return float(((shared["conv_weight"].value - CONV) ** 2).sum())

    best = error("optimal")
    assert all(best <= error(method) * (1 + 1e-6) for method in ("linear", "density", "random"))


def test_bits_by_pattern() -> None:
    shared = ir.parameters(ShareWeights(4, layers={"fc*": 1})(network()))
    assert len(np.unique(shared["fc_weight"].value)) <= 2
    assert 8 < len(np.unique(shared["conv_weight"].value)) <= 16


def test_the_seed_decides_the_random_start() -> None:
    made = [ShareWeights(3, "random", seed=seed)(network()) for seed in (0, 0, 5)]
    tvm.ir.assert_structural_equal(made[0], made[1])
    with pytest.raises(ValueError, match="StructuralEqual check failed"):
        tvm.ir.assert_structural_equal(made[0], made[2])


def test_stock_compile_runs_what_the_reference_runs() -> None:
    shared = ShareWeights(3)(Prune(0.5)(network()))
    x = RNG.standard_normal((1, 2, 5, 5)).astype(np.float32)
    machine = relax.VirtualMachine(tvm.compile(shared, "llvm"), tvm.cpu())
    (expected,) = reference.run(shared, x).values()
    y = machine["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5])
def test_refuses_bits_outside_their_range(bits: Any) -> None:
    with pytest.raises(OptionError) as caught:
        ShareWeights(bits=bits)
    assert str(caught.value) == (
        f"share-weights: the codes have {bits} bits; expected a whole number from 1 to 8."
    )


@pytest.mark.parametrize("bits", [9, -1, 2.5])
def test_refuses_bits_of_a_layer_outside_their_range(bits: Any) -> None:
    for options in ({"layers": {"fc*": bits}}, {"first": bits}, {"last": bits}):
        with pytest.raises(OptionError) as caught:
            ShareWeights(**options)
        assert str(caught.value) == (
            f"share-weights: a layer's codes have {bits} bits; expected a whole number from 1 to "
            "8, or 0 to leave the weight dense."
        )


def test_refuses_an_unknown_method() -> None:
    with pytest.raises(OptionError) as caught:
        ShareWeights(method="kmeans")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "share-weights: the method is kmeans; expected optimal, linear, density, random."
    )


def test_refuses_a_pattern_without_weight() -> None:
    with pytest.raises(OptionError) as caught:
        ShareWeights(layers={"lstm*": 2})(network())
    assert str(caught.value) == (
        "share-weights: the pattern lstm* fits no weight; the weights are conv_weight, fc_weight."
    )


def test_refuses_to_share_twice() -> None:
    with pytest.raises(PassError) as caught:
        ShareWeights()(ShareWeights()(network()))
    assert str(caught.value) == (
        "share-weights: the weight conv_weight is already shared; expected a dense weight: run "
        "share-weights once."
    )


def spoilt(value: float) -> NDArray[Any]:
    fc = FC.copy()
    fc[1, 1] = value
    return fc


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite value")])
def test_refuses_what_is_no_number(value: float, what: str) -> None:
    with pytest.raises(PassError) as caught:
        ShareWeights()(network(fc=edge.constant(spoilt(value))))
    assert str(caught.value) == (
        f"share-weights: the weight fc_weight holds 1 {what}; expected numbers: load the network "
        "again or lower the learning rate."
    )


def test_refuses_a_wider_float() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), "float64"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(FC.astype(np.float64)), "fc_weight")
            y = builder.emit_output(builder.emit(relax.op.matmul(x, w)))
        builder.emit_func_output(y)
    with pytest.raises(PassError) as caught:
        ShareWeights()(builder.get())
    assert str(caught.value) == (
        "share-weights: the weight fc_weight is float64; expected float32: convert the network "
        "before it is compressed."
    )


@pytest.mark.parametrize("groups", [2, 4, 3, 100])
def test_groups_of_output_channels_have_codebooks_of_their_own(groups: int) -> None:
    pruned = Prune(0.3)(network())
    before, after = ir.parameters(pruned), ir.parameters(ShareWeights(2, groups=groups)(pruned))
    for name, axis, made in (
        # The largest number of groups that divides four channels, and three.
        ("conv_weight", 0, {2: 2, 4: 4, 3: 2, 100: 4}[groups]),
        ("fc_weight", 1, {2: 1, 4: 3, 3: 3, 100: 3}[groups]),
    ):
        parameter, value = after[name], before[name].value
        assert parameter.parts == made
        shape = [1] * value.ndim
        shape[axis] = made
        assert parameter.centroids.shape == ((4,) if made == 1 else (*shape, 4))
        for dense, found in zip(
            np.split(value, made, axis), np.split(parameter.value, made, axis), strict=True
        ):
            codes, centroids = clustering.share(np.ascontiguousarray(dense), 2)
            np.testing.assert_array_equal(found, centroids[codes])
        np.testing.assert_array_equal(parameter.value == 0, value == 0)


def test_groups_are_nearer() -> None:
    spread = CONV * np.array([1, 10, 100, 1000], np.float32).reshape(4, 1, 1, 1)
    mod = network(edge.constant(spread))
    errors = [
        np.square(ir.parameters(ShareWeights(2, groups=n)(mod))["conv_weight"].value - spread).sum()
        for n in (1, 2, 4)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_first_last_and_zero_bits() -> None:
    shared = ir.parameters(ShareWeights(2, first=3, last=0)(network()))
    assert shared["conv_weight"].centroids.size == 8 and not shared["fc_weight"].shared
    np.testing.assert_array_equal(shared["fc_weight"].value, FC)
    shared = ir.parameters(ShareWeights(2, last=0, layers={"fc*": 1, "conv*": 0})(network()))
    assert shared["fc_weight"].centroids.size == 2 and not shared["conv_weight"].shared


def test_refuses_no_groups() -> None:
    with pytest.raises(OptionError) as caught:
        ShareWeights(groups=0)
    assert str(caught.value) == (
        "share-weights: there are 0 groups; expected a whole number from 1 on."
    )


def quantised(zero_point: int = 0) -> tvm.IRModule:
    """The network with an int8 weight of a scale for each output channel."""
    scales = np.array([0.5, 1.0, 4.0], np.float32)
    whole = RNG.integers(-127, 128, (4, 3)).astype(np.int8)
    whole[0] = [0, 7, 0]
    zero = edge.constant(np.asarray(zero_point, np.int32))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(edge.constant(whole), "w")
            real = builder.emit(relax.op.dequantize(w, edge.constant(scales), zero, axis=1))
            y = builder.emit_output(builder.emit(relax.op.matmul(x, real), "fc"), "y")
        builder.emit_func_output(y)
    return builder.get()


@pytest.mark.parametrize("groups", [1, 3])
def test_int8_weights_get_int8_centroids(groups: int) -> None:
    mod = quantised()
    (before,), (after,) = (
        ir.parameters(m).values() for m in (mod, ShareWeights(bits=2, groups=groups).apply(mod))
    )
    assert after.centroids is not None and after.codes is not None
    assert after.centroids.dtype == np.int8
    np.testing.assert_array_equal(after.codes == 0, before.value == 0)
    if groups == 3:  # each channel has three values that are not zero at most, but one has four
        assert after.centroids.shape == (1, 3, 4)
        exact = [np.unique(c[c != 0]).size <= 3 for c in before.value.T]
        for column, same in enumerate(exact):
            if same:
                np.testing.assert_array_equal(after.value[:, column], before.value[:, column])


def test_int8_weights_with_a_zero_point_are_refused() -> None:
    with pytest.raises(PassError) as refused:
        ShareWeights().apply(quantised(3))
    assert str(refused.value) == (
        "share-weights: the weight w is int8; expected float32: run share-weights before the "
        "network is quantised."
    )
