"""``narrow-weights``: few bits where they matter least, and all else to the bit as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.passes.test_quantize import net
from tvm_compress import edge, ir, qdq
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import Dequantize, NarrowWeights, Quantize, ShareWeights

pytest.importorskip("torch")
Array = NDArray[Any]
RNG = np.random.default_rng(2)
X = RNG.standard_normal((300, 3, 8, 8)).astype(np.float32)


def network(softmax: bool = True, bias: bool = True) -> tvm.IRModule:
    """Two convolutions (8 and 12 channels), a depthwise one between, a mean and a product."""
    rng = np.random.default_rng(4)

    def weight(*shape: int) -> Any:
        return edge.constant(rng.standard_normal(shape).astype(np.float32) / 3)

    def build(b: Any, x: Any) -> Any:
        y = b.emit(relax.op.nn.conv2d(x, b.emit(weight(8, 3, 3, 3), "first"), padding=1))
        y = b.emit(relax.op.add(y, b.emit(weight(8, 1, 1), "first_bias")))
        y = b.emit(relax.op.nn.relu(y))
        y = b.emit(relax.op.nn.conv2d(y, b.emit(weight(8, 1, 3, 3), "deep"), groups=8, padding=1))
        y = b.emit(relax.op.nn.conv2d(y, b.emit(weight(12, 8, 3, 3), "second"), padding=1))
        if bias:
            y = b.emit(relax.op.add(y, b.emit(weight(12, 1, 1), "second_bias")))
        y = b.emit(relax.op.nn.relu(y))
        y = b.emit(relax.op.mean(y, axis=[2, 3]))
        y = b.emit(relax.op.matmul(y, b.emit(weight(12, 6), "last")))
        return relax.op.nn.softmax(y) if softmax else y

    return net(build, (1, 3, 8, 8))


@pytest.fixture(scope="module")
def quantised() -> tvm.IRModule:
    return Quantize().on(X[:50]).apply(network())


def by_name(mod: tvm.IRModule) -> dict[str, Array]:
    return {name: parameter.value for name, parameter in ir.parameters(mod).items()}


def bits_of(weight: Array, axis: int = 0) -> list[int]:
    """The bits that each output channel needs."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(int)
    return [
        next(b for b in range(1, 9) if row.min() >= -(2 ** (b - 1)) and row.max() < 2 ** (b - 1))
        for row in rows
    ]


