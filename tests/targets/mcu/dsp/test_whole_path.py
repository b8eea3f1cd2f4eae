"""Integer layers of a module on the board, on this machine and on the reference: equal bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

import tvm_compress as tc
from tests.targets.mcu.integer_nets import Layer, differing, emit, module_of, samples_of
from tests.targets.mcu.nets import Net, network
from tvm_compress.targets.mcu.target import FirmwareArtifact, generate

Array = NDArray[Any]
TOOLCHAINS = ["zig", pytest.param("gnu", marks=pytest.mark.gnu)]


def _ends(w: Array) -> Array:
    return np.where(w > 0, 127, -127)


def _first_and_last(w: Array) -> Array:
    """Keep what a byte of distance cannot connect."""
    kept = np.zeros_like(w)
    kept[:8], kept[-8:] = w[:8], w[-8:]
    return kept


def _thin(w: Array) -> Array:
    """Keep weights at no pattern, a few in a hundred."""
    return np.where(abs(w * 7919 % 101) < 12, w, 0)


def _few_bits(w: Array) -> Array:
    """Leave 4 bits of two channels of three, and all of the third."""
    last = np.arange(len(w)) % 3 == 2
    return np.where(last.reshape(-1, *[1] * (w.ndim - 1)), w, w >> 4)


_LAYERS: dict[str, Layer] = {
    "pointwise": Layer((1, 4, 5, 16), (12, 16, 1, 1), "conv2d (paired)"),
    "pointwise, odd": Layer((1, 3, 3, 7), (5, 7, 1, 1), "conv2d (paired)", rounding="single"),
    "strided 1x1": Layer((1, 6, 5, 8), (6, 8, 1, 1), "conv2d (paired)", strides=(2, 2)),
    "3x3": Layer((1, 6, 6, 8), (8, 8, 3, 3), "conv2d (paired)", pad=(1, 1, 1, 1)),
    "3x3 of colours, SAME with stride 2": Layer(
        (1, 8, 8, 3), (8, 3, 3, 3), "conv2d (paired)", strides=(2, 2), pad=(0, 0, 1, 1), high=90
    ),
    "10x4 of one channel": Layer(
        (1, 20, 10, 1), (6, 1, 10, 4), "conv2d (paired)", strides=(2, 2), pad=(4, 1, 5, 1)
    ),
    "dilated rows": Layer(
        (1, 9, 5, 6), (5, 6, 3, 2), "conv2d (paired)", pad=(2, 0, 2, 1), dilation=(2, 1)
    ),
    "dilated columns": Layer(
        (1, 5, 9, 4), (5, 4, 3, 3), "conv2d (paired)", pad=(1, 2, 1, 2), dilation=(1, 2)
    ),
    "1-D": Layer((1, 20, 6), (5, 6, 4), "conv1d (paired)", strides=(1, 2), layout="NWC"),
    "1-D padded": Layer((1, 9, 6), (5, 6, 3), "conv1d (paired)", pad=(0, 1, 0, 1), layout="NWC"),
    "1-D depthwise": Layer(
        (1, 9, 6), (6, 1, 3), "depthwise_conv1d (wide)", pad=(0, 1, 0, 1), groups=6, layout="NWC"
    ),
    "fully connected": Layer((1, 40), (40, 10), "matmul (paired)"),
    "fully connected, odd": Layer((1, 42), (42, 7), "matmul (paired)", rounding="single"),
    "rows of a product": Layer((7, 12), (12, 6), "matmul (paired)", uniform=True),
    "product of three axes": Layer((2, 3, 12), (12, 6), "matmul (paired)", low=-20, high=30),
    "one factor": Layer((1, 4, 5, 16), (6, 16, 1, 1), "conv2d (paired)", uniform=True),
    "one factor, rounded once": Layer(
        (1, 4, 5, 16), (6, 16, 1, 1), "conv2d (paired)", uniform=True, rounding="single"
    ),
    "ReLU6": Layer((1, 4, 5, 16), (6, 16, 1, 1), "conv2d (paired)", low=-100, high=101),
    "beyond int8": Layer(
        (1, 6, 6, 8), (7, 8, 3, 3), "conv2d (wide)", pad=(1, 1, 1, 1), largest=255
    ),
    "beyond int8, fully connected": Layer(
        (1, 30), (30, 5), "matmul (wide)", largest=255, rounding="single"
    ),
    "a large bias": Layer((1, 2, 3, 8), (8, 8, 1, 1), "conv2d (wide)", bias=1 << 28, gain=1.2e-4),
    "a bias beyond": Layer(
        (1, 2, 3, 8), (64, 8, 1, 1), "conv2d (dense)", bias=(1 << 31) - (1 << 18), gain=1.2e-4
    ),
    "weights of +-127": Layer((1, 2, 3, 64), (4, 64, 1, 1), "conv2d (paired)", change=_ends),
    "weights of zero": Layer(
        (1, 2, 3, 64), (4, 64, 1, 1), "conv2d (blocks)", bias=100_000, change=lambda w: 0 * w
    ),
    "a few blocks": Layer((1, 160), (160, 8), "matmul (gaps)", zeros=0.85),
    "a few blocks, 3x3": Layer(
        (1, 6, 6, 8), (8, 8, 3, 3), "conv2d (blocks)", pad=(1, 1, 1, 1), zeros=0.8
    ),
    "blocks far apart": Layer((1, 400), (400, 4), "matmul (gaps)", change=_first_and_last),
    "few weights": Layer((1, 8, 9, 48), (32, 48, 1, 1), "conv2d (gaps)", change=_thin),
    "few weights, 3x3": Layer(
        (1, 12, 12, 16),
        (12, 16, 3, 3),
        "conv2d (gaps)",
        pad=(1, 1, 1, 1),
        change=_thin,
        rounding="single",
    ),
    "few weights, fully connected": Layer((1, 200), (200, 12), "matmul (gaps)", change=_thin),
    "few shared weights": Layer(
        (1, 8, 9, 64), (32, 64, 1, 1), "conv2d (gap_codes)", shared=True, zeros=0.8
    ),
    "few shared weights, fully connected": Layer(
        (1, 400), (400, 24), "matmul (gap_codes)", shared=True, zeros=0.8
    ),
    "few bits, fully connected": Layer(
        (1, 200), (200, 24), "matmul (narrow)", change=lambda w: w >> 4
    ),
    "few bits, 3x3": Layer(
        (1, 3, 3, 16),
        (30, 16, 3, 3),
        "conv2d (narrow)",
        pad=(1, 1, 1, 1),
        change=_few_bits,
        rounding="single",
    ),
    "beyond int8 by an offset": Layer(
        (1, 2, 3, 64), (24, 64, 1, 1), "conv2d (offset)", largest=255, change=lambda w: w // 3 + 70
    ),
    "beyond int8 by an offset, fully connected": Layer(
        (1, 90), (90, 30), "matmul (offset)", largest=255, change=lambda w: w // 3 - 90
    ),
    "depthwise": Layer(
        (1, 7, 6, 8), (8, 1, 3, 3), "depthwise_conv2d (wide)", pad=(1, 1, 1, 1), groups=8
    ),
    "depthwise, stride 2": Layer(
        (1, 8, 8, 6),
        (6, 1, 3, 3),
        "depthwise_conv2d (wide)",
        strides=(2, 2),
        pad=(0, 0, 1, 1),
        groups=6,
        rounding="single",
    ),
    "depthwise in strips": Layer(
        (1, 30, 20, 4), (4, 1, 3, 3), "depthwise_conv2d (wide)", pad=(1, 1, 1, 1), groups=4, low=-9
    ),
    "depthwise, 5x5": Layer(
        (1, 6, 6, 4), (4, 1, 5, 5), "depthwise_conv2d (wide)", pad=(2, 2, 2, 2), groups=4
    ),
    "depthwise, two outputs a channel": Layer(
        (1, 6, 6, 4), (8, 1, 3, 3), "depthwise_conv2d (wide)", pad=(1, 1, 1, 1), groups=4
    ),
    "depthwise, dilated": Layer(
        (1, 6, 6, 4), (4, 1, 3, 3), "depthwise_conv2d (dense)", groups=4, dilation=(2, 2)
    ),
    "grouped": Layer(
        (1, 5, 5, 6), (4, 3, 3, 3), "conv2d (dense)", pad=(1, 1, 1, 1), groups=2, rounding="single"
    ),
    "channels first": Layer(
        (1, 6, 5, 5), (4, 6, 3, 3), "transpose1", pad=(1, 1, 1, 1), layout="NCHW"
    ),
    "1x1 padded below": Layer(
        (1, 4, 4, 4), (4, 4, 1, 1), "conv2d (dense)", strides=(2, 2), pad=(0, 0, 1, 1)
    ),
}


def _module(layers: dict[str, Layer]) -> tvm.IRModule:
    def describe(net: Net, *xs: Any) -> list[Any]:
        pairs = enumerate(zip(xs, layers.values(), strict=True))
        return [emit(net, x, one, i) for i, (x, one) in pairs]

    return network({f"x{i}": (one.x, "int8") for i, one in enumerate(layers.values())}, describe)


@pytest.fixture(scope="module")
def layers() -> tvm.IRModule:
    return module_of(_LAYERS)


@pytest.fixture(scope="module")
def right(layers: tvm.IRModule) -> list[dict[str, Array]]:
    judge = tc.build(layers, target="reference")
    return [judge.run(sample) for sample in samples_of(_LAYERS)]


def test_outputs_are_of_many_values(right: list[dict[str, Array]]) -> None:
    # A layer whose outputs are all clamped, or all alike, would prove little.
    one_a_channel = ("weights of zero", "a large bias", "a bias beyond")
    for i, name in enumerate(_LAYERS):
        values = np.concatenate([sample[f"y{i}"].ravel() for sample in right])
        assert len(np.unique(values)) > (3 if name in one_a_channel else 8), name


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_layers_on_the_board(
    layers: tvm.IRModule, right: list[dict[str, Array]], toolchain: str
) -> None:
    built = tc.build(layers, board="cortex-m4", toolchain=toolchain)
    assert isinstance(built, FirmwareArtifact)
    kinds = {one.name: one.kind for one in built.firmware.model.layers}
    for i, (name, one) in enumerate(_LAYERS.items()):
        # Dense weights may lie in blocks too, where that costs less.
        assert kinds[f"y{i}"] in (one.kind, one.kind.replace("paired", "blocks")), name
    assert differing(_LAYERS, built.run, right) == []


@pytest.mark.qemu
def test_layers_on_a_board_with_vectors(
    layers: tvm.IRModule, right: list[dict[str, Array]]
) -> None:
    """What no kernel with MVE takes is computed by one for the DSP extension."""
    built = tc.build(layers, board="mps3-an547")
    assert isinstance(built, FirmwareArtifact)
    kinds = {one.name: one.kind for one in built.firmware.model.layers}
    by_name = {name: kinds[f"y{i}"] for i, name in enumerate(_LAYERS)}
    assert by_name["depthwise"] == "depthwise_conv2d (mve)"
    assert by_name["depthwise, 5x5"] == "depthwise_conv2d (wide)"
    assert by_name["grouped"] == "conv2d (dense)"
    assert differing(_LAYERS, built.run, right) == []


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_layers_under_other_budgets(
    layers: tvm.IRModule, right: list[dict[str, Array]], optimize: str
) -> None:
    built = tc.build(layers, board="cortex-m4", optimize=optimize)
    assert differing(_LAYERS, built.run, right) == []


def test_layers_on_this_machine(layers: tvm.IRModule, right: list[dict[str, Array]]) -> None:
    built = tc.build(layers, target="c")
    assert not [path for path in built.files if path.endswith(".s")]
    assert differing(_LAYERS, built.run, right) == []


def _few_values(w: Array) -> Array:
    """Weights that code well: most are zero, some are at the ends."""
    return np.where(abs(w) % 7 == 0, w, np.sign(w) * (abs(w) % 5 == 0))


_CODED: dict[str, Layer] = {
    "fully connected": Layer((1, 200), (200, 40), "", change=_few_values),
    "fully connected, odd": Layer((1, 75), (75, 67), "", change=_few_values, rounding="single"),
    "pointwise": Layer((1, 2, 2, 96), (64, 96, 1, 1), "", change=_few_values),
    "pointwise, a rest of pixels": Layer((1, 1, 5, 98), (63, 98, 1, 1), "", change=_few_values),
    "3x3": Layer((1, 3, 3, 16), (32, 16, 3, 3), "", pad=(1, 1, 1, 1), change=_few_values),
    "3x3, odd": Layer((1, 3, 3, 7), (33, 7, 3, 3), "", strides=(2, 2), change=_few_values),
    "beyond int8": Layer((1, 150), (150, 30), "", largest=255, change=_few_values),
    "one factor": Layer((1, 2, 2, 64), (48, 64, 1, 1), "", change=_few_values, uniform=True),
}


@pytest.mark.parametrize("toolchain", TOOLCHAINS)
def test_weights_that_are_decoded_while_they_are_multiplied(toolchain: str) -> None:
    mod = module_of(_CODED)
    judge = tc.build(mod, target="reference")
    right = [judge.run(sample) for sample in samples_of(_CODED)]
    built = tc.build(mod, board="cortex-m4", toolchain=toolchain, optimize="size")
    assert isinstance(built, FirmwareArtifact)
    kinds = [one.kind for one in built.firmware.model.layers]
    assert sum("coded" in kind or "huffman" in kind for kind in kinds) > len(kinds) // 2
    assert differing(_CODED, built.run, right) == []
    plain = tc.build(mod, board="cortex-m4", toolchain=toolchain)
    assert built.size.flash_bytes < plain.size.flash_bytes


def _chain(branches: int) -> tvm.IRModule:
    """Pointwise, then in each branch depthwise and pointwise."""
    size = (1, 12, 10, 16)
    pointwise = Layer(size, (16, 16, 1, 1), "")
    depthwise = Layer(size, (16, 1, 3, 3), "", pad=(1, 1, 1, 1), groups=16)

    def describe(net: Net, x: Any) -> Any:
        first = emit(net, x, pointwise, 0)
        second = [emit(net, first, depthwise, 1 + i) for i in range(branches)]
        return [emit(net, y, pointwise, 9 + i) for i, y in enumerate(second)]

    return network({"x": (size, "int8")}, describe)


def test_a_depthwise_layer_runs_in_place_where_its_input_dies() -> None:
    x = np.random.default_rng(2).integers(-128, 128, (2, 12, 10, 16)).astype(np.int8)
    arenas = []
    for branches in (1, 2):
        mod = _chain(branches)
        built = tc.build(mod, board="cortex-m4")
        assert isinstance(built, FirmwareArtifact)
        expected = tc.build(mod, target="reference").run(x)
        for name, value in built.run(x).items():
            np.testing.assert_array_equal(value, expected[name])
        arenas.append(built.firmware.model.arena_bytes)
    # The other branch still needs the input of the first.
    assert arenas[1] == arenas[0] + 12 * 10 * 16
    assert arenas[0] < 2 * 12 * 10 * 16


def test_layers_of_one_shape_share_their_code() -> None:
    """What differs lies in the stream of weights, so the assembly is written once."""
    one = Layer((1, 4, 4, 8), (8, 8, 1, 1), "")

    def describe(net: Net, x: Any) -> Any:
        for i in range(3):
            x = emit(net, x, one, i)
        return x

    mod = network({"x": (one.x, "int8")}, describe)
    sources = generate(mod, "net", dsp=True)
    text = sources.files["net_kernels.s"]
    assert text.count("%function") == 1
    assert "net_kernels.s" not in generate(mod, "net").files
