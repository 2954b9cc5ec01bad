import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from job.commands.report import report
from job.store import open_store
from job.view import exports
from job.view.stored_run import StoredRun, read
from tests.view.runs import write_run


def run(path: Path, **how: object) -> StoredRun:
    store = open_store(str(path))
    write_run(store, **how)  # type: ignore[arg-type]
    return read(store)


def test_csv_has_every_epoch_once_and_every_digit(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", epochs=30, kills=3), run(tmp_path / "b", epochs=10, seed=1)]
    rows = list(csv.DictReader(io.StringIO(exports.csv(runs).decode())))
    assert [int(row["epoch"]) for row in rows] == [*range(1, 31), *range(1, 11)]
    assert [row["run"] for row in rows] == ["a (seed 22)"] * 30 + ["b (seed 1)"] * 10
    assert [row["id"] for row in rows] == [runs[0].identity] * 30 + [runs[1].identity] * 10
    assert [float(row["accuracy"]) for row in rows[:30]] == [line.accuracy for line in runs[0].history]
    assert {row["holdout_accuracy"] for row in rows} == {""}


def test_tensorboard_reads_back_what_the_history_holds(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    write_run(store, epochs=40, kills=1, finished=False)
    half = read(store)
    write_run(store, epochs=40, kills=3)
    whole = read(store)
    for state in (half, whole):  # the export of an unfinished run is replaced by that of the finished one
        for name, events in exports.tensorboard([state]).items():
            path = tmp_path / "logs" / Path(name).name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(events)
    assert len(list((tmp_path / "logs").iterdir())) == 1
    log = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0})
    log.Reload()
    assert set(log.Tags()["scalars"]) == set(exports.TAGS.values()) - {"accuracy/holdout"}
    for name, tag in exports.TAGS.items():
        if tag in log.Tags()["scalars"]:
            assert [event.step for event in log.Scalars(tag)] == list(range(1, 41))
            assert [event.value for event in log.Scalars(tag)] == pytest.approx(
                [getattr(record, name) for record in whole.history], rel=1e-6
            )


def test_names_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    hostile = replace(run(tmp_path, epochs=2), uri="s3://bucket/..")
    assert list(exports.tensorboard([hostile])) == [f"run/{exports.EVENT_FILE}"]
    assert len(exports.tensorboard([hostile, hostile])) == 2


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    hostile = replace(run(tmp_path, epochs=1), uri="s3://bucket/=1+1")
    assert exports.csv([hostile]).splitlines()[1].startswith(b"'=1+1,")


def test_the_command_writes_all_of_them(tmp_path: Path) -> None:
    run(tmp_path / "a", epochs=5)
    run(tmp_path / "b", epochs=5, seed=1)
    arguments = ["--output", "page.html", "--csv", "all.csv", "--tensorboard", "logs"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(report, ["a", "b", *arguments])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[:2] == ["page.html", "all.csv"]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.micronet")}
    assert written == {f"logs/{name}/{exports.EVENT_FILE}" for name in ("a-seed-22", "b-seed-1")}
    assert "2 runs compared" in (tmp_path / "page.html").read_text("utf-8")
