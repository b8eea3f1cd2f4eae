"""Second-order pruning and sharing of one layer, against brute force and plain least squares."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from tests.training.nets import module
from tvm_compress import ir
from tvm_compress import reconstruction as solve
from tvm_compress.errors import DataError
from tvm_compress.targets import reference

Array = NDArray[Any]


def layer(seed: int, rows: int, columns: int, samples: int = 40) -> tuple[Array, Array, Array]:
    """Give a weight, inputs that depend on each other, and their Gram matrix."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, columns)) @ rng.normal(size=(columns, columns))
    return rng.normal(size=(rows, columns)), inputs, inputs.T @ inputs


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
def test_the_error_is_that_of_the_outputs(seed: int, rows: int, columns: int) -> None:
    change, inputs, gram = layer(seed, rows, columns)
    expected = np.sum((inputs @ change.T) ** 2)
    np.testing.assert_allclose(solve.output_error(change, gram), expected, rtol=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
def test_refit_is_least_squares_on_the_kept_inputs(seed: int, rows: int, columns: int) -> None:
    weight, inputs, gram = layer(seed, rows, columns)
    stays = np.random.default_rng(seed + 1).random(weight.shape) < 0.6
    found = solve.refit_rows(weight, gram, stays)
    assert not found[~stays].any()
    for row in range(rows):
        kept = stays[row]
        best = np.linalg.lstsq(inputs[:, kept], inputs @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(found[row, kept], best, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 100), st.floats(0, 1))
@settings(max_examples=40)
def test_exactly_as_many_are_pruned_as_asked(
    seed: int, rows: int, columns: int, share: float
) -> None:
    weight, _, gram = layer(seed, rows, columns, samples=200)
    drop = round(share * weight.size)
    stays = solve.prune_rows(weight, solve.damped(gram, 0.01), drop)
    assert stays.size - stays.sum() == drop


def test_pruning_with_independent_inputs_is_by_magnitude_times_input() -> None:
    weight = np.array([[1.0, -2.0, 3.0, 0.5]])
    gram = np.diag([100.0, 1.0, 0.01, 4.0])  # costs 100, 4, 0.09, 1
    np.testing.assert_array_equal(solve.prune_rows(weight, gram, 2), [[True, True, False, False]])


def test_pruning_is_near_the_best_of_all_choices() -> None:
    ratios, plain = [], []
    for seed in range(12):
        weight, _, gram = layer(seed, 1, 7)

        def error(stays: Array, weight: Array = weight, gram: Array = gram) -> float:
            return solve.output_error(solve.refit_rows(weight, gram, stays) - weight, gram)

        def mask(gone: tuple[int, ...]) -> Array:
            return ~np.isin(np.arange(7), gone)[None]

        best = min(error(mask(gone)) for gone in combinations(range(7), 3))
        ratios.append(error(solve.prune_rows(weight, gram, 3)) / best)
        smallest = tuple(np.argsort(np.abs(weight[0]))[:3])
        masked = np.where(mask(smallest), weight, 0)
        plain.append(solve.output_error(masked - weight, gram) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 4
    assert np.median(plain) > 2 * np.median(ratios)


def _numbers(shape: tuple[int, int], outputs: int, inputs: int) -> Array:
    """Blocks of neighbouring rows and columns, numbered from 0 on."""
    rows, columns = np.indices(shape)
    return np.asarray(rows // outputs * -(-shape[1] // inputs) + columns // inputs)


@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 5),
    st.floats(0, 1),
)
@settings(max_examples=60)
def test_whole_blocks_go_and_exactly_as_many_as_asked(
    seed: int, rows: int, columns: int, outputs: int, inputs: int, share: float
) -> None:
    weight, _, gram = layer(seed, rows, columns)
    blocks = _numbers(weight.shape, outputs, inputs)
    count = int(blocks.max()) + 1
    drop = round(share * count)
    before = weight.copy()
    stays = solve.prune_blocks(weight, solve.damped(gram, 0.01), drop, blocks)
    np.testing.assert_array_equal(weight, before)
    assert stays.dtype == np.bool_ and stays.shape == weight.shape
    kept = [set(stays[blocks == number].tolist()) for number in range(count)]
    assert all(len(values) == 1 for values in kept)
    assert sum(values == {False} for values in kept) == drop


def test_blocks_of_independent_inputs_go_by_magnitude_times_input() -> None:
    weight = np.array([[1.0, -2.0, 3.0, 0.5], [1.0, 0.0, 9.0, -1.0]])
    gram = np.diag([100.0, 1.0, 0.01, 4.0])  # costs of pairs: 104, 1.09; 100, 4.81
    blocks = np.array([[0, 0, 1, 1], [2, 2, 3, 3]])
    for drop, gone in ((0, ()), (1, (1,)), (2, (1, 3)), (3, (1, 2, 3)), (4, (0, 1, 2, 3))):
        stays = solve.prune_blocks(weight, gram, drop, blocks)
        np.testing.assert_array_equal(stays, ~np.isin(blocks, gone))


def _block_error(weight: Array, gram: Array, stays: Array) -> float:
    return solve.output_error(solve.refit_rows(weight, gram, stays) - weight, gram)


def test_pruning_blocks_is_near_the_best_of_all_choices() -> None:
    ratios = []
    for seed in range(20):
        weight, _, gram = layer(seed, 2, 12)
        blocks = _numbers(weight.shape, 2, 2)
        best = min(
            _block_error(weight, gram, ~np.isin(blocks, gone)) for gone in combinations(range(6), 3)
        )
        stays = solve.prune_blocks(weight, gram, 3, blocks)
        ratios.append(_block_error(weight, gram, stays) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 2


def test_blocks_are_chosen_better_than_by_magnitude() -> None:
    """Both are refitted: it is the choice alone that differs."""
    ratios = []
    for seed in range(8):
        weight, _, gram = layer(seed, 16, 64, samples=256)
        gram = solve.damped(gram, 0.01)
        blocks = _numbers(weight.shape, 1, 4)
        stays = solve.prune_blocks(weight, gram, 128, blocks)
        smallest = np.argsort(np.bincount(blocks.ravel(), (weight**2).ravel()))[:128]
        plain = _block_error(weight, gram, ~np.isin(blocks, smallest))
        ratios.append(_block_error(weight, gram, stays) / plain)
    assert np.mean(np.log(ratios)) < np.log(0.7)


def test_blocks_are_chosen_by_what_the_refitted_weights_lose() -> None:
    """The second of two inputs that are nearly one takes the weight of the first, and stays."""
    gram = np.eye(8)
    gram[0, 1] = gram[1, 0] = 0.9
    weight = np.array([[1.2, 1.3, 0.7, 1.2, 1.3, 1.4, 1.5, 1.6]])
    stays = solve.prune_blocks(weight, gram, 2, np.arange(8)[None])
    # Costs are 0.27, 0.32 and 0.49 of the first three at first; then 1.08 of the second.
    np.testing.assert_array_equal(stays, [[False, True, False, True, True, True, True, True]])


def test_the_first_block_is_the_one_whose_loss_is_least() -> None:
    """The cost of a block is what the best refit without it loses, whatever its weights are."""
    for seed in range(20):
        weight, _, gram = layer(seed, 4, 9)
        blocks = _numbers(weight.shape, 2, 2)  # the last of a row have one column
        count = int(blocks.max()) + 1
        lost = [_block_error(weight, gram, blocks != number) for number in range(count)]
        stays = solve.prune_blocks(weight, gram, 1, blocks)
        np.testing.assert_array_equal(stays, blocks != int(np.argmin(lost)))


def test_each_next_block_is_the_one_whose_loss_is_least_of_what_is_left() -> None:
    for seed in range(10):
        weight, _, gram = layer(seed, 2, 12)
        blocks = _numbers(weight.shape, 1, 3)
        gone: list[int] = []
        for _ in range(5):
            left = [n for n in range(8) if n not in gone]
            lost = [_block_error(weight, gram, ~np.isin(blocks, [*gone, n])) for n in left]
            gone.append(left[int(np.argmin(lost))])
        stays = solve.prune_blocks(weight, gram, 5, blocks)
        np.testing.assert_array_equal(stays, ~np.isin(blocks, gone))


def test_rows_of_other_blocks_are_pruned_alike() -> None:
    """What matters of blocks is what they hold, not how they are numbered or where they lie."""
    weight, _, gram = layer(3, 2, 6)
    blocks = np.array([[0, 0, 1, 1, 2, 2], [3, 4, 3, 4, 5, 3]])
    lost = [_block_error(weight, gram, blocks != number) for number in range(6)]
    stays = solve.prune_blocks(weight, gram, 1, blocks)
    np.testing.assert_array_equal(stays, blocks != int(np.argmin(lost)))


def test_sharing_is_near_the_best_of_all_codes() -> None:
    centroids = np.array([0.0, -1.0, 0.2, 1.3])
    ratios, plain = [], []
    for seed in range(8):
        weight, _, gram = layer(seed, 1, 5)
        stays = np.array([[True, True, False, True, True]])

        def error(codes: Array, weight: Array = weight, gram: Array = gram) -> float:
            return solve.output_error(centroids[codes] - weight, gram)

        choices = [np.array([[a, b, 0, c, d]]) for a, b, c, d in product(range(1, 4), repeat=4)]
        best = min(error(codes) for codes in choices)
        codes = solve.share_rows(weight, gram, centroids, stays)
        assert codes.dtype == np.uint8 and codes[0, 2] == 0 and (codes[stays] > 0).all()
        ratios.append(error(codes) / best)
        nearest = 1 + np.abs(weight[..., None] - centroids[1:]).argmin(-1)
        plain.append(error(np.where(stays, nearest, 0)) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) < np.mean(plain)
    assert np.median(ratios) < 2


def test_sharing_with_independent_inputs_is_to_the_nearest() -> None:
    weight = np.array([[-0.9, 0.5, 0.8], [0.1, -0.2, 2.0]])
    centroids = np.array([0.0, -1.0, 0.0, 1.0])
    codes = solve.share_rows(weight, np.diag([1.0, 2.0, 3.0]), centroids, np.ones((2, 3), bool))
    np.testing.assert_array_equal(codes, [[1, 2, 3], [2, 2, 3]])


@given(st.integers(0, 10**6))
def test_centroids_are_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = np.array([0.0, -1.0, 0.5, 2.0, 7.0])
    parts, design, target = [], [], []
    for group in range(2):
        weight, inputs, gram = layer(seed + group, 3, 6)
        codes = rng.integers(0, 4, weight.shape).astype(np.uint8)  # 4 is used by none
        parts.append((weight, gram, codes))
        for row, code in zip(weight, codes, strict=True):
            design.append(np.stack([inputs[:, code == k].sum(1) for k in (1, 2, 3)], 1))
            target.append(inputs @ row)
    found = solve.fit_centroids(parts, start)
    assert found[0] == 0 and found[4] == 7
    used = [k for k in (1, 2, 3) if any((c == k).any() for _, _, c in parts)]
    matrix = np.concatenate(design)[:, [k - 1 for k in used]]
    best = np.linalg.lstsq(matrix, np.concatenate(target), rcond=None)[0]
    np.testing.assert_allclose(found[used], best, rtol=1e-4, atol=1e-6)


def test_targets_repeat_what_the_layer_gave() -> None:
    weight, before, _ = layer(0, 3, 5)
    mix = np.random.default_rng(1).normal(size=(5, 5))
    after = before @ mix  # nothing is lost, so the outputs can be had exactly
    found = solve.target_rows(weight, after.T @ after, before.T @ after, 1e-12)
    np.testing.assert_allclose(after @ found.T, before @ weight.T, rtol=1e-5, atol=1e-5)
    kept = solve.target_rows(weight, after.T @ after, before.T @ after, 1e12)
    np.testing.assert_allclose(kept, weight, rtol=1e-6)


# ---- the inputs of the layers --------------------------------------------------------------------


SHAPES = {
    "w1": (3, 3, 2, 4),
    "b1": (1, 4, 1, 1),
    "d": (8, 1, 2, 2),
    "g": (6, 4, 1, 2),
    "fc": (6, 5),
    "fb": (5,),
}
LAYERS = ("w1", "d", "g", "fc")


def network(all_outputs: bool = False) -> tvm.IRModule:
    """Convolutions, plain, depthwise and grouped, and a product; optionally with all their sums."""
    rng = np.random.default_rng(5)
    given = {n: rng.normal(0, 0.5, shape).astype(np.float32) for n, shape in SHAPES.items()}

    def body(x: Any, w1: Any, b1: Any, d: Any, g: Any, fc: Any, fb: Any) -> Any:
        sums = [op.nn.conv2d(x, w1, strides=(2, 1), padding=(1, 0, 0, 1), kernel_layout="HWIO")]
        sums.append(op.nn.conv2d(op.nn.relu(op.add(sums[0], b1)), d, groups=4, padding=1))
        sums.append(op.nn.conv2d(op.tanh(sums[1]), g, groups=2, dilation=(1, 2)))
        y = op.reshape(op.mean(op.nn.relu(sums[2]), [2, 3]), (1, 6))
        sums.append(op.matmul(y, fc))
        y = op.add(sums[3], fb)
        return tvm.ir.Tuple([y, *sums]) if all_outputs else y

    return tc.load(module({"x": (1, 2, 7, 6)}, given, body))


X = np.random.default_rng(8).normal(size=(4, 2, 7, 6)).astype(np.float32)


def test_what_a_layer_reads_explains_what_it_gives() -> None:
    seen: list[solve.LayerInputs] = []

    def look(layer: solve.LayerInputs) -> dict[str, Array]:
        seen.append(layer)
        return {}

    mod = network()
    solve.layer_inputs(mod, X, look)
    assert [layer.name for layer in seen] == list(LAYERS)
    assert [layer.bias for layer in seen] == ["b1", None, None, "fb"]
    assert [layer.rows.shape for layer in seen] == [(1, 4, 18), (4, 2, 4), (2, 3, 8), (1, 5, 6)]
    sums = list(reference.run(network(all_outputs=True), X).values())[1:]
    for layer, total in zip(seen, sums, strict=True):
        flat = np.moveaxis(total.astype(np.float64), 1, 0).reshape(total.shape[1], -1)
        second = np.einsum("grc,gcd,grd->gr", layer.rows, layer.gram, layer.rows).ravel()
        expected = flat.var(axis=1) if layer.bias else (flat**2).mean(axis=1)
        np.testing.assert_allclose(second, expected, rtol=1e-5)
        means = np.einsum("grc,gc->gr", layer.rows, layer.shift[0]).ravel()
        np.testing.assert_allclose(means, flat.mean(axis=1), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(layer.cross, layer.gram, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(
            layer.dense(layer.rows).astype(np.float32), ir.parameters(mod)[layer.name].value
        )


def test_later_layers_see_what_earlier_ones_became() -> None:
    mod = network()
    halved = {n: ir.parameters(mod)[n].value / 2 for n in ("w1", "b1")}
    seen: dict[str, solve.LayerInputs] = {}

    def halve(layer: solve.LayerInputs) -> dict[str, Array]:
        seen[layer.name] = layer
        return halved if layer.name == "w1" else {}

    solve.layer_inputs(mod, X, halve)
    after = seen["d"]  # relu(x / 2) is relu(x) / 2
    np.testing.assert_allclose(after.cross, 2 * after.gram, rtol=1e-6)
    np.testing.assert_allclose(after.shift[0], 2 * after.shift[1], rtol=1e-6)
    change = after.bias_change(after.rows)
    expected = np.einsum("grc,gc->gr", after.rows, after.shift[1]).ravel()
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)


def test_inputs_are_checked() -> None:
    with pytest.raises(DataError) as caught:
        solve.layer_inputs(network(), X.astype(np.float64), lambda layer: {})
    assert str(caught.value) == (
        'The input x is float64; expected float32: convert it with .astype("float32").'
    )


def test_rows_of_centroids_count_by_their_scale() -> None:
    rng = np.random.default_rng(0)
    weight, inputs, gram = layer(0, 4, 6)
    codes = rng.integers(1, 3, weight.shape)
    start, scale = np.array([0.0, -1.0, 1.0]), np.array([0.1, 1.0, 5.0, 2.0])
    found = solve.fit_centroids([(weight, gram, codes)], start, [scale])
    design = [np.stack([inputs[:, c == k].sum(1) for k in (1, 2)], 1) for c in codes]
    design = np.concatenate([s**0.5 * d for s, d in zip(scale, design, strict=True)])  # type: ignore[assignment]
    target = np.concatenate([s**0.5 * inputs @ w for s, w in zip(scale, weight, strict=True)])
    best = np.linalg.lstsq(design, target, rcond=None)[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(found[1:], best, rtol=1e-6)


@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40)
def test_scales_of_rows_are_least_squares(seed: int, rows: int, columns: int) -> None:
    weight, inputs, gram = layer(seed, rows, columns)
    values = weight + np.random.default_rng(seed + 1).normal(size=weight.shape) / 2
    values[0] = 0.0
    found = solve.fit_scales(values, weight, gram, np.full(rows, 7.0))
    for row, aim, scale in zip(values, weight, found, strict=True):
        best = np.linalg.lstsq((inputs @ row)[:, None], inputs @ aim, rcond=None)[0].item()
        assert scale == pytest.approx(best if best > 0 else 7.0, rel=1e-6)
    assert found[0] == 7.0


def test_each_matrix_of_a_stack_has_its_factor() -> None:
    grams = np.stack([solve.damped(layer(seed, 1, 5)[2], 0.1) for seed in range(3)])
    for factor, gram in zip(solve.upper_factor(grams), grams, strict=True):
        np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(gram), atol=1e-9)
        assert not np.tril(factor, -1).any()


def test_few_of_many_samples() -> None:
    seen = []

    def look(found: solve.LayerInputs) -> dict[str, Array]:
        seen.append(found.gram)
        return {}

    some = X[np.linspace(0, len(X) - 1, 3).round().astype(int)]
    solve.layer_inputs(network(), X, look, most=3)
    solve.layer_inputs(network(), some, look)
    half = len(seen) // 2
    for a, b in zip(seen[:half], seen[half:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_assumed_inputs_are_rectified_normal_variables() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=(400_000, 2)), 0)
    measured = values.T @ values / len(values)
    np.testing.assert_allclose(solve.assumed_gram((2,)), measured / measured[0, 0], atol=0.01)


def test_assumed_neighbours_correlate() -> None:
    gram = solve.assumed_gram((2, 3, 3))
    assert gram.shape == (18, 18) and (np.linalg.eigvalsh(gram) > 0).all()
    mean = 1 / np.pi
    np.testing.assert_allclose(np.diag(gram), 1)
    np.testing.assert_allclose(gram[0, 1], mean + (1 - mean) / 2)  # one to the right
    np.testing.assert_allclose(gram[0, 6], mean + (1 - mean) / 4)  # two below
    np.testing.assert_allclose(gram[0, 9:], mean)  # the other channel


def test_every_weight_is_shown_without_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    given = {
        "conv": rng.normal(size=(6, 2, 3, 3)).astype(np.float32),
        "fc": rng.normal(size=(216, 5)).astype(np.float32),
        "up": rng.normal(size=(5, 1, 4, 2)).astype(np.float32),
    }

    def body(x: Any, conv: Any, fc: Any, up: Any) -> Any:
        y = op.matmul(op.reshape(op.nn.conv2d(x, conv, groups=2), (1, 216)), fc)
        return op.nn.conv2d_transpose(op.reshape(y, (1, 5, 1, 1)), up, kernel_layout="IOHW")

    mod = module({"x": (1, 4, 8, 8)}, given, body)
    for longest in (2048, 60):
        monkeypatch.setattr(solve, "_LONGEST", longest)
        shown = {found.name: found for found in solve.assumed_inputs(mod)}
        assert list(shown) == ["conv", "fc", "up"]
        for name, found in shown.items():
            np.testing.assert_array_equal(found.dense(found.rows), given[name])
            np.testing.assert_array_equal(found.as_rows(given[name]), found.rows)
            assert found.gram.shape == (len(found.rows), *2 * found.rows.shape[2:])
            assert found.rows.shape[2] <= longest and found.bias is None
        assert shown["conv"].rows.shape == (2, 3, 18)
        np.testing.assert_array_equal(shown["conv"].gram[1], solve.assumed_gram((2, 3, 3)))
        assert shown["fc"].rows.shape == ((1, 5, 216) if longest > 216 else (4, 5, 54))
        np.testing.assert_array_equal(
            shown["fc"].rows[0, 2], given["fc"][: 216 if longest > 216 else 54, 2]
        )
        assert shown["up"].rows.shape == (1, 1, 40)
