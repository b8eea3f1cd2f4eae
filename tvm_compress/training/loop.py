"""``finetune``: train a compressed network further without losing what was compressed.

Weights that are zero stay zero, codes of shared weights stay as they are, and the gradient of a
centroid is the sum over its weights. Source: Deep Compression (arXiv 1510.00149), sections 2 and
3.3; Han et al., Learning both Weights and Connections (arXiv 1506.02626), section 3.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor

from tvm_compress import ir, qdq
from tvm_compress.errors import OptionError, UnsupportedError
from tvm_compress.tensors import input_specs, output_specs
from tvm_compress.training import checkpoint as checkpoints
from tvm_compress.training.augmentation import (
    Augment,
    augmented,
    check_augment,
    check_named,
    function_name,
)
from tvm_compress.training.device import find_device, moved
from tvm_compress.training.interpreter import TorchModule
from tvm_compress.training.samples import Samples, check_labels, check_samples, check_targets

__all__ = ["TrainingStep", "finetune"]

Loss = Literal["cross_entropy", "mse", "distillation"] | Callable[[Any, Any], Tensor]

Schedule = Literal["constant", "cosine"]

# Between the ends of epochs a checkpoint is at most this old.
_CHECKPOINT_SECONDS = 30.0


def cosine_rate(lr: float, part: float) -> float:
    """Give the learning rate when a part (0..1) of a training is done: half a cosine, ``lr`` to 0.

    Source: Loshchilov, Hutter, SGDR (arXiv 1608.03983), equation 5, without restarts.

    >>> [round(cosine_rate(1e-3, t / 4), 6) for t in range(5)]
    [0.001, 0.000854, 0.0005, 0.000146, 0.0]
    """
    return lr * (1 + math.cos(math.pi * part)) / 2


@dataclass(frozen=True)
class TrainingStep:
    """A step that was just done: epoch and step count from 1.

    ``validation_loss`` and ``validation_accuracy`` (0..1, of cross_entropy alone) are given at the
    last step of an epoch where there is validation data.
    """

    epoch: int
    step: int
    loss: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class _Options:
    """What decides a run beside the network and the data; its text is in the checkpoint."""

    epochs: int
    lr: float
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    loss: str
    seed: int
    schedule: str
    augment: str | None
    teacher: str | None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not (whole and least <= value < 2**63):
                raise OptionError(
                    f"finetune: {name} is {value!r}; expected a whole number from {least} on, "
                    "below 2**63."
                )
        if not (0 < self.lr < math.inf):
            raise OptionError(
                f"finetune: the learning rate lr is {self.lr}; expected a number above 0, such as "
                "0.001."
            )
        if not 0 <= self.momentum < 1:
            raise OptionError(
                f"finetune: the momentum is {self.momentum}; expected a number from 0 to below 1."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise OptionError(
                f"finetune: the weight_decay is {self.weight_decay}; expected a number of at least "
                "0."
            )
        if self.optimizer not in ("adam", "sgd"):
            raise OptionError(
                f"finetune: the optimizer is {self.optimizer!r}; expected adam or sgd."
            )
        if self.schedule not in ("constant", "cosine"):
            raise OptionError(
                f"finetune: the schedule is {self.schedule!r}; expected constant or cosine."
            )

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def rate(self, part: float) -> float:
        """Give the learning rate when a part (0..1) of the training is done.

        Of the position alone, so a resumed run needs no state of a schedule.
        """
        return self.lr if self.schedule == "constant" else cosine_rate(self.lr, part)


def finetune(
    mod: tvm.IRModule,
    data: Any,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    batch_size: int = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
    loss: Loss = "cross_entropy",
    seed: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: Schedule = "constant",
    augment: Augment | None = None,
    teacher: tvm.IRModule | None = None,
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    validation: Any = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> tvm.IRModule:
    """Train the floating parameters of a network, with zeros and codes held.

    The same arguments give the same bytes (on one machine, with one release of torch). A run that
    was interrupted and is called again with the same arguments and ``checkpoint`` goes on from
    there, and ends with the bytes of an uninterrupted run.

    A network in the QDQ form is trained through its roundings (straight-through estimators): its
    weights stay integers of the same scales, and its integer inputs and outputs count as the real
    numbers that they stand for, so ``x`` may be float32 or the integers, and targets are real.

    Args:
        mod: a module as :func:`tvm_compress.load` and the passes give it.
        data: ``(x, y)``. ``x``: an array (N, *input shape) of the input's dtype, where the input's
            batch axis of 1 may be left out; a dict of arrays by input name for several inputs.
            ``y``: for ``cross_entropy`` integer labels (N,), or (N, *places) where the output has
            further axes before its classes; for ``mse`` floats of the output's shape; for
            ``distillation`` what :func:`tvm_compress.training.teacher_outputs` gives; for a
            function what it takes, one array or a dict of arrays of N rows.
        epochs: how often each sample is seen; 0 changes nothing.
        lr: learning rate.
        batch_size: samples a step; the last batch of an epoch may be smaller.
        optimizer: ``adam``, or ``sgd`` with ``momentum``.
        loss: ``cross_entropy`` (of the softmax's input where the network ends in a softmax, else
            the output is taken as logits), ``mse``, ``distillation`` (the divergence from the
            classes' probabilities that the targets say, without labels), or a function of the
            output (samples, *shape of the IR; a tuple for several outputs) and the targets of a
            batch (a tensor, or a dict of them) that gives a scalar tensor.
        seed: of the order of the samples, and of torch's random numbers in a loss.
        momentum: of ``sgd``, from 0 to below 1.
        weight_decay: of ``adam`` decoupled from the gradient, as AdamW has it: each step also
            takes the share ``learning rate * weight_decay`` off every parameter (Loshchilov,
            Hutter, arXiv 1711.05101); of ``sgd`` this factor of the parameters is added to their
            gradients. The parameters are biases and centroids too.
        schedule: of the learning rate: ``constant``, or ``cosine``, from ``lr`` down to 0 over
            all steps (see :func:`cosine_rate`).
        augment: a function of the inputs of a batch and a ``numpy.random.Generator`` that gives
            the inputs to train on: shifted, flipped, with noise. Inputs are one array (samples,
            *shape as in ``x``) for a network of one input, else a dict by input name; they are
            copies that may be written into, and come back with the same shapes and dtypes. The
            generator is that of the seed and the step, so a resumed run sees the same. Targets
            stay, those of ``distillation`` too where no ``teacher`` is given, and so does
            validation data. A checkpoint knows the function by its name and, of a
            ``functools.partial``, by what it holds.
        teacher: of ``distillation`` with ``augment``: the network whose outputs for the changed
            inputs are the targets of a batch, in place of those in ``data``.
        device: where torch computes: ``cpu``, or ``cuda`` for a GPU that torch finds. On a GPU
            sums have no fixed order, so equal arguments give nearly equal numbers; a checkpoint
            may go on on another device.
        checkpoint: a file that is written after every epoch, every 30 seconds and at Ctrl-C; it is
            kept when the run is done.
        progress: show a progress bar on stderr.
        validation: data as ``data``, judged after every epoch; it changes nothing.
        on_step: called after every step. A KeyboardInterrupt that it raises stops the run as
            Ctrl-C does.

    Returns:
        A new module of the same structure.

    Raises:
        DataError: data of a wrong name, shape, dtype or length, values that are not finite, labels
            out of range; inputs from ``augment`` that are not like those it got; a checkpoint that
            is damaged or of another run.
        OptionError: an option outside its range; a device that torch does not find; a ``teacher``
            for another loss; an ``augment`` without a name of its own with a checkpoint; the loss
            became NaN or infinite.
        UnsupportedError: an operator without a torch meaning, a network without floating
            parameters, half-precision parameters, or outputs that the loss does not fit.
        KeyboardInterrupt: Ctrl-C, once the step under way is done and the checkpoint is complete.
    """
    if augment is not None:
        check_augment(augment)
        if checkpoint is not None:
            check_named(augment)
    if teacher is not None and loss != "distillation":
        raise OptionError(
            f"finetune: a teacher was given for the loss {_loss_name(loss)}; expected the loss "
            "distillation: leave the teacher out."
        )
    options = _Options(
        epochs,
        lr,
        batch_size,
        optimizer,
        momentum,
        weight_decay,
        _loss_name(loss),
        seed,
        schedule,
        None if augment is None else function_name(augment),
        None if teacher is None else checkpoints.network_digest(teacher),
    )
    place = find_device(device)
    path = None if checkpoint is None else checkpoints.check_path(checkpoint)
    # What takes and gives integers is trained on the real numbers that they stand for.
    real = qdq.with_reals(mod)
    net = TorchModule(real, before_softmax=loss in ("cross_entropy", "distillation")).to(place)
    objective = _Objective(real, net, loss)
    samples = objective.check("training data", _real(mod, data), real)
    judged = None
    if validation is not None:
        judged = objective.check("validation data", _real(mod, validation), real)
    trained = _trained(net)
    teaching = None
    if teacher is not None:
        teaching = TorchModule(qdq.with_reals(teacher), before_softmax=True).to(place)
    fingerprint = None
    if path is not None:
        fingerprint = checkpoints.Fingerprint(
            checkpoints.network_digest(mod),
            checkpoints.data_digest(samples.arrays()),
            str(options).removeprefix("_Options"),
        )
    with _deterministic(options.seed, place), _stop_request() as stopping:
        run = _Run(
            net,
            objective,
            samples,
            augment,
            teaching,
            judged,
            options,
            options.make_optimizer(trained),
        )
        if path is not None and fingerprint is not None:
            run.resume(path, fingerprint)
        with _bar(run) if progress else nullcontext() as show:
            run.train(stopping, [f for f in (show, on_step) if f is not None])
    return ir.replace_parameters(mod, net.parameters_of_ir())


def _real(mod: tvm.IRModule, data: Any) -> Any:
    """Turn integer samples of a quantised network into what they stand for."""
    if not (isinstance(data, tuple) and len(data) == 2) or not qdq.input_parameters(mod):
        return data
    return qdq.real_inputs(mod, data[0]), data[1]


def _loss_name(loss: Loss) -> str:
    if callable(loss):
        return function_name(loss)
    if loss not in ("cross_entropy", "mse", "distillation"):
        raise OptionError(
            f"finetune: the loss is {loss!r}; expected cross_entropy, mse, distillation or a "
            "function."
        )
    return loss


def _trained(net: TorchModule) -> list[torch.nn.Parameter]:
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not trained:
        raise UnsupportedError(
            "finetune: the network has no floating parameter to train; expected a network that is "
            "not quantised yet: fine-tune before it is."
        )
    for name, parameter in trained.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(
                f"finetune: the parameter {name.rsplit(':', 1)[0]} is "
                f"{str(parameter.dtype).removeprefix('torch.')}; expected float32: convert the "
                "network's parameters to float32 first."
            )
    return list(trained.values())


class _Objective:
    """The loss: what data it takes, and its value for a batch."""

    def __init__(self, mod: tvm.IRModule, net: TorchModule, loss: Loss) -> None:
        self.loss = loss
        if callable(loss):
            return
        outputs = output_specs(mod)
        if len(outputs) != 1:
            raise UnsupportedError(
                f"finetune: the network has {len(outputs)} outputs "
                f"({', '.join(spec.name for spec in outputs)}); expected one for the loss {loss}: "
                "give a function of all outputs as the loss."
            )
        (self.output,) = outputs
        if loss in ("cross_entropy", "distillation") and all(
            size == 1 for size in self.output.shape
        ):
            raise UnsupportedError(
                f"finetune: the output {self.output.name} has one element; expected at least two "
                f"classes for the loss {loss}: use mse or a function."
            )

    def check(self, what: str, data: Any, mod: tvm.IRModule) -> Samples:
        samples = check_samples(what, data, input_specs(mod))
        if self.loss == "cross_entropy":
            return check_labels(what, samples, self.output.shape)
        return samples if callable(self.loss) else check_targets(what, samples, self.output)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Give the loss of a batch: the mean over its samples, a scalar."""
        if callable(self.loss):
            return self.loss(outputs, targets)
        if self.loss == "mse":
            return F.mse_loss(outputs, targets)
        if self.loss == "distillation":
            said, wanted = (F.log_softmax(self._logits(v), 1) for v in (outputs, targets))
            return F.kl_div(said, wanted, reduction="batchmean", log_target=True)
        return F.cross_entropy(self._logits(outputs), targets.reshape(-1))

    def _logits(self, outputs: Tensor) -> Tensor:
        classes = [size for size in self.output.shape if size != 1][-1]
        return outputs.reshape(-1, classes)

    @torch.no_grad()
    def judge(self, net: TorchModule, data: Samples, size: int) -> tuple[float, float | None]:
        """Give the mean loss and, of cross_entropy, the accuracy over all of the data."""
        total, right = 0.0, 0
        for start in range(0, len(data), size):
            batch = data.batch(np.arange(start, min(start + size, len(data))))
            inputs, targets = moved(batch, net.device)
            outputs = net(*inputs)
            total += float(self(outputs, targets)) * len(inputs[0])
            if self.loss == "cross_entropy" and isinstance(targets, Tensor):
                right += int((self._logits(outputs).argmax(1) == targets.reshape(-1)).sum())
        accuracy = None
        if self.loss == "cross_entropy":
            accuracy = right / data.targets[""].size
        return total / len(data), accuracy


class _Run:
    """The state of a training: the network, its optimizer and the position."""

    def __init__(
        self,
        net: TorchModule,
        objective: _Objective,
        samples: Samples,
        augment: Augment | None,
        teaching: TorchModule | None,
        judged: Samples | None,
        options: _Options,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.net, self.objective, self.samples, self.judged = net, objective, samples, judged
        self.augment, self.teaching = augment, teaching
        self.options, self.optimizer = options, optimizer
        self.epoch, self.step = 0, 0  # what is done: whole epochs, and steps of the next one
        self.steps_per_epoch = -(-len(samples) // options.batch_size)
        self._path: Path | None = None
        self._fingerprint = checkpoints.Fingerprint("", "", "")
        self._saved = time.monotonic()

    def resume(self, path: Path, fingerprint: checkpoints.Fingerprint) -> None:
        """Go on from a checkpoint, if there is one, and write it from now on."""
        self._path, self._fingerprint = path, fingerprint
        state = checkpoints.load(path, fingerprint)
        if state is not None:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            self.epoch, self.step = state["epoch"], state["step"]

    def save(self) -> None:
        if self._path is not None:
            state = {
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "epoch": self.epoch,
                "step": self.step,
            }
            checkpoints.save(self._path, self._fingerprint, state)
            self._saved = time.monotonic()

    def train(
        self, stopping: Callable[[], bool], watchers: list[Callable[[TrainingStep], None]]
    ) -> None:
        """Do the steps that are left.

        Raises:
            KeyboardInterrupt: between two steps; the checkpoint is that of the step just done.
            OptionError: the loss or a parameter is no longer finite.
        """
        while self.epoch < self.options.epochs:
            # Derived from the seed and the epoch alone, so a resumed epoch has the same order.
            random = np.random.default_rng([self.options.seed, self.epoch])
            order = random.permutation(len(self.samples))
            for _ in range(self.step, self.steps_per_epoch):
                done = self._one_step(order)
                last = done.step == self.steps_per_epoch
                if last:
                    done = self._end_epoch(done)
                try:
                    for watch in watchers:
                        watch(done)
                    if stopping():
                        raise KeyboardInterrupt
                except KeyboardInterrupt:
                    self.save()
                    raise
                if last or time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
                    self.save()

    def _batch(self, order: Any) -> tuple[list[Tensor], Tensor | dict[str, Tensor]]:
        size = self.options.batch_size
        where = order[self.step * size : (self.step + 1) * size]
        if self.augment is None:
            return self.samples.batch(where)
        # A child of the order's sequence: no two steps draw the same numbers.
        entropy = [self.options.seed, self.epoch]
        sequence = np.random.SeedSequence(entropy, spawn_key=(self.step,))
        random = np.random.default_rng(sequence)
        return self.samples.batch(where, partial(augmented, self.augment, random=random))

    def _one_step(self, order: Any) -> TrainingStep:
        inputs, targets = moved(self._batch(order), self.net.device)
        steps_done = self.epoch * self.steps_per_epoch + self.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(
                steps_done / (self.options.epochs * self.steps_per_epoch)
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.augment is not None and self.teaching is not None:
            with torch.no_grad():
                targets = self.teaching(*inputs)
        loss = self.objective(self.net(*inputs), targets)
        value = float(loss.detach())
        self.step += 1
        done = TrainingStep(self.epoch + 1, self.step, value)
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}", done)
        loss.backward()
        self.optimizer.step()
        self.net.hold_zeros()
        return done

    def _end_epoch(self, done: TrainingStep) -> TrainingStep:
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                what = f"the parameter {name.rsplit(':', 1)[0]} is no longer finite"
                raise self._diverged(what, done)
        self.epoch, self.step = self.epoch + 1, 0
        if self.judged is None:
            return done
        result = self.objective.judge(self.net, self.judged, self.options.batch_size)
        return TrainingStep(done.epoch, done.step, done.loss, *result)

    def _diverged(self, what: str, done: TrainingStep) -> OptionError:
        return OptionError(
            f"finetune: {what} in step {done.step} of epoch {done.epoch} with the learning rate lr "
            f"of {self.options.lr}; expected a finite number: lower the learning rate."
        )


@contextmanager
def _deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's deterministic kernels and a random state of our own, then restore both."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    others = [device] if device.type == "cuda" else []  # a random state beside the processor's
    with torch.random.fork_rng(devices=others), torch.enable_grad():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _stop_request() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that is looked at between steps.

    The second one interrupts at once. Python runs handlers in the main thread alone; a program
    that has a handler of its own keeps it.
    """
    requested = False

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requested
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _bar(run: _Run) -> Iterator[Callable[[TrainingStep], None]]:
    """Show epoch, loss and time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        total = run.options.epochs * run.steps_per_epoch
        done = run.epoch * run.steps_per_epoch + run.step
        task = bar.add_task("fine-tuning", total=total, completed=done, figures="")
        mean: float | None = None
        judged = ""

        def show(step: TrainingStep) -> None:
            nonlocal mean, judged
            mean = step.loss if mean is None else 0.95 * mean + 0.05 * step.loss
            if step.validation_loss is not None:
                judged = f", validation loss {step.validation_loss:.4f}"
            if step.validation_accuracy is not None:
                judged += f", accuracy {100 * step.validation_accuracy:.2f} %"
            bar.update(
                task,
                completed=(step.epoch - 1) * run.steps_per_epoch + step.step,
                description=f"epoch {step.epoch}/{run.options.epochs}",
                figures=f"loss {mean:.4f}{judged}",
            )

        yield show
