"""Small building blocks of a kernel in TIR: local scalars, local arrays and loops with names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Cast, FloatImm, IntImm
from tvm.tirx.script import builder as T

__all__ = ["Expr", "Register", "array", "as_int", "loop", "register", "registers"]

Expr = Any


def as_int(value: Expr) -> Expr:
    """Give an integer as int32, in which all indices are computed."""
    return Cast("int32", value)


class Register:
    """A local scalar; C compilers keep it in a register."""

    def __init__(self, buffer: Expr) -> None:
        self._buffer = buffer

    def get(self) -> Expr:
        """Give its value."""
        return self._buffer[0]

    def set(self, value: Expr) -> None:
        """Emit an assignment."""
        T.buffer_store(self._buffer, value, [0])


def register(name: str, dtype: str = "float32", start: float | None = None) -> Register:
    """Make a local scalar, undefined without ``start``."""
    buffer = T.alloc_buffer((1,), dtype)
    IRBuilder.name(name, buffer)
    made = Register(buffer)
    if start is not None:
        made.set((FloatImm if dtype == "float32" else IntImm)(dtype, start))
    return made


def array(name: str, size: int, dtype: str) -> Expr:
    """Make a local array; a large one becomes scratch memory in the arena."""
    buffer = T.alloc_buffer((size,), dtype)
    IRBuilder.name(name, buffer)
    return buffer


def registers(name: str, count: int, dtype: str = "float32") -> list[Register]:
    """Make sums of 0."""
    return [register(f"{name}{i}", dtype, start=0) for i in range(count)]


@contextmanager
def loop(name: str, low: Expr, high: Expr) -> Iterator[Expr]:
    """Emit a loop over low <= index < high."""
    with T.serial(low, high) as index:
        IRBuilder.name(name, index)
        yield index
