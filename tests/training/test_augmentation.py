"""Augmentation: what the function gets, what may come back, and what each mistake is told."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.relax import op

from tests.training.nets import module
from tvm_compress.errors import DataError, OptionError
from tvm_compress.training.augmentation import check_named, function_name

torch = pytest.importorskip("torch", reason="torch is not installed; these tests need it.")

from tests.training.test_loop import content, tune  # noqa: E402

X = np.arange(60, dtype="float32").reshape(10, 3, 2) / 60
Y = np.arange(10)


def net() -> tvm.IRModule:
    """(1, 3, 2) -> (1, 3, 2), by one product."""
    return module({"x": (1, 3, 2)}, {"w": np.eye(2, dtype="float32")}, op.matmul)


def two_inputs() -> tvm.IRModule:
    """``a`` (1, 2) and ``b`` (2,) -> (1, 2)."""
    weight = {"w": np.eye(2, dtype="float32")}
    return module({"a": (1, 2), "b": (2,)}, weight, lambda a, b, w: op.add(op.matmul(a, w), b))


class Seen:
    """A loss that keeps what the network gives for each batch, with the targets."""

    def __init__(self) -> None:
        self.batches: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def __call__(self, output: Any, target: Any) -> Any:
        found = output.detach().numpy().reshape(len(target), -1)
        self.batches.append((found, target.numpy()))
        return 0 * output.sum()  # no gradient: the network stays the identity


@pytest.mark.parametrize("shape", [(10, 3, 2), (10, 1, 3, 2)])
def test_the_network_sees_what_the_function_gives(shape: tuple[int, ...]) -> None:
    seen, got = Seen(), []

    def negated(x: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        got.append(x.copy())
        return -x

    tune(net(), (X.reshape(shape), Y), loss=seen, augment=negated, batch_size=4, epochs=2)
    assert [x.shape for x in got] == [(n, *shape[1:]) for n in (4, 4, 2, 4, 4, 2)]
    for x, (output, target) in zip(got, seen.batches, strict=True):
        np.testing.assert_array_equal(x.reshape(len(x), 6), X.reshape(10, 6)[target])
        np.testing.assert_array_equal(output, -X.reshape(10, 6)[target])


def test_views_that_run_backwards_and_writing_in_place() -> None:
    seen, before = Seen(), X.copy()

    def flipped(x: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        x *= 2
        return x[:, ::-1, ::-1]

    tune(net(), (X, Y), loss=seen, augment=flipped, epochs=1)
    np.testing.assert_array_equal(X, before)
    (output, target) = seen.batches[0]
    np.testing.assert_array_equal(output, 2 * X[target].reshape(-1, 6)[:, ::-1])


def test_several_inputs_by_name() -> None:
    seen = Seen()
    data = {"b": np.ones((6, 2), "float32"), "a": np.full((6, 2), 2, "float32")}

    def changed(x: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        assert list(x) == ["a", "b"]
        return {"b": 10 * x["b"], "a": x["a"]}

    tune(two_inputs(), (data, Y[:6]), loss=seen, augment=changed, epochs=1)
    np.testing.assert_array_equal(seen.batches[0][0], np.full((6, 2), 12))


def test_random_numbers_are_those_of_seed_and_step() -> None:
    def drawn(**options: Any) -> list[float]:
        numbers: list[float] = []

        def draw(x: Any, random: np.random.Generator) -> Any:
            numbers.append(float(random.random()))
            return x

        tune(net(), (X, Y), loss=Seen(), augment=draw, batch_size=4, epochs=3, **options)
        return numbers

    first = drawn()
    assert len(set(first)) == 9  # no step has the numbers of another
    assert drawn() == first
    assert not set(drawn(seed=1)) & set(first)
    # Nor are they those that shuffle the samples.
    orders = [np.random.default_rng([0, epoch]).random() for epoch in range(3)]
    assert not set(orders) & set(first)


def test_validation_data_is_not_changed() -> None:
    data = X, X.reshape(10, 1, 3, 2)
    steps: list[Any] = []
    options = {"loss": "mse", "validation": data, "epochs": 1, "lr": 1e-30}
    tune(net(), data, augment=lambda x, random: x + 1, on_step=steps.append, **options)
    assert steps[0].loss == pytest.approx(1)
    assert steps[0].validation_loss == 0


def test_none_is_no_augmentation() -> None:
    same = content(
        tune(net(), (X, X.reshape(10, 1, 3, 2)), loss="mse", augment=lambda x, random: x)
    )
    assert same == content(tune(net(), (X, X.reshape(10, 1, 3, 2)), loss="mse"))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, random: None, "augment gave a NoneType for the input x; expected an array: "
         "return the changed batch."),
        (lambda x, random: x[:-1], "augment gave the input x in the shape (9, 3, 2); expected "
         "(10, 3, 2): return as many samples as it gets, each of the same shape."),
        (lambda x, random: x.astype("float64"), "augment gave the input x as float64; expected "
         'float32: convert the result with .astype("float32").'),
        (lambda x, random: np.where(x > 0.9, np.nan, x), "augment gave 5 values of 60 for the "
         "input x that are NaN or infinite; expected finite numbers: look at what the function "
         "divides by."),
    ],
)  # fmt: skip
def test_what_comes_back_is_checked(augment: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        tune(net(), (X, Y), loss=Seen(), augment=augment)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda x, random: x["a"], "augment gave a ndarray for 2 inputs; expected a dict of arrays "
         "with a, b: return the changed inputs by name."),
        (lambda x, random: {"a": x["a"]}, "augment gave the inputs a; expected a, b: return every "
         "input, the unchanged too."),
        (lambda x, random: {}, "augment gave the inputs none; expected a, b: return every input, "
         "the unchanged too."),
        (lambda x, random: x | {"c": x["a"]}, "augment gave the inputs a, b, c; expected a, b: "
         "return every input, the unchanged too."),
        (lambda x, random: x | {"b": [1.0]}, "augment gave a list for the input b; expected an "
         "array: return the changed batch."),
    ],
)  # fmt: skip
def test_what_comes_back_of_several_inputs_is_checked(augment: Any, message: str) -> None:
    data = {"a": np.ones((6, 2), "float32"), "b": np.ones((6, 2), "float32")}
    with pytest.raises(DataError) as caught:
        tune(two_inputs(), (data, Y[:6]), loss=Seen(), augment=augment)
    assert str(caught.value) == message


def test_name_of_a_function() -> None:
    here = "tests.training.test_augmentation"
    assert function_name(net) == f"{here}.net"
    assert function_name(Seen()) == f"{here}.Seen"


def test_name_of_a_partial_tells_what_it_holds() -> None:
    here = "tests.training.test_augmentation"
    held = partial(partial(net, 1), "a", by=[net, {"k": (2.5, None)}])
    assert function_name(held) == f"{here}.net(1, 'a', by=[{here}.net, {{'k': [2.5, None]}}])"

    def name(array: NDArray[Any]) -> str:
        return function_name(partial(net, [array]))

    array = np.arange(6, dtype="float32")
    others = [array + 1, array.reshape(2, 3), array.view("int32"), array[::-1]]
    assert len({name(array), *map(name, others)}) == 5
    assert name(array[::2]) == name(array[::2].copy())


def made(factor: float) -> Any:
    def scaled(x: Any, random: np.random.Generator) -> Any:
        return factor * x

    return scaled


@pytest.mark.parametrize(
    ("augment", "what"),
    [
        (lambda x, random: x, "a lambda"),
        (made(2), "the function made.<locals>.scaled, made inside another"),
        (Seen(), "an object of the class Seen"),
        (Seen().__call__, "the method Seen.__call__ of an object"),
        (partial(lambda x, random, by: x, by=2), "a lambda"),
        (partial(net, of=[made(2)]), "the function made.<locals>.scaled, made inside another"),
        (partial(net, {"a": Seen()}), "an object of the class Seen"),
    ],
)
def test_a_checkpoint_refuses_what_its_name_does_not_tell(
    augment: Any, what: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as caught:
        tune(net(), (X, Y), loss=Seen(), augment=augment, checkpoint=tmp_path / "run")
    assert str(caught.value) == (
        f"augment is or holds {what}, whose name does not tell it from others, and a checkpoint or "
        "a trial log knows augment by its name; expected a function defined at the top of a "
        "module, or a functools.partial of one: define it there, or keep no checkpoint or trial "
        "log."
    )
    assert list(tmp_path.iterdir()) == []


def test_what_its_name_tells() -> None:
    for augment in (net, np.add, np.roll, partial(np.roll, shift=np.ones(3)), random_of_math):
        check_named(augment)


random_of_math = math.floor  # a builtin: a method of its module
