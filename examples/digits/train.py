"""Train the digits network that this folder carries and write it as ONNX.

    python examples/digits/train.py                 # train, write digits_cnn.onnx, test it
    python examples/digits/train.py --validate      # judge the settings below, write nothing

The network (22,954 parameters, NCHW, float32):

    image (N, 1, 8, 8) -> conv 3x3, 16 -> relu -> conv 3x3, 32 -> relu -> max pool 2
                       -> conv 3x3, 32 -> relu -> max pool 2 -> flatten (N, 128)
                       -> linear 64 -> relu -> linear 10 -> logits (N, 10)

The settings were chosen with ``--validate`` alone, which holds back a part of the training images;
the test images are looked at once, at the end. The file is written with onnx.helper from the
trained tensors, so that the names in it are ours and no exporter's version shows in it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from examples.digits.data import load_digits_split

__all__ = ["DigitsNet", "build_onnx", "main", "train"]

SEED = 0
EPOCHS = 60
BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.2
# Images are moved by up to this many pixels while training: pen strokes have no fixed place.
SHIFT_PIXELS = 1
VALIDATION_COUNT = 240

OPSET = 17
# The oldest file format that carries this opset, so that old readers take the file.
IR_VERSION = 8

NETWORK = Path(__file__).with_name("digits_cnn.onnx")


class DigitsNet(nn.Module):
    """The network of the module's docstring; float32 (N, 1, 8, 8) to logits float32 (N, 10)."""

    def __init__(self) -> None:
        """Make the layers, with torch's own initial weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc1 = nn.Linear(128, 64)
        self.fc2 = nn.Linear(64, 10)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        x = torch.relu(self.conv1(image))
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv3(x)), 2)
        x = self.dropout(x.flatten(1))
        x = self.dropout(torch.relu(self.fc1(x)))
        logits: torch.Tensor = self.fc2(x)
        return logits


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move every image by its own random whole number of pixels, filling with black.

    Args:
        images: (N, 1, H, W).
        generator: The source of the shifts.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, [SHIFT_PIXELS] * 4)
    top, left = torch.randint(0, 2 * SHIFT_PIXELS + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None]][
        :, None
    ]


def train(
    images: NDArray[np.float32], labels: NDArray[np.int64], *, epochs: int = EPOCHS
) -> DigitsNet:
    """Train a network from scratch; the same input gives the same weights on one machine.

    Args:
        images: float32 (N, 1, 8, 8).
        labels: int64 (N,), 0 to 9.
        epochs: How often every image is seen.

    Returns:
        The network, in evaluation mode.
    """
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    # The order of a sum depends on the number of threads, and with it the last bits of a weight.
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    net = DigitsNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                net(shifted(x[batch], generator)), y[batch], label_smoothing=0.05
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: DigitsNet, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the part of the images, 0..1, whose largest logit is their label's."""
    with torch.no_grad():
        predicted = net(torch.from_numpy(images)).argmax(1).numpy()
    return float((predicted == labels).mean())


def build_onnx(tensors: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Write the network as ONNX, with the batch left open as ``N``.

    Args:
        tensors: The float32 weights and biases by the names that :class:`DigitsNet` gives them,
            ``conv1.weight`` (16, 1, 3, 3) to ``fc2.bias`` (10,).

    Returns:
        A checked model with input ``image`` (N, 1, 8, 8) and output ``logits`` (N, 10).
    """

    def conv(source: str, layer: str) -> list[onnx.NodeProto]:
        inputs = [source, f"{layer}.weight", f"{layer}.bias"]
        return [
            helper.make_node(
                "Conv", inputs, [f"{layer}.sum"], layer, kernel_shape=[3, 3], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"{layer}.sum"], [f"{layer}.out"], f"{layer}.relu"),
        ]

    def pool(source: str, name: str) -> onnx.NodeProto:
        return helper.make_node(
            "MaxPool", [source], [f"{name}.out"], name, kernel_shape=[2, 2], strides=[2, 2]
        )

    def linear(source: str, layer: str, result: str) -> onnx.NodeProto:
        inputs = [source, f"{layer}.weight", f"{layer}.bias"]
        return helper.make_node("Gemm", inputs, [result], layer, transB=1)

    nodes = [
        *conv("image", "conv1"),
        *conv("conv1.out", "conv2"),
        pool("conv2.out", "pool1"),
        *conv("pool1.out", "conv3"),
        pool("conv3.out", "pool2"),
        helper.make_node("Flatten", ["pool2.out"], ["flat"], "flatten", axis=1),
        linear("flat", "fc1", "fc1.sum"),
        helper.make_node("Relu", ["fc1.sum"], ["fc1.out"], "fc1.relu"),
        linear("fc1.out", "fc2", "logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits_cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="tvm-compress",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Run the script; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train the digits network and write it as ONNX.")
    parser.add_argument("--out", type=Path, default=NETWORK, help="where the ONNX file goes")
    parser.add_argument(
        "--validate",
        action="store_true",
        help=f"hold back {VALIDATION_COUNT} training images, report on them, write nothing",
    )
    options = parser.parse_args()
    digits = load_digits_split()

    if options.validate:
        images, labels = digits.train_images, digits.train_labels
        net = train(images[:-VALIDATION_COUNT], labels[:-VALIDATION_COUNT])
        score = accuracy(net, images[-VALIDATION_COUNT:], labels[-VALIDATION_COUNT:])
        print(f"validation accuracy {score:.4f} on {VALIDATION_COUNT} images")
        return

    net = train(digits.train_images, digits.train_labels)
    model = build_onnx({name: value.numpy() for name, value in net.state_dict().items()})
    aside = options.out.with_suffix(".partial")
    aside.write_bytes(model.SerializeToString(deterministic=True))
    os.replace(aside, options.out)
    print(f"train accuracy {accuracy(net, digits.train_images, digits.train_labels):.4f}")
    print(f"test accuracy  {accuracy(net, digits.test_images, digits.test_labels):.4f}")
    print(f"wrote {options.out}, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
