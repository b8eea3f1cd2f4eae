"""``to-integers`` against LiteRT's reference kernels: single operators, and whole networks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tvm_compress as tc
from tests.passes.tflite_models import Tensor, constant, judged, model
from tvm_compress import edge, ir
from tvm_compress.passes import ToIntegers
from tvm_compress.targets import reference
from tvm_compress.targets.reference import evaluate

Array = NDArray[Any]


def floats(mod: Any) -> list[str]:
    """Names of what is float in a module."""
    return [
        edge.var_name(binding.var)
        for binding in ir.bindings(mod["main"])
        if any("float" in edge.dtype_of(ty) for ty in edge.tensor_fields(binding.var.ty))
    ]


class Case:
    """One operator with random scales, as LiteRT and as we compute it."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.up = 128 if dtype == "uint8" else 0

    def tensor(
        self, *shape: int, scale: float | None = None, zero: int | None = None, like: Any = None
    ) -> Tensor:
        if like is not None:
            return Tensor(shape, self.dtype, like.scale, like.zero_point)
        scale = float(self.rng.uniform(0.01, 0.2)) if scale is None else scale
        zero = int(self.rng.integers(-128, 128)) if zero is None else zero
        return Tensor(shape, self.dtype, (scale,), (zero + self.up,))

    def integers(self, *shape: int) -> Array:
        return (self.rng.integers(-128, 128, shape) + self.up).astype(self.dtype)

    def differences(
        self, path: Path, data: bytes, inputs: Sequence[Tensor], count: int = 3
    ) -> Array:
        """Run some samples; every output's difference to LiteRT in steps."""
        path = path / "model.tflite"
        path.write_bytes(data)
        samples = [[self.integers(*t.shape) for t in inputs] for _ in range(count)]
        mod = ToIntegers()(tc.load(path))
        assert floats(mod) == []
        names = [edge.var_name(param) for param in mod["main"].params]
        found = []
        for sample, wanted in zip(samples, judged(data, samples), strict=True):
            given = reference.run(mod, dict(zip(names, sample, strict=True)))
            for ours, theirs in zip(given.values(), wanted, strict=True):
                assert ours.dtype == theirs.dtype
                found.append(np.abs(ours.astype(int) - theirs.astype(int)).ravel())
        return np.concatenate(found)


