"""``reduce-rate``: what it makes of networks, of what it leaves alone, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tests.passes.nets import conv_net
from tests.training.nets import dense_net, module
from tvm_compress import codec, edge, fixed_point, ir
from tvm_compress.errors import DataError, OptionError, PassError
from tvm_compress.ops import codebook
from tvm_compress.passes import FixedPoint, Prune, Reconstruct, ReduceRate, ShareWeights
from tvm_compress.passes.reduce_rate import round_centroids
from tvm_compress.targets import reference

Array = NDArray[Any]
X = np.random.default_rng(0).normal(size=(60, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
X = X.astype(np.float32)


def size(mod: tvm.IRModule) -> int:
    found = [w.parameter for w in ir.weights(mod).values()]
    return sum(codec.coded_bytes(p.codes, p.centroids) for p in found)  # type: ignore[arg-type]


def wide_net(seed: int = 0, **options: Any) -> tvm.IRModule:
    """A network of enough weights that bits can be counted: (1, 40) -> (1, 10)."""
    rng = np.random.default_rng(seed)
    named = {
        "w1": rng.laplace(size=(40, 60)).astype(np.float32),
        "b1": rng.normal(size=60).astype(np.float32),
        "w2": rng.laplace(size=(60, 10)).astype(np.float32),
    }

    def body(x: Any, w1: Any, b1: Any, w2: Any) -> Any:
        return op.matmul(op.nn.relu(op.add(op.matmul(x, w1), b1)), w2)

    return module({"x": (1, 40)}, named | options, body)


MIXING = np.random.default_rng(5).normal(size=(40, 40))
WIDE_X = (np.random.default_rng(6).normal(size=(150, 40)) @ MIXING + 1).astype(np.float32)


def error(mod: tvm.IRModule, other: tvm.IRModule, x: Array = WIDE_X) -> float:
    (a,), (b,) = (reference.run(m, x).values() for m in (mod, other))
    return float(((a - b) ** 2).mean() / (b**2).mean())


def test_dense_weights_become_codebooks() -> None:
    made = ReduceRate(0.01)(conv_net())
    before, after = ir.parameters(conv_net()), ir.parameters(made)
    assert list(before) == list(after) and not after["conv_bias"].shared
    for name in ("conv_weight", "fc_weight"):
        found = after[name]
        assert found.codes is not None and found.centroids is not None
        assert found.centroids.dtype == np.float32 and found.centroids[0] == 0
        assert (np.diff(found.centroids[1:]) > 0).all()
        assert set(np.unique(found.codes)) | {0} == set(range(found.centroids.size))
        change = np.square(found.value - before[name].value).sum()
        assert 0 < change < 0.2 * np.square(before[name].value).sum()


@pytest.mark.parametrize("inputs", [None, WIDE_X])
def test_more_lam_means_fewer_bytes_and_more_error(inputs: Array | None) -> None:
    mod = wide_net()
    sizes, errors = [], []
    for lam in (0.001, 0.01, 0.1):
        step = ReduceRate(lam)
        made = (step if inputs is None else step.on(inputs)).apply(mod)
        sizes.append(size(made))
        errors.append(error(made, mod))
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * 1.2 * sizes[2]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5


def test_loses_less_than_shared_weights_at_equal_bytes() -> None:
    for seed in range(3):
        mod = wide_net(seed)
        plain = ShareWeights(4)(mod)
        for step, share in ((ReduceRate(0.01), 0.85), (ReduceRate(0.01).on(WIDE_X), 0.5)):
            made = step.apply(mod)
            # A bit more for each of the 3,000 weights makes the error four times smaller.
            bits = 8 * (size(made) - size(plain)) / 3000
            assert abs(bits) < 0.7
            assert error(made, mod) * 4**bits < share * error(plain, mod)


def test_one_slope_for_all_layers() -> None:
    """A wide and a narrow layer lose about as much error for a bit less."""
    mod = wide_net()
    moments = {}

    def measure(made: tvm.IRModule) -> dict[str, tuple[float, float]]:
        found = {}
        for name, weight in ir.weights(made).items():
            p, dense = weight.parameter, ir.parameters(mod)[name].value
            assert p.codes is not None and p.centroids is not None
            bits = 8 * codec.coded_bytes(p.codes, p.centroids)
            norms = np.square(dense).sum(0)
            found[name] = (bits, float((np.square(p.value - dense).sum(0) / norms).mean()))
        return found

    moments = [measure(ReduceRate(lam)(mod)) for lam in (0.004, 0.008)]
    slopes = {}
    for name in ("w1", "w2"):
        (bits, loss), (fewer, more) = (m[name] for m in moments)
        slopes[name] = (more - loss) / (bits - fewer)
    assert 0.4 < slopes["w1"] / slopes["w2"] < 2.5
    # In the unit of lam: mean error of two layers for a mean bit of 3,000 weights.
    assert 0.003 < slopes["w1"] / 2 * 3000 < 0.012


def test_shared_weights_get_fewer_bytes_and_zeros_stay() -> None:
    mod = wide_net()
    shared = ShareWeights(4)(Prune(0.7)(mod))
    for step in (ReduceRate(0.03), ReduceRate(0.03).on(WIDE_X)):
        made = step.apply(shared)
        assert size(made) < 0.85 * size(shared)
        for name in ("w1", "w2"):
            before, after = (ir.parameters(m)[name] for m in (shared, made))
            assert not after.value[before.value == 0].any()
            assert after.centroids is not None and after.centroids.size <= 16
        assert np.count_nonzero(ir.parameters(made)["w1"].value) < 720  # as many were kept
        assert error(made, shared) < 0.2


def test_zeros_may_come_back() -> None:
    # What the codes of the others lose is made up for by weights that were zero.
    shared = ShareWeights(3)(Prune(0.6)(wide_net()))
    zero = ir.parameters(shared)["w1"].value == 0
    made = ReduceRate(0.02, keep_zeros=False).on(WIDE_X).apply(shared)
    assert ir.parameters(made)["w1"].value[zero].any()
    assert not ir.parameters(ReduceRate(0.02).on(WIDE_X).apply(shared))["w1"].value[zero].any()


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_fixed_point_keeps_its_grid(scale: Any) -> None:
    grid = FixedPoint(4, scale)(wide_net())
    made = ReduceRate(0.3)(grid)
    assert size(made) < 0.5 * size(grid)
    before, after = ir.parameters(grid), ir.parameters(made)
    assert list(before) == list(after)
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(before[name].centroids, after[name].centroids)
        assert fixed_point.step_of(after[name].centroids) is not None  # type: ignore[arg-type]
        assert (before[name].codes != after[name].codes).any()


def test_groups_keep_codebooks_of_their_own() -> None:
    shared = ShareWeights(3, groups=4)(wide_net())
    for step in (ReduceRate(0.3), ReduceRate(0.1).on(WIDE_X)):
        made = step.apply(shared)
        first = ir.parameters(made)["w1"]
        assert first.centroids is not None and first.centroids.shape == (1, 4, 8)
        assert not first.centroids[..., 0].any()
        assert (first.centroids != ir.parameters(shared)["w1"].centroids).any()
        assert size(made) < 0.8 * size(shared)
        assert error(made, shared) < 0.8


def test_codebooks_by_inputs_stay() -> None:
    rng = np.random.default_rng(0)
    table = np.sort(rng.normal(size=(2, 1, 8)), -1).astype(np.float32)
    table[..., 0] = 0
    codes = rng.integers(1, 8, (40, 60)).astype(np.uint8)
    mod = wide_net(w1=(codes, table))
    made = ReduceRate(0.05)(mod)
    found = ir.parameters(made)["w1"]
    np.testing.assert_array_equal(found.centroids, table)
    assert found.codes is not None and (found.codes != codes).any()
    assert error(made, mod) < 0.2


def test_biases_take_up_the_shift() -> None:
    mod = wide_net()
    made = ReduceRate(0.05).on(WIDE_X).apply(mod)
    dense, w1, b1 = (
        ir.parameters(mod)["w1"].value,
        ir.parameters(made)["w1"].value,
        ir.parameters(made)["b1"].value,
    )
    old = (WIDE_X @ dense).mean(0) + ir.parameters(mod)["b1"].value
    np.testing.assert_allclose((WIDE_X @ w1).mean(0) + b1, old, rtol=1e-4, atol=1e-3)
    untouched = ir.parameters(ReduceRate(0.05)(mod))["b1"].value
    np.testing.assert_array_equal(untouched, ir.parameters(mod)["b1"].value)


@pytest.mark.parametrize("step", [ReduceRate(0.01), Reconstruct(0.5, 3)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-22, 1.0, 1e6])
@pytest.mark.parametrize("samples", [1, 5])
def test_inputs_that_do_not_vary(step: Any, scale: float, samples: int) -> None:
    inputs = np.repeat(WIDE_X[:1], samples, 0) * np.float32(scale)
    mod = wide_net()
    made = ir.parameters(step.on(inputs).apply(mod))
    assert all(np.isfinite(parameter.value).all() for parameter in made.values())
    for name in ("w1", "w2"):  # keep their scale, whatever the inputs say
        largest = np.abs(ir.parameters(mod)[name].value).max()
        assert 0 < np.abs(made[name].value).max() < 3 * largest


@pytest.mark.parametrize("step", [ReduceRate(0.01), Reconstruct(0.5, 3)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_have_to_be_finite(step: Any, value: float) -> None:
    inputs = WIDE_X.copy()
    inputs[3, 5] = value
    with pytest.raises(DataError, match=r"weight w1 are infinite, NaN or so large.*samples"):
        step.on(inputs).apply(wide_net())


def test_the_zero_may_have_any_code() -> None:
    table = np.array([0.5, 0, -0.5, 1, 2], np.float32)
    codes = np.random.default_rng(3).choice(5, (40, 60), p=[0.1, 0.6, 0.1, 0.1, 0.1])
    shared = codebook(edge.constant(codes.astype(np.uint8)), edge.constant(table))
    mod = ir.replace_parameters(wide_net(), {"w1": shared})
    before = ir.parameters(mod)["w1"]
    after = ir.parameters(ReduceRate(1e-6)(mod))["w1"]
    assert (after.value[before.value == 0] == 0).all()
    np.testing.assert_allclose(after.value, before.value, atol=0.01)


def test_layers_by_name() -> None:
    mod = wide_net()
    made = ReduceRate(0.01, layers={"w1": 0, "w*": 0.1})(mod)
    plain = ReduceRate(0.01)(mod)
    assert not ir.parameters(made)["w1"].shared
    few, many = (ir.parameters(m)["w2"].centroids for m in (made, plain))
    assert few is not None and many is not None and few.size < many.size


@pytest.mark.parametrize("inputs", [None, X])
def test_all_zeros_and_odd_operators_are_left(inputs: Array | None) -> None:
    rng = np.random.default_rng(0)
    given = {"w": np.zeros((6, 4), np.float32), "v": rng.normal(size=(2, 4, 3)).astype(np.float32)}
    mod = module(
        {"x": (1, 6)}, given, lambda x, w, v: op.matmul(op.expand_dims(op.matmul(x, w), 0), v)
    )
    made = (ReduceRate() if inputs is None else ReduceRate().on(inputs)).apply(mod)
    after = ir.parameters(made)
    assert not after["w"].value.any()
    # A batched product has no rows that are measured; its inputs are assumed.
    assert after["v"].shared and after["v"].value.shape == (2, 4, 3)
    assert np.abs(after["v"].value - given["v"]).max() < 0.5 * np.abs(given["v"]).max()


def test_is_part_of_a_recipe(tmp_path: Path) -> None:
    recipe = tc.recipes.post_training(0.02, layer_lam={"w2": 0.01})
    assert tc.Recipe.from_toml(recipe.to_toml()) == recipe
    assert not recipe.needs_inputs and not recipe.needs_training_data
    recipe = tc.Recipe([ReduceRate(0.02)])
    mod = tc.load(dense_net())
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "progress": False}
    with_inputs = tc.compress(mod, recipe, calibrate=X, **options)
    without = tc.compress(mod, recipe, **options)
    tvm.ir.assert_structural_equal(with_inputs, ReduceRate(0.02).on(X)(mod))
    tvm.ir.assert_structural_equal(without, ReduceRate(0.02)(mod))
    tuned = tc.compress(mod, recipe, train=(X, np.zeros(60)), **options)
    tvm.ir.assert_structural_equal(tuned, with_inputs)
    assert len(list(tmp_path.iterdir())) == 2
    # And the pass alone takes at most 256 of many samples.
    many = np.repeat(X, 10, axis=0)
    some = many[np.linspace(0, 599, 256).round().astype(int)]
    tvm.ir.assert_structural_equal(ReduceRate(0.02).on(many)(mod), ReduceRate(0.02).on(some)(mod))


def test_the_digits_without_data(digits_onnx: Path, digits: DigitsSplit) -> None:
    mod = tc.load(digits_onnx)

    def right(mod: tvm.IRModule) -> float:
        (scores,) = reference.run(mod, digits.test_images[:200]).values()
        return float((scores.argmax(1) == digits.test_labels[:200]).mean())

    made = tc.compress(mod, tc.recipes.post_training(), progress=False)
    dense = sum(w.parameter.value.nbytes for w in ir.weights(mod).values())
    assert size(made) < dense / 8
    assert right(made) >= right(mod) - 0.02


@given(st.floats(-1e30, 1e30))
def test_rounded_centroids_have_eight_bits(value: float) -> None:
    (rounded,) = round_centroids(np.array([value]))
    assert abs(rounded - value) <= abs(value) / 256
    bits = int(np.float32(rounded).view(np.uint32))
    assert bits & 0xFFFF == 0 or abs(rounded) < 1e-35


def test_refuses_options() -> None:
    for options, sentence in (
        ({"lam": 0.0}, "lam is 0.0; expected a number above 0, such as 0.005."),
        ({"lam": float("inf")}, "lam is inf; expected a number above 0, such as 0.005."),
        (
            {"layers": {"w": -1.0}},
            "a layer's lam is -1.0; expected a number above 0, or 0 to leave the weight as it is.",
        ),
        ({"damping": 0.0}, "the damping is 0.0; expected a number above 0, such as 0.05."),
    ):
        with pytest.raises(OptionError) as caught:
            ReduceRate(**options)  # type: ignore[arg-type]
        assert str(caught.value) == f"reduce-rate: {sentence}"
    with pytest.raises(OptionError) as pattern:
        ReduceRate(layers={"fc": 0.5})(dense_net())
    assert str(pattern.value) == (
        "reduce-rate: the pattern fc fits no weight; the weights are w1, w2."
    )


def test_refuses_weights() -> None:
    wide = module({"x": (1, 6)}, {"w": np.ones((6, 2))}, op.matmul, dtype="float64")
    with pytest.raises(PassError) as double:
        ReduceRate()(wide)
    assert str(double.value) == (
        "reduce-rate: the weight w is float64; expected float32: convert the network before it is "
        "compressed."
    )
    with pytest.raises(PassError, match=r"^reduce-rate: the weight w1 holds 48 NaN; expected"):
        ReduceRate()(dense_net(change=lambda w: w * np.nan))
    codes = (np.zeros((6, 8), np.uint8), np.array([0, np.inf], np.float32))
    codes[0][0, 0] = 1
    with pytest.raises(PassError) as shared:
        ReduceRate()(dense_net(change=lambda w: codes))
    assert str(shared.value) == (
        "reduce-rate: the weight w1 has centroids that are no finite numbers; expected numbers: "
        "load the network again or lower the learning rate."
    )


def test_two_with_inputs_are_equal_only_if_the_same() -> None:
    one = ReduceRate().on(X)
    assert one != ReduceRate().on(X)
    assert len({one, one, ReduceRate().on(X)}) == 2


def test_reconstructed_weights_can_be_reduced() -> None:
    mod = wide_net()
    shared = Reconstruct(0.5, 4, small=0.0).on(WIDE_X)(mod)
    made = ReduceRate(0.01).on(WIDE_X)(shared)
    assert size(made) < size(shared)
    assert error(made, mod) < 2 * error(shared, mod) + 0.01
