"""The benchmark's own logic: what is evaluated is not what settings are chosen by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tvm_compress as tc
from benchmarks import post_training
from benchmarks.post_training import NETWORKS, Network, Samples, coded_bytes, measure, split, table
from tests.passes.nets import conv_net
from tvm_compress import codec, ir
from tvm_compress.errors import DataError
from tvm_compress.passes import ShareWeights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2, 5, 5)).astype(np.float32)


def samples() -> Samples:
    right = post_training._answers(conv_net(), X)
    labels = np.where(np.arange(60) % 4, right, (right + 1) % 3)  # right in three of four
    choose, evaluate = split(X, labels, 20)
    return Samples((choose[0], None), evaluate, choose[0][:8])


def test_every_sample_is_on_one_side() -> None:
    labels = np.arange(60)
    choose, evaluate = split(X, labels, 20)
    np.testing.assert_array_equal(np.concatenate([choose[1], evaluate[1]]), labels)
    np.testing.assert_array_equal(np.concatenate([choose[0], evaluate[0]]), X)
    for count in (0, 60):
        with pytest.raises(DataError) as caught:
            split(X, labels, count)
        assert str(caught.value) == (
            f"{count} of 60 samples are to choose settings by; expected at least one there and one "
            "to evaluate."
        )


def test_rows_of_a_network() -> None:
    network = Network("", lambda folder: samples(), ((0.02, False), (0.02, True)), 8, 1)
    rows = measure("net", conv_net(), network, samples())
    assert [row["setting"] for row in rows] == ["float32", "no data, 0.02", "inputs, 0.02"]
    assert rows[0]["accuracy_percent"] == 75 and rows[0]["smaller"] == 1
    assert rows[0]["weight_bytes"] == 4 * (72 + 12)
    for row, calibrate in zip(rows[1:], (None, X[:8]), strict=True):
        made = tc.compress(
            conv_net(), tc.recipes.post_training(0.02), calibrate=calibrate, progress=False
        )
        assert (row["weight_bytes"], row["file_bytes"]) == coded_bytes(made)
        assert row["weight_bytes"] < row["file_bytes"] == len(codec.pack(made))
        right = post_training.accuracy(made, *samples().evaluate)
        assert row["accuracy_percent"] == right == 75 - row["points_lost"]
    # By its own answers the network is always right.
    chosen = measure("net", conv_net(), network, samples(), choosing=True)
    assert chosen[0]["accuracy_percent"] == 100
    assert len(table(rows).splitlines()) == 5 and "no data, 0.02" in table(rows)


def test_weights_are_the_bytes_of_the_file() -> None:
    shared = ShareWeights(3)(conv_net())
    found = [w.parameter for w in ir.weights(shared).values()]
    alone = sum(codec.coded_bytes(p.codes, p.centroids) for p in found)  # type: ignore[arg-type]
    entries = sum(np.unique(p.codes).size for p in found)
    # Codes by themselves end in whole words; a float32 takes between one and five bytes.
    weights, file = coded_bytes(shared)
    assert alone - 8 + entries < weights < alone + 8 + 5 * entries
    assert file == len(codec.pack(shared))
    half = tc.passes.ShareWeights(3, layers={"fc*": 0})(conv_net())
    assert 4 * 12 < coded_bytes(half)[0] < 4 * 12 + weights
    assert coded_bytes(conv_net())[0] == 4 * (72 + 12)


def test_nothing_evaluated_is_looked_at_before(shared_data: Path) -> None:
    for name in ("kws_dscnn", "vww_96"):  # the pictures of ic take long to decode
        data = NETWORKS[name].data(shared_data)
        before = {x.tobytes() for x in np.concatenate([data.choose[0], data.calibrate])}
        assert not before & {x.tobytes() for x in data.evaluate[0]}
        assert len(data.evaluate[0]) == len(data.evaluate[1]) >= 120
