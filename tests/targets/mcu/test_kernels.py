"""Kernels against plain loops in float64.

All numbers are small integers, so every sum is exact in float32 whatever its order, and results are
compared for equality.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax
from tvm.tirx import FloatImm

from tests.targets.mcu.nets import PREAMBLE, STRICT, call_c, execute, need
from tvm_compress.layouts import Bank, Block, DenseCodes, GapCodes
from tvm_compress.ops.meaning import MEANING
from tvm_compress.targets.mcu.emit import emit_function
from tvm_compress.targets.mcu.geometry import Geometry, geometry_of
from tvm_compress.targets.mcu.kernels import Epilogue, build_kernel
from tvm_compress.targets.mcu.weights import (
    Dense,
    PackedBanks,
    PackedBlocks,
    PackedCodes,
    PackedGaps,
    Source,
    stream_order,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One convolution: all sizes are (height, width); padding is (top, left, bottom, right)."""

    rank: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    inputs: int = 3  # of a group
    outputs: int = 2  # of a group
    batch: int = 1
    channels_last: bool = False

    @property
    def valid(self) -> bool:
        return all(
            self.size[i] + self.padding[i] + self.padding[2 + i]
            > (self.kernel[i] - 1) * self.dilation[i]
            for i in range(2)
        )

    def call(self) -> Any:
        channels, size = self.groups * self.inputs, self.size[2 - self.rank :]
        shape = (
            (self.batch, *size, channels) if self.channels_last else (self.batch, channels, *size)
        )
        weight = (self.groups * self.outputs, self.inputs, *self.kernel[2 - self.rank :])
        letters = "HW"[2 - self.rank :]
        operator = relax.op.nn.conv2d if self.rank == 2 else relax.op.nn.conv1d
        pads = self.padding if self.rank == 2 else (self.padding[1], self.padding[3])
        call = operator(
            relax.Var("x", relax.TensorType(shape, "float32")),
            relax.Var("w", relax.TensorType(weight, "float32")),
            strides=list(self.strides[2 - self.rank :]),
            dilation=list(self.dilation[2 - self.rank :]),
            padding=list(pads),
            groups=self.groups,
            data_layout=f"N{letters}C" if self.channels_last else f"NC{letters}",
            kernel_layout=f"OI{letters}",
        )
        return relax.BlockBuilder().normalize(call)


def by_loops(layer: Layer, x: Array, matrix: Array) -> Array:
    """The convolution, one output element after the other."""
    g = layer
    if g.channels_last:
        x = np.moveaxis(x, -1, 1)
    x = x.reshape(g.batch, g.groups * g.inputs, *g.size).astype(np.float64)
    weight = matrix.reshape(-1, g.inputs, *g.kernel).astype(np.float64)
    out_size = [
        (g.size[i] + g.padding[i] + g.padding[2 + i] - (g.kernel[i] - 1) * g.dilation[i] - 1)
        // g.strides[i]
        + 1
        for i in range(2)
    ]
    y = np.zeros((g.batch, g.groups * g.outputs, *out_size))
    for n, o, row, column in product(*map(range, y.shape)):
        first = o // g.outputs * g.inputs
        for kh, kw in product(range(g.kernel[0]), range(g.kernel[1])):
            h = row * g.strides[0] + kh * g.dilation[0] - g.padding[0]
            w = column * g.strides[1] + kw * g.dilation[1] - g.padding[1]
            if 0 <= h < g.size[0] and 0 <= w < g.size[1]:
                y[n, o, row, column] += x[n, first : first + g.inputs, h, w] @ weight[o, :, kh, kw]
    if g.rank == 1:
        y = y[:, :, 0]
    y = np.moveaxis(y, 1, -1) if g.channels_last else y
    return np.ascontiguousarray(y.astype(np.float32))


