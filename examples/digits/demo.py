"""The main job in one run: load, compress, build for a Cortex-M4F, judge on the emulated board.

The network reads scikit-learn's 8x8 digits; ``train.py`` made it. Every stage is built, and the
whole test split runs on the emulator. Where torch is installed the table gains rows with
fine-tuning. The sparsities are the largest (in steps of 0.1 and 0.05) that kept 99 % on training
images: on all of them for one shot, on 300 that were held out of the fine-tuning for the other. The
test split was not looked at.

Run it by ``make demo``; ``--write-docs`` puts the table that it prints into the README.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

import tvm_compress as tc
from benchmarks.common import Figure, Report, finish, markdown_table, option_parser
from examples.digits.data import DigitsSplit, load_digits_split

if TYPE_CHECKING:
    import tvm

BOARD = "cortex-m4"
NETWORK = Path(__file__).with_name("digits_cnn.onnx")
ONE_SHOT = tc.recipes.deep_compression(sparsity=0.6, bits=4, scope="global", epochs=0)
FINE_TUNED = tc.recipes.deep_compression(sparsity=0.85, bits=4, scope="global", epochs=20)


@dataclass(frozen=True)
class Row:
    """What one stage gave."""

    stage: str
    reference: float
    board: float
    difference: float
    weights: int
    flash: int
    ram: int
    instructions: int


def _predictions(outputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    (logits,) = outputs.values()
    best: NDArray[Any] = logits.argmax(axis=1)
    return best


def judge(stage: str, mod: tvm.IRModule, digits: DigitsSplit) -> Row:
    """Build a stage, run the whole test split on the emulated board and in the reference."""
    images, labels = digits.test_images, digits.test_labels
    firmware = tc.build(mod, target="c", board=BOARD, name="digits")
    on_board = firmware.run(images)
    exact = tc.build(mod, target="reference").run(images)
    (a,), (b,) = on_board.values(), exact.values()
    return Row(
        stage,
        float((_predictions(exact) == labels).mean()),
        float((_predictions(on_board) == labels).mean()),
        float(np.abs(a - b).max() / np.abs(b).max()),
        firmware.size.flash["weights"],
        firmware.size.flash_bytes,
        firmware.size.ram_bytes,
        firmware.profile(images[:1]).instructions,
    )


def stages(digits: DigitsSplit, *, trained: bool) -> list[Row]:
    """Judge the float network and the network after every stage that changes it."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.1f} s] {text}", file=sys.stderr, flush=True)

    say(f"loading {NETWORK.name}")
    mod = tc.load(NETWORK)
    rows = [judge("float", mod, digits)]
    plans: list[tuple[str, tc.Recipe, Any]] = [("one shot", ONE_SHOT, None)]
    if not trained:
        say("torch is not installed: the fine-tuned rows are left out (extra: train)")
    else:
        import torch

        torch.set_num_threads(1)  # a network this small only waits for a second thread
        plans.append(("fine-tuned", FINE_TUNED, (digits.train_images, digits.train_labels)))
    for plan, recipe, train in plans:
        stage = mod
        done: list[str] = []
        for step in recipe.steps:
            say(f"{plan}: {step.name}")
            stage = tc.compress(stage, tc.Recipe([step]), train=train, progress=False)
            if step.name != "finetune":
                done.append(_describe(step))
            # A stage that will be fine-tuned is worth a row when it has been.
            if train is None or step.name == "finetune":
                rows.append(judge(f"{' + '.join(done)}, {plan}", stage, digits))
    say("done")
    return rows


def _describe(step: Any) -> str:
    if step.name == "prune":
        return f"pruned {step.sparsity:.0%}"
    return f"shared {step.bits} bits"


def main() -> int:
    """Run the demo; 0 if the board agrees with the reference."""
    options = option_parser("demo", __doc__ or "").parse_args()
    digits = load_digits_split()
    trained = find_spec("torch") is not None
    rows = stages(digits, trained=trained)
    size = NETWORK.stat().st_size
    table = markdown_table(
        [
            "network",
            "accuracy, reference",
            "accuracy, board",
            "ONNX bytes",
            "weight bytes",
            "firmware bytes",
            "RAM bytes",
            "instructions",
        ],
        [
            [
                row.stage,
                f"{row.reference:.2%}",
                f"{row.board:.2%}",
                f"{size:,}" if i == 0 else "",
                f"{row.weights:,}",
                f"{row.flash:,}",
                f"{row.ram:,}",
                f"{row.instructions:,}",
            ]
            for i, row in enumerate(rows)
        ],
    )
    figures = [
        Figure(
            "largest difference between board and reference",
            max(row.difference for row in rows),
            1e-4,
            "of the largest output",
        )
    ]
    report = Report(
        "demo_fine_tuned" if trained else "demo",
        table,
        figures,
        [row.__dict__ for row in rows],
        0,
        ("tvm-compress", "apache-tvm", "ziglang", "unicorn", "torch"),
    )
    # The demo is a claim about correctness, so it checks itself whether asked or not.
    options.check = True
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
