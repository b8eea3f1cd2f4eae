from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tvm_compress import build, codec, inspection, ir, save
from tvm_compress.errors import ModelFormatError, OptionError
from tvm_compress.frontends import load
from tvm_compress.passes import BankPrune, BlockPrune, Prune, ShareWeights
from tvm_compress.targets.mcu.target import HostArtifact


def test_the_estimate_takes_the_smallest_layout(digits_onnx: Path) -> None:
    network = load(digits_onnx)

    def row(mod: tvm.IRModule) -> inspection.ParameterReport:
        found = inspection.inspect(mod)
        return next(p for p in found.parameters if p.name == "conv2_weight")

    dense, size = row(network), 32 * 16 * 3 * 3
    assert (dense.layout, dense.packed_bytes, dense.bits) == ("dense", 4 * size, 32)
    shared = row(ShareWeights(2).apply(network))
    assert (shared.layout, shared.bits) == ("dense_codes", 2)
    assert shared.packed_bytes == size * 2 // 8 + 4 * 4
    pruned = row(Prune(0.9).apply(network))
    assert (pruned.layout, pruned.bits) == ("gap_codes", 32)
    assert pruned.packed_bytes < 4 * size / 7
    empty = row(Prune(1.0).apply(network))
    assert (empty.density, empty.distinct) == (0.0, 1)
    assert empty.packed_bytes == 33 * 2
    banks = row(ShareWeights(4).apply(BankPrune(keep=2).apply(network)))
    assert (banks.layout, banks.packed_bytes) == ("bank", size * 2 // 16 + 16 * 4)
    blocks = row(BlockPrune(0.75).apply(network))
    # A byte and four floats each, and where each of 32 rows begins.
    assert blocks.layout == "block"
    assert blocks.packed_bytes == round(blocks.density * size) // 4 * 17 + 33 * 2


def test_codebooks_of_groups_count_their_centroids(digits_onnx: Path) -> None:
    size, groups = 32 * 16 * 3 * 3, 4
    found = inspection.inspect(ShareWeights(2, groups=groups).apply(load(digits_onnx)))
    row = next(p for p in found.parameters if p.name == "conv2_weight")
    assert (row.layout, row.bits) == ("dense_codes", 2)
    assert row.packed_bytes == size * 2 // 8 + groups * 4 * 4


@pytest.fixture(scope="module")
def small(digits_onnx: Path) -> tvm.IRModule:
    return ShareWeights(4).apply(Prune(0.9).apply(load(digits_onnx)))


@pytest.mark.parametrize("profile", codec.PROFILES)
def test_what_the_file_spends_adds_up(small: tvm.IRModule, profile: str, tmp_path: Path) -> None:
    path = tmp_path / "small.tcz"
    save(small, path, profile=profile)
    found = inspection.inspect(small, profile=profile)
    assert found == inspection.inspect_file(path)
    assert found.file is not None
    assert (found.file.profile, found.no_file) == (profile, "")
    totals = found.totals
    assert totals["file_bytes"] == path.stat().st_size == found.file.file_bytes
    parts = found.file.header_bytes + sum(s.size_bytes for s in found.file.sections)
    assert parts == totals["file_bytes"]
    assert totals["coded_bytes"] == sum(p.coded_bytes or 0 for p in found.parameters)
    # The rest of the section weights: the end of the coder's words, or four bytes.
    assert 0 <= found.file.sections[2].size_bytes - totals["coded_bytes"] <= 12
    for p in found.parameters:
        assert p.coded_bytes is not None and p.bits_per_weight is not None
        bytes_by_bits = p.bits_per_weight * np.prod(p.shape) / 8
        assert abs(p.coded_bytes - bytes_by_bits) <= 1
        assert p.coded_bytes > 0


def test_the_coded_bytes_are_those_of_the_coder(small: tvm.IRModule) -> None:
    found = inspection.inspect(small)
    first = next(iter(ir.parameters(small).values()))
    assert first.codes is not None and first.centroids is not None
    # The first tensor repeats no table, so it takes what it takes by itself.
    alone = codec.coded_bytes(first.codes, first.centroids, "flash") + first.centroids.nbytes
    assert found.parameters[0].coded_bytes == alone
    bias = next(p for p in found.parameters if p.name == "fc2_bias")
    assert (bias.coded_bytes, bias.bits_per_weight) == (40, 32.0)
    archive = inspection.inspect(small, profile="archive")
    assert archive.totals["coded_bytes"] < 0.95 * found.totals["coded_bytes"]


def test_a_network_that_no_file_holds() -> None:
    x = tvm.relax.Var("x", tvm.relax.TensorType((2, 3), "float32"))
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(tvm.relax.op.add(x, tvm.relax.const(np.ones(3, np.float32))))
            out = builder.emit_output(tvm.relax.op.sort(y))
        builder.emit_func_output(out)
    found = inspection.inspect(load(builder.get()))
    assert found.file is None
    assert "calls relax.sort" in found.no_file
    assert [(p.coded_bytes, p.bits_per_weight) for p in found.parameters] == [(None, None)]
    assert set(found.totals) == {"parameters", "density", "dense_bytes", "packed_bytes"}


def test_what_cannot_be_inspected(small: tvm.IRModule, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no profile 'zip'; expected archive or flash"):
        inspection.inspect(small, profile="zip")
    path = tmp_path / "small.tcz"
    save(small, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match=r"small\.tcz is damaged in its section weights"):
        inspection.inspect_file(path)


# ---- histograms ----------------------------------------------------------------------------------


def network(value: np.ndarray) -> tvm.IRModule:
    x = tvm.relax.Var("x", tvm.relax.TensorType(value.shape, str(value.dtype)))
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(tvm.relax.op.add(x, tvm.relax.const(value)))
        builder.emit_func_output(out)
    return load(builder.get())


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.25, -1.0, 3.5, 1e-3, -7.25]), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_a_histogram_counts_each_value_once(values: list[float], bins: int) -> None:
    mod = network(np.array(values, np.float32))
    (name,) = ir.parameters(mod)
    found = inspection.histogram(mod, name, bins=bins)
    kept = [float(np.float32(v)) for v in values if v]
    assert (found.name, found.size, found.zeros) == (name, len(values), len(values) - len(kept))
    assert found.centroids == ()
    assert len(found.bins) == (bins if kept else 0)
    for i, one in enumerate(found.bins):
        last = i == bins - 1
        # By hand: the lower end belongs to the bin, the upper one to the last bin alone.
        inside = [v for v in kept if one.low <= v < one.high or (last and v == one.high)]
        assert one.count == len(inside)
        assert one.centroids == 0
    if len(set(kept)) > 1:
        assert (found.bins[0].low, found.bins[-1].high) == (min(kept), max(kept))
        widths = [one.high - one.low for one in found.bins]
        assert max(widths) - min(widths) < 1e-9


