from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from tests.codec.twin import COMPILERS, Twin, missing
from tvm_compress.codec.graph import Leaf
from tvm_compress.frontends import load
from tvm_compress.passes import Prune, ShareWeights


@pytest.fixture(scope="session", params=COMPILERS)
def twin(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Twin]:
    if reason := missing(request.param):
        pytest.skip(reason)
    decoder = Twin(request.param, tmp_path_factory.mktemp("decoder"))
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def small_module(digits_onnx: object) -> tvm.IRModule:
    """The digits network, pruned and shared."""
    return ShareWeights(4)(Prune(0.9)(load(digits_onnx)))


@pytest.fixture(scope="session")
def leaves() -> list[Leaf]:
    """One tensor of each kind, large enough for several chunks."""
    chance = np.random.default_rng(7)
    codes = chance.integers(1, 16, (40, 60)).astype(np.uint8)
    sparse = codes * (chance.random(codes.shape) < 0.2).astype(np.uint8)
    pruned: NDArray[np.float32] = chance.normal(size=(20, 30)).astype(np.float32)
    pruned[chance.random(pruned.shape) < 0.8] = 0
    centroids = chance.normal(size=16).astype(np.float32)
    return [
        Leaf(centroids, codes),
        Leaf(centroids, sparse),
        Leaf(chance.normal(size=(2, 1, 200)).astype(np.float16), codes.reshape(40, 60) % 200),
        Leaf(pruned),
        Leaf(chance.integers(-9, 9, (30, 11)).astype(np.int8)),
        Leaf(chance.integers(-1000, 1000, 17).astype(np.int32)),
        Leaf(np.array([True, False])),
        Leaf(np.zeros((3, 0), np.float32)),
    ]
