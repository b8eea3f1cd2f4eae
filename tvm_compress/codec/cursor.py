"""Reading and writing small numbers, never behind the end."""

from __future__ import annotations

__all__ = ["Cursor", "Damaged", "varint"]


class Damaged(Exception):
    """The bytes cannot be what a writer wrote; the section's name is added where it is known."""


def varint(value: int) -> bytes:
    """Give a number as bytes of seven bits, the lowest first, all but the last with bit 7 set.

    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """A place in bytes that moves on with every read.

    Raises:
        Damaged: from every method, where the bytes end before what is asked for.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes that were not read."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Give the next ``count`` bytes."""
        if count > self.left:
            raise Damaged(f"it ends {count - self.left} bytes early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """Give the next byte."""
        return self.take(1)[0]

    def varint(self, digits: int = 5) -> int:
        """Give the next number, of at most ``digits`` bytes and in its shortest form."""
        value = 0
        for shift in range(0, 7 * digits, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise Damaged("a number is longer than it needs to be")
                return value
        raise Damaged("a number is too long")
