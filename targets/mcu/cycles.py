"""Model cycles and the instruction mix, from how often each instruction ran.

Two loops of as many instructions need not take as long: a load takes more than an addition, and a
taken branch refills the pipeline. So every instruction that ran is decoded once, and its row of
:data:`TABLE` says what it costs. The sum is called model cycles and never time: flash that waits,
caches and the bus are not in it.

Source of the table: "Cortex-M4 Technical Reference Manual" (Arm DDI 0439), instruction set
summary, for memory that does not wait. This is the one module that imports capstone.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_compress.errors import CompressError, MissingToolError
from tvm_compress.targets.mcu.engine import EDGES, JUMPS, PASSED, CodeMap

__all__ = ["CORES", "REFILL", "TABLE", "Cost", "Row", "count_costs", "watch"]

# The processors that get model cycles, all by the Cortex-M4's table: cores that decode Thumb-2 and
# run it in order. A Cortex-M0 multiplies and branches otherwise; MVE has no row.
CORES = frozenset({"cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33"})

# Cycles until the pipeline is full again where an instruction wrote the program counter.
REFILL = 2

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """One class of instructions and what one of them costs.

    Attributes:
        kind: the name of the class, as the instruction mix has it.
        mnemonics: regular expression of the mnemonic, without condition and width.
        cycles: of one that does not write the program counter; else :data:`REFILL` more.
        words: one cycle more for each 32-bit register of its list.
        behind: cycles directly behind another instruction of the row, where they differ.
        indexed: cycles with a register as offset, where they differ.
        accesses: it reads or writes memory.
    """

    kind: str
    mnemonics: str
    cycles: int
    words: bool = False
    behind: int | None = None
    indexed: int | None = None
    accesses: bool = False


# The first row that fits counts.
TABLE = (
    Row("load", r"ldr(s?[bh])?t?|ldrex[bh]?|ldaex?[bh]?", 2, behind=1, accesses=True),
    Row("store", r"str[bh]?t?|strex[bh]?|stlex?[bh]?", 1, indexed=2, accesses=True),
    Row("load double", r"ldrd", 3, accesses=True),
    Row("store double", r"strd", 3, accesses=True),
    Row("load multiple", r"ldm(ia|db|fd|ea)?|pop", 1, words=True, accesses=True),
    Row("store multiple", r"stm(ia|db|fd|ea)?|push", 1, words=True, accesses=True),
    Row("table branch", r"tb[bh]", 2, accesses=True),
    Row("branch", r"b(eq|ne|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?|bl|blx|bx|(blx|bx)ns|cbn?z", 1),
    Row("it", r"it[te]*", 1),
    Row("divide", r"[su]div", 7),
    Row("multiply", r"muls?|ml[as]|[su]mull|[su]mlal.*|umaal|sml[as].*|smm(ul|la|ls)r?|smu.*", 1),
    Row("extend", r"[su]xt.*|pkh(bt|tb)", 1),
    Row("float load", r"vldr", 1, words=True, accesses=True),
    Row("float store", r"vstr", 1, words=True, accesses=True),
    Row("float load multiple", r"vldm(ia|db)?|vpop", 1, words=True, accesses=True),
    Row("float store multiple", r"vstm(ia|db)?|vpush", 1, words=True, accesses=True),
    Row("float multiply-add", r"vf?n?m(la|ls|a|s)", 3),
    Row("float divide", r"vdiv|vsqrt", 14),
    Row("float", r"v.*", 1),
    Row("data processing", r".*", 1),
)

_CONDITIONAL = re.compile(r"b(eq|ne|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)|cbn?z")
_UNKNOWN_ROW = Row(UNKNOWN, r"", 0)
# Of RISC-V instructions are counted, and told apart by their length alone.
_RISCV_ROWS = (Row("16-bit", r"", 0), Row("32-bit", r"", 0))


@dataclass(frozen=True)
class Cost:
    """What the code of one owner cost.

    Attributes:
        instructions: that were executed, those that an IT block skipped included.
        model_cycles: None on a processor that is not in :data:`CORES`.
        mix: instructions by class, the rows of :data:`TABLE` that occurred, in its order.
    """

    instructions: int
    model_cycles: int | None
    mix: dict[str, int]


@dataclass(frozen=True)
class _Instruction:
    """A decoded instruction; places are halfwords from the start of the code.

    ``cycles`` are those of one that is neither skipped nor jumps. ``condition`` is its IT block
    and arm in it, where it has one. ``conditional`` is a branch that carries its own condition.
    """

    place: int
    end: int
    row: Row
    cycles: int
    writes_pc: bool
    conditional: bool
    condition: tuple[int, bool] | None = None


@functools.cache
def _decoder() -> Any:
    try:
        capstone = importlib.import_module("capstone")
    except ImportError as error:
        raise MissingToolError(
            "The disassembler capstone, which profiles need, is not installed. "
            "Install it with: pip install 'tvm-compress[boards]'."
        ) from error
    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
    return capstone.Cs(capstone.CS_ARCH_ARM, mode)


@functools.cache
def _row(mnemonic: str) -> Row:
    return next(row for row in TABLE if re.fullmatch(row.mnemonics, mnemonic))


def _halfword(code: bytes, place: int) -> int:
    return int.from_bytes(code[2 * place : 2 * place + 2], "little")


def _halfwords(code: bytes, place: int) -> int:
    """Give the halfwords of an instruction (Armv7-M Architecture Reference Manual, A5.1)."""
    return 2 if _halfword(code, place) >> 11 >= 0b11101 else 1


def _decode(code: bytes, place: int) -> _Instruction:
    """Decode one instruction by itself, so that no IT block puts a condition to its mnemonic."""
    size = _halfwords(code, place)
    data = code[2 * place : 2 * (place + size)]
    found = next(iter(_decoder().disasm_lite(data, 0, 1)), None)
    if found is None or found[1] != 2 * size:
        return _Instruction(place, place + size, _UNKNOWN_ROW, 0, False, False)
    mnemonic, operands = found[2].split(".", 1)[0], found[3]
    row = _row(mnemonic)
    cycles = row.cycles
    if row.words:
        # A list of registers, or the one register of VLDR; a double register has two words.
        registers = re.sub(r".*\{(.*)\}", r"\1", operands) if "{" in operands else operands
        names = registers.split(", ") if "{" in operands else [registers.split(",")[0]]
        cycles += sum(2 if name.startswith("d") else 1 for name in names)
    if row.indexed is not None and re.search(r"\[\w+, [a-z]", operands):
        cycles = row.indexed
    if row.kind in ("load multiple", "store multiple"):
        writes_pc = row.kind == "load multiple" and bool(re.search(r"\bpc\}", operands))
    elif row.kind in ("branch", "table branch"):
        writes_pc = True
    else:
        writes_pc = row.kind in ("load", "data processing") and operands.startswith("pc,")
    conditional = bool(_CONDITIONAL.fullmatch(mnemonic))
    return _Instruction(place, place + size, row, cycles, writes_pc, conditional)


def _block(code: bytes, place: int) -> Iterator[tuple[int, tuple[int, bool]]]:
    """The instructions that an IT instruction at ``place`` makes conditional: place, condition.

    Source: Armv7-M Architecture Reference Manual, A7.7.38: 1011 1111 condition mask. The lowest
    set bit of the mask ends the block; each bit above it is the lowest bit of the condition of
    the next instruction.
    """
    word = _halfword(code, place)
    if word >> 8 != 0xBF or not word & 15:
        return
    at = place + 1
    for number in range(4 - ((word & -word).bit_length() - 1)):
        if 2 * at >= len(code):
            return
        lowest = word >> 4 if number == 0 else word >> (4 - number)
        yield at, (place, bool(lowest & 1))
        at += _halfwords(code, at)


def watch(code: CodeMap) -> CodeMap:
    """The map with those instructions watched that access memory and that an IT block may skip.

    Where literals look like an IT instruction, more are watched than need be; this is harmless.

    Raises:
        MissingToolError: capstone is not installed.
    """
    watched = np.zeros(len(code.owners), np.bool_)
    if code.isa == "riscv":
        return code  # no instruction is skipped there
    for it in range(len(code.owners)):
        for place, _ in _block(code.code, it):
            if place < len(watched) and _decode(code.code, place).row.accesses:
                watched[place] = True
    return replace(code, watched=watched)


def _executed(code: CodeMap, ran: NDArray[np.bool_]) -> list[_Instruction]:
    """Decode all instructions that ran, in the order of their addresses."""
    found: list[_Instruction] = []
    wide = code.wide
    conditions: dict[int, tuple[int, bool]] = {}
    for start in np.flatnonzero(ran & ~np.r_[False, ran[:-1]]).tolist():
        place = start
        while place < len(ran) and ran[place]:
            if code.isa == "riscv":
                size = 2 if wide[place] else 1
                row = _RISCV_ROWS[size - 1]
                one = _Instruction(place, place + size, row, 0, False, False)
            else:
                one = _decode(code.code, place)
                conditions.update(_block(code.code, place))
            if place in conditions:
                one = replace(one, condition=conditions[place])
            found.append(one)
            place = one.end
    return found


def _is_behind(before: _Instruction, one: _Instruction) -> bool:
    """Whether ``one`` has the lower cost each time that the instruction before it ran."""
    return (
        one.row.behind is not None
        and before.row is one.row
        # Else the one at the lower address ran before it, and went on to it.
        and not before.writes_pc
        # In the other arm of an IT block, one of the two was skipped.
        and one.condition in (None, before.condition)
    )


def count_costs(
    code: CodeMap, counts: NDArray[np.int64], cpu: str, where: str = "the firmware"
) -> list[Cost]:
    """Give what the code of each owner cost.

    Every edge is exact: a branch was taken as often as other code than the next followed it, and
    an instruction that an IT block skipped costs a cycle. Two things cannot be seen. A branch to
    the very next instruction counts as one that was not taken. A division or a float
    multiply-add in an IT block costs in full even where it is skipped: QEMU shows no difference.

    Args:
        code: the map that was counted by, from :func:`watch`.
        counts: as in :class:`Execution`.
        cpu: the processor; one that is not in :data:`CORES` gets no model cycles.
        where: what ran, for the message.

    Returns:
        One for each owner, index as in ``code``.

    Raises:
        MissingToolError: capstone is not installed.
        CompressError: an instruction that ran cannot be decoded and the processor gets cycles.
    """
    executions = np.cumsum(counts[EDGES], axis=1)
    instructions = _executed(code, np.asarray(executions.any(axis=0), np.bool_))
    modelled = cpu in CORES
    unknown = [one for one in instructions if one.row is _UNKNOWN_ROW]
    if modelled and unknown:
        address = code.base + 2 * unknown[0].place
        word = code.code[2 * unknown[0].place : 2 * unknown[0].end].hex(" ", 2)
        raise CompressError(
            f"The instruction {word} at 0x{address:08x} of {where} cannot be decoded, so it has "
            "no model cycles. Install the version of capstone that tvm-compress pins, or report "
            "the model as a bug."
        )
    places = np.array([one.place for one in instructions], np.intp)
    ends = np.array([one.end for one in instructions], np.intp)
    watched = code.watched[places] & np.array([one.condition is not None for one in instructions])
    kinds = [row.kind for row in (*TABLE, *_RISCV_ROWS, _UNKNOWN_ROW)]
    kind_of = np.array([kinds.index(one.row.kind) for one in instructions], np.intp)
    cycles = np.array([one.cycles for one in instructions], np.int64)
    writes_pc = np.array([one.writes_pc for one in instructions], np.bool_)
    # Where it is not always, the jumps tell how often the pipeline was refilled.
    maybe = np.array([one.conditional or one.condition is not None for one in instructions])
    saved = np.zeros(len(instructions), np.int64)
    for index in range(1, len(instructions)):
        before, one = instructions[index - 1], instructions[index]
        if _is_behind(before, one) and one.row.behind is not None:
            # Counted where the one before ran: the next follows it, and not the other way round.
            saved[index - 1] = one.row.cycles - one.row.behind
    costs = []
    for owner in range(code.owner_count):
        ran = executions[owner, places]
        passed = np.where(watched, counts[PASSED, owner, places], ran)
        refills = np.where(maybe, counts[JUMPS, owner, ends], passed)
        total = int((passed * (cycles - saved)).sum() + (ran - passed).sum())
        total += REFILL * int(refills[writes_pc].sum())
        by_kind = np.zeros(len(kinds), np.int64)
        np.add.at(by_kind, kind_of, ran)
        mix = {kind: int(n) for kind, n in zip(kinds, by_kind.tolist(), strict=True) if n}
        costs.append(Cost(int(ran.sum()), total if modelled else None, mix))
    return costs
