"""``channels-last``: which transposes are left, and that no byte of any output changes."""

from __future__ import annotations

import re
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
from tests.targets.mcu.integer_nets import Layer, emit
from tests.targets.mcu.nets import Net, const, network
from tvm_compress import edge, ir
from tvm_compress.build import prepare
from tvm_compress.ops import codebook, lookup, softmax
from tvm_compress.passes import ChannelsLast
from tvm_compress.passes.channels_last import blocks_of
from tvm_compress.targets import reference
from tvm_compress.targets.mcu.target import FirmwareArtifact
from tvm_compress.tensors import input_specs

Array = NDArray[Any]


def conv(
    net: Net, x: Any, outputs: int, index: int, kernel: int = 3, groups: int = 1, **options: Any
) -> Any:
    """A layer with the channels first, padded so that only strides change its size."""
    shape = edge.static_shape(x) or ()
    weight = (outputs, shape[1] // groups, *[kernel] * (len(shape) - 2))
    pad = (kernel // 2,) * 4 if len(shape) == 4 else (0, kernel // 2, 0, kernel // 2)
    layout = "NCHW" if len(shape) == 4 else "NCW"
    return emit(
        net, x, Layer(shape, weight, "", pad=pad, groups=groups, layout=layout, **options), index
    )


def fully_connected(net: Net, x: Any, outputs: int, index: int, **options: Any) -> Any:
    shape = edge.static_shape(x) or ()
    return emit(net, x, Layer(shape, (shape[-1], outputs), "", **options), index)


def built(shape: tuple[int, ...], describe: Callable[..., Any]) -> tvm.IRModule:
    return network({"x": (shape, "int8")}, describe)


def calls(mod: tvm.IRModule, operator: str) -> list[Any]:
    values = [binding.value for binding in ir.bindings(ir.main_function(mod))]
    return [value for value in values if edge.op_name(value) == f"relax.{operator}"]


def moved(mod: tvm.IRModule, transposes: int, samples: int = 4) -> tvm.IRModule:
    """Run the pass; check bytes, layouts, how many transposes are left, and that it is over."""
    made = ChannelsLast()(mod)
    chance = np.random.default_rng(0)
    inputs = {
        spec.name: chance.integers(-128, 128, (samples, *spec.shape[1:])).astype(spec.dtype)
        for spec in input_specs(mod)
    }
    before, after = reference.run(mod, inputs), reference.run(made, inputs)
    assert list(before) == list(after)
    for name, right in before.items():
        assert len(np.unique(right)) > 3, "an output of few values would prove little"
        np.testing.assert_array_equal(after[name], right, name)
        assert after[name].dtype == right.dtype
    for call in (*calls(made, "nn.conv1d"), *calls(made, "nn.conv2d")):
        assert str(call.attrs.data_layout) == str(call.attrs.out_layout)
        assert str(call.attrs.data_layout).endswith("C")
    assert len(calls(made, "permute_dims")) == transposes
    tvm.ir.assert_structural_equal(ChannelsLast()(made), made)
    return made


def test_one_transpose_in_front_and_one_behind() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 6, 0)
        return conv(net, y, 4, 1, groups=2)

    mod = built((1, 5, 7, 6), describe)
    made = moved(mod, 2)
    first, last = calls(made, "permute_dims")
    assert [int(a) for a in first.attrs.axes] == [0, 2, 3, 1]
    assert [int(a) for a in last.attrs.axes] == [0, 3, 1, 2]
    # The transpose stands in front of the padding, which a layer's kernel takes in.
    assert edge.static_shape(calls(made, "nn.pad")[0]) == (1, 9, 8, 5)
    # Biases become vectors, weights stay as they were.
    shapes = {name: parameter.shape for name, parameter in ir.parameters(made).items()}
    assert [shapes["w0"], shapes["w1"]] == [(6, 5, 3, 3), (4, 3, 3, 3)]
    assert shapes["conv2d_bias"] == (6,) if "conv2d_bias" in shapes else (6,) in shapes.values()


def test_a_channel_alone_needs_no_transpose() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 4, 0, strides=(2, 2))
        y = conv(net, y, 8, 1, kernel=1)
        total = net(op.sum(net(op.astype(y, "int32")), [2, 3], keepdims=True))
        y = net(op.astype(net(op.right_shift(total, relax.const(5, "int32"))), "int8"))
        y = conv(net, y, 5, 2, kernel=1)  # of one pixel
        return net(op.reshape(y, (1, 5)))

    moved(built((1, 1, 8, 6), describe), 0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_flattened_map_permutes_the_rows_of_the_weight(shared: bool) -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 6, 0)
        flat = net(op.reshape(y, (1, 6 * 12)))
        return [fully_connected(net, flat, 5, i, shared=shared) for i in (1, 2)]

    mod = built((1, 1, 4, 3), describe)
    made = moved(mod, 0)
    rows = np.arange(72).reshape(6, 12).T.ravel()
    for name in ("w1", "w2"):
        before, after = (ir.parameters(m)[name] for m in (mod, made))
        assert after.shared == shared
        np.testing.assert_array_equal(after.value, before.value[rows])


