"""``drop-prune``: the laws of chance that a step obeys, its exact end, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from tests.passes.nets import BIAS, CONV, conv_net, spoilt_by, values
from tvm_compress.errors import OptionError, PassError
from tvm_compress.passes import DropPrune, Prune, ShareWeights
from tvm_compress.passes.drop_prune import drop_step, fraction_to_drop


def weights(size: int, sparsity: float, seed: int = 0) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    value = generator.standard_normal(size).astype(np.float32)
    value[generator.permutation(size)[: round(sparsity * size)]] = 0
    return value


def zeros(value: np.ndarray[Any, Any]) -> float:
    return float(np.mean(value == 0))


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_what_a_step_may_change(
    size: int, sparsity: float, c: float, p: float, q: float, seed: int
) -> None:
    before = weights(size, sparsity, seed)
    copy = before.copy()
    after = drop_step(before, c, p, q, np.random.default_rng(seed))
    np.testing.assert_array_equal(before, copy)
    assert after.dtype == np.float32
    dropped, returned = (before != 0) & (after == 0), (before == 0) & (after != 0)
    same = ~dropped & ~returned
    np.testing.assert_array_equal(after[same], before[same])
    kept = np.sort(np.abs(before[before != 0]))
    candidates = round(c * kept.size)
    if dropped.any():
        assert np.abs(before[dropped]).max() <= kept[candidates - 1]
    if returned.any() and kept.size:
        # Smaller than all that was kept, so that it is the first to go again.
        assert np.abs(after[returned]).max() < kept[0]
    assert not dropped.any() or p > 0
    assert not returned.any() or q > 0


def test_the_sparsity_follows_the_formula_and_its_fixed_point() -> None:
    c, p, q, size = 0.2, 0.5, 0.05, 200_000
    value = weights(size, 0.3)
    generator = np.random.default_rng(1)
    for _ in range(3):
        expected = zeros(value) * (1 - q) + (1 - zeros(value)) * c * p
        value = drop_step(value, c, p, q, generator)
        # A share of 200,000 independent draws deviates by less than 0.0012 (1 - 1e-7 of the time).
        assert abs(zeros(value) - expected) < 0.004
    for _ in range(60):
        value = drop_step(value, c, p, q, generator)
    assert abs(zeros(value) - c * p / (c * p + q)) < 0.01


def test_both_signs_return() -> None:
    after = drop_step(weights(10_000, 1.0), 0.0, 1.0, 0.5, np.random.default_rng(0))
    assert 0.4 < np.mean(after > 0) / np.mean(after != 0) < 0.6


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_without_chance_the_sparsity_is_exact(size: int, before: float, wanted: float) -> None:
    value = weights(size, before)
    c = fraction_to_drop(value, wanted, 1.0, 0.0)
    after = drop_step(value, c, 1.0, 0.0, np.random.default_rng(0))
    assert int((after == 0).sum()) == max(round(wanted * size), int((value == 0).sum()))


def test_at_the_end_it_is_magnitude_pruning() -> None:
    mod = Prune(0.2)(conv_net())
    tvm.ir.assert_structural_equal(DropPrune(0.75)(mod), Prune(0.75)(mod))


def test_the_fraction_is_that_of_the_formula() -> None:
    value = weights(1000, 0.4)
    s, p, q, wanted = 0.4, 0.8, 0.1, 0.5
    c = fraction_to_drop(value, wanted, p, q)
    assert s * (1 - q) + (1 - s) * c * p == pytest.approx(wanted)
    assert fraction_to_drop(value, 0.3, p, q) == 0  # too many zeros: nothing is dropped
    assert fraction_to_drop(weights(10, 1.0), 1.0, p, q) == 0


def test_in_a_network_one_step_and_no_bias() -> None:
    fc = np.random.default_rng(3).standard_normal((4, 20_000)).astype(np.float32)
    mod = Prune(0.5)(conv_net(fc=fc))
    before, after = values(mod), values(DropPrune(0.6, drop=0.8, restore=0.1)(mod))
    assert abs(zeros(after["fc_weight"]) - 0.6) < 0.01
    assert ((before["fc_weight"] == 0) & (after["fc_weight"] != 0)).any()
    np.testing.assert_array_equal(after["conv_bias"], BIAS)


def test_a_seed_says_all_and_layers_draw_apart() -> None:
    mod = Prune(0.4)(conv_net())
    made = [values(DropPrune(0.5, 0.5, 0.1, seed)(mod)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(made[0]["conv_weight"], made[1]["conv_weight"])
    assert (made[0]["conv_weight"] != made[2]["conv_weight"]).any()
    # Two layers of the same values, under two names.
    same = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    layers = DropPrune(0.5, 0.5, seed=4)(conv_net(same, same.reshape(4, 18)))
    assert (values(layers)["conv_weight"].reshape(4, 18) != values(layers)["fc_weight"]).any()


def test_first_last_and_patterns() -> None:
    after = values(DropPrune(1.0, first=0.0)(conv_net()))
    np.testing.assert_array_equal(after["conv_weight"], CONV)
    assert not after["fc_weight"].any()
    after = values(DropPrune(0.0, last=1.0)(conv_net()))
    assert after["conv_weight"].all() and not after["fc_weight"].any()
    after = values(DropPrune(0.0, last=0.0, layers={"fc*": 1.0})(conv_net()))
    assert not after["fc_weight"].any()


def test_refuses_a_step_that_is_too_large() -> None:
    with pytest.raises(PassError) as caught:
        DropPrune(0.9, drop=0.5)(conv_net())
    assert str(caught.value) == (
        "drop-prune: the weight conv_weight cannot reach the sparsity 0.9 in one step with "
        "drop=0.5 and restore=0.0: even all of its weights are too few by a factor of 1.81; "
        "expected a smaller step: raise drop, lower restore or take more steps."
    )


def test_refuses_options_outside_their_range() -> None:
    for options, message in (
        ({"sparsity": -0.1}, "the sparsity is -0.1; expected a number from 0 to 1."),
        ({"first": 2.0}, "the sparsity is 2.0; expected a number from 0 to 1."),
        ({"last": 2.0}, "the sparsity is 2.0; expected a number from 0 to 1."),
        ({"layers": {"a": 2.0}}, "the sparsity is 2.0; expected a number from 0 to 1."),
        ({"drop": 0.0}, "the probability drop is 0.0; expected a number above 0 and up to 1."),
        ({"drop": 1.1}, "the probability drop is 1.1; expected a number above 0 and up to 1."),
        ({"restore": 1.1}, "the probability restore is 1.1; expected a number from 0 to 1."),
        ({"seed": -1}, "the seed is -1; expected a whole number from 0 on."),
    ):
        with pytest.raises(OptionError) as caught:
            DropPrune(**options)  # type: ignore[arg-type]
        assert str(caught.value) == f"drop-prune: {message}"


def test_refuses_what_it_cannot_prune() -> None:
    with pytest.raises(PassError, match=r"^drop-prune: the weight conv_weight is already shared;"):
        DropPrune()(ShareWeights()(conv_net()))
    with pytest.raises(PassError, match=r"^drop-prune: .* holds 1 NaN;"):
        DropPrune()(conv_net(fc=spoilt_by(np.nan)))
    with pytest.raises(OptionError, match=r"^drop-prune: the pattern lstm\* fits no weight;"):
        DropPrune(layers={"lstm*": 0.5})(conv_net())
