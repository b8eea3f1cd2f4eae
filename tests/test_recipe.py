from __future__ import annotations

import inspect
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from tvm_compress import recipe as recipe_module
from tvm_compress.errors import InputError, OptionError
from tvm_compress.passes import PASSES, Pass, Prune, ShareWeights
from tvm_compress.recipe import STEPS, Finetune, Recipe, Step
from tvm_compress.recipes import deep_compression, post_training

# A surrogate alone is no text: UTF-8, and so TOML, cannot hold it.
patterns = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shares = st.floats(0, 1)
prunes = st.builds(
    Prune,
    sparsity=shares,
    scope=st.sampled_from(["layer", "global"]),
    layers=st.dictionaries(patterns, shares, max_size=4),
)
share_weights = st.builds(
    ShareWeights,
    bits=st.integers(1, 8),
    method=st.sampled_from(["optimal", "linear", "density", "random"]),
    seed=st.integers(0, 2**63 - 1),
    layers=st.dictionaries(patterns, st.integers(1, 8), max_size=4),
)
finetunes = st.builds(
    Finetune,
    epochs=st.integers(0, 10**6),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    batch_size=st.integers(1, 10**6),
    optimizer=st.sampled_from(["adam", "sgd"]),
    loss=st.sampled_from(["cross_entropy", "mse", "distillation"]),
    seed=st.integers(0, 2**63 - 1),
    weight_decay=st.floats(min_value=0, allow_infinity=False),
    schedule=st.sampled_from(["constant", "cosine"]),
)
recipes = st.builds(Recipe, st.lists(st.one_of(prunes, share_weights, finetunes), max_size=5))


def table(step: Step) -> list[tuple[str, Any]]:
    """Give name and fields as TOML should hold them, with the order of the patterns."""
    values: list[tuple[str, Any]] = [("step", step.name)]
    for field in fields(step):
        value = getattr(step, field.name)
        if isinstance(value, dict):
            if value:
                values.append((field.name, list(value.items())))
        elif value is not None:  # TOML has no None
            values.append((field.name, value))
    # What stands behind a table would belong to it, so tables are last.
    return sorted(values, key=lambda item: isinstance(item[1], list))


@given(recipes)
def test_toml_gives_the_same_recipe_back(recipe: Recipe) -> None:
    text = recipe.to_toml()
    again = Recipe.from_toml(text)
    assert again == recipe
    assert again.to_toml() == text
    # The first pattern that fits counts, and equality of dictionaries does not see their order.
    assert [table(step) for step in again.steps] == [table(step) for step in recipe.steps]


@given(recipes)
def test_toml_is_what_an_independent_reader_reads(recipe: Recipe) -> None:
    read = tomllib.loads(recipe.to_toml())
    assert list(read) == ["steps"]
    found = [
        [(k, list(v.items()) if isinstance(v, dict) else v) for k, v in step.items()]
        for step in read["steps"]
    ]
    assert found == [table(step) for step in recipe.steps]


