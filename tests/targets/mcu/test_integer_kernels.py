"""Integer layers in plain C, from dense and from packed weights: the bytes of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.integer_nets import Layer, differing, emit, module_of, samples_of
from tests.targets.mcu.nets import Net, const, network
from tvm_compress import ir
from tvm_compress.ops import codebook
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.passes.bank_prune import from_rows, keep_in_banks, to_rows
from tvm_compress.targets.mcu.integer_groups import IntegerGroup, find_integer_groups
from tvm_compress.targets.mcu.target import HostArtifact

Array = NDArray[Any]

_SAME = (1, 1, 1, 1)
_SHARED: dict[str, Any] = {"shared": True, "zeros": 0.05}
_SPARSE: dict[str, Any] = {"shared": True, "zeros": 0.9, "gain": 3.0}
_BANKS: dict[str, Any] = {"shared": True, "gain": 3.0}
_BLOCKS: dict[str, Any] = {"zeros": 0.8, "gain": 2.0}


def _balanced(w: Array) -> Array:
    """Keep two of every bank of 16 inputs."""
    axis = 1 if w.ndim == 2 else 0
    return from_rows(keep_in_banks(to_rows(w, axis), 2, 16), w.shape, axis)


def _scattered(w: Array) -> Array:
    """Keep a tenth, wherever it is."""
    return w * (np.random.default_rng(5).random(w.shape) < 0.1)


_LAYERS: dict[str, Layer] = {
    "codes of a product": Layer((1, 30), (30, 9), "matmul (dense_codes)", **_SHARED),
    "codes of rows": Layer((5, 30), (30, 9), "matmul (dense_codes)", **_SHARED, rounding="single"),
    "codes, pointwise": Layer((1, 4, 5, 16), (12, 16, 1, 1), "conv2d (dense_codes)", **_SHARED),
    "codes, 3x3": Layer(
        (1, 6, 5, 8), (9, 8, 3, 3), "conv2d (dense_codes)", pad=_SAME, **_SHARED, high=40
    ),
    "codes, channels first": Layer(
        (1, 8, 6, 5), (9, 8, 3, 3), "conv2d (dense_codes)", pad=_SAME, layout="NCHW", **_SHARED
    ),
    "codes, SAME with stride 2": Layer(
        (1, 8, 8, 5),
        (6, 5, 3, 3),
        "conv2d (dense_codes)",
        strides=(2, 2),
        pad=(0, 0, 1, 1),
        rounding="single",
        **_SHARED,
    ),
    "codes, grouped": Layer(
        (1, 5, 5, 6), (8, 3, 3, 3), "conv2d (dense_codes)", groups=2, **_SHARED, uniform=True
    ),
    "codes, depthwise": Layer(
        (1, 6, 6, 32),
        (32, 1, 3, 2),
        "depthwise_conv2d (dense_codes)",
        pad=(1, 0, 1, 1),
        groups=32,
        **_SHARED,
    ),
    "gaps, depthwise": Layer(
        (1, 6, 6, 32),
        (32, 1, 3, 3),
        "depthwise_conv2d (gap_codes)",
        pad=_SAME,
        groups=32,
        **_SHARED,
    ),
    "codes, 1-D": Layer(
        (1, 20, 6), (8, 6, 5), "conv1d (dense_codes)", layout="NWC", pad=(0, 2, 0, 2), **_SHARED
    ),
    "codes, 1-D, channels first": Layer(
        (1, 6, 20), (8, 6, 5), "conv1d (dense_codes)", layout="NCW", pad=(0, 4, 0, 0), **_SHARED
    ),
    "gaps of a product": Layer((1, 100), (100, 9), "matmul (gap_codes)", **_SPARSE),
    "gaps of rows": Layer((4, 100), (100, 9), "matmul (gap_codes)", **_SPARSE, uniform=True),
    "gaps, pointwise": Layer((1, 4, 5, 64), (12, 64, 1, 1), "conv2d (gap_codes)", **_SPARSE),
    "gaps, 3x3": Layer(
        (1, 6, 5, 16), (9, 16, 3, 3), "conv2d (gap_codes)", pad=_SAME, **_SPARSE, low=-110
    ),
    "gaps, channels first": Layer(
        (1, 16, 6, 5), (9, 16, 3, 3), "conv2d (gap_codes)", pad=_SAME, layout="NCHW", **_SPARSE
    ),
    "gaps, dilated": Layer(
        (1, 9, 9, 16),
        (9, 16, 3, 3),
        "conv2d (gap_codes)",
        pad=(2, 2, 2, 2),
        dilation=(2, 2),
        rounding="single",
        **_SPARSE,
    ),
    "gaps, SAME with stride 2": Layer(
        (1, 8, 8, 16),
        (9, 16, 3, 3),
        "conv2d (gap_codes)",
        strides=(2, 2),
        pad=(0, 0, 1, 1),
        **_SPARSE,
    ),
    "bank of a product": Layer((1, 100), (100, 9), "matmul (bank)", **_BANKS, change=_balanced),
    "bank of rows": Layer((4, 64), (64, 9), "matmul (bank)", **_BANKS, change=_balanced),
    "bank, pointwise": Layer(
        (1, 4, 5, 40), (12, 40, 1, 1), "conv2d (bank)", **_BANKS, change=_balanced
    ),
    "bank, 3x3": Layer(
        (1, 6, 5, 12), (9, 12, 3, 3), "conv2d (bank)", pad=_SAME, **_BANKS, change=_balanced
    ),
    "bank, channels first, stride 2": Layer(
        (1, 16, 6, 5),
        (9, 16, 3, 3),
        "conv2d (bank)",
        strides=(2, 2),
        pad=(0, 0, 1, 1),
        layout="NCHW",
        **_BANKS,
        change=_balanced,
        rounding="single",
    ),
    "bank, grouped": Layer(
        (1, 6, 5, 32), (8, 16, 3, 3), "conv2d (bank)", groups=2, **_BANKS, change=_balanced
    ),
    "bank, depthwise": Layer(
        (1, 8, 8, 32),
        (32, 1, 5, 5),
        "depthwise_conv2d (bank)",
        pad=(2, 2, 2, 2),
        groups=32,
        **_BANKS,
        change=_balanced,
    ),
    "values": Layer((1, 100), (100, 9), "matmul (gap_codes)", gain=3.0, change=_scattered),
    "values, 3x3": Layer(
        (1, 6, 5, 16), (9, 16, 3, 3), "conv2d (gap_codes)", pad=_SAME, gain=3.0, change=_scattered
    ),
    "values beyond int8, 3x3": Layer(
        (1, 6, 5, 16),
        (9, 16, 3, 3),
        "conv2d (gap_codes)",
        pad=_SAME,
        gain=3.0,
        largest=255,
        change=_scattered,
    ),
    "block": Layer((1, 102), (102, 9), "matmul (block)", zeros=0.8, gain=2.0),
    "block beyond int8": Layer((1, 102), (102, 9), "matmul (block)", **_BLOCKS, largest=255),
    "block of rows": Layer((5, 64), (64, 9), "matmul (block)", **_BLOCKS, rounding="single"),
    "block, 3x3": Layer(
        (1, 6, 5, 16), (9, 16, 3, 3), "conv2d (block)", pad=_SAME, **_BLOCKS, high=60
    ),
    "block, channels first": Layer(
        (1, 16, 6, 5), (9, 16, 3, 3), "conv2d (block)", pad=_SAME, layout="NCHW", **_BLOCKS
    ),
    "block, grouped": Layer(
        (1, 6, 5, 16), (8, 8, 3, 3), "conv2d (block)", groups=2, **_BLOCKS, uniform=True
    ),
    "dense": Layer((1, 6, 5, 8), (5, 8, 3, 3), "conv2d (dense)", pad=(2, 0, 1, 3)),
    "dense, beyond int8": Layer((1, 6, 5, 8), (5, 8, 3, 3), "conv2d (dense)", largest=255),
    "dense, padded below": Layer(
        (1, 4, 4, 4), (4, 4, 1, 1), "conv2d (dense)", strides=(2, 2), pad=(0, 0, 1, 1)
    ),
    "a batch of two": Layer((2, 4, 4, 4), (4, 4, 3, 3), "conv2d (dense)", pad=_SAME),
}


def _host(mod: tvm.IRModule) -> HostArtifact:
    built = tc.build(mod, target="c")
    assert isinstance(built, HostArtifact)
    return built


def _right(mod: tvm.IRModule, layers: dict[str, Layer], dtype: str) -> list[dict[str, Array]]:
    judge = tc.build(mod, target="reference")
    return [judge.run(sample) for sample in samples_of(layers, dtype)]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_layers_on_this_machine(dtype: str) -> None:
    names = list(_LAYERS) if dtype == "int8" else [n for n in _LAYERS if "3x3" in n or n == "dense"]
    layers = {name: _LAYERS[name] for name in names}
    mod = module_of(layers, dtype)
    built = _host(mod)
    kinds = [one.kind for one in built.model.layers]
    assert kinds == [one.kind for one in layers.values()]
    right = _right(mod, layers, dtype)
    for i, name in enumerate(layers):
        values = np.concatenate([sample[f"y{i}"].ravel() for sample in right])
        assert len(np.unique(values)) > 8, name
    assert differing(layers, built.run, right, dtype) == []


def test_packed_layers_take_their_packed_bytes_alone() -> None:
    """Nothing of the dense weight is left in the generated text's constants."""
    one = {"gaps": _LAYERS["gaps of a product"], "codes": _LAYERS["codes of a product"]}
    for name, layer in one.items():
        text = "".join(_host(module_of({name: layer})).model.files.values())
        weights = [line for line in text.splitlines() if "static const" in line and "_w_" in line]
        counts = [int(line.split("[")[1].split("]")[0]) for line in weights]
        # A byte each but for the starts of rows; 4 bits a code and 16 centroids.
        assert 0 < sum(counts) < layer.weight[0] * layer.weight[1] * 0.65, name


