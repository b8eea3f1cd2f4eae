"""Requantization in registers: byte by byte against the definitions, at the edges of a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.targets.mcu.dsp.layers import requantized
from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.ops.requantize import requantize_numpy
from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction
from tvm_compress.targets.mcu.dsp.requantize import Requantize

Array = NDArray[Any]


def _one(
    multiplier: int, shift: int, rounding: str = "double", zero_point: int = 0, **limits: int
) -> Requantize:
    """One factor for all channels."""
    m, s = (np.full(2, v, np.int32) for v in (multiplier, shift))
    low, high = limits.get("low", -128), limits.get("high", 127)
    return Requantize(m, s, zero_point, rounding, low, high)  # type: ignore[arg-type]


def _function(r: Requantize, channel: int, count: int, scaled: bool) -> AssemblyFunction:
    """Requantize ``count`` words at r0 to bytes at r1, with a channel's constants."""
    out = Assembler()
    out.op("push {r4-r8, lr}", "mov r12, r0", "mov r8, r1")
    places = ["r4", "r5", "r6"]
    own = places[: len(r.own(channel))]
    shared = [] if r.rounding == "double" and own else places[len(own) :][: len(r.shared)]
    constants = [*r.own(channel), *(r.shared if shared else [])]
    for register, value in zip([*own, *shared], constants, strict=True):
        out.move(register, value)
    out.move("r7", count)
    with out.repeat(count) as start:
        out.op("ldr r0, [r12], #4")
        r.emit(out, "r0", r.registers(own, shared, scaled), scaled)
        out.op("strb r0, [r8], #1", "subs r7, r7, #1", f"bne {start}")
    out.op("pop {r4-r8, pc}")
    return out.function(["const void *x", "void *y"])


def _run(cases: list[tuple[Requantize, int, Array, bool]]) -> list[Array]:
    functions = {
        f"f{i}": _function(r, channel, acc.size, scaled)
        for i, (r, channel, acc, scaled) in enumerate(cases)
    }
    codes = assemble(functions)
    results = []
    for i, (_, _, acc, scaled) in enumerate(cases):
        words = (acc * (256 if scaled else 1)).astype(np.int32)
        called = call(codes[f"f{i}"], [words, np.zeros(acc.size, np.int8)], [1])
        results.append(called.buffers[1])
    return results


def _check(cases: list[tuple[Requantize, int, Array, bool]]) -> None:
    for (r, channel, acc, _), actual in zip(cases, _run(cases), strict=True):
        assert r.refuses() is None
        m, s = r.multiplier[channel], r.shift[channel]
        one = replace(r, multiplier=np.array([m]), shift=np.array([s]))
        expected = requantized(one, acc.reshape(-1, 1))[:, 0]
        np.testing.assert_array_equal(actual, expected, f"{r} channel {channel}")
        operator = requantize_numpy(
            acc.astype(np.int32),
            np.asarray(m),
            np.asarray(s),
            zero_point=r.zero_point,
            rounding=r.rounding,
            low=r.low,
            high=r.high,
        )
        np.testing.assert_array_equal(operator, expected)