@pytest.fixture(params=["int8", "uint8"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, 1)


# Scales that make ties, so that each rounding and each product of scales can be told from another.


@pytest.mark.parametrize("activation", [0, 1, 3])
@pytest.mark.parametrize("operator", ["ADD", "SUB", "MUL"])
def test_of_two_tensors(case: Case, tmp_path: Path, operator: str, activation: int) -> None:
    a, b = case.tensor(1, 6, 6, 5), case.tensor(1, 6, 6, 5)
    product = float(np.float32(a.scale[0]) * np.float32(b.scale[0]))
    y = case.tensor(1, 6, 6, 5, scale=product * 40 if operator == "MUL" else None)
    options = (f"{operator.title()}Options", {"FusedActivationFunction": activation})
    data = model(operator, [a, b], [y], options)
    assert case.differences(tmp_path, data, [a, b]).max() == 0


@pytest.mark.parametrize("operator", ["ADD", "MUL"])
def test_with_a_constant(case: Case, tmp_path: Path, operator: str) -> None:
    a, y = case.tensor(2, 3, 5), case.tensor(2, 3, 5)
    b = constant(case.integers(5), 0.03, -3 + case.up)
    options = (f"{operator.title()}Options", {"FusedActivationFunction": 0})
    data = model(operator, [a, b], [y], options)
    assert case.differences(tmp_path, data, [a]).max() == 0


@pytest.mark.parametrize(
    ("padding", "kernel", "stride", "size"),
    [(0, 2, 2, 3), (0, 3, 2, 2), (0, 6, 1, 1), (1, 3, 2, 3), (1, 6, 1, 6)],
)
@pytest.mark.parametrize("operator", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_pooling(
    case: Case, tmp_path: Path, operator: str, padding: int, kernel: int, stride: int, size: int
) -> None:
    padding = 1 - padding  # the schema's 0 is SAME
    a = case.tensor(1, 6, 6, 5)
    options = {
        "Padding": padding,
        "StrideW": stride,
        "StrideH": stride,
        "FilterWidth": kernel,
        "FilterHeight": kernel,
        "FusedActivationFunction": padding,
    }
    data = model(operator, [a], [case.tensor(1, size, size, 5, like=a)], ("Pool2DOptions", options))
    assert case.differences(tmp_path, data, [a]).max() == 0


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("axes", "shape"),
    [([1, 2], (1, 1, 1, 5)), ([3], (1, 6, 6, 1)), ([0, 1, 2, 3], (1, 1, 1, 1))],
)
def test_mean(
    case: Case, tmp_path: Path, axes: list[int], shape: tuple[int, ...], same: bool
) -> None:
    a = case.tensor(1, 6, 6, 5)
    y = case.tensor(*shape, like=a) if same else case.tensor(*shape, scale=a.scale[0] / 2)
    options = ("ReducerOptions", {"KeepDims": True})
    data = model("MEAN", [a, constant(np.array(axes, np.int32))], [y], options)
    assert case.differences(tmp_path, data, [a]).max() == 0


@pytest.mark.parametrize("scale", [0.003, 0.07, 0.6, 3.0])
def test_softmax(case: Case, tmp_path: Path, scale: float) -> None:
    a, y = case.tensor(4, 21, scale=scale), case.tensor(4, 21, scale=1 / 256, zero=-128)
    data = model("SOFTMAX", [a], [y], ("SoftmaxOptions", {"Beta": 1.0}))
    assert case.differences(tmp_path, data, [a], 10).max() == 0


@pytest.mark.parametrize("scale", [0.002, 0.02, 0.09, 0.4])
@pytest.mark.parametrize(
    ("operator", "to", "zero"), [("LOGISTIC", 1 / 256, -128), ("TANH", 1 / 128, 0)]
)
def test_tables(
    case: Case, tmp_path: Path, operator: str, to: float, zero: int, scale: float
) -> None:
    a, y = case.tensor(16, 64, scale=scale), case.tensor(16, 64, scale=to, zero=zero)
    assert case.differences(tmp_path, model(operator, [a], [y]), [a]).max() == 0


@pytest.mark.parametrize("operator", ["RELU", "RELU6", "QUANTIZE", "LEAKY_RELU", "HARD_SWISH"])
def test_of_one_tensor(case: Case, tmp_path: Path, operator: str) -> None:
    a, y = case.tensor(16, 64), case.tensor(16, 64)
    options = ("LeakyReluOptions", {"Alpha": 0.3}) if operator == "LEAKY_RELU" else None
    found = case.differences(tmp_path, model(operator, [a], [y], options), [a])
    assert found.max() <= (1 if operator in ("LEAKY_RELU", "HARD_SWISH") else 0)


def test_quantize_between_int8_and_uint8(tmp_path: Path) -> None:
    for case, other in ((Case("int8", 3), Case("uint8", 4)), (Case("uint8", 5), Case("int8", 6))):
        a, y = case.tensor(16, 64), other.tensor(16, 64)
        assert case.differences(tmp_path, model("QUANTIZE", [a], [y]), [a]).max() == 0


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 4), (3, 3)])
@pytest.mark.parametrize(("half_pixel", "corners"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("method", ["BILINEAR", "NEAREST_NEIGHBOR"])
def test_resize(
    case: Case,
    tmp_path: Path,
    method: str,
    half_pixel: bool,
    corners: bool,
    height: int,
    width: int,
) -> None:
    a = case.tensor(1, 6, 6, 5)
    y = case.tensor(1, height, width, 5, like=a)
    kind = "ResizeBilinearOptions" if method == "BILINEAR" else "ResizeNearestNeighborOptions"
    options = (kind, {"HalfPixelCenters": half_pixel, "AlignCorners": corners})
    size = constant(np.array([height, width], np.int32))
    found = case.differences(tmp_path, model(f"RESIZE_{method}", [a, size], [y], options), [a])
    # LiteRT has float weights for uint8 alone.
    assert found.max() <= (1 if method == "BILINEAR" and case.dtype == "uint8" else 0)


def test_moves(case: Case, tmp_path: Path) -> None:
    a = case.tensor(1, 6, 6, 5)
    ints = lambda *values: constant(np.array(values, np.int32))  # noqa: E731
    cases: list[tuple[str, list[Tensor], list[tuple[int, ...]], Any]] = [
        ("PAD", [a, ints([0, 0], [1, 1], [2, 1], [0, 0])], [(1, 8, 9, 5)], None),
        ("TRANSPOSE", [a, ints(0, 3, 1, 2)], [(1, 5, 6, 6)], None),
        ("SLICE", [a, ints(0, 1, 2, 0), ints(1, 2, 3, 5)], [(1, 2, 3, 5)], None),
        ("SPLIT", [ints(1), a], [(1, 3, 6, 5)] * 2, ("SplitOptions", {"NumSplits": 2})),
        ("RESHAPE", [a, ints(1, 180)], [(1, 180)], ("ReshapeOptions", {"NewShape": [1, 180]})),
        ("REDUCE_MAX", [a, ints(1, 2)], [(1, 1, 1, 5)], ("ReducerOptions", {"KeepDims": True})),
    ]
    for operator, inputs, shapes, options in cases:
        inputs = [
            constant(t.value.reshape(())) if operator == "SPLIT" and t.value is not None else t
            for t in inputs
        ]
        outputs = [case.tensor(*shape, like=a) for shape in shapes]
        data = model(operator, inputs, outputs, options)
        assert case.differences(tmp_path, data, [a]).max() == 0, operator


def test_concatenation(case: Case, tmp_path: Path) -> None:
    a = case.tensor(1, 6, 6, 5)
    # LiteRT joins uint8 of different scales, by float factors.
    b = case.tensor(1, 6, 6, 5, like=a) if case.dtype == "int8" else case.tensor(1, 6, 6, 5)
    options = ("ConcatenationOptions", {"Axis": 1, "FusedActivationFunction": 0})
    data = model("CONCATENATION", [a, b], [case.tensor(1, 12, 6, 5, like=a)], options)
    assert case.differences(tmp_path, data, [a, b]).max() <= (case.dtype == "uint8")


@pytest.mark.parametrize("factor", [80.0, 0.7])
@pytest.mark.parametrize("biased", [True, False])
def test_fully_connected(case: Case, tmp_path: Path, biased: bool, factor: float) -> None:
    x = case.tensor(4, 33)
    w = constant(case.integers(60, 33), 0.011, 3 + case.up if case.up else 0)
    scale = float(np.float32(x.scale[0]) * np.float32(0.011))
    bias = constant(case.rng.integers(-3000, 3000, 60).astype(np.int32), scale, 0)
    y = case.tensor(4, 60, scale=scale * factor)
    options = ("FullyConnectedOptions", {"FusedActivationFunction": int(biased)})
    data = model("FULLY_CONNECTED", [x, w, bias if biased else None], [y], options)
    assert case.differences(tmp_path, data, [x], 10).max() == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("depthwise", [True, False])
def test_convolution(
    case: Case, tmp_path: Path, depthwise: bool, channels: bool, stride: int
) -> None:
    if channels and case.dtype == "uint8":
        pytest.skip("uint8 has one scale for a weight.")
    x = case.tensor(1, 9, 8, 6)
    shape, count = ((1, 3, 3, 6), 6) if depthwise else ((7, 3, 3, 6), 7)
    scales = case.rng.uniform(0.002, 0.02, count if channels else 1).astype(np.float32)
    zeros = [3 + case.up if case.up else 0] * len(scales)
    axis = 3 if depthwise and channels else 0
    w = constant(case.integers(*shape), scales, zeros, axis)
    bias = constant(
        case.rng.integers(-3000, 3000, count).astype(np.int32),
        np.float32(x.scale[0]) * scales,
        [0] * len(scales),
    )
    y = case.tensor(
        1, *((9, 8) if stride == 1 else (5, 4)), count, scale=x.scale[0] * scales[0] * 90
    )
    kind = "DepthwiseConv2D" if depthwise else "Conv2D"
    options = {
        "Padding": 0,
        "StrideW": stride,
        "StrideH": stride,
        "FusedActivationFunction": 1,
        "DilationWFactor": 1,
        "DilationHFactor": 1,
    }
    options |= {"DepthMultiplier": 1} if depthwise else {}
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    data = model(name, [x, w, bias], [y], (f"{kind}Options", options))
    assert case.differences(tmp_path, data, [x], 5).max() == 0


# ---- whole networks ------------------------------------------------------------------------------

NETWORKS = ["kws_dscnn_int8", "vww_96_int8", "ic_resnet8_int8", "ad01_int8"]


def inputs_of(name: str, folder: Path, count: int) -> Array:
    """Some real inputs of a network of MLPerf Tiny, (N, 1, ...) int8."""
    from PIL import Image

    place = folder / "mlperf_tiny"
    if name.startswith("kws"):
        with np.load(place / "kws01_a500.npz") as held:
            return held["mfcc_int8"][:count].reshape(-1, 1, 49, 10, 1)
    if name.startswith("vww"):
        with np.load(place / "vww_coco_96_train128.npz") as held:
            key = next(k for k in held.files if held[k].ndim == 4)
            return (held[key][:count].astype(int) - 128).astype(np.int8)[:, None]
    if name.startswith("ic"):
        with np.load(folder / "datasets" / "cifar10_jpeg_test_a5000.npz") as held:
            files, offset = held["jpeg"], held["offset"]
            images = [
                np.asarray(Image.open(io.BytesIO(files[offset[i] : offset[i + 1]].tobytes())))
                for i in range(count)
            ]
        return (np.stack(images).astype(int) - 128).astype(np.int8)[:, None]
    bins = np.fromfile(place / "ad01_normal_id_01_00000000_logmel.bin", np.float32).reshape(-1, 128)
    windows = np.stack([bins[i : i + 5].ravel() for i in range(min(count, len(bins) - 4))])
    (scale, zero) = next(iter(_interpreter(place / f"{name}.tflite").get_input_details()))[
        "quantization"
    ]
    return np.clip(np.round(windows / scale) + zero, -128, 127).astype(np.int8)[:, None]


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    judge = Interpreter(
        str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    judge.allocate_tensors()
    return judge


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_mlperf_tiny(name: str, shared_data: Path) -> None:
    """Every tensor between layers is that of LiteRT's reference kernels, byte for byte."""
    path = shared_data / "mlperf_tiny" / f"{name}.tflite"
    mod = ToIntegers()(tc.load(path))
    assert floats(mod) == []
    judge = _interpreter(path)
    given = judge.get_input_details()[0]["index"]
    for x in inputs_of(name, shared_data, 12):
        judge.set_tensor(given, x)
        judge.invoke()
        values: dict[Any, Array] = {mod["main"].params[0]: x}
        for binding in ir.bindings(mod["main"]):
            values[binding.var] = evaluate(binding.value, values)
        ours = {v.tobytes() for v in values.values() if v.dtype == np.int8}
        for op in judge._get_ops_details():
            (index,) = op["outputs"]
            assert judge.get_tensor(index).tobytes() in ours, op["op_name"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilenet_v1_0.25_128_quant", 128), ("mobilenet_v2_1.0_224_quant", 224)],
)
def test_uint8_networks(name: str, size: int, shared_data: Path) -> None:
    path = shared_data / "models" / f"{name}.tflite"
    mod = ToIntegers()(tc.load(path))
    assert floats(mod) == []
    x = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    judge = _interpreter(path)
    judge.set_tensor(judge.get_input_details()[0]["index"], x)
    judge.invoke()
    (given,) = reference.run(mod, x).values()
    np.testing.assert_array_equal(given, judge.get_tensor(judge.get_output_details()[0]["index"]))


def test_the_average_of_the_stock_importer_truncates(shared_data: Path) -> None:
    """Why quantised networks with an average pooling used to be many steps off."""
    import tflite
    from tvm.relax.frontend.tflite import from_tflite

    path = shared_data / "mlperf_tiny" / "kws_dscnn_int8.tflite"
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    stock, _ = tvm_detached(from_tflite(model))
    operators = {edge.op_name(b.value) for b in ir.bindings(stock["main"])}
    assert "relax.astype" in operators  # astype(avg_pool2d(astype(x, "int32")), "int8")
    ours = {edge.op_name(b.value) for b in ir.bindings(tc.load(path)["main"])}
    assert "relax.astype" not in ours
    assert "relax.nn.avg_pool2d" in ours


def tvm_detached(mod: Any) -> tuple[Any, Any]:
    from tvm import relax

    return relax.frontend.detach_params(relax.transform.Normalize()(mod))
