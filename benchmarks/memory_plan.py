"""How near is the arena to the live-set bound, below which no plan can go?

The bound is the largest sum of the tensors that are alive together, those that share their bytes
counted once; scratch memory that a kernel asks for is in the arena but not in the bound.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import Figure, Report, finish, markdown_table, option_parser
from benchmarks.networks import NETWORKS
from tvm_compress.passes import Prune, ShareWeights
from tvm_compress.targets.mcu.lower import lower
from tvm_compress.targets.mcu.memory import live_bytes
from tvm_compress.targets.mcu.program import ARENA_ALIGNMENT, Program, make_program

LIMIT = 1.10


def tensor_bound(program: Program) -> int:
    """Give the live-set bound of a program's tensors in bytes, without kernels' scratch."""
    assert program.plan is not None
    scratch = {space.name for step in program.steps for space in step.workspaces}
    lifetimes = [
        replace(life, size_bytes=-(-life.size_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT)
        for life in program.lifetimes
        if life.name not in scratch
    ]
    return max(live_bytes(lifetimes, program.plan.offsets, len(program.steps)), default=0)


def main() -> int:
    """Plan every network, dense and compressed."""
    options = option_parser("memory_plan", __doc__ or "").parse_args()
    rows, figures, results = [], [], []
    for name, make in NETWORKS.items():
        dense = make()
        for kind, mod in (("dense", dense), ("compressed", ShareWeights(4)(Prune(0.9)(dense)))):
            program = make_program(*lower(mod))
            assert program.plan is not None
            arena, bound = program.plan.arena_bytes, tensor_bound(program)
            rows.append([name, kind, f"{arena:,}", f"{bound:,}", f"{arena / bound:.3f}"])
            figures.append(Figure(f"arena of {name}, {kind}", arena / bound, LIMIT, "of the bound"))
            results.append({"network": name, "kind": kind, "arena": arena, "bound": bound})
    header = ["network", "weights", "arena bytes", "live-set bound", "ratio"]
    packages = ("tvm-compress", "apache-tvm", "numpy")
    report = Report("memory_plan", markdown_table(header, rows), figures, results, 0, packages)
    return finish(report, options)


if __name__ == "__main__":
    raise SystemExit(main())
