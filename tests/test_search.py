from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

import tvm_compress as tc
from examples.digits.data import DigitsSplit
from tvm_compress import codec, ir
from tvm_compress.errors import BudgetError, DataError, MissingToolError, OptionError, PassError
from tvm_compress.passes import Prune, Reconstruct, ShareWeights
from tvm_compress.recipe import Recipe
from tvm_compress.recipes import deep_compression
from tvm_compress.search import Budget, SearchResult, Trial, jobs, runner, search
from tvm_compress.search.allocation import allocate
from tvm_compress.search.work import Here, Job, Work

# A grid that is scanned in a moment.
QUICK: dict[str, Any] = {"densities": (0.5, 0.2), "bits": (4, 2), "progress": False}


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> tvm.IRModule:
    return tc.load(digits_onnx)


@pytest.fixture(scope="module")
def names(network: tvm.IRModule) -> list[str]:
    return list(ir.weights(network))


@pytest.fixture(scope="module")
def validate(digits: DigitsSplit) -> Any:
    return digits.train_images[:100], digits.train_labels[:100]


@pytest.fixture(scope="module")
def task(network: tvm.IRModule, validate: Any) -> jobs.Task:
    return jobs.Task(text(network), Budget(weight_bytes=1), 1, validate)


@pytest.fixture(scope="module")
def found(network: tvm.IRModule, validate: Any) -> SearchResult:
    """A real search, in one shot."""
    grid: dict[str, Any] = {"densities": (0.5, 0.25), "bits": (4, 3, 2)}
    budget = Budget(max_accuracy_drop=0.01)
    return search(network, budget, validate=validate, trials=8, progress=False, **grid)


def text(mod: tvm.IRModule) -> str:
    return str(tvm.ir.save_json(mod))


def numbers(result: SearchResult) -> list[Any]:
    """All that a search found."""
    trials = [
        (dict(t.sparsity), dict(t.bits), t.accuracy, dict(t.costs), text(t.module))
        for t in result.trials
    ]
    return [*trials, result.accuracy, result.trials.index(result.best)]


def by_reference(mod: tvm.IRModule, x: Any) -> np.ndarray[Any, Any]:
    (logits,) = tc.build(mod, target="reference").run(x).values()
    return logits


# ---- a search as a user sees it ------------------------------------------------------------------


def test_the_best_network_meets_the_budget(
    found: SearchResult, network: tvm.IRModule, validate: Any, tmp_path: Path
) -> None:
    x, y = validate
    assert found.accuracy == (by_reference(network, x).argmax(1) == y).mean()
    accuracy = (by_reference(found.module, x).argmax(1) == y).mean()
    assert found.best.accuracy == accuracy >= found.accuracy - 0.01
    tc.save(found.module, tmp_path / "x.tcz")
    assert found.best.costs == {"weight_bytes": (tmp_path / "x.tcz").stat().st_size}
    for name, weight in ir.weights(found.module).items():
        parameter = weight.parameter
        zeros = int((parameter.value == 0).sum())
        assert zeros == round(found.best.sparsity[name] * parameter.value.size)
        assert parameter.shared and parameter.centroids is not None
        assert parameter.centroids.size <= 2 ** found.best.bits[name]


def test_it_beats_every_uniform_allocation_of_its_grid(
    found: SearchResult, task: jobs.Task, names: list[str]
) -> None:
    good = 0
    for density in (1.0, 0.5):
        for bits in (3, 2):
            alike = dict.fromkeys(names, 1 - density), dict.fromkeys(names, bits)
            got = jobs.trial(task, jobs.one_shot(*alike))
            if got["accuracy"] >= found.accuracy - 0.01:
                good += 1
                assert got["weight_bytes"] > found.best.cost("weight_bytes")
    assert good > 0


def test_the_front_is_what_nothing_beats(found: SearchResult) -> None:
    points = [(t.accuracy, t.costs["weight_bytes"] or 0) for t in found.trials]
    kept = {
        (a, c)
        for a, c in points
        if not any((b >= a and d <= c) and (b, d) != (a, c) for b, d in points)
    }
    front = [(t.accuracy, t.costs["weight_bytes"] or 0) for t in found.front]
    assert set(front) == kept and front == sorted(front)
    assert found.best in found.front
    assert 1 < len(front) < len(points)


def test_the_front_counts_all_costs() -> None:
    def trial(accuracy: float, flash: int | None, instructions: int) -> Trial:
        costs = {"flash_bytes": flash, "instructions": instructions}
        return Trial({}, {}, accuracy, costs, lambda: "")

    a, b, c, d = trial(0.9, 5, 5), trial(0.9, 4, 6), trial(0.8, 5, 6), trial(0.8, None, 1)
    assert SearchResult(a, (a, b, c, d), 1.0).front == (d, a, b)


@pytest.mark.slow
def test_firmware_meets_limits_of_flash_and_instructions(
    network: tvm.IRModule, validate: Any
) -> None:
    limits = {"flash_bytes": 16_000, "instructions": 900_000}
    result = search(
        network,
        Budget(max_accuracy_drop=0.05, **limits),
        validate=validate,
        trials=4,
        densities=(0.5, 0.25),
        bits=(4, 2),
        progress=False,
    )
    firmware = tc.build(result.module, target="c", board="cortex-m4")
    assert result.best.costs == {
        "flash_bytes": firmware.size.flash_bytes,
        "instructions": firmware.profile(validate[0][:1]).instructions,
    }
    assert all(result.best.cost(name) <= limit for name, limit in limits.items())
    assert result.best.accuracy >= result.accuracy - 0.05
    # The limits are used: the most accurate network is not the smallest that can be had.
    assert result.best.cost("flash_bytes") > 0.85 * limits["flash_bytes"]


