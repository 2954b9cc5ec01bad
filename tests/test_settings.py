from dataclasses import dataclass, replace

import pytest

from job.errors import UsageError
from job.settings import DEMO, Cycle, Recipe, later, parse_cycles


def test_cycles_parse_and_print() -> None:
    assert parse_cycles("200@5e-3, 1@0.5") == (Cycle(200, 0.005), Cycle(1, 0.5))
    assert parse_cycles(",".join(map(str, Recipe().cycles))) == Recipe().cycles
    assert Recipe().epochs == 600


@pytest.mark.parametrize(
    "text", ["", "3", "@5e-3", "3@", "0@5e-3", "-1@5e-3", "3@0", "3@-1", "3@nan", "3@inf", "3@1,", "x@1"]
)
def test_cycles_that_make_no_sense_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--cycles"):
        parse_cycles(text)


def test_fingerprint_changes_with_every_field_and_with_nothing_else() -> None:
    recipe = Recipe()
    changed = {
        "depth": 28,
        "width": 10,
        "cycles": (Cycle(600, 5e-3),),
        "batch_size": 128,
        "weight_decay": 0.0,
        "mixup_alpha": 0.2,
        "crop_padding": 0,
        "holdout": 5000,
        "seed": 1,
        "precision": "fp32",
        "compile": True,
        "evaluate_every": 1,
        "deterministic": False,
        "data_sha256": "ab",
    }
    assert changed.keys() == recipe.to_json().keys()
    prints = {replace(recipe, **{name: value}).fingerprint for name, value in changed.items()}
    assert len(prints | {recipe.fingerprint}) == len(changed) + 1
    assert Recipe().fingerprint == recipe.fingerprint != DEMO.fingerprint


def test_the_test_set_is_looked_at_now_and_then_and_at_the_end_each_time() -> None:
    recipe = Recipe(cycles=(Cycle(600, 5e-3),), evaluate_every=5)
    evaluated = [epoch for epoch in range(1, 601) if recipe.evaluates(epoch)]
    assert evaluated == [*range(5, 541, 5), *range(541, 601)]
    assert all(Recipe(cycles=(Cycle(10, 5e-3),)).evaluates(epoch) for epoch in range(1, 11))


def test_differences_name_the_field_and_both_values() -> None:
    other = replace(Recipe(), batch_size=128).to_json()
    assert Recipe().differences(other) == {"batch_size": (128, 256)}
    assert Recipe().differences(Recipe().to_json()) == {}


@dataclass(frozen=True)
class Later(Recipe):
    """A recipe of a later program."""

    label_smoothing: float = later(0.1, before=0.0)


def test_a_field_that_an_older_recipe_lacks_has_its_value_of_then() -> None:
    older, now = Recipe().to_json(), Later(label_smoothing=0.0)
    assert now.differences(older) == {}
    assert now.fingerprint == Recipe().fingerprint
    assert Later().differences(older) == {"label_smoothing": (0.0, 0.1)}
    assert Later().fingerprint != Recipe().fingerprint
