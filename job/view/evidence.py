"""What a run's objects say of it, read and checked: the page trusts nothing that is in a bucket.

A run that is not finished, or of which only some files were copied, has less to show and is no error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jsonschema

from job.errors import DataError
from job.run import claims
from job.score import report as reports
from job.store.base import AbsentError, Store
from job.view import status
from job.view.answers import Answers
from job.view.attempts import Attempt, attempts_of
from job.view.status import Status

REPORT, HISTORY, RECIPE = "report.json", "history.jsonl", "recipe.json"
PREDICTIONS, SAMPLES = "predictions.npz", "samples.png"

MAX_BYTES = 2**25
"""Of one file: predictions for 10,000 images take 100 kB, the history of 600 epochs 130 kB."""

PNG = b"\x89PNG\r\n\x1a\n"
ALWAYS = ("train_loss", "lr", "momentum", "images_per_second")
WHERE_EVALUATED = ("test_loss", "accuracy", "holdout_accuracy")

Record = dict[str, Any]
Content = TypeVar("Content")


@dataclass(frozen=True)
class Evidence:
    """A run. `report` is None until it is finished; `status` says where it stands as long as it is not."""

    uri: str
    report: dict[str, Any] | None
    recipe: dict[str, Any]
    history: list[Record]  # one an epoch, in order
    attempts: list[Attempt]
    status: Status | None
    answers: Answers | None
    samples: bytes | None  # a PNG

    @property
    def name(self) -> str:
        """The name of the run's folder: the last part of its address."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def identity(self) -> str:
        """The run's hash, which recipe.json and report.json hold; empty where neither was found."""
        return str(self.report["run"]["id"] if self.report else self.recipe.get("identity", ""))

    @property
    def evaluated(self) -> list[Record]:
        """The epochs after which the network was evaluated on the test set."""
        return [record for record in self.history if "accuracy" in record and "test_loss" in record]


def read(store: Store) -> Evidence:
    """Return what `store` holds of a run; DataError where it holds none, or a file is not what it should be.

    Raises the store's errors.
    """
    report = _file(store, REPORT, _report)
    history = _file(store, HISTORY, _history) or []
    lineage = claims.lineage(store)
    if report is None and not history and not lineage:
        raise DataError(f"{store.uri} holds no run", "Name the --run of a training")
    answers = _file(store, PREDICTIONS, lambda data: Answers.decode(data, _sha256(report)))
    return Evidence(
        uri=store.uri,
        report=report,
        recipe=_file(store, RECIPE, _object) or {},
        history=history,
        attempts=attempts_of(store, lineage, report),
        status=status.read(store) if lineage and report is None else None,
        answers=answers,
        samples=_file(store, SAMPLES, _png),
    )


def _file(store: Store, name: str, parse: Callable[[bytes], Content]) -> Content | None:
    """Return the parsed file, None where there is none."""
    try:
        data = store.get_range(name, 0, MAX_BYTES + 1).data
    except AbsentError:
        return None
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return parse(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{store.uri}/{name} is not what this program wrote ({error})",
            "Look at what has changed the file, or move it away",
        ) from error


def _object(data: bytes) -> dict[str, Any]:
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("no object")
    return content


def _report(data: bytes) -> dict[str, Any]:
    report = _object(data)
    try:
        reports.encode(report)
    except jsonschema.ValidationError as error:
        raise ValueError(f"{error.json_path}: {error.message[:200]}") from error
    return report


def _history(data: bytes) -> list[Record]:
    records = [_record(line) for line in data.splitlines()]
    if [record["epoch"] for record in records] != list(range(1, len(records) + 1)):
        raise ValueError("its epochs are not 1, 2, 3 and so on")
    return records


def _record(line: bytes) -> Record:
    record = _object(line)
    numbers = {name: record[name] for name in (*ALWAYS, *WHERE_EVALUATED) if name in record}
    if not numbers.keys() >= set(ALWAYS) or not all(map(_is_quantity, numbers.values())):
        raise ValueError("a line lacks a number")
    for name in ("epoch", "attempt"):
        if type(record.get(name)) is not int:
            raise ValueError(f"a line has no whole {name}")
    return {"epoch": record["epoch"], "attempt": record["attempt"], **numbers}


def _is_quantity(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _png(data: bytes) -> bytes:
    if not data.startswith(PNG):
        raise ValueError("no PNG")
    return data


def _sha256(report: dict[str, Any] | None) -> str | None:
    return report["predictions"]["sha256"] if report else None