@dataclass(frozen=True)
class Packing:
    """How weights are stored, and how many are zero; ``bits`` 0 shares no weights.

    There are at most ``most_books`` codebooks, each for as many rows.
    """

    kind: str
    bits: int = 0
    gap_bits: int = 0
    density: float = 0.5
    empty_rows: float = 0.0
    seed: int = 0
    most_books: int = 1

    def make(self, rows: int, geometry: Geometry) -> tuple[Source, Array]:
        """Give the source and the dense matrix (rows, columns) that it stands for."""
        chance = np.random.default_rng(self.seed)
        shape = (rows, geometry.columns)
        keep = (chance.random(shape) < self.density) & (chance.random((rows, 1)) >= self.empty_rows)
        if not self.bits:
            matrix = (chance.integers(1, 9, shape) * chance.choice([-1, 1], shape) * keep) + 0.0
            matrix = matrix.astype(np.float32)
            if self.kind == "dense":
                return Dense(matrix), matrix
            if self.kind == "blocks":
                # Most blocks are zero throughout, so that some distances are bridged.
                ordered = stream_order(matrix, geometry)
                blocks = np.arange(ordered.shape[1]) // 4
                kept = chance.random((rows, blocks[-1] + 1)) < self.density
                ordered = ordered * kept[:, blocks] + np.float32(0)
                cube = ordered.reshape(rows, *geometry.kernel[::-1], geometry.inputs)
                matrix = np.ascontiguousarray(cube.transpose(0, 3, 2, 1).reshape(rows, -1))
                return PackedBlocks(Block.pack(ordered)), matrix
            gaps = GapCodes.pack_values(stream_order(matrix, geometry), self.gap_bits)
            assert gaps.values is not None
            return PackedGaps(gaps, gaps.values), matrix
        codes = (chance.integers(0, 1 << self.bits, shape) * keep).astype(np.uint8)
        books = max(n for n in range(1, self.most_books + 1) if rows % n == 0)
        levels = np.arange(1 << self.bits) - (1 << self.bits) // 2
        centroids = np.array([chance.permutation(levels) for _ in range(books)], np.float32)
        # Only where zeros are left out must code 0 be the zero.
        if self.kind in ("gaps", "banks"):
            centroids[:, 0] = 0
        matrix = np.take_along_axis(np.repeat(centroids, rows // books, 0), codes.astype(int), 1)
        centroids = centroids if books > 1 else centroids[0]
        if self.kind == "gaps":
            gaps = GapCodes.pack(stream_order(codes, geometry), self.gap_bits, self.bits)
            return PackedGaps(gaps, centroids), matrix
        if self.kind == "banks":
            return PackedBanks(Bank.pack(stream_order(codes, geometry)), centroids), matrix
        return PackedCodes(DenseCodes.pack(codes, self.bits), centroids), matrix


PACKINGS = [
    Packing("dense"),
    Packing("codes", bits=3),
    Packing("codes", bits=4),
    Packing("gaps", gap_bits=2),
    Packing("gaps", bits=4, gap_bits=4),
    Packing("gaps", bits=5, gap_bits=6),
    Packing("codes", bits=3, most_books=3),
    Packing("gaps", bits=4, gap_bits=4, most_books=3),
    Packing("banks", bits=4, density=0.2),
    Packing("banks", bits=3, most_books=3),
    Packing("blocks"),
]


def packings() -> st.SearchStrategy[Packing]:
    common = {
        "density": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
        "empty_rows": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 1 << 16),
        "most_books": st.integers(1, 4),
    }
    gap_bits = st.integers(1, 8)
    return st.one_of(
        st.builds(Packing, st.just("dense"), **common),
        st.builds(Packing, st.just("codes"), bits=st.integers(1, 8), **common),
        st.builds(Packing, st.just("gaps"), bits=st.integers(0, 8), gap_bits=gap_bits, **common),
        st.builds(Packing, st.just("banks"), bits=st.integers(1, 4), **common),
        st.builds(Packing, st.just("blocks"), **common),
    )


SIZES = st.one_of(st.integers(1, 9), st.sampled_from([11, 13, 16, 17, 19]))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    rank = draw(st.sampled_from([1, 2]))

    def pair(values: st.SearchStrategy[int], single: int = 1) -> tuple[int, int]:
        width = draw(values)
        return (draw(values) if rank == 2 else single), width

    pads = st.one_of(st.integers(0, 2), st.integers(0, 9))
    before, after = pair(pads, 0), pair(pads, 0)
    depthwise = draw(st.booleans())
    layer = Layer(
        rank=rank,
        size=pair(SIZES),
        kernel=pair(st.one_of(st.just(1), st.integers(1, 5))),
        strides=pair(st.integers(1, 3)),
        dilation=pair(st.integers(1, 3)),
        padding=(*before, *after),
        groups=draw(st.integers(1, 4)),
        inputs=1 if depthwise else draw(st.integers(1, 5)),
        outputs=draw(st.integers(1, 3)),
        batch=draw(st.sampled_from([1, 1, 2])),
        channels_last=draw(st.booleans()),
    )
    assume(layer.valid)
    return layer


def whole_numbers(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def identity(total: Any, elements: Any) -> Any:
    return total


def run_kernel(geometry: Geometry, source: Source, x: Array) -> Array:
    function, workspaces = emit_function(build_kernel(geometry, source, Epilogue(identity)), 1)
    weights = [operand.value for operand in source.operands()]
    return call_c(function, workspaces, [x, *weights], np.zeros(geometry.out_shape, np.float32))


def check_layer(layer: Layer, packing: Packing) -> None:
    call = layer.call()
    geometry = geometry_of(call)
    assert geometry is not None
    source, matrix = packing.make(geometry.outputs, geometry)
    x = whole_numbers(geometry.in_shape, packing.seed)
    expected = by_loops(layer, x, matrix)
    weight = matrix.reshape([int(n) for n in call.args[1].ty.shape.values])
    meaning = MEANING[call.op.name](call.attrs, x, weight).astype(np.float32)
    np.testing.assert_array_equal(meaning, expected)
    np.testing.assert_array_equal(run_kernel(geometry, source, x), expected)


# What a walk through the code says is hard; each with every way of storing weights.
HARD = {
    "1x1": Layer(2, (4, 5), (1, 1)),
    "1x1, one pixel": Layer(2, (1, 1), (1, 1), inputs=7),
    "1x1 in a row, every second pixel": Layer(1, (1, 9), (1, 1), strides=(1, 2)),
    "1x1 in a padded row": Layer(1, (1, 3), (1, 1), padding=(0, 2, 0, 1)),
    "1x1 in a column that begins with padding": Layer(
        2, (2, 3), (1, 1), strides=(4, 1), padding=(1, 0, 0, 0)
    ),
    "1x1 among padding wider than a tile": Layer(1, (1, 3), (1, 1), padding=(0, 9, 0, 9)),
    "3x1 among padding wider than a tile": Layer(
        2, (4, 3), (3, 1), padding=(1, 9, 1, 9), channels_last=True
    ),
    # TVM simplifies (1 - row) // 2 to row // -2, which is another number.
    "a dilated column that ends in padding": Layer(
        2, (2, 1), (1, 1), dilation=(2, 1), padding=(0, 0, 1, 0)
    ),
    "padding beyond the window": Layer(2, (3, 3), (2, 2), padding=(4, 5, 6, 3)),
    "a window larger than the input": Layer(2, (2, 2), (5, 4), padding=(2, 1, 2, 1)),
    "padding on the right alone": Layer(2, (4, 6), (3, 3), padding=(0, 0, 2, 2)),
    "padding on the left alone": Layer(2, (4, 6), (3, 3), padding=(2, 2, 0, 0)),
    "so wide that rows go pixel by pixel": Layer(1, (1, 26), (1, 11), padding=(0, 5, 0, 5)),
    "the same, padded on the right alone": Layer(1, (1, 26), (1, 21), padding=(0, 0, 0, 20)),
    "a prime width": Layer(2, (3, 19), (3, 3), padding=(1, 1, 1, 1)),
    "gaps in the window": Layer(2, (7, 9), (3, 3), (2, 2), (3, 2), (3, 2, 3, 2)),
    "windows that miss the input": Layer(1, (1, 1), (1, 2), (1, 1), (1, 3), (0, 4, 0, 4)),
    "one column of input, strided": Layer(2, (1, 1), (4, 4), (2, 2), (1, 1), (5, 5, 5, 5)),
    "depthwise": Layer(2, (6, 6), (3, 3), padding=(1, 1, 1, 1), groups=5, inputs=1, outputs=1),
    "depthwise, channels last": Layer(
        2,
        (6, 6),
        (3, 3),
        (2, 2),
        padding=(0, 0, 1, 1),
        groups=5,
        inputs=1,
        outputs=2,
        channels_last=True,
    ),
    "groups, two samples": Layer(2, (5, 4), (2, 3), padding=(0, 1, 1, 1), groups=3, batch=2),
    "groups of 1x1": Layer(2, (5, 4), (1, 1), groups=3, batch=2, channels_last=True),
    "a row, channels last": Layer(1, (1, 12), (1, 3), padding=(0, 1, 0, 1), channels_last=True),
    "many channels": Layer(2, (3, 3), (3, 3), padding=(1, 1, 1, 1), inputs=40),
}


@pytest.mark.parametrize(
    "packing", PACKINGS, ids=lambda p: f"{p.kind}{p.bits}{p.gap_bits}{p.most_books}"
)
@pytest.mark.parametrize("name", HARD)
def test_a_hard_convolution_is_exact(name: str, packing: Packing) -> None:
    check_layer(HARD[name], packing)


@settings(max_examples=150)
@given(layers(), packings())
def test_any_convolution_is_exact(layer: Layer, packing: Packing) -> None:
    check_layer(layer, packing)


@settings(max_examples=60)
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    inputs=st.one_of(st.integers(1, 9), st.sampled_from([16, 33, 300])),
    outputs=st.integers(1, 7),
    packing=packings(),
)
@example(lead=[], inputs=300, outputs=3, packing=Packing("gaps", bits=4, gap_bits=1, density=0.02))
@example(lead=[13], inputs=9, outputs=3, packing=Packing("gaps", bits=3, gap_bits=3))
@example(lead=[], inputs=300, outputs=3, packing=Packing("banks", bits=4, density=0.05))
@example(lead=[], inputs=1302, outputs=3, packing=Packing("blocks", density=0.01))
@example(lead=[2], inputs=1302, outputs=3, packing=Packing("blocks", density=0.01))
def test_any_product_is_exact(lead: list[int], inputs: int, outputs: int, packing: Packing) -> None:
    call = relax.BlockBuilder().normalize(
        relax.op.matmul(
            relax.Var("x", relax.TensorType((*lead, inputs), "float32")),
            relax.Var("w", relax.TensorType((inputs, outputs), "float32")),
        )
    )
    geometry = geometry_of(call)
    assert geometry is not None
    source, matrix = packing.make(outputs, geometry)
    x = whole_numbers(geometry.in_shape, packing.seed)
    expected = np.zeros((prod(lead), outputs), np.float64)
    for m, o in product(range(prod(lead)), range(outputs)):
        row = x.reshape(-1, inputs)[m]
        expected[m, o] = sum(float(a) * float(b) for a, b in zip(row, matrix[o], strict=True))
    np.testing.assert_array_equal(
        run_kernel(geometry, source, x), expected.reshape(*lead, outputs).astype(np.float32)
    )


@pytest.mark.parametrize("gap_bits", range(1, 9))
def test_every_width_of_an_entry(gap_bits: int) -> None:
    layer = Layer(1, (1, 5), (1, 40), padding=(0, 20, 0, 20), inputs=2)
    for bits in range(9):
        check_layer(layer, Packing("gaps", bits=bits, gap_bits=gap_bits, density=0.05, seed=bits))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 23])