def test_compress_gives_the_module_of_a_search(
    network: tvm.IRModule, validate: Any, fakes: Fakes
) -> None:
    budget, executor = Budget(weight_bytes=1_000_000), Recording()
    small = tc.compress(
        network, budget=budget, validate=validate, executor=executor, progress=False
    )
    # Everything fits, so every weight stays as it is.
    tvm.ir.assert_structural_equal(small, network)
    assert executor.names.count("trial") == 1


def test_progress_is_told_on_stderr(
    network: tvm.IRModule, validate: Any, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Budget(max_accuracy_drop=0.9)
    search(network, budget, validate=validate, trials=1, **{**QUICK, "progress": True})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[:2] == [
        "uncompressed network: accuracy 99.00 %",
        "scan conv1_weight",
    ]
    bytes_ = fakes.total_costs(jobs.Task(text(network), budget, 1, validate), fakes.recipes[0])
    last = shown.err.splitlines()[-1]
    assert last.startswith("trial 1/1: accuracy ")
    assert last.endswith(f" %, weight_bytes {bytes_['weight_bytes']:,}")
    search(network, budget, validate=validate, trials=1, **QUICK)
    assert capsys.readouterr().err == ""


# ---- training and reconstruction -----------------------------------------------------------------


def test_trials_are_fine_tuned(
    network: tvm.IRModule, digits: DigitsSplit, validate: Any, names: list[str]
) -> None:
    pytest.importorskip("torch", reason="Fine-tuning needs torch.")
    train = (digits.train_images[200:300], digits.train_labels[200:300])
    result = search(
        network,
        Budget(weight_bytes=6000),
        validate=validate,
        train=train,
        recipe=partial(deep_compression, epochs=1, seed=3),
        trials=1,
        **QUICK,
    )
    options = {"layer_sparsity": result.best.sparsity, "layer_bits": result.best.bits}
    by_hand = deep_compression(epochs=1, seed=3, **options)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = tc.compress(network, by_hand, train=train, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert text(result.module) == text(expected)


@pytest.mark.parametrize("kind", ["train", "calibrate", "nothing"])
def test_the_recipe_follows_from_the_data(
    kind: str, network: tvm.IRModule, validate: Any, names: list[str], fakes: Fakes
) -> None:
    given: dict[str, Any] = {"train": {"train": validate}, "calibrate": {"calibrate": validate[0]}}
    options = given.get(kind, {})
    search(network, Budget(weight_bytes=9000), validate=validate, trials=1, **options, **QUICK)
    (recipe,) = fakes.recipes
    steps = {
        "train": ["prune", "finetune", "share-weights", "finetune"],
        "calibrate": ["reconstruct"],
        "nothing": ["prune", "share-weights"],
    }
    assert [step.name for step in recipe.steps] == steps[kind]
    if kind == "calibrate":
        step = recipe.steps[0]
        assert isinstance(step, Reconstruct) and step.small == 0.0
        assert list(step.layers) == list(step.layer_bits) == names


def test_trials_are_reconstructed(network: tvm.IRModule, validate: Any) -> None:
    x = validate[0][:20]
    result = search(
        network, Budget(weight_bytes=6000), validate=validate, calibrate=x, trials=1, **QUICK
    )
    options = {"layers": result.best.sparsity, "layer_bits": result.best.bits}
    expected = Reconstruct(small=0.0, **options).on(x).apply(network)
    assert text(result.module) == text(expected)


# ---- executors, Ctrl-C and the log ---------------------------------------------------------------


class Recording(Executor):
    """Runs jobs here, notes the names of their functions, and may be interrupted by Ctrl-C."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.names: list[str] = []
        self.interrupted_at = interrupted_at

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(self.names) == self.interrupted_at:
            raise KeyboardInterrupt
        self.names.append(fn.__name__)
        return Here().submit(fn, *args, **kwargs)


class Backwards(Executor):
    """Waits for all jobs of a round and ends the last one first.

    Args:
        monkeypatch: lets ``Work`` say how many jobs it is about to submit.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.expected = 0
        self.waiting: list[Callable[[], None]] = []
        self.ended: list[int] = []  # sizes of the rounds
        run = Work.run

        def announced(work: Work, todo: Sequence[Job]) -> list[dict[str, Any]]:
            if work.executor is self:
                self.expected = sum(work.log.get(job.key) is None for job in todo)
            return run(work, todo)

        monkeypatch.setattr(Work, "run", announced)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def job() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self.waiting.append(job)
        if len(self.waiting) == self.expected:
            # A thread, so that the search meets each one as it ends.
            threading.Thread(target=self._end, args=(self.waiting,)).start()
            self.waiting = []
        return future

    def _end(self, jobs: Sequence[Callable[[], None]]) -> None:
        self.ended.append(len(jobs))
        for job in reversed(jobs):
            job()


@pytest.mark.slow
def test_pools_give_the_same(network: tvm.IRModule, validate: Any) -> None:
    options: dict[str, Any] = {"validate": validate, "trials": 1, "progress": False}
    options |= {"densities": (0.3,), "bits": (3,)}
    budget = Budget(max_accuracy_drop=0.9)
    here = search(network, budget, **options)
    with ThreadPoolExecutor(2) as threads:
        assert numbers(search(network, budget, executor=threads, **options)) == numbers(here)
    # A fork of a process that has run torch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        assert numbers(search(network, budget, executor=processes, **options)) == numbers(here)


def test_the_order_in_which_jobs_end_does_not_matter(
    network: tvm.IRModule, validate: Any, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for budget in (Budget(0.05), Budget(weight_bytes=9000)):
        options: dict[str, Any] = {"validate": validate, "trials": 6, **QUICK}
        backwards = Backwards(monkeypatch)
        turned = search(network, budget, executor=backwards, **options)
        assert numbers(turned) == numbers(search(network, budget, **options))
        # The scan is one round, and there are rounds of several trials.
        assert backwards.ended.count(len(ir.weights(network))) == 1
        assert sum(size > 1 for size in backwards.ended) > 1 and not backwards.waiting

    def broken(task: Any, recipe: Recipe) -> dict[str, Any]:
        raise MissingToolError("No compiler.")

    monkeypatch.setattr(jobs, "trial", broken)
    with pytest.raises(MissingToolError, match="No compiler"):
        search(network, Budget(0.05), executor=Backwards(monkeypatch), **options)


class Fakes:
    """Takes the place of the jobs: sizes and accuracies that are known.

    A layer of n weights harms by n ((1 - density)^2 + 4^-bits) / total, and a network's damage is
    that of its layers, with what ``recovery`` leaves of the pruning's part. Its file has 1.1 bytes
    for each predicted byte and a graph of 500 bytes.
    """

    def __init__(self) -> None:
        self.recipes: list[Recipe] = []
        self.recovery = 1.0
        self.harm = 0.4
        self.fits = True

    def damage(self, density: float, bits: int, recovery: float = 1.0) -> float:
        return recovery * (1 - density) ** 2 + (4.0**-bits if bits else 0.0)

    def layer_scan(self, task: Any, layer: str, densities: Any, bits: Any) -> dict[str, Any]:
        sizes = self.sizes(task)
        share = sizes[layer] / sum(sizes.values())
        kinds = task.budget.measured
        packed = [[sizes[layer] * d * b / 8 for b in bits] for d in densities]
        return {
            "damage": [[share * self.damage(d, b) for b in bits] for d in densities],
            **dict.fromkeys(kinds, packed),
            "dense": dict.fromkeys(kinds, 4.0 * sizes[layer]),
        }

    def total_costs(self, task: Any, recipe: Recipe) -> dict[str, Any]:
        sparsity, bits = self.options(recipe)
        packed = sum(
            size * ((1 - sparsity[name]) * bits[name] / 8 if bits[name] else 4)
            for name, size in self.sizes(task).items()
        )
        costs = round(1.1 * packed + 500) if self.fits else None
        return dict.fromkeys(task.budget.measured, costs)

    def trial(self, task: Any, recipe: Recipe) -> dict[str, Any]:
        self.recipes.append(recipe)
        sparsity, bits = self.options(recipe)
        sizes = self.sizes(task)
        damage = sum(
            size * self.damage(1 - sparsity[name], bits[name], self.recovery)
            for name, size in sizes.items()
        ) / sum(sizes.values())
        costs = self.total_costs(task, recipe)
        return {"accuracy": 0.99 - self.harm * damage, **costs, "module": task.network}

    def accuracy(self, task: Any) -> dict[str, Any]:
        return {"accuracy": 0.99}

    @staticmethod
    def sizes(task: Any) -> dict[str, int]:
        mod = tvm.ir.load_json(task.network)
        return {name: w.parameter.value.size for name, w in ir.weights(mod).items()}

    @staticmethod
    def options(recipe: Recipe) -> tuple[dict[str, float], dict[str, int]]:
        steps = {step.name: step for step in recipe.steps}
        if "reconstruct" in steps:
            return dict(steps["reconstruct"].layers), dict(steps["reconstruct"].layer_bits)
        return dict(steps["prune"].layers), dict(steps["share-weights"].layers)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    for name in ("accuracy", "layer_scan", "total_costs", "trial"):
        # A function, for a job is known by its name.
        monkeypatch.setattr(jobs, name, getattr(fakes, name))
    return fakes


@pytest.mark.parametrize("budget", [Budget(0.01), Budget(weight_bytes=9000)])
def test_a_search_that_was_killed_goes_on(
    budget: Budget, network: tvm.IRModule, validate: Any, fakes: Fakes, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"validate": validate, "trials": 6, "progress": False}
    whole = Recording()
    expected = search(network, budget, executor=whole, **options)
    count = whole.names.count("trial")
    assert len(expected.trials) == count > 2
    for done in (0, 1, 4, len(whole.names) - 1):
        folder = tmp_path / f"a{done}" / "log"
        with pytest.raises(KeyboardInterrupt):
            search(network, budget, executor=Recording(done), trial_log=folder, **options)
        log = folder / "trials.jsonl"
        assert len(log.read_text().splitlines()) == 1 + done if done else not log.exists()
        rest = Recording()
        result = search(network, budget, executor=rest, trial_log=str(folder), **options)
        assert rest.names == whole.names[done:]
        assert numbers(result) == numbers(expected)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(lines) == 1 + len(whole.names)
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            ["trials.jsonl", *(r["result"]["module"] for r in lines[1:] if "module" in r["result"])]
        )
    nothing = Recording()
    assert numbers(search(network, budget, executor=nothing, trial_log=folder, **options)) == (
        numbers(expected)
    )
    assert nothing.names == []
    # More trials go on behind those that are there.
    more = Recording()
    longer = search(network, budget, executor=more, trial_log=folder, **{**options, "trials": 8})
    assert more.names == ["trial"] * (len(longer.trials) - count)
    assert numbers(longer)[:count] == numbers(expected)[:count]
    assert len(longer.trials) == 8 or budget.costs
    # The modules are files that load() reads; one that is lost is made again.
    name = lines[-1]["result"]["module"]
    tvm.ir.assert_structural_equal(tc.load(folder / name), network)
    (folder / name).unlink()
    lost = Recording()
    search(network, budget, executor=lost, trial_log=folder, **options)
    assert lost.names == ["trial"] and (folder / name).exists()


def test_a_job_that_fails_cancels_the_others_and_keeps_the_log(
    network: tvm.IRModule, validate: Any, fakes: Fakes, tmp_path: Path
) -> None:
    waiting: list[Future[Any]] = []

    class Failing(Recording):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if fn.__name__ != "trial":
                return super().submit(fn, *args, **kwargs)
            future: Future[Any] = Future()
            if waiting:  # the second trial fails while the first has not begun
                future.set_exception(MissingToolError("No compiler."))
            waiting.append(future)
            return future

    with pytest.raises(MissingToolError, match="No compiler"):
        search(
            network,
            Budget(0.01),
            validate=validate,
            executor=Failing(),
            trial_log=tmp_path,
            **QUICK,
        )
    assert waiting[0].cancelled() and len(waiting) == 2
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1 + 1 + 5


def test_a_write_that_fails_leaves_the_log_as_it_was(
    network: tvm.IRModule,
    validate: Any,
    fakes: Fakes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"validate": validate, "trial_log": tmp_path, **QUICK}
    search(network, Budget(0.9), trials=1, **options)
    before = (tmp_path / "trials.jsonl").read_text()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        search(network, Budget(0.9), trials=2, **options)
    assert (tmp_path / "trials.jsonl").read_text() == before


def test_a_log_of_another_search_is_refused(
    network: tvm.IRModule, validate: Any, fakes: Fakes, tmp_path: Path
) -> None:
    x, y = validate
    first: dict[str, Any] = {
        "mod": network,
        "budget": Budget(0.9),
        "validate": validate,
        "trials": 1,
        **QUICK,
    }
    search(**first, trial_log=tmp_path)
    others: dict[str, dict[str, Any]] = {
        "network": {"mod": Prune(0.1).apply(network)},
        "budget": {"budget": Budget(0.02)},
        "data": {"validate": (x, (y + 1) % 10)},
        "options": {"bits": (3,)},
        "data and options": {"train": (x, y)},
    }
    others["network and budget"] = {**others["network"], **others["budget"]}
    path = tmp_path / "trials.jsonl"
    for what, change in others.items():
        with pytest.raises(DataError) as caught:
            search(**{**first, **change}, trial_log=tmp_path)
        assert str(caught.value) == (
            f"The trial log {path} belongs to another search: it differs in {what}; expected the "
            "log of this one: give another folder, or delete it to start anew."
        )
    recipe = {"recipe": partial(deep_compression, epochs=0)}
    for option in (recipe, {"threads": 2}, {"device": "cuda", "executor": Here()}):
        with pytest.raises(DataError, match="it differs in options;"):
            search(**{**first, **option}, trial_log=tmp_path)
    head, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head.replace("search 1", "search 2"), *rest]))
    with pytest.raises(DataError, match="it differs in format; expected"):
        search(**first, trial_log=tmp_path)


