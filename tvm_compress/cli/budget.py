"""``compress --budget-...``: the options of a search, held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_compress.errors import OptionError

if TYPE_CHECKING:
    import tvm

    from tvm_compress.search import Budget, SearchResult, Trial

__all__ = ["as_dict", "make_budget", "run"]


def make_budget(
    limits: Mapping[str, Any],
    of_search: Mapping[str, Any],
    of_recipe: Mapping[str, Any],
    profile: str = "archive",
) -> Budget | None:
    """Give the budget, or None where there are no limits.

    Args:
        limits: by field of the budget; None where not given.
        of_search: options that need a limit, by name, ``board`` and ``validate`` among them.
        of_recipe: options that no search takes.
        profile: of the file that will be written.

    Raises:
        OptionError: a limit outside its range, no validation data, or an option that goes with the
            other way.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if not given:
        if lonely := [f"--{name}" for name, value in of_search.items() if value is not None]:
            raise OptionError(
                f"{' and '.join(lonely)} was given without a budget; expected one of "
                "--budget-accuracy-drop, --budget-weight-bytes, --budget-flash-bytes and "
                "--budget-instructions with it."
            )
        return None
    if others := [f"--{name}" for name, value in of_recipe.items() if value is not None]:
        raise OptionError(
            f"{' and '.join(others)} was given with a budget, which searches that itself; expected "
            "one or the other."
        )
    if of_search["validate"] is None:
        raise OptionError(
            "A budget was given and no validation data; expected --validate data.npz with samples "
            "x and their classes y: the accuracy of every trial is measured on it."
        )
    from tvm_compress.search import Budget

    return Budget(**given, board=of_search["board"], profile=profile)


def run(
    mod: tvm.IRModule,
    budget: Budget,
    *,
    validate: Path,
    train: Path | None,
    calibrate: Path | None,
    tuning: Mapping[str, Any],
    trials: int | None,
    trial_log: Path | None,
    device: str,
    quiet: bool,
) -> SearchResult:
    """Search; ``tuning`` are the options of the fine-tuning (``epochs``, ``lr``, ``seed``).

    Raises:
        OptionError: see :func:`tvm_compress.search`; options of a fine-tuning without ``train``.
        BudgetError: no network that was tried meets the budget.
    """
    from tvm_compress.cli import arrays
    from tvm_compress.recipes import deep_compression
    from tvm_compress.search import search
    from tvm_compress.search.runner import TRIALS

    if tuning and train is None:
        raise OptionError(
            f"{' and '.join(f'--{name}' for name in tuning)} was given and no training data; "
            "expected --train data.npz with it."
        )
    return search(
        mod,
        budget,
        validate=arrays.read_training(validate),
        train=arrays.read_training(train) if train else None,
        calibrate=arrays.read_inputs(calibrate) if calibrate else None,
        recipe=partial(deep_compression, **tuning) if train else None,
        trials=TRIALS if trials is None else trials,
        trial_log=trial_log,
        device=device,
        progress=not quiet,
    )


def as_dict(result: SearchResult) -> dict[str, Any]:
    """Give what a search found as JSON takes it."""

    def plain(trial: Trial) -> dict[str, Any]:
        return {
            "accuracy": trial.accuracy,
            **trial.costs,
            "sparsity": dict(trial.sparsity),
            "bits": dict(trial.bits),
        }

    return {
        "accuracy": result.accuracy,
        "best": plain(result.best),
        "front": [plain(trial) for trial in result.front],
        "trials": len(result.trials),
    }
