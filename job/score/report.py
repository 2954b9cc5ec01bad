"""The score report: one JSON document, checked against its schema each time it is written."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

import jsonschema

SCHEMA = "micronet.score-report/1"
THRESHOLD = 0.8  # the challenge's: at least 8,000 of the 10,000 test images, without rounding


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    text = files("job.score").joinpath("score-report.schema.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(
        json.loads(text), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def encode(report: dict[str, Any]) -> bytes:
    """Return `report` as indented JSON; raise `jsonschema.ValidationError` where it breaks the schema."""
    _validator().validate(report)
    return json.dumps(report, indent=2, allow_nan=False).encode() + b"\n"


def accuracy(correct: int, total: int, best: dict[str, Any]) -> dict[str, Any]:
    """Return the report's accuracy section; `best` is {value, epoch, selected_on}.

    `passed` compares whole numbers, so that 7,999 of 10,000 fails.
    """
    return {
        "final": correct / total,
        "best": best,
        "correct": correct,
        "total": total,
        "threshold": THRESHOLD,
        "passed": 10 * correct >= 8 * total,
    }
