"""What changed between two attempts at a run: the machine, and with `--accept-drift` the recipe."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from job.machine.device import MACHINE


def drift(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return {generation, field, before, now} for whatever differs from the attempt before."""
    found = []
    for before, attempt in pairwise(attempts):
        old, new = _circumstances(before), _circumstances(attempt)
        found += [
            {"generation": attempt["generation"], "field": field, "before": old[field], "now": new[field]}
            for field in sorted(old.keys() & new.keys())
            if old[field] != new[field]
        ]
    return found


def _circumstances(attempt: dict[str, Any]) -> dict[str, str | None]:
    """Return what an attempt's bits hang on; it is read from a store, and may hold anything."""
    fields = {field: attempt[field] for field in MACHINE if field in attempt}
    recipe = attempt.get("recipe")
    if isinstance(recipe, dict):
        fields |= {f"recipe.{field}": value for field, value in recipe.items()}
    return {field: None if value is None else str(value) for field, value in fields.items()}
