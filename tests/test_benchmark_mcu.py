"""The benchmark of int8 networks on Cortex-M: its arithmetic, and its recipe on a small network."""

from __future__ import annotations

import numpy as np
import pytest

import tvm_compress as tc
from benchmarks import mcu, mcu_recipes
from benchmarks.mcu_data import NETWORKS, Samples
from benchmarks.mcu_recipes import SETTINGS, Setting, _moved
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


def test_moved_inputs() -> None:
    x = np.arange(2 * 4 * 3 * 1, dtype=np.float32).reshape(2, 4, 3, 1)
    same = _moved(x.copy(), np.random.default_rng(0), noise=0, rolls=0, flips=False)
    assert (same == x).all()
    moved = _moved(x.copy(), np.random.default_rng(0), noise=0, rolls=2, flips=True)
    assert sorted(moved.ravel()) == sorted(x.ravel())
    assert (moved != x).any()
    noisy = _moved(x.copy(), np.random.default_rng(0), noise=0.1, rolls=0, flips=False)
    assert 0 < np.abs(noisy - x).max() < 1


def test_the_recipe_prunes_whole_blocks_and_quantises(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = conv_net()
    (spec,) = input_specs(mod)
    x = np.random.default_rng(0).normal(0, 1, (24, *spec.shape[1:])).astype(np.float32)
    whole = tc.quantize(mod, x)
    (how,) = qdq.input_parameters(whole).values()
    data = Samples(how.quantize(x[:16]), how.quantize(x[16:]))
    setting = Setting(0.5, small=0.0, epochs=1, lr=1e-3, noise=0.01)
    monkeypatch.setitem(SETTINGS, "small", setting)
    small = mcu_recipes.compressed("small", whole, data)
    (again,) = qdq.input_parameters(small).values()
    assert (again.scale, again.zero_point) == pytest.approx((how.scale, how.zero_point), rel=1e-5)
    for name, weight in ir.weights(small).items():
        zeros = (weight.parameter.value == 0).mean()
        assert zeros >= 0.3, name  # one of two blocks, of which the last is smaller
    expected = mcu.answers(whole, data.scoring)
    assert 0 <= mcu.judge("small", whole, small, data, expected)["agreement"] <= 1