def _sums(r: Requantize, channel: int, largest: int, chance: np.random.Generator) -> Array:
    """Sums at the ends of what is admitted, around zero, and around every tie of the rounding."""
    m, s = int(r.multiplier[channel]), int(r.shift[channel])
    numbers = [-largest, 1 - largest, -largest // 2, largest // 2, largest - 1, largest]
    numbers += range(-6, 7)
    for target in (-129, -128.5, -100.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 99.5, 127.5, 128):
        here = round((target - r.zero_point * chance.integers(0, 2)) * 2 ** (31 - s) / m)
        numbers += range(here - 2, here + 3)
    numbers += chance.integers(-largest, largest + 1, 40).tolist()
    return np.array([n for n in numbers if abs(n) <= largest], np.int64)


_MULTIPLIERS = (1 << 30, (1 << 30) + 1, 0x5A827999, (1 << 31) - 2, (1 << 31) - 1)


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_rounding_twice_at_the_edges_for_all_shifts(zero_point: int) -> None:
    chance = np.random.default_rng(zero_point & 0xFF)
    cases = []
    for i, shift in enumerate(range(-22, 1)):
        r = _one(_MULTIPLIERS[i % 5], shift, "double", zero_point)
        full = (1 << 31) - 1 - int(r.most_added[0])
        scaled = (1 << 23) - 1
        cases += [(r, 0, _sums(r, 0, full, chance), False)]
        cases += [(r, 0, _sums(r, 0, scaled, chance), True)]
    _check(cases)


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_rounding_once_at_the_edges_for_all_shifts(zero_point: int) -> None:
    chance = np.random.default_rng(zero_point & 0xFF)
    cases = []
    for i, shift in enumerate(range(-16, -1)):
        r = _one((1, 12345, *_MULTIPLIERS)[i % 7], shift, "single", zero_point)
        cases += [(r, 0, _sums(r, 0, (1 << 31) - 1, chance), False)]
        cases += [(r, 0, _sums(r, 0, (1 << 23) - 1, chance), True)]
    _check(cases)


@pytest.mark.parametrize("rounding", ["single", "double"])
@pytest.mark.parametrize(("low", "high"), [(-128, 6), (-7, 127), (-20, 77), (0, 0), (-128, -127)])
def test_clamps(rounding: str, low: int, high: int) -> None:
    r = _one(0x5A827999, -7, rounding, 3, low=low, high=high)
    acc = np.concatenate([np.arange(-30000, 30000, 97), [-(1 << 22), 1 << 22]])
    _check([(r, 0, acc, False), (r, 0, acc, True)])


@given(st.data())
@settings(max_examples=25)
def test_factors_of_their_own(data: st.DataObject) -> None:
    rounding = data.draw(st.sampled_from(["single", "double"]))
    one = data.draw(st.integers(-16, -2))
    least = 1 << 30 if rounding == "double" else 1
    multipliers = st.integers(least, (1 << 31) - 1)
    shifts = st.integers(-22, -1) if rounding == "double" else st.just(one)
    pairs = data.draw(st.lists(st.tuples(multipliers, shifts), min_size=3, max_size=3, unique=True))
    m, s = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    zero_point = data.draw(st.integers(-128, 127))
    r = Requantize(m, s, zero_point, rounding, -128, 127)
    chance = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    most = (1 << 31) - 1 - int(r.most_added.max())
    _check([(r, c, _sums(r, c, most, chance), False) for c in range(3)])
    _check([(r, c, _sums(r, c, (1 << 23) - 1, chance), True) for c in range(3)])


def test_what_is_added_is_the_most_that_fits() -> None:
    # One more than the bound admits wraps around: the bound is no wider than it has to be.
    r = _one((1 << 31) - 1, -22, "double", 127)
    added = int(r.most_added[0])
    assert added == 1 + (1 << 21) + (127 << 22)
    high = np.array([(1 << 31) - added, (1 << 31) - added + 2], np.int64)
    (actual,) = _run([(r, 0, high, False)])
    assert actual.tolist() == [127, -128]


@pytest.mark.parametrize(
    ("r", "why"),
    [
        (_one(0, -5), "a multiplier is not positive"),
        (_one(-5, -5), "a multiplier is not positive"),
        (_one(1 << 30, -5, zero_point=128), "the zero point is not an int8"),
        (_one(1 << 30, -5, zero_point=-129), "the zero point is not an int8"),
        (_one(1 << 30, 1), "a shift is out of range"),
        (_one(1 << 30, -23), "a shift is out of range"),
        (replace(_one(1 << 30, 0), shift=np.array([0, -1])), "a shift is out of range"),
        (_one((1 << 30) - 1, -3), "a multiplier is not normalised"),
        (replace(_one(5, -3, "single"), shift=np.array([-3, -4])), "the shifts differ"),
        (_one(5, -1, "single"), "the shift is out of range"),
        (_one(5, -17, "single"), "the shift is out of range"),
        (_one(1 << 30, 0), None),
        (_one(1 << 30, -22), None),
        (_one(1, -2, "single"), None),
        (_one(1, -16, "single"), None),
    ],
)
def test_refusals(r: Requantize, why: str | None) -> None:
    assert r.refuses() == why
