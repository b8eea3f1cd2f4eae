"""Compressed weights with MVE: bytes against plain sums, streams read back, and what is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import relax

import tvm_compress as tc
from tests.targets.mcu.dsp.layers import expected, geometry, layer, pixels
from tests.targets.mcu.mve.machine import Case, check
from tests.targets.mcu.mve.strategies import convolutions, layers, product
from tests.targets.mcu.mve.test_convolution import TOOLS
from tests.targets.mcu.mve.test_groups import Emit, module
from tvm_compress.ops.requantize import quantize_multiplier, requantize
from tvm_compress.targets.mcu.dsp.layer import IntegerLayer
from tvm_compress.targets.mcu.geometry import Geometry
from tvm_compress.targets.mcu.mve import mve_kernel
from tvm_compress.targets.mcu.mve.assembler import VectorAssembler
from tvm_compress.targets.mcu.mve.compressed import (
    LAYOUTS,
    ROUNDS,
    SUMS,
    Compressed,
    compressed_forms,
    spread,
)
from tvm_compress.targets.mcu.mve.convolution import VectorConvolution

Array = NDArray[Any]


def thinned(weights: Array, kind: str, share: float, chance: np.random.Generator) -> Array:
    """Keep a share of weights: of all alike, of channels unlike, of blocks of 4, of banks of 16."""
    outputs, size = weights.shape
    if kind == "banks":
        banks = np.pad(weights, ((0, 0), (0, -size % 16))).reshape(outputs, -1, 16)
        order = chance.permuted(np.broadcast_to(np.arange(16), banks.shape), axis=2)
        return np.where(order < share * 16, banks, 0).reshape(outputs, -1)[:, :size]
    if kind == "blocks":
        kept = np.repeat(chance.random((outputs, -(-size // 4))) < share, 4, axis=1)[:, :size]
    elif kind == "unlike":
        kept = chance.random(weights.shape) < 2 * share * chance.random((outputs, 1))
    else:
        kept = chance.random(weights.shape) < share
    return np.where(kept, weights, 0)


def compressed(
    one: IntegerLayer, kind: str, share: float, few: bool, chance: np.random.Generator
) -> IntegerLayer:
    """The same layer with fewer weights, and where ``few`` with at most 16 different ones."""
    weights = np.round(one.weights / 17) * 9 if few else one.weights
    places = VectorConvolution(one).places()
    found = np.empty_like(one.weights)
    found[:, places] = thinned(weights[:, places], kind, share, chance)
    return replace(one, weights=found)


def cases(name: str, one: IntegerLayer, chance: np.random.Generator) -> list[Case]:
    """All forms of a layer but the dense one, each in place where it says that it may."""
    x = pixels(one.geometry, chance)
    y = expected(one, x)
    found = []
    for kernel in VectorConvolution.forms(one)[1:]:
        assert kernel.compressed is not None
        over = kernel.function().in_place == (0,)
        assert kernel.stream_bytes == kernel.stream().nbytes
        full = f"{name}: {kernel.layout} {kernel.compressed.rounds}"
        found.append(Case(full, kernel, [x], y, bool(chance.integers(2)), over))
    return found


# With the kind of weights, the share that is kept, and whether at most 16 are different.
WAYS: dict[str, tuple[Geometry, str, float, bool]] = {
    "pointwise": (geometry((2, 3), 64, 20), "all", 0.1, True),
    "pointwise, 4 of 16": (geometry((2, 3), 64, 18), "banks", 0.25, True),
    "pointwise, one of 16": (geometry((2, 2), 256, 7), "banks", 1 / 16, True),
    "three of 16, and a bank too few": (geometry((2, 2), 144, 13), "banks", 3 / 16, True),
    "three of 16 to the last input": (geometry((1, 2), 80, 13), "banks", 3 / 16, True),
    "three of 16 to the very last": (product(1, 160, 6), "banks", 3 / 16, True),
    "eight of 16 with an end": (geometry((2, 2), 41, 9), "banks", 0.5, True),
    "few inputs": (geometry((3, 2), 5, 7), "unlike", 0.3, True),
    "strides without a window": (geometry((5, 7), 20, 10, strides=(2, 3)), "unlike", 0.2, False),
    "blocks at odd addresses": (geometry((3, 3), 23, 9), "blocks", 0.3, True),
    "more outputs than bytes": (product(1, 40, 260), "unlike", 0.2, False),
    "all outputs that a byte reaches": (product(2, 20, 256), "unlike", 0.2, False),
    "moving places": (product(1, 450, 13), "unlike", 0.15, True),
    "far blocks": (product(1, 1200, 7), "blocks", 0.15, False),
    "many vectors": (product(1, 600, 4), "unlike", 0.4, False),
    "windows": (geometry((5, 4), 60, 12, (3, 3), before=(1, 1)), "unlike", 0.1, True),
    "blocks of windows": (geometry((4, 4), 6, 12, (3, 3), before=(1, 1)), "blocks", 0.3, True),
    "dilated windows": (geometry((6, 9), 7, 9, (3, 3), dilation=(2, 3)), "all", 0.3, True),
    "every weight": (geometry((3, 4), 9, 14, (3, 2)), "all", 1.0, True),
}


@pytest.mark.qemu
@pytest.mark.parametrize("tool", TOOLS)
def test_every_form_gives_the_exact_bytes(tool: str) -> None:
    chance = np.random.default_rng(1)
    found = []
    for i, (name, (g, *how)) in enumerate(WAYS.items()):
        one = layer(g, chance, rounding=("double", "single")[i % 2])
        found += cases(name, compressed(one, *how, chance), chance)
    for layout in LAYOUTS:  # each in every way that it can be written
        ways = {case.name.split()[-1] for case in found if f" mve_{layout} " in case.name}
        assert ways == ({"unrolled", "looped"} if layout in EVEN else set(ROUNDS)), layout
    for part in (found[::2], found[1::2]):  # more than flash holds
        check(part, tool)


# Layouts of which every channel takes the same.
EVEN = ("bank", "dense_codes")

HOW = st.tuples(
    st.sampled_from(["all", "unlike", "blocks", "banks"]), st.floats(0.02, 0.6), st.booleans()
)


@pytest.mark.qemu
@given(
    st.lists(st.tuples(layers(convolutions(), (127,)), HOW), min_size=8, max_size=8),
    st.integers(0, 1 << 16),
)
@settings(max_examples=3, deadline=None)
def test_any_layer_gives_the_exact_bytes(many: list[tuple[IntegerLayer, Any]], seed: int) -> None:
    chance = np.random.default_rng(seed)
    found = []
    for one, how in many:
        thin = compressed(one, *how, chance)
        found += cases(f"{thin.geometry} {how}", thin, chance)
    check(found)


# -- streams ---------------------------------------------------------------------------------------


def read_back(form: Compressed, channels: list[int], stream: Array) -> tuple[Array, Array]:
    """Give the weights and biases (in the order of the sums) that a stream means."""
    layout = form.layout
    outputs, size = layout.weights.shape
    data = stream.astype("<u4").tobytes()
    weights = np.zeros((outputs, size + 512), np.int64)
    bias = np.zeros(outputs, np.int64)
    place = 0

    def take(dtype: str, count: int) -> Array:
        nonlocal place
        found = np.frombuffer(data, dtype, count, place)
        place += found.nbytes
        return found.astype(np.int64)

    def put(channel: int, places: Array, values: Array) -> None:
        np.add.at(weights[channel], places, values)

    def coded(count: int) -> Array:
        half = take("u1", count // 2)
        return layout.values.astype(np.int64)[np.stack([half & 15, half >> 4], 1).reshape(-1)]

    banks = take("u1", 16) if layout.name == "bank" else None
    end = outputs
    while end:
        group = channels[max(end - 6, 0) : end]
        end -= len(group)
        bias[end : end + len(group)] = take("<i4", len(group))
        count = form.groups(channels)[0][1]
        step = layout.step(count or 0)
        if form.rounds == "own" and form.own_step:
            count, step = take("<u2", 2).tolist()
        elif form.rounds == "own":
            (count,) = take("<u4", 1)
        for i in range(count or 0):
            base = i * step
            if layout.name == "gaps":
                for three in (group[:3], group[3:]):
                    places = take("u1", 16 * len(three)).reshape(-1, 16)
                    values = take("i1", 16 * len(three)).reshape(-1, 16)
                    for channel, p, w in zip(three, places, values, strict=True):
                        put(channel, base + p, w)
            elif layout.name.startswith("half"):
                pairs = -(-len(group) // 2)
                few = layout.name == "half_gap_codes"
                places = take("u1", 16 * pairs).reshape(-1, 8)
                values = (coded(16 * pairs) if few else take("i1", 16 * pairs)).reshape(-1, 8)
                for channel, p, w in zip(group, places, values, strict=False):
                    put(channel, base + p, w)
                assert not values[len(group) :].any()
            elif layout.name == "gap_codes":
                places = take("u1", 16 * len(group)).reshape(-1, 16)
                for channel, p in zip(group, places, strict=True):
                    put(channel, base + p, coded(16))
            elif layout.name == "blocks":
                values = take("i1", 16 * len(group)).reshape(-1, 16)
                for channel, w in zip(group, values, strict=True):
                    put(channel, (base + 4 * take("u1", 4)[:, None] + np.arange(4)).ravel(), w)
            elif layout.name == "block_codes":
                for channel in group:
                    p = (base + 4 * take("u1", 4)[:, None] + np.arange(4)).ravel()
                    put(channel, p, coded(16))
            elif banks is not None:
                for channel, e in zip(
                    group, take("u1", 16 * len(group)).reshape(-1, 16), strict=True
                ):
                    put(channel, base + (banks | e >> 4), layout.values.astype(np.int64)[e & 15])
            else:
                for channel in group:
                    put(channel, base + np.arange(16), coded(16))
    assert place == len(data)
    assert not weights[:, size:].any()
    return weights[:, :size], bias


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_streams_are_the_weights(data: st.DataObject) -> None:
    size, outputs = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 20))
    kind, share, few = data.draw(HOW)
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 16)))
    weights = chance.integers(-7, 8, (outputs, size)) * (9 if few else 1)
    if not few:
        weights = chance.integers(-128, 128, (outputs, size))
    weights = thinned(weights, kind, share, chance)
    bias = chance.integers(-1 << 31, 1 << 31, outputs)
    for form in compressed_forms(weights):
        channels = form.order(chance.permutation(outputs).tolist())
        assert sorted(channels) == list(range(outputs))
        stream = form.stream(channels, bias)
        assert stream.nbytes == form.stream_bytes(channels)
        got, biases = read_back(form, channels, stream)
        np.testing.assert_array_equal(got, weights, f"{form.name} {form.rounds}")
        np.testing.assert_array_equal(biases, bias[channels])


def matched(places: list[int], starts: list[int], room: int) -> bool:
    """Whether all places find a vector: augmenting paths, without any idea of order."""
    taken: dict[tuple[int, int], int] = {}

    def find(place: int, seen: set[tuple[int, int]]) -> bool:
        for i, start in enumerate(starts):
            for seat in range(room):
                if start <= place < start + 256 and (i, seat) not in seen:
                    seen.add((i, seat))
                    if (i, seat) not in taken or find(taken[i, seat], seen):
                        taken[i, seat] = place
                        return True
        return False

    return all(find(place, set()) for place in places)


@given(
    st.integers(1, 900).flatmap(
        lambda size: st.tuples(
            st.just(size), st.lists(st.integers(0, size - 1), max_size=12, unique=True)
        )
    ),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_places_are_spread_wherever_they_can_be(
    window: tuple[int, list[int]], count: int, room: int
) -> None:
    size, places = window[0], sorted(window[1])
    step = -(-max(size - 256, 0) // (count - 1)) if count > 1 else 0
    starts = [i * step for i in range(count)]
    found = spread(places, size, count, room)
    if found is None:
        gap = step > 256 or (count == 1 and size > 256)
        assert gap or not matched(places, starts, room)
        return
    assert len(found) == count and [place for part in found for place in part] == places
    for start, part in zip(starts, found, strict=True):
        assert len(part) <= room
        assert all(start <= place < start + 256 for place in part)


# -- what is offered and what is chosen ------------------------------------------------------------


def offered(weights: Array) -> set[str]:
    return {form.name for form in compressed_forms(weights)}


def test_forms_are_those_that_the_weights_allow() -> None:
    chance = np.random.default_rng(2)
    many = chance.integers(1, 127, (12, 128))
    few = chance.integers(1, 16, (12, 128))
    assert offered(many) == set()
    assert offered(few) == {"dense_codes"}
    assert offered(few + (few == 1) * 15) == {"dense_codes"}  # 15 values and the zero
    assert offered(np.where(few == 1, -1, few) + (few == 2) * 30) == {"dense_codes"}
    assert offered(chance.permuted(np.arange(12 * 128).reshape(12, 128) % 17 + 1)) == set()
    thin = thinned(many, "banks", 0.25, chance)
    assert offered(thin) == {"gaps", "half_gaps", "blocks"}
    assert offered(thinned(few, "banks", 0.5, chance)) == set(LAYOUTS)
    unbanked = few.copy()
    unbanked[:, 9:] = 0  # nine of the first bank
    assert offered(unbanked) == set(LAYOUTS) - {"bank"}
    assert offered(np.where(thin == 0, 0, 254)) == set()  # no int8
    zeros = np.zeros((3, 20), np.int64)
    assert "gaps" in offered(zeros)


def test_a_window_that_places_cannot_reach_has_no_such_form() -> None:
    weights = np.zeros((2, 70_000), np.int64)
    weights[:, ::17] = 1  # more than 256 vectors
    assert "gaps" not in offered(weights)
    assert "bank" not in offered(weights)


def chosen(one: IntegerLayer, byte_cost: float = 16.0) -> str:
    kernel = mve_kernel(one, byte_cost)
    assert kernel is not None
    return kernel.layout


def test_the_cheapest_form_is_chosen() -> None:
    chance = np.random.default_rng(3)
    dense = layer(geometry((5, 5), 64, 64), chance)
    assert chosen(dense) == chosen(dense, 1e9) == "mve"

    def of(kind: str, share: float, few: bool, one: IntegerLayer = dense) -> IntegerLayer:
        return compressed(one, kind, share, few, chance)

    assert chosen(of("all", 0.9, False)) == "mve"
    many = layer(product(1, 640, 128), chance)
    # Speed takes the fewest instructions, scarce flash vectors that are emptied less.
    assert chosen(of("all", 0.1, False, many), 0.01) == "mve_gaps"
    assert chosen(of("all", 0.1, False, many)) == "mve_half_gaps"
    assert chosen(of("all", 0.2, True, many), 0.01) == "mve_gaps"
    assert chosen(of("all", 0.2, True, many), 0.5) == "mve_gap_codes"
    assert chosen(of("all", 0.1, True, many)) == "mve_half_gap_codes"
    assert chosen(of("blocks", 0.2, False, many)) == "mve_blocks"
    assert chosen(of("blocks", 0.2, True, many)) == "mve_block_codes"
    assert chosen(of("banks", 0.25, True, many)) == "mve_bank"
    assert chosen(of("all", 1.0, True, many)) == "mve_dense_codes"
    assert chosen(of("all", 1.0, True, many), 0.01) == "mve"
    few = layer(geometry((1, 1), 64, 64), chance)
    assert chosen(of("all", 0.07, False, few)) == "mve_half_gaps"
    assert chosen(of("all", 0.07, True, few), 1024) == "mve_half_gap_codes"


def test_a_vector_costs_what_the_documentation_says() -> None:
    # Of 16 weights: instructions in groups of six channels, bytes of the stream.
    costs = {
        "gaps": (14 / 6, 32),
        "gap_codes": (25 / 6, 24),
        "half_gaps": (14 / 3, 32),
        "half_gap_codes": (20 / 3, 24),
        "blocks": (19 / 6, 20),
        "block_codes": (5, 12),
        "bank": (25 / 6, 16),
        "dense_codes": (19 / 6, 8),
    }
    weights = np.zeros((12, 32), np.int64)
    found = set()
    for form in compressed_forms(weights):
        layout, out = form.layout, VectorAssembler()
        for first in range(0, len(SUMS), layout.chunk):
            layout.emit(out, SUMS[first : first + layout.chunk])
        share = 1 if form.name.startswith("half") else 2  # of the channels' vectors
        instructions = out.function([]).instructions / len(SUMS) * 2 / share
        assert (instructions, layout.size_bytes(6) / 6 * 2 / share) == pytest.approx(
            costs[form.name]
        )
        found.add(form.name)
    assert found == set(costs)


def test_sparse_layers_take_fewer_instructions_than_dense_ones() -> None:
    chance = np.random.default_rng(4)
    for g, most in ((geometry((5, 5), 64, 64), 0.65), (product(1, 640, 128), 0.33)):
        one = layer(g, chance)
        kernel = mve_kernel(compressed(one, "all", 0.1, False, chance), 0.1)
        dense = VectorConvolution(one).function().instructions
        assert kernel is not None and kernel.function().instructions < most * dense


def test_where_an_output_may_take_the_place_of_an_input() -> None:
    chance = np.random.default_rng(5)
    for outputs, over in ((20, True), (21, False)):
        one = compressed(layer(geometry((3, 3), 20, outputs), chance), "all", 0.2, True, chance)
        kernels = VectorConvolution.forms(one)
        assert {kernel.mode for kernel in kernels} == {"pixels", "gather"}
        assert {kernel.function().in_place for kernel in kernels} == {(0,) if over else ()}


@pytest.mark.qemu
def test_a_network_of_compressed_weights_gives_the_bytes_of_the_reference() -> None:
    chance = np.random.default_rng(6)

    def dense(emit: Emit, x: Any, name: str, weights: Array) -> Any:
        weight = emit(relax.const(weights.astype(np.int8), "int8"), name)
        total = emit(relax.op.matmul(x, weight, out_dtype="int32"))
        bias = chance.integers(-900, 900, weights.shape[1]).astype(np.int32)
        total = emit(relax.op.add(total, relax.const(bias, "int32")))
        factor = quantize_multiplier(0.01, "single")
        return emit(requantize(total, *factor, rounding="single", zero_point=-3))

    def network(emit: Emit, x: Any, y: Any) -> Any:
        sparse = thinned(chance.integers(-127, 128, (90, 300)), "all", 0.1, chance).T
        few = thinned(9 * chance.integers(-7, 8, (40, 90)), "banks", 0.25, chance).T
        return dense(emit, dense(emit, x, "sparse", sparse), "few", few)

    mod = module(network, (1, 300))
    x = {"x": chance.integers(-128, 128, (3, 300)).astype(np.int8)}
    x["y"] = np.zeros_like(x["x"])
    reference = tc.build(mod, target="reference").run(x)
    kinds = {}
    for optimize in ("speed", "balanced", "size"):
        board = tc.build(mod, target="c", board="mps3-an547", optimize=optimize)
        for name, value in board.run(x).items():
            np.testing.assert_array_equal(value, reference[name])
        profile = board.profile({k: v[:1] for k, v in x.items()})
        kinds[optimize] = [layer.kind for layer in profile.layers[1:]]
    assert kinds["speed"][0] == "matmul (mve_half_gaps)"
    assert kinds["balanced"][1] == kinds["size"][1] == "matmul (mve_bank)"
