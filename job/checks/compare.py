"""The results of a finished run, and the differences between two runs of one recipe."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from job.errors import DataError, JobError
from job.run import layout
from job.store import Store

MEASURED = (
    "report.run",
    "report.lineage",
    "report.environment",
    "report.training.images_per_second",
    "report.training.trained_seconds",
    "report.training.wall_seconds",
    "report.training.history",
    "report.weights.uri",
    "report.predictions.uri",
)
"""What may differ between two equal runs: place, time and speed."""

SHOWN = 5  # differences in one error
MEASURED_IN_EPOCH = ("images_per_second", "attempt")


@dataclass(frozen=True)
class Result:
    """A finished run's report and the records of its history, in the order they stand there."""

    report: dict[str, Any]
    history: list[dict[str, Any]]

    @classmethod
    def read(cls, store: Store) -> Result:
        """Read what was published; DataError where a file is absent or not of the hash in the report."""
        report = json.loads(store.get(layout.REPORT).data)
        for name, key in (("weights", layout.WEIGHTS), ("predictions", layout.PREDICTIONS)):
            if hashlib.sha256(store.get(key).data).hexdigest() != report[name]["sha256"]:
                raise DataError(f"{store.uri}/{key} does not have the SHA-256 that its report states")
        lines = store.get(layout.HISTORY).data.decode().splitlines()
        return cls(report, [json.loads(line) for line in lines])


def differences(reference: Result, other: Result) -> list[str]:
    """Return a line for each value, except those MEASURED, in which `other` is not as `reference`.

    The history must have each epoch once, in order; a line says which it has.
    """
    epochs = [record["epoch"] for record in other.history]
    if epochs != list(range(1, reference.report["training"]["epochs"] + 1)):
        return [f"the history has the epochs {epochs}"]
    mine, theirs = _values(reference), _values(other)
    return [
        f"{path} is {theirs.get(path, 'absent')!r} and not {mine.get(path, 'absent')!r}"
        for path in sorted(mine.keys() | theirs.keys())
        if (path in mine, mine.get(path)) != (path in theirs, theirs.get(path))
    ]


def require_same(reference: Result, other: Result, run: str) -> None:
    """Raise JobError where two runs differ, with the first of the differences."""
    if found := differences(reference, other):
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise JobError(
            f"the run {run!r} did not end as the undisturbed one: {'; '.join(found[:SHOWN])}{more}",
            "Run it again with the same --seed and --keep, and report what is left",
        )


def _values(result: Result) -> dict[str, Any]:
    values = _flat("report", result.report)
    for record in result.history:
        kept = {name: value for name, value in record.items() if name not in MEASURED_IN_EPOCH}
        values |= _flat(f"epoch {record['epoch']}", kept)
    return values


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Return every plain value in `value` by its path."""
    if path in MEASURED:
        return {}
    if isinstance(value, dict):
        parts = [(f"{path}.{name}", part) for name, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    return {name: plain for part in parts for name, plain in _flat(*part).items()}