@given(recipes)
def test_json_gives_the_same_recipe_back(recipe: Recipe) -> None:
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_written_file_reads_like_this(tmp_path: Path) -> None:
    recipe = deep_compression(0.75, 3, epochs=2, layer_sparsity={"fc*": 0.95, "*": 0.5})
    assert (
        recipe.to_toml()
        == """\
[[steps]]
step = "prune"
sparsity = 0.75
scope = "layer"

[steps.layers]
"fc*" = 0.95
"*" = 0.5

[[steps]]
step = "finetune"
epochs = 2
lr = 0.001
batch_size = 64
optimizer = "adam"
loss = "cross_entropy"
seed = 0
weight_decay = 0.0
schedule = "constant"

[[steps]]
step = "share-weights"
bits = 3
method = "optimal"
seed = 0
groups = 1

[[steps]]
step = "finetune"
epochs = 2
lr = 0.001
batch_size = 64
optimizer = "adam"
loss = "cross_entropy"
seed = 0
weight_decay = 0.0
schedule = "constant"
"""
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == Recipe.from_toml(str(path)) == recipe


def test_fields_left_out_have_the_defaults_of_the_step() -> None:
    text = '[[steps]]\nstep = "prune"\n[[steps]]\nstep = "share-weights"\nbits = 2\n'
    assert Recipe.from_toml(text).steps == (Prune(), ShareWeights(bits=2))


def test_passes_and_dictionaries_make_equal_recipes() -> None:
    given: list[dict[str, Any]] = [
        {"step": "prune", "sparsity": 0.5, "layers": {"a": 1}},
        {"step": "finetune", "epochs": 1, "lr": 1},
    ]
    recipe = Recipe(given)
    assert recipe == Recipe([Prune(sparsity=0.5, layers={"a": 1.0}), Finetune(epochs=1, lr=1.0)])
    # 1 was given for a share: it is the number 1.0, in Python and in the file.
    assert "a = 1.0" in recipe.to_toml()
    assert given[0] == {"step": "prune", "sparsity": 0.5, "layers": {"a": 1}}


def test_values_of_numpy_are_written_as_numbers() -> None:
    recipe = Recipe([Prune(sparsity=np.float64(0.25))])
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert "sparsity = 0.25\n" in recipe.to_toml()


def test_a_recipe_cannot_be_changed() -> None:
    recipe = deep_compression(epochs=0)
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = ()


def test_every_pass_is_a_step() -> None:
    assert {**PASSES, "finetune": Finetune} == STEPS
    for name, step in STEPS.items():
        recipe = Recipe([{"step": name}])
        assert recipe.steps == (step(),)
        assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_whether_training_data_is_needed() -> None:
    assert deep_compression(epochs=1).needs_training_data
    assert not deep_compression(epochs=0).needs_training_data
    assert not Recipe([Finetune(epochs=0)]).needs_training_data


def test_whether_inputs_are_needed_or_taken() -> None:
    shot = {name: Recipe([{"step": name}]) for name in STEPS}
    assert {name for name, recipe in shot.items() if recipe.needs_inputs} == {
        "narrow-weights",
        "quantize",
        "reconstruct",
    }
    assert {name for name, recipe in shot.items() if recipe.takes_inputs} == {
        "narrow-weights",
        "quantize",
        "reconstruct",
        "reduce-rate",
    }
    assert post_training().takes_inputs
    assert not deep_compression().takes_inputs


NO_STEP = f"expected one of {', '.join([*PASSES, 'finetune'])}."


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"step": "canonicalize"}, {"step": "prune", "sparsity": 1.5}],
            "Step 2 of the recipe: prune: the sparsity is 1.5; expected a number from 0 to 1.",
        ),
        (
            [{"step": "prune", "sparsity": float("nan")}],
            "Step 1 of the recipe: prune: the sparsity is nan; expected a number from 0 to 1.",
        ),
        (
            [{"step": "prune", "sparsity": "much"}],
            "Step 1 of the recipe: prune: sparsity is 'much'; expected a valid number.",
        ),
        (
            [{"step": "prune", "sparsity": True}],
            "Step 1 of the recipe: prune: sparsity is True; expected a valid number.",
        ),
        (
            [{"step": "prune", "scope": "all"}],
            "Step 1 of the recipe: prune: scope is 'all'; expected 'layer' or 'global'.",
        ),
        (
            [{"step": "prune", "layers": {"fc*": "x"}}],
            "Step 1 of the recipe: prune: layers.fc* is 'x'; expected a valid number.",
        ),
        (
            [{"step": "prune", "layers": 0.5}],
            "Step 1 of the recipe: prune: layers is 0.5; expected a valid dictionary.",
        ),
        (
            [{"step": "prune", "layers": {"fc*": 2}}],
            "Step 1 of the recipe: prune: the sparsity is 2.0; expected a number from 0 to 1.",
        ),
        (
            [{"step": "share-weights", "bits": 9}],
            "Step 1 of the recipe: share-weights: the codes have 9 bits; expected a whole number "
            "from 1 to 8.",
        ),
        (
            [{"step": "share-weights", "bits": 4.0}],
            "Step 1 of the recipe: share-weights: bits is 4.0; expected a valid integer.",
        ),
        (
            [{"step": "share-weights", "bits": True}],
            "Step 1 of the recipe: share-weights: bits is True; expected a valid integer.",
        ),
        (
            [{"step": "share-weights", "method": "best"}],
            "Step 1 of the recipe: share-weights: method is 'best'; expected 'optimal', 'linear', "
            "'density' or 'random'.",
        ),
        (
            [{"step": "prune", "bits": 4}],
            "Step 1 of the recipe: prune: there is no field bits; expected sparsity, scope, "
            "layers, first, last.",
        ),
        (
            [{"step": "canonicalize", "bits": 4}],
            "Step 1 of the recipe: canonicalize: there is no field bits; expected no field but "
            "step.",
        ),
        (
            [{"step": "quantise"}],
            f"Step 1 of the recipe: there is no step 'quantise'; {NO_STEP}",
        ),
        ([{"step": ["prune"]}], f"Step 1 of the recipe: there is no step ['prune']; {NO_STEP}"),
        ([{"bits": 4}], f"Step 1 of the recipe: the field step is missing; {NO_STEP}"),
        (
            ["prune"],
            "Step 1 of the recipe: a str was given; expected a pass, Finetune or a table with the "
            "field step.",
        ),
        (4, "The steps of a recipe are 4; expected a list of steps."),
        ("prune", "The steps of a recipe are 'prune'; expected a list of steps."),
        ({"a": 1}, "The steps of a recipe are {'a': 1}; expected a list of steps."),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_sentence(steps: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Recipe(steps)
    assert str(caught.value) == message


def test_a_pass_object_is_checked_like_a_table() -> None:
    with pytest.raises(OptionError, match=r"Step 1 of the recipe: prune: sparsity is True"):
        Recipe([Prune(sparsity=True)])


def test_a_recipe_has_steps_alone() -> None:
    with pytest.raises(OptionError, match=r"^A recipe has no field bits; expected steps alone\.$"):
        Recipe([], bits=4)


def test_a_required_field_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Demanding(Pass):
        name: ClassVar[str] = "demanding"
        size: int

        def apply(self, mod: tvm.IRModule) -> tvm.IRModule:
            return mod

    # The annotations above are text, resolved among the names of the module.
    monkeypatch.setitem(recipe_module.STEPS, "demanding", Demanding)
    with pytest.raises(
        OptionError,
        match=r"^Step 1 of the recipe: demanding: the field size is missing; give it a value\.$",
    ):
        Recipe([{"step": "demanding"}])
    assert Recipe([{"step": "demanding", "size": 2}]).steps == (Demanding(size=2),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": -1}, "finetune: epochs is -1; expected a whole number from 0 on."),
        ({"batch_size": 0}, "finetune: batch_size is 0; expected a whole number from 1 on."),
        ({"seed": -1}, "finetune: seed is -1; expected a whole number from 0 on."),
        ({"lr": 0.0}, "finetune: lr is 0.0; expected a finite number above 0."),
        ({"lr": float("inf")}, "finetune: lr is inf; expected a finite number above 0."),
        ({"lr": float("nan")}, "finetune: lr is nan; expected a finite number above 0."),
        ({"optimizer": "lbfgs"}, "finetune: optimizer is lbfgs; expected adam or sgd."),
        ({"loss": "mae"}, "finetune: loss is mae; expected cross_entropy or mse or distillation."),
        (
            {"weight_decay": -0.5},
            "finetune: weight_decay is -0.5; expected a finite number from 0 on.",
        ),
        (
            {"weight_decay": float("inf")},
            "finetune: weight_decay is inf; expected a finite number from 0 on.",
        ),
        (
            {"weight_decay": float("nan")},
            "finetune: weight_decay is nan; expected a finite number from 0 on.",
        ),
        ({"schedule": "step"}, "finetune: schedule is step; expected constant or cosine."),
    ],
)
def test_finetune_checks_its_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Finetune(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1", "The recipe has no steps; expected a table [[steps]] for each step."),
        ("steps = 1", "The steps of a recipe are 1; expected a list of steps."),
        ("steps = []\nseed = 1", "A recipe has no field seed; expected steps alone."),
        (
            "[[steps]\n",
            r"The recipe is not TOML: Expected ']]' at the end of an array declaration "
            r"(at line 1, column 8). Mend that line.",
        ),
    ],
)
def test_toml_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        Recipe.from_toml(text)
    assert str(caught.value) == message
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        Recipe.from_toml(path)
    assert f"The recipe {path}" in str(caught.value)
    assert message.removeprefix("The recipe ") in str(caught.value)


