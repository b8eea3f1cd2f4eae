from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codec.twin import Twin
from tvm_compress.codec import coded_bytes, container, huffman
from tvm_compress.codec import flash as flash_module
from tvm_compress.codec.archive import ArchiveModels
from tvm_compress.codec.bits import Encoder
from tvm_compress.codec.container import Sections, join_sections, read_sections
from tvm_compress.codec.cursor import Damaged, varint
from tvm_compress.codec.graph import Leaf
from tvm_compress.codec.tensors import (
    DTYPES,
    PROFILES,
    Profile,
    pack_tensors,
    read_records,
    unpack_tensors,
)
from tvm_compress.errors import UnsupportedError

SHAPES = st.one_of(
    st.lists(st.integers(0, 7), max_size=5),
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
    st.just([20, 37]),
).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Leaf:
    shape = draw(SHAPES)
    chance = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    density = draw(st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.95, 1.0]))
    keep = chance.random(shape) < density
    if draw(st.booleans()):
        parts = ()
        if shape and draw(st.booleans()):
            parts = tuple(next((d for d in (3, 2) if n and n % d == 0), 1) for n in shape)
        levels = draw(st.sampled_from([1, 2, 3, 16, 33, 256]))
        codes = (
            chance.geometric(0.1, shape) if draw(st.booleans()) else chance.integers(0, 256, shape)
        )
        dtype = draw(st.sampled_from(["float32", "float16", "float64", "int8"]))
        spread = 30 if dtype == "int8" else 1
        centroids = chance.normal(0, spread, (*parts, levels)).clip(-127, 127).astype(dtype)
        return Leaf(centroids, (codes % levels * keep).astype(np.uint8))
    dtype = draw(st.sampled_from(DTYPES))
    raw = chance.integers(0, 256, (*shape, np.dtype(dtype).itemsize)).astype(np.uint8)
    if dtype == "bool":
        raw &= 1
    values = raw.view(dtype).reshape(shape)  # NaN, infinities and -0.0 among them
    return Leaf(np.where(keep, values, np.zeros((), dtype)).astype(dtype))


def check_equal(one: Leaf, other: Leaf) -> None:
    assert one.values.dtype == other.values.dtype
    assert one.values.shape == other.values.shape
    assert one.values.tobytes() == other.values.tobytes()
    assert (one.codes is None) == (other.codes is None)
    if one.codes is not None:
        np.testing.assert_array_equal(one.codes, other.codes)
        assert other.codes.dtype == np.uint8


def round_trip(leaves: list[Leaf], profile: Profile) -> int:
    records, weights = pack_tensors(leaves, profile)
    read = read_records(records, len(weights), profile)
    for one, other in zip(leaves, unpack_tensors(weights, read, profile), strict=True):
        check_equal(one, other)
    return len(records) + len(weights)


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=25)
@given(leaves=st.lists(tensors(), max_size=2))
def test_tensors_come_back_bit_for_bit(leaves: list[Leaf], profile: Profile) -> None:
    round_trip(leaves, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_kind_at_once(leaves: list[Leaf], profile: Profile) -> None:
    round_trip(leaves, profile)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_large_tensor_of_zeros_costs_what_its_promise_asks(profile: Profile) -> None:
    count = 1 << 17
    zeros = Leaf(np.zeros(2, np.float32), np.zeros((256, 512), np.uint8))
    assert count / 1024 - 64 <= round_trip([zeros], profile) < count / 1024 + 16


def _entropy(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize(
    ("profile", "limit"), [("archive", 1.01), ("flash", 1.03)]
)  # of the bound that storage is measured by, for layers over 100,000 weights
def test_codes_come_near_the_static_entropy(profile: Profile, limit: float) -> None:
    chance = np.random.default_rng(3)
    weights = chance.laplace(size=(400, 784))
    keep = np.abs(weights) > np.quantile(np.abs(weights), 0.91)
    grid = np.linspace(weights.min(), weights.max(), 31)
    codes = np.zeros(weights.shape, np.uint8)
    codes[keep] = np.abs(weights[keep][:, None] - grid).argmin(1) + 1
    at = np.flatnonzero(codes)
    bound = _entropy(np.diff(at, prepend=-1)) + _entropy(codes.ravel()[at])
    centroids = np.append(0, grid).astype(np.float32)
    assert coded_bytes(codes, centroids, profile) / bound <= limit


def test_the_archive_finds_dense_columns() -> None:
    chance = np.random.default_rng(4)
    density = np.where(np.arange(200) % 4 == 0, 0.6, 0.02)
    codes = (chance.random((300, 200)) < density).astype(np.uint8)
    at = np.flatnonzero(codes)
    centroids = np.array([0, 1], np.float32)
    static = _entropy(np.diff(at, prepend=-1))
    known = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)).sum() * 300 / 8
    assert known < 0.9 * static
    assert coded_bytes(codes, centroids) < 1.06 * known
    assert coded_bytes(np.ascontiguousarray(codes.T), centroids) < 1.06 * known


