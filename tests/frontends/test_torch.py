"""PyTorch: exported programs, modules with an example, archives; the judge is torch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tvm_compress import edge, ir
from tvm_compress.errors import DataError, ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.frontends import torch as torch_frontend
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs, output_specs

torch = pytest.importorskip("torch")
nn = torch.nn


class Convolutions(nn.Module):  # type: ignore[name-defined]
    """Convolution, batch normalisation, depthwise, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.fc = nn.Linear(16, 3)
        with torch.no_grad():
            for tensor in (self.norm.running_mean, self.norm.running_var, self.norm.weight):
                tensor.copy_(torch.rand(4) + 0.5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.pool(self.depthwise(x))
        return torch.softmax(self.fc(torch.flatten(x, 1)), -1)


class Recurrent(nn.Module):  # type: ignore[name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(self.lstm(x)[0][:, -1])


class Two(nn.Module):  # type: ignore[name-defined]
    def forward(self, a: Any, b: Any) -> Any:
        return a + b, (a * b).sum(1)


CASES = [
    pytest.param(Convolutions, [(1, 2, 10, 10)], id="convolutions"),
    pytest.param(Recurrent, [(1, 4, 3)], id="lstm"),
    pytest.param(Two, [(2, 3), (2, 3)], id="two"),
    pytest.param(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.LayerNorm(3)), [(2, 4)], id="gelu"
    ),
    pytest.param(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.SiLU(), nn.AdaptiveAvgPool1d(2)),
        [(1, 2, 9)],
        id="1d",
    ),
    pytest.param(
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Hardswish()),
        [(1, 2, 4, 4)],
        id="up",
    ),
]


def made(factory: Any, shapes: Any) -> tuple[Any, tuple[Any, ...]]:
    torch.manual_seed(0)
    return factory().eval(), tuple(torch.randn(*shape) for shape in shapes)


def check(mod: tvm.IRModule, network: Any, example: tuple[Any, ...]) -> None:
    with torch.no_grad():
        expected = network(*example)
    expected = expected if isinstance(expected, tuple) else (expected,)
    names = [spec.name for spec in input_specs(mod)]
    outputs = reference.run(mod, dict(zip(names, (x.numpy() for x in example), strict=True)))
    for y, wanted in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("factory", "shapes"), CASES)
def test_modules_and_programs(factory: Any, shapes: Any, tmp_path: Path) -> None:
    network, example = made(factory, shapes)
    mod = load(network, example=example)
    check(mod, network, example)
    program = torch.export.export(network, example)
    tvm.ir.assert_structural_equal(load(program), mod)
    path = tmp_path / "network.pt2"
    torch.export.save(program, str(path))
    tvm.ir.assert_structural_equal(load(path), mod)


def test_parameters_keep_their_names_and_the_norm_is_folded() -> None:
    network, example = made(Convolutions, [(1, 2, 10, 10)])
    mod = load(network, example=example)
    names = list(ir.weights(mod))
    assert len(names) == 3
    for name, part in zip(names, ("conv_weight", "depthwise_weight", "fc_weight"), strict=True):
        assert part in name
    operators = {edge.op_name(b.value) for b in ir.bindings(mod["main"])}
    assert "relax.nn.batch_norm" not in operators


def test_one_tensor_is_an_example_too() -> None:
    network, (x,) = made(lambda: nn.Linear(4, 3), [(2, 4)])
    check(load(network, example=x), network, (x,))


def test_a_module_in_training_is_loaded_for_inference_and_stays_in_training() -> None:
    network, example = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), [(2, 4)])
    network.train()
    mod = load(network, example=example)
    assert network.training
    check(mod, network.eval(), example)


def test_a_dynamic_batch_is_one() -> None:
    network, example = made(lambda: nn.Linear(4, 3), [(2, 4)])
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, example, dynamic_shapes=({0: batch},))
    mod = load(program)
    assert output_specs(mod)[0].shape == (1, 3)
    (spec,) = input_specs(mod)
    assert output_specs(load(program, shapes={spec.name: (7, 4)}))[0].shape == (7, 3)


def test_a_module_without_example() -> None:
    with pytest.raises(DataError) as caught:
        load(nn.Linear(4, 3))
    assert str(caught.value) == (
        "An nn.Module needs an example input; expected load(module, example=tensor)."
    )


def test_a_module_that_cannot_be_exported() -> None:
    class Branches(nn.Module):  # type: ignore[name-defined]
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError) as caught:
        load(Branches(), example=torch.ones(2))
    sentence = str(caught.value)
    assert sentence.startswith("torch.export cannot take the module: ")
    assert sentence.endswith(" Mend the module until torch.export.export takes it.")


def test_an_operator_that_the_importer_does_not_take() -> None:
    class Rare(nn.Module):  # type: ignore[name-defined]
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[1]

    with pytest.raises(UnsupportedError) as caught:
        load(Rare(), example=torch.ones(2, 2))
    sentence = str(caught.value)
    assert sentence.startswith("No frontend takes this torch.export program: ")
    assert "svd" in sentence and sentence.endswith(" Replace the operator in the network.")


def test_a_checkpoint_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(ModelFormatError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path} is an archive but not one that torch.export.save wrote; expected ONNX, .tflite, a "
        "torch.export program (.pt2), .tcz or a Relax module saved as JSON."
    )


def test_what_is_taken() -> None:
    assert torch_frontend.takes(nn.Linear(1, 1)) and not torch_frontend.takes(42)
