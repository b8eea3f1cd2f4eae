"""The tensors of a file: a record of each, and their values by one of the two profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tvm_compress.codec.archive import ArchiveModels, coding_order, from_coding_order, places
from tvm_compress.codec.bits import Decoder, Encoder, Ints, Meter
from tvm_compress.codec.cursor import Cursor, Damaged, varint
from tvm_compress.codec.flash import FlashWriter, Stream, read_stream, unpack_streams
from tvm_compress.codec.graph import Leaf
from tvm_compress.errors import UnsupportedError

__all__ = [
    "PROFILES",
    "Profile",
    "Record",
    "coded_bytes",
    "measure_tensors",
    "pack_tensors",
    "read_records",
    "unpack_tensors",
]

Profile = Literal["archive", "flash"]
PROFILES: tuple[Profile, ...] = ("archive", "flash")

DTYPES = (
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64", "bool",
)  # fmt: skip
PLAIN, SPARSE, SHARED, BYTES = range(4)
_MOST_DIMENSIONS = 8
# A file may promise this many bytes for each byte of its weights; a writer fills up with zeros
# where it did better. So what a reader allocates is bounded by what it was given.
_PROMISE, _PROMISE_FREE = 1024, 1 << 16
# Whether transposing helps is tried up to this size.
_LARGEST_TRIAL = 1 << 20
# A reader looks so many bytes ahead.
_LOOK_AHEAD = 4


@dataclass(frozen=True)
class Record:
    """What the section of tensors says of one: kind, dtype, shape, and number of centroids.

    ``kind`` is PLAIN (values as they are), SPARSE (a mask, and the values that are not +0),
    SHARED (codes and ``levels`` centroids a part) or BYTES (values of one byte, coded as codes
    are). ``transposed`` tells the archive profile to walk the last axes first. ``parts`` is how
    many blocks with centroids of their own each axis has, or empty where there is one codebook.
    """

    kind: int
    dtype: str
    dims: tuple[int, ...]
    levels: int
    transposed: bool = False
    parts: tuple[int, ...] = ()

    @property
    def centroids(self) -> int:
        """Number of centroids of all parts."""
        return prod(self.parts) * self.levels if self.kind == SHARED else 0

    @property
    def count(self) -> int:
        """Number of items."""
        return prod(self.dims)

    @property
    def itemsize(self) -> int:
        """Bytes of one item of the dtype."""
        return np.dtype(self.dtype).itemsize

    @property
    def decoded_bytes(self) -> int:
        """Bytes that the decoded tensor takes, and the most that a decoder's work grows with."""
        if self.kind == SHARED:
            return self.count + self.centroids * self.itemsize
        return self.count * (self.itemsize + (self.kind == SPARSE))


def _record(leaf: Leaf) -> Record:
    values = leaf.values
    dims = values.shape if leaf.codes is None else leaf.codes.shape
    if values.dtype.name not in DTYPES or len(dims) > _MOST_DIMENSIONS:
        raise UnsupportedError(
            f"A tensor is {values.dtype} of {len(dims)} dimensions; expected one of "
            f"{', '.join(DTYPES)} and at most {_MOST_DIMENSIONS} dimensions: save it as .json."
        )
    if prod(dims) >> 31:
        raise UnsupportedError(
            f"A tensor of the shape {tuple(dims)} has {prod(dims)} items; expected fewer than "
            "2**31 items, which a .tcz file holds: split the layer, or save it as .json."
        )
    if leaf.codes is not None:
        *parts, levels = values.shape
        if leaf.codes.size and int(leaf.codes.max()) >= levels:
            raise UnsupportedError(
                f"A codebook has {levels} centroids and the code {int(leaf.codes.max())}; "
                "expected codes below the number of centroids."
            )
        return Record(SHARED, values.dtype.name, dims, levels, parts=tuple(parts))
    if values.dtype.name in ("int8", "uint8"):
        return Record(BYTES, values.dtype.name, dims, 256)
    if values.dtype.kind == "f" and values.size >= 64 and not _unsigned(values).all():
        return Record(SPARSE, values.dtype.name, dims, 2)
    return Record(PLAIN, values.dtype.name, dims, 0)


def _pack_record(record: Record) -> bytes:
    head = bytes(
        [
            record.kind
            | record.transposed << 2
            | bool(record.parts) << 3
            | DTYPES.index(record.dtype) << 4,
            len(record.dims),
        ]
    )
    levels = varint(record.levels - 1) if record.kind == SHARED else b""
    return head + b"".join(map(varint, record.dims)) + levels + b"".join(map(varint, record.parts))