def test_centroids_of_groups_of_channels() -> None:
    chance = np.random.default_rng(0)
    codes = chance.integers(0, 4, (6, 5, 1, 1)).astype(np.uint8)
    centroids = chance.integers(-127, 128, (3, 1, 1, 1, 4)).astype(np.int8)
    factor = quantize_multiplier(np.full(6, 0.004), "single")

    def describe(net: Net, x: Any) -> Any:
        weight = net(codebook(const(codes, "uint8"), const(centroids, "int8")), "w")
        operator = relax.op.nn.conv2d
        total = operator(x, weight, data_layout="NHWC", kernel_layout="OIHW", out_dtype="int32")
        return net(requantize(net(total), *factor, axis=3))

    mod = network({"x": ((1, 3, 3, 5), "int8")}, describe)
    x = chance.integers(-128, 128, (2, 3, 3, 5)).astype(np.int8)
    (expected,) = tc.build(mod, target="reference").run(x).values()
    dense = np.take_along_axis(centroids[:, 0, 0, 0].repeat(2, 0), codes.reshape(6, 5), axis=1)
    sums = x.astype(int) @ dense.astype(int).T
    m, s = int(factor[0][0]), int(factor[1])
    by_hand = [(int(v) * m + (1 << (30 - s))) >> (31 - s) for v in sums.ravel()]
    assert np.clip(by_hand, -128, 127).tolist() == expected.ravel().tolist()
    (actual,) = _host(mod).run(x).values()
    np.testing.assert_array_equal(actual, expected)


