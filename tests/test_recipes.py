"""Schedules of gradual pruning as plain steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvm_compress as tc
from tests.passes.nets import conv_net, values
from tvm_compress.errors import OptionError
from tvm_compress.passes import DropPrune, Prune
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.recipes import (
    cubic_sparsity,
    drop_pruning,
    geometric_sparsity,
    gradual_pruning,
)

SHARE = st.floats(0, 1)


@given(SHARE, SHARE)
def test_the_cubic_schedule_is_that_of_the_paper(final: float, initial: float) -> None:
    # s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3, with t0 = 100, n = 5, dt = 20.
    for t in range(100, 201, 20):
        expected = final + (initial - final) * (1 - (t - 100) / (5 * 20)) ** 3
        assert cubic_sparsity((t - 100) / 100, final, initial) == pytest.approx(expected)
    assert cubic_sparsity(1, final, initial) == pytest.approx(final)


@given(st.floats(0, 0.99), st.floats(0, 0.99), st.integers(1, 9))
def test_each_geometric_step_keeps_the_same_share(final: float, initial: float, steps: int) -> None:
    kept = [1 - geometric_sparsity(t / steps, final, initial) for t in range(steps + 1)]
    share = ((1 - final) / (1 - initial)) ** (1 / steps)
    for before, after in pairwise(kept):
        assert after == pytest.approx(before * share)
    assert kept[-1] == pytest.approx(1 - final)


def test_a_final_sparsity_of_one() -> None:
    assert geometric_sparsity(1, 1.0) == 1.0
    assert geometric_sparsity(0.5, 1.0) == 1.0


@given(SHARE, st.integers(1, 8), st.sampled_from(["cubic", "geometric"]), st.floats(0, 0.9))
def test_turns_end_at_the_sparsity(final: float, steps: int, schedule: Any, initial: float) -> None:
    for make in (gradual_pruning, drop_pruning):
        recipe = make(final, steps, schedule=schedule, initial=initial, first=0.1, last=final)
        prunes, tunes = recipe.steps[::2], recipe.steps[1::2]
        assert len(prunes) == len(tunes) == steps
        shares = [p.sparsity for p in prunes]  # type: ignore[union-attr]
        assert shares == sorted(shares) and shares[-1] == final
        assert [p.last for p in prunes] == shares  # type: ignore[union-attr]
        assert prunes[-1].first == 0.1  # type: ignore[union-attr]
        assert all(isinstance(tune, Finetune) for tune in tunes)
        assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_gradual_pruning_as_steps() -> None:
    recipe = gradual_pruning(
        0.8,
        2,
        epochs=3,
        last_epochs=7,
        lr=0.01,
        batch_size=5,
        optimizer="sgd",
        loss="mse",
        weight_decay=0.1,
        lr_schedule="cosine",
        scope="global",
        seed=4,
        layer_sparsity={"fc*": 0.4},
        first=0.0,
    )
    assert recipe.steps == (
        Prune(0.8 - 0.8 / 8, "global", {"fc*": 0.4 - 0.4 / 8}, 0.0),
        Finetune(3, 0.01, 5, "sgd", "mse", 4, 0.1, "cosine"),
        Prune(0.8, "global", {"fc*": 0.4}, 0.0),
        Finetune(7, 0.01, 5, "sgd", "mse", 5, 0.1, "cosine"),
    )
    assert not gradual_pruning(epochs=0).needs_training_data
    assert gradual_pruning(epochs=0, last_epochs=1).needs_training_data


def test_drop_pruning_ends_without_chance() -> None:
    recipe = drop_pruning(0.8, 4, drop=0.6, restore=0.2, seed=3, layer_sparsity={"fc*": 0.4})
    prunes = [step for step in recipe.steps if isinstance(step, DropPrune)]
    assert [p.drop for p in prunes] == pytest.approx([0.7, 0.8, 0.9, 1.0])
    assert [p.restore for p in prunes] == pytest.approx([0.15, 0.1, 0.05, 0.0])
    assert [p.seed for p in prunes] == [3, 4, 5, 6]
    assert prunes[-1] == DropPrune(0.8, 1.0, 0.0, 6, {"fc*": 0.4})
    tuned = drop_pruning(0.8, 2, seed=3, weight_decay=0.1, lr_schedule="cosine").steps[1::2]
    assert tuned == tuple(Finetune(1, seed=s, weight_decay=0.1, schedule="cosine") for s in (3, 4))


def test_both_meet_the_same_sparsity_in_a_network() -> None:
    for recipe in (gradual_pruning(0.75, 5, epochs=0), drop_pruning(0.75, 5, epochs=0)):
        after = values(tc.compress(conv_net(), recipe, progress=False))
        assert [np.count_nonzero(after[n]) for n in ("conv_weight", "fc_weight")] == [18, 3]


def test_refuses_options_outside_their_range() -> None:
    for make in (gradual_pruning, drop_pruning):
        with pytest.raises(OptionError) as caught:
            make(steps=0)
        assert str(caught.value) == (
            f"{make.__name__}: there are 0 steps; expected a whole number from 1 on."
        )
        with pytest.raises(OptionError) as caught:
            make(schedule="linear")  # type: ignore[arg-type]
        assert str(caught.value) == "The schedule is linear; expected cubic or geometric."
        with pytest.raises(OptionError) as caught:
            make(initial=1.0)
        assert str(caught.value) == (
            "The initial sparsity is 1.0; expected a number from 0 to below 1."
        )
        with pytest.raises(OptionError, match=r"^prune|^drop-prune"):
            make(1.5)
