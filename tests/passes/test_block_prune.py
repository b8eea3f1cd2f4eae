"""``block-prune``: how many blocks, which ones, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from tests.passes.nets import CONV, FC, conv_net, spoilt_by, values
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import BlockPrune, ShareWeights
from tvm_compress.passes.block_prune import keep_blocks


@given(
    st.integers(1, 7),
    st.integers(1, 13),
    st.integers(1, 5),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 999),
)
def test_the_blocks_of_smallest_norm_go(
    outputs: int, inputs: int, block: int, height: int, sparsity: float, seed: int
) -> None:
    rows = np.random.default_rng(seed).integers(-2, 3, (outputs, inputs)).astype(np.float32)
    before = rows.copy()
    kept = keep_blocks(rows, sparsity, block, height)
    np.testing.assert_array_equal(rows, before)
    blocks = [
        (slice(o, o + height), slice(i, i + block))
        for o in range(0, outputs, height)
        for i in range(0, inputs, block)
    ]
    # Squares of small whole numbers are exact, so the order has no rounding in it.
    norm = [sum(int(v) ** 2 for v in rows[place].ravel()) for place in blocks]
    order = sorted(range(len(blocks)), key=lambda i: (norm[i], -i))
    gone = set(order[: round(sparsity * len(blocks))])
    for number, place in enumerate(blocks):
        expected = np.zeros_like(rows[place]) if number in gone else rows[place]
        np.testing.assert_array_equal(kept[place], expected)


def test_tiny_and_huge_norms_are_told_apart() -> None:
    rows = np.array([[3e38, 3e38, 2e38, 2e38], [1e-30, 0, 2e-30, 0]], np.float32)
    kept = keep_blocks(rows, 0.5, 2)
    np.testing.assert_array_equal(kept, [rows[0], [0, 0, 0, 0]])
    kept = keep_blocks(rows, 0.25, 2)
    np.testing.assert_array_equal(kept, [rows[0], [0, 0, *rows[1, 2:]]])


def test_in_a_network_blocks_lie_along_the_inputs() -> None:
    after = values(BlockPrune(0.5, block=2)(conv_net()))
    pairs = after["fc_weight"].reshape(2, 2, 3).any(axis=1)
    assert np.count_nonzero(pairs) == 3
    np.testing.assert_array_equal(after["fc_weight"], np.where(np.repeat(pairs, 2, 0), FC, 0))
    places = after["conv_weight"].any(axis=1)  # the two channels at a place are a block
    assert np.count_nonzero(places) == 18
    np.testing.assert_array_equal(after["conv_weight"], np.where(places[:, None], CONV, 0))
    np.testing.assert_array_equal(after["conv_bias"], values(conv_net())["conv_bias"])


def test_in_a_network_blocks_span_neighbouring_outputs() -> None:
    after = values(BlockPrune(0.5, block=2, outputs=2)(conv_net()))
    for name, dense in (("fc_weight", FC.T), ("conv_weight", CONV)):
        made = after[name].T if name == "fc_weight" else after[name]
        rows, kept = (np.moveaxis(v, 1, -1).reshape(-1, v.shape[1]) for v in (dense, made))
        taps = len(rows) // len(dense)
        blocks = []
        for first in range(0, len(dense), 2):
            for tap in range(taps):
                for column in range(0, rows.shape[1], 2):
                    lines = [o * taps + tap for o in range(first, min(first + 2, len(dense)))]
                    blocks.append((lines, slice(column, column + 2)))
        alive = [bool(kept[place].any()) for place in blocks]
        assert len(alive) - sum(alive) == round(0.5 * len(blocks)), name
        for place, lives in zip(blocks, alive, strict=True):
            np.testing.assert_array_equal(kept[place], rows[place] * lives)


def test_first_last_and_patterns() -> None:
    after = values(BlockPrune(1.0, first=0.0)(conv_net()))
    np.testing.assert_array_equal(after["conv_weight"], CONV)
    assert not after["fc_weight"].any()
    after = values(BlockPrune(1.0, last=0.0)(conv_net()))
    np.testing.assert_array_equal(after["fc_weight"], FC)
    assert not after["conv_weight"].any()
    after = values(BlockPrune(0.0, last=0.0, layers={"fc*": 1.0})(conv_net()))
    assert not after["fc_weight"].any()


def test_twice_is_once() -> None:
    once = BlockPrune(0.5)(conv_net())
    tvm.ir.assert_structural_equal(BlockPrune(0.5)(once), once)


def test_refuses_options_outside_their_range() -> None:
    with pytest.raises(OptionError) as caught:
        BlockPrune(block=0)
    assert str(caught.value) == (
        "block-prune: a block has 0 inputs; expected a whole number from 1 on."
    )
    with pytest.raises(OptionError) as caught:
        BlockPrune(outputs=-1)
    assert str(caught.value) == (
        "block-prune: a block has -1 outputs; expected a whole number from 1 on."
    )
    for options in ({"sparsity": 1.5}, {"layers": {"a": 1.5}}, {"first": 1.5}, {"last": 1.5}):
        with pytest.raises(OptionError) as caught:
            BlockPrune(**options)  # type: ignore[arg-type]
        assert str(caught.value) == (
            "block-prune: the sparsity is 1.5; expected a number from 0 to 1."
        )


def test_refuses_what_it_cannot_prune() -> None:
    with pytest.raises(PassError, match=r"^block-prune: the weight conv_weight is already shared;"):
        BlockPrune()(ShareWeights()(conv_net()))
    with pytest.raises(PassError, match=r"^block-prune: .* holds 1 infinite value;"):
        BlockPrune()(conv_net(fc=spoilt_by(np.inf)))
    with pytest.raises(OptionError, match=r"^block-prune: the pattern lstm\* fits no weight;"):
        BlockPrune(layers={"lstm*": 0.5})(conv_net())