def read_records(data: bytes, weights_bytes: int, profile: Profile) -> list[Record]:
    """Read the section of tensors, and check what it promises against the weights' bytes.

    Raises:
        Damaged: it holds what no writer writes, or promises too much.
    """
    cursor = Cursor(data)
    records = []
    allowed = _PROMISE * weights_bytes + _PROMISE_FREE
    for _ in range(cursor.varint()):
        head, rank = cursor.byte(), cursor.byte()
        kind, transposed, dtype = head & 3, bool(head & 4), head >> 4
        if dtype >= len(DTYPES) or rank > _MOST_DIMENSIONS or (head & 8 and kind != SHARED):
            raise Damaged("a tensor has an unknown type")
        if transposed and (profile == "flash" or kind == PLAIN or rank < 2):
            raise Damaged("a tensor is transposed that cannot be")
        name = DTYPES[dtype]
        floating = name.startswith("float")
        fits = (True, floating, floating or name == "int8", name[-4:] == "int8")
        if not fits[kind]:
            raise Damaged(f"a tensor of kind {kind} is {name}")
        dims = tuple(cursor.varint() for _ in range(rank))
        # A size of 0 makes a tensor empty, and an array of its shape must still be one.
        if prod(size for size in dims if size) >> 31:
            raise Damaged("a tensor has 2**31 items or more")
        levels = (0, 2, 0, 256)[kind]
        if kind == SHARED:
            levels = cursor.varint() + 1
            if levels > 256:
                raise Damaged(f"a tensor has {levels} centroids")
        parts = tuple(cursor.varint() for _ in range(rank)) if head & 8 else ()
        if (head & 8 and not rank) or any(
            n < 1 or d % n for d, n in zip(dims, parts, strict=False)
        ):
            raise Damaged("a tensor's codebooks do not divide it")
        if prod(parts) >> 32:
            raise Damaged("a tensor has more than 2**32 codebooks")
        records.append(Record(kind, name, dims, levels, transposed, parts))
        allowed -= records[-1].decoded_bytes
        if allowed < 0:
            raise Damaged(
                f"it promises tensors of more than {_PROMISE * weights_bytes + _PROMISE_FREE} "
                f"bytes, which {weights_bytes} bytes of weights cannot hold"
            )
    if cursor.left:
        raise Damaged(f"it has {cursor.left} bytes too many")
    return records


