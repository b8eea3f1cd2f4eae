"""``search``: scan the layers, allocate, try whole networks, and go on towards the budget.

    judge the network -> scan each layer -> allocate -> trials -> allocate -> ... -> the best

A round of trials is planned from the results of the earlier ones in the order of their plan, never
in that in which they came in, so every executor gives the same networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import count
from math import inf, sqrt
from os import PathLike
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress
from tvm_compress import ir, pipeline
from tvm_compress.errors import BudgetError, OptionError, PassError
from tvm_compress.passes import Reconstruct
from tvm_compress.recipe import Recipe
from tvm_compress.recipes import deep_compression
from tvm_compress.search import jobs
from tvm_compress.search.allocation import Choices, Scan, allocate
from tvm_compress.search.budget import Budget, is_number, is_whole
from tvm_compress.search.log import TrialLog, key_of
from tvm_compress.search.result import SearchResult, Trial
from tvm_compress.search.work import Here, Job, Work
from tvm_compress.training.augmentation import Augment, check_named, function_name

__all__ = ["TRIALS", "search"]

DENSITIES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06, 0.03)
BITS = (8, 5, 4, 3, 2)
TRIALS = 16

# Guesses of what training leaves of the damage by pruning; the first is tried first.
_RECOVERIES = (0.1, 1.0, 0.3, 0.03)
_ROUND = 4  # trials that are planned together, whatever the executor
_SCAN_SAMPLES = 512
_PROBES = 2
_PARTS_OF_LIMITS = (1.0, 1.03, 0.97, 0.93)  # sizes jump, so above the limit too
_BRACKETINGS = 2  # rounds before other guesses of the recovery are tried
_NEAR = 0.6  # where to look below a good trial while nothing failed there
_NARROW = 1.01

Inputs = pipeline.Inputs
TrainingData = pipeline.TrainingData
Floats = NDArray[np.float64]


def search(
    mod: tvm.IRModule,
    budget: Budget,
    *,
    validate: TrainingData | None,
    train: TrainingData | None = None,
    calibrate: Inputs | None = None,
    augment: Augment | None = None,
    recipe: Callable[..., Recipe] | None = None,
    trials: int = TRIALS,
    densities: Sequence[float] = DENSITIES,
    bits: Sequence[int] = BITS,
    executor: Executor | None = None,
    trial_log: str | PathLike[str] | None = None,
    threads: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> SearchResult:
    """Search density and bits of every layer for the best network that meets a budget.

    First each layer alone is compressed at several densities and bits, in one shot, and the change
    of the network's outputs is measured. These curves and the costs of the layers give an
    allocation for any limits (:mod:`tvm_compress.search.allocation`). Whole networks are then
    compressed with the recipe, judged and measured, and each round of them plans the next: nearer
    to the limits, and with another guess of what training makes good.

    A layer may stay as it is (0 bits). The layout of a weight in firmware follows from its density
    and bits, for target ``c`` takes the smallest.

    Args:
        mod: a canonical module whose weights are floats; it stays as it is.
        budget: the limits.
        validate: ``(x, y)``: N samples and their classes, integers, by which networks are judged.
            They are used for choices, so report on others.
        train: see :func:`tvm_compress.compress`.
        calibrate: see there.
        augment: see there.
        recipe: gives the recipe of a trial: called with ``layer_sparsity`` and ``layer_bits``,
            dictionaries by layer (0 bits stand for floats). Without it ``deep_compression`` where
            there is ``train``, ``reconstruct`` where there is ``calibrate`` alone, else one shot by
            magnitude.
        trials: how many whole networks are tried at most.
        densities: those of the scan, above 0 to 1.
        bits: those of the scan, 1..8.
        executor: runs the jobs of the scan and the trials; without it this process does. The
            results do not depend on it. A pool of processes needs data and ``augment`` that can be
            pickled.
        trial_log: a folder, made if missing, that keeps every result as it comes. The same call
            goes on where the last one stopped; more ``trials`` go on behind it. It knows the board
            by what its description says, not by its name or path.
        threads: of torch in a job, which the last bits of a training depend on.
        device: where trials are fine-tuned, see :func:`tvm_compress.compress`. Networks are judged
            on the processor.
        progress: whether to say on stderr what was measured.

    Raises:
        OptionError: an option outside its range, no ``validate``, a recipe without its data, an
            unknown board, a device that torch does not find, or a ``trial_log`` with an ``augment``
            that its name does not tell from others.
        DataError: data that does not fit the network; a log that is damaged or of another search.
        BudgetError: no trial met the budget; says what came nearest and what it missed.
        PassError: a network without weights, or one that is compressed already.
        MissingToolError: fine-tuning without torch; firmware without a compiler or an emulator.

    With torch networks are judged by it, without it by the reference target, which is slow.
    """
    if validate is None:
        raise OptionError(
            "A budget was given and no validation data; expected validate=(x, y): the accuracy of "
            "every trial is measured on it."
        )
    judged = jobs.check_labels(mod, validate)
    weights = ir.weights(mod)
    names = tuple(weights)
    if not weights:
        raise PassError(
            "search: the network has no weights; expected one with convolutions or products with "
            "constants, as load() gives it."
        )
    for weight in weights.values():
        if weight.parameter.shared or weight.parameter.value.dtype != np.float32:
            what = "shared already" if weight.parameter.shared else weight.parameter.value.dtype
            raise PassError(
                f"search: the weight {weight.name} is {what}; expected float32: search from the "
                "uncompressed network."
            )
    falling = _check_options(trials, densities, bits, threads)
    board = _board_digest(budget)
    if device != "cpu" and executor is None:  # elsewhere there may be what is missing here
        pipeline.check_device(device)
    make = recipe or _default_recipe(train, calibrate)
    sample = make(layer_sparsity=dict.fromkeys(names, 0.5), layer_bits=dict.fromkeys(names, 4))
    pipeline.check_data(sample, train, calibrate, augment, mod=mod)
    if trial_log is not None:
        check_named(augment)
    network = tvm.ir.save_json(mod)
    options = {
        "version": tvm_compress.__version__,
        "recipe": key_of(sample.model_dump(mode="json")),
        "densities": falling[0],
        "bits": falling[1],
        "threads": int(threads),
        "device": device,
        "augment": None if augment is None else function_name(augment),
    }
    log = TrialLog(
        trial_log,
        {
            "network": hashlib.sha256(network.encode()).hexdigest(),
            "data": pipeline.data_hash((*judged, *(train or ()), calibrate)).hex(),
            "budget": asdict(budget) | {"board": board},
            "options": options,
        },
    )
    task = jobs.Task(network, budget, int(threads), judged, train, calibrate, augment, device)
    helped = sample.needs_training_data or sample.needs_inputs
    work = Work(executor or Here(), log, progress)
    return _Search(task, names, make, work, *falling, _RECOVERIES if helped else (1.0,)).run(trials)


def _check_options(
    trials: Any, densities: Any, bits: Any, threads: Any
) -> tuple[list[float], list[int]]:
    """Check the options and give densities and bits, falling."""
    for what, value in (("trials", trials), ("threads", threads)):
        if not (is_whole(value) and value >= 1):
            raise OptionError(f"search: {what} is {value!r}; expected a whole number from 1 on.")
    densities, bits = _listed(densities), _listed(bits)
    if not isinstance(densities, list) or not (
        densities and all(is_number(density) and 0.0 < density <= 1.0 for density in densities)
    ):
        raise OptionError(
            f"search: the densities are {densities!r}; expected a list of numbers above 0, up to 1."
        )
    if not isinstance(bits, list) or not (
        bits and all(is_whole(width) and 1 <= width <= 8 for width in bits)
    ):
        raise OptionError(
            f"search: the bits are {bits!r}; expected a list of whole numbers from 1 to 8."
        )
    # The curves begin at the density at which pruning harms nothing.
    found = sorted({1.0, *(float(density) for density in densities)}, reverse=True)
    return found, sorted({int(width) for width in bits}, reverse=True)


def _listed(given: object) -> object:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _board_digest(budget: Budget) -> str | None:
    """Give a digest of the description of the board that is measured on, if one is.

    Raises:
        OptionError: there is no such board.
    """
    if not budget.needs_board:
        return None
    from tvm_compress.targets.mcu.boards import get_board

    assert budget.board is not None, "a budget that needs a board has one"
    return key_of(get_board(budget.board).model_dump(mode="json"))


def _default_recipe(train: object, calibrate: object) -> Callable[..., Recipe]:
    if train is not None:
        return deep_compression
    return _by_reconstruction if calibrate is not None else _in_one_shot


def _in_one_shot(layer_sparsity: Mapping[str, float], layer_bits: Mapping[str, int]) -> Recipe:
    return jobs.one_shot(layer_sparsity, layer_bits)


def _by_reconstruction(
    layer_sparsity: Mapping[str, float], layer_bits: Mapping[str, int]
) -> Recipe:
    return Recipe([Reconstruct(small=0.0, layers=layer_sparsity, layer_bits=layer_bits)])


@dataclass(frozen=True)
class _Plan:
    """What a trial aims at: costs as they are predicted (K,), and a guess of the recovery."""

    aim: tuple[float, ...]
    recovery: float


@dataclass(frozen=True)
class _End:
    """One end of the costs that are searched, and whether something was tried there."""

    at: float
    tried: bool


@dataclass(frozen=True, eq=False)
class _Tried:
    """A trial, its guess of the recovery, and the costs (K,) that were predicted for it."""

    trial: Trial
    recovery: float
    predicted: Floats


class _Search:
    """One search; see :func:`search`."""

    def __init__(
        self,
        task: jobs.Task,
        names: tuple[str, ...],
        make: Callable[..., Recipe],
        work: Work,
        densities: Sequence[float],
        bits: Sequence[int],
        recoveries: Sequence[float],
    ) -> None:
        self._task, self._names, self._make, self._work = task, names, make, work
        self._densities, self._bits, self._recoveries = densities, bits, recoveries
        self._budget, self._kinds = task.budget, task.budget.measured
        self._limits = tuple(float(limit) for limit in task.budget.costs.values())
        self._by_recovery: dict[float, Choices] = {}
        self._tried: list[_Tried] = []
        self._measured: list[tuple[Floats, Floats]] = []  # costs (K,) as predicted, as measured

    def run(self, trials: int) -> SearchResult:
        """Try at most so many networks.

        Raises:
            BudgetError: none of them meets the budget.
        """
        self._accuracy = self._judged()
        self._check_tools()
        found: dict[str, Trial] = {}
        for plans in self._towards_limits() if self._limits else self._towards_accuracy():
            planned = [self._planned(plan) for plan in plans]
            new = {job.key: (job, trial) for job, trial, _ in planned if job.key not in found}
            new = dict(list(new.items())[: trials - len(found)])
            numbered = [
                replace(job, what=f"trial {len(found) + number}/{trials}")
                for number, (job, _) in enumerate(new.values(), 1)
            ]
            for key, result in zip(new, self._work.run(numbered), strict=True):
                costs = {kind: result[kind] for kind in self._kinds}
                found[key] = replace(new[key][1], accuracy=result["accuracy"], costs=costs)
            for plan, (job, _, predicted) in zip(plans, planned, strict=True):
                if job.key in found:
                    self._tried.append(_Tried(found[job.key], plan.recovery, predicted))
                    if self._limits:
                        self._note(predicted, found[job.key].costs)
            if not new:
                break
        return self._result(tuple(found.values()))

    # ---- the scan --------------------------------------------------------------------------------

    def _judged(self) -> float:
        """Give the accuracy of the uncompressed network."""
        task = replace(self._task, train=None, calibrate=None, augment=None)
        job = Job(key_of("accuracy"), "uncompressed network", jobs.accuracy, (task,))
        return float(self._work.run([job])[0]["accuracy"])

    def _check_tools(self) -> None:
        """Build one firmware before the scan, which takes longer: a tool may be missing."""
        if set(self._kinds) - {"weight_bytes"}:
            sparsity = dict.fromkeys(self._names, 1.0 - self._densities[-1])
            self._costs_in_one_shot(sparsity, dict.fromkeys(self._names, self._bits[-1]))

    def _costs_in_one_shot(
        self, sparsity: Mapping[str, float], bits: Mapping[str, int]
    ) -> dict[str, int | None]:
        recipe = jobs.one_shot(sparsity, bits)
        key = key_of(["total_costs", recipe.model_dump(mode="json")])
        job = Job(key, "measure in one shot", jobs.total_costs, (self._judging(1), recipe))
        return self._work.run([job])[0]

    @cached_property
    def _scan(self) -> Scan:
        """The curves of the layers."""
        grid = (self._densities, self._bits)
        by_bits: list[dict[str, list[list[float]]]] = []
        if "instructions" in self._kinds:
            builds = [self._build_job(self._densities, width) for width in self._bits]
            by_bits = self._work.run([*builds, self._build_job([1.0], 0)])
        task = self._judging(_SCAN_SAMPLES)
        scans = [
            Job(
                key_of(["scan", layer, *grid]),
                f"scan {layer}",
                jobs.layer_scan,
                (task, layer, *grid),
            )
            for layer in self._names
        ]
        layers = self._work.run(scans)
        costs, dense = [], []
        for kind in self._kinds:
            if kind == "instructions":
                *shared, floats = [np.array(result[kind], np.float64) for result in by_bits]
                costs.append(np.stack(shared).transpose(2, 1, 0))  # given as (B, D, L)
                dense.append(floats[0])
            else:
                costs.append(np.array([layer[kind] for layer in layers]))
                dense.append(np.array([layer["dense"][kind] for layer in layers]))
        damage = np.array([layer["damage"] for layer in layers])
        return Scan(
            tuple(self._densities), tuple(self._bits), damage, np.stack(costs), np.stack(dense)
        )

    def _build_job(self, densities: Sequence[float], bits: int) -> Job:
        what = f"firmware at {bits} bits" if bits else "firmware of floats"
        key = key_of(["instructions", densities, bits])
        return Job(key, what, jobs.layer_instructions, (self._judging(1), densities, bits))

    def _judging(self, count: int) -> jobs.Task:
        """Give the task without training data and with so many samples, from everywhere."""
        x, y = self._task.validate
        some = np.unique(np.linspace(0, len(y) - 1, min(count, len(y))).astype(np.intp))
        few = {name: a[some] for name, a in x.items()} if isinstance(x, Mapping) else x[some]
        return replace(
            self._task, validate=(few, y[some]), train=None, calibrate=None, augment=None
        )

    def _choices(self, recovery: float) -> Choices:
        if recovery not in self._by_recovery:
            self._by_recovery[recovery] = self._scan.choices(recovery)
        return self._by_recovery[recovery]

    # ---- from a plan to a trial ------------------------------------------------------------------

    def _allocation(self, plan: _Plan) -> tuple[dict[str, float], dict[str, int], Floats]:
        """Give sparsity and bits by layer, and the costs as they are predicted."""
        choices = self._choices(plan.recovery)
        aim = np.array(plan.aim)
        # What scan and measurement differ by near the aim: code of kernels, the graph, ...
        near = min(
            self._measured,
            key=lambda pair: float(np.abs(np.log(pair[1] / aim)).sum()),
            default=(0.0, 0.0),
        )
        chosen = allocate(choices.damage, choices.costs, aim - (near[1] - near[0]))
        sparsity = (1.0 - choices.density[chosen]).round(6)
        named = zip(self._names, sparsity.tolist(), choices.bits[chosen].tolist(), strict=True)
        rows = list(named)
        return {n: s for n, s, _ in rows}, {n: b for n, _, b in rows}, choices.cost(chosen)

    def _planned(self, plan: _Plan) -> tuple[Job, Trial, Floats]:
        """Give the job of a trial, the trial as far as it is known, and its predicted costs."""
        sparsity, bits, predicted = self._allocation(plan)
        recipe = self._make(layer_sparsity=sparsity, layer_bits=bits)
        key = key_of(["trial", recipe.model_dump(mode="json")])
        job = Job(key, "trial", jobs.trial, (self._task, recipe))
        return job, Trial(sparsity, bits, 0.0, {}, partial(self._work.log.module, key)), predicted

    def _probe(self) -> None:
        """Measure costs in one shot, before any training, to aim well with the first trials."""
        for _ in range(_PROBES):
            sparsity, bits, predicted = self._allocation(_Plan(self._limits, self._recoveries[0]))
            self._note(predicted, self._costs_in_one_shot(sparsity, bits))

    def _note(self, predicted: Floats, costs: Mapping[str, int | None]) -> None:
        measured = [costs[kind] for kind in self._kinds]
        if None not in measured:
            self._measured.append((predicted, np.array(measured, np.float64)))

    # ---- plans -----------------------------------------------------------------------------------

    def _towards_limits(self) -> Iterator[list[_Plan]]:
        """Aim at the limits and around them, better as more is measured."""
        self._probe()
        if len(self._recoveries) > 1:
            yield [_Plan(self._limits, recovery) for recovery in self._recoveries]
        while True:
            recovery = self._best_recovery()
            yield [
                _Plan(tuple(part * limit for limit in self._limits), recovery)
                for part in _PARTS_OF_LIMITS
            ]

    def _towards_accuracy(self) -> Iterator[list[_Plan]]:
        """Close in on the fewest bytes that keep the accuracy."""
        recovery = self._recoveries[0]
        for number in count():
            low, high = self._bracket(recovery, number)
            if number == _BRACKETINGS and len(self._recoveries) > 1:
                middle = sqrt(low.at * high.at)
                yield [_Plan((middle,), other) for other in self._recoveries[1:]]
                recovery = self._best_recovery()
                continue
            if high.at < _NARROW * low.at:
                return
            # An end that nothing was tried at is one of the points.
            inner = np.linspace(0, 1, _ROUND + (2 if low.tried == high.tried else 1))
            inner = inner[1 if low.tried or not high.tried else 0 :][:_ROUND]
            yield [_Plan((low.at ** (1 - p) * high.at**p,), recovery) for p in inner.tolist()]

    def _bracket(self, recovery: float, number: int) -> tuple[_End, _End]:
        """Give the largest costs that failed and the smallest that met the budget above them."""
        mine = [tried for tried in self._tried if tried.recovery == recovery]
        good = [float(t.predicted[0]) for t in mine if self._meets(t.trial)]
        cheapest = float(self._choices(recovery).costs.min(2).sum())
        high = _End(min(good), True) if good else _End(float(self._scan.dense.sum()), False)
        bad = [float(t.predicted[0]) for t in mine if not self._meets(t.trial)]
        bad = [cost for cost in bad if cost < high.at]
        if bad:
            return _End(max(bad), True), high
        near = cheapest if number < _BRACKETINGS or not good else _NEAR * high.at
        return _End(max(cheapest, near), False), high

    def _best_recovery(self) -> float:
        """Give the guess that the best trial was planned with, the first one before any."""
        if not self._tried:
            return self._recoveries[0]
        return min(self._tried, key=lambda tried: self._rank(tried.trial)).recovery

    # ---- what was found --------------------------------------------------------------------------

    def _meets(self, trial: Trial) -> bool:
        return not trial.misses(self._budget, self._accuracy)

    def _rank(self, trial: Trial) -> tuple[float, ...]:
        """Give what the best trial has least of."""
        misses = trial.misses(self._budget, self._accuracy)
        missed = len(misses), max(misses.values(), default=0.0)
        costs = sum(trial.cost(kind) / self._budget.costs.get(kind, 1) for kind in self._kinds)
        if self._limits:
            return *missed, -trial.accuracy, costs
        return *missed, costs, -trial.accuracy

    def _result(self, trials: tuple[Trial, ...]) -> SearchResult:
        best = min(trials, key=self._rank)
        misses = best.misses(self._budget, self._accuracy)
        if not misses:
            return SearchResult(best, trials, self._accuracy)
        parts = []
        for name in misses:
            limit = getattr(self._budget, name)
            if name == "max_accuracy_drop":
                parts.append(f"{name} with {self._accuracy - best.accuracy:.4f} of {limit:g}")
            elif best.cost(name) == inf:
                parts.append(f"{name}, for it does not fit the board {self._budget.board}")
            else:
                parts.append(f"{name} with {best.cost(name):,.0f} of {limit:,}")
        raise BudgetError(
            f"No network of the {len(trials)} that were tried meets the budget: the nearest "
            f"misses {' and '.join(parts)}. Raise that limit, allow more trials, or give training "
            "data."
        )
