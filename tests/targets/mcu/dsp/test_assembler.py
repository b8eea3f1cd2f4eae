"""The assembler's constants and loops: accepted, exact and counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.targets.mcu.dsp.machine import assemble, call
from tvm_compress.targets.mcu.dsp.assembler import Assembler, AssemblyFunction, _encodable

_WORD = (1 << 32) - 1
_WORDS = st.one_of(
    st.integers(0, _WORD),
    st.integers(-5000, 5000),
    st.builds(lambda low, shift: low << shift, st.integers(0, 511), st.integers(0, 23)),
    st.builds(lambda low: low * 0x00010001, st.integers(0, 255)),
)
# At the borders of the instructions' immediates.
_EDGES = [0, 1, 255, 256, 4095, 4096, 4097, 0xFFFF, 0x10000, 0xFF00FF00, 0x01010101, -1, -4095]
_EDGES += [-4096, -4097, -0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFF0000, 0x00AB00AB, 0x12345678]


def _returning(out: Assembler) -> AssemblyFunction:
    """A function that stores r0 and r2 where r0 pointed to at first."""
    out.op("stm r12, {r0, r2}", "bx lr")
    return out.function(["void *x"])


def _start() -> Assembler:
    out = Assembler()
    out.op("mov r12, r0")
    return out


def _result(function: AssemblyFunction) -> tuple[list[int], int]:
    code = assemble({"f": function})["f"]
    assert len(code) <= function.code_bytes
    called = call(code, [np.zeros(2, np.uint32)], [0])
    assert called.instructions == function.instructions
    return called.buffers[0].tolist(), called.instructions


def _check_move(values: list[int]) -> None:
    for value in values:
        out = _start()
        out.op("mov r2, #0")
        out.move("r0", value)
        assert _result(_returning(out))[0][0] == value & _WORD


def _modified_immediates() -> set[int]:
    """All of Thumb-2's, from the manual's table (ARMv7-M, ThumbExpandImm)."""
    low = range(256)
    found = {f(i) for i in low for f in (lambda i: i, lambda i: i << 16 | i)}
    found |= {i << 24 | i << 8 for i in low} | {i * 0x01010101 for i in low}
    for rotation in range(8, 32):
        for i in range(128, 256):
            found.add((i >> rotation | i << (32 - rotation)) & _WORD)
    return found


def test_modified_immediates_are_those_of_the_manual() -> None:
    manual = _modified_immediates()
    assert all(map(_encodable, manual))
    others = [v ^ (1 << bit) for v in sorted(manual)[::7] for bit in (0, 9, 17, 31)]
    others += [int(v) for v in np.random.default_rng(0).integers(0, 1 << 32, 2000)]
    assert [v for v in others if _encodable(v) != (v in manual)] == []


@pytest.mark.parametrize("value", _EDGES)
def test_moves_at_the_borders(value: int) -> None:
    _check_move([value])


@given(_WORDS)
@settings(max_examples=40)
def test_move_gives_any_word(value: int) -> None:
    _check_move([value])


@given(st.integers(0, _WORD), st.one_of(_WORDS, st.sampled_from(_EDGES)), st.booleans())
@example(5, -8192, False)
@example(5, 0, True)
@settings(max_examples=60)
def test_add_gives_the_sum_modulo_a_word(start: int, value: int, same: bool) -> None:
    # What a kernel adds is a distance between two addresses.
    value = (value + (1 << 31)) % (1 << 32) - (1 << 31)
    out = _start()
    out.move("r0", start)
    out.move("r1", start)
    out.op("mov r2, #0")
    out.add("r0", "r0" if same else "r1", value, "r3")
    assert _result(_returning(out))[0][0] == (start + value) & _WORD


@pytest.mark.parametrize("value", [4096 + 5, -4096 - 5, 0xFF000 + 7, -0xFF000 - 7, 8192, -8192])
def test_add_without_a_scratch_register(value: int) -> None:
    out = _start()
    out.op("mov r2, #0")
    out.move("r1", 12345)
    out.add("r0", "r1", value)
    assert _result(_returning(out))[0][0] == (12345 + value) & _WORD


def test_add_without_a_scratch_register_says_what_it_wants() -> None:
    with pytest.raises(AssertionError, match="adding 1052929 needs a scratch register"):
        Assembler().add("r0", "r0", 0x101101)


@pytest.mark.parametrize(("times", "step"), [(1, 1), (2, 1), (3, 8), (100, 4), (70000, 1)])
def test_counted_loops_are_run_and_counted(times: int, step: int) -> None:
    out = _start()
    out.op("mov r0, #0", "mov r2, #0")
    with out.counted("r1", times, step):
        out.op("add r0, r0, #1")
    assert _result(_returning(out))[0][0] == times


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 5), (4, 1), (7, 9)])
def test_loops_within_loops_on_the_stack(outer: int, inner: int) -> None:
    out = _start()
    out.op("sub sp, sp, #16", "mov r0, #0", "mov r2, #0")
    with out.counted_on_stack(0, "r1", outer):
        with out.counted_on_stack(8, "r1", inner):
            out.op("add r0, r0, #1")
        out.op("add r2, r2, #1")
    out.op("add sp, sp, #16")
    (runs, rounds), _ = _result(_returning(out))
    assert (runs, rounds) == (outer * inner, outer)


def test_a_function_has_its_name_where_labels_are() -> None:
    out = _start()
    with out.counted("r1", 3):
        out.op("add r0, r0, #1")
    text = _returning(out).definition("model_k003")
    assert "model_k003:\n" in text
    assert ".Lmodel_k003_1:" in text
    assert "bne .Lmodel_k003_1" in text
    assert "@SYMBOL@" not in text
    assert out.function(["const void *x", "void *y"]).declaration("f") == (
        "void f(const void *x, void *y);\n"
    )


def test_functions_of_one_text_are_equal_whatever_they_cost() -> None:
    functions = []
    for times in (1.0, 2.5):
        out = Assembler()
        with out.repeat(times):
            out.op("nop")
        functions.append(out.function([]))
    assert functions[0] == functions[1]
    assert [f.instructions for f in functions] == [1.0, 2.5]
