"""Networks of known shape with random weights, for questions that no trained weight answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

import tvm_compress as tc

__all__ = ["NETWORKS", "lenet5", "mobilenet_v1", "mobilenet_v2", "resnet8"]


class _Net:
    """A network under construction; every method emits one layer."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(0)
        self.builder = relax.BlockBuilder()
        self.input = relax.Var("input", relax.TensorType(shape, "float32"))

    def _constant(self, *shape: int) -> Any:
        fan_in = max(1, int(np.prod(shape[1:])))
        value = self._rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)
        return relax.const(value.astype(np.float32))

    def channels(self, x: Any) -> int:
        """Give the number of channels of an NCHW tensor."""
        return int(x.ty.shape[1])

    def conv(
        self, x: Any, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> Any:
        """Convolution with SAME padding (as TensorFlow pads), bias and ReLU."""
        size = int(x.ty.shape[2])
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads = [total // 2] * 2 + [total - total // 2] * 2
        weight = self._constant(outputs, self.channels(x) // groups, kernel, kernel)
        y = relax.op.nn.conv2d(x, weight, [stride, stride], pads, groups=groups)
        y = self.emit(relax.op.add(self.emit(y), self._constant(1, outputs, 1, 1)))
        return self.emit(relax.op.nn.relu(y)) if relu else y

    def dense(self, x: Any, outputs: int, relu: bool = False) -> Any:
        """Fully connected layer on a flattened tensor."""
        inputs = int(np.prod([int(n) for n in x.ty.shape]))
        x = self.emit(relax.op.reshape(x, [1, inputs]))
        y = self.emit(relax.op.matmul(x, self._constant(inputs, outputs)))
        y = self.emit(relax.op.add(y, self._constant(outputs)))
        return self.emit(relax.op.nn.relu(y)) if relu else y

    def emit(self, expr: Any) -> Any:
        """Bind an expression."""
        return self.builder.emit(expr)


def _network(shape: tuple[int, ...], layers: Callable[[_Net, Any], Any]) -> tvm.IRModule:
    net = _Net(shape)
    with net.builder.function("main", [net.input]):
        with net.builder.dataflow():
            result = net.builder.emit_output(layers(net, net.input))
        net.builder.emit_func_output(result)
    return tc.load(net.builder.finalize())


def lenet5() -> tvm.IRModule:
    """LeNet-5 as Deep Compression has it (Caffe's): 431 k weights, input 1x28x28."""

    def layers(net: _Net, x: Any) -> Any:
        def conv(x: Any, outputs: int) -> Any:
            weight = net._constant(outputs, net.channels(x), 5, 5)
            y = net.emit(relax.op.nn.conv2d(x, weight))
            y = net.emit(relax.op.add(y, net._constant(1, outputs, 1, 1)))
            return net.emit(relax.op.nn.max_pool2d(y, (2, 2), (2, 2)))

        return net.dense(net.dense(conv(conv(x, 20), 50), 500, relu=True), 10)

    return _network((1, 1, 28, 28), layers)


def resnet8() -> tvm.IRModule:
    """ResNet-8 of MLPerf Tiny's image classification, input 3x32x32."""

    def layers(net: _Net, x: Any) -> Any:
        x = net.conv(x, 16, 3)
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            y = net.conv(net.conv(x, outputs, 3, stride), outputs, 3, relu=False)
            if stride > 1:
                x = net.conv(x, outputs, 1, stride, relu=False)
            x = net.emit(relax.op.nn.relu(net.emit(relax.op.add(x, y))))
        x = net.emit(relax.op.nn.avg_pool2d(x, (8, 8)))
        return net.emit(relax.op.nn.softmax(net.dense(x, 10)))

    return _network((1, 3, 32, 32), layers)


def mobilenet_v1(width: float = 0.25, size: int = 96) -> tvm.IRModule:
    """MobileNetV1 of MLPerf Tiny's visual wake words."""

    def layers(net: _Net, x: Any) -> Any:
        x = net.conv(x, int(32 * width), 3, 2)
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
        for outputs, stride in [*plan, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
            x = net.conv(x, net.channels(x), 3, stride, groups=net.channels(x))
            x = net.conv(x, int(outputs * width), 1)
        x = net.emit(relax.op.mean(x, [2, 3]))
        return net.emit(relax.op.nn.softmax(net.dense(x, 2)))

    return _network((1, 3, size, size), layers)


def mobilenet_v2(size: int = 224) -> tvm.IRModule:
    """MobileNetV2 1.0 (arXiv 1801.04381, table 2)."""

    def layers(net: _Net, x: Any) -> Any:
        x = net.conv(x, 32, 3, 2)
        for t, outputs, repeats, first in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(repeats):
                stride = first if i == 0 else 1
                y = net.conv(x, net.channels(x) * t, 1) if t > 1 else x
                y = net.conv(y, net.channels(y), 3, stride, groups=net.channels(y))
                y = net.conv(y, outputs, 1, relu=False)
                same = stride == 1 and net.channels(x) == outputs
                x = net.emit(relax.op.add(x, y)) if same else y
        x = net.conv(x, 1280, 1)
        return net.dense(net.emit(relax.op.mean(x, [2, 3])), 1000)

    return _network((1, 3, size, size), layers)


NETWORKS: dict[str, Callable[[], tvm.IRModule]] = {
    "lenet5": lenet5,
    "resnet8": resnet8,
    "mobilenet_v1_0.25_96": mobilenet_v1,
    "mobilenet_v2_1.0_224": mobilenet_v2,
}