def test_a_recipe_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "recipe.toml"
    with pytest.raises(OptionError) as caught:
        Recipe.from_toml(str(missing))
    assert str(caught.value) == (
        f"The recipe {missing} cannot be read (No such file or directory); expected a TOML file "
        "with [[steps]]."
    )
    missing.write_bytes(b"\xff\xfe steps")
    with pytest.raises(OptionError, match=r"cannot be read \(it is not UTF-8 text\)"):
        Recipe.from_toml(missing)


def test_an_empty_recipe_does_nothing_and_can_be_written() -> None:
    assert Recipe.from_toml("steps = []").steps == ()
    assert Recipe().to_toml() == "steps = []\n"


# ---- ready-made recipes --------------------------------------------------------------------------


def test_deep_compression_prunes_and_shares_with_fine_tuning_behind_each() -> None:
    recipe = deep_compression(
        0.8,
        5,
        epochs=3,
        lr=0.01,
        batch_size=16,
        optimizer="sgd",
        loss="mse",
        weight_decay=0.01,
        lr_schedule="cosine",
        scope="global",
        method="linear",
        seed=7,
        layer_sparsity={"a": 0.1},
        layer_bits={"b": 8},
        first=0.2,
        last=0.3,
    )
    finetune = Finetune(3, 0.01, 16, "sgd", "mse", 7, 0.01, "cosine")
    assert recipe.steps == (
        Prune(0.8, "global", {"a": 0.1}, 0.2, 0.3),
        finetune,
        ShareWeights(5, "linear", 7, {"b": 8}),
        finetune,
    )


def test_deep_compression_in_one_shot() -> None:
    assert deep_compression(epochs=0).steps == (Prune(0.9), ShareWeights(4))


def test_the_defaults_of_deep_compression_are_those_of_its_steps() -> None:
    defaults = {k: p.default for k, p in inspect.signature(deep_compression).parameters.items()}
    steps = {**PASSES, "finetune": Finetune}
    defaults["schedule"] = defaults.pop("lr_schedule")
    for name in ("prune", "share-weights", "finetune"):
        for field in fields(steps[name]):
            # What the function leaves to recipes of one's own, or calls by other names.
            if field.name not in ("layers", "first", "last", "groups"):
                assert defaults[field.name] == field.default, field.name


@pytest.mark.parametrize("arguments", [{"sparsity": 1.5}, {"bits": 9}, {"epochs": -1}, {"lr": 0.0}])
def test_deep_compression_refuses_values_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a"):
        deep_compression(**arguments)