def test_codebooks_of_groups_of_rows_stay() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 4, 0)
        flat = net(op.reshape(y, (1, 4 * 6)))
        chance = np.random.default_rng(0)
        codes = const(chance.integers(0, 4, (24, 3)), "uint8")
        tables = const(chance.integers(-128, 128, (2, 1, 4)), "int8")
        weight = net(codebook(codes, tables), "w")
        return net(op.matmul(flat, weight, out_dtype="int32"))

    moved(built((1, 1, 2, 3), describe), 1)


def test_a_flattened_map_that_is_an_output_too_is_transposed() -> None:
    def describe(net: Net, x: Any) -> Any:
        flat = net(op.reshape(conv(net, x, 4, 0), (1, 4 * 6)))
        return [flat, fully_connected(net, flat, 5, 1)]

    moved(built((1, 1, 2, 3), describe), 1)


def test_the_weight_of_two_products_is_permuted_for_one_alone() -> None:
    def describe(net: Net, x: Any) -> Any:
        flat = net(op.reshape(conv(net, x, 4, 0), (1, 8)))
        weight = net(const(np.arange(-16, 16).reshape(8, 4), "int8"), "w")
        other = net(op.reshape(net(op.strided_slice(x, [2], [0], [2])), (1, 8)))
        return [net(op.matmul(a, weight, out_dtype="int32")) for a in (flat, other)]

    moved(built((1, 4, 2, 1), describe), 1)


def test_transposes_of_the_network_meet_ours() -> None:
    """What ONNX files that come from TensorFlow say."""

    def describe(net: Net, x: Any) -> Any:
        y = conv(net, net(op.permute_dims(x, [0, 3, 1, 2])), 6, 0)
        return net(op.permute_dims(y, [0, 2, 3, 1]))

    moved(built((1, 5, 4, 3), describe), 0)


