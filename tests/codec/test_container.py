from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from tvm_compress import codec, edge, ir
from tvm_compress.codec.container import (
    Sections,
    join_sections,
    read_header,
    read_sections,
)
from tvm_compress.codec.cursor import varint
from tvm_compress.codec.graph import pack_graph
from tvm_compress.codec.tensors import pack_tensors
from tvm_compress.codec.text import pack_text
from tvm_compress.codec.words import ATTRIBUTES, OPERATORS, WORDS
from tvm_compress.errors import ModelFormatError, OptionError, UnsupportedError
from tvm_compress.ops import codebook
from tvm_compress.ops.meaning import MEANING

HEADER_BYTES = 9 + 3 * 9 + 4


def check_same(one: tvm.IRModule, other: tvm.IRModule) -> None:
    """Equal in structure, and names and bits of parameters too, which TVM does not compare."""
    tvm.ir.assert_structural_equal(one, other, map_free_vars=True)
    mine, its = ir.parameters(one), ir.parameters(other)
    assert list(mine) == list(its)
    for a, b in zip(mine.values(), its.values(), strict=True):
        assert a.value.tobytes() == b.value.tobytes()
    names = [[edge.var_name(b.var) for b in ir.bindings(ir.main_function(m))] for m in (one, other)]
    assert names[0] == names[1]


@pytest.mark.parametrize("profile", codec.PROFILES)
def test_a_module_is_saved_and_loaded(
    small_module: tvm.IRModule, tmp_path: Path, profile: str
) -> None:
    path = tmp_path / "digits.tcz"
    tc.save(small_module, path, profile=profile)
    check_same(small_module, tc.load(path))
    assert path.read_bytes() == codec.pack(small_module, profile)


def test_the_file_is_small_and_its_name_decides(small_module: tvm.IRModule, tmp_path: Path) -> None:
    tc.save(small_module, tmp_path / "digits.tcz")
    tc.save(small_module, tmp_path / "digits.json")
    assert (tmp_path / "digits.json").read_bytes().startswith(b"{")
    data = (tmp_path / "digits.tcz").read_bytes()
    assert read_sections(data).profile == "archive"
    assert len(data) < 3600
    assert len(read_sections(data).graph) < 200
    # Told by its bytes, whatever its name.
    (tmp_path / "model.bin").write_bytes(data)
    check_same(small_module, tc.load(tmp_path / "model.bin"))


