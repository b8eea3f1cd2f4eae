"""A run that was stopped, however it was stopped, ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.nets import classes_of, dense_net, pruned, shared
from tests.training.test_loop import content
from tvm_compress.errors import DataError, OptionError

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tvm_compress.training import TrainingStep, finetune, loop  # noqa: E402
from tvm_compress.training import checkpoint as checkpoints  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
DATA = classes_of(90)
STEPS = 6  # an epoch: 90 samples by 16


def noisy(output: Any, target: Any) -> Any:
    """A loss whose value depends on torch's random state."""
    logits = output.squeeze(1) * (0.5 + torch.rand(len(target), 1))
    return torch.nn.functional.cross_entropy(logits, target)


def shaken(x: Any, random: np.random.Generator) -> Any:
    """An augmentation whose result depends on the random numbers that it gets."""
    return x + random.normal(0, 0.1, x.shape).astype("float32")


def tune(path: Path | None, **options: Any) -> dict[str, bytes]:
    change = options.pop("change", pruned)
    given = {"epochs": 3, "lr": 0.02, "batch_size": 16, "progress": False, "seed": 3} | options
    return content(finetune(dense_net(change=change), DATA, checkpoint=path, **given))


def stop_after(count: int) -> Any:
    seen = []

    def watch(step: TrainingStep) -> None:
        seen.append(step)
        if len(seen) == count:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize(
    ("change", "loss", "optimizer", "more"),
    [
        (pruned, "cross_entropy", "adam", {}),
        (shared, noisy, "sgd", {}),
        (shared, noisy, "adam", {}),
        (pruned, "cross_entropy", "adam", {"weight_decay": 0.1, "schedule": "cosine"}),
        (shared, noisy, "sgd", {"weight_decay": 0.1, "schedule": "cosine", "augment": shaken}),
    ],
)
@pytest.mark.parametrize("stop", [[1], [4, 1, 7], [STEPS], [STEPS + 1, 2], [3 * STEPS]])
def test_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path,
    change: Any,
    loss: Any,
    optimizer: str,
    more: dict[str, Any],
    stop: list[int],
) -> None:
    options = {"change": change, "loss": loss, "optimizer": optimizer, **more}
    path = tmp_path / "run"
    expected = tune(None, **options)
    for count in stop:
        with pytest.raises(KeyboardInterrupt):
            tune(path, on_step=stop_after(count), **options)
        assert [file.name for file in tmp_path.iterdir()] == ["run"]
    steps: list[TrainingStep] = []
    assert tune(path, on_step=steps.append, **options) == expected
    # It did go on: no step was done twice.
    assert len(steps) == 3 * STEPS - sum(stop)


def test_finished_run_is_not_done_again(tmp_path: Path) -> None:
    expected = tune(tmp_path / "run")
    steps: list[TrainingStep] = []
    assert tune(tmp_path / "run", on_step=steps.append) == expected
    assert steps == []


PROGRAM = """
import os, signal, sys
import tests.training.test_checkpoint as test

def kill(step):
    if (step.epoch, step.step) == (2, 4):
        os.kill(os.getpid(), signal.SIGKILL)

test.tune(sys.argv[1], on_step=kill)
"""


@pytest.mark.slow
def test_killed_process_is_resumed_from_its_last_epoch(tmp_path: Path) -> None:
    path = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, cwd=tmp_path, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    steps: list[TrainingStep] = []
    assert tune(path, on_step=steps.append) == tune(None)
    assert (steps[0].epoch, steps[0].step) == (2, 1)


def test_checkpoint_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)

    def crash(step: TrainingStep) -> None:
        if step.step == 4:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        tune(tmp_path / "run", on_step=crash)
    steps: list[TrainingStep] = []
    assert tune(tmp_path / "run", on_step=steps.append) == tune(None)
    assert (steps[0].epoch, steps[0].step) == (1, 4)


def test_ctrl_c_leaves_a_checkpoint_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "run", on_step=lambda step: signal.raise_signal(signal.SIGINT))
    steps: list[TrainingStep] = []
    assert tune(tmp_path / "run", on_step=steps.append) == tune(None)
    assert (steps[0].epoch, steps[0].step) == (1, 2)


