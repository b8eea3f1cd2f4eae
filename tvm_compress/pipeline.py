"""What happens to a model when it is compressed: one step of the recipe after the other.

    load -> step 1 -> step 2 -> ... -> save

Every step takes a canonical module and gives one, so the module between two steps can be saved, and
a run that was killed goes on behind the last step that it finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tvm
from numpy.typing import NDArray

import tvm_compress
from tvm_compress import ir
from tvm_compress.errors import DataError, ModelFormatError, OptionError
from tvm_compress.files import check_output, write_whole
from tvm_compress.passes import Equalize, InputsPass, Quantize
from tvm_compress.quantization import Ranges
from tvm_compress.recipe import Finetune, Recipe
from tvm_compress.tensors import check_samples, input_specs
from tvm_compress.training.augmentation import (
    Augment,
    check_augment,
    check_named,
    function_name,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tvm_compress.recipe import Step
    from tvm_compress.search import Budget

__all__ = [
    "Inputs",
    "TrainingData",
    "check_data",
    "check_device",
    "check_profile",
    "compress",
    "data_hash",
    "quantize",
    "save",
    "say",
]

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
TrainingData = tuple[Inputs, NDArray[Any] | None]


def compress(
    mod: tvm.IRModule,
    recipe: Recipe | None = None,
    *,
    train: TrainingData | None = None,
    calibrate: Inputs | None = None,
    augment: Augment | None = None,
    budget: Budget | None = None,
    validate: TrainingData | None = None,
    executor: Executor | None = None,
    trial_log: str | PathLike[str] | None = None,
    device: str = "cpu",
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> tvm.IRModule:
    """Compress a network: run the steps of a recipe in order, or search what meets a budget.

    Args:
        mod: a canonical module, as :func:`tvm_compress.load` gives it; it stays as it is.
        recipe: the steps, see :mod:`tvm_compress.recipes`.
        train: ``(x, y)``: samples, an array (N, ...) or arrays by input name, and N labels or
            targets. Needed where the recipe fine-tunes; y may be None where all of that is
            distillation.
        calibrate: samples without labels, some hundred, for ``reconstruct``, ``quantize`` and
            ``reduce-rate``; without it the samples of ``train``. ``reduce-rate`` does without
            either, too.
        augment: changes each batch of a fine-tuning, such as by random shifts: a function of the
            batch's inputs and a ``numpy.random.Generator`` that gives inputs of the same shape and
            dtype, see :func:`tvm_compress.training.finetune`. Checkpoints know it by its name. The
            teacher of a distillation sees the changed inputs too.
        budget: limits, in place of a recipe: then this is ``search(...).module``, see
            :func:`tvm_compress.search`, which gives the Pareto front too and takes more options.
        validate: samples and labels by which a search judges networks.
        executor: where a search runs its jobs.
        trial_log: a folder that keeps the results of a search, so that it can go on.
        device: where networks are fine-tuned: ``cpu``, or ``cuda`` for a GPU that torch finds.
        checkpoint_dir: a folder, made if missing, that keeps the module behind every step. The same
            call on the same folder goes on where the last one stopped; a changed recipe goes on
            behind the last step that is still the same.
        progress: whether to say on stderr which step runs.

    Returns:
        The compressed module.

    Raises:
        OptionError: neither a recipe nor a budget, or both, or an argument that belongs to the
            other; a recipe that fine-tunes without ``train``, or one that needs samples without
            any; ``augment`` is no function, or has no name of its own where
            ``checkpoint_dir`` or ``trial_log`` is given; ``checkpoint_dir`` is a file; torch does
            not find the device.
        BudgetError: no network that was tried meets the budget.
        DataError: ``train`` is not a pair, ``calibrate`` does not fit the network, or what
            ``augment`` gives does not fit.
        PassError: a pass meets a module that it cannot rewrite.
        UnsupportedError: the network has no inputs.
        MissingToolError: fine-tuning, or another device than ``cpu``, without torch.
    """
    input_specs(mod)
    of_budget = {"validate": validate, "executor": executor, "trial_log": trial_log}
    of_recipe = {"checkpoint_dir": checkpoint_dir}
    _check_way(recipe, budget, of_recipe, of_budget)
    if checkpoint_dir is not None:
        check_named(augment)
    if budget is not None:
        from tvm_compress.search import search

        found = search(
            mod,
            budget,
            validate=validate,
            train=train,
            calibrate=calibrate,
            augment=augment,
            executor=executor,
            trial_log=trial_log,
            device=device,
            progress=progress,
        )
        return found.module
    assert recipe is not None, "one of both is given"
    check_data(recipe, train, calibrate, augment, mod=mod)
    check_device(device)
    if calibrate is None and train is not None:
        calibrate = train[0]
    data = _Data(mod, train, calibrate, augment, device)
    saved = _Checkpoints(checkpoint_dir, mod, recipe, data) if checkpoint_dir is not None else None
    first, mod = saved.last(mod) if saved else (0, mod)
    for number, step in list(enumerate(recipe.steps))[first:]:
        if progress:
            say(f"[{number + 1}/{len(recipe.steps)}] {step.name}")
        mod = _apply(step, mod, data, saved.unfinished(number) if saved else None, progress)
        if saved:
            saved.keep(number, mod)
    return mod


def quantize(
    mod: tvm.IRModule,
    calibrate: Inputs,
    *,
    ranges: Ranges = "mse",
    percentile: float = 99.99,
    weights: Literal["max", "mse"] = "max",
    bias_correction: bool = True,
    equalize: bool = False,
    io: Literal["int8", "float"] = "int8",
    input_ranges: Mapping[str, Sequence[float]] | None = None,
    layers: Mapping[str, int] | None = None,
) -> tvm.IRModule:
    """Quantise a network to int8 by samples without labels; nothing is trained.

    Args:
        mod: a canonical float32 module, pruned and shared or not.
        calibrate: some hundred samples: an array (N, ...) or arrays by input name, float32.
        ranges: of activations: ``mse``, ``min-max`` or ``percentile``.
        percentile: of ``percentile``: percent of the values below the range's end.
        weights: ``max`` clips no weight, ``mse`` has the least squared error.
        bias_correction: take the mean error of each channel off its bias, layer after layer.
        equalize: equalise the weights of layers that follow each other first.
        io: whether the network takes and gives integers (``int8``) or ``float``;
            :mod:`tvm_compress.qdq` tells the scales.
        input_ranges: (low, high) by the input's name, where it is known.
        layers: bits by pattern of a weight's or an operator's name: 0 leaves it in float.

    Returns:
        The module in the QDQ form: every tensor passes through a quantize and a dequantize. What
        the options mean is told by :class:`tvm_compress.passes.Quantize` and
        :class:`tvm_compress.passes.Equalize`.

    Raises:
        OptionError: an option outside its range, or a name or pattern that fits nothing.
        DataError: no samples, wrong ones, an input that never varies, or values that are not
            finite or not in the given range.
        PassError: the module is quantised already, or has weights of another dtype than float32.
    """
    if equalize:
        mod = Equalize().apply(mod)
    step = Quantize(
        ranges=ranges,
        percentile=percentile,
        weights=weights,
        bias_correction=bias_correction,
        io=io,
        input_ranges={name: list(pair) for name, pair in (input_ranges or {}).items()},
        layers=layers or {},
    )
    return step.rewritten(mod, calibrate)


def save(mod: tvm.IRModule, path: str | PathLike[str], *, profile: str = "archive") -> None:
    """Save a module, whole or not at all; :func:`tvm_compress.load` reads it.

    A name that ends in ``.tcz`` asks for the coded file, any other for Relax JSON.

    Args:
        mod: a canonical module.
        path: the file.
        profile: of a ``.tcz`` file: ``archive`` for the smallest, ``flash`` for one that a device
            decodes (``codec/decoder.c``).

    Raises:
        PassError: ``mod`` is not a module with a function main.
        OptionError: the path is a folder, or its folder does not exist; an unknown profile, or one
            for JSON.
        UnsupportedError: the module holds something that a ``.tcz`` file cannot.
    """
    from tvm_compress import codec

    ir.main_function(mod)
    path = Path(path)
    check_profile(profile, path)
    if path.suffix == ".tcz":
        check_output(path)
        data = codec.pack(mod, profile)
    else:
        data = tvm.ir.save_json(mod).encode()
    write_whole(path, lambda stream: stream.write(data))


def check_profile(profile: str, path: Path) -> None:
    """Check, before long work, that a file of this name can have the profile.

    Raises:
        OptionError: an unknown profile, or ``flash`` for a name that does not end in ``.tcz``.
    """
    from tvm_compress import codec

    if codec.check_profile(profile) != "archive" and path.suffix != ".tcz":
        raise OptionError(
            f"The profile {profile} was asked for {path.name}, which will be "
            f"{'ONNX' if path.suffix == '.onnx' else 'JSON'}; expected a name that ends in .tcz."
        )


@dataclass(frozen=True)
class _Data:
    """What the steps may look at; ``dense`` is the network before the first step."""

    dense: tvm.IRModule
    train: TrainingData | None
    calibrate: Inputs | None
    augment: Augment | None
    device: str = "cpu"

    def of(self, step: Step) -> tuple[Inputs | None, ...]:
        """Give the arrays that a step reads, for the name of its checkpoint."""
        if isinstance(step, InputsPass):
            return (self.calibrate,)
        return self.train if isinstance(step, Finetune) and self.train is not None else ()

    def targets(self, step: Finetune) -> TrainingData:
        """Give samples and targets of a fine-tuning."""
        assert self.train is not None, "compress() asks for data before the first step"
        if step.loss != "distillation":
            return self.train
        from tvm_compress.training import teacher_outputs

        return self.train[0], teacher_outputs(self.dense, self.train[0], device=self.device)


def _apply(
    step: Step,
    mod: tvm.IRModule,
    data: _Data,
    checkpoint: Path | None,
    progress: bool,
) -> tvm.IRModule:
    if isinstance(step, InputsPass):
        return step.rewritten(mod, data.calibrate)
    if not isinstance(step, Finetune):
        # Not step(mod): on the way through TVM's pass runner Ctrl-C would become a RuntimeError.
        return step.apply(mod)
    if step.epochs == 0:
        return mod
    from tvm_compress.training import finetune

    # What the teacher says of the inputs as they are is wrong for changed ones.
    changed = step.loss == "distillation" and data.augment is not None
    return finetune(
        mod,
        data.targets(step),
        epochs=step.epochs,
        lr=step.lr,
        batch_size=step.batch_size,
        optimizer=step.optimizer,
        loss=step.loss,
        seed=step.seed,
        weight_decay=step.weight_decay,
        schedule=step.schedule,
        augment=data.augment,
        teacher=data.dense if changed else None,
        device=data.device,
        checkpoint=checkpoint,
        progress=progress,
    )


def _check_way(
    recipe: Recipe | None,
    budget: Budget | None,
    of_recipe: Mapping[str, object],
    of_budget: Mapping[str, object],
) -> None:
    """Check that there is one of recipe and budget, and nothing that belongs to the other."""
    if (recipe is None) == (budget is None):
        what = "A recipe and a budget were" if recipe else "Neither a recipe nor a budget was"
        raise OptionError(
            f"{what} given; expected one of them: compress(mod, recipe), or compress(mod, "
            "budget=Budget(...), validate=(x, y))."
        )
    way, others = ("budget", of_recipe) if recipe is None else ("recipe", of_budget)
    for name, value in others.items():
        if value is not None:
            other = "recipe" if recipe is None else "budget"
            raise OptionError(
                f"{name} was given with a {way}; expected it with a {other} alone: leave it out."
            )


def check_data(
    recipe: Recipe,
    train: TrainingData | None,
    calibrate: Inputs | None,
    augment: Augment | None = None,
    *,
    mod: tvm.IRModule | None = None,
) -> None:
    """Check that there is what a recipe needs; see :func:`compress`.

    Raises:
        OptionError: data is missing, or ``augment`` is no function.
        DataError: ``train`` is not a pair, or ``calibrate`` does not fit the inputs of ``mod``.
    """
    _check_train(recipe, train)
    if augment is not None:
        check_augment(augment)
    if calibrate is None and train is None and recipe.needs_inputs:
        raise OptionError(
            "A step of the recipe needs samples, and none were given; expected calibrate=x: give "
            "some hundred inputs without labels."
        )
    if calibrate is not None and mod is not None:
        check_samples(input_specs(mod), calibrate)


def check_device(device: str) -> None:
    """Check it before the first step, which may take long, and where no step trains, too."""
    if device == "cpu":
        return  # needs no torch
    from tvm_compress.training import TorchModule  # noqa: F401 (says what to do without torch)
    from tvm_compress.training.device import find_device

    find_device(device)


def _check_train(recipe: Recipe, train: TrainingData | None) -> None:
    if train is None and recipe.needs_training_data:
        raise OptionError(
            "The recipe fine-tunes, and no training data was given; expected train=(x, y): give "
            "data, or make a recipe with epochs=0."
        )
    if train is not None and not (isinstance(train, tuple) and len(train) == 2):
        raise DataError(
            f"The training data is a {type(train).__name__}; expected a pair (x, y) of samples and "
            "labels."
        )
    if train is not None and train[1] is None and recipe.needs_labels:
        raise OptionError(
            "The recipe fine-tunes by labels, and the training data is (x, None); expected labels "
            "or targets: give (x, y), or fine-tune with the loss distillation."
        )


def say(line: str) -> None:
    """Print a line on stderr."""
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False).print(line)


class _Checkpoints:
    """The modules behind the finished steps, in files whose names say what they come from.

    A name holds a hash over the first module, all steps up to its own and, behind a fine-tuning,
    the data and the name of ``augment``. So files of other runs may lie beside ours, and none is
    ever taken for ours.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        mod: tvm.IRModule,
        recipe: Recipe,
        data: _Data,
    ) -> None:
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise OptionError(f"The checkpoint folder {self._folder} is a file; choose another.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: list[Path] = []
        # A new version may cluster or train otherwise.
        digest = hashlib.sha256(tvm_compress.__version__.encode())
        digest.update(tvm.ir.save_json(mod).encode())
        for number, (step, plain) in enumerate(
            zip(recipe.steps, recipe.model_dump()["steps"], strict=True), 1
        ):
            digest.update(json.dumps(plain).encode())
            digest.update(data_hash(data.of(step)))
            if isinstance(step, Finetune) and data.augment is not None:
                digest.update(function_name(data.augment).encode())
            name = f"{number:02}-{step.name}-{digest.hexdigest()[:16]}.json"
            self._files.append(self._folder / name)

    def last(self, mod: tvm.IRModule) -> tuple[int, tvm.IRModule]:
        """Give the number of finished steps and the module behind them."""
        for number in range(len(self._files), 0, -1):
            path = self._files[number - 1]
            if path.exists():
                try:
                    return number, tvm.ir.load_json(path.read_text(encoding="utf-8"))
                except Exception as error:
                    raise ModelFormatError(
                        f"The checkpoint {path} cannot be read; expected a saved module: delete "
                        "the file and run again."
                    ) from error
        return 0, mod

    def unfinished(self, number: int) -> Path:
        """Give the path of the checkpoint that a fine-tuning writes while it runs."""
        return self._files[number].with_suffix(".training")

    def keep(self, number: int, mod: tvm.IRModule) -> None:
        """Save the module behind a finished step."""
        save(mod, self._files[number])
        self.unfinished(number).unlink(missing_ok=True)


def data_hash(arrays: tuple[Inputs | None, ...]) -> bytes:
    """Give a digest of samples and labels: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for given in arrays:
        samples = sorted(given.items()) if isinstance(given, Mapping) else [("", given)]
        for name, array in samples:
            array = np.ascontiguousarray(array)
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes() if array.dtype != object else b"None")
    return digest.digest() if arrays else b""
