import json
from pathlib import Path

import pytest

from job.errors import DataError
from job.store import Store, open_store
from job.view.plots import timeline
from job.view.stored_run import downtimes, read
from tests.view.runs import write_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_three_kills_are_three_breaks_with_their_cost(store: Store) -> None:
    write_run(store, epochs=20, kills=3)
    run = read(store)
    assert [(attempt.generation, attempt.reason) for attempt in run.attempts] == [
        (1, "vanished"),
        (2, "vanished"),
        (3, "vanished"),
        (4, "finished"),
    ]
    assert [attempt.lost_seconds for attempt in run.attempts] == [300, 301, 302, 0]
    # A killed attempt is last heard of 4 s before its end, and the next begins 25 minutes after it.
    assert downtimes(run.attempts) == [1504, 1504, 1504, None]
    line = timeline(run.attempts)
    assert line is not None
    assert [tick.label for tick in line.breaks] == ["1", "2", "3"]
    total = 10.7 * 3600 + 3 * 1500
    assert [span.start for span in line.spans] == pytest.approx(
        [100 * number * (10.7 * 900 + 1500) / total for number in range(4)]
    )
    assert [span.lost for span in line.spans] == pytest.approx(
        [100 * seconds / total for seconds in (300, 301, 302, 0)]
    )
    assert line.breaks[0].at == pytest.approx(100 * (10.7 * 900 - 4) / total)
    assert "3 breaks" in line.alt
    assert "75 min without a machine, 15 min of training repeated" in line.alt


def test_an_unfinished_run_has_a_status_and_no_report(store: Store) -> None:
    write_run(store, epochs=20, kills=1, finished=False)
    run = read(store)
    assert run.report is None
    assert run.status is not None
    assert [record.epoch for record in run.history] == list(range(1, 11))
    assert run.attempts[-1].reason is None
    assert run.predictions is None


def test_copied_outputs_are_enough(store: Store, tmp_path: Path) -> None:
    report = write_run(store, epochs=20, kills=2)
    copy = open_store(str(tmp_path / "copy"))
    for name in ("report.json", "history.jsonl"):
        copy.put(name, store.get(name).data)
    run = read(copy)
    assert (run.name, run.identity) == ("copy", report["run"]["id"])
    assert len(run.attempts) == 3
    assert {attempt.lost_seconds for attempt in run.attempts} == {None}
    assert (run.predictions, run.samples, run.recipe) == (None, None, {})


def test_what_came_after_the_end_is_no_attempt_at_the_run(store: Store) -> None:
    write_run(store, epochs=20)
    claim = json.loads(store.get("claims/1").data)
    write_run(store, epochs=20, kills=2)
    assert claim["attempt"]["host"] == "worker-0"
    one = open_store(store.uri + "/one")
    write_run(one, epochs=20)
    one.put("claims/2", store.get("claims/2").data)
    assert [attempt.generation for attempt in read(one).attempts] == [1]


def test_epochs_without_an_evaluation(store: Store) -> None:
    write_run(store, epochs=20)
    lines = [json.loads(line) for line in store.get("history.jsonl").data.splitlines()]
    for line in lines[::2]:
        del line["accuracy"], line["test_loss"]
    store.put("history.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    run = read(store)
    assert len(run.history) == 20
    assert [record.epoch for record in run.evaluated] == list(range(2, 21, 2))


def test_nothing_there_is_no_run(store: Store) -> None:
    with pytest.raises(DataError, match="holds no run"):
        read(store)


LINE = {"epoch": 1, "train_loss": 1.0, "lr": 0.1, "momentum": 0.9, "images_per_second": 9.0, "attempt": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", b"{}"),
        ("report.json", b"[]"),
        ("report.json", b"\xff"),
        ("report.json", b"[" * 100_000),
        ("history.jsonl", b"{}\n"),
        ("history.jsonl", json.dumps(LINE | {"lr": "<script>"}).encode()),
        ("history.jsonl", json.dumps(LINE | {"lr": float("nan")}).encode()),
        ("history.jsonl", json.dumps(LINE | {"accuracy": True}).encode()),
        ("history.jsonl", json.dumps(LINE | {"attempt": "1"}).encode()),
        ("history.jsonl", json.dumps(LINE | {"epoch": 2}).encode()),
        ("history.jsonl", (json.dumps(LINE) + "\n" + json.dumps(LINE)).encode()),  # an epoch twice
        ("recipe.json", b"7"),
        ("predictions.npz", b"no zip"),
        ("samples.png", b"<svg onload='alert(1)'>"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    store: Store, name: str, content: bytes
) -> None:
    write_run(store, epochs=20)
    store.put(name, content)
    with pytest.raises(DataError, match=name):
        read(store)