def test_every_width_of_a_code(bits: int, columns: int) -> None:
    check_layer(Layer(2, (1, 1), (1, 1), inputs=columns), Packing("codes", bits, density=1.0))


def test_more_entries_than_16_bits_count() -> None:
    layer = Layer(1, (1, 1), (1, 1), inputs=9000, outputs=8)
    packing = Packing("gaps", bits=1, gap_bits=1, density=1.0)
    geometry = geometry_of(layer.call())
    assert geometry is not None
    source, matrix = packing.make(8, geometry)
    # Codes of one bit drawn with density 1 are ones at every second place.
    rows = next(o.value for o in source.operands() if o.name == "rows")
    assert rows.dtype == (np.uint32 if rows[-1] >= 1 << 16 else np.uint16)
    full = np.ones((8, 9000), np.uint8)
    packed = GapCodes.pack(full, 1, 1)
    wide = PackedGaps(packed, np.array([0, 2], np.float32))
    assert wide.operands()[1].value.dtype == np.uint32
    x = whole_numbers((1, 9000, 1), 5)
    expected = np.full((1, 8, 1), 2 * x.sum(), np.float32)
    np.testing.assert_array_equal(run_kernel(geometry, wide, x), expected)
    assert matrix.shape == (8, 9000)


@pytest.mark.parametrize("vectors", [1, 2])
def test_blocks_that_are_bridged(vectors: int) -> None:
    matrix = np.zeros((3, 4 * 600 + 2), np.float32)
    matrix[0, [1, -1]] = 3, 5
    matrix[2, -2:] = 7, 2
    call = relax.op.matmul(
        relax.Var("x", relax.TensorType((vectors, matrix.shape[1]), "float32")),
        relax.Var("w", relax.TensorType(matrix.shape[::-1], "float32")),
    )
    geometry = geometry_of(relax.BlockBuilder().normalize(call))
    assert geometry is not None
    packed = Block.pack(matrix)
    assert packed.gaps.tolist() == [0, 255, 255, 87, 255, 255, 88]
    x = whole_numbers(geometry.in_shape, 3)
    np.testing.assert_array_equal(
        run_kernel(geometry, PackedBlocks(packed), x), (x @ matrix.T).astype(np.float32)
    )