def test_a_log_knows_the_file_by_its_profile_and_the_board_by_its_description(
    network: tvm.IRModule, validate: Any, fakes: Fakes, tmp_path: Path
) -> None:
    boards = Path(tc.__file__).parent / "targets" / "mcu" / "boards"
    options: dict[str, Any] = {"validate": validate, "trials": 1, **QUICK}

    def run(log: str, **limits: Any) -> list[str]:
        executor = Recording()
        budget = Budget(**limits)
        search(network, budget, executor=executor, trial_log=tmp_path / log, **options)
        return executor.names

    board, other = tmp_path / "mine.toml", tmp_path / "moved.toml"
    board.write_text((boards / "cortex-m4.toml").read_text())
    assert run("flash", flash_bytes=90_000, board=str(board))[-1] == "trial"
    other.write_text(board.read_text())
    for same in (board, other, "cortex-m4", None):
        where = None if same is None else str(same)
        assert run("flash", flash_bytes=90_000, board=where) == []
    board.write_text(board.read_text().replace("0x00400000", "0x00001000", 1))
    with pytest.raises(DataError, match="it differs in budget;"):
        run("flash", flash_bytes=90_000, board=str(board))
    assert run("weights", weight_bytes=9000)[-1] == "trial"
    with pytest.raises(DataError, match="it differs in budget;"):
        run("weights", weight_bytes=9000, profile="flash")


