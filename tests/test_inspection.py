from __future__ import annotations

from pathlib import Path

import tvm

from tvm_compress import inspection
from tvm_compress.frontends import load
from tvm_compress.passes import Prune, ShareWeights


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
    assert empty.packed_bytes == 33 * 2 + 2


def test_codebooks_of_groups_count_their_centroids(digits_onnx: Path) -> None:
    size, groups = 32 * 16 * 3 * 3, 4
    found = inspection.inspect(ShareWeights(2, groups=groups).apply(load(digits_onnx)))
    row = next(p for p in found.parameters if p.name == "conv2_weight")
    assert (row.layout, row.bits) == ("dense_codes", 2)
    assert row.packed_bytes == size * 2 // 8 + groups * 4 * 4
