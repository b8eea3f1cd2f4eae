"""``bank-prune``: how many weights of each bank, which ones, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.passes.nets import CONV, FC, conv_net, spoilt_by, values
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import BankPrune, ShareWeights
from tvm_compress.passes.bank_prune import from_rows, keep_in_banks, to_rows


@given(
    st.integers(1, 4), st.integers(1, 21), st.integers(1, 6), st.integers(2, 6), st.integers(0, 999)
)
def test_every_bank_keeps_its_largest(
    outputs: int, inputs: int, keep: int, bank: int, seed: int
) -> None:
    # Few distinct magnitudes, so that equal ones are common.
    rows = np.random.default_rng(seed).integers(-3, 4, (outputs, inputs)).astype(np.float32)
    before = rows.copy()
    kept = keep_in_banks(rows, keep, bank)
    np.testing.assert_array_equal(rows, before)
    assert kept.dtype == np.float32
    for row, result in zip(rows, kept, strict=True):
        for start in range(0, inputs, bank):
            places = range(start, min(start + bank, inputs))
            best = sorted(places, key=lambda i: (-abs(float(row[i])), i))[:keep]
            assert [float(result[i]) for i in places] == [
                float(row[i]) if i in best else 0.0 for i in places
            ]


def test_a_product_has_its_banks_along_the_inputs() -> None:
    after = values(BankPrune(keep=1, bank=2)(conv_net()))["fc_weight"]
    assert after.shape == FC.shape == (4, 3)
    for pair in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(np.count_nonzero(after[pair], axis=0), [1, 1, 1])
        np.testing.assert_array_equal(np.abs(after[pair]).max(axis=0), np.abs(FC[pair]).max(axis=0))


def test_a_convolution_has_its_banks_along_the_channels() -> None:
    after = values(BankPrune(keep=1, bank=2)(conv_net()))["conv_weight"]
    np.testing.assert_array_equal(np.count_nonzero(after, axis=1), np.ones((4, 3, 3)))
    np.testing.assert_array_equal(np.abs(after).max(axis=1), np.abs(CONV).max(axis=1))


def test_n_of_m_is_a_bank_of_m() -> None:
    after = values(BankPrune(keep=2, bank=4)(conv_net()))["fc_weight"]
    np.testing.assert_array_equal(np.count_nonzero(after, axis=0), [2, 2, 2])


def test_first_last_and_patterns() -> None:
    after = values(BankPrune(keep=1, bank=2, first=2)(conv_net()))
    np.testing.assert_array_equal(after["conv_weight"], CONV)
    assert np.count_nonzero(after["fc_weight"]) == 6
    after = values(BankPrune(keep=1, bank=2, last=2)(conv_net()))
    np.testing.assert_array_equal(after["fc_weight"], FC)
    assert np.count_nonzero(after["conv_weight"]) == CONV.size // 2
    after = values(BankPrune(keep=1, bank=2, last=1, layers={"fc*": 2})(conv_net()))
    np.testing.assert_array_equal(after["fc_weight"], FC)


def test_biases_stay_and_twice_is_once() -> None:
    once = BankPrune(keep=1, bank=4)(conv_net())
    np.testing.assert_array_equal(values(once)["conv_bias"], values(conv_net())["conv_bias"])
    tvm.ir.assert_structural_equal(BankPrune(keep=1, bank=4)(once), once)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple), st.integers(0, 4), st.data())
def test_rows_and_back(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    weight = np.random.default_rng(seed).standard_normal(shape)
    rows = to_rows(weight, axis)
    assert rows.shape == (shape[axis], weight.size // shape[axis])
    np.testing.assert_array_equal(from_rows(rows, shape, axis), weight)
    for output in range(shape[axis]):
        np.testing.assert_array_equal(
            np.sort(rows[output]), np.sort(weight.take(output, axis).ravel())
        )


def test_rows_of_a_convolution_walk_channels_first() -> None:
    weight = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    expected = [weight[0, i, h, w] for w in range(2) for h in range(2) for i in range(3)]
    np.testing.assert_array_equal(to_rows(weight, 0)[0], expected)


def test_refuses_banks_and_numbers_outside_their_range() -> None:
    with pytest.raises(OptionError) as caught:
        BankPrune(bank=1)
    assert str(caught.value) == (
        "bank-prune: a bank has 1 inputs; expected a whole number from 2 on."
    )
    wrong: list[dict[str, Any]] = [
        {"keep": 0},
        {"first": 0},
        {"last": 0},
        {"layers": {"fc*": 0}},
    ]
    for options in wrong:
        with pytest.raises(OptionError) as caught:
            BankPrune(**options)
        assert str(caught.value) == (
            "bank-prune: 0 weights of a bank are kept; expected a whole number from 1 to the 16 of "
            "the bank."
        )
    with pytest.raises(OptionError, match="17 weights of a bank are kept"):
        BankPrune(keep=17)


def test_refuses_what_it_cannot_prune() -> None:
    with pytest.raises(PassError) as caught:
        BankPrune()(ShareWeights()(conv_net()))
    assert str(caught.value) == (
        "bank-prune: the weight conv_weight is already shared; expected a dense weight: run "
        "bank-prune before share-weights, and share-weights once."
    )
    with pytest.raises(PassError, match=r"^bank-prune: the weight fc_weight holds 1 NaN;"):
        BankPrune()(conv_net(fc=spoilt_by(np.nan)))
    with pytest.raises(OptionError, match=r"^bank-prune: the pattern lstm\* fits no weight;"):
        BankPrune(layers={"lstm*": 2})(conv_net())


def test_a_row_shorter_than_a_bank_keeps_as_many() -> None:
    rows: NDArray[Any] = np.array([[1.0, -3.0, 2.0]])
    np.testing.assert_array_equal(keep_in_banks(rows, 2, 16), [[0, -3, 2]])
