"""Other devices than the processor, as far as this can be told without one.

Torch's device ``meta`` has shapes and no numbers: an operator that leaves a tensor on the processor
fails there as it would on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.nets import dense_net
from tvm_compress.errors import OptionError
from tvm_compress.pipeline import compress
from tvm_compress.recipe import Finetune, Recipe

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tests.training.test_meaning import CASES, Case, draw, module_of  # noqa: E402
from tvm_compress.training import TorchModule, finetune, loop, teacher_outputs  # noqa: E402
from tvm_compress.training.device import find_device, moved  # noqa: E402

X, Y = np.zeros((4, 6), np.float32), np.zeros(4, np.int64)


def no_gpu(monkeypatch: pytest.MonkeyPatch, count: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_computes_where_its_inputs_are(case: Case) -> None:
    net = TorchModule(module_of(case)).to("meta")
    for inputs in (draw(case, 0), [x[0] for x in draw(case, 0)]):
        outputs = net(*(torch.from_numpy(x).to("meta") for x in inputs))
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            assert output.device.type == "meta"


def test_a_network_lies_where_its_parameters_are() -> None:
    assert TorchModule(dense_net()).device == torch.device("cpu")
    assert TorchModule(dense_net()).to("meta").device == torch.device("meta")


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch, count=2)
    for name in ("cpu", "cuda", "cuda:1"):
        assert find_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x"])
def test_another_name(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_device(name)
    assert str(caught.value) == (
        f"The device is {name!r}; expected cpu, cuda, or cuda with a number, such as cuda:1."
    )


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:1", 1)])
def test_a_device_that_torch_does_not_find(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gpu(monkeypatch, count)
    sentence = (
        f"The device is {name!r}, and torch {torch.__version__} finds {count} GPUs; expected one "
        "that it finds: use cpu, or install a torch built for the GPU and its driver."
    )
    recipe = Recipe([Finetune(1)])
    distill = Recipe([Finetune(1, loss="distillation")])
    mod = dense_net()
    for work in (
        lambda: find_device(name),
        lambda: finetune(mod, (X, Y), device=name, progress=False),
        lambda: teacher_outputs(mod, X, device=name),
        lambda: compress(mod, recipe, train=(X, Y), device=name, progress=False),
        lambda: compress(mod, distill, train=(X, None), device=name, progress=False),
    ):
        with pytest.raises(OptionError) as caught:
            work()
        assert str(caught.value) == sentence


def test_a_batch_is_moved_with_its_targets() -> None:
    meta = torch.device("meta")
    x, y = torch.zeros(2, 3), torch.zeros(2)
    inputs, targets = moved(([x, x], y), meta)
    assert isinstance(targets, torch.Tensor)
    assert {t.device for t in (*inputs, targets)} == {meta}
    _, named = moved(([x], {"a": y, "b": y}), meta)
    assert isinstance(named, dict) and {t.device for t in named.values()} == {meta}


class _Seen(Exception):
    pass


@pytest.mark.parametrize("validation", [None, (X, Y)])
def test_all_of_a_training_is_on_the_device(
    validation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = torch.device("meta")
    monkeypatch.setattr(loop, "find_device", lambda name: meta)
    calls = []

    def loss(outputs: Any, targets: Any) -> Any:
        calls.append((outputs.device, targets.device, torch.is_grad_enabled()))
        if validation is None or not torch.is_grad_enabled():
            raise _Seen
        return outputs.sum()

    # A number cannot be read from this device: only what comes before is looked at.
    monkeypatch.setattr(loop, "float", lambda tensor: 0.0, raising=False)
    monkeypatch.setattr(loop._Run, "_end_epoch", _judge)
    with pytest.raises(_Seen):
        finetune(
            dense_net(), (X, Y), loss=loss, validation=validation, progress=False, device="meta"
        )
    assert calls[-1] == (meta, meta, validation is None)


def _judge(self: Any, done: Any) -> Any:
    self.objective.judge(self.net, self.judged, 4)
    return done
