"""The benchmark of int8 networks on Cortex-M: its arithmetic, and its recipe on a small network."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

import tvm_compress as tc
from benchmarks import mcu, mcu_recipes
from benchmarks.mcu_data import NETWORKS, Samples
from benchmarks.mcu_recipes import SETTINGS, Setting, _noisy
from tests.passes.nets import conv_net
from tvm_compress import ir, qdq
from tvm_compress.tensors import input_specs


def row(name: str, form: str = "dense") -> dict[str, object]:
    peer = mcu.PEER[name]["m4"]
    return {
        "network": name,
        "form": form,
        "instructions": peer["instructions"] // 2,
        "model_cycles": peer["model_cycles"] // 4,
        "flash": peer["code"] + mcu.PEER[name]["model"],
        "ram": 2 * (peer["arena"] + peer["static"] + peer["stack"]),
        "seconds": 1.0,
        "layers": [],
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_ratios_are_of_the_peer(name: str) -> None:
    found = mcu.ratios(name, row(name))
    expected = {"instructions": 0.5, "model_cycles": 0.25, "flash": 1.0, "ram": 2.0}
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_peers_flash_is_code_and_model() -> None:
    flash = [mcu.PEER[n]["m4"]["code"] + mcu.PEER[n]["model"] for n in NETWORKS]
    assert flash == [138_276, 417_628, 177_696, 309_820]


def test_figures_hold_what_was_measured() -> None:
    rows = []
    for form in ("dense", "size", "compressed", "m55"):
        one = row(NETWORKS[0], form)
        one["ratios"] = mcu.ratios(NETWORKS[0], one)
        one |= {"agreement": 0.9} if form == "compressed" else {"steps": 0, "board_steps": 2}
        rows.append(one)
    held = {figure.name: figure for figure in mcu.figures(rows)}
    name = NETWORKS[0]
    assert held[f"{name}, dense: instructions"].met
    assert not held[f"{name}, dense: flash"].met
    assert not held[f"{name}, dense: RAM"].met
    assert not held[f"{name}, size: difference from TensorFlow Lite"].met
    assert not held[f"{name}, compressed: top-1"].met
    assert held[f"{name}, m55: instructions"].limit == 1.0
    assert f"{name}, m55: RAM" not in held


def test_noisy_inputs() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3, 1)
    noisy = _noisy(x, np.random.default_rng(0), noise=0.1)
    assert noisy.dtype == np.float32
    assert 0 < np.abs(noisy - x).max() < 1


def quantised() -> tuple[tvm.IRModule, Samples]:
    """A small int8 network and its inputs."""
    mod = conv_net()
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).normal(0, 1, (24, *spec.shape[1:])).astype(np.float32)
    whole = tc.quantize(mod, x)
    (how,) = qdq.input_parameters(whole).values()
    return whole, Samples(how.quantize(x[:16]), how.quantize(x[16:]))


def test_the_recipe_prunes_whole_blocks_and_quantises(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = quantised()
    setting = Setting(0.5, small=0.0)
    monkeypatch.setitem(SETTINGS, "small", setting)
    small = mcu_recipes.compressed("small", whole, data)
    (how,), (again,) = (qdq.input_parameters(m).values() for m in (whole, small))
    assert (again.scale, again.zero_point) == pytest.approx((how.scale, how.zero_point), rel=1e-5)
    for name, weight in ir.weights(small).items():
        zeros = (weight.parameter.value == 0).mean()
        assert zeros >= 0.3, name  # one of two blocks, of which the last is smaller
    expected = mcu.answers(whole, data.scoring)
    assert 0 <= mcu.judge("small", whole, small, data, expected)["agreement"] <= 1


def test_the_recipe_shares_what_it_says_by_int8_values(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = quantised()
    first, *others = ir.weights(whole)
    setting = Setting(0.5, small=0.0, bits={first: 2}, inputs=1, outputs=1, damping=0.03)
    monkeypatch.setitem(SETTINGS, "small", setting)
    weights = ir.weights(mcu_recipes.compressed("small", whole, data))
    shared = weights[first].parameter
    assert shared.centroids is not None and shared.codes is not None
    assert shared.centroids.dtype == np.int8 and shared.centroids.shape == (4,)
    assert (shared.codes == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert others and not any(weights[name].parameter.shared for name in others)


def test_the_recipe_narrows_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = quantised()
    first, *others = ir.weights(whole)
    monkeypatch.setitem(SETTINGS, "small", Setting(narrow={first: 1.0, "*": 0.0}))
    before, after = ir.weights(whole), ir.weights(mcu_recipes.compressed("small", whole, data))
    rows = np.abs(after[first].parameter.value.astype(int)).reshape(
        len(after[first].parameter.value), -1
    )
    assert (rows.max(axis=1) <= 32).sum() >= len(rows) // 3 * 3
    for name in others:
        np.testing.assert_array_equal(before[name].parameter.value, after[name].parameter.value)
