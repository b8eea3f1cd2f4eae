"""``reconstruct``: what it makes of a network, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tests.training.nets import dense_net, module
from tvm_compress import ir, qdq
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import BlockPrune, Prune, Reconstruct, RemoveChannels, ShareWeights
from tvm_compress.targets import reference

Array = NDArray[Any]
X = np.random.default_rng(0).normal(size=(60, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
X = X.astype(np.float32)


def error(mod: tvm.IRModule, other: tvm.IRModule, x: Array = X) -> float:
    (a,), (b,) = (reference.run(m, x).values() for m in (mod, other))
    return float(((a - b) ** 2).sum())


def test_sparsity_codes_and_zeros() -> None:
    mod = dense_net()
    made = Reconstruct(0.5, 3, small=0.0).on(X)(mod)
    for name, size in (("w1", 48), ("w2", 24)):
        found = ir.parameters(made)[name]
        assert found.codes is not None and found.centroids is not None
        assert found.centroids.shape == (8,) and found.centroids[0] == 0
        assert (found.codes == 0).sum() == size // 2
    assert not ir.parameters(made)["b1"].shared


def test_without_codes_the_weights_stay_dense() -> None:
    made = Reconstruct(0.25, 0, small=0.0).on(X)(dense_net())
    assert not any(p.shared for p in ir.parameters(made).values())
    assert (ir.parameters(made)["w1"].value == 0).sum() == 12


@pytest.mark.parametrize("seed", range(4))
def test_outputs_stay_closer_than_by_magnitude(seed: int) -> None:
    mod = dense_net(seed, softmax=False)
    plain = ShareWeights(3)(Prune(0.5)(mod))
    made = Reconstruct(0.5, 3, small=0.0, damping=0.01).on(X)(mod)
    assert error(made, mod) < 0.7 * error(plain, mod)


def test_the_inputs_decide() -> None:
    # Input 3 is always zero, so its weights are worth nothing and go first, large as they are.
    weight = np.ones((6, 2), np.float32)
    weight[3] = 100
    mod = tc.load(module({"x": (1, 6)}, {"w": weight}, op.matmul))
    quiet = np.where(np.arange(6) == 3, 0, X).astype(np.float32)
    made = Reconstruct(1 / 6, 0, small=0.0, damping=1e-6).on(quiet)(mod)
    value = ir.parameters(made)["w"].value
    assert not value[3].any() and value[[0, 1, 2, 4, 5]].all()
    assert error(made, mod, quiet) < 1e-6


def test_small_layers_and_patterns() -> None:
    made = Reconstruct(0.5, 2, small=0.4).on(X)(dense_net())
    first, second = (ir.parameters(made)[name] for name in ("w1", "w2"))
    assert first.centroids is not None and first.centroids.size == 4
    assert second.centroids is not None and second.centroids.size == 16  # 24 of 72 weights
    assert (first.codes == 0).sum() == 24 and second.codes is not None and second.codes.all()
    given = {"layers": {"w2": 0.25}, "layer_bits": {"w*": 1}}
    made = Reconstruct(0.5, 2, small=0.4, **given).on(X)(dense_net())
    first, second = (ir.parameters(made)[name] for name in ("w1", "w2"))
    assert first.centroids is not None and first.centroids.size == 2
    assert (second.codes == 0).sum() == 6


def _of_other_sizes(columns: int) -> tvm.IRModule:
    """Give a product whose output channels differ in size by a factor of 10,000."""
    weight = np.random.default_rng(3).normal(size=(6, columns)).astype(np.float32)
    weight *= np.logspace(-2, 2, columns).astype(np.float32)
    return tc.load(module({"x": (1, 6)}, {"w": weight}, op.matmul))


def test_channels_share_numbers_with_a_scale_for_each() -> None:
    made = Reconstruct(0.25, 3, small=0.0, scale="channel").on(X)(_of_other_sizes(8))
    found = ir.parameters(made)["w"]
    assert found.centroids is not None and found.codes is not None
    assert found.centroids.shape == (1, 8, 8) and found.codes.shape == (6, 8)
    assert (found.codes == 0).sum() == 12 and not found.centroids[..., 0].any()
    table = found.centroids[0].astype(np.float64)
    numbers = 127 * table / np.abs(table).max(1, keepdims=True)
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-3)
    np.testing.assert_array_equal(np.rint(numbers), np.rint(numbers[:1]).repeat(8, 0))


def test_channels_of_other_sizes_need_scales_of_their_own() -> None:
    mod = _of_other_sizes(16)
    errors = []
    for scale in ("tensor", "channel"):
        made = Reconstruct(0.0, 3, small=0.0, damping=0.01, scale=scale).on(X)(mod)
        value, was = (ir.parameters(m)["w"].value for m in (made, mod))
        change = X.astype(np.float64) @ (value - was)
        errors.append(np.mean((change**2).sum(0) / ((X @ was) ** 2).sum(0)))
    assert errors[1] < 0.02 and errors[0] > 0.5


def test_a_convolutions_channels_have_scales_along_their_axis() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(12, 4, 6, 6)).astype(np.float32)
    weight = rng.normal(size=(6, 2, 3, 3)).astype(np.float32)
    call = functools.partial(op.nn.conv2d, groups=2)
    mod = tc.load(module({"x": (1, 4, 6, 6)}, {"w": weight}, call))
    made = Reconstruct(0.0, 4, small=0.0, scale="channel").on(x)(mod)
    found = ir.parameters(made)["w"]
    assert found.centroids is not None and found.centroids.shape == (6, 1, 1, 1, 16)
    assert error(made, mod, x) < 0.02 * error(made, Prune(1.0)(mod), x)


def test_quantize_makes_one_codebook_of_int8_of_channels_that_share_numbers() -> None:
    mod = dense_net(softmax=False)
    shared = Reconstruct(0.5, 3, small=0.0, scale="channel").on(X)(mod)
    quantised = tc.quantize(shared, X)
    for name in ("w1", "w2"):
        before, after = (ir.parameters(m)[name] for m in (shared, quantised))
        assert after.centroids is not None and before.centroids is not None
        assert after.centroids.dtype == np.int8 and after.centroids.shape == (8,)
        np.testing.assert_array_equal(after.codes, before.codes)
        real = qdq.integer_parameters(quantised)[name].scale * after.value
        np.testing.assert_allclose(real, before.value, rtol=1e-5)


def test_a_row_of_zeros_and_few_values_keep_theirs() -> None:
    weight = np.zeros((6, 3), np.float32)
    weight[:, 1], weight[2:, 2] = [1, 0.5, 0, -1, 1, -0.5], -2.0
    mod = tc.load(module({"x": (1, 6)}, {"w": weight}, op.matmul))
    made = Reconstruct(0.0, 3, small=0.0, scale="channel").on(X)(mod)
    np.testing.assert_allclose(ir.parameters(made)["w"].value, weight, atol=2.0 / 127)


def test_without_sparsity_the_zeros_that_there_are_stay() -> None:
    pruned = Prune(0.5)(dense_net())
    made = Reconstruct(0.0, 3, small=0.0).on(X)(pruned)
    for name, weight in ir.weights(pruned).items():
        codes = ir.parameters(made)[name].codes
        np.testing.assert_array_equal(codes == 0, weight.parameter.value == 0)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 2), (3, 2), (4, 3)])
@pytest.mark.parametrize("bits", [0, 3])
def test_blocks_go_whole(inputs: int, outputs: int, bits: int) -> None:
    options: dict[str, Any] = {"small": 0.0, "block": inputs, "outputs": outputs}
    made = Reconstruct(0.5, bits, **options).on(X)(dense_net())
    for name, weight in ir.weights(made).items():
        value = weight.parameter.value  # (inputs, outputs)
        blocks = [
            value[i : i + inputs, o : o + outputs]
            for i in range(0, value.shape[0], inputs)
            for o in range(0, value.shape[1], outputs)
        ]
        gone = [block for block in blocks if not block.any()]
        assert len(gone) == round(0.5 * len(blocks)), name
        assert (value == 0).sum() == sum(block.size for block in gone)
        assert weight.parameter.shared == bool(bits)


def test_blocks_of_a_convolution_lie_at_one_place_of_the_window() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(12, 4, 6, 6)).astype(np.float32)
    weight = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    mod = tc.load(module({"x": (1, 4, 6, 6)}, {"w": weight}, op.nn.conv2d))
    made = Reconstruct(0.5, 0, small=0.0, block=4, outputs=2).on(x)(mod)
    places = ir.parameters(made)["w"].value.reshape(2, 2, 4, 3, 3)
    alive = (places != 0).any(axis=(1, 2))
    assert alive.sum() == 9 and ((places != 0).all(axis=(1, 2)) == alive).all()


def test_blocks_of_single_weights_are_what_there_is_without() -> None:
    plain, blocks = (
        Reconstruct(0.5, 3, small=0.0, **given).on(X)(dense_net())
        for given in ({}, {"block": 1, "outputs": 1})
    )
    tvm.ir.assert_structural_equal(plain, blocks)


@pytest.mark.parametrize("seed", range(4))
def test_outputs_stay_closer_than_by_blocks_of_magnitude(seed: int) -> None:
    mod = dense_net(seed, softmax=False)
    plain = BlockPrune(0.5, block=2, outputs=2)(mod)
    made = Reconstruct(0.5, 0, small=0.0, damping=0.01, block=2, outputs=2).on(X)(mod)
    assert error(made, mod) < 0.7 * error(plain, mod)


def test_what_stays_of_the_blocks_is_least_squares() -> None:
    weight = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    mod = tc.load(module({"x": (1, 6)}, {"w": weight}, op.matmul))
    made = Reconstruct(0.5, 0, small=0.0, damping=1e-9, block=3, outputs=2).on(X)(mod)
    value = ir.parameters(made)["w"].value
    for row, given in zip(value.T, weight.T, strict=True):
        kept = row != 0
        best = np.linalg.lstsq(X[:, kept], X @ given, rcond=None)[0]
        np.testing.assert_allclose(row[kept], best, rtol=1e-3, atol=1e-5)


def test_everything_pruned() -> None:
    made = Reconstruct(1.0, 4, small=0.0).on(X)(dense_net())
    assert not ir.parameters(made)["w1"].value.any()
    # Its bias gives the mean of what the layer gave, so the second layer's mean output stays.
    moved = ir.parameters(made)["b1"].value
    (sums,) = reference.run(_first_sums(), X).values()
    np.testing.assert_allclose(moved, sums.mean(0), rtol=1e-4, atol=1e-5)


def _first_sums() -> tvm.IRModule:
    named = ir.parameters(dense_net())
    given = {name: named[name].value for name in ("w1", "b1")}
    return tc.load(module({"x": (1, 6)}, given, lambda x, w, b: op.add(op.matmul(x, w), b)))


def test_is_part_of_a_recipe(tmp_path: Path) -> None:
    recipe = tc.Recipe([RemoveChannels(), Reconstruct(0.5, 3, small=0.0)])
    assert tc.Recipe.from_toml(recipe.to_toml()) == recipe
    mod = tc.load(dense_net())
    expected = Reconstruct(0.5, 3, small=0.0).on(X)(mod)
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "progress": False}
    made = tc.compress(mod, recipe, calibrate=X, **options)
    tvm.ir.assert_structural_equal(made, expected)
    # Its samples may be those of the training; other samples make another checkpoint.
    made = tc.compress(mod, recipe, train=(X, np.zeros(60)), **options)
    tvm.ir.assert_structural_equal(made, expected)
    assert len(list(tmp_path.iterdir())) == 2
    other = tc.compress(mod, recipe, calibrate=X[:30], **options)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError):
        tvm.ir.assert_structural_equal(other, expected)


def test_the_digits_in_one_shot(digits_onnx: Path, digits: DigitsSplit) -> None:
    mod = tc.load(digits_onnx)

    def right(mod: tvm.IRModule) -> float:
        (scores,) = reference.run(mod, digits.test_images[:200]).values()
        return float((scores.argmax(1) == digits.test_labels[:200]).mean())

    made = Reconstruct(0.5, 3).on(digits.train_images[:100])(mod)
    assert right(made) >= right(mod) - 0.02


def test_refuses_to_run_without_inputs() -> None:
    with pytest.raises(PassError) as caught:
        Reconstruct()(dense_net())
    assert str(caught.value) == (
        "reconstruct: there are no inputs; expected some hundred samples without labels: give "
        "compress() calibrate=x, or apply Reconstruct(...).on(x). Without any, use prune and "
        "share-weights."
    )
    with pytest.raises(OptionError) as refused:
        tc.compress(dense_net(), tc.Recipe([Reconstruct()]))
    assert str(refused.value) == (
        "A step of the recipe needs samples, and none were given; expected calibrate=x: give some "
        "hundred inputs without labels."
    )


def test_refuses_options() -> None:
    for options, sentence in (
        ({"sparsity": 1.5}, "the sparsity is 1.5; expected a number from 0 to 1."),
        ({"layers": {"w": -1.0}}, "the sparsity is -1.0; expected a number from 0 to 1."),
        ({"small": 2.0}, "small is 2.0; expected a number from 0 to 1."),
        ({"block": 0}, "a block has 0 inputs; expected a whole number from 1 on."),
        ({"outputs": -2}, "a block has -2 outputs; expected a whole number from 1 on."),
        ({"scale": "row"}, "the scale is row; expected tensor or channel."),
        ({"damping": 0.0}, "the damping is 0.0; expected a number above 0, such as 0.1."),
        (
            {"bits": 9},
            "the codes have 9 bits; expected a whole number from 1 to 8, or 0 for dense weights.",
        ),
        (
            {"layer_bits": {"w": -1}},
            "the codes have -1 bits; expected a whole number from 1 to 8, or 0 for dense weights.",
        ),
    ):
        with pytest.raises(OptionError) as caught:
            Reconstruct(**options)  # type: ignore[arg-type]
        assert str(caught.value) == f"reconstruct: {sentence}"
    with pytest.raises(OptionError) as pattern:
        Reconstruct(layers={"fc": 0.5}).on(X)(dense_net())
    assert str(pattern.value) == (
        "reconstruct: the pattern fc fits no weight; the weights are w1, w2."
    )


def test_refuses_weights() -> None:
    with pytest.raises(PassError) as shared:
        Reconstruct().on(X)(ShareWeights(2)(dense_net()))
    assert str(shared.value) == (
        "reconstruct: the weight w1 is already shared; expected a dense weight: run reconstruct "
        "before share-weights, and share-weights once."
    )
    wide = module({"x": (1, 6)}, {"w": np.ones((6, 2))}, op.matmul, dtype="float64")
    with pytest.raises(PassError) as double:
        Reconstruct().on(X.astype(np.float64))(wide)
    assert str(double.value) == (
        "reconstruct: the weight w is float64; expected float32: convert the network before it is "
        "compressed."
    )


def test_two_with_inputs_are_equal_only_if_the_same() -> None:
    one = Reconstruct().on(X)
    assert one != Reconstruct().on(X)
    assert len({one, one, Reconstruct().on(X)}) == 2
