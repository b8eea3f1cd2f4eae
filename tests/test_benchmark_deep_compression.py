"""The parts of the benchmark that need no data set."""

from __future__ import annotations

import numpy as np

from benchmarks.deep_compression import SETTINGS, _moved, _recipes


def test_moved_images_are_the_image_and_its_four_neighbours() -> None:
    image = np.zeros((1, 1, 28, 28), np.float32)
    image[0, 0, 5, 7] = 1
    moved = _moved(image)
    assert moved.shape == (5, 1, 28, 28)
    places = {tuple(int(i) for i in np.argwhere(m[0])[0]) for m in moved}
    assert places == {(5, 7), (6, 7), (4, 7), (5, 8), (5, 6)}
    np.testing.assert_array_equal(moved[0], image[0])


def test_what_is_moved_out_of_the_image_is_gone() -> None:
    image = np.zeros((1, 1, 28, 28), np.float32)
    image[0, 0, 0, 0] = 1
    assert _moved(image).sum() == 3


def test_the_last_pruning_is_to_the_sparsity_of_the_setting() -> None:
    for setting in SETTINGS.values():
        pruning = [s for s in _recipes(setting, 0)["pruned"].steps if s.name == "prune"]
        sparsities = [step.sparsity for step in pruning]
        assert sparsities == sorted(sparsities)
        assert sparsities[-1] == setting.sparsity
