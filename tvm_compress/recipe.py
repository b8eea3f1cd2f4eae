"""A recipe: a compression as data, the same in Python, in a file and on the command line.

A step is a pass of :mod:`tvm_compress.passes` or a :class:`Finetune`. In TOML::

    [[steps]]
    step = "prune"
    sparsity = 0.9

    [steps.layers]
    "conv1*" = 0.5

    [[steps]]
    step = "share-weights"
    bits = 4

The fields of a step are the fields of its dataclass, so a new pass is a new step without a line
here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from tvm_compress.errors import OptionError
from tvm_compress.passes import PASSES, InputsPass, Pass

__all__ = ["STEPS", "Finetune", "Recipe", "Step"]

_Optimizer = Literal["adam", "sgd"]
_Loss = Literal["cross_entropy", "mse", "distillation"]
_Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Finetune:
    """Fine-tune on training data; zeros stay zero and codes stay as they are.

    Args:
        epochs: passes over the training data, 0 or more.
        lr: learning rate, above 0.
        batch_size: samples a step of the optimizer, 1 or more.
        optimizer: ``adam`` or ``sgd``.
        loss: ``cross_entropy`` (labels are class numbers), ``mse``, or ``distillation``, which
            takes the network before compression for its teacher and needs no labels.
        seed: of the order of the samples.
        weight_decay: of ``adam`` decoupled from the gradient (AdamW: each step takes the share
            ``learning rate * weight_decay`` off every parameter); of ``sgd`` the factor of the
            parameters that is added to their gradients.
        schedule: of the learning rate: ``constant``, or ``cosine``, from ``lr`` down to 0 over the
            steps of this fine-tuning.

    Raises:
        OptionError: a field is outside its range.
    """

    name: ClassVar[str] = "finetune"

    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 64
    optimizer: _Optimizer = "adam"
    loss: _Loss = "cross_entropy"
    seed: int = 0
    weight_decay: float = 0.0
    schedule: _Schedule = "constant"

    def __post_init__(self) -> None:
        for field, least in (("epochs", 0), ("batch_size", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise OptionError(
                    f"finetune: {field} is {getattr(self, field)}; expected a whole number from "
                    f"{least} on."
                )
        if not (isfinite(self.lr) and self.lr > 0):
            raise OptionError(f"finetune: lr is {self.lr}; expected a finite number above 0.")
        if not 0 <= self.weight_decay < inf:
            raise OptionError(
                f"finetune: weight_decay is {self.weight_decay}; expected a finite number from 0 "
                "on."
            )
        for field, known in (
            ("optimizer", _Optimizer),
            ("loss", _Loss),
            ("schedule", _Schedule),
        ):
            if getattr(self, field) not in get_args(known):
                raise OptionError(
                    f"finetune: {field} is {getattr(self, field)}; expected "
                    f"{' or '.join(get_args(known))}."
                )


Step = Pass | Finetune

STEPS: dict[str, type[Step]] = {**PASSES, Finetune.name: Finetune}


def _adapters(of: type[Step]) -> dict[str, TypeAdapter[Any]]:
    """Give what checks each field: strict, so that ``bits = true`` is not 1 bit."""
    hints = get_type_hints(of)
    strict = ConfigDict(strict=True)
    return {field.name: TypeAdapter(hints[field.name], config=strict) for field in fields(of)}


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _read_step(value: Any) -> Step:
    """Make a step of a dataclass or of a mapping with ``step`` and the fields of the step."""
    if isinstance(value, Step):
        of, given = type(value), _plain_fields(value)
    elif isinstance(value, Mapping):
        given = dict(value)
        name = given.pop("step", None)
        if name is None:
            raise OptionError(f"the field step is missing; expected one of {', '.join(STEPS)}.")
        if not isinstance(name, str) or name not in STEPS:
            raise OptionError(f"there is no step {name!r}; expected one of {', '.join(STEPS)}.")
        of = STEPS[name]
    else:
        raise OptionError(
            f"a {type(value).__name__} was given; expected a pass, Finetune or a table with the "
            "field step."
        )
    adapters = _adapters(of)
    for name in given:
        if name not in adapters:
            raise OptionError(
                f"{of.name}: there is no field {name}; expected "
                f"{', '.join(adapters) or 'no field but step'}."
            )
    for field in fields(of):
        if _required(field) and field.name not in given:
            raise OptionError(f"{of.name}: the field {field.name} is missing; give it a value.")
    return of(**{name: _check(of, name, field) for name, field in given.items()})


def _check(of: type[Step], name: str, value: Any) -> Any:
    try:
        return _adapters(of)[name].validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join([name, *(str(part) for part in fault["loc"])])
        expected = fault["msg"].removeprefix("Input should be ")
        raise OptionError(
            f"{of.name}: {place} is {fault['input']!r}; expected {expected}."
        ) from error


def _plain_fields(step: Step) -> dict[str, Any]:
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _plain(step: Step) -> dict[str, Any]:
    return {"step": step.name, **_plain_fields(step)}


class Recipe(BaseModel):
    """The steps of a compression, in order.

    A step may be given as a pass, as :class:`Finetune` or as a dictionary with the field ``step``
    (``prune``, ``share-weights``, ``finetune``, ...) and the step's own fields.

    Raises:
        OptionError: which step is wrong, what was given and what was expected.

    >>> from tvm_compress.passes import Prune
    >>> Recipe([Prune(sparsity=0.5)]) == Recipe([{"step": "prune", "sparsity": 0.5}])
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[Annotated[Step, PlainValidator(_read_step), PlainSerializer(_plain)], ...]

    def __init__(self, steps: Iterable[Step | Mapping[str, Any]] = (), **others: Any) -> None:
        try:
            super().__init__(steps=steps, **others)
        except ValidationError as error:
            raise OptionError(_sentence(error)) from error

    @property
    def needs_training_data(self) -> bool:
        """Whether a step fine-tunes."""
        return any(isinstance(step, Finetune) and step.epochs for step in self.steps)

    @property
    def needs_labels(self) -> bool:
        """Whether a step fine-tunes by labels or targets."""
        steps = (step for step in self.steps if isinstance(step, Finetune))
        return any(step.epochs and step.loss != "distillation" for step in steps)

    @property
    def needs_inputs(self) -> bool:
        """Whether a step cannot do without inputs; they need no labels."""
        return any(isinstance(step, InputsPass) and step.needs_inputs for step in self.steps)

    @property
    def takes_inputs(self) -> bool:
        """Whether a step looks at inputs without labels where they are given."""
        return any(isinstance(step, InputsPass) for step in self.steps)

    @classmethod
    def from_toml(cls, source: str | PathLike[str]) -> Recipe:
        """Read a recipe.

        Args:
            source: a path, or TOML itself: a string is TOML if it holds a line break or ``=``.

        Raises:
            OptionError: the file cannot be read, is not TOML, or does not describe a recipe.
        """
        text, place = source, "The recipe"
        if not isinstance(source, str) or not ("\n" in source or "=" in source):
            path = Path(source)
            place = f"The recipe {path}"
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
                raise OptionError(
                    f"{place} cannot be read ({reason}); expected a TOML file with [[steps]]."
                ) from error
        try:
            data = tomllib.loads(str(text))
        except tomllib.TOMLDecodeError as error:
            raise OptionError(f"{place} is not TOML: {error}. Mend that line.") from error
        if "steps" not in data:
            raise OptionError(f"{place} has no steps; expected a table [[steps]] for each step.")
        try:
            return cls(**data)
        except OptionError as error:
            raise OptionError(
                f"{place}: {error}" if place != "The recipe" else str(error)
            ) from error

    def to_toml(self) -> str:
        """Write the recipe as TOML with every field; :meth:`from_toml` gives an equal recipe.

        >>> from tvm_compress.passes import Prune
        >>> print(Recipe([Prune(sparsity=0.5, layers={"fc*": 0.75})]).to_toml())
        [[steps]]
        step = "prune"
        sparsity = 0.5
        scope = "layer"
        <BLANKLINE>
        [steps.layers]
        "fc*" = 0.75
        <BLANKLINE>
        """
        import tomlkit

        if not self.steps:
            return "steps = []\n"
        # Empty tables are their default; left out, they do not clutter the file. TOML has no None.
        steps = [
            {k: v for k, v in _plain(step).items() if v is not None and v != {}}
            for step in self.steps
        ]
        return tomlkit.dumps({"steps": steps})


def _sentence(error: ValidationError) -> str:
    fault = error.errors()[0]
    place, message = fault["loc"], fault["msg"].removeprefix("Value error, ")
    if place[:1] != ("steps",):
        return f"A recipe has no field {place[0]}; expected steps alone."
    if len(place) == 1:
        return f"The steps of a recipe are {fault['input']!r}; expected a list of steps."
    return f"Step {int(place[1]) + 1} of the recipe: {message}"