def test_a_log_and_an_augment_without_a_name(
    network: tvm.IRModule, validate: Any, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"^augment is or holds a lambda"):
        search(
            network,
            Budget(0.9),
            validate=validate,
            augment=lambda x, rng: x,
            trial_log=tmp_path / "log",
            **QUICK,
        )
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]\n", '{"format": "tvm-compress search 1"}\n{"a": 1}']
)
def test_a_log_that_is_damaged(
    damaged: str, network: tvm.IRModule, validate: Any, tmp_path: Path
) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(damaged)
    with pytest.raises(DataError) as caught:
        search(network, Budget(0.01), validate=validate, trial_log=tmp_path, **QUICK)
    assert str(caught.value) == (
        f"{path} is damaged or is no log of a search; expected the JSON lines that search wrote: "
        "delete it to start anew, or give another folder."
    )


def test_a_log_that_is_a_file(network: tvm.IRModule, validate: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    with pytest.raises(OptionError) as caught:
        search(network, Budget(0.01), validate=validate, trial_log=path)
    assert str(caught.value) == (
        f"The trial log {path} is a file; expected a folder, which is made if missing: choose "
        "another."
    )


# ---- the plan ------------------------------------------------------------------------------------


def least_bytes(network: tvm.IRModule, fakes: Fakes, recovery: float, harm: float) -> float:
    """The fewest bytes of an allocation whose damage is at most ``harm``, by a fine sweep."""
    task = jobs.Task(
        text(network), Budget(0.01), 1, (np.zeros((1, 1, 8, 8), np.float32), np.zeros(1))
    )
    options = (task, list(Fakes.sizes(task)), lambda **_: Recipe(), runner.Work)
    densities, bits = runner.DENSITIES, runner.BITS
    of = runner._Search(*options, densities, bits, (recovery,))
    scans = [fakes.layer_scan(task, name, densities, bits) for name in of._names]
    scan = runner.Scan(
        densities,
        bits,
        np.array([s["damage"] for s in scans]),
        np.array([[s["weight_bytes"] for s in scans]]),
        np.array([[s["dense"]["weight_bytes"] for s in scans]]),
    )
    choices = scan.choices(recovery)
    for limit in np.geomspace(1e3, 1e5, 400):
        chosen = allocate(choices.damage, choices.costs, np.array([limit]))
        if choices.damage[np.arange(len(chosen)), chosen].sum() <= harm:
            return 1.1 * float(choices.cost(chosen)[0]) + 500
    raise AssertionError("no allocation is that good")


def test_the_fewest_bytes_that_keep_the_accuracy_are_found(
    network: tvm.IRModule, validate: Any, fakes: Fakes
) -> None:
    for drop in (0.001, 0.03):
        result = search(network, Budget(drop), validate=validate, trials=16, progress=False)
        ideal = least_bytes(network, fakes, 1.0, drop / fakes.harm)
        assert result.best.cost("weight_bytes") <= 1.05 * ideal, drop
        assert result.best.accuracy >= 0.99 - drop


def test_a_limit_of_bytes_is_used_up(network: tvm.IRModule, validate: Any, fakes: Fakes) -> None:
    for limit in (3000, 7000, 12_000):
        result = search(
            network, Budget(weight_bytes=limit), validate=validate, trials=8, progress=False
        )
        assert 0.98 * limit <= result.best.cost("weight_bytes") <= limit
        meeting = [t.accuracy for t in result.trials if t.cost("weight_bytes") <= limit]
        assert result.best.accuracy == max(meeting)


def test_what_training_makes_good_is_found_out(
    network: tvm.IRModule, validate: Any, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.recovery = 0.03
    for budget in (Budget(0.005), Budget(weight_bytes=3000)):
        results = []
        for guesses in (runner._RECOVERIES, (1.0,)):
            monkeypatch.setattr(runner, "_RECOVERIES", guesses)
            results.append(
                search(
                    network, budget, validate=validate, train=validate, trials=20, progress=False
                )
            )
        monkeypatch.undo()
        for name in ("accuracy", "layer_scan", "total_costs", "trial"):
            monkeypatch.setattr(jobs, name, getattr(fakes, name))
        guessed, told_nothing = (result.best for result in results)
        if budget.costs:
            assert guessed.accuracy > told_nothing.accuracy
        else:
            assert guessed.cost("weight_bytes") < 0.8 * told_nothing.cost("weight_bytes")


def test_a_budget_that_cannot_be_met(network: tvm.IRModule, validate: Any, fakes: Fakes) -> None:
    options: dict[str, Any] = {"validate": validate, "trials": 3, "progress": False}
    end = " Raise that limit, allow more trials, or give training data."
    with pytest.raises(BudgetError) as caught:
        search(network, Budget(weight_bytes=600), **options)
    smallest = fakes.total_costs(
        jobs.Task(text(network), Budget(0.1), 1, validate), fakes.recipes[0]
    )
    assert str(caught.value) == (
        "No network of the 1 that were tried meets the budget: the nearest misses weight_bytes "
        f"with {smallest['weight_bytes']:,} of 600.{end}"
    )
    first = len(fakes.recipes)
    with pytest.raises(BudgetError) as caught:
        search(network, Budget(0.0001, weight_bytes=9000), **options)
    task = jobs.Task(text(network), Budget(0.1), 1, validate)
    tried = [fakes.trial(task, recipe) for recipe in fakes.recipes[first:]]
    # One limit missed is nearer than two.
    best = max(t["accuracy"] for t in tried if t["weight_bytes"] <= 9000)
    assert str(caught.value) == (
        "No network of the 3 that were tried meets the budget: the nearest misses "
        f"max_accuracy_drop with {0.99 - best:.4f} of 0.0001.{end}"
    )
    with pytest.raises(
        BudgetError, match=r"misses max_accuracy_drop with .* and weight_bytes with"
    ):
        search(network, Budget(0.0001, weight_bytes=600), **options)
    fakes.fits = False
    with pytest.raises(BudgetError) as caught:
        search(network, Budget(weight_bytes=9000, flash_bytes=9000, board="mps2-an386"), **options)
    none = "for it does not fit the board mps2-an386"
    assert f"misses weight_bytes, {none} and flash_bytes, {none}." in str(caught.value)


def test_a_missing_tool_is_met_before_the_scan(
    network: tvm.IRModule, validate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise MissingToolError("zig is not installed; install it.")

    monkeypatch.setattr("tvm_compress.targets.mcu.target.link_firmware", missing)
    for budget in (Budget(flash_bytes=9000), Budget(instructions=9000)):
        executor = Recording()
        with pytest.raises(MissingToolError, match="zig is not installed"):
            search(network, budget, validate=validate, executor=executor, **QUICK)
        assert executor.names == ["accuracy", "total_costs"]


# ---- jobs ----------------------------------------------------------------------------------------


def test_the_damage_of_a_layer_is_the_divergence_of_the_probabilities(
    network: tvm.IRModule, task: jobs.Task, validate: Any
) -> None:
    def probabilities(mod: tvm.IRModule) -> np.ndarray[Any, Any]:
        e = np.exp(by_reference(mod, validate[0]).astype(np.float64))
        return e / e.sum(1, keepdims=True)

    got = jobs.layer_scan(task, "conv2_weight", [0.6, 0.3], [3, 2])
    for row, density in zip(range(2), [0.6, 0.3], strict=True):
        for column, bits in enumerate([3, 2]):
            small = Prune(0.0, layers={"conv2_weight": 1 - density}).apply(network)
            small = ShareWeights(bits, layers={"conv2_weight": bits, "*": 0}).apply(small)
            p, q = probabilities(network), probabilities(small)
            expected = (p * np.log(p / q)).sum(1).mean()
            assert got["damage"][row][column] == pytest.approx(expected, rel=1e-3)
            weight = ir.weights(small)["conv2_weight"].parameter
            assert weight.codes is not None and weight.centroids is not None
            coded = codec.coded_bytes(weight.codes, weight.centroids) + weight.centroids.nbytes
            assert got["weight_bytes"][row][column] == pytest.approx(coded, rel=0.15)
    assert got["dense"] == {
        "weight_bytes": 4 * ir.weights(network)["conv2_weight"].parameter.value.size
    }


def test_the_bytes_of_the_file_are_those_of_the_profile(
    network: tvm.IRModule, task: jobs.Task, names: list[str], tmp_path: Path
) -> None:
    recipe = jobs.one_shot(dict.fromkeys(names, 0.6), dict.fromkeys(names, 3))
    small = tc.compress(network, recipe, progress=False)
    sizes = []
    for profile in ("archive", "flash"):
        path = tmp_path / f"{profile}.tcz"
        tc.save(small, path, profile=profile)
        sizes.append(path.stat().st_size)
        of = replace(task, budget=Budget(weight_bytes=1, profile=profile))
        assert jobs.total_costs(of, recipe) == {"weight_bytes": sizes[-1]}
        # A limit of accuracy alone counts the same file.
        of = replace(task, budget=Budget(0.5, profile=profile))
        assert jobs.total_costs(of, recipe) == {"weight_bytes": sizes[-1]}
    assert sizes[0] < sizes[1]


def test_a_file_of_the_flash_profile_keeps_its_budget(
    network: tvm.IRModule, validate: Any, tmp_path: Path
) -> None:
    budget = Budget(weight_bytes=7000, profile="flash")
    small = search(network, budget, validate=validate, trials=4, **QUICK).module
    tc.save(small, tmp_path / "x.tcz", profile="flash")
    assert 6000 < (tmp_path / "x.tcz").stat().st_size <= 7000


def test_the_device_reaches_the_fine_tuning(
    network: tvm.IRModule, validate: Any, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def trial(task: jobs.Task, recipe: Recipe) -> dict[str, Any]:
        devices.append(task.device)
        return fakes.trial(task, recipe)

    monkeypatch.setattr(jobs, "trial", trial)
    options: dict[str, Any] = {"validate": validate, "executor": Here(), "progress": False}
    budget = Budget(weight_bytes=1_000_000)
    tc.compress(network, budget=budget, device="cuda", **options)
    search(network, budget, device="cuda:1", **options)
    search(network, budget, **options)
    assert devices == ["cuda", "cuda:1", "cpu"]
    monkeypatch.undo()
    compressed: list[str] = []

    def compress(mod: tvm.IRModule, recipe: Recipe, *, device: str, **_: Any) -> tvm.IRModule:
        compressed.append(device)
        return mod

    monkeypatch.setattr("tvm_compress.pipeline.compress", compress)
    task = jobs.Task(text(network), budget, 1, validate, device="cuda:1")
    jobs.trial(task, Recipe())
    assert compressed == ["cuda:1"]


def test_the_costs_of_the_layers_add_up_to_those_of_the_firmware(
    network: tvm.IRModule, task: jobs.Task, names: list[str], validate: Any
) -> None:
    budget = Budget(flash_bytes=1, instructions=1)
    task = jobs.Task(task.network, budget, 1, (validate[0][:1], validate[1][:1]))
    alike = jobs.one_shot(dict.fromkeys(names, 0.7), dict.fromkeys(names, 3))
    small = tc.compress(network, alike, progress=False)
    firmware = tc.build(small, target="c", board="cortex-m4")
    profile = firmware.profile(validate[0][:1])
    ((by_layer,),) = [jobs.layer_instructions(task, [0.3], 3)["instructions"]]
    assert sum(by_layer) == profile.instructions - profile.layers[0].instructions
    assert profile.layers[0].name == "dispatch" and min(by_layer) > 0
    scans = [jobs.layer_scan(task, name, [0.3], [3]) for name in names]
    packed = sum(scan["flash_bytes"][0][0] for scan in scans)
    assert packed == pytest.approx(firmware.size.flash["weights"], rel=0.03)
    assert all("weight_bytes" not in scan for scan in scans)
    assert jobs.total_costs(task, alike) == {
        "flash_bytes": firmware.size.flash_bytes,
        "instructions": profile.instructions,
    }


def test_a_board_that_is_too_small(
    task: jobs.Task, names: list[str], validate: Any, tmp_path: Path
) -> None:
    from tvm_compress.targets.mcu.boards import get_board  # noqa: F401  (the path below is its)

    board = Path(tc.__file__).parent / "targets" / "mcu" / "boards" / "cortex-m4.toml"
    lines = board.read_text().replace("0x00400000", "0x00001000", 1)
    (tmp_path / "tiny.toml").write_text(lines)
    budget = Budget(flash_bytes=1, board=str(tmp_path / "tiny.toml"))
    small = jobs.Task(task.network, budget, 1, validate)
    recipe = jobs.one_shot(dict.fromkeys(names, 0.5), dict.fromkeys(names, 4))
    assert jobs.total_costs(small, recipe) == {"flash_bytes": None}


def test_networks_are_judged_without_torch(
    network: tvm.IRModule, task: jobs.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_torch = jobs._outputs(network, task.validate[0][:20])
    monkeypatch.setattr(jobs, "find_spec", lambda name: None)
    without = jobs._outputs(network, task.validate[0][:20])
    np.testing.assert_allclose(without, with_torch, atol=1e-4)
    few = jobs.Task(task.network, task.budget, 1, (task.validate[0][:20], task.validate[1][:20]))
    assert jobs.accuracy(few) == {"accuracy": 1.0}


def test_a_softmax_at_the_end_changes_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 10)) * 4
    e = np.exp(logits)
    softmax = e / e.sum(1, keepdims=True)
    np.testing.assert_allclose(
        jobs._log_probabilities(softmax), jobs._log_probabilities(logits), atol=1e-12
    )


def test_inputs_by_name(
    network: tvm.IRModule, validate: Any, task: jobs.Task, fakes: Fakes
) -> None:
    from tvm_compress.tensors import input_specs

    x, y = validate
    named = {input_specs(network)[0].name: x}
    by_name = jobs.Task(task.network, task.budget, 1, (named, y))
    np.testing.assert_array_equal(jobs._outputs(network, named), jobs._outputs(network, x))
    assert jobs._judged(by_name, network) == {"accuracy": 1.0}
    seen: list[Any] = []
    fakes.layer_scan = lambda task, *rest: (
        seen.append(task.validate)
        or Fakes().layer_scan(  # type: ignore[func-returns-value]
            task, *rest
        )
    )
    jobs.layer_scan = fakes.layer_scan  # put back by the fixture
    x, y = np.concatenate([x] * 8), np.concatenate([y] * 8)
    search(network, Budget(0.9), validate=({"image": x}, y), trials=1, **QUICK)
    (few,), labels = seen[0][0].values(), seen[0][1]
    assert len(few) == len(labels) == 512
    places = np.linspace(0, 799, 512).astype(int)
    np.testing.assert_array_equal(few, x[places])
    np.testing.assert_array_equal(labels, y[places])


# ---- bad input -----------------------------------------------------------------------------------


def test_a_budget_without_limits() -> None:
    with pytest.raises(OptionError) as caught:
        Budget()
    assert str(caught.value) == (
        "The budget has no limit; expected at least one of max_accuracy_drop, weight_bytes, "
        "flash_bytes, instructions."
    )


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan"), "x", True, [0.1]])
def test_a_drop_out_of_range(drop: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Budget(max_accuracy_drop=drop)
    assert str(caught.value) == (
        f"The budget's max_accuracy_drop is {drop!r}; expected a number from 0 to 1, such as 0.005 "
        "for half a point."
    )


@pytest.mark.parametrize("name", ["weight_bytes", "flash_bytes", "instructions"])
@pytest.mark.parametrize("limit", [0, -3, 9000.0, float("nan"), float("inf"), True, "a"])
def test_a_limit_out_of_range(name: str, limit: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Budget(**{name: limit})
    assert str(caught.value) == (
        f"The budget's {name} is {limit!r}; expected a whole number from 1 on."
    )


def test_a_budget_takes_numbers_of_numpy(
    network: tvm.IRModule, validate: Any, fakes: Fakes, tmp_path: Path
) -> None:
    budget = Budget(np.float32(0.5), np.int64(9000))  # type: ignore[arg-type]
    assert budget == Budget(0.5, 9000)
    options: dict[str, Any] = {"validate": validate, "trial_log": tmp_path, "progress": False}
    numpys = {"trials": np.int64(1), "threads": np.int64(1), "densities": np.array([0.5, 0.2])}
    search(network, budget, **options, **numpys, bits=np.array([4, 2]))
    again = Recording()
    search(network, budget, executor=again, trials=1, **{**QUICK, **options})
    assert again.names == []


def test_a_profile_that_is_unknown() -> None:
    with pytest.raises(OptionError) as caught:
        Budget(weight_bytes=1, profile="zip")
    assert str(caught.value) == "There is no profile 'zip'; expected archive or flash."


@pytest.mark.parametrize("limits", [{"weight_bytes": 9000}, {"max_accuracy_drop": 0.1}])
def test_a_board_without_a_limit_for_it(limits: dict[str, Any]) -> None:
    assert Budget(**limits).board is None
    with pytest.raises(OptionError) as caught:
        Budget(**limits, board="mps2-an386")
    assert str(caught.value) == (
        "The budget names the board mps2-an386 and limits neither flash_bytes nor instructions; "
        "expected one of them with it: limit it, or leave the board out."
    )


@pytest.mark.parametrize("name", ["flash_bytes", "instructions"])
def test_an_unknown_board_is_met_before_any_job(
    name: str, network: tvm.IRModule, validate: Any, tmp_path: Path
) -> None:
    assert Budget(**{name: 9000}) == Budget(**{name: 9000}, board="cortex-m4")
    executor, log = Recording(), tmp_path / "log"
    budget = Budget(**{name: 9000}, board="nope")
    with pytest.raises(OptionError, match=r"^The board 'nope' is not known"):
        search(network, budget, validate=validate, executor=executor, trial_log=log, **QUICK)
    assert executor.names == [] and not log.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "search: trials is 0; expected a whole number from 1 on."),
        ({"trials": 1.5}, "search: trials is 1.5; expected a whole number from 1 on."),
        ({"trials": True}, "search: trials is True; expected a whole number from 1 on."),
        ({"threads": 0}, "search: threads is 0; expected a whole number from 1 on."),
        ({"threads": "2"}, "search: threads is '2'; expected a whole number from 1 on."),
        *(
            (
                {"densities": wrong},
                f"search: the densities are {told}; expected a list of numbers above 0, up to 1.",
            )
            for wrong, told in (
                ((0.5, 0.0), "[0.5, 0.0]"),
                ((), "[]"),
                (0.5, "0.5"),
                (["a"], "['a']"),
                ([float("nan")], "[nan]"),
                ([True], "[True]"),
            )
        ),
        *(
            (
                {"bits": wrong},
                f"search: the bits are {told}; expected a list of whole numbers from 1 to 8.",
            )
            for wrong, told in (
                ((9, 4), "[9, 4]"),
                ((), "[]"),
                (4, "4"),
                ("48", "'48'"),
                ([4.0], "[4.0]"),
                ([True], "[True]"),
            )
        ),
        (
            {"validate": None},
            "A budget was given and no validation data; expected validate=(x, y): the accuracy of "
            "every trial is measured on it.",
        ),
        (
            {"recipe": deep_compression},
            "The recipe fine-tunes, and no training data was given; expected train=(x, y): give "
            "data, or make a recipe with epochs=0.",
        ),
        (
            {"augment": 3},
            "augment is a int; expected a function of the inputs of a batch and a "
            "numpy.random.Generator that gives the changed inputs.",
        ),
        (
            {"device": "tpu"},
            "The device is 'tpu'; expected cpu, cuda, or cuda with a number, such as cuda:1.",
        ),
    ],
)
def test_search_refuses(
    options: dict[str, Any], message: str, network: tvm.IRModule, validate: Any
) -> None:
    with pytest.raises(OptionError) as caught:
        search(network, Budget(0.01), **{"validate": validate, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: x,
            "The validation data is a ndarray; expected a pair (x, y) of samples and their class "
            "numbers.",
        ),
        (
            lambda x, y: (x, None),
            "The validation data is a tuple; expected a pair (x, y) of samples and their class "
            "numbers.",
        ),
        (
            lambda x, y: (x, y.astype(np.float32)),
            "The labels of the validation data are 100 of float32; expected integers, the class of "
            "each sample, for networks are judged by accuracy.",
        ),
        (
            lambda x, y: (x[:0], y[:0]),
            "The labels of the validation data are 0 of int64; expected integers, the class of "
            "each sample, for networks are judged by accuracy.",
        ),
        (
            lambda x, y: (x, y[:9]),
            "The labels of the validation data have the shape (9,); expected (100,): one for each "
            "of the 100 samples.",
        ),
        (
            lambda x, y: (x, y + 1),
            "The labels of the validation data go from 1 to 10; expected 0 to 9, for the network "
            "has 10 classes.",
        ),
    ],
)
def test_search_refuses_validation_data(
    change: Callable[..., Any], message: str, network: tvm.IRModule, validate: Any
) -> None:
    with pytest.raises(DataError) as caught:
        search(network, Budget(0.01), validate=change(*validate))
    assert str(caught.value) == message


def test_labels_of_places() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = relax.const(np.eye(5, 3, dtype=np.float32))
            out = builder.emit_output(relax.op.matmul(x, weight))
        builder.emit_func_output(out)
    mod = tc.load(builder.get())
    samples = np.zeros((2, 4, 5), np.float32)
    jobs.check_labels(mod, (samples, np.zeros((2, 4), np.int64)))
    with pytest.raises(DataError, match=r"the shape \(2,\); expected \(2, 4\): one for each"):
        jobs.check_labels(mod, (samples, np.zeros(2, np.int64)))


def test_a_network_that_is_compressed_already(network: tvm.IRModule, validate: Any) -> None:
    shared = ShareWeights(4, layers={"fc2*": 3, "*": 0}).apply(network)
    with pytest.raises(PassError) as caught:
        search(shared, Budget(0.01), validate=validate)
    assert str(caught.value) == (
        "search: the weight fc2_weight is shared already; expected float32: search from the "
        "uncompressed network."
    )


def test_a_network_without_weights(validate: Any) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 10), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(x))
        builder.emit_func_output(out)
    labels = validate[1][:3]
    with pytest.raises(PassError) as caught:
        search(
            tc.load(builder.get()),
            Budget(0.01),
            validate=(np.zeros((3, 10), np.float32), labels),
        )
    assert str(caught.value) == (
        "search: the network has no weights; expected one with convolutions or products with "
        "constants, as load() gives it."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "Neither a recipe nor a budget was given; expected one of them: compress(mod, recipe), "
            "or compress(mod, budget=Budget(...), validate=(x, y)).",
        ),
        (
            {"recipe": Recipe(), "budget": Budget(0.01)},
            "A recipe and a budget were given; expected one of them: compress(mod, recipe), or "
            "compress(mod, budget=Budget(...), validate=(x, y)).",
        ),
        (
            {"recipe": Recipe(), "trial_log": "log"},
            "trial_log was given with a recipe; expected it with a budget alone: leave it out.",
        ),
        (
            {"recipe": Recipe(), "executor": Here()},
            "executor was given with a recipe; expected it with a budget alone: leave it out.",
        ),
        (
            {"recipe": Recipe(), "validate": (1, 2)},
            "validate was given with a recipe; expected it with a budget alone: leave it out.",
        ),
        (
            {"budget": Budget(0.01), "checkpoint_dir": "here"},
            "checkpoint_dir was given with a budget; expected it with a recipe alone: leave it "
            "out.",
        ),
        (
            {"budget": Budget(0.01)},
            "A budget was given and no validation data; expected validate=(x, y): the accuracy of "
            "every trial is measured on it.",
        ),
    ],
)
def test_compress_takes_a_recipe_or_a_budget(
    options: dict[str, Any], message: str, network: tvm.IRModule
) -> None:
    with pytest.raises(OptionError) as caught:
        tc.compress(network, **options)
    assert str(caught.value) == message
