"""The published files of Deep Compression: written here by their description, and the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm.relax import op

import tvm_compress as tc
from benchmarks.frontends import judge_onnx
from tests.training.nets import module
from tvm_compress import ir
from tvm_compress.errors import ModelFormatError, OptionError, UnsupportedError
from tvm_compress.frontends.deep_compression import import_deep_compression
from tvm_compress.targets import reference

Array = NDArray[Any]


def graph(bias: bool = True) -> tvm.IRModule:
    given = {
        "conv_w": np.ones((3, 2, 5, 5), np.float32),
        "conv_b": np.ones((1, 3, 1, 1), np.float32),
        "fc_w": np.ones((12, 4), np.float32),
        "fc_b": np.ones(4, np.float32),
    }

    def body(x: Any, conv_w: Any, conv_b: Any, fc_w: Any, fc_b: Any) -> Any:
        y = op.nn.conv2d(x, conv_w)
        y = op.nn.relu(op.add(y, conv_b) if bias else op.multiply(y, conv_b))
        return op.add(op.matmul(op.reshape(y, (1, 12)), fc_w), fc_b)

    return module({"x": (1, 2, 6, 6)}, given, body)


def stream(codes: Array) -> tuple[list[int], list[int]]:
    """Give stored codes and distances, by walking through the weight entry by entry."""
    stored, gaps, distance = [], [], 0
    for code in codes.ravel():
        distance += 1
        if code == 0 and distance < 16:
            continue
        stored.append(int(code))
        gaps.append(distance - 1)
        distance = 0
    while stored and stored[-1] == 0:  # fillers behind the last entry
        stored.pop(), gaps.pop()
    return stored, gaps


def nibbles(values: list[int]) -> bytes:
    padded = [*values, 0] if len(values) % 2 else values
    return bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))


def layer_bytes(codes: Array, centroids: Array, biases: Array, bits: int) -> tuple[int, bytes]:
    stored, gaps = stream(codes)
    coded = nibbles(stored) if bits == 4 else bytes(stored)
    parts = [centroids.astype("<f4").tobytes(), biases.astype("<f4").tobytes(), coded]
    return len(stored), b"".join([*parts, nibbles(gaps)])


def file_of(*layers: tuple[int, bytes]) -> bytes:
    counts = np.asarray([count for count, _ in layers], "<u4").tobytes()
    return counts + b"".join(data for _, data in layers)


def random_layers(seed: int, density: float, fc_bits: int = 4) -> tuple[list[Any], bytes]:
    rng = np.random.default_rng(seed)
    made = []
    for shape, bits in (((3, 2, 5, 5), 8), ((4, 12), fc_bits)):
        codes = rng.integers(1, 2**bits, shape) * (rng.random(shape) < density)
        centroids = rng.normal(size=2**bits).astype(np.float32)
        centroids[0] = 0
        made.append((codes.astype(np.uint8), centroids, rng.normal(size=shape[0])))
    sizes = (8, fc_bits)
    data = file_of(*(layer_bytes(*m, bits) for m, bits in zip(made, sizes, strict=True)))
    return made, data


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.sampled_from([4, 8]))
def test_codes_centroids_and_biases_as_they_are(
    tmp_path_factory: Any, seed: int, density: float, fc_bits: int
) -> None:
    (conv, fc), data = random_layers(seed, density, fc_bits)
    path = tmp_path_factory.mktemp("net") / "small.net"
    path.write_bytes(data)
    bits = None if fc_bits == 4 else {"fc*": 8}
    found = ir.parameters(import_deep_compression(path, graph(), code_bits=bits))
    np.testing.assert_array_equal(found["conv_w"].codes, conv[0])
    np.testing.assert_array_equal(found["conv_w"].centroids, conv[1])
    np.testing.assert_array_equal(found["conv_b"].value.ravel(), conv[2].astype(np.float32))
    np.testing.assert_array_equal(found["fc_w"].codes, fc[0].T)  # Caffe has outputs first
    np.testing.assert_array_equal(found["fc_w"].centroids, fc[1])
    np.testing.assert_array_equal(found["fc_b"].value, fc[2].astype(np.float32))


def refused(tmp_path: Path, data: bytes, kind: type[Exception] = ModelFormatError) -> str:
    path = tmp_path / "bad.net"
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        import_deep_compression(path, graph())
    return str(caught.value).replace(str(path), "FILE")


def test_refuses_files(tmp_path: Path) -> None:
    _, data = random_layers(0, 0.5)
    with pytest.raises(ModelFormatError) as caught:
        import_deep_compression(tmp_path / "none.net", graph())
    assert str(caught.value) == (
        f"{tmp_path / 'none.net'} does not exist; expected a compressed network (.net)."
    )
    for length in (0, 7, 8, 500, 1031, 1032, 1044, 1050, len(data) - 1):
        assert "FILE ends within" in refused(tmp_path, data[:length])
    assert refused(tmp_path, data[:5]) == (
        "FILE ends within the entry counts: 5 bytes are left of 8; expected the file of this "
        "graph's network, whole: fetch it again."
    )
    assert refused(tmp_path, data + b"abc") == (
        "FILE holds 3 bytes more than the graph's layers take; expected the file of this graph's "
        "network."
    )
    first = bytearray(data)
    first[8:12] = np.float32(1.5).tobytes()
    assert refused(tmp_path, bytes(first)) == (
        "FILE: the codebook of conv_w begins with 1.5; expected 0.0, the value of what was "
        "pruned: check that file and graph belong together."
    )
    centroids = np.zeros(256, np.float32)
    far = b"".join([centroids.tobytes(), bytes(12), bytes(range(1, 11)), b"\xff" * 5])
    assert refused(tmp_path, np.asarray([10, 0], "<u4").tobytes() + far) == (
        "FILE: an entry of conv_w lies at 159; expected at most 149: check that file and graph "
        "belong together."
    )


def test_refuses_graphs_and_options(tmp_path: Path) -> None:
    path = tmp_path / "small.net"
    path.write_bytes(random_layers(0, 0.5)[1])
    with pytest.raises(UnsupportedError) as caught:
        import_deep_compression(path, graph(bias=False))
    assert str(caught.value) == (
        "import_deep_compression: the layer of conv_w has no bias of its own; expected one "
        "constant that is added to its output, as the format stores one."
    )
    with pytest.raises(OptionError) as bits:
        import_deep_compression(path, graph(), code_bits={"fc*": 5})
    assert str(bits.value) == (
        "import_deep_compression: the codes of fc_w have 5 bits; expected 4 or 8, the sizes that "
        "the format has."
    )
    with pytest.raises(OptionError) as pattern:
        import_deep_compression(path, graph(), code_bits={"lstm": 4})
    assert "the pattern lstm fits no weight" in str(pattern.value)
    short = module(
        {"x": (1, 3)},
        {"w": np.ones((3, 4), np.float32), "b": np.ones(1, np.float32)},
        lambda x, w, b: op.add(op.matmul(x, w), b),
    )
    made = layer_bytes(np.ones((4, 3), np.uint8), np.arange(16), np.ones(4), 4)
    path.write_bytes(file_of(made))
    with pytest.raises(UnsupportedError) as small:
        import_deep_compression(path, short)
    assert str(small.value) == (
        "import_deep_compression: the bias of w has 1 elements; expected 4, one an output."
    )


@pytest.mark.shared_data
def test_the_published_squeezenet(shared_data: Path) -> None:
    folder = shared_data / "reference"
    onnx_path = folder / "han_squeezenet.onnx"
    mod = import_deep_compression(folder / "han_squeezenet_compressed.net", onnx_path)
    decoded = np.load(folder / "han_squeezenet_decoded.npz")
    layers = [key.removesuffix("/code") for key in decoded if key.endswith("/code")]
    found = ir.weights(mod)
    assert len(found) == len(layers) == 26
    for layer, weight in zip(layers, found.values(), strict=True):
        np.testing.assert_array_equal(weight.parameter.codes, decoded[f"{layer}/code"])
        np.testing.assert_array_equal(weight.parameter.centroids, decoded[f"{layer}/codebook"])
    dense = ir.parameters(tc.load(onnx_path))
    for name, parameter in ir.parameters(mod).items():
        np.testing.assert_array_equal(parameter.value, dense[name].value)
    x = np.random.default_rng(0).normal(0, 50, (1, 3, 227, 227)).astype(np.float32)
    (expected,) = judge_onnx(onnx_path.read_bytes(), [x])
    (made,) = reference.run(mod, x).values()
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