@pytest.mark.shared_data
@pytest.mark.parametrize(("profile", "limit"), [("archive", 1.01), ("flash", 1.03)])
def test_a_published_layer_comes_near_its_bound(
    shared_data: Path, profile: Profile, limit: float
) -> None:
    # benchmarks/coding.py holds the whole network to 545,000 bytes.
    with np.load(shared_data / "reference" / "han_squeezenet_decoded.npz") as data:
        codes = data["fire9/conv3x3_2/code"]
        leaf = Leaf(data["fire9/conv3x3_2/codebook"], codes)
    at = np.flatnonzero(codes)
    bound = _entropy(np.diff(at, prepend=-1)) + _entropy(codes.ravel()[at])
    assert round_trip([leaf], profile) - leaf.values.nbytes <= limit * bound


def test_a_tensor_that_a_file_cannot_hold_is_told() -> None:
    with pytest.raises(UnsupportedError, match=r"tensor is complex64 of 1 dim.*save it as \.json"):
        pack_tensors([Leaf(np.zeros(3, np.complex64))], "archive")
    with pytest.raises(UnsupportedError, match=r"tensor is int8 of 9 dimensions"):
        pack_tensors([Leaf(np.zeros((1,) * 9, np.int8))], "archive")
    with pytest.raises(UnsupportedError, match=r"has 2 centroids and the code 5"):
        pack_tensors([Leaf(np.zeros(2, np.float32), np.array([5], np.uint8))], "archive")
    # Of no memory: one item, seen 2**31 times.
    huge = np.broadcast_to(np.zeros((), np.float32), (1 << 16, 1 << 15))
    with pytest.raises(UnsupportedError) as caught:
        pack_tensors([Leaf(huge)], "flash")
    assert str(caught.value) == (
        "A tensor of the shape (65536, 32768) has 2147483648 items; expected fewer than 2**31 "
        "items, which a .tcz file holds: split the layer, or save it as .json."
    )


@settings(max_examples=25)
@given(leaf=tensors(), before=tensors(), piece=st.integers(1, 9))
def test_large_tensors_are_written_in_pieces_to_the_same_bytes(
    leaf: Leaf, before: Leaf, piece: int
) -> None:
    whole = pack_tensors([before, leaf], "flash")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_module, "_PIECE", piece)
        patch.setattr(huffman, "_PIECE", piece)
        assert pack_tensors([before, leaf], "flash") == whole


BAD_RECORDS = {
    "type": (bytes([0xC0, 0]), "unknown type"),
    "rank": (bytes([0, 9]), "unknown type"),
    "parts of a plain tensor": (bytes([8, 1, 4]), "unknown type"),
    "a transposed plain tensor": (bytes([4, 2, 2, 2]), "transposed that cannot be"),
    "a sparse integer": (bytes([1 | 5 << 4, 1, 4]), "kind 1 is int16"),
    "a shared integer": (bytes([2 | 4 << 4, 1, 4, 1]), "kind 2 is uint8"),
    "bytes of floats": (bytes([3, 1, 4]), "kind 3 is float32"),
    "too many centroids": (bytes([2, 1, 4]) + varint(256), "257 centroids"),
    "too many items": (bytes([0, 2]) + varint(1 << 20) * 2, r"2\*\*31 items"),
    "parts that do not divide": (bytes([2 | 8, 1, 4, 1, 3]), "codebooks do not divide"),
    "no parts": (bytes([2 | 8, 1, 4, 1, 0]), "codebooks do not divide"),
    "too many parts": (
        bytes([2 | 8, 3, 0, 1, 1, 1]) + varint(1 << 34) + varint(1) * 2,
        r"2\*\*32 codebooks",
    ),
    "a promise": (bytes([0, 1]) + varint(1 << 20), r"promises tensors of more than 75776 bytes"),
    "the end": (bytes([0, 1]), "ends 1 bytes early"),
}


