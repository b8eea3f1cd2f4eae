"""``load``: files told apart by their bytes, and one sentence for each that is none of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper

from benchmarks.frontends import LIMITS, Outcome, compare, main, measure
from tvm_compress import build, compress, export_onnx, ir
from tvm_compress.errors import ModelFormatError, UnsupportedError
from tvm_compress.frontends import load
from tvm_compress.recipes import deep_compression
from tvm_compress.targets import reference
from tvm_compress.tensors import input_specs, output_specs

TAKEN = "ONNX, .tflite, a torch.export program (.pt2), .tcz or a Relax module saved as JSON"


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFormatError) as caught:
        load(path)
    return str(caught.value)


def test_the_committed_network(digits_onnx: Path, tmp_path: Path) -> None:
    mod = load(digits_onnx)
    (x,), (y,) = input_specs(mod), output_specs(mod)
    assert x.shape[0] == y.shape[0] == 1
    assert all(p.value.dtype == np.float32 for p in ir.parameters(mod).values())
    # A name says nothing: the bytes do.
    other = tmp_path / "network.tflite"
    other.write_bytes(digits_onnx.read_bytes())
    tvm.ir.assert_structural_equal(load(str(other)), mod)
    saved = tmp_path / "network.onnx"
    saved.write_text(tvm.ir.save_json(mod))
    tvm.ir.assert_structural_equal(load(saved), mod)
    sample = np.ones(x.shape, np.float32)
    np.testing.assert_array_equal(
        reference.run(load(saved), sample)[y.name], reference.run(mod, sample)[y.name]
    )


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    assert refused(path) == f"{path} does not exist; expected a file: {TAKEN}."


def test_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is a folder; expected a file: {TAKEN}."


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    assert refused(path, b"") == f"{path} is empty; expected {TAKEN}."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weights": [1, 2, 3]}),
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"hello, world, this is text\n",
        bytes(1000),
        b"\x7fELF" + bytes(100),
        np.random.default_rng(0).bytes(4096),
    ],
    ids=["pickle", "png", "text", "zeros", "elf", "noise"],
)
def test_a_file_of_none_of_the_formats(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    sentence = refused(path, content)
    assert sentence.startswith(f"{path} is none of the known formats (")
    assert sentence.endswith(f"); expected {TAKEN}.")


@pytest.mark.parametrize("keep", [10, 100, 0.5, 0.99])
def test_a_damaged_onnx_file(digits_onnx: Path, tmp_path: Path, keep: float) -> None:
    whole = digits_onnx.read_bytes()
    size = int(keep * len(whole)) if keep < 1 else int(keep)
    path = tmp_path / "cut.onnx"
    assert refused(path, whole[:size]).startswith(f"{path} is none of the known formats (")


@pytest.mark.parametrize(
    "text",
    [
        '#[version = "0.0.5"]\ndef @main(%x: Tensor[(1, 3), float32]) { nn.relu(%x) }',
        "def @main(%x: Tensor[(1, 3), float32]) -> Tensor[(1, 3), float32] { %x }",
        "fn (%x: Tensor[(1, 3), float32]) { %x }",
        '{"root": 1, "nodes": [{"type_key": "relay.Function"}]}',
    ],
)
def test_a_saved_relay_module(tmp_path: Path, text: str) -> None:
    path = tmp_path / "relay.json"
    assert refused(path, text.encode()) == (
        f"{path} is a saved Relay module, and Relay left TVM; expected {TAKEN}: export the network "
        "from its framework again, by ONNX or torch.export."
    )


def test_other_json(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    sentence = refused(path, b'{"a": 1}')
    assert sentence.startswith(f"{path} is not a module that this TVM can read (")
    assert sentence.endswith(f"); expected {TAKEN}.")
    saved = tvm.ir.save_json(tvm.tirx.IntImm("int32", 1))
    assert refused(path, saved.encode()) == f"{path} holds a IntImm; expected an IRModule."


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.ones(3))
    assert refused(path) == (
        f"{path} is an archive but not one that torch.export.save wrote; expected {TAKEN}."
    )


def test_a_network_without_inputs() -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["w"], ["y"])], "g", [], [value], [weight])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    sentence = (
        "The network has no inputs, so its outputs never change; expected at least one: export "
        "what gives its weights as an input."
    )
    with pytest.raises(UnsupportedError) as caught:
        load(model)
    assert str(caught.value) == sentence

    builder = tvm.relax.BlockBuilder()
    with builder.function("main", []):
        with builder.dataflow():
            out = builder.emit_output(tvm.relax.op.nn.relu(tvm.relax.const(np.ones(3, "float32"))))
        builder.emit_func_output(out)
    mod = builder.get()
    for use in (
        lambda: load(mod),
        lambda: build(mod, "c"),
        lambda: build(mod, "reference").run({}),
        lambda: compress(mod, deep_compression(epochs=0), progress=False),
        lambda: export_onnx(mod),
    ):
        with pytest.raises(UnsupportedError) as caught:
            use()
        assert str(caught.value) == sentence


def test_an_object_of_no_known_kind() -> None:
    with pytest.raises(ModelFormatError) as caught:
        load(42)
    assert str(caught.value) == f"A int cannot be loaded; expected {TAKEN}."


# -- every network of the development data --------------------------------------------------------

# Path, and the first words of the refusal where there is one.
MODELS = {
    "mlperf_tiny/ad01_float.onnx": "",
    "mlperf_tiny/ad01_float.tflite": "",
    "mlperf_tiny/ad01_int8.tflite": "",
    "mlperf_tiny/ic_resnet8_float.onnx": "",
    "mlperf_tiny/ic_resnet8_float.tflite": "",
    "mlperf_tiny/ic_resnet8_int8.tflite": "",
    "mlperf_tiny/kws_dscnn_float.onnx": "",
    "mlperf_tiny/kws_dscnn_hybrid.tflite": "No frontend takes the TensorFlow Lite operator CONV_2D",
    "mlperf_tiny/kws_dscnn_int8.tflite": "",
    "mlperf_tiny/vww_96_float.onnx": "",
    "mlperf_tiny/vww_96_float.tflite": "",
    "mlperf_tiny/vww_96_int8.tflite": "",
    "models/arm_kws_Basic_LSTM_S.onnx": "No frontend takes the ONNX operator Scan (node ",
    "models/arm_kws_DS_CNN_S.onnx": "",
    "models/arm_kws_GRU_S.onnx": "No frontend takes the ONNX operator Scan (node ",
    "models/arm_kws_LSTM_S.onnx": "No frontend takes the ONNX operator Scan (node ",
    "models/mobilenet_v1_0.25_128_quant.tflite": "",
    "models/mobilenet_v2_1.0_224_quant.tflite": "",
    "models/silero_vad_16k.onnx": "No frontend takes the ONNX operator LSTM (node ",
    "models/tflm_mnist_lstm_float.tflite": "No frontend takes the TensorFlow Lite operator ",
    "models/tflm_mnist_lstm_int8.tflite": (
        "No frontend takes the TensorFlow Lite operator UNIDIRECTIONAL_SEQUENCE_LSTM"
    ),
    "models/ultraface_rfb320.onnx": "",
    "reference/han_squeezenet.onnx": "",
}


@pytest.mark.parametrize("file", MODELS)
def test_every_network_equals_its_judge(file: str, shared_data: Path) -> None:
    outcome: Outcome = measure(shared_data / file, shared_data)
    assert outcome.file == file
    if MODELS[file]:
        assert outcome.refused.startswith(MODELS[file])
        assert "None" not in outcome.refused
        return
    assert outcome.refused == ""
    assert outcome.difference <= outcome.limit
    if file.endswith("_float.onnx") and Path(file).name not in LIMITS:
        assert outcome.limit == 1e-5


def test_the_list_of_networks_is_whole(shared_data: Path) -> None:
    from benchmarks.frontends import model_files

    assert [str(p.relative_to(shared_data)) for p in model_files(shared_data)] == sorted(MODELS)


def test_the_benchmark_compares_strictly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = np.asarray([1, -2], np.float32)
    assert compare({"y": one}, [one * np.float32(1.5)]) == (1 / 3, "of the largest output")
    whole = np.asarray([0, 255], np.uint8)
    assert compare({"y": whole}, [whole[::-1]]) == (255.0, "steps")
    with pytest.raises(
        ValueError, match=r"The output y is float32 \(2,\); the judge gives float64"
    ):
        compare({"y": one}, [one.astype(np.float64)])
    with pytest.raises(ValueError, match="The output y is not finite: choose other inputs"):
        compare({"y": one * np.float32(np.nan)}, [one])
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(tmp_path)])
    assert caught.value.code == 2
    assert f"There are no models in {tmp_path}; set TVM_COMPRESS_SHARED" in capsys.readouterr().err