def _unsigned(values: NDArray[Any]) -> NDArray[Any]:
    """Give the items' bits as unsigned integers, (n,)."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")


def _wide(values: NDArray[Any]) -> Ints:
    return _unsigned(values).astype(np.uint64).view(np.int64)


def _values(bits: Ints, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    if dtype == "bool" and (bits > 1).any():
        raise Damaged("a truth value is neither 0 nor 1")
    return bits.view(np.uint64).astype(f"u{size}").view(dtype)


def _codes(leaf: Leaf, record: Record) -> NDArray[np.uint8]:
    """Give what is coded as codes, (n,): codes, a mask, or bytes."""
    if leaf.codes is not None:
        return np.ascontiguousarray(leaf.codes)
    if record.kind == SPARSE:
        mask: NDArray[np.uint8] = (_unsigned(leaf.values) != 0).astype(np.uint8)
        return mask.reshape(record.dims)
    as_bytes: NDArray[np.uint8] = np.ascontiguousarray(leaf.values).view(np.uint8)
    return as_bytes


def _by_rank(record: Record, centroids: NDArray[Any]) -> Ints:
    """Give the codes 1 .. levels - 1 in the order of their values: (parts, levels - 1)."""
    if record.kind == SHARED:
        values = centroids.reshape(-1, record.levels)
    else:
        values = np.arange(record.levels, dtype=np.uint8).reshape(1, -1)
        values = values.view(record.dtype) if record.kind == BYTES else values
    return np.argsort(values[:, 1:], axis=1, kind="stable").astype(np.int64) + 1


def _part_of(record: Record) -> NDArray[Any]:
    """Give the part that each item belongs to, of a shape that broadcasts to the dims."""
    part = np.arange(prod(record.parts), dtype=np.int64).reshape(record.parts)
    for axis, (size, blocks) in enumerate(zip(record.dims, record.parts, strict=True)):
        part = np.repeat(part, size // blocks, axis) if blocks > 1 else part
    return part


def pack_tensors(leaves: Sequence[Leaf], profile: Profile) -> tuple[bytes, bytes]:
    """Give the sections of tensors and of weights.

    Raises:
        UnsupportedError: a dtype or a number of dimensions that a file cannot hold, or codes
            without a centroid.
    """
    records = [_record(leaf) for leaf in leaves]
    if profile == "archive":
        records = [_turned(leaf, record) for leaf, record in zip(leaves, records, strict=True)]
        weights = _pack_archive(leaves, records)
    else:
        weights = _pack_flash(leaves, records)
    promised = sum(record.decoded_bytes for record in records)
    lacking = -(-(promised - _PROMISE_FREE) // _PROMISE) - len(weights)
    weights += bytes(max(0, lacking))
    return varint(len(records)) + b"".join(map(_pack_record, records)), weights


def coded_bytes(
    codes: NDArray[np.uint8], centroids: NDArray[Any], profile: Profile = "archive"
) -> int:
    """Give the bytes that codes take in a file by themselves, tables included, centroids not.

    Args:
        codes: array of uint8 of any shape.
        centroids: as of ``tvm_compress.codebook``: (k,) or a codebook for each block.
        profile: of the file.
    """
    leaf = Leaf(centroids, codes)
    record = _record(leaf)
    if profile == "flash":
        return len(FlashWriter().stream(codes.ravel(), record.levels))
    encoder = Encoder()
    _archive_codes(ArchiveModels(encoder), _turned(leaf, record), centroids, codes)
    return len(encoder.data())


def _turned(leaf: Leaf, record: Record) -> Record:
    """Choose the order of walking that codes a mask and codes in fewer bytes."""
    if record.kind == PLAIN or len(record.dims) < 2 or not 256 <= record.count <= _LARGEST_TRIAL:
        return record
    sizes = {}
    for transposed in (False, True):
        encoder = Encoder()
        tried = replace(record, transposed=transposed)
        _archive_codes(ArchiveModels(encoder), tried, leaf.values, _codes(leaf, record))
        sizes[len(encoder.data()), transposed] = tried
    return sizes[min(sizes)]


def _archive_codes(
    models: ArchiveModels,
    record: Record,
    centroids: NDArray[Any],
    given: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """Code codes of shape ``record.dims`` in either direction."""
    if not record.count:  # rows and columns may be as many as they like, and take memory
        return np.zeros(record.dims, np.uint8)
    order = _by_rank(record, centroids)
    walked = None if given is None else coding_order(given, record.transposed)
    mask = models.mask(record.dims, record.transposed, walked)
    at = np.flatnonzero(mask)
    part = np.zeros(at.size, np.int64)
    if len(order) > 1:
        of_each = np.broadcast_to(_part_of(record), record.dims)
        part = coding_order(of_each, record.transposed)[at]
    wanted = None
    if walked is not None:
        rank = np.zeros((len(order), record.levels), np.int64)
        np.put_along_axis(rank, order, np.arange(record.levels - 1)[None], 1)
        wanted = rank[part, walked[at]]
    row, col = places(record.dims, record.transposed, at)
    ranks = models.ranks(record.levels - 1, row, col, wanted)
    if at.size and int(ranks.max(initial=0)) >= record.levels - 1:
        raise Damaged("a code has no centroid")
    if at.size:
        mask[at] = order[part, ranks]
    return from_coding_order(mask, record.dims, record.transposed)


def _pack_archive(leaves: Sequence[Leaf], records: Sequence[Record]) -> bytes:
    encoder = Encoder()
    models = ArchiveModels(encoder)
    for leaf, record in zip(leaves, records, strict=True):
        floating = record.dtype.startswith("float")
        items = _wide(leaf.values)
        if record.kind == SHARED:
            models.scalars(items.size, record.itemsize, floating, items)
        if record.kind != PLAIN:
            _archive_codes(models, record, leaf.values, _codes(leaf, record))
        if record.kind == SPARSE:
            items = items[items != 0]
        if record.kind in (PLAIN, SPARSE):
            models.scalars(items.size, record.itemsize, floating, items)
    coded = encoder.data()
    return varint(len(coded)) + coded


def _unpack_archive(data: bytes, records: Sequence[Record]) -> Iterator[tuple[Leaf, float]]:
    cursor = Cursor(data)
    coded = cursor.take(cursor.varint())
    if len(coded) % 4:
        raise Damaged("its coded part is no sequence of words")
    if cursor.take(cursor.left).strip(b"\0"):
        raise Damaged("it ends in bytes that are not 0")
    decoder = Decoder(coded)
    meter = Meter(decoder)
    models = ArchiveModels(meter)
    for record in records:
        floating, before = record.dtype.startswith("float"), meter.bits

        def scalars(count: int, record: Record = record, floating: bool = floating) -> Any:
            bits = models.scalars(count, record.itemsize, floating, None)
            return _values(bits, record.dtype)

        if record.kind == PLAIN:
            leaf = Leaf(scalars(record.count).reshape(record.dims))
            yield leaf, meter.bits - before
            continue
        centroids = scalars(record.centroids) if record.kind == SHARED else np.zeros(0, np.uint8)
        codes = _archive_codes(models, record, centroids, None)
        if record.kind == SPARSE:
            leaf = Leaf(_filled(record, codes, scalars(int(np.count_nonzero(codes)))))
        else:
            leaf = _from_codes(record, codes, centroids)
        yield leaf, meter.bits - before
    if not decoder.exhausted():
        raise Damaged("its coded part ends elsewhere than its tensors")


def _filled(record: Record, mask: NDArray[np.uint8], kept: NDArray[Any]) -> NDArray[Any]:
    values = np.zeros(record.dims, record.dtype)
    values[mask.reshape(record.dims) != 0] = kept
    return values


def _from_codes(record: Record, codes: NDArray[np.uint8], centroids: NDArray[Any]) -> Leaf:
    if record.kind == SHARED:
        shaped = centroids.reshape(*record.parts, record.levels)
        return Leaf(shaped, codes.reshape(record.dims))
    return Leaf(codes.reshape(record.dims).view(record.dtype))


def _little(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()


def _pack_flash(leaves: Sequence[Leaf], records: Sequence[Record]) -> bytes:
    out = bytearray()
    writer = FlashWriter()
    for leaf, record in zip(leaves, records, strict=True):
        if record.kind in (PLAIN, SHARED):
            out += _little(leaf.values)
        if record.kind != PLAIN:
            out += writer.stream(_codes(leaf, record).ravel(), record.levels)
        if record.kind == SPARSE:
            kept = leaf.values.ravel()[_unsigned(leaf.values) != 0]
            out += varint(kept.size) + _little(kept)
    return bytes(out) + bytes(_LOOK_AHEAD)


def _unpack_flash(data: bytes, records: Sequence[Record]) -> Iterator[tuple[Leaf, float]]:
    cursor = Cursor(data)
    tables: list[NDArray[np.uint8] | None] = [None, None]
    streams: list[Stream] = []
    plain: list[NDArray[Any]] = []
    sizes: list[int] = []

    def take(count: int, dtype: str) -> NDArray[Any]:
        little = np.dtype(dtype).newbyteorder("<")
        if dtype == "bool":
            return _values(np.frombuffer(cursor.take(count), "u1").astype(np.int64), dtype)
        return np.frombuffer(cursor.take(count * little.itemsize), little).astype(dtype)

    for record in records:
        start = cursor.at
        if record.kind in (PLAIN, SHARED):
            count = record.count if record.kind == PLAIN else record.centroids
            plain.append(take(count, record.dtype))
        if record.kind != PLAIN:
            streams.append(read_stream(cursor, record.count, record.levels, tables))
        if record.kind == SPARSE:
            plain.append(take(cursor.varint(), record.dtype))
        sizes.append(cursor.at - start)
    if cursor.left < _LOOK_AHEAD or cursor.take(cursor.left).strip(b"\0"):
        raise Damaged("it does not end in four bytes of 0")
    codes, values = iter(unpack_streams(data, streams)), iter(plain)
    for record, size in zip(records, sizes, strict=True):
        if record.kind == PLAIN:
            leaf = Leaf(next(values).reshape(record.dims))
        elif record.kind == SPARSE:
            mask, kept = next(codes), next(values)
            if np.count_nonzero(mask) != kept.size:
                raise Damaged("a sparse tensor has another number of values than of places")
            leaf = Leaf(_filled(record, mask, kept))
        else:
            dense = next(values) if record.kind == SHARED else np.zeros(0, np.uint8)
            leaf = _from_codes(record, next(codes), dense)
        yield leaf, 8 * size


def unpack_tensors(data: bytes, records: Sequence[Record], profile: Profile) -> list[Leaf]:
    """Decode the section of weights.

    Raises:
        Damaged: the bytes are not what a writer writes for these records.
    """
    return [leaf for leaf, _ in measure_tensors(data, records, profile)]


def measure_tensors(
    data: bytes, records: Sequence[Record], profile: Profile
) -> list[tuple[Leaf, float]]:
    """Decode the section of weights and tell what each tensor takes of it.

    Returns:
        Each tensor with its bits: those of its bytes in a flash file; in an archive file, where
        tensors share words, the information of its coded bits.

    Raises:
        Damaged: the bytes are not what a writer writes for these records.
    """
    unpack = _unpack_archive if profile == "archive" else _unpack_flash
    return list(unpack(data, records))