def test_a_transpose_sinks_through_the_border_of_floats() -> None:
    def describe(net: Net, x: Any) -> Any:
        scale, zero = relax.const(0.05, "float32"), relax.const(3, "int8")
        first = net(op.permute_dims(x, [0, 3, 1, 2]))
        y = net(op.quantize(first, scale, zero, axis=1, out_dtype="int8"))
        y = net(op.dequantize(conv(net, y, 6, 0), scale, zero, axis=1))
        return net(op.permute_dims(y, [0, 2, 3, 1]))

    mod = network({"x": (1, 5, 4, 3)}, describe)
    made = ChannelsLast()(mod)
    assert not calls(made, "permute_dims")
    x = np.random.default_rng(0).normal(0, 3, (3, 5, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(reference.run(made, x)["y"], reference.run(mod, x)["y"])


def test_a_factor_for_each_channel_keeps_the_border_as_it_is() -> None:
    def describe(net: Net, x: Any) -> Any:
        scale = const(np.linspace(0.05, 0.2, 6), "float32")
        zero = const(np.arange(6), "int8")
        return net(op.dequantize(conv(net, x, 6, 0), scale, zero, axis=1))

    moved(built((1, 5, 4, 3), describe), 2)


def test_one_dimension() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 6, 0)
        y = conv(net, y, 6, 1, groups=6)
        y = net(op.nn.max_pool1d(y, [2], [2]))
        return fully_connected(net, net(op.reshape(y, (1, 6 * 5))), 4, 2)

    made = moved(built((1, 3, 10), describe), 1)
    assert {str(c.attrs.data_layout) for c in calls(made, "nn.conv1d")} == {"NWC"}
    assert str(calls(made, "nn.max_pool1d")[0].attrs.layout) == "NWC"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_residual_of_the_input_shares_its_transpose(scaled: bool) -> None:
    def describe(net: Net, x: Any) -> Any:
        sides = [net(op.astype(side, "int32")) for side in (conv(net, x, 5, 0), x)]
        if scaled:
            sides = [net(op.multiply(side, relax.const(3, "int32"))) for side in sides]
            sides = [net(op.right_shift(side, relax.const(2, "int32"))) for side in sides]
        total = net(op.add(*sides))
        return conv(net, net(op.astype(net(op.clip(total, -128.0, 127.0)), "int8")), 3, 1)

    made = moved(built((1, 5, 4, 3), describe), 2)
    assert {edge.dtype_of(call) for call in calls(made, "permute_dims")} == {"int8"}
    # Kernels that add a residual look for numbers in the calls themselves.
    numbers = [call.args[1] for call in (*calls(made, "multiply"), *calls(made, "right_shift"))]
    assert all(isinstance(n, edge.Constant) and edge.static_shape(n) == () for n in numbers)


def test_channels_are_divided_where_they_lie_and_joined_behind_a_transpose() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(op.reshape(conv(net, x, 6, 0), (1, 2, 3, 4, 5)))
        y = net(op.reshape(net(op.permute_dims(y, [0, 2, 1, 3, 4])), (1, 6, 4, 5)))
        return net(op.permute_dims(conv(net, y, 4, 1), [0, 2, 3, 1]))

    made = moved(built((1, 1, 4, 5), describe), 2)
    assert edge.static_shape(calls(made, "permute_dims")[0].args[0]) == (1, 4, 5, 2, 3)


def test_rows_of_pixels_are_multiplied_where_they_lie() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(op.reshape(conv(net, x, 6, 0), (1, 6, 20)))
        return fully_connected(net, net(op.permute_dims(y, [0, 2, 1])), 4, 1)

    moved(built((1, 1, 4, 5), describe), 0)


def test_floats_and_networks_without_convolutions_stay() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3))

    def floats(net: Net, x: Any) -> Any:
        return net(op.nn.conv2d(x, net(const(weight, "float32"), "w")))

    def product(net: Net, x: Any) -> Any:
        return fully_connected(
            net, net(op.reshape(net(op.permute_dims(x, [0, 2, 1])), (1, 12))), 4, 0
        )

    for mod in (network({"x": (1, 3, 6, 6)}, floats), built((1, 3, 4), product)):
        assert ChannelsLast().apply(mod).same_as(mod)


@given(
    st.lists(st.sampled_from("cdspgralmtxknefbv"), min_size=1, max_size=7),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=60)