HUGE_AND_EMPTY = [
    dims
    for size in (2**31, 2**32 - 1)
    for dims in ((0, size), (size, 0), (0, size, size), (size, size, 0), (1, 0, 2, size))
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", range(4))
def test_an_empty_tensor_of_a_huge_shape_allocates_nothing(
    twin: Twin, kind: int, profile: Profile
) -> None:
    def file(dims: tuple[int, ...], parts: tuple[int, ...] = ()) -> tuple[bytes, bytes]:
        head = bytes([kind | bool(parts) << 3 | (3 if kind == 3 else 0) << 4, len(dims)])
        record = head + b"".join(map(varint, dims)) + (b"\1" if kind == 2 else b"")
        values = bytes(8 * int(np.prod(parts))) if kind == 2 else b""
        stream = (b"\0" if kind else b"") + (b"\0" if kind == 1 else b"")
        weights = b"\0" if profile == "archive" else values + stream
        return varint(1) + record + b"".join(map(varint, parts)), weights + bytes(4)

    for dims in HUGE_AND_EMPTY:
        records, weights = file(dims)
        with pytest.raises(Damaged, match=r"2\*\*31 items"):
            read_records(records, len(weights), profile)
        if profile == "flash":
            data = join_sections(Sections("flash", b"", records, weights))
            assert not twin.decode(data).read
            assert twin.text == "The section tensors holds what no writer writes."
    # As large as may be: it is read, and its rows and columns take no memory.
    size = 2**31 - 2
    for dims, parts in (((0, size), ()), ((size, 0), ()), ((0, size), (1, 2)), ((size, 0), (2, 1))):
        if parts and kind != 2:
            continue
        records, weights = file(dims, parts)
        if profile == "archive" and kind == 2:  # the centroids are coded too
            encoder = Encoder()
            count = 2 * int(np.prod(parts))
            ArchiveModels(encoder).scalars(count, 4, True, np.zeros(count, np.int64))
            weights = varint(len(encoder.data())) + encoder.data()
        (leaf,) = unpack_tensors(weights, read_records(records, len(weights), profile), profile)
        assert (leaf.values if leaf.codes is None else leaf.codes).shape == dims
        if profile == "flash":
            assert twin.decode(join_sections(Sections("flash", b"", records, weights))).read


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_no_writer_writes_is_told(name: str) -> None:
    record, message = BAD_RECORDS[name]
    with pytest.raises(Damaged, match=message):
        read_records(varint(1) + record, 10, "archive")


def test_records_end_where_they_end_and_flash_is_not_transposed() -> None:
    with pytest.raises(Damaged, match="2 bytes too many"):
        read_records(varint(0) + b"ab", 10, "archive")
    with pytest.raises(Damaged, match="transposed that cannot be"):
        read_records(varint(1) + bytes([3 | 4 | 3 << 4, 2, 1, 1]), 10, "flash")


def flash(record: bytes, weights: bytes) -> None:
    read = read_records(varint(1) + record, len(weights), "flash")
    unpack_tensors(weights, read, "flash")


SHARED_8 = bytes([2, 1, 8, 1])  # eight codes of two float32 centroids
TWO = bytes(8)
END = bytes(4)
BOTH_SINGLE = bytes([2, 0x0F, 0x0F])  # gaps: 0 alone, without bits; codes: 0 alone
BAD_STREAMS = {
    "too many entries": (TWO + varint(9) + END, "more entries than"),
    "flags": (TWO + varint(8) + bytes([4]) + END, "unknown flags"),
    "no gaps before": (TWO + varint(8) + bytes([1]) + END, "repeats a table"),
    "no codes before": (TWO + varint(8) + bytes([2, 2, 0x0F]) + END, "repeats a table"),
    "half a code": (TWO + varint(8) + bytes([0, 2, 0x01, 0x0F]) + END, "lengths are not complete"),
    "a nibble more": (TWO + varint(8) + bytes([0, 1, 0x1F, 0x0F]) + END, "lengths are not compl"),
    "too many bits": (
        TWO + varint(8) + bytes([0]) + BOTH_SINGLE + varint(7000) + END,
        "more bits than its entries",
    ),
    "bits that are not read": (
        TWO + varint(8) + bytes([0]) + BOTH_SINGLE + varint(3) + bytes([0]) + END,
        "ends elsewhere",
    ),
    "bits that are not 0": (
        TWO + varint(8) + bytes([0]) + BOTH_SINGLE + varint(3) + bytes([1]) + END,
        "bits that are not 0",
    ),
    "an end": (TWO + varint(0) + b"\1" + END, "four bytes of 0"),
    "no end": (TWO + varint(0) + b"\0", "four bytes of 0"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_stream_that_no_writer_writes_is_told(name: str) -> None:
    weights, message = BAD_STREAMS[name]
    with pytest.raises(Damaged, match=message):
        flash(SHARED_8, weights)


def test_an_entry_behind_its_tensor_is_told() -> None:
    # Two entries of gap 6 (words of 1 bit for gaps 6 and 7 of 8 symbols): positions 6 and 13.
    gaps = bytes([8, 0, 0, 0, 0x11])
    weights = TWO + varint(2) + bytes([0]) + gaps + bytes([0xF0]) + varint(2) + bytes([0]) + END
    with pytest.raises(Damaged, match="behind its tensor's end"):
        flash(SHARED_8, weights)


def test_a_gap_code_of_the_escape_alone_names_no_code() -> None:
    only_escape = bytes([1, 0x0F])
    codes = bytes([0x11])  # codes 0 and 1 of one bit each
    weights = TWO + varint(3) + bytes([0]) + only_escape + codes + varint(0) + END
    records = read_records(varint(1) + SHARED_8, len(weights), "flash")
    (leaf,) = unpack_tensors(weights, records, "flash")
    assert leaf.codes is not None and not leaf.codes.any() and leaf.codes.size == 8


def test_a_stream_of_many_chunks_is_checked() -> None:
    record = bytes([2, 1]) + varint(600) + bytes([1])
    head = TWO + varint(600) + bytes([0]) + BOTH_SINGLE + varint(0)
    flash(record, head + varint(0) + bytes([0]) + END)
    with pytest.raises(Damaged, match="differ by too much"):
        flash(record, head + varint(0) + bytes([14]) + bytes(4) + END)
    with pytest.raises(Damaged, match="more bits than its entries"):
        flash(record, head + varint(6145) + bytes([0]) + END)


def test_a_sparse_tensor_has_a_value_for_each_place() -> None:
    record = bytes([1, 1, 8])
    stream = varint(8) + bytes([0]) + bytes([2, 0x0F, 0xF0]) + varint(0)
    flash(record, stream + varint(8) + bytes(32) + END)
    with pytest.raises(Damaged, match="another number of values"):
        flash(record, stream + varint(7) + bytes(28) + END)


def test_a_truth_value_is_0_or_1() -> None:
    with pytest.raises(Damaged, match="neither 0 nor 1"):
        flash(bytes([11 << 4, 1, 2]), b"\0\2" + END)


def test_the_archives_words_are_checked() -> None:
    leaf = [Leaf(np.array([1.0, 2.0], np.float32))]
    records, weights = pack_tensors(leaf, "archive")
    read = read_records(records, len(weights), "archive")
    size, words = weights[0], weights[1:]
    for data, message in (
        (varint(size + 40) + words + bytes([9] * 40), "elsewhere than its tensors"),
        # One word more or less is what a range decoder by itself would not see.
        (varint(size + 4) + words + bytes(4), "elsewhere than its tensors"),
        (varint(size + 4) + words + bytes([9] * 4), "elsewhere than its tensors"),
        (varint(size - 4) + words[:-4], "elsewhere than its tensors"),
        (varint(size - 1) + words, "no sequence of words"),
        (varint(size) + words + b"\1", "bytes that are not 0"),
    ):
        with pytest.raises(Damaged, match=message):
            unpack_tensors(data, read, "archive")


def test_a_code_without_a_centroid_is_told() -> None:
    # Three ranks take two bits, so there is room for a fourth, which no writer writes.
    encoder = Encoder()
    models = ArchiveModels(encoder)
    models.scalars(4, 4, True, np.zeros(4, np.int64))
    models.mask((1,), False, np.ones(1, np.int64))
    models.ranks(3, np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([3]))
    words = encoder.data()
    data = varint(len(words)) + words
    read = read_records(varint(1) + bytes([2, 1, 1, 3]), len(data), "archive")
    with pytest.raises(Damaged, match="no centroid"):
        unpack_tensors(data, read, "archive")


def test_sections_say_what_they_promise(leaves: list[Leaf]) -> None:
    records, weights = pack_tensors(leaves, "flash")
    sections = read_sections(join_sections(Sections("flash", b"", records, weights)))
    assert [record.dims for record in sections.records] == [
        (leaf.values if leaf.codes is None else leaf.codes).shape for leaf in leaves
    ]
    assert container.VERSION == 1
