"""TensorFlow Lite: names and layers of real files, damaged bytes; whole networks: test_load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.frontends import draw_inputs
from tvm_compress import edge, ir
from tvm_compress.errors import InputError, ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.targets.reference import evaluate
from tvm_compress.tensors import input_specs, output_specs


@pytest.mark.parametrize("size", [8, 9, 20, 100])
def test_a_cut_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes((b"\x1c\x00\x00\x00TFL3" + bytes(100))[:size])
    with pytest.raises(ModelFormatError) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is a damaged TensorFlow Lite file (")
    assert sentence.endswith("); expected a whole flat buffer: convert or copy the model again.")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_real_file_cut_short(shared_data: Path, tmp_path: Path, share: float) -> None:
    whole = (shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"(damaged TensorFlow Lite file|cannot take) "):
        load(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_real_file_with_wrong_bytes_never_fails_otherwise(
    shared_data: Path, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray((shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite").read_bytes())
    for place in rng.integers(8, len(data), 200):
        data[place] = rng.integers(256)
    path = tmp_path / "wrong.tflite"
    path.write_bytes(data)
    try:
        input_specs(load(path))
    except InputError as error:
        assert str(error).count(" ") > 5  # a sentence


def test_names_of_the_file(shared_data: Path) -> None:
    mod = load(shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite")
    (x,), (y,) = input_specs(mod), output_specs(mod)
    assert (x.name, x.shape, x.dtype) == ("input_1", (1, 49, 10, 1), "int8")
    assert (y.name, y.shape, y.dtype) == ("Identity", (1, 12), "int8")
    # Quantised weights stay the integers of the file.
    assert all(w.parameter.value.dtype == np.int8 for w in ir.weights(mod).values())


def test_shapes_are_checked(shared_data: Path) -> None:
    path = shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite"
    with pytest.raises(UnsupportedError) as caught:
        load(path, shapes={"image": (1, 49, 10, 1)})
    assert str(caught.value) == "There is no input image; expected input_1."
    with pytest.raises(UnsupportedError) as caught:
        load(path, shapes={"input_1": (1, 40, 10, 1)})
    assert str(caught.value) == (
        "The input input_1 has the static size 49 on axis 1; 40 was given: give the sizes that the "
        "model leaves open."
    )


def test_hybrid_weights_are_refused(shared_data: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        load(shared_data / "mlperf_tiny" / "kws_dscnn_hybrid.tflite")
    assert str(caught.value).startswith("No frontend takes the TensorFlow Lite operator CONV_2D: ")


@pytest.mark.parametrize("name", ["kws_dscnn_int8", "ic_resnet8_int8", "vww_96_int8"])
def test_the_first_layer_rounds_at_most_one_step_beside_the_file(
    name: str, shared_data: Path
) -> None:
    """What later layers make of it is in docs/formats.md."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = shared_data / "mlperf_tiny" / f"{name}.tflite"
    mod = load(path)
    (x,) = draw_inputs(input_specs(mod)).values()
    judge = Interpreter(
        str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    judge.allocate_tensors()
    judge.set_tensor(judge.get_input_details()[0]["index"], x)
    judge.invoke()
    values: dict[Any, NDArray[Any]] = {mod["main"].params[0]: x}
    for binding in ir.bindings(mod["main"]):
        values[binding.var] = evaluate(binding.value, values)
        if edge.op_name(binding.value) == "relax.quantize" and values[binding.var].ndim == 4:
            break
    first = values[binding.var].astype(int)
    candidates = [
        np.abs(judge.get_tensor(detail["index"]).astype(int) - first)
        for detail in judge.get_tensor_details()
        if tuple(detail["shape"]) == first.shape and detail["dtype"] == np.int8
    ]
    nearest = min(candidates, key=lambda difference: float(difference.mean()))
    assert nearest.max() <= 1
    assert (nearest > 0).mean() < 0.01
