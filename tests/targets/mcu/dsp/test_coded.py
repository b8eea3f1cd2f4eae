"""Coded weights: the code and its C decoder, kernels that call it, and networks built so."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tvm_compress as tc
from tests.codec.twin import COMPILERS, STRICT, missing, sanitizers_of
from tests.targets.mcu.dsp.judge import rows_outside
from tests.targets.mcu.dsp.layers import expected, geometry, layer, pixels
from tests.targets.mcu.dsp.machine import call, link
from tests.targets.mcu.dsp.test_residual import _residual, _sum
from tests.targets.mcu.dsp.test_whole_path import _LAYERS
from tests.targets.mcu.integer_nets import Layer, differing, emit, module_of, samples_of
from tests.targets.mcu.nets import Net, network
from tvm_compress.codec import huffman
from tvm_compress.targets.artifact import Goal
from tvm_compress.targets.mcu import dsp
from tvm_compress.targets.mcu.dsp import (
    PREFERENCES,
    Preference,
    coded,
    dsp_kernels,
    preference,
)
from tvm_compress.targets.mcu.dsp.assembler import Assembler
from tvm_compress.targets.mcu.dsp.coded import LOOKUP, WeightCode, count_bytes, share_codes
from tvm_compress.targets.mcu.dsp.convolution import Convolution
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.dsp.product import Product
from tvm_compress.targets.mcu.target import FirmwareArtifact, generate
from tvm_compress.tensors import input_specs

Array = NDArray[Any]
_RUNTIME = Path(dsp.__file__).parents[1] / "runtime"
_MAIN = Path(__file__).with_name("weight_decoder_main.c")


# -- the code -------------------------------------------------------------------------------------


def _decode(code: WeightCode, words: Array, count: int) -> tuple[list[int], int]:
    """Decode bit by bit by the definition of a canonical code: the halfwords, the position."""
    names: dict[str, int] = {}
    word, last = 0, 0
    for length, byte in sorted((int(n), b) for b, n in enumerate(code.lengths) if n):
        word <<= length - last
        names[format(word, f"0{length}b")] = byte
        word, last = word + 1, length
    bits = "".join(format(byte, "08b") for byte in words.astype("<u4").tobytes())
    found: list[int] = []
    at = 0
    while len(found) < 2 * count:
        length = next(n for n in range(1, 13) if bits[at : at + n] in names)
        found.append(names[bits[at : at + length]])
        at += length
    signed = [byte - 256 if byte > 127 else byte for byte in found[1::2]]
    return [(256 * a + b) & 0xFFFF for a, b in zip(found[::2], signed, strict=True)], at


@st.composite
def _halfwords(draw: st.DrawFn) -> Array:
    """Halfwords of two bytes each: few or all values, alike or of very different frequency."""
    chance = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    kind = draw(st.sampled_from(["normal", "uniform", "steep", "one", "two"]))
    size = draw(st.integers(1, 700))
    spread = draw(st.floats(0.3, 40))
    if kind == "normal":
        values = np.clip(np.round(chance.normal(0, spread, 2 * size)), -127, 127)
    elif kind == "uniform":
        values = chance.integers(-128, 128, 2 * size)
    elif kind == "steep":  # lengths beyond twelve bits, if they were not limited
        values = chance.geometric(0.5, 2 * size) % 128 * draw(st.sampled_from([1, -1]))
    else:
        values = chance.choice(chance.integers(-128, 128, 1 if kind == "one" else 2), 2 * size)
    a, b = values[::2].astype(np.int64), values[1::2].astype(np.int64)
    return (256 * a + b).astype(np.uint16)


def _table_of(code: WeightCode, words: Array, count: int) -> tuple[list[int], int]:
    """Decode by the table alone, as runtime/weight_decoder.c says it is laid out."""
    table = code.table.astype(int).tolist()
    data = code.table.astype("<u2").tobytes()
    bits = "".join(format(byte, "08b") for byte in words.astype("<u4").tobytes()) + "0" * 16
    at, found = 0, []
    for _ in range(2 * count):
        entry = table[int(bits[at : at + LOOKUP], 2)]
        byte, length = entry >> 8, entry & 255
        if entry == 0:
            length = next(
                n
                for n in range(LOOKUP + 1, 13)
                if int(bits[at : at + 16], 2) <= table[(1 << LOOKUP) + 2 * (n - LOOKUP - 1)]
            )
            base = table[(1 << LOOKUP) + 2 * (length - LOOKUP - 1) + 1]
            byte = data[(base + int(bits[at : at + length], 2)) & 0xFFFF]
        at += length
        found.append(byte)
    return found, at


@given(_halfwords())
@settings(max_examples=60)
def test_what_is_coded_is_decoded(halfwords: Array) -> None:
    counts = count_bytes(halfwords)
    code = WeightCode.of(counts)
    words = code.encode(halfwords)
    decoded, position = _decode(code, words, len(halfwords))
    assert decoded == halfwords.tolist()
    by_table, same = _table_of(code, words, len(halfwords))
    a, b = (np.array(by_table[i::2]).astype(np.uint8).view(np.int8).astype(int) for i in (0, 1))
    assert (256 * a + b & 0xFFFF).tolist() == halfwords.tolist()
    assert same == position == (counts * code.lengths.astype(int)).sum()
    # Four bytes may be read behind the last word, and no byte more.
    assert code.size_bytes(counts) == words.nbytes
    assert position // 8 + 4 <= words.nbytes <= position / 8 + 8


@given(_halfwords(), _halfwords())
@settings(max_examples=20)
def test_a_code_of_two_layers_codes_both(a: Array, b: Array) -> None:
    code = WeightCode.of(count_bytes(a) + count_bytes(b))
    for one in (a, b):
        assert _decode(code, code.encode(one), len(one))[0] == one.tolist()


def test_a_code_of_nothing_and_of_one_byte_has_words_of_one_bit() -> None:
    for counts in (np.zeros(256, np.int64), np.eye(256, dtype=np.int64)[200] * 9):
        lengths = WeightCode.of(counts).lengths
        assert sorted(lengths[lengths > 0].tolist()) == [1, 1]


def test_a_byte_without_a_word_is_not_coded() -> None:
    with pytest.raises(AssertionError):
        WeightCode.of(count_bytes(np.array([0, 1], np.uint16))).encode(np.array([77], np.uint16))


def test_the_decoder_and_the_coder_have_the_same_numbers() -> None:
    text = (_RUNTIME / "weight_decoder.h").read_text()
    numbers = dict(re.findall(r"#define WEIGHT_DECODER_(\w+) (\d+)", text))
    assert numbers == {"LOOKUP": str(LOOKUP), "LONGEST": str(huffman.LONGEST)}


def test_layers_share_a_table_where_that_is_smaller() -> None:
    chance = np.random.default_rng(0)

    def counted(spread: float, size: int) -> Array:
        values = np.clip(np.round(chance.normal(0, spread, 2 * size)), -127, 127).astype(np.int64)
        return count_bytes((256 * values[::2] + values[1::2]).astype(np.uint16))

    alike, other = [counted(20, 4000) for _ in range(3)], counted(3, 8000)
    layers = [alike[0], other, alike[1], alike[2]]
    codes = share_codes(layers)
    assert codes[0] is codes[2] is codes[3]
    assert codes[1] is not codes[0]

    def flash(used: list[WeightCode]) -> int:
        tables = {id(code): code.table.nbytes for code in used}
        words = sum(code.size_bytes(c) for code, c in zip(used, layers, strict=True))
        return words + sum(tables.values())

    own = [WeightCode.of(counts) for counts in layers]
    common = [WeightCode.of(np.sum(layers, axis=0))] * len(layers)
    assert flash(codes) < min(flash(own), flash(common))
    assert share_codes([]) == []


# -- the decoder in C, on this machine ------------------------------------------------------------


class _Decoder:
    """The decoder in a process of its own, under the sanitizers."""

    def __init__(self, compiler: str, folder: Path) -> None:
        program = folder / "decoder"
        command = [*COMPILERS[compiler][0], *STRICT, *sanitizers_of(compiler, folder)]
        files = [_RUNTIME / "weight_decoder.c", _MAIN]
        subprocess.run([*command, f"-I{_RUNTIME}", *files, "-o", program], check=True)
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def decode(self, code: WeightCode, words: Array, pieces: list[int]) -> tuple[list[int], int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        table = code.table.astype("<u2").tobytes()
        codes = words.astype("<u4").tobytes()
        sizes = struct.pack("<3I", len(codes), len(table), len(pieces))
        self.process.stdin.write(sizes + struct.pack(f"<{len(pieces)}I", *pieces) + codes + table)
        self.process.stdin.flush()
        size = 2 * sum(pieces) + 4
        got = self.process.stdout.read(size)
        assert len(got) == size, f"the decoder died with exit code {self.process.wait()}"
        return np.frombuffer(got[:-4], "<u2").tolist(), struct.unpack("<I", got[-4:])[0]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()


@pytest.fixture(scope="module", params=["cc", "zig"])
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Decoder]:
    if why := missing(request.param):
        pytest.skip(why)
    made = _Decoder(request.param, tmp_path_factory.mktemp("decoder"))
    yield made
    made.close()


@given(_halfwords(), st.data())
@settings(max_examples=60)
def test_the_decoder_in_c(decoder: _Decoder, halfwords: Array, data: st.DataObject) -> None:
    code = WeightCode.of(count_bytes(halfwords))
    words = code.encode(halfwords)
    pieces, left = [], len(halfwords)
    while left:
        pieces.append(data.draw(st.integers(1, left)) if len(pieces) < 5 else left)
        left -= pieces[-1]
    assert decoder.decode(code, words, pieces) == _decode(code, words, len(halfwords))


# -- kernels --------------------------------------------------------------------------------------

_SHAPES = {
    "one pixel": geometry((1, 1), 40, 10),
    "one pixel, a prime number of loads": geometry((1, 1), 8 * 13, 7),
    "one pixel, few inputs": geometry((1, 1), 3, 5),
    "one pixel, one output": geometry((1, 1), 70, 1),
    "pointwise": geometry((3, 5), 16, 12),
    "pointwise, odd channels": geometry((2, 5), 37, 5),
    "3x3": geometry((3, 4), 8, 6, (3, 3), before=(1, 1)),
    "10x4 of one channel": geometry((25, 10), 1, 9, (10, 4), (2, 2), (4, 1), (5, 1)),
}


def _peaked(one: IntegerLayer, spread: float, seed: int = 0) -> IntegerLayer:
    """Weights of a bell, which the code makes smaller."""
    chance = np.random.default_rng(seed)
    weights = np.clip(np.round(chance.normal(0, spread, one.weights.shape)), -127, 127)
    return replace(one, weights=weights.astype(np.int16))


def _check(kernel: Convolution, seed: int = 0) -> None:
    """Check bytes, bounds, alignment and cost of a kernel, linked with the decoder."""
    function, g, chance = kernel.function(), kernel.g, np.random.default_rng(seed)
    assert function.decodes
    image = link(function, _RUNTIME / "weight_decoder.c", "weight_decoder_read")
    x = pixels(kernel.layer.geometry, chance)
    right = expected(kernel.layer, x)
    y, scratch = np.zeros(right.shape, np.int8), np.zeros(kernel.scratch_bytes, np.uint8)
    for at_end in (True, False):
        buffers = [x, kernel.stream(), *kernel.tables, y, scratch]
        called = call(image, buffers, [3, 4], at_end=at_end, offset=1)
        np.testing.assert_array_equal(called.buffers[3], right, f"{g}, {kernel.layout}")
        if not rows_outside(kernel.layer.geometry):
            # The decoder's part is what compilers made of it once.
            assert abs(called.instructions / function.instructions - 1) < 0.1


@pytest.mark.parametrize("name", _SHAPES)
def test_kernels(name: str) -> None:
    chance = np.random.default_rng(len(name))
    for rounding, largest, count in (("double", 127, 1), ("single", 127, 2), ("double", 255, 3)):
        one = layer(_SHAPES[name], chance, rounding=rounding, largest=largest, gain=0.5)
        if largest == 127:
            one = _peaked(one, 12)
        if count <= one.geometry.flattened().out_size[1]:
            layout = "paired" if one.pairable else "wide"
            kernel = Convolution(one, coded=True, layout=layout, pixels=count, unroll=16)
            assert kernel.layout == f"coded_{layout}"
            _check(kernel)


@pytest.mark.parametrize("name", ["one pixel", "pointwise, odd channels", "3x3"])
def test_kernels_with_an_offset(name: str) -> None:
    chance = np.random.default_rng(len(name))
    for rounding, count in (("double", 1), ("single", 2), ("double", 3)):
        one = layer(_SHAPES[name], chance, rounding=rounding, gain=0.5)
        one = replace(one, weights=(_peaked(one, 12).weights + 60).astype(np.int16))
        one.weights[-1, -1] = 150
        assert one.offset == 23
        if count <= one.geometry.flattened().out_size[1]:
            kernel = Convolution(one, coded=True, layout="offset", pixels=count, unroll=16)
            assert kernel.layout == "coded_offset"
            _check(kernel)


def test_an_offset_is_taken_off_before_weights_are_coded() -> None:
    one = _peaked(layer(geometry((1, 1), 256, 64), np.random.default_rng(0)), 20)
    one = replace(one, weights=(one.weights + 70).astype(np.int16))
    assert one.offset
    kernel = Convolution(one, coded=True, byte_cost=1e4)
    assert kernel.layout == "coded_offset"
    _check(kernel)


@given(st.data())
@settings(max_examples=15)
def test_any_product(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    g = geometry((1, draw(1, 5)), draw(1, 200), draw(1, 9))
    one = layer(g, np.random.default_rng(draw(0, 100)), uniform=data.draw(st.booleans()))
    _check(Convolution(_peaked(one, data.draw(st.floats(0.1, 60))), coded=True), draw(0, 100))


def test_a_kernel_with_a_residual_takes_its_table_too() -> None:
    chance = np.random.default_rng(4)
    one, residual = layer(_SHAPES["3x3"], chance), _residual(chance)
    kernel = Convolution(one, residual, coded=True, layout="paired", pixels=2, unroll=16)
    x = pixels(one.geometry, chance)
    own = expected(one, x)
    other = chance.integers(-128, 128, own.shape).astype(np.int8)
    scratch = np.zeros(kernel.scratch_bytes, np.uint8)
    image = link(kernel.function(), _RUNTIME / "weight_decoder.c", "weight_decoder_read")
    buffers = [x, other, kernel.stream(), *kernel.tables, np.zeros_like(own), scratch]
    called = call(image, buffers, [4, 5])
    np.testing.assert_array_equal(called.buffers[4], _sum(residual, own, other))


def test_the_buffer_is_small_whatever_the_layer() -> None:
    stacks = []
    for inputs in (64, 6400):
        one = _peaked(layer(geometry((1, 1), inputs, 4), np.random.default_rng(0)), 10)
        kernel = Convolution(one, coded=True, layout="paired", pixels=1, unroll=16)
        assert kernel.product.decoded_bytes <= 128
        assert kernel.scratch_bytes == 2 * inputs
        image = link(kernel.function(), _RUNTIME / "weight_decoder.c", "weight_decoder_read")
        x = pixels(one.geometry, np.random.default_rng(1))
        buffers = [x, kernel.stream(), *kernel.tables, np.zeros((1, 1, 4), np.int8)]
        stacks.append(
            call(image, [*buffers, np.zeros(kernel.scratch_bytes, np.uint8)], [3, 4]).stack_bytes
        )
    assert stacks[0] == stacks[1] < 400


def test_the_sizes_that_the_cost_counts_are_those_that_are_written() -> None:
    one = _peaked(layer(_SHAPES["one pixel"], np.random.default_rng(0)), 9)
    kernel = Convolution(one, coded=True)
    flash = kernel.stream().nbytes + sum(table.nbytes for table in kernel.tables)
    function = kernel.function()
    assert kernel.cost(1.0) - kernel.cost(0.0) == function.code_bytes + flash


def test_the_decoder_takes_what_the_cost_says() -> None:
    out = Assembler()
    out.decode(0)
    image = link(out.function([]), _RUNTIME / "weight_decoder.c", "weight_decoder_read")
    assert 0.7 * coded.DECODER_BYTES < len(image) - 4 <= coded.DECODER_BYTES


# -- which layers are coded -----------------------------------------------------------------------


def _layers(spreads: list[float], inputs: int = 512) -> list[tuple[IntegerLayer, None]]:
    made = []
    for i, spread in enumerate(spreads):
        one = layer(geometry((1, 1), inputs, 64), np.random.default_rng(i))
        made.append((_peaked(one, spread, i), None))
    return made


def _kinds(layers: list[tuple[IntegerLayer, None]], wanted: Preference) -> list[str]:
    kernels = dsp_kernels(layers, wanted)
    return [kernel.layout for kernel in kernels if kernel is not None]


def test_weights_are_coded_where_that_pays() -> None:
    size = PREFERENCES["size"]
    layers = _layers([6.0])
    # Weights that are all as frequent: a code saves nothing.
    layers.append((layer(geometry((1, 1), 512, 64), np.random.default_rng(1)), None))
    assert _kinds(layers, size) == ["coded_paired", "paired"]
    assert _kinds(layers, replace(size, coded=False)) == ["paired", "paired"]
    # A byte that is worth less than its decoding.
    assert _kinds(layers, replace(size, byte_cost=10.0)) == ["paired", "paired"]
    # What one small layer saves is less than the decoder takes; together they save enough.
    small = _layers([3.0] * 3, inputs=16)
    assert _kinds(small[:1], size) == ["narrow"]
    assert _kinds(small, size) == ["coded_paired"] * 3
    # Of many pixels each tile would decode all weights again.
    many = replace(layers[0][0], geometry=geometry((40, 40), 512, 64))
    assert _kinds([(many, None)], size) == ["paired"]


def test_preferences_are_those_of_build() -> None:
    assert tuple(PREFERENCES) == get_args(Goal)
    prices = [one.byte_cost for one in PREFERENCES.values()]
    assert prices == sorted(prices)
    assert [name for name, one in PREFERENCES.items() if one.coded] == ["size"]
    assert PREFERENCES["balanced"] == Preference()
    assert preference("size") == PREFERENCES["size"]
    assert preference(40) == Preference(40.0, coded=True)


# -- networks -------------------------------------------------------------------------------------


def _bell(w: Array) -> Array:
    return np.clip(np.round(np.random.default_rng(w.size).normal(0, 6, w.shape)), -127, 127)


_NET: dict[str, Layer] = {
    "fully connected": Layer((1, 256), (256, 64), "matmul (coded_paired)", change=_bell),
    "rounded once": Layer(
        (1, 250), (250, 67), "matmul (coded_paired)", change=_bell, rounding="single"
    ),
    "one factor": Layer((1, 256), (256, 64), "matmul (coded_paired)", change=_bell, uniform=True),
    "pointwise": Layer((1, 1, 2, 128), (64, 128, 1, 1), "conv2d (coded_paired)", change=_bell),
    "3x3": Layer(
        (1, 3, 3, 32), (48, 32, 3, 3), "conv2d (coded_paired)", pad=(1, 1, 1, 1), change=_bell
    ),
    "beyond int8": Layer((1, 200), (200, 50), "matmul (coded_wide)", largest=255),
    "a codebook": Layer((1, 200), (200, 50), "matmul (coded_paired)", shared=True),
    "dense": Layer((1, 4, 5, 16), (12, 16, 1, 1), "conv2d (paired)"),
    "depthwise": Layer(
        (1, 7, 6, 8), (8, 1, 3, 3), "depthwise_conv2d (wide)", pad=(1, 1, 1, 1), groups=8
    ),
}


@pytest.fixture(scope="module")
def net() -> tvm.IRModule:
    return module_of(_NET)


@pytest.fixture(scope="module")
def right(net: tvm.IRModule) -> list[dict[str, Array]]:
    judge = tc.build(net, target="reference", optimize="size")
    return [judge.run(sample) for sample in samples_of(_NET)]


@pytest.mark.parametrize("toolchain", ["zig", pytest.param("gnu", marks=pytest.mark.gnu)])
def test_coded_layers_on_the_board(
    net: tvm.IRModule, right: list[dict[str, Array]], toolchain: str
) -> None:
    flash = {}
    for optimize in get_args(Goal):
        built = tc.build(net, board="cortex-m4", toolchain=toolchain, optimize=optimize)
        assert isinstance(built, FirmwareArtifact)
        flash[optimize] = built.size.flash_bytes
        kinds = [one.kind for one in built.firmware.model.layers]
        assert any("coded" in kind for kind in kinds) == (optimize == "size")
        assert ("model_decoder.c" in built.files) == (optimize == "size")
        assert differing(_NET, built.run, right) == []
        if optimize == "size":
            assert kinds == [one.kind for one in _NET.values()]
    assert flash["size"] < 0.85 * flash["balanced"]
    assert flash["balanced"] <= flash["speed"]


def test_on_this_machine_nothing_is_coded(net: tvm.IRModule, right: list[dict[str, Array]]) -> None:
    built = tc.build(net, optimize="size")
    assert "model_decoder.c" not in built.files
    assert differing(_NET, built.run, right) == []


def test_the_decoder_is_the_models_own() -> None:
    """Two models link together: every symbol has its model's prefix, and there is one decoder."""
    one = {"fully connected": _NET["fully connected"], "again": _NET["one factor"]}
    for name in ("a", "Weight"):
        model = generate(module_of(one), name, dsp=True, optimize="size")
        text = model.files[f"{name}_decoder.c"] + model.files[f"{name}_decoder.h"]
        assert set(re.findall(r"\w*_decoder_read", text)) == {f"{name}_decoder_read"}
        assert "weight_decoder" not in text
        assert set(re.findall(r"bl (\w+)", model.files[f"{name}_kernels.s"])) == {
            f"{name}_decoder_read"
        }
        assert [file for file in model.files if "decoder" in file] == [
            f"{name}_decoder.h",
            f"{name}_decoder.c",
        ]


