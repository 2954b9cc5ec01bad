"""The report as a record: fixtures that older versions wrote, and the JSON schema made of the record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from job.errors import DataError
from job.recipe import PRECISIONS
from job.run import report as module
from job.run.report import THRESHOLD, Accuracy, BestEpoch, Report, schema
from job.store import open_store
from tests.view.runs import COMPACT, DENSE

WRONG: tuple[Any, ...] = (None, True, "x", -1, 1.5, [])
"""Values of every kind; some are right at some places."""


@pytest.fixture(params=[DENSE, COMPACT], ids=lambda path: path.stem)
def written(request: pytest.FixtureRequest) -> bytes:
    """A report as the version before this record wrote it."""
    return Path(request.param).read_bytes()


def test_what_older_versions_wrote_is_written_again_to_the_byte(written: bytes) -> None:
    assert Report.decode(written, "report.json").encode() == written


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (None, "phases"),
        ("training", "trained_seconds"),
        ("training", "wall_seconds"),
        ("environment", "code"),
    ],
)
def test_what_older_versions_left_out_stays_out(section: str | None, name: str) -> None:
    content = json.loads(COMPACT.read_bytes())
    (content[section] if section else content).pop(name)
    report = Report.parse(content, "report.json")
    assert report.to_json() == content
    assert not getattr(getattr(report, section) if section else report, name)


def test_a_value_that_is_not_known_is_written(written: bytes) -> None:
    content = json.loads(written)
    content["environment"]["git"] = None
    assert Report.parse(content, "report.json").to_json()["environment"]["git"] is None


RULES = {
    "parameters": 1,
    "operations": {"conv": {"multiplications": 1, "additions": 1, "counted": 1.5}},
    "total": 1.5,
    "parameter_term": 0.5,
    "operation_term": 0.5,
    "score": 1.0,
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in JSON, of a list the first element's."""
    keys = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
    for key in keys:
        yield value, key
        yield from places(value[key])


def accepted(content: Any) -> bool:
    try:
        Report.decode(json.dumps(content).encode(), "report.json")
    except DataError:
        return False
    return True


def test_the_record_accepts_what_its_schema_accepts_and_nothing_else() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema()))
    content = json.loads(DENSE.read_bytes())
    phase = json.loads(COMPACT.read_bytes())["phases"][0]
    content["phases"] = [phase | {"layers": phase["layers"][:1]}]
    content["score"]["writeup"] = content["score"]["leaderboard"] = RULES  # as `official`, and small
    tried = refused = 0
    for container, key in list(places(content)):
        before = container[key]
        for wrong in WRONG:
            container[key] = wrong
            tried, refused = tried + 1, refused + (not accepted(content))
            assert accepted(content) == validator.is_valid(content), (key, wrong)
        container[key] = before
        if isinstance(container, dict):
            del container[key]
            assert accepted(content) == validator.is_valid(content), f"without {key}"
            container[key] = before
            container["more"] = 1
            assert accepted(content) == validator.is_valid(content), f"more next to {key}"
            del container["more"]
    assert accepted(content)
    assert tried / 2 < refused < tried


def test_the_schema_that_is_published_is_the_records() -> None:
    published = Path(module.__file__).with_name("score-report.schema.json").read_text("utf-8")
    assert published == schema(), "python -c 'from job.run.report import schema; print(schema(), end=\"\")'"


@pytest.mark.parametrize("precision", sorted({*PRECISIONS, "fp8"}))
def test_a_report_names_a_precision_that_a_training_can_have(precision: str) -> None:
    content = json.loads(DENSE.read_bytes())
    content["training"]["precision"] = precision
    assert accepted(content) == (precision in PRECISIONS and precision != "auto")


def test_the_threshold_is_compared_in_whole_images() -> None:
    best = BestEpoch(value=0.8, epoch=1, selected_on="test")
    assert [Accuracy.of(correct, 10_000, best).passed for correct in (7_999, 8_000)] == [False, True]
    assert Accuracy.of(4, 5, best).threshold == THRESHOLD == 0.8


def test_the_headline_is_the_rule_set_that_counts_what_was_done() -> None:
    dense, compact = (Report.decode(path.read_bytes(), "report.json") for path in (DENSE, COMPACT))
    assert dense.headline == ("leaderboard", dense.score.leaderboard)
    assert compact.headline == ("official", compact.score.official)


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert Report.read(store) is None
    store.put("report.json", DENSE.read_bytes().replace(b'"epochs": 6', b'"epochs": 0'))
    with pytest.raises(DataError, match=rf"{tmp_path}/report\.json .*training\.epochs.*move it away"):
        Report.read(store)