def test_stream_order_puts_the_channel_last() -> None:
    geometry = geometry_of(Layer(2, (5, 5), (2, 3), inputs=2, outputs=1).call())
    assert geometry is not None
    columns = list(product(range(2), range(2), range(3)))  # (channel, kh, kw)
    numbers = np.arange(12, dtype=np.float32)[None]
    order = [columns[int(i)] for i in stream_order(numbers, geometry)[0]]
    assert order == sorted(columns, key=lambda c: (c[2], c[1], c[0]))


# -- what follows the sum -------------------------------------------------------------------------


def chain(total: Any, elements: Any) -> Any:
    bias, residual, scalar = elements
    total = total + bias
    total = tvm.tirx.max(total, FloatImm("float32", -3.0))
    return (total - residual) * scalar


@pytest.mark.parametrize(
    "packing", PACKINGS, ids=lambda p: f"{p.kind}{p.bits}{p.gap_bits}{p.most_books}"
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_operands_of_the_epilogue_are_broadcast(
    packing: Packing, channels_last: bool, kernel: tuple[int, int]
) -> None:
    layer = Layer(
        2, (4, 5), kernel, groups=2, inputs=2, outputs=2, batch=2, channels_last=channels_last
    )
    geometry = geometry_of(layer.call())
    assert geometry is not None
    source, matrix = packing.make(geometry.outputs, geometry)
    x = whole_numbers(geometry.in_shape, 1)
    bias = whole_numbers((4,) if channels_last else (4, 1, 1), 2)
    # Of the sample's own: broadcast along the batch and the rows.
    residual = whole_numbers((1, *geometry.out_shape[1:]), 3)
    scalar = np.array(3, np.float32)
    operands = tuple((a.shape, "float32") for a in (bias, residual, scalar))
    function, workspaces = emit_function(
        build_kernel(geometry, source, Epilogue(chain, operands)), 1
    )
    weights = [operand.value for operand in source.operands()]
    out = np.zeros(geometry.out_shape, np.float32)
    actual = call_c(function, workspaces, [x, bias, residual, scalar, *weights], out)
    expected = (np.maximum(by_loops(layer, x, matrix) + bias, -3) - residual) * scalar
    np.testing.assert_array_equal(actual, expected)


# -- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packing", PACKINGS, ids=lambda p: f"{p.kind}{p.bits}{p.gap_bits}{p.most_books}"
)
def test_no_kernel_holds_all_weights_decoded(packing: Packing) -> None:
    layer = Layer(2, (8, 8), (3, 3), padding=(1, 1, 1, 1), inputs=16, outputs=32)
    geometry = geometry_of(layer.call())
    assert geometry is not None
    source, _ = packing.make(geometry.outputs, geometry)
    _, workspaces = emit_function(build_kernel(geometry, source, Epilogue(identity)), 1)
    # At most the decoded weights of one output channel: offsets, values and where taps start.
    assert sum(workspaces) <= geometry.columns * 8 + 4 * 16
    if packing.kind == "dense":
        assert not workspaces