@pytest.mark.parametrize(("bits", "share", "expected"), [(5, 0.5, 6), (5, 1.0, 12), (4, 0.4, 4)])
def test_so_many_channels_are_narrow(
    quantised: tvm.IRModule, bits: int, share: float, expected: int
) -> None:
    options = {"second": share, "*": 0.0}
    small = NarrowWeights(bits=bits, layers=options).on(X).apply(quantised)
    found = bits_of(by_name(small)["second"])
    assert sum(b <= 6 for b in found) == expected
    wide = sum(b == 6 for b in found)
    assert wide <= (expected // 3 if bits == 5 else 0)
    assert sum(b <= bits for b in found) >= expected - wide


def test_all_else_stays_to_the_bit(quantised: tvm.IRModule) -> None:
    small = NarrowWeights(layers={"second": 0.5, "*": 0.0}).on(X).apply(quantised)
    before, after = by_name(quantised), by_name(small)
    assert list(before) == list(after)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {"second", "second_bias"}
    narrow = np.asarray(bits_of(after["second"])) <= 6
    kept = np.flatnonzero(~narrow)
    np.testing.assert_array_equal(before["second"][kept], after["second"][kept])
    np.testing.assert_array_equal(
        before["second_bias"].ravel()[kept], after["second_bias"].ravel()[kept]
    )
    scales = [qdq.integer_parameters(m)["second"].scale.ravel() for m in (quantised, small)]
    np.testing.assert_array_equal(scales[0][kept], scales[1][kept])
    assert (scales[0] != scales[1]).sum() == narrow.sum()
    assert qdq.input_parameters(small) == qdq.input_parameters(quantised)
    assert qdq.output_parameters(small) == qdq.output_parameters(quantised)


def real(mod: tvm.IRModule, x: Array) -> Array:
    """What a network gives, in real numbers."""
    whole = Dequantize().apply(mod)
    return np.concatenate(
        [next(iter(tc.build(whole, "reference").run(one[None]).values())) for one in x]
    )


@pytest.mark.parametrize("softmax", [True, False])
def test_the_outputs_move_less_than_by_rounding_any_channels(softmax: bool) -> None:
    quantised = Quantize().on(X[:50]).apply(network(softmax=softmax))
    small = NarrowWeights(bits=4, layers={"second": 0.67, "*": 0.0}).on(X).apply(quantised)
    held = real(quantised, X[:100])
    mine = np.square(real(small, X[:100]) - held).mean()
    # Plain rounding of the same channels to the same number of levels.
    value = by_name(quantised)["second"].astype(float)
    narrow = np.asarray(bits_of(by_name(small)["second"])) <= 4
    assert narrow.sum() == 8
    step = np.abs(value).reshape(12, -1).max(1) / 7.5
    plain = np.clip(np.rint(value / step[:, None, None, None]), -8, 7)
    plain = np.where(narrow[:, None, None, None], plain * step[:, None, None, None], value)
    rounded = ir.replace_parameters(
        quantised, {"second": edge.constant(np.clip(np.rint(plain), -128, 127).astype(np.int8))}
    )
    assert mine < 0.5 * np.square(real(rounded, X[:100]) - held).mean()


def test_it_runs_on_every_target(quantised: tvm.IRModule) -> None:
    small = NarrowWeights(share=1.0).on(X).apply(quantised)
    expected = tc.build(small, "reference")
    built = [tc.build(small), tc.build(small, board="cortex-m4")]
    ((_, how),) = qdq.input_parameters(small).items()
    for x in how.quantize(X[:3]):
        for one in built:
            for name, y in expected.run(x[None]).items():
                np.testing.assert_array_equal(one.run(x[None])[name], y)


def test_grouped_shared_and_small_layers_stay(quantised: tvm.IRModule) -> None:
    small = NarrowWeights(share=1.0).on(X).apply(quantised)
    before, after = by_name(quantised), by_name(small)
    np.testing.assert_array_equal(before["deep"], after["deep"])
    for name, axis in (("first", 0), ("second", 0), ("last", 1)):
        assert not np.array_equal(before[name], after[name])
        count = before[name].shape[axis] // 3 * 3
        assert sum(b <= 6 for b in bits_of(after[name], axis)) >= count
    little = NarrowWeights(share=1.0, small=0.1).on(X).apply(quantised)
    np.testing.assert_array_equal(before["last"], by_name(little)["last"])
    shared = Quantize().on(X[:50]).apply(ShareWeights(bits=4)(network()))
    tvm.ir.assert_structural_equal(NarrowWeights(share=1.0).on(X).apply(shared), shared)


def test_without_a_bias_there_is_none_to_move() -> None:
    quantised = Quantize(bias_correction=False).on(X[:50]).apply(network(bias=False))
    small = NarrowWeights(share=1.0, layers={"second": 1.0, "*": 0.0}).on(X).apply(quantised)
    assert max(bits_of(by_name(small)["second"])) <= 6
    before, after = by_name(quantised), by_name(small)
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {"second"}


def test_nothing_to_do(quantised: tvm.IRModule) -> None:
    tvm.ir.assert_structural_equal(NarrowWeights(share=0.0).on(X).apply(quantised), quantised)


def test_options() -> None:
    with pytest.raises(OptionError) as caught:
        NarrowWeights(share=1.5)
    assert str(caught.value) == "narrow-weights: a share is 1.5; expected a number from 0 to 1."
    with pytest.raises(OptionError, match=r"a share is -0\.1; expected"):
        NarrowWeights(layers={"fc": -0.1})
    with pytest.raises(OptionError) as caught:
        NarrowWeights(bits=3)
    assert str(caught.value) == "narrow-weights: the channels have 3 bits; expected 4 or 5."


def test_what_it_needs(quantised: tvm.IRModule) -> None:
    with pytest.raises(PassError) as caught:
        NarrowWeights().apply(quantised)
    assert str(caught.value).startswith("narrow-weights: there are no inputs; expected some")
    with pytest.raises(PassError) as caught:
        NarrowWeights().on(X).apply(network())
    assert str(caught.value) == (
        "narrow-weights: the network is not quantised; expected int8 weights: run quantize first."
    )
    with pytest.raises(OptionError, match="narrow-weights: the pattern none fits no weight"):
        NarrowWeights(layers={"none": 0.5}).on(X).apply(quantised)