def test_infinities_are_in_the_outer_bins() -> None:
    value = np.array([np.inf, np.inf, -np.inf, 1, 2, 0], np.float32)
    mod = network(value)
    (name,) = ir.parameters(mod)
    found = inspection.histogram(mod, name, bins=2)
    assert [(one.low, one.high, one.count) for one in found.bins] == [(1, 1.5, 2), (1.5, 2, 3)]
    mod = network(value[:1])
    (name,) = ir.parameters(mod)
    assert sum(one.count for one in inspection.histogram(mod, name).bins) == 1


def test_centroids_are_counted(small: tvm.IRModule) -> None:
    parameter = ir.parameters(small)["conv2_weight"]
    assert parameter.codes is not None and parameter.centroids is not None
    found = inspection.histogram(small, "conv2_weight")
    assert [c.code for c in found.centroids] == list(range(16))
    for centroid in found.centroids:
        assert centroid.codebook == 0
        assert centroid.value == parameter.centroids[centroid.code]
        assert centroid.count == int((parameter.codes == centroid.code).sum())
    assert found.centroids[0].count == found.zeros
    used = [c.value for c in found.centroids if c.count and c.value]
    assert sum(one.centroids for one in found.bins) == len(used)
    for one in found.bins[:-1]:
        assert one.centroids == sum(one.low <= v < one.high for v in used)


def test_centroids_of_several_codebooks_are_counted(digits_onnx: Path) -> None:
    mod = ShareWeights(1, groups=4).apply(load(digits_onnx))
    parameter = ir.parameters(mod)["conv2_weight"]
    assert parameter.codes is not None and parameter.centroids is not None
    found = inspection.histogram(mod, "conv2_weight")
    assert [(c.codebook, c.code) for c in found.centroids] == [
        (book, code) for book in range(4) for code in range(2)
    ]
    for c in found.centroids:
        rows = parameter.value[8 * c.codebook : 8 * c.codebook + 8]
        assert c.count == int((rows == c.value).sum())
        assert c.value == parameter.centroids[c.codebook, 0, 0, 0, c.code]


def test_a_histogram_of_nothing(small: tvm.IRModule) -> None:
    with pytest.raises(OptionError) as caught:
        inspection.histogram(small, "conv9_weight")
    names = ", ".join(ir.parameters(small))
    assert str(caught.value) == f"There is no parameter conv9_weight; expected {names}."
    with pytest.raises(OptionError, match=r"A histogram of 0 bins; expected 1 or more\."):
        inspection.histogram(small, "conv1_weight", bins=0)
    empty = network(np.zeros(3, np.float32))
    (name,) = ir.parameters(empty)
    assert inspection.histogram(empty, name).bins == ()


def test_the_memory_plan_is_what_is_built(small: tvm.IRModule) -> None:
    found = inspection.memory(small)
    built = build(small)
    assert isinstance(built, HostArtifact)
    assert found.arena_bytes == built.model.arena_bytes
    assert [(s.name, s.kind.split(" (")[0]) for s in found.steps] == [
        (layer.name, layer.kind.split(" (")[0]) for layer in built.model.layers
    ]
    assert [s.live_bytes for s in found.steps] == [x.live_bytes for x in built.model.layers]
    assert (found.input_bytes, found.output_bytes) == (8 * 8 * 4, 10 * 4)
    names = [tensor.name for tensor in found.tensors]
    assert len(set(names)) == len(names)
    # Two scratch arrays of one call keep the number that tells them apart.
    assert all("#" not in name or "workspace" in name for name in names)
    assert found.arena_bytes == max(t.offset + t.size_bytes for t in found.tensors)
    for a, b in itertools.combinations(found.tensors, 2):
        if a.first <= b.last and b.first <= a.last and a.name != b.over:
            assert a.offset + a.size_bytes <= b.offset or b.offset + b.size_bytes <= a.offset


def test_the_memory_plan_names_what_is_written_over() -> None:
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            first = builder.emit(relax.op.nn.softmax(x), "first")
            second = builder.emit(relax.op.nn.softmax(first), "second")
            out = builder.emit_output(relax.op.flip(second, 1), "y")
        builder.emit_func_output(out)
    found = inspection.memory(load(builder.get()))
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert by_name["second"].over == "first"
    assert by_name["second"].offset == by_name["first"].offset
    assert by_name["first"].over is None
