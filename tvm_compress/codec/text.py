"""An adaptive model of short byte strings: what codes the graph section.

A byte is coded bit by bit from the top. Each bit is predicted from the 0 to 6 bytes before it and
from where the longest known string went on; the predictions are mixed in the logistic domain as in
:mod:`tvm_compress.codec.bits`, but bit after bit, for a graph is a few hundred bytes. All numbers
are whole, so every machine codes the same.

The arithmetic coder keeps a range of 32 bits and writes a byte as soon as its ends agree on it
(Witten, Neal, Cleary, "Arithmetic coding for data compression", 1987).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm_compress.codec.bits import logit_tables
from tvm_compress.codec.cursor import Damaged

__all__ = ["pack_text", "unpack_text"]

_ORDERS = (0, 1, 2, 3, 4, 6)
_INPUTS = len(_ORDERS) + 1
_MATCH_LENGTH = 4
_COUNT_LIMIT = 60
_BUCKETS = 7


class _Model:
    """Predicts the next bit and learns it."""

    def __init__(self) -> None:
        stretch, squash = logit_tables()
        self._stretch, self._squash = stretch.tolist(), squash.tolist()
        self._limit = len(self._squash) // 2
        # Of each context: [chance of a 1 of 65536, bits seen].
        self._seen: dict[tuple[int, bytes, int], list[int]] = {}
        self._weights = [[22000] * _BUCKETS for _ in range(_INPUTS)]
        self._history = bytearray()
        self._places: dict[bytes, int] = {}
        self._match = 0  # where the byte after the longest known string stands, or 0
        self._match_length = 0
        self._node = 1
        self._begin_byte()

    def _begin_byte(self) -> None:
        self._node = 1
        self._contexts = [bytes(self._history[-n:]) if n else b"" for n in _ORDERS]
        self._expected = self._history[self._match] | 256 if self._match else 0

    def chance(self) -> int:
        """Give the chance of a 1, 1 to 65535 of 65536."""
        node, seen, stretch = self._node, self._seen, self._stretch
        self._states = states = [
            seen.setdefault((order, context, node), [32768, 0])
            for order, context in enumerate(self._contexts)
        ]
        expected = self._expected
        if expected and expected >> (8 - node.bit_length() + 1) == node:
            bit = expected >> (8 - node.bit_length()) & 1
            key = 2 * min(self._match_length, 20) + bit
        else:
            key = -1
        states.append(seen.setdefault((-1, b"", key), [32768, 0]))
        total = 0
        inputs: list[tuple[list[int], int, int]] = []
        self._inputs = inputs
        for weights, (chance, count) in zip(self._weights, states, strict=True):
            logit, bucket = stretch[chance >> 4], count.bit_length()
            inputs.append((weights, bucket, logit))
            total += weights[bucket] * logit
        limit = self._limit
        total = max(-limit, min(limit, total >> 16))
        self._chance = int(self._squash[total + limit])
        return self._chance

    def learn(self, bit: int) -> None:
        """Take the bit that came."""
        wrong = (bit << 16) - self._chance
        for weights, bucket, logit in self._inputs:
            weights[bucket] += (wrong * logit) >> 11
        for state in self._states:
            chance, count = state
            # The first bit moves the estimate to 5/6, later ones by less and less.
            goal = 65535 if bit else 0
            state[0] = chance + (goal - chance) * 2 // (2 * count + 3)
            if count < _COUNT_LIMIT:
                state[1] = count + 1
        self._node = 2 * self._node + bit
        if self._node >= 256:
            self._end_byte(self._node & 255)

    def _end_byte(self, byte: int) -> None:
        history = self._history
        if self._match and history[self._match] == byte:
            self._match, self._match_length = self._match + 1, self._match_length + 1
        else:
            self._match = self._match_length = 0
        history.append(byte)
        tail = bytes(history[-_MATCH_LENGTH:])
        if not self._match and tail in self._places:
            self._match, self._match_length = self._places[tail], 1
        self._places[tail] = len(history)
        self._begin_byte()


def _run(count: int, step: Callable[[int], int]) -> bytes:
    """Code 8 ``count`` bits by ``step(chance) -> bit``."""
    model = _Model()
    for _ in range(8 * count):
        model.learn(step(model.chance()))
    return bytes(model._history)


def pack_text(text: bytes) -> bytes:
    """Code bytes; :func:`unpack_text` wants to know how many they were.

    >>> len(pack_text(b"conv2d add relu " * 8)) < 40
    True
    """
    low, high, at = 0, 0xFFFFFFFF, 0
    out = bytearray()

    def step(chance: int) -> int:
        nonlocal low, high, at
        bit = text[at >> 3] >> (7 - (at & 7)) & 1
        at += 1
        middle = low + ((high - low) * chance >> 16)
        if bit:
            high = middle
        else:
            low = middle + 1
        while (low ^ high) >> 24 == 0:
            out.append(high >> 24)
            low, high = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255
        return bit

    _run(len(text), step)
    return bytes(out + _end(low, high)).rstrip(b"\0")


def _end(low: int, high: int) -> bytes:
    """Give the shortest bytes that lie in the range when zeros follow them."""
    for size in range(5):
        unit = 1 << (32 - 8 * size)
        value = -(-low // unit) * unit
        if value <= high:
            return value.to_bytes(4, "big")[:size]
    raise AssertionError("four bytes are exact")


def unpack_text(data: bytes, count: int) -> bytes:
    """Decode ``count`` bytes.

    Raises:
        Damaged: ``data`` is longer than the bytes need.
    """
    low, high, at = 0, 0xFFFFFFFF, 4
    padded = data + bytes(4)
    value = int.from_bytes(padded[:4], "big")
    again = bytearray()  # what a writer of the same bits writes, for both keep the same range

    def step(chance: int) -> int:
        nonlocal low, high, at, value
        middle = low + ((high - low) * chance >> 16)
        bit = int(value <= middle)
        if bit:
            high = middle
        else:
            low = middle + 1
        while (low ^ high) >> 24 == 0:
            again.append(high >> 24)
            low, high = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255
            value = value << 8 & 0xFFFFFFFF | (padded[at] if at < len(padded) else 0)
            at += 1
        return bit

    text = _run(count, step)
    # There is one way to code a text, so what would be written again must be what was read.
    if bytes(again + _end(low, high)).rstrip(b"\0") != data:
        raise Damaged("it is not coded the way a writer codes it")
    return text
