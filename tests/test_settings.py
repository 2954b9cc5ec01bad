import math
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from job.errors import UsageError
from job.phases import Cycle, parse_cycles
from job.recipe import DEMO, PRECISIONS, RECIPES, Recipe
from job.settings import AttemptSettings, DeviceSettings, setting


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
    recipe = RECIPES["compact"]
    changed: dict[str, Any] = {
        "depth": 28,
        "width": 10,
        "cycles": (Cycle(600, 5e-3),),
        "prune_cycles": (Cycle(200, 5e-3),),
        "sparsity": 0.8,
        "target_score": 0.07,
        "quantise_cycles": (),
        "weight_bits": 3,
        "activation_bits": 8,
        "distillation": 0.0,
        "statistics_epochs": 0,
        "batch_size": 128,
        "shards": 2,
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
        "from_sha256": "ab",
        "teacher_sha256": "ab",
    }
    assert changed.keys() == recipe.to_json().keys()
    prints = {replace(recipe, **{name: value}).fingerprint for name, value in changed.items()}
    assert len(prints | {recipe.fingerprint}) == len(changed) + 1
    assert replace(recipe).fingerprint == recipe.fingerprint
    assert len({named.fingerprint for named in RECIPES.values()}) == len(RECIPES)


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

    label_smoothing: float = setting(0.1, "Label smoothing.", before=0.0)


def test_a_field_that_an_older_recipe_lacks_has_its_value_of_then() -> None:
    older, now = Recipe().to_json(), Later(label_smoothing=0.0)
    assert now.differences(older) == {}
    assert now.fingerprint == Recipe().fingerprint
    assert Later().differences(older) == {"label_smoothing": (0.0, 0.1)}
    assert Later().fingerprint != Recipe().fingerprint


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
def test_a_field_that_only_a_newer_recipe_has_is_a_difference(smoothing: float) -> None:
    newer = Later(label_smoothing=smoothing).to_json()
    assert Recipe().differences(newer) == {"label_smoothing": (smoothing, None)}


@pytest.mark.parametrize(
    ("recipe", "fingerprint"),
    [
        (Recipe(), "f73477636724"),
        (DEMO, "96f147c7d646"),
        (Recipe(cycles=(Cycle(30, 1.23456e-3), Cycle(2, 1e-5), Cycle(1, 2.0))), "4b72283c6b70"),
        (
            Recipe(
                depth=10, width=1, cycles=(Cycle(1, 123456.0), Cycle(3, 1e6)), seed=7, weight_decay=0.0,
                precision="bf16", data_sha256="ab" * 32,
            ),
            "276de7184f8f",
        ),
    ],
)  # fmt: skip
def test_runs_of_older_versions_keep_their_identity(recipe: Recipe, fingerprint: str) -> None:
    """The fingerprints are those of commit 6838e34."""
    assert recipe.fingerprint == fingerprint


def test_a_learning_rate_of_more_than_six_digits_enters_exactly() -> None:
    rough, exact = Recipe(cycles=(Cycle(600, 0.3),)), Recipe(cycles=(Cycle(600, 0.1 + 0.2),))
    assert rough.fingerprint == "8da631a79619"  # at 6838e34 of both
    assert exact.fingerprint != rough.fingerprint
    assert exact.differences(rough.to_json()) == {"cycles": ("600@0.3", "600@0.30000000000000004")}
    assert parse_cycles(str(exact.cycles[0])) == exact.cycles


