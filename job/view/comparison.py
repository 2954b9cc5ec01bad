"""Comparison of runs: those that differ only in their seed form a group with a mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from job.run.records import Scalar
from job.run.report import Report
from job.view.stored_run import StoredRun

OF_ONE_RUN = ("seed", "identity")
"""Fields of recipe.json in which two runs of one recipe may differ."""

CONFIDENCE = 0.95
ENOUGH = 3
"""Values that an interval needs: for two, Student's t makes it 13 times their standard error."""

MOST_DIFFERENCES = 3  # that a label names


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values and the half width of its 95 % interval; None for fewer than three values."""

    mean: float
    half_width: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent, roughly normal values and its interval by Student's t."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < ENOUGH:
        return Estimate(mean, None, count)
    from scipy.special import stdtrit  # 0.2 s, which a single run does without

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return Estimate(mean, quantile * deviation / math.sqrt(count), count)


@dataclass(frozen=True)
class Group:
    """Finished runs of one recipe; `differs` is what their recipe has that another group's has not."""

    runs: list[StoredRun]
    differs: dict[str, Scalar]
    accuracy: Estimate
    best: Estimate
    images_per_second: Estimate

    @property
    def seeds(self) -> list[Scalar]:
        """The seeds, in order of the runs."""
        return [run.recipe.get("seed") for run in self.runs]


def distinct(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Return `runs` without those that are another one again: the same folder, or a copy with its weights."""
    kept: dict[str, StoredRun] = {}
    for run in runs:
        kept.setdefault(run.report.weights.sha256 if run.report else run.uri, run)
    return list(kept.values())


def groups(runs: Sequence[StoredRun]) -> list[Group]:
    """Return the groups of the finished ones among `runs`, a run named twice counted once."""
    members: dict[str, list[StoredRun]] = {}
    for run in distinct(runs):
        if run.report:
            members.setdefault(_without_seed(run), []).append(run)
    recipes = [json.loads(key) for key in members]
    return [
        Group(
            runs=group,
            differs=_differences(recipe, recipes),
            accuracy=_estimate(group, lambda report: report.accuracy.final),
            best=_estimate(group, lambda report: report.accuracy.best.value),
            images_per_second=_estimate(group, lambda report: report.training.images_per_second),
        )
        for recipe, group in zip(recipes, members.values(), strict=True)
    ]


def are_seeds(runs: Sequence[StoredRun]) -> bool:
    """Return whether `runs` are several of one recipe, so that their mean means something."""
    return len(distinct(runs)) > 1 and len({_without_seed(run) for run in runs}) == 1


def recipe_differences(runs: Sequence[StoredRun]) -> dict[str, list[Scalar]]:
    """Return the value of each run for every field of the recipe in which they differ."""
    fields = dict.fromkeys(name for run in runs for name in run.recipe if name != "identity")
    values = {name: [run.recipe.get(name) for run in runs] for name in fields}
    return {name: of_runs for name, of_runs in values.items() if any(one != of_runs[0] for one in of_runs)}


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """Return what to call each run: its folder's name with what its recipe has that another's has not.

    Of more than three differences only the seed is given: the page's table of recipes has the others. No two
    labels are equal.
    """
    differences = recipe_differences(runs)
    found: list[str] = []
    for index, run in enumerate(runs):
        shown = [name for name in differences if name == "seed" or len(differences) <= MOST_DIFFERENCES]
        values = [f"{name} {differences[name][index]}" for name in shown]
        values = [value for value in values if value != re.sub("[-_]", " ", run.name)]  # seed-23 of --array
        label = f"{run.name} ({', '.join(values)})" if values else run.name
        repeats = sum(earlier == label or earlier.startswith(f"{label} #") for earlier in found)
        found.append(f"{label} #{repeats + 1}" if repeats else label)
    return found


def _without_seed(run: StoredRun) -> str:
    rest = {name: value for name, value in run.recipe.items() if name not in OF_ONE_RUN}
    return json.dumps(rest, sort_keys=True)


def _differences(recipe: dict[str, Scalar], recipes: list[dict[str, Scalar]]) -> dict[str, Scalar]:
    return {
        name: value for name, value in recipe.items() if any(other.get(name) != value for other in recipes)
    }


def _estimate(group: Sequence[StoredRun], of: Callable[[Report], float]) -> Estimate:
    return estimate([of(run.report) for run in group if run.report])
