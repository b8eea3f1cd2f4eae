"""``finetune``: it learns, it is deterministic, and it keeps zeros, codes and structure."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.relax import op

from tests.training.nets import classes_of, dense_net, module, pruned, shared
from tvm_compress import edge, ir
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.targets.reference import run

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tvm_compress.training import TorchModule, TrainingStep, finetune  # noqa: E402

DATA = classes_of(90)


def tune(mod: tvm.IRModule, data: Any = DATA, **options: Any) -> tvm.IRModule:
    options = {"epochs": 2, "lr": 0.01, "batch_size": 16, "progress": False} | options
    return finetune(mod, data, **options)


def content(mod: tvm.IRModule) -> dict[str, bytes]:
    found = {}
    for name, parameter in ir.parameters(mod).items():
        found[name] = parameter.value.tobytes()
        if parameter.codes is not None and parameter.centroids is not None:
            found[name] += parameter.codes.tobytes() + parameter.centroids.tobytes()
    return found


def accuracy(mod: tvm.IRModule, data: Any = DATA) -> float:
    """By the numpy reference, which knows nothing of torch."""
    x, y = data
    outputs = [next(iter(run(mod, sample[None]).values())) for sample in x]
    return float(np.mean([out.argmax() == label for out, label in zip(outputs, y, strict=True)]))


@pytest.mark.parametrize("change", [None, pruned, shared])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_learns(change: Callable[[NDArray[Any]], Any] | None, optimizer: str) -> None:
    mod = dense_net(change=change)
    assert accuracy(mod) < 0.7
    assert accuracy(tune(mod, optimizer=optimizer, epochs=15, lr=0.02)) > 0.9


def test_one_step_of_sgd_by_hand() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 2)).astype("float32")
    x = rng.normal(size=(3, 4)).astype("float32")
    y = rng.normal(size=(3, 2)).astype("float32")
    mod = module({"x": (1, 4)}, {"w": w}, op.matmul)
    tuned = tune(mod, (x, y), loss="mse", optimizer="sgd", momentum=0.0, epochs=1, lr=0.5)
    # The mean over 3 * 2 elements of (x w - y)^2 has the gradient 2 x^T (x w - y) / 6.
    expected = w - 0.5 * 2 * x.T @ (x @ w - y) / 6
    np.testing.assert_allclose(ir.parameters(tuned)["w"].value, expected, rtol=1e-5, atol=1e-6)


def test_one_step_of_cross_entropy_by_hand() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 3)).astype("float32")
    x = rng.normal(size=(5, 4)).astype("float32")
    y = np.array([0, 2, 1, 1, 0])
    logits = x @ w
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = w - 0.5 * x.T @ (softmax - np.eye(3)[y]) / 5
    options = {"optimizer": "sgd", "momentum": 0.0, "epochs": 1, "lr": 0.5}
    plain = module({"x": (1, 4)}, {"w": w}, op.matmul)
    ends = module({"x": (1, 4)}, {"w": w}, lambda x, w: op.nn.softmax(op.matmul(x, w)))
    # A network with and one without a softmax at its end are trained alike.
    for mod in (plain, ends):
        tuned = tune(mod, (x, y), **options)
        np.testing.assert_allclose(ir.parameters(tuned)["w"].value, expected, rtol=1e-5, atol=1e-6)


def test_weight_decay_and_momentum_reach_the_optimizer() -> None:
    mod = dense_net()
    plain = content(tune(mod, optimizer="sgd"))
    assert content(tune(mod, optimizer="sgd", momentum=0.5)) != plain
    assert content(tune(mod, optimizer="sgd", weight_decay=0.1)) != plain
    assert content(tune(mod, weight_decay=0.1)) != content(tune(mod))


def ones_that_have_no_gradient() -> tuple[tvm.IRModule, Any]:
    """``w`` is all ones, and the inputs are zeros: what moves it is the weight decay alone."""
    mod = module({"x": (1, 2)}, {"w": np.ones((2, 3), "float32")}, op.matmul)
    return mod, (np.zeros((12, 2), "float32"), np.zeros((12, 3), "float32"))


def test_weight_decay_of_adam_is_decoupled() -> None:
    mod, data = ones_that_have_no_gradient()
    options = {"loss": "mse", "epochs": 1, "batch_size": 4, "lr": 0.1, "weight_decay": 0.5}
    tuned = tune(mod, data, **options)
    # Three steps of (1 - lr * weight_decay); in the gradient Adam would make of it three of lr.
    np.testing.assert_allclose(ir.parameters(tuned)["w"].value, (1 - 0.1 * 0.5) ** 3, rtol=1e-6)


def test_weight_decay_of_sgd_is_a_gradient() -> None:
    mod, data = ones_that_have_no_gradient()
    options = {"loss": "mse", "epochs": 1, "batch_size": 4, "lr": 0.1, "weight_decay": 0.5}
    tuned = tune(mod, data, optimizer="sgd", momentum=0.9, **options)
    w, velocity = 1.0, 0.0
    for _ in range(3):
        velocity = 0.9 * velocity + 0.5 * w
        w -= 0.1 * velocity
    np.testing.assert_allclose(ir.parameters(tuned)["w"].value, w, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_of_every_step(schedule: str) -> None:
    mod = module({"x": (1, 1)}, {"w": np.ones((1, 1), "float32")}, op.matmul)
    x = np.ones((6, 1), "float32")
    seen: list[float] = []

    def loss(output: Any, target: Any) -> Any:
        seen.append(float(output.detach().mean()))
        return -output.mean()  # of the gradient -1: w grows by the learning rate

    options = {"loss": loss, "optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "batch_size": 2}
    tuned = tune(mod, (x, x), epochs=2, schedule=schedule, **options)
    weights = [*seen, float(ir.parameters(tuned)["w"].value.item())]
    # Six steps, t = 0 .. 5: SGDR, equation 5 with eta_min = 0, eta_max = lr, T_i = 6.
    cosine = [0.5 * 0.5 * (1 + np.cos(np.pi * t / 6)) for t in range(6)]
    expected = [0.5] * 6 if schedule == "constant" else cosine
    np.testing.assert_allclose(np.diff(weights), expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_zeros_stay_zero(optimizer: str) -> None:
    mod = dense_net(change=pruned)
    before = ir.parameters(mod)["w1"].value
    seen = []
    tuned = tune(
        mod, optimizer=optimizer, weight_decay=0.1, momentum=0.9, lr=0.1,
        on_step=lambda step: seen.append(step.step),
    )  # fmt: skip
    after = ir.parameters(tuned)["w1"].value
    np.testing.assert_array_equal(after == 0, before == 0)
    assert not np.signbit(after[before == 0]).any()
    assert (after[before != 0] != before[before != 0]).all()
    assert len(seen) == 12


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_codes_and_the_zero_centroid_stay(optimizer: str) -> None:
    mod = dense_net(change=shared)
    before = ir.parameters(mod)["w1"]
    after = ir.parameters(tune(mod, optimizer=optimizer, weight_decay=0.1))["w1"]
    assert after.codes is not None
    assert after.centroids is not None
    assert before.centroids is not None
    np.testing.assert_array_equal(after.codes, before.codes)
    assert after.centroids.tobytes()[:4] == b"\0\0\0\0"
    assert (after.centroids[1:] != before.centroids[1:]).all()


def test_real_passes_and_training_compose(digits_onnx: Any, digits: Any) -> None:
    mod = load(digits_onnx)
    x, y = _digits(digits, mod)
    small = tune(ShareWeights(bits=3)(tune(Prune(0.8)(mod), (x, y))), (x, y))
    for name, weight in ir.weights(small).items():
        assert (weight.parameter.value == 0).mean() >= 0.79, name
        assert weight.parameter.centroids is not None
        assert weight.parameter.centroids.size <= 8
        assert edge.op_name(_binding(small, name)) == "tvm_compress.codebook"


def _digits(digits: Any, mod: tvm.IRModule) -> tuple[NDArray[Any], NDArray[Any]]:
    (param,) = ir.main_function(mod).params
    shape = edge.static_shape(param) or ()
    x = np.asarray(digits.train_images[:128], "float32").reshape(-1, *shape)
    return x, np.asarray(digits.train_labels[:128])


def _binding(mod: tvm.IRModule, name: str) -> Any:
    for binding in ir.bindings(ir.main_function(mod)):
        if edge.var_name(binding.var) == name:
            return binding.value
    raise AssertionError(f"{name} is not bound")


@pytest.mark.parametrize("change", [None, pruned, shared])
def test_same_seed_same_bytes(change: Callable[[NDArray[Any]], Any] | None) -> None:
    mod = dense_net(change=change)
    first = content(tune(mod))
    torch.manual_seed(99)  # the state of the caller's program has no part in it
    assert content(tune(mod)) == first
    assert content(tune(mod, seed=1)) != first


def test_random_numbers_in_a_loss_come_from_the_seed() -> None:
    def noisy(output: Any, target: Any) -> Any:
        return (output[:, 0, 0] * torch.rand(len(target))).mean()

    torch.manual_seed(98)
    first = content(tune(dense_net(), loss=noisy))
    assert first != content(dense_net())
    torch.manual_seed(99)
    assert content(tune(dense_net(), loss=noisy)) == first


def test_torch_s_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tune(dense_net())
    assert torch.equal(torch.rand(1), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_given_module_and_data_stay_as_they_were() -> None:
    mod = dense_net(change=pruned)
    before, (x, y) = content(mod), (DATA[0].copy(), DATA[1].copy())
    x.setflags(write=False)
    tune(mod, (x, y))
    assert content(mod) == before
    np.testing.assert_array_equal(x, DATA[0])


def test_no_epoch_changes_nothing() -> None:
    mod = dense_net(change=shared)
    assert content(tune(mod, epochs=0)) == content(mod)


def test_each_sample_is_seen_once_an_epoch_in_another_order() -> None:
    mod = module({"x": (1, 1)}, {"w": np.zeros((1, 1), "float32")}, op.matmul)
    x = np.arange(10, dtype="float32")[:, None]
    batches: list[list[float]] = []

    def loss(output: Any, target: Any) -> Any:
        batches.append(target.reshape(-1).tolist())
        return output.sum()

    tune(mod, (x, x), loss=loss, batch_size=4, epochs=2)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = ([v for batch in batches[i : i + 3] for v in batch] for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_steps_tell_loss_and_validation() -> None:
    mod = dense_net()
    steps: list[TrainingStep] = []
    held_out = classes_of(40, seed=2)
    tuned = tune(mod, batch_size=50, validation=held_out, on_step=steps.append)
    assert [(s.epoch, s.step) for s in steps] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [s.validation_loss is None for s in steps] == [True, False, True, False]
    assert steps[-1].validation_accuracy == pytest.approx(accuracy(tuned, held_out))
    x, y = held_out
    outputs = [next(iter(run(tuned, sample[None]).values())).ravel() for sample in x]
    by_hand = -np.mean([np.log(out[label]) for out, label in zip(outputs, y, strict=True)])
    assert steps[-1].validation_loss == pytest.approx(by_hand, rel=1e-4)
    assert content(tuned) == content(tune(mod, batch_size=50))


def test_validation_of_mse_has_no_accuracy() -> None:
    mod = module({"x": (1, 6)}, {"w": np.zeros((6, 3), "float32")}, op.matmul)
    steps: list[TrainingStep] = []
    data = DATA[0], np.ones((90, 3), "float32")
    tune(mod, data, loss="mse", validation=data, on_step=steps.append, epochs=1)
    assert steps[-1].validation_accuracy is None
    assert steps[-1].validation_loss is not None
    assert steps[0].loss == pytest.approx(1.0)


def test_labels_for_each_place() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5, 4)).astype("float32")
    y = x.argmax(-1)
    mod = module({"x": (1, 5, 4)}, {"w": np.full((4, 4), 0.1, "float32")}, op.matmul)
    steps: list[TrainingStep] = []
    tune(mod, (x, y), validation=(x, y), on_step=steps.append, epochs=10, lr=0.05)
    assert steps[-1].validation_accuracy is not None
    assert steps[-1].validation_accuracy > 0.95


def test_function_as_loss_of_several_outputs() -> None:
    def body(a: Any, b: Any, w: Any) -> Any:
        builder = tvm.relax.BlockBuilder.current()
        return tvm.ir.Tuple([builder.emit(op.matmul(a, w)), builder.emit(op.matmul(b, w))])

    mod = module({"a": (1, 3), "b": (1, 3)}, {"w": np.ones((3, 2), "float32")}, body)
    x = {"a": np.ones((6, 3), "float32"), "b": np.ones((6, 3), "float32")}
    y = {"p": np.zeros((6, 2), "float32"), "q": np.zeros(6, "int64")}
    shapes = []

    def loss(outputs: Any, targets: Any) -> Any:
        shapes.append([tuple(t.shape) for t in (*outputs, targets["p"], targets["q"])])
        return (outputs[0].squeeze(1) - targets["p"]).square().mean() + outputs[1].square().mean()

    tuned = tune(mod, (x, y), loss=loss, lr=0.1, batch_size=6, validation=(x, y))
    assert shapes[0] == [(6, 1, 2), (6, 1, 2), (6, 2), (6,)]
    assert (ir.parameters(tuned)["w"].value < 1).all()


def test_progress_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    tune(dense_net(), progress=True, validation=DATA)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2/2" in err
    assert "loss " in err
    assert "validation loss" in err
    tune(dense_net())
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_stops_after_the_step() -> None:
    steps = []

    def press(step: TrainingStep) -> None:
        steps.append(step)
        if step.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tune(dense_net(), on_step=press)
    assert len(steps) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_does_not_wait_for_the_step() -> None:
    ended = []

    def loss(output: Any, target: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        ended.append(True)
        return output.sum()

    with pytest.raises(KeyboardInterrupt):
        tune(dense_net(), loss=loss)
    assert ended == []


def test_a_handler_of_the_program_is_kept() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        tune(dense_net(), epochs=1, on_step=lambda step: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(pressed) == 6


def test_it_runs_in_another_thread() -> None:
    results: list[dict[str, bytes]] = []
    thread = threading.Thread(target=lambda: results.append(content(tune(dense_net()))))
    thread.start()
    thread.join()
    assert results == [content(tune(dense_net()))]


def test_under_no_grad_it_trains_all_the_same() -> None:
    with torch.no_grad():
        tuned = tune(dense_net())
    assert content(tuned) == content(tune(dense_net()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "finetune: epochs is -1; expected a whole number from 0 on, below 2**63."),
        ({"epochs": 1.5}, "finetune: epochs is 1.5; expected a whole number from 0 on, below "
         "2**63."),
        ({"batch_size": 0}, "finetune: batch_size is 0; expected a whole number from 1 on, below "
         "2**63."),
        ({"batch_size": True}, "finetune: batch_size is True; expected a whole number from 1 on, "
         "below 2**63."),
        ({"seed": 2**63}, "finetune: seed is 9223372036854775808; expected a whole number from 0 "
         "on, below 2**63."),
        ({"lr": 0.0}, "finetune: the learning rate lr is 0.0; expected a number above 0, such as "
         "0.001."),
        ({"lr": float("nan")}, "finetune: the learning rate lr is nan; expected a number above 0, "
         "such as 0.001."),
        ({"momentum": 1.0}, "finetune: the momentum is 1.0; expected a number from 0 to below 1."),
        ({"weight_decay": -1.0}, "finetune: the weight_decay is -1.0; expected a number of at "
         "least 0."),
        ({"optimizer": "lion"}, "finetune: the optimizer is 'lion'; expected adam or sgd."),
        ({"schedule": "step"}, "finetune: the schedule is 'step'; expected constant or cosine."),
        ({"augment": "flip"}, "augment is a str; expected a function of the inputs of a batch and "
         "a numpy.random.Generator that gives the changed inputs."),
        ({"loss": "hinge"}, "finetune: the loss is 'hinge'; expected cross_entropy, mse, "
         "distillation or a function."),
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        tune(dense_net(), **options)
    assert str(caught.value) == message


def test_divergence_asks_for_a_lower_learning_rate() -> None:
    message = (
        r"finetune: the loss became (nan|inf) in step \d+ of epoch \d with the learning rate lr of "
        r"1e\+30; expected a finite number: lower the learning rate\."
    )
    with pytest.raises(OptionError, match=message):
        tune(dense_net(), lr=1e30, optimizer="sgd")


def test_a_last_step_that_diverges_is_seen() -> None:
    mod = module({"x": (1, 1)}, {"w": np.full((1, 1), 1e20, "float32")}, op.matmul)
    message = r"the parameter w is no longer finite in step 1 of epoch 1 with the learning rate"
    with pytest.raises(OptionError, match=message):
        tune(mod, (np.full((1, 1), 1e10, "float32"), np.zeros((1, 1), "float32")), epochs=1,
             lr=1e30, loss=lambda output, y: output.sum(), optimizer="sgd")  # fmt: skip


def test_networks_that_cannot_be_trained() -> None:
    nothing = module({"x": (1, 6)}, {}, lambda x: op.nn.relu(x))
    with pytest.raises(
        UnsupportedError,
        match=r"finetune: the network has no floating parameter to train; expected a network that "
        r"is not quantised yet: fine-tune before it is\.",
    ):
        tune(nothing)
    half = module({"x": (1, 6)}, {"w": np.ones((6, 3), "float16")}, op.matmul, dtype="float16")
    with pytest.raises(
        UnsupportedError,
        match=r"finetune: the parameter w is float16; expected float32: convert the network's "
        r"parameters to float32 first\.",
    ):
        tune(half, (DATA[0].astype("float16"), DATA[1]))


def test_outputs_that_the_loss_does_not_fit() -> None:
    one = module({"x": (1, 6)}, {"w": np.ones((6, 1), "float32")}, op.matmul)
    with pytest.raises(
        UnsupportedError,
        match=r"finetune: the output gv has one element; expected at least two classes for the "
        r"loss cross_entropy: use mse or a function\.",
    ):
        tune(one)

    def twice(x: Any, w: Any) -> Any:
        y = tvm.relax.BlockBuilder.current().emit(op.matmul(x, w))
        return tvm.ir.Tuple([y, x])

    two = module({"x": (1, 6)}, {"w": np.ones((6, 3), "float32")}, twice)
    for loss in ("cross_entropy", "mse"):
        with pytest.raises(
            UnsupportedError,
            match=rf"finetune: the network has 2 outputs \(\w+, x\); expected one for the loss "
            rf"{loss}: give a function of all outputs as the loss\.",
        ):
            tune(two, loss=loss)


def test_torch_module_is_public() -> None:
    # The import by the package and by its module give one class, not two.
    from tvm_compress.training.interpreter import TorchModule as Direct

    assert TorchModule is Direct