def test_only_what_can_be_done_is_a_recipe() -> None:
    with pytest.raises(UsageError, match="no epoch to train"):
        Recipe(cycles=())
    with pytest.raises(UsageError, match="--target-score"):
        Recipe(target_score=0.07)
    assert parse_cycles("none", "prune-cycles") == ()
    with pytest.raises(UsageError, match="--prune-cycles: 'x' is not"):
        parse_cycles("x", "prune-cycles")


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
cycles = st.lists(st.builds(Cycle, st.integers(1), positive), min_size=1, max_size=3).map(tuple)
values: dict[str, st.SearchStrategy[Any]] = {
    "depth": st.integers(1, 99).map(lambda n: 6 * n + 4),
    "width": st.integers(1),
    "cycles": cycles,
    "prune_cycles": cycles,
    "sparsity": st.floats(0, 0.99),
    "target_score": st.floats(0, allow_infinity=False),
    "quantise_cycles": st.just(()) | cycles,
    "weight_bits": st.integers(1, 8),
    "activation_bits": st.integers(1, 8),
    "distillation": st.floats(0, 1),
    "statistics_epochs": st.integers(0),
    "batch_size": st.integers(1),
    "weight_decay": st.floats(0, allow_infinity=False),
    "mixup_alpha": st.floats(0, 1000),
    "crop_padding": st.integers(0, 15),
    "holdout": st.integers(0),
    "seed": st.integers(0, 2**64 - 1),
    "precision": st.sampled_from(PRECISIONS),
    "compile": st.booleans(),
    "evaluate_every": st.integers(1),
    "deterministic": st.booleans(),
    "data_sha256": st.text("0123456789abcdef", max_size=64),
    "from_sha256": st.text("0123456789abcdef", max_size=64),
    "teacher_sha256": st.text("0123456789abcdef", max_size=64),
}
recipes = st.fixed_dictionaries(values).map(lambda chosen: Recipe(**chosen))


def neighbour(recipe: Recipe) -> st.SearchStrategy[Recipe]:
    """The same but for one field, which may differ in the last bit only."""

    def other(name: str) -> st.SearchStrategy[Recipe]:
        return values[name].map(lambda value: replace(recipe, **{name: value}))

    first, *rest = recipe.cycles
    nearest = Cycle(first.epochs, math.nextafter(first.lr_max, 0.5))
    return st.one_of(*map(other, values), st.just(replace(recipe, cycles=(nearest, *rest))))


@hypothesis.given(recipes.flatmap(lambda recipe: st.tuples(st.just(recipe), neighbour(recipe) | recipes)))
@hypothesis.settings(max_examples=300, deadline=None, print_blob=True)
def test_unequal_recipes_have_unequal_fingerprints_and_name_their_differences(
    pair: tuple[Recipe, Recipe],
) -> None:
    one, other = pair
    changed = {
        field.name for field in fields(Recipe) if getattr(one, field.name) != getattr(other, field.name)
    }
    assert set(one.differences(other.to_json())) == changed
    assert one.fingerprint != other.fingerprint or not changed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 2**64),
        ("seed", -1),
        ("mixup_alpha", 1e300),
        ("mixup_alpha", math.nan),
        ("weight_decay", math.inf),
        ("crop_padding", 16),
        ("batch_size", 0),
        ("precision", "fp8"),
    ],
)
def test_what_a_field_does_not_take_is_a_usage_error(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}"):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (AttemptSettings, "checkpoint_every", -1.0),
        (AttemptSettings, "checkpoint_every", 0.0),
        (AttemptSettings, "grace", math.inf),
        (DeviceSettings, "step_timeout", -1.0),
    ],
)
def test_what_another_setting_does_not_take_is_a_usage_error(settings: Any, field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}"):
        settings(**{field: value})
    assert DeviceSettings(step_timeout=0.0).step_timeout == 0


def micronet(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "job.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "option", [("--seed", str(2**64)), ("--mixup-alpha", "1e300"), ("--weight-decay", "nan")]
)
def test_the_command_line_refuses_them_with_2(option: tuple[str, str]) -> None:
    done = micronet("train", "--demo", *option)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_seed_of_an_array_s_last_task_is_checked_before_it_is_submitted() -> None:
    seed = ("--seed", str(2**64 - 2), "--array", "3")
    done = micronet("submit", "aws", "--run", "s3://bucket/run", "--dry-run", *seed)
    assert done.returncode == 2
    assert "--seed" in done.stderr
