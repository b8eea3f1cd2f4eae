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

from tests.targets.mcu.nets import Net, const, network, normal, shared
from tvm_compress import build, edge, inspection, ir
from tvm_compress.errors import OptionError, PassError
from tvm_compress.frontends import load
from tvm_compress.ops.requantize import requantize
from tvm_compress.passes import Patchwise
from tvm_compress.passes.patchwise import window
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
op = relax.op


def whole(*shape: int, seed: int = 0) -> Array:
    """Small whole numbers, whose sums are exact in every order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def inputs_of(mod: tvm.IRModule) -> dict[str, Array]:
    chance = np.random.default_rng(1)
    return {
        spec.name: chance.integers(-9, 10, spec.shape).astype(spec.dtype)
        for spec in input_specs(mod)
    }


def same(mod: tvm.IRModule, patched: tvm.IRModule, *, in_c: bool = False) -> None:
    """Hold the divided network to the given one, bit for bit."""
    inputs = inputs_of(mod)
    before, after = reference.run(mod, inputs), reference.run(patched, inputs)
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    if in_c:
        before, after = build(mod).run(inputs), build(patched).run(inputs)
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)


def operators(mod: tvm.IRModule) -> list[str]:
    names = (edge.op_name(b.value) for b in ir.bindings(ir.main_function(mod)))
    return [name.removeprefix("relax.") for name in names if name]


# --- what it makes


def test_before_and_expected() -> None:
    w = const(whole(1, 1, 3, 3))

    def before(net: Net, x: Any) -> Any:
        y = net(op.nn.conv2d(x, net(w, "w"), padding=(1, 1)), "c")
        return net(op.nn.relu(y), "r")

    def expected(net: Net, x: Any) -> Any:
        kernel = net(w, "w")

        def patch(rows: tuple[int, int], columns: tuple[int, int], padding: list[int]) -> Any:
            part = net(
                op.strided_slice(x, [2, 3], [rows[0], columns[0]], [rows[1], columns[1]]), "s"
            )
            return net(op.nn.relu(net(op.nn.conv2d(part, kernel, padding=padding), "c")), "r")

        top = [patch((0, 3), (0, 4), [1, 1, 0, 0]), patch((0, 3), (2, 6), [1, 0, 0, 1])]
        top_strip = net(op.concat(top, 3), "t")
        low = [patch((1, 4), (0, 4), [0, 1, 1, 0]), patch((1, 4), (2, 6), [0, 0, 1, 1])]
        return net(op.concat([top_strip, net(op.concat(low, 3), "l")], 2), "y")

    patched = Patchwise(layers=1, patches=2)(network({"x": (1, 1, 4, 6)}, before))
    tvm.ir.assert_structural_equal(
        patched, network({"x": (1, 1, 4, 6)}, expected), map_free_vars=True
    )


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 3), st.integers(4, 12)
)
def test_a_window_is_what_its_places_read(
    taps: int, stride: int, dilation: int, pad: int, size: int
) -> None:
    count = (size + 2 * pad - (taps - 1) * dilation - 1) // stride + 1
    for first in range(count):
        for last in range(first, count):
            read = {
                place * stride - pad + tap * dilation
                for place in range(first, last + 1)
                for tap in range(taps)
            }
            (begin, end), (front, behind) = window(
                (first, last + 1), taps, stride, dilation, pad, size
            )
            assert front == max(0, -min(read))
            assert behind == max(0, max(read) + 1 - size)
            if begin < end:
                assert (begin, end) == (max(0, min(read)), min(size, max(read) + 1))
            else:
                assert not any(0 <= place < size for place in range(min(read), max(read) + 1))


# --- the same function

CHANNELS = 4
LAYERS: dict[str, Callable[[Net, Any], Any]] = {
    "same": lambda net, x: net(
        op.nn.conv2d(x, const(whole(CHANNELS, CHANNELS, 3, 3)), padding=(1, 1))
    ),
    "strided": lambda net, x: net(
        op.nn.conv2d(
            x, const(whole(CHANNELS, CHANNELS, 3, 2)), strides=(2, 1), padding=(0, 1, 1, 0)
        )
    ),
    "dilated": lambda net, x: net(
        op.nn.conv2d(
            x, const(whole(CHANNELS, CHANNELS, 2, 3)), dilation=(2, 1), padding=(1, 1, 1, 1)
        )
    ),
    "depthwise": lambda net, x: net(
        op.nn.conv2d(x, const(whole(CHANNELS, 1, 3, 3)), padding=(1, 1), groups=CHANNELS)
    ),
    "pointwise": lambda net, x: net(op.nn.conv2d(x, const(whole(CHANNELS, CHANNELS, 1, 1)))),
    "bias": lambda net, x: net(op.add(x, const(whole(1, CHANNELS, 1, 1)))),
    "relu": lambda net, x: net(op.nn.relu(x)),
    "map": lambda net, x: net(op.add(x, const(whole(*(int(n) for n in x.ty.shape))))),
    "clip": lambda net, x: net(op.clip(x, -5, 5)),
    "max pool": lambda net, x: net(op.nn.max_pool2d(x, (3, 3), (2, 2), padding=(1, 1))),
    "average pool": lambda net, x: net(op.nn.avg_pool2d(x, (2, 2), (1, 1), padding=(1, 0))),
    "average with its border": lambda net, x: net(
        op.nn.avg_pool2d(x, (2, 2), (1, 1), padding=(1, 0), count_include_pad=True)
    ),
    "pad": lambda net, x: net(op.nn.pad(x, [0, 0, 0, 0, 1, 0, 0, 2], pad_value=3.0)),
    "twice": lambda net, x: net(op.multiply(x, x)),
    "residual": lambda net, x: net(
        op.add(
            x, net(op.nn.conv2d(x, const(whole(CHANNELS, CHANNELS, 3, 3, seed=2)), padding=(1, 1)))
        )
    ),
    "two windows": lambda net, x: net(
        op.subtract(
            net(op.nn.max_pool2d(x, (3, 3), padding=(1, 1))),
            net(op.nn.max_pool2d(x, (5, 5), padding=(2, 2))),
        )
    ),
}


@given(
    st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=6).filter(
        lambda names: sum(name in ("strided", "max pool", "dilated") for name in names) < 3
    ),
    st.sampled_from([(13, 11), (16, 16), (9, 17)]),
    st.integers(2, 3),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_random_stages(
    names: list[str], size: tuple[int, int], patches: int, data: st.DataObject
) -> None:
    def describe(net: Net, x: Any) -> Any:
        y = LAYERS["same"](net, x)
        for name in names:
            # Small numbers stay exact, so that the order of sums tells nothing.
            y = net(op.clip(LAYERS[name](net, y), -16, 16))
        return net(op.mean(LAYERS["pointwise"](net, y), axis=(2, 3)))

    mod = network({"x": (1, CHANNELS, *size)}, describe)
    layers = data.draw(st.integers(1, operators(mod).count("nn.conv2d") - 1))
    try:
        patched = Patchwise(layers, patches)(mod)
    except PassError as error:
        # A stage that ends inside a residual block, or on a map of too few pixels.
        assert "is read behind it" in str(error) or "pixels" in str(error)
        return
    assert operators(patched).count("nn.conv2d") >= layers * patches**2
    same(mod, patched)


@pytest.mark.parametrize("patches", [2, 3])
def test_the_same_bits_in_c(patches: int) -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(op.permute_dims(x, [0, 3, 1, 2]))
        y = net(op.nn.conv2d(y, net(const(normal(4, 3, 3, 3)), "w1"), strides=2, padding=(1, 1)))
        y = net(op.nn.relu(net(op.add(y, const(normal(1, 4, 1, 1))))))
        y = LAYERS["residual"](net, y)
        y = net(op.nn.conv2d(y, net(shared((8, 4, 3, 3)), "w3"), padding=(1, 1)))
        y = net(op.nn.avg_pool2d(net(op.tanh(y)), (2, 2), (2, 2)))
        return net(op.nn.conv2d(y, net(const(normal(2, 8, 1, 1)), "w4")))

    mod = network({"x": (1, 14, 18, 3)}, describe)
    patched = Patchwise(3, patches)(mod)
    same(mod, patched, in_c=True)
    # The slice is cut out of the input before that is turned.
    assert "permute_dims" in operators(patched)
    sliced = [
        b.value for b in ir.bindings(ir.main_function(patched))
        if edge.op_name(b.value) == "relax.strided_slice"
    ]  # fmt: skip
    assert [edge.static_shape(s.args[0]) for s in sliced].count((1, 14, 18, 3)) == patches**2
    assert not [s for s in sliced if edge.static_shape(s.args[0]) == (1, 3, 14, 18)]
    assert inspection.memory(patched).arena_bytes < inspection.memory(mod).arena_bytes
    # Weights stay one each.
    assert ir.parameters(patched).keys() == ir.parameters(mod).keys()


def test_channels_last() -> None:
    def describe(net: Net, x: Any) -> Any:
        y = net(
            op.nn.conv2d(
                x, net(const(whole(4, 2, 3, 3)), "w"), padding=(1, 1), data_layout="NHWC",
                kernel_layout="OIHW",
            )
        )  # fmt: skip
        y = net(op.nn.relu(net(op.add(y, const(whole(4))))))
        return net(op.nn.max_pool2d(y, (2, 2), (2, 2), layout="NHWC"))

    mod = network({"x": (1, 8, 10, 2)}, describe)
    patched = Patchwise(1, 2)(mod)
    assert operators(patched).count("nn.max_pool2d") == 4
    same(mod, patched, in_c=True)


def test_integers() -> None:
    """What to-integers gives: padding of its own with the zero point, requantize by channel."""
    chance = np.random.default_rng(3)
    weight = chance.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)

    def describe(net: Net, x: Any) -> Any:
        y = net(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=-7))
        y = net(op.nn.conv2d(y, net(const(weight, "int8"), "w"), out_dtype="int32"))
        y = net(op.add(y, net(const(chance.integers(-999, 999, (1, 4, 1, 1)), "int32"), "b")))
        multiplier = chance.integers(2**30, 2**31 - 1, 4).astype(np.int32)
        return net(
            requantize(
                y, multiplier, np.full(4, -8, np.int32), axis=1,
                zero_point=3, rounding="double", low=-128, high=127, out_dtype="int8",
            )
        )  # fmt: skip

    mod = network({"x": ((1, 2, 9, 9), "int8")}, describe)
    patched = Patchwise(1, 3)(mod)
    assert operators(patched).count("tvm_compress.requantize") == 9
    same(mod, patched, in_c=True)


def test_the_digits_network(digits_onnx: Path) -> None:
    mod = load(digits_onnx)
    patched = Patchwise(2, 2)(mod)
    same(mod, patched, in_c=True)


def test_a_stage_to_the_output() -> None:
    mod = network({"x": (1, CHANNELS, 6, 6)}, LAYERS["same"])
    patched = Patchwise(1, 2)(mod)
    same(mod, patched, in_c=True)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "layers", "patches", "share"),
    [
        ("vww_96_float", 9, 2, 0.40),
        ("ic_resnet8_float", 6, 2, 0.75),
        ("ic_resnet8_float", 6, 4, 0.51),
    ],
)
def test_the_peak_of_real_networks(
    shared_data: Path, name: str, layers: int, patches: int, share: float
) -> None:
    mod = load(shared_data / "mlperf_tiny" / f"{name}.onnx")
    before, after = inspection.memory(mod), inspection.memory(Patchwise(layers, patches)(mod))
    assert after.arena_bytes <= share * before.arena_bytes


# --- errors


def chain(net: Net, x: Any) -> Any:
    y = LAYERS["same"](net, x)
    return LAYERS["residual"](net, y)


def test_no_layers() -> None:
    with pytest.raises(OptionError) as caught:
        Patchwise(layers=0)
    assert str(caught.value) == (
        "patchwise: 0 layers; expected 1 or more convolutions to compute by patches."
    )


def test_one_patch() -> None:
    with pytest.raises(OptionError) as caught:
        Patchwise(patches=1)
    assert str(caught.value) == (
        "patchwise: 1 patches along an axis; expected 2 or more: with one patch nothing is "
        "divided. Leave the pass out."
    )


def test_no_convolution() -> None:
    mod = network({"x": (1, 4)}, lambda net, x: net(op.nn.relu(x)))
    tvm.ir.assert_structural_equal(Patchwise()(mod), mod, map_free_vars=True)


def test_fewer_convolutions() -> None:
    with pytest.raises(PassError) as caught:
        Patchwise(layers=3)(network({"x": (1, CHANNELS, 6, 6)}, chain))
    assert str(caught.value) == (
        "patchwise: the network has 2 2-D convolutions; expected at least the 3 that are to be "
        "computed by patches. Choose fewer layers."
    )


@pytest.mark.parametrize("reader", ["add", "y1"])
def test_a_map_that_is_read_behind_the_stage(reader: str) -> None:
    def describe(net: Net, x: Any) -> Any:
        first = net(op.nn.conv2d(x, const(whole(4, 4, 1, 1))), "first")
        second = net(
            op.nn.conv2d(net(op.nn.relu(first), "act"), const(whole(4, 4, 1, 1))), "second"
        )
        third = net(op.nn.conv2d(second, const(whole(4, 4, 1, 1))), "third")
        return net(op.add(first, third), "add") if reader == "add" else [third, first]

    with pytest.raises(PassError) as caught:
        Patchwise(layers=2)(network({"x": (1, 4, 6, 6)}, describe))
    assert str(caught.value) == (
        f"patchwise: the map first inside the stage is read behind it, by {reader}; expected one "
        "map at the end of the stage, second. Choose more or fewer layers, so that the stage ends "
        "where branches have met."
    )


def test_a_map_of_too_few_pixels() -> None:
    def describe(net: Net, x: Any) -> Any:
        return net(op.nn.conv2d(x, const(whole(4, 4, 3, 3))), "only")

    with pytest.raises(PassError) as caught:
        Patchwise(layers=1, patches=3)(network({"x": (1, 4, 4, 9)}, describe))
    assert str(caught.value) == (
        "patchwise: the last map only has 2 x 7 pixels; expected at least 3 x 3 for as many "
        "patches. Choose fewer layers or patches."
    )


def test_a_patch_of_padding() -> None:
    def describe(net: Net, x: Any) -> Any:
        return net(op.nn.conv2d(x, const(whole(4, 4, 1, 1)), padding=(3, 3)), "only")

    with pytest.raises(PassError) as caught:
        Patchwise(layers=1, patches=3)(network({"x": (1, 4, 3, 3)}, describe))
    assert str(caught.value) == (
        "patchwise: a patch of only lies in padding alone; expected patches that see some of the "
        "image. Choose fewer patches."
    )
