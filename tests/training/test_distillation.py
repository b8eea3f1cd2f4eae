"""Distillation: the targets, the loss against its formula, and a recipe without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm.relax import op

import tvm_compress as tc
from tests.training.nets import classes_of, dense_net, module
from tvm_compress import ir
from tvm_compress.errors import DataError, OptionError, UnsupportedError
from tvm_compress.passes import Prune
from tvm_compress.recipe import Finetune
from tvm_compress.targets import reference
from tvm_compress.training import TrainingStep, finetune, teacher_outputs

X, LABELS = classes_of(150)


def same(x: Any, random: np.random.Generator) -> Any:
    return x


def test_targets_are_what_stands_before_the_softmax() -> None:
    found = teacher_outputs(dense_net(), X)  # more than one batch
    (logits,) = reference.run(dense_net(softmax=False), X).values()
    assert found.shape == (150, 1, 3)
    np.testing.assert_allclose(found[:, 0], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(teacher_outputs(dense_net(softmax=False), {"x": X}), found)


def test_the_loss_is_the_divergence_of_the_probabilities() -> None:
    student, teacher = dense_net(0), dense_net(1)
    steps: list[TrainingStep] = []
    targets = teacher_outputs(teacher, X)
    finetune(
        student,
        (X, targets),
        loss="distillation",
        batch_size=150,
        progress=False,
        on_step=steps.append,
    )
    (q,), (p,) = (reference.run(m, X).values() for m in (student, teacher))
    expected = np.sum(p.astype(np.float64) * np.log(p.astype(np.float64) / q), axis=1).mean()
    assert steps[0].loss == pytest.approx(expected, rel=1e-4)


def test_the_teacher_itself_has_nothing_to_learn() -> None:
    steps: list[TrainingStep] = []
    targets = teacher_outputs(dense_net(), X)
    options = {"loss": "distillation", "progress": False, "on_step": steps.append}
    finetune(dense_net(), (X, targets), optimizer="sgd", lr=1e-6, **options)
    assert max(abs(step.loss) for step in steps) < 1e-6


def test_with_an_augmentation_the_teacher_sees_what_the_student_sees() -> None:
    student, teacher = dense_net(0), dense_net(1)
    steps: list[TrainingStep] = []
    finetune(
        student,
        (X, teacher_outputs(teacher, X)),
        loss="distillation",
        batch_size=150,
        augment=lambda x, random: -x,
        teacher=teacher,
        progress=False,
        on_step=steps.append,
    )
    (q,), (p,) = (reference.run(m, -X).values() for m in (student, teacher))
    expected = np.sum(p.astype(np.float64) * np.log(p.astype(np.float64) / q), axis=1).mean()
    assert steps[0].loss == pytest.approx(expected, rel=1e-4)


def test_a_teacher_is_of_the_run_and_of_distillation_alone(tmp_path: Path) -> None:
    data, path = (X, teacher_outputs(dense_net(1), X)), tmp_path / "run"
    options: dict[str, Any] = {"loss": "distillation", "augment": same, "checkpoint": path}
    finetune(dense_net(), data, progress=False, teacher=dense_net(1), **options)
    for teacher in (None, dense_net(2)):
        with pytest.raises(DataError, match="differs in options"):
            finetune(dense_net(), data, progress=False, teacher=teacher, **options)
    with pytest.raises(OptionError) as caught:
        finetune(dense_net(), (X, LABELS), teacher=dense_net(1), progress=False)
    assert str(caught.value) == (
        "finetune: a teacher was given for the loss cross_entropy; expected the loss distillation: "
        "leave the teacher out."
    )


def test_a_recipe_needs_no_labels(tmp_path: Path) -> None:
    mod = tc.load(dense_net())
    recipe = tc.Recipe([Prune(0.6), Finetune(epochs=15, lr=0.01, loss="distillation")])
    assert recipe.needs_training_data and not recipe.needs_labels
    pruned = Prune(0.6)(mod)
    made = tc.compress(mod, recipe, train=(X, None), checkpoint_dir=tmp_path, progress=False)

    def divergence(student: tvm.IRModule) -> float:
        (q,), (p,) = (reference.run(m, X).values() for m in (student, mod))
        return float(np.sum(p * np.log(p / q), axis=1).mean())

    assert divergence(made) < 0.3 * divergence(pruned)
    for name in ("w1", "w2"):  # pruned weights stayed zero
        zeros = ir.parameters(pruned)[name].value == 0
        assert not ir.parameters(made)[name].value[zeros].any()
    again = tc.compress(mod, recipe, train=(X, None), checkpoint_dir=tmp_path, progress=False)
    tvm.ir.assert_structural_equal(again, made)


def test_refuses_a_recipe_by_labels_without_any() -> None:
    recipe = tc.Recipe([Finetune(loss="distillation"), Finetune(loss="cross_entropy")])
    with pytest.raises(OptionError) as caught:
        tc.compress(tc.load(dense_net()), recipe, train=(X, None), progress=False)
    assert str(caught.value) == (
        "The recipe fine-tunes by labels, and the training data is (x, None); expected labels or "
        "targets: give (x, y), or fine-tune with the loss distillation."
    )


def test_refuses_several_outputs_and_one_class() -> None:
    two = module({"x": (1, 3)}, {}, lambda x: tvm.ir.Tuple([op.tanh(x), op.exp(x)]))
    with pytest.raises(UnsupportedError) as caught:
        teacher_outputs(tc.load(two), np.ones((2, 3), np.float32))
    assert str(caught.value).startswith("Distillation: the network has 2 outputs (")
    assert str(caught.value).endswith("); expected one.")
    one = module({"x": (1, 3)}, {"w": np.ones((3, 1), np.float32)}, op.matmul)
    with pytest.raises(UnsupportedError) as single:
        finetune(one, (X[:, :3], np.ones((150, 1), np.float32)), loss="distillation")
    assert "expected at least two classes for the loss distillation: use mse" in str(single.value)


def test_torch_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    teacher_outputs(dense_net(), X)
    assert torch.equal(torch.get_rng_state(), before)