def test_interrupt_while_writing_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        tune(path, on_step=stop_after(2))
    before = path.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        tune(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert tune(path) == tune(None)


def test_divergence_does_not_replace_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    calls: list[int] = []

    def loss(output: Any, target: Any) -> Any:
        calls.append(1)
        return output.sum() * (float("nan") if len(calls) > STEPS + 2 else 1.0)

    with pytest.raises(OptionError, match="lower the learning rate"):
        tune(path, loss=loss)
    state = torch.load(path, weights_only=True)["state"]
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(bool(torch.isfinite(value).all()) for value in state["net"].values())


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"lr": 0.01}, "options (its options are (epochs=3, lr=0.02, "),
        ({"seed": 4}, "options (its options are "),
        ({"loss": noisy}, "options (its options are "),
        ({"schedule": "cosine"}, "options (its options are "),
        ({"weight_decay": 0.1}, "options (its options are "),
        ({"augment": shaken}, "options (its options are "),
        ({"change": shared}, "network; expected"),
        ({"change": shared, "epochs": 4}, "network and options (its options are "),
    ],
)
def test_checkpoint_of_another_run(tmp_path: Path, options: dict[str, Any], differs: str) -> None:
    path = tmp_path / "run"
    tune(path)
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        tune(path, **options)
    message = str(caught.value)
    assert message.startswith(
        f"The checkpoint {path} belongs to another run: it differs in {differs}"
    )
    assert message.endswith(
        "; expected a checkpoint of this run: delete it to start anew, or give another path."
    )
    assert path.read_bytes() == before


def test_checkpoint_of_other_data(tmp_path: Path) -> None:
    path = tmp_path / "run"
    tune(path)
    x = DATA[0].copy()
    x[-1, -1] += 1
    for data in [(x, DATA[1]), (DATA[0], 2 - DATA[1])]:
        with pytest.raises(DataError, match=r"it differs in data; expected a checkpoint of this"):
            finetune(
                dense_net(change=pruned), data, checkpoint=path, epochs=3, lr=0.02, batch_size=16,
                seed=3, progress=False,
            )  # fmt: skip


def test_validation_and_progress_are_not_part_of_a_run(tmp_path: Path) -> None:
    tune(tmp_path / "run")
    assert tune(tmp_path / "run", validation=DATA, progress=True) == tune(None)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "cut", "other"])
def test_damaged_checkpoint(tmp_path: Path, damage: bytes | str) -> None:
    path = tmp_path / "run"
    tune(path)
    if damage == "other":
        torch.save({"weights": torch.zeros(1)}, path)
    else:
        path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:-200])
    with pytest.raises(DataError) as caught:
        tune(path)
    assert str(caught.value) == (
        f"{path} is damaged or is no checkpoint of a fine-tuning; expected one that finetune "
        "wrote: delete it to start anew, or give another path."
    )


def test_checkpoint_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "run"
    tune(path)
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "format": "tvm-compress fine-tuning 0"}, path)
    with pytest.raises(DataError) as caught:
        tune(path)
    assert str(caught.value) == (
        f"{path} has the checkpoint format 'tvm-compress fine-tuning 0'; expected 'tvm-compress "
        "fine-tuning 1': delete it to start anew, or give another path."
    )


def test_checkpoint_holds_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save(Evil(), tmp_path / "run")
    with pytest.raises(DataError, match="damaged or is no checkpoint"):
        tune(tmp_path / "run")
    assert not (tmp_path / "made").exists()


def test_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        tune(tmp_path)
    assert str(caught.value) == (
        f"The checkpoint {tmp_path} is a folder; expected the path of a file in it."
    )
    with pytest.raises(OptionError) as caught:
        tune(tmp_path / "missing" / "run")
    assert str(caught.value) == (
        f"The folder {tmp_path / 'missing'} of the checkpoint run does not exist; make it first or "
        "give another path."
    )


def test_digests_tell_arrays_apart() -> None:
    zeros = np.zeros((2, 3), "float32")
    others: list[dict[str, Any]] = [
        {"y": zeros},
        {"x": zeros.T},
        {"x": zeros.astype("float64")},
        {"x": -zeros},
        {"x": zeros[:1]},
        {"x": zeros, "y": zeros},
    ]
    digest = checkpoints.data_digest
    assert digest({"x": zeros}) == digest({"x": np.asfortranarray(zeros.copy())})
    assert len({digest({"x": zeros}), *(digest(other) for other in others)}) == 1 + len(others)
    long = np.arange(10000)
    changed = long.copy()
    changed[-1] = 0
    assert digest({"x": long}) != digest({"x": changed})


def test_network_digest_tells_structure_and_values_apart() -> None:
    nets = [dense_net(), dense_net(1), dense_net(softmax=False), dense_net(change=shared)]
    digest = checkpoints.network_digest
    assert digest(dense_net()) == digest(dense_net())
    assert len({digest(net) for net in nets}) == len(nets)
