"""Several runs side by side: those that differ in nothing but the seed are one group with a mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from job.view.evidence import Evidence
from job.view.statistics import Estimate, estimate

OF_ONE_RUN = ("seed", "identity")
"""Fields of recipe.json that tell one run of a recipe from another."""


@dataclass(frozen=True)
class Group:
    """Finished runs of one recipe; `differs` is what their recipe has that another group's has not."""

    runs: list[Evidence]
    differs: dict[str, Any]
    accuracy: Estimate
    best: Estimate
    images_per_second: Estimate

    @property
    def seeds(self) -> list[Any]:
        """The seeds, in order of the runs."""
        return [run.recipe.get("seed") for run in self.runs]


def groups(runs: Sequence[Evidence]) -> list[Group]:
    """Return the groups of the finished ones among `runs`, a run named twice counted once."""
    members: dict[str, dict[str, Evidence]] = {}
    for run in runs:
        if run.report:
            members.setdefault(_without_seed(run), {}).setdefault(run.report["weights"]["sha256"], run)
    recipes = [json.loads(key) for key in members]
    return [
        Group(
            runs=list(group.values()),
            differs=_differences(recipe, recipes),
            accuracy=_estimate(group, lambda report: report["accuracy"]["final"]),
            best=_estimate(group, lambda report: report["accuracy"]["best"]["value"]),
            images_per_second=_estimate(group, lambda report: report["training"]["images_per_second"]),
        )
        for recipe, group in zip(recipes, members.values(), strict=True)
    ]


def are_seeds(runs: Sequence[Evidence]) -> bool:
    """Tell whether `runs` are several of one recipe, so that their mean means something."""
    return len(runs) > 1 and len({_without_seed(run) for run in runs}) == 1


def labels(runs: Sequence[Evidence]) -> list[str]:
    """Return what to call each run beside the others: its seed where that is all that differs."""
    seeds = [run.recipe.get("seed") for run in runs]
    if are_seeds(runs) and len(set(map(str, seeds))) == len(runs):
        return [f"seed {seed}" for seed in seeds]
    return [run.name for run in runs]


def _without_seed(run: Evidence) -> str:
    rest = {name: value for name, value in run.recipe.items() if name not in OF_ONE_RUN}
    return json.dumps(rest, sort_keys=True)


def _differences(recipe: dict[str, Any], recipes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: value for name, value in recipe.items() if any(other.get(name) != value for other in recipes)
    }


def _estimate(group: dict[str, Evidence], of: Any) -> Estimate:
    return estimate([of(run.report) for run in group.values()])
