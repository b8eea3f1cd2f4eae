"""The flash profile's stream of codes: static Huffman tables over (gap, code) entries.

One stream holds the codes of one tensor as entries. An entry is a word of the gap code and, unless
the gap is the escape, a word of the code code. Before the first entry the position is -1; gap ``v``
moves it by ``v + 1`` and the code belongs there; the escape, the last gap symbol, moves it by its
own number and no code follows. What no entry names is code 0. A tensor with few zeros has entries
for all codes: its gap code has the one word "0" without bits.

The host decodes all chunks of all streams side by side, one entry of each at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_compress.codec import huffman
from tvm_compress.codec.cursor import Cursor, Damaged, varint

__all__ = ["CHUNK", "FlashWriter", "Stream", "read_stream", "unpack_streams"]

CHUNK = 256
# Entries that are written at a time: all of a large tensor would take many bytes each.
_PIECE = 1 << 20
_GAP_SYMBOLS = (8, 16, 32, 64, 128, 255)

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Stream:
    """One stream as its header tells it: ``payload`` is a byte offset, ``starts`` are bits."""

    count: int
    entries: int
    gap_lengths: Bytes
    code_lengths: Bytes
    payload: int
    starts: Ints


@dataclass(frozen=True)
class _Codes:
    """Codes (n,), the places of those that are not 0, and how many zeros are in front of each.

    Places and gaps are of 32 bits, for all together they are the most that coding holds.
    """

    codes: Bytes
    at: NDArray[np.uint32]
    gaps: NDArray[np.uint32]

    @classmethod
    def of(cls, codes: Bytes) -> _Codes:
        at = np.flatnonzero(codes).astype(np.uint32)
        gaps = at.copy()
        gaps[1:] -= at[:-1]
        gaps[1:] -= 1
        return cls(codes, at, gaps)

    def gap_counts(self, gap_symbols: int) -> Ints:
        """Count the gap symbols of all entries; 2 gap symbols take all positions."""
        if gap_symbols == 2:
            return np.array([self.codes.size, 0])
        counts = np.zeros(gap_symbols, np.int64)
        for start in range(0, self.gaps.size, _PIECE):
            escapes, rest = np.divmod(self.gaps[start : start + _PIECE], gap_symbols - 1)
            counts += np.bincount(rest, minlength=gap_symbols)
            counts[-1] += int(escapes.sum())
        return counts

    def entries(self, gap_symbols: int) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
        """Give gap symbols, codes and which entries have a code, (n,) each, some at a time."""
        if gap_symbols == 2:
            for start in range(0, self.codes.size, _PIECE):
                piece = self.codes[start : start + _PIECE].astype(np.int64)
                yield np.zeros_like(piece), piece, np.ones(piece.size, bool)
            return
        escape = gap_symbols - 1
        for start in range(0, self.at.size, _PIECE):
            steps, at = self.gaps[start : start + _PIECE], self.at[start : start + _PIECE]
            escapes, rest = np.divmod(steps, escape)
            ends = np.cumsum(escapes + 1) - 1
            gaps = np.full(int(ends[-1]) + 1, escape, np.int64)
            stored = np.zeros(gaps.size, np.int64)
            has_code = np.zeros(gaps.size, bool)
            gaps[ends], stored[ends], has_code[ends] = rest, self.codes[at], True
            yield gaps, stored, has_code


def _nibbles(lengths: Bytes) -> bytes:
    padded = np.append(lengths, np.zeros(lengths.size % 2, np.uint8))
    return (padded[::2] | padded[1::2] << 4).astype(np.uint8).tobytes()


def _bits(counts: Ints, lengths: Bytes) -> int:
    return int((counts * np.where(lengths == huffman.SINGLE, 0, lengths)).sum())


def _covers(lengths: Bytes | None, counts: Ints) -> bool:
    return (
        lengths is not None
        and lengths.size == counts.size
        and bool((lengths[counts > 0] > 0).all())
    )


class FlashWriter:
    """Writes streams one after the other; a table may be that of the stream before."""

    def __init__(self) -> None:
        self._tables: list[Bytes | None] = [None, None]

    def stream(self, codes: Bytes, levels: int) -> bytes:
        """Code the codes (n,) of a tensor with ``levels`` possible codes, 1 to 256."""
        best: tuple[int, int, int, list[tuple[Bytes, bool]]] | None = None
        occupied = int(np.count_nonzero(codes))
        if not occupied:
            return varint(0)
        candidates = (2,) if occupied == codes.size else (2, *_GAP_SYMBOLS)
        last_gap = self._tables[0]
        if last_gap is not None and last_gap.size not in candidates and occupied < codes.size:
            candidates = (*candidates, last_gap.size)
        # Of a tensor without zeros nothing but the codes is looked at.
        nothing = np.zeros(0, np.uint32)
        found = _Codes(codes, nothing, nothing) if len(candidates) == 1 else _Codes.of(codes)
        all_codes = np.zeros(levels, np.int64)
        # In pieces: bincount makes eight bytes of each code.
        for start in range(0, codes.size, _PIECE):
            all_codes += np.bincount(codes[start : start + _PIECE], minlength=levels)
        for gap_symbols in candidates:
            if gap_symbols > 2 and codes.size > 200 * (occupied + 1) * gap_symbols:
                continue  # nothing but escapes
            gap_counts = found.gap_counts(gap_symbols)
            entries = int(gap_counts.sum())
            # An escape costs a device as much as a weight does, and saves hardly a bit.
            if 2 < gap_symbols < _GAP_SYMBOLS[-1] and entries > occupied * 17 // 16:
                continue
            code_counts = all_codes.copy()
            code_counts[0] *= gap_symbols == 2
            size, tables = 0, []
            for last, count in zip(self._tables, (gap_counts, code_counts), strict=True):
                own = huffman.lengths(count)
                cost = _bits(count, own) + 4 * own.size
                if last is not None and _covers(last, count) and _bits(count, last) <= cost:
                    tables.append((last, True))
                    size += _bits(count, last)
                else:
                    tables.append((own, False))
                    size += cost
            if best is None or size < best[0]:
                best = size, gap_symbols, entries, tables
        assert best is not None
        _, gap_symbols, entries, tables = best
        self._tables = [lengths for lengths, _ in tables]
        return self._write(found.entries(gap_symbols), entries, tables)

    def _write(
        self,
        pieces: Iterator[tuple[Ints, Ints, NDArray[np.bool_]]],
        entries: int,
        tables: list[tuple[Bytes, bool]],
    ) -> bytes:
        (gap_lengths, same_gaps), (code_lengths, same_codes) = tables
        head = bytearray(varint(entries))
        head.append(same_gaps | same_codes << 1)
        if not same_gaps:
            head += bytes([gap_lengths.size]) + _nibbles(gap_lengths)
        if not same_codes:
            head += _nibbles(code_lengths)
        gap_bits = np.where(gap_lengths == huffman.SINGLE, 0, gap_lengths).astype(np.int64)
        code_bits = np.where(code_lengths == huffman.SINGLE, 0, code_lengths).astype(np.int64)
        gap_words, code_words = huffman.words(gap_lengths), huffman.words(code_lengths)
        # A word is at most 24 bits long, so an entry takes four bytes and its length one.
        values, widths = np.zeros(entries, np.uint32), np.zeros(entries, np.uint8)
        start = 0
        for gaps, codes, has_code in pieces:
            width = np.where(has_code, code_bits[codes], 0)
            value = np.where(has_code, code_words[codes], 0)
            value |= gap_words[gaps] << width
            values[start : start + gaps.size] = value
            widths[start : start + gaps.size] = width + gap_bits[gaps]
            start += gaps.size
        chunk_bits = np.add.reduceat(widths, np.arange(0, entries, CHUNK), dtype=np.int64)
        head += varint(int(chunk_bits[-1]))
        if chunk_bits.size > 1:
            base = int(chunk_bits[:-1].min())
            spread = int(chunk_bits[:-1].max()) - base
            head += varint(base) + bytes([spread.bit_length()])
            over = chunk_bits[:-1] - base
            head += huffman.pack_words(over, np.full(over.size, spread.bit_length(), np.int64))
        return bytes(head) + huffman.pack_words(values, widths)


def read_stream(cursor: Cursor, count: int, levels: int, tables: list[Bytes | None]) -> Stream:
    """Read a stream's header and skip its payload; ``tables`` are those of the stream before.

    Raises:
        Damaged: what the header says cannot be.
    """
    entries = cursor.varint()
    if entries > count:
        raise Damaged("a stream has more entries than its tensor has codes")
    nothing = np.zeros(0, np.uint8)
    if not entries:
        return Stream(count, 0, nothing, nothing, cursor.at, np.zeros(1, np.int64))
    same = cursor.byte()
    if same > 3:
        raise Damaged("a stream has unknown flags")
    for which in range(2):
        last = tables[which]
        if same >> which & 1:
            if last is None or (which and last.size != levels):
                raise Damaged("a stream repeats a table that is not there")
            continue
        symbols = levels if which else cursor.byte()
        packed = np.frombuffer(cursor.take((symbols + 1) // 2), np.uint8)
        lengths = np.stack([packed & 15, packed >> 4], 1).ravel()
        if lengths[symbols:].any() or not huffman.valid(lengths[:symbols]):
            raise Damaged("a code's lengths are not complete")
        tables[which] = lengths[:symbols]
    gaps, codes = tables
    assert gaps is not None and codes is not None
    last_bits = cursor.varint()
    chunks = -(-entries // CHUNK)
    bits = np.full(chunks, last_bits, np.int64)
    if chunks > 1:
        base, spread = cursor.varint(), cursor.byte()
        if spread > 13:
            raise Damaged("a stream's chunks differ by too much")
        packed = np.frombuffer(cursor.take(((chunks - 1) * spread + 7) // 8), np.uint8)
        over = np.unpackbits(packed)[: (chunks - 1) * spread].reshape(chunks - 1, spread)
        weights = 1 << np.arange(spread - 1, -1, -1, dtype=np.int64)
        bits[:-1] = base + (over * weights).sum(1, dtype=np.int64)
    if int(bits.max()) > CHUNK * 2 * huffman.LONGEST:
        raise Damaged("a chunk has more bits than its entries can have")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(bits)])
    payload = cursor.at
    tail = int(starts[-1])
    last_byte = cursor.take((tail + 7) // 8)[-1:]
    if tail % 8 and last_byte[0] & (0xFF >> tail % 8):
        raise Damaged("a stream ends in bits that are not 0")
    return Stream(count, entries, gaps, codes, payload, starts)


def unpack_streams(data: bytes, streams: Sequence[Stream]) -> list[Bytes]:
    """Decode streams whose payloads are in ``data``: the codes of each, (count,).

    Raises:
        Damaged: the words do not fit the headers.
    """
    live = [stream for stream in streams if stream.entries]
    tables: dict[bytes, int] = {}
    symbols: list[Bytes] = []
    widths: list[Bytes] = []
    gap_table, code_table, begin, end, number = [], [], [], [], []
    for stream in live:
        chosen = []
        for lengths in (stream.gap_lengths, stream.code_lengths):
            key = lengths.tobytes()
            if key not in tables:
                tables[key] = len(symbols)
                symbol, width = huffman.lookup(lengths)
                symbols.append(symbol)
                widths.append(width)
            chosen.append(tables[key] << huffman.LONGEST)
        chunks = stream.starts.size - 1
        gap_table.append(np.full(chunks, chosen[0]))
        code_table.append(np.full(chunks, chosen[1]))
        begin.append(stream.payload * 8 + stream.starts[:-1])
        end.append(stream.payload * 8 + stream.starts[1:])
        sizes = np.full(chunks, CHUNK)
        sizes[-1] = stream.entries - CHUNK * (chunks - 1)
        number.append(sizes)
    decoded: Iterator[Bytes] = iter(())
    if live:
        escapes = [np.full(s.starts.size - 1, s.gap_lengths.size - 1) for s in live]
        gaps, codes, ended = _lanes(
            data,
            (np.concatenate(symbols), np.concatenate(widths)),
            (np.concatenate(gap_table), np.concatenate(code_table), np.concatenate(escapes)),
            np.concatenate(begin),
            np.concatenate(number),
        )
        if not np.array_equal(ended, np.concatenate(end)):
            raise Damaged("a chunk ends elsewhere than its header says")
        decoded = _split(live, gaps, codes)
    return [
        next(decoded) if stream.entries else np.zeros(stream.count, np.uint8) for stream in streams
    ]


def _lanes(
    data: bytes,
    lookup: tuple[Bytes, Bytes],
    tables: tuple[Ints, Ints, Ints],
    begin: Ints,
    number: Ints,
) -> tuple[Bytes, Bytes, Ints]:
    """Decode chunks side by side: gaps and codes (chunks, 256), and where each chunk ended."""
    raw = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
    window = raw[:-3] << 24 | raw[1:-2] << 16 | raw[2:-1] << 8 | raw[3:]
    last_bit = 8 * (window.size - 1)
    symbols, widths = lookup
    # The longest chunks first, so that those still running are the first ones.
    order = np.argsort(-number, kind="stable")
    at = begin[order].astype(np.int64)
    gap_table, code_table, escape = (table[order] for table in tables)
    running = np.searchsorted(-number[order], -np.arange(1, CHUNK + 1), side="right")
    gaps = np.zeros((CHUNK, at.size), np.uint8)
    codes = np.zeros((CHUNK, at.size), np.uint8)
    for step in range(CHUNK):
        n = int(running[step])
        if not n:
            break
        here = at[:n]
        bits = window[here >> 3] << (here & 7).astype(np.uint32)
        entry = gap_table[:n] + (bits >> np.uint32(20))
        gap, width = symbols[entry], widths[entry]
        bits = bits << width.astype(np.uint32)
        entry = code_table[:n] + (bits >> np.uint32(20))
        has_code = gap != escape[:n]
        gaps[step, :n] = gap
        codes[step, :n] = symbols[entry]
        here += width + widths[entry] * has_code
        # A damaged stream must not run out of the data; it is told at the end.
        np.minimum(here, last_bit, out=here)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return gaps.T[back], codes.T[back], at[back]


def _split(streams: Sequence[Stream], gaps: Bytes, codes: Bytes) -> Iterator[Bytes]:
    first = 0
    for stream in streams:
        chunks = stream.starts.size - 1
        gap = gaps[first : first + chunks].ravel()[: stream.entries]
        code = codes[first : first + chunks].ravel()[: stream.entries]
        first += chunks
        if stream.gap_lengths.size > 1 and stream.gap_lengths[0] == huffman.SINGLE:
            # No gap but 0: an entry for each code from the first one on.
            out = np.zeros(stream.count, np.uint8)
            out[: stream.entries] = code
            yield out
            continue
        escape = stream.gap_lengths.size - 1
        has_code = gap != escape
        at = np.cumsum(gap.astype(np.int64) + has_code) - 1
        at = at[has_code]
        if at.size and at[-1] >= stream.count:
            raise Damaged("an entry lies behind its tensor's end")
        out = np.zeros(stream.count, np.uint8)
        out[at] = code[has_code]
        yield out