def test_a_product_with_a_vector_needs_no_scratch() -> None:
    geometry = geometry_of(Layer(2, (1, 1), (1, 1), inputs=500, outputs=9).call())
    assert geometry is not None
    for packing in PACKINGS:
        source, _ = packing.make(9, geometry)
        _, workspaces = emit_function(build_kernel(geometry, source, Epilogue(identity)), 1)
        assert workspaces == ()


def test_kernels_run_by_stock_tvm_too() -> None:
    layer = HARD["gaps in the window"]
    geometry = geometry_of(layer.call())
    assert geometry is not None
    for packing in PACKINGS:
        source, matrix = packing.make(geometry.outputs, geometry)
        function = build_kernel(geometry, source, Epilogue(identity))
        mod = tvm.IRModule({"k": function.with_attr("global_symbol", "k")})
        compiled = tvm.compile(mod, "llvm")
        x = whole_numbers(geometry.in_shape, 7)
        out = tvm.runtime.tensor(np.full(geometry.out_shape, np.nan, np.float32))
        arrays = [x, *(operand.value for operand in source.operands())]
        compiled["k"](*(tvm.runtime.tensor(a) for a in arrays), out)
        np.testing.assert_array_equal(out.numpy(), by_loops(layer, x, matrix))


def test_no_byte_out_of_bounds_and_no_undefined_behaviour(tmp_path: Path) -> None:
    """All hard layers in one program: each array lies in a block of the heap of just its size."""
    compiler = need("gcc")
    parts, calls, data = [PREAMBLE, "#include <stdlib.h>\n#include <stdio.h>\n"], [], b""
    parts.append(
        "static void *take(FILE *f, size_t n) { void *p = malloc(n ? n : 1);\n"
        "  if (!p || fread(p, 1, n, f) != n) abort();\n  return p; }\n"
    )
    for layer, packing in product(HARD.values(), PACKINGS):
        geometry = geometry_of(layer.call())
        assert geometry is not None
        source, matrix = packing.make(geometry.outputs, geometry)
        function, workspaces = emit_function(build_kernel(geometry, source, Epilogue(identity)), 1)
        x = whole_numbers(geometry.in_shape, 9)
        expected = by_loops(layer, x, matrix)
        name = f"k{len(calls)}"
        parts.append(function.definition(name))
        arrays = [x, *(operand.value for operand in source.operands()), expected]
        data += b"".join(a.tobytes() for a in arrays)
        places = [f"p{i}" for i in range(len(arrays))]
        lines = [f"void *p{i} = take(f, {a.nbytes});" for i, a in enumerate(arrays)]
        lines += [f"void *y = malloc({expected.nbytes});"]
        lines += [f"void *s{i} = malloc({size});" for i, size in enumerate(workspaces)]
        scratch = [f"s{i}" for i in range(len(workspaces))]
        lines += [f"{name}({', '.join([*places[:-1], 'y', *scratch])});"]
        lines += [f"if (memcmp(y, {places[-1]}, {expected.nbytes})) return {len(calls) % 200 + 1};"]
        lines += [f"free({p});" for p in (*places, "y", *scratch)]
        calls.append(f"static int run_{name}(FILE *f) {{ {' '.join(lines)} return 0; }}\n")
    parts += calls
    body = " ".join(
        f'if ((r = run_k{i}(f)) != 0) {{ printf("kernel {i}\\n"); return r; }}'
        for i in range(len(calls))
    )
    parts.append(
        f'int main(void) {{ int r; FILE *f = fopen("data", "rb"); {body} return fclose(f); }}\n'
    )
    (tmp_path / "all.c").write_text("".join(parts))
    (tmp_path / "data").write_bytes(data)
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
    execute([compiler, *STRICT, "-O0", *sanitize, "all.c", "-o", "all", "-lm"], tmp_path)
    execute([tmp_path / "all"], tmp_path)