# -- what is an integer layer ---------------------------------------------------------------------


def _groups(describe: Any, shape: tuple[int, ...] = (1, 4, 4, 4)) -> dict[str, IntegerGroup]:
    mod = network({"x": (shape, "int8")}, describe)
    found = find_integer_groups(mod, ir.parameters(mod))
    x = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    # Whatever is found, the bytes are right.
    right, actual = tc.build(mod, target="reference").run(x), _host(mod).run(x)
    for name in right:
        np.testing.assert_array_equal(actual[name], right[name])
    return found


def _conv(net: Net, x: Any, **options: Any) -> Any:
    w = np.random.default_rng(1).integers(-127, 128, (4, 4, 1, 1))
    layouts = {"data_layout": "NHWC", "kernel_layout": "OIHW", "out_dtype": "int32", **options}
    return net(relax.op.nn.conv2d(x, net(const(w, "int8"), "w"), **layouts))


_BIAS = np.array([9000, -9000, 4000, -20000])
_FACTOR = quantize_multiplier(np.array([1, 0.5, 0.25, 0.7]) * 0.003, "double")


def _out(net: Net, total: Any, axis: int = 3) -> Any:
    return net(requantize(total, *_FACTOR, axis=axis, rounding="double"))


@pytest.mark.parametrize(
    ("shape", "layout", "found"),
    [
        ((4,), "NHWC", True),
        ((1, 1, 4), "NHWC", True),
        ((1,), "NHWC", True),
        ((4, 1, 1), "NCHW", True),
        ((1, 4, 1, 1), "NCHW", True),
        # Along another axis of the same length: no bias of a channel.
        ((4, 1), "NHWC", False),
        ((1, 4, 1, 1), "NHWC", False),
        ((4,), "NCHW", False),
    ],
)
def test_a_bias_lies_along_the_channels(shape: tuple[int, ...], layout: str, found: bool) -> None:
    bias = _BIAS[: int(np.prod(shape))].reshape(shape)

    def describe(net: Net, x: Any) -> Any:
        total = _conv(net, x, data_layout=layout)
        return _out(net, net(relax.op.add(total, const(bias, "int32"))), layout.index("C"))

    assert bool(_groups(describe)) == found