def test_options_of_save_are_checked(small_module: tvm.IRModule, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no profile 'zip'; expected archive or flash"):
        tc.save(small_module, tmp_path / "x.tcz", profile="zip")
    with pytest.raises(OptionError, match=r"profile flash was asked for x\.json, which will be J"):
        tc.save(small_module, tmp_path / "x.json", profile="flash")
    with pytest.raises(OptionError, match=r"folder .* does not exist"):
        tc.save(small_module, tmp_path / "none" / "x.tcz")


def _module(make: Any, **inputs: tuple[tuple[int, ...], str]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    params = [relax.Var(n, relax.TensorType(s, d)) for n, (s, d) in inputs.items()]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(make(*params))
        builder.emit_func_output(out)
    return ir.Rewriter(builder.get()).run()


F32 = ((2, 6), "float32")
OP = relax.op
MODULES = {
    "integers, floats and tuples": _module(
        lambda x: OP.add(
            OP.split(OP.clip(x, -1.5, 6), 2, axis=1)[1], relax.const(np.float32(0.1))
        ),
        x=F32,
    ),
    "shapes and dtypes": _module(lambda x: OP.astype(OP.reshape(x, (3, 4)), "int8"), x=F32),
    "slices": _module(
        lambda x: OP.strided_slice(x, [0, 1], [0, 0], [2, 2**63 - 1], [1, 2]), x=F32
    ),
    "a padded tensor and resizing": _module(
        lambda x: OP.image.resize2d(OP.nn.pad(x, [0, 0, 0, 0, 1, 1, 2, 2]), (9, 7)),
        x=((1, 1, 4, 4), "float32"),
    ),
    "concatenation of two inputs": _module(lambda x, y: OP.concat([x, y], 1), x=F32, y=F32),
    "tensors within a call": _module(
        lambda x: OP.add(OP.quantize(
            x, relax.const(np.arange(1, 7, dtype=np.float32)), relax.const(np.zeros(6, np.int8)), 1
        ), relax.const(np.int8(3))),
        x=F32,
    ),
    "codebooks of parts": _module(
        lambda x: OP.matmul(
            x,
            codebook(
                relax.const(np.arange(24, dtype=np.uint8).reshape(6, 4) % 3),
                relax.const(np.arange(9, dtype=np.float32).reshape(3, 1, 3)),
            ),
        ),
        x=F32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("profile", codec.PROFILES)
@pytest.mark.parametrize("name", MODULES)
def test_all_that_a_graph_holds_comes_back(name: str, profile: str) -> None:
    mod = MODULES[name]
    check_same(mod, codec.unpack(codec.pack(mod, profile)))


def test_outputs_of_a_tuple_come_back() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit_output(OP.nn.relu(x))
            b = builder.emit_output(OP.exp(a))
        builder.emit_func_output(tvm.ir.Tuple([b, a, b]))
    mod = ir.Rewriter(builder.get()).run()
    check_same(mod, codec.unpack(codec.pack(mod)))


def test_every_operator_with_a_meaning_can_be_saved() -> None:
    named = {name if "." in name else f"relax.{name}" for name in MEANING}
    assert named <= set(OPERATORS)
    assert set(OPERATORS) <= set(tvm.ir.Op.list_op_names())
    assert len(set(OPERATORS)) == len(OPERATORS)
    assert len({*WORDS, *ATTRIBUTES}) == len(WORDS) + len(ATTRIBUTES)


def test_numbers_of_words_never_change() -> None:
    assert (OPERATORS[0], OPERATORS[1], OPERATORS[17]) == GOLDEN_OPERATORS
    assert (WORDS[0], WORDS[50], ATTRIBUTES[0], ATTRIBUTES[20]) == GOLDEN_WORDS


def test_the_bytes_are_those_of_every_machine() -> None:
    mod = MODULES["integers, floats and tuples"]
    assert codec.pack(mod, "archive").hex() == GOLDEN_ARCHIVE
    assert codec.pack(mod, "flash").hex() == GOLDEN_FLASH


# ---- what a file spends its bytes on ---------------------------------------------------------


@pytest.mark.parametrize("profile", codec.PROFILES)
def test_each_tensor_takes_what_the_file_is_shorter_by_without_it(
    small_module: tvm.IRModule, profile: str
) -> None:
    mod, bits = codec.measure(codec.pack(small_module, profile))
    check_same(small_module, mod)
    assert set(bits) == set(ir.parameters(small_module))
    weights = len(read_sections(codec.pack(small_module, profile)).weights)
    # Its length and the end of its last words (archive), or the four bytes behind it (flash).
    assert 0 <= weights - sum(bits.values()) / 8 <= (12 if profile == "archive" else 4)
    _, leaves = pack_graph(small_module)
    for number in (0, 2, len(leaves) - 1):  # coded first, so that nothing helps to predict it
        alone = pack_tensors(leaves[number : number + 1], profile)[1]
        name = list(ir.parameters(small_module))[number]
        most = 8 * (len(alone) - (4 if profile == "flash" else 0))
        assert bits[name] <= most + 8
        if number == 0:
            assert bits[name] >= most - 8 * (12 if profile == "archive" else 0)


def test_tensors_without_a_name_are_told_together() -> None:
    mod = MODULES["tensors within a call"]
    _, bits = codec.measure(codec.pack(mod, "flash"))
    assert pack_graph(mod)[1][0].values.nbytes == 24
    # The zeros are bytes: a stream of no entries.
    assert bits == {None: 8 * (24 + 1)}


def test_the_header_is_told_whatever_its_state(file: bytes) -> None:
    sound = read_header(file)
    assert sound is not None
    assert (sound.version, sound.profile, sound.features, sound.intact) == (1, "flash", 0, True)
    assert (sound.header_bytes, sound.file_bytes) == (HEADER_BYTES, len(file))
    sections = read_sections(file)
    for state, part in zip(
        sound.sections, (sections.graph, sections.tensors, sections.weights), strict=True
    ):
        assert (state.size_bytes, state.crc32, state.intact) == (len(part), zlib.crc32(part), True)
    assert [state.name for state in sound.sections] == ["graph", "tensors", "weights"]

    def states(data: bytes) -> tuple[bool, ...]:
        found = read_header(data)
        assert found is not None
        return (found.intact, *(state.intact for state in found.sections))

    assert states(file[:-1]) == (True, True, True, False)
    assert states(file[:-1] + bytes([file[-1] ^ 1])) == (True, True, True, False)
    assert states(file[:HEADER_BYTES] + b"x" + file[HEADER_BYTES + 1 :])[:2] == (True, False)
    assert states(_with_header(file, features=1)) == (True,) * 4
    assert states(file[:6] + b"\1" + file[7:]) == (False, True, True, True)
    assert states(file[:20]) == (False, False)
    other = read_header(_with_header(file, version=7, profile=9, features=3, first=8))
    assert other is not None
    assert (other.version, other.profile, other.features) == (7, "9", 3)
    assert other.sections[0].name == "type 8"
    for size in range(len(file)):
        read_header(file[:size])  # never an exception
    assert read_header(file[:8]) is None
    assert read_header(b"TCZ!" + file[4:]) is None


# ---- what cannot be saved --------------------------------------------------------------------


def test_an_operator_without_a_meaning_is_told() -> None:
    mod = _module(lambda x: OP.linear_algebra.matmul(x, OP.permute_dims(x)), x=F32)
    assert codec.pack(mod)
    sorted_ = _module(lambda x: OP.sort(x), x=F32)
    with pytest.raises(UnsupportedError, match=r"calls relax\.sort \(\w+\).*save it as \.json"):
        codec.pack(sorted_)


def test_other_functions_are_told(small_module: tvm.IRModule) -> None:
    mod = small_module.clone()
    mod["helper"] = mod["main"].with_attr("global_symbol", "helper")
    with pytest.raises(UnsupportedError, match=r"functions helper beside main"):
        codec.pack(mod)


def test_a_dynamic_input_is_told() -> None:
    n = tvm.tirx.Var("n", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((n, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(OP.nn.relu(x))
        builder.emit_func_output(out)
    with pytest.raises(UnsupportedError, match=r"input x is .*expected a tensor of static shape"):
        codec.pack(builder.get())


def test_attributes_that_a_file_cannot_hold_are_told(small_module: tvm.IRModule) -> None:
    def with_attribute(value: Any) -> tvm.IRModule:
        mod = small_module.clone()
        mod["main"] = mod["main"].with_attr("extra", value)
        return mod

    check_same(small_module, codec.unpack(codec.pack(small_module)))
    assert (
        codec.unpack(codec.pack(with_attribute([1, -2, "NCHW", 0.5, None])))["main"].attrs["extra"][
            1
        ]
        == -2
    )
    with pytest.raises(UnsupportedError, match=r"holds a .* as an attribute; expected numbers"):
        codec.pack(with_attribute(relax.const(1.0)))


# ---- what cannot be loaded -------------------------------------------------------------------


@pytest.fixture(scope="module")
def file() -> bytes:
    return codec.pack(MODULES["codebooks of parts"], "flash")


def test_every_truncation_is_told(file: bytes) -> None:
    for size in range(4, len(file)):
        with pytest.raises(ModelFormatError, match=r"damaged in its (header|section \w+): it ends"):
            codec.unpack(file[:size])


@pytest.mark.parametrize("profile", codec.PROFILES)
def test_every_change_of_a_byte_is_told(profile: str) -> None:
    file = codec.pack(MODULES["codebooks of parts"], profile)
    for at in range(len(file)):
        for change in (1, 0x80, 0xFF):
            other = bytearray(file)
            other[at] ^= change
            with pytest.raises(
                ModelFormatError, match=r"header|section (graph|tensors|weights)|does not begin"
            ):
                codec.unpack(bytes(other))


def test_messages_name_the_file_and_what_to_do(file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tcz"
    path.write_bytes(file[:-1])
    with pytest.raises(
        ModelFormatError, match=r"x\.tcz is damaged in its section weights.*Copy it again, or save"
    ):
        tc.load(path)
    with pytest.raises(ModelFormatError, match=r"does not begin as a \.tcz file.*tvm_compress\.s"):
        codec.unpack(b"TCZ!" + file[4:])
    with pytest.raises(ModelFormatError, match=r"section weights: 3 bytes follow it"):
        codec.unpack(file + b"abc")


def _with_header(file: bytes, **changes: int) -> bytes:
    places = {"version": 4, "profile": 5, "features": 6, "count": 8, "first": 9}
    head = bytearray(file[: HEADER_BYTES - 4])
    for name, value in changes.items():
        head[places[name]] = value
    return bytes(head) + struct.pack("<I", zlib.crc32(head)) + file[HEADER_BYTES:]


def test_a_newer_file_says_so(file: bytes) -> None:
    for changes in ({"version": 2}, {"features": 1}):
        with pytest.raises(ModelFormatError, match=r"reads version 1 without fea.*Install a newer"):
            codec.unpack(_with_header(file, **changes))


def test_headers_that_no_writer_writes_are_told(file: bytes) -> None:
    for changes in ({"version": 0}, {"profile": 2}, {"count": 4}):
        with pytest.raises(ModelFormatError, match=r"header: it tells a version, a profile or"):
            codec.unpack(_with_header(file, **changes))
    with pytest.raises(ModelFormatError, match=r"header: its sections are not graph, tensors"):
        codec.unpack(_with_header(file, first=2))


def _hostile(graph: bytes, promised: int | None = None) -> bytes:
    """A file that is sound but for its graph."""
    text = varint(len(graph) if promised is None else promised) + pack_text(graph)
    return join_sections(Sections("archive", text, *pack_tensors([], "archive")))


def test_a_promise_is_refused_before_anything_is_allocated(file: bytes) -> None:
    sections = read_sections(file)
    huge = varint(1) + bytes([0, 3]) + varint(60000) * 3
    with pytest.raises(ModelFormatError, match=r"section tensors: a tensor has 2\*\*31 items"):
        codec.unpack(join_sections(Sections("flash", sections.graph, huge, sections.weights)))
    many = varint(1) + bytes([0, 1]) + varint(1 << 30)
    with pytest.raises(ModelFormatError, match=r"section tensors: it promises tensors of more"):
        codec.unpack(join_sections(Sections("flash", sections.graph, many, sections.weights)))
    with pytest.raises(ModelFormatError, match=r"section graph: it promises 1000000 bytes"):
        codec.unpack(_hostile(b"abc", 1_000_000))


class _Long(bytes):
    def __len__(self) -> int:
        return 1 << 32


def test_a_section_that_a_header_cannot_tell_is_told() -> None:
    with pytest.raises(UnsupportedError) as caught:
        join_sections(Sections("flash", b"", b"", _Long()))
    assert str(caught.value) == (
        "The section weights has 4294967296 bytes; expected fewer than 2**32 bytes, which a .tcz "
        "file holds: share more of the weights, or save it as .json."
    )


NONE, ONE_INPUT = b"\0\0", b"\0\1\1x" + varint(WORDS.index("float32") + 1) + b"\1\4"
RELU = varint(OPERATORS.index("relax.nn.relu"))
END = b"\0\1\1y\x0a\0"
BAD_GRAPHS = {
    "nothing": (b"", "ends 1 bytes early"),
    "more behind it": (ONE_INPUT + b"\0" + END + b"\0", "does not end behind its outputs"),
    "two outputs of no tuple": (ONE_INPUT + b"\0\0\2\1y\x0a\0\1z\x0a\0", "does not end behind"),
    "an unknown operator": (ONE_INPUT + b"\1\2" + varint(9999) + b"\1", "unknown operator 9999"),
    "an unknown binding": (ONE_INPUT + b"\1\x09\0\0\0", "binding has the unknown tag 9"),
    "an unknown argument": (ONE_INPUT + b"\1\2" + RELU + b"\1\1\x63\0", "argument has the unkn"),
    "an unknown attribute": (b"\1\1\x63" + bytes(9), "attribute has the unknown tag 99"),
    "an unknown word": (b"\1" + varint(9999) + bytes(9), "the unknown word 9999"),
    "an unknown name": (ONE_INPUT + b"\1\2" + RELU + b"\5\0", "name has an unknown tag"),
    "attributes not there": (
        ONE_INPUT + b"\1\2" + RELU + b"\1\1\x0a\0\x07" + END, "repeats attributes that are not"
    ),
    "attributes of another type": (
        ONE_INPUT + b"\1\2" + RELU + b"\1\1\x0a\0\1\0\7ir.Call\0" + END, "ir.Call is no type of"
    ),
    "a variable too early": (ONE_INPUT + b"\1\2" + RELU + b"\1\1\x0a\5\0", "before its binding"),
    "a tensor that is not there": (ONE_INPUT + b"\1\0\1w" + END, "more tensors than the file"),
    "a call without arguments": (ONE_INPUT + b"\1\2" + RELU + b"\1\0\0" + END, "TVM refuses"),
    "a promise": (b"\x7f", "promises 127 items and holds 0"),
    "no text": (b"\0\1\2\xff\xfe\1\0", "TVM refuses its graph"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_a_graph_that_no_writer_writes_is_told(name: str) -> None:
    graph, message = BAD_GRAPHS[name]
    with pytest.raises(ModelFormatError, match=f"damaged in its section graph: .*{message}"):
        codec.unpack(_hostile(graph))
    # The same graph without its fault is read: the test sees the fault and nothing else.
    check = codec.unpack(_hostile(ONE_INPUT + b"\1\2" + RELU + b"\1\1\x0a\0\0" + END))
    assert next(edge.op_name(b.value) for b in ir.bindings(check["main"])) == "relax.nn.relu"


def test_tensors_and_graph_must_agree() -> None:
    text, leaves = pack_graph(MODULES["codebooks of parts"])
    graph = varint(len(text)) + pack_text(text)

    def file(tensors: list[Any]) -> bytes:
        return join_sections(Sections("archive", graph, *pack_tensors(tensors, "archive")))

    codec.unpack(file(leaves))
    with pytest.raises(ModelFormatError, match="names fewer tensors than the file holds"):
        codec.unpack(file([*leaves, *leaves]))
    dense = type(leaves[0])(leaves[0].values)
    with pytest.raises(ModelFormatError, match=r"shared weight .* has no codes"):
        codec.unpack(file([dense]))
    text, _ = pack_graph(_module(lambda x: OP.add(x, relax.const(np.ones(6, np.float32))), x=F32))
    graph = varint(len(text)) + pack_text(text)
    with pytest.raises(ModelFormatError, match="a dense tensor has codes"):
        codec.unpack(file(leaves))


GOLDEN_OPERATORS = ("tvm_compress.codebook", "relax.abs", "relax.broadcast_to")
GOLDEN_WORDS = ("global_symbol", "batch_axis", "ir.DictAttrs", "relax.attrs.GatherElementsAttrs")
GOLDEN_ARCHIVE = (
    "54435a1a01000000030143000000ee4acbaa02010000008def02d203010000008def02d2acca92895aee333c"
    "79874c07d732de4839229793e95dd141756f9357939ecd09c204cc4601e223f4349e8b26e009eefc1863e243"
    "84cca1784f17b26765f77bd4d5135d637b11e40000"
)
GOLDEN_FLASH = (
    "54435a1a01010000030143000000ee4acbaa02010000008def02d203040000001cdf44216d04956c5aee333c"
    "79874c07d732de4839229793e95dd141756f9357939ecd09c204cc4601e223f4349e8b26e009eefc1863e243"
    "84cca1784f17b26765f77bd4d5135d637b11e40000000000"
)
