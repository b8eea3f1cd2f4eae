"""scikit-learn's handwritten digits, split once for everything that uses them.

The training script, the demo and the tests import the split from here, so no test image can reach
the training by a second definition of it. No torch, no TVM.

Source of the data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, of which scikit-learn carries the 1797 test images, 8 x 8 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEST_COUNT", "DigitsSplit", "load_digits_split"]

TEST_COUNT = 360


@dataclass(frozen=True, eq=False)
class DigitsSplit:
    """The digits as the network takes them.

    Attributes:
        train_images: float32 (1437, 1, 8, 8), NCHW, pixels divided by 16 so that they lie in 0..1.
        train_labels: int64 (1437,), 0 to 9.
        test_images: float32 (360, 1, 8, 8).
        test_labels: int64 (360,).
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits_split() -> DigitsSplit:
    """Load the digits and split them, the same way every time.

    Returns:
        1437 images to train on and 360 to test on, stratified by label.

    Raises:
        ModuleNotFoundError: scikit-learn, which carries the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn, which is not installed. "
            "Install it: pip install 'tvm-compress[demo]'.",
            name=error.name,
        ) from error

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_COUNT, stratify=labels, random_state=0
    )
    return DigitsSplit(train_images, train_labels, test_images, test_labels)