def test_layers_that_are_alike_share_code_and_table() -> None:
    one = replace(_NET["one factor"], weight=(256, 256))

    def describe(made: Net, x: Any) -> Any:
        return emit(made, emit(made, x, one, 1), one, 1)

    model = generate(network({"x": (one.x, "int8")}, describe), "net", dsp=True, optimize="size")
    assert model.files["net_kernels.s"].count("%function") == 1
    assert model.files["net_layers.c"].count("static const uint16_t") == 1


def test_sizes_that_do_not_fit_are_seen_when_a_layer_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a function decodes is held to what its stream is made of."""
    one = _peaked(layer(_SHAPES["one pixel"], np.random.default_rng(0)), 9)
    monkeypatch.setattr(Product, "pieces", property(lambda self: [(16, 1)]))
    with pytest.raises(AssertionError):
        Convolution(one, coded=True, layout="paired", pixels=1, unroll=16)


def test_all_layers_on_the_board_where_flash_is_scarce() -> None:
    mod = module_of(_LAYERS)
    judge = tc.build(mod, target="reference")
    built = tc.build(mod, board="cortex-m4", optimize="size")
    assert (
        differing(_LAYERS, built.run, [judge.run(sample) for sample in samples_of(_LAYERS)]) == []
    )


# Bytes of flash of the whole firmware, at most: 0.45, 0.25, 0.55 and 0.65 of what TensorFlow Lite
# Micro with CMSIS-NN takes on a Cortex-M4 (code, constants and the model).
_MLPERF_TINY = {
    "kws_dscnn_int8": 62_224,
    "vww_96_int8": 104_407,
    "ic_resnet8_int8": 97_732,
    "ad01_int8": 201_383,
}


@pytest.mark.parametrize("name", _MLPERF_TINY)
def test_networks_of_mlperf_tiny(name: str, shared_data: Path) -> None:
    mod = tc.load(shared_data / "mlperf_tiny" / f"{name}.tflite")
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).integers(-128, 128, (2, *spec.shape[1:])).astype(spec.dtype)
    built = tc.build(mod, board="mps2-an386", optimize="size")
    right = tc.build(mod, target="reference").run(x)
    for key, value in built.run(x).items():
        np.testing.assert_array_equal(value, right[key])
    assert built.size.flash_bytes <= _MLPERF_TINY[name]
    if name == "ad01_int8":
        assert built.size.ram_bytes <= 3200