def test_any_chain_of_operators(kinds: list[str], channels: int, flat: bool) -> None:
    def integer(net: Net, value: int) -> Any:
        return relax.const(value, "int32")

    def describe(net: Net, x: Any) -> Any:
        y = conv(net, x, 4, 100)
        for i, kind in enumerate(kinds):
            _, c, h, w = edge.static_shape(y) or ()
            match kind:
                case "c":
                    y = conv(net, y, 5 if i % 2 else 4, i)
                case "d":
                    y = conv(net, y, c, i, groups=c)
                case "s" if min(h, w) > 2:
                    y = conv(net, y, 3, i, kernel=1, strides=(2, 2))
                case "p":
                    y = net(op.nn.max_pool2d(y, [2, 2], [1, 1], [1, 0, 0, 1]))
                case "g":
                    table = np.random.default_rng(i).integers(-128, 128, 256)
                    y = net(lookup(y, table.astype(np.int8)))
                case "r":
                    wide = [net(op.astype(v, "int32")) for v in (y, conv(net, y, c, i))]
                    total = net(op.add(*wide))
                    total = net(op.right_shift(total, integer(net, 1)))
                    y = net(op.astype(total, "int8"))
                case "a":
                    y = net(op.concat([y, conv(net, y, 2, i)], axis=1))
                case "l":
                    y = net(op.strided_slice(y, [1, -1], [0, 0], [max(1, c - 1), w]))
                case "m":
                    sums = net(op.sum(net(op.astype(y, "int32")), [2], keepdims=True))
                    y = net(
                        op.maximum(
                            net(op.astype(y, "int32")), net(op.right_shift(sums, integer(net, 2)))
                        )
                    )
                    y = net(op.astype(net(op.clip(y, -128.0, 127.0)), "int8"))
                case "t":
                    y = net(op.take(y, const(np.arange(h)[::-1], "int32"), axis=2))
                case "x":
                    table = np.linspace(1, 2**31 - 1, 256).astype(np.int32)
                    y = net(softmax(y, table, (1, 2, 3)[i % 3]))
                case "k":
                    factor = np.arange(1, c + 1).reshape(c, 1, 1)
                    y = net(op.multiply(net(op.astype(y, "int32")), const(factor, "int32")))
                    y = net(op.astype(net(op.clip(y, -128.0, 127.0)), "int8"))
                case "n":
                    y = net(op.nn.pad(y, [0, 0, 0, 1, 1, 0, 0, 2], pad_value=7.0))
                case "e":
                    y = net(op.image.resize2d(y, (h + 1, w * 2), method="nearest_neighbor"))
                case "f":
                    y = net(op.flip(y, 3))  # an operator that no transpose sinks through
                case "b":
                    y = net(op.reshape(net(op.reshape(y, (1, c * h, w))), (1, c, h, w)))
                case "v":
                    halves = net(op.split(y, [1], axis=1)) if c > 1 else None
                    if halves is not None:
                        y = net(op.concat([net(halves[1]), net(halves[0])], axis=1))
        y = conv(net, y, 3, 101)
        if not flat:
            return y
        return fully_connected(
            net, net(op.reshape(y, (1, int(np.prod(edge.static_shape(y)))))), 4, 102
        )  # type: ignore[arg-type]

    mod = built((1, channels, 5, 4), describe)
    made = ChannelsLast()(mod)
    x = np.random.default_rng(0).integers(-128, 128, (3, channels, 5, 4)).astype(np.int8)
    np.testing.assert_array_equal(reference.run(made, x)["y"], reference.run(mod, x)["y"])
    assert {str(c.attrs.data_layout) for c in calls(made, "nn.conv2d")} == {"NHWC"}
    if not set("fb") & set(kinds):
        assert len(calls(made, "permute_dims")) == (channels > 1) + (not flat)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_blocks_keep_their_elements(sizes: list[int], data: st.DataObject) -> None:
    after: list[int] = []
    for size in sizes:  # joined to the one before, divided, or as it is
        choice = data.draw(st.integers(0, 2))
        if choice == 0 and after:
            after[-1] *= size
        elif choice == 1:
            divisor = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
            after += [divisor, size // divisor]
        else:
            after.append(size)
    blocks = blocks_of(sizes, after)
    assert blocks is not None
    for before_axes, after_axes in blocks:
        assert np.prod([sizes[a] for a in before_axes]) == np.prod([after[a] for a in after_axes])
    for side, shape in ((0, sizes), (1, after)):
        listed = [axis for block in blocks for axis in block[side]]
        assert listed == [axis for axis, size in enumerate(shape) if size != 1]
    assert blocks_of((2, 0), (0,)) is None


def test_the_board_runs_what_the_reference_says() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = conv(net, conv(net, x, 8, 0, strides=(2, 2)), 8, 1, groups=8)
        return fully_connected(net, net(op.reshape(y, (1, 8 * 12))), 5, 2)

    mod = built((1, 3, 8, 6), describe)
    artifact = tc.build(mod, board="mps2-an386")
    assert isinstance(artifact, FirmwareArtifact)
    kinds = [layer.kind for layer in artifact.firmware.model.layers]
    assert not [kind for kind in kinds if "dense" in kind]
    assert sum("transpose" in kind for kind in kinds) == 1
    x = np.random.default_rng(0).integers(-128, 128, (3, 3, 8, 6)).astype(np.int8)
    right = tc.build(mod, target="reference").run(x)["y"]
    np.testing.assert_array_equal(artifact.run(x)["y"], right)


_REAL = {
    "mlperf_tiny/kws_dscnn_float.onnx": 0,
    "mlperf_tiny/ic_resnet8_float.onnx": 0,
    "models/arm_kws_DS_CNN_S.onnx": 0,
    "models/ultraface_rfb320.onnx": 1,  # three channels come first
}


@pytest.mark.shared_data
@pytest.mark.parametrize("file", _REAL)
def test_real_networks(file: str, shared_data: Path) -> None:
    mod = tc.load(shared_data / file)
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).normal(size=(2, *spec.shape[1:])).astype(np.float32)
    mod = prepare(tc.quantize(mod, x, ranges="min-max", bias_correction=False))
    made = ChannelsLast()(mod)
    assert len(calls(made, "permute_dims")) == _REAL[file]
    assert {str(c.attrs.data_layout) for c in calls(made, "nn.conv2d")} == {"NHWC"}
    q = np.random.default_rng(1).integers(-128, 128, x[:1].shape).astype(np.int8)
    before, after = reference.run(mod, q), reference.run(made, q)
    for name, right in before.items():
        np.testing.assert_array_equal(after[name], right, name)
        assert re.fullmatch(r"\w+", name) and len(np.unique(right)) > 1