@pytest.mark.parametrize(("axis", "found"), [(3, True), (-1, True), (1, False), (2, False)])
def test_factors_lie_along_the_channels(axis: int, found: bool) -> None:
    assert bool(_groups(lambda net, x: _out(net, _conv(net, x), axis))) == found


def test_padding_in_front_of_a_layer_is_taken_in() -> None:
    def describe(net: Net, x: Any) -> Any:
        padded = net(relax.op.nn.pad(x, [0, 0, 1, 2, 0, 1, 0, 0], "constant", -7.0))
        return _out(net, _conv(net, padded))

    (group,) = _groups(describe).values()
    assert (group.zero, group.geometry.padding, group.geometry.in_size) == (-7, (1, 0), (4, 4))


@pytest.mark.parametrize(
    "padding", [[1, 1, 1, 1], [0, 0, 1, 1]], ids=["on all sides", "below and to the right"]
)
def test_two_paddings_with_different_numbers_are_kept_apart(padding: list[int]) -> None:
    def describe(net: Net, x: Any) -> Any:
        padded = net(relax.op.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0], "constant", -100.0))
        return _out(net, _conv(net, padded, padding=padding))

    (group,) = _groups(describe).values()
    assert (group.zero, group.geometry.in_size) == (0, (6, 6))


@pytest.mark.parametrize("widths", [[0, 0, 1, 1, 1, 1, 0, 4], [0, 0, 0, 0, 0, 0, 4, 0]])
def test_padding_of_channels_is_not_taken_in(widths: list[int]) -> None:
    def describe(net: Net, x: Any) -> Any:
        padded = net(relax.op.nn.pad(x, widths, "constant", 5.0))
        w = np.random.default_rng(1).integers(-127, 128, (4, 8, 1, 1))
        weight = net(const(w, "int8"), "w")
        layouts = {"data_layout": "NHWC", "kernel_layout": "OIHW", "out_dtype": "int32"}
        return _out(net, net(relax.op.nn.conv2d(padded, weight, **layouts)))

    (group,) = _groups(describe).values()
    assert group.zero == 0
    assert group.geometry.in_shape[3] == 8


def test_what_two_layers_read_is_computed_once_and_for_both() -> None:
    def describe(net: Net, x: Any) -> Any:
        padded = net(relax.op.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0], "constant", -7.0))
        total = _conv(net, padded)
        return [_out(net, total), _out(net, net(relax.op.add(total, const(_BIAS, "int32"))))]

    # The sum is read twice, so neither requantization may take it in.
    assert _groups(describe) == {}


def test_a_padded_layer_whose_bias_lies_at_the_end_of_int32() -> None:
    """The plain kernel takes the zero point off inputs and adds it to the bias, modulo a word."""
    bias = np.array([(1 << 31) - 70000, -(1 << 31) + 70000, 5, -5])
    factor = quantize_multiplier(np.array([3e-8, 4e-8, 2e-3, 2e-3]), "double")

    def describe(net: Net, x: Any) -> Any:
        padded = net(relax.op.nn.pad(x, [0, 0, 1, 1, 1, 1, 0, 0], "constant", -128.0))
        total = net(relax.op.add(_conv(net, padded), const(bias, "int32")))
        return net(requantize(total, *factor, axis=3, rounding="double"))

    assert len(_groups(describe)) == 1


def test_a_layer_of_a_chain_keeps_its_name() -> None:
    one = Layer((1, 4, 4, 4), (4, 4, 1, 1), "")
    mod = network({"x": (one.x, "int8")}, lambda net, x: emit(net, emit(net, x, one, 0), one, 1))
    layers = _host(mod).model.layers
    assert [layer.kind for layer in layers] == ["conv2d (dense)", "conv2d (dense)"]
    assert layers[-1].name == "y"
