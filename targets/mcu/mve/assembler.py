"""What functions with MVE are written with beside single instructions: loops without branches.

Source of the instructions: "Armv8-M Architecture Reference Manual" (Arm DDI 0553), Armv8.1-M.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm_compress.targets.mcu.dsp.assembler import Assembler

__all__ = ["VectorAssembler", "vectors"]

# How far a load or store of bytes reaches behind its register.
NEAR = 127


def vectors(first: int, count: int) -> str:
    """Give the list of ``count`` vector registers from ``first`` on, for VLDM.

    >>> vectors(0, 3)
    '{d0-d5}'
    """
    return f"{{d{2 * first}-d{2 * (first + count) - 1}}}"


class VectorAssembler(Assembler):
    """Collects the lines of one function that uses MVE."""

    @contextmanager
    def low_overhead(self, times: int) -> Iterator[None]:
        """Loop ``times`` times with the counter in lr: one instruction a round (DLS, LE)."""
        if times == 1:
            yield
            return
        self.move("lr", times)
        self.op("dls lr, lr")
        with self.repeat(times) as start:
            yield
            self.op(f"le lr, {start}")

    @contextmanager
    def bytes_of(self, count: int, scratch: str) -> Iterator[None]:
        """Loop over ``count`` bytes, 16 a round; in the last round the vectors are cut."""
        self.move(scratch, count)
        self.op(f"dlstp.8 lr, {scratch}")
        with self.repeat(-(-count // 16)) as start:
            yield
            self.op(f"letp lr, {start}")

    def copy(self, target: str, source: str, count: int, scratch: str) -> None:
        """Copy bytes; both addresses advance by ``count`` rounded up to 16; q0 is lost."""
        if count:
            with self.bytes_of(count, scratch):
                self.op(f"vldrb.u8 q0, [{source}], #16", f"vstrb.8 q0, [{target}], #16")

    def fill(self, target: str, value: int, count: int, scratch: str) -> None:
        """Fill bytes; the address advances by ``count`` rounded up to 16; q0 is lost."""
        if count:
            self.move(scratch, value & 0xFF)
            self.op(f"vdup.8 q0, {scratch}")
            with self.bytes_of(count, scratch):
                self.op(f"vstrb.8 q0, [{target}], #16")

    def load_words(self, source: str, registers: Sequence[str]) -> None:
        """Load words one behind the other, in the order of the registers' numbers."""
        if len(registers) == 1:  # a multiple load of one register is another instruction
            self.op(f"ldr {registers[0]}, [{source}], #4")
        else:
            self.op(f"ldm {source}!, {{{', '.join(registers)}}}")

    def push_words(self, target: str, registers: Sequence[str]) -> None:
        """Store words in front of an address, which goes down to the first one."""
        if len(registers) == 1:
            self.op(f"str {registers[0]}, [{target}, #-4]!")
        else:
            self.op(f"stmdb {target}!, {{{', '.join(registers)}}}")
