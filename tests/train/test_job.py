"""The whole job on a data set of a few random images."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job.data.dataset import prepare
from job.errors import ConfigurationError, DataError, MachineError
from job.machine import device as devices
from job.machine.preemption import Preemption
from job.phases import Cycle
from job.recipe import Recipe
from job.run.checkpoints import Checkpoints
from job.run.records import Worker
from job.settings import AttemptSettings, DataSettings, DeviceSettings, Placement
from job.store import open_store
from job.train import job
from job.train.evaluate import MISTAKES, assess
from tests.archives import write_archive
from tests.disks import tiny_disk

RECIPE = Recipe(depth=10, width=1, cycles=(Cycle(1, 5e-3), Cycle(1, 1e-3)), batch_size=16, precision="fp32")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "tiny.tar.gz", train=70, test=30, classes=5)


def train(recipe: Recipe, placement: Placement) -> dict[str, Any]:
    report = job.train(recipe, placement, Preemption(10))
    assert report is not None
    return report.to_json()


def place(archive: Path, run: Path) -> Placement:
    return Placement(
        str(run), DataSettings((str(archive),), str(archive.parent / "cache")), DeviceSettings("cpu")
    )


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("run")
    return run, train(RECIPE, place(archive, run))


def test_a_run_leaves_its_five_files(finished: tuple[Path, dict[str, Any]]) -> None:
    run, report = finished
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.json", "history.jsonl", "weights.safetensors", "predictions.npz", "report.json"}
    assert json.loads((run / "report.json").read_bytes()) == report


def test_the_report_points_at_what_it_speaks_of(finished: tuple[Path, dict[str, Any]], archive: Path) -> None:
    run, report = finished
    for name in ("weights", "predictions"):
        path = Path(report[name]["uri"])
        assert path.parent == run
        assert hashlib.sha256(path.read_bytes()).hexdigest() == report[name]["sha256"]
    assert report["data"] == {
        "source": str(archive),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "train": 70,
        "test": 30,
    }
    assert report["training"]["cycles"] == "1@0.005,1@0.001"
    assert report["model"]["input_shape"] == [3, 32, 32]


def test_every_prediction_can_be_audited(finished: tuple[Path, dict[str, Any]], archive: Path) -> None:
    run, report = finished
    with np.load(run / "predictions.npz") as predictions:
        label, prediction, top = (predictions[name] for name in ("label", "prediction", "top_five"))
        mistakes, images = predictions["mistakes"], predictions["mistake_images"]
    assert label.tolist() == [index % 5 for index in range(30)]
    assert (top[:, 0] == prediction).all()
    assert all(sorted(row) == [0, 1, 2, 3, 4] for row in top.tolist())
    assert (label == prediction).sum() == report["accuracy"]["correct"]
    wrong = np.flatnonzero(label != prediction)
    assert len(mistakes) == min(len(wrong), MISTAKES)
    assert set(mistakes) <= set(wrong)
    test = prepare((str(archive),), archive.parent / "cache").dataset.test
    assert (images == test.images[mistakes]).all()
    assert report["accuracy"]["final"] == report["accuracy"]["correct"] / 30


def test_saved_weights_give_the_reports_accuracy_back(
    finished: tuple[Path, dict[str, Any]], archive: Path
) -> None:
    run, report = finished
    for uri in (str(run), str(run / "weights.safetensors"), run.as_uri()):
        result = assess(uri, (str(archive),), str(archive.parent / "cache"), "cpu")
        assert result.accuracy == report["accuracy"]["final"]


def test_weights_are_not_measured_on_another_data_set(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = write_archive(tmp_path / "other.tar.gz", train=20, test=10, classes=5, seed=1)
    with pytest.raises(ConfigurationError, match="SHA-256"):
        assess(str(finished[0]), (str(other),), str(tmp_path), "cpu")


def test_lineage_tells_the_one_attempt(finished: tuple[Path, dict[str, Any]]) -> None:
    lineage = finished[1]["lineage"]
    assert [(attempt["generation"], attempt["reason"]) for attempt in lineage["attempts"]] == [
        (1, "finished")
    ]
    assert (lineage["checkpoints"], lineage["lost_seconds"]) == (2, 0)  # the last state, and the outputs


def test_another_machine_is_told_and_with_exact_refused(archive: Path, tmp_path: Path) -> None:
    here = devices.machine(torch.device("cpu"))
    first = {"host": "there", "started": "2026-11-22T12:00:00+00:00", **here, "torch": "1.1.0"}
    Checkpoints.claim(open_store(str(tmp_path)), "ab", Worker.parse(first, "first"))
    with pytest.raises(ConfigurationError, match=r"torch '1\.1\.0' -> "):
        train(RECIPE, replace(place(archive, tmp_path), attempt=AttemptSettings(exact=True)))
    lineage = train(RECIPE, place(archive, tmp_path))["lineage"]
    change = {"field": "torch", "before": "1.1.0", "now": torch.__version__}
    assert lineage["drift"] == [{"generation": 2, **change}]


def test_history_has_a_line_an_epoch(finished: tuple[Path, dict[str, Any]]) -> None:
    records = [json.loads(line) for line in (finished[0] / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    names = {"epoch", "train_loss", "test_loss", "accuracy", "lr", "momentum", "images_per_second", "attempt"}
    assert all(record.keys() == names for record in records)
    best = max(record["accuracy"] for record in records)
    assert finished[1]["accuracy"]["best"]["value"] == best
    assert finished[1]["accuracy"]["best"]["selected_on"] == "test"


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(
    finished: tuple[Path, dict[str, Any]], archive: Path, tmp_path: Path
) -> None:
    torch.manual_seed(12345)  # nothing may hang on the global generator
    again = train(RECIPE, place(archive, tmp_path / "again"))
    other = train(replace(RECIPE, seed=23), place(archive, tmp_path / "other"))
    assert again["weights"]["sha256"] == finished[1]["weights"]["sha256"]
    assert again["predictions"]["sha256"] == finished[1]["predictions"]["sha256"]
    assert other["weights"]["sha256"] != finished[1]["weights"]["sha256"]


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, dict[str, Any]], archive: Path) -> None:
    run, report = finished
    before = (run / "history.jsonl").stat().st_mtime_ns
    assert train(RECIPE, place(archive, run)) == report
    assert (run / "history.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["report.html", "README.md"])
def test_a_finished_run_without_its_page_or_card_gets_it(
    finished: tuple[Path, dict[str, Any]], archive: Path, name: str
) -> None:
    run, report = finished
    page = run / name
    drawn = page.read_bytes()
    page.unlink()
    assert train(RECIPE, place(archive, run)) == report
    assert page.read_bytes() == drawn


def test_another_recipe_in_the_same_folder_is_refused_by_name(
    finished: tuple[Path, dict[str, Any]], archive: Path
) -> None:
    with pytest.raises(ConfigurationError, match="batch_size 16 -> 8"):
        train(replace(RECIPE, batch_size=8), place(archive, finished[0]))


def test_a_holdout_selects_the_best_epoch(archive: Path, tmp_path: Path) -> None:
    report = train(replace(RECIPE, holdout=20), place(archive, tmp_path))
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["holdout_accuracy"])
    assert report["accuracy"]["best"] == {
        "value": best["accuracy"],
        "epoch": best["epoch"],
        "selected_on": "holdout",
    }


def test_a_diverging_run_stops_with_the_last_good_epoch_named(archive: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, cycles=(Cycle(1, 1e-4), Cycle(2, 1e30)))
    with pytest.raises(ConfigurationError, match=r"not finite.*epoch 1 was the last good"):
        train(recipe, place(archive, tmp_path))
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("changed", [{"batch_size": 71}, {"holdout": 60}, {"holdout": 100}])
def test_more_than_the_data_has_is_refused_before_anything_is_written(
    archive: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="batch"):
        train(replace(RECIPE, **changed), place(archive, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_the_machines_fault_and_leaves_no_half_file(archive: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "run") as run:
        recipe = replace(RECIPE, width=3)  # 2.4 MB of weights on a disk of 1 MiB
        with pytest.raises(MachineError, match="no space"):
            train(recipe, place(archive, run))
        names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert "report.json" not in names


def test_a_damaged_report_is_an_error_and_not_an_unfinished_run(archive: Path, tmp_path: Path) -> None:
    train(replace(RECIPE, cycles=(Cycle(1, 1e-3),)), place(archive, tmp_path))
    (tmp_path / "report.json").write_bytes(b'{"schema": ')
    with pytest.raises(DataError, match=r"report\.json"):
        train(replace(RECIPE, cycles=(Cycle(1, 1e-3),)), place(archive, tmp_path))
