"""Whole runs to their report, as a user starts them, on a few random images."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from job import cli
from job.checks.child import named
from job.machine.preemption import Preemption
from job.recipe import RECIPES, Recipe
from job.run import claims, layout
from job.run.records import Claim, Worker
from job.settings import Placement, setting
from job.store import Store, open_store
from job.view import card, page
from tests.archives import contents, write_archive, write_tar
from tests.forked import micronet as process
from tests.forked import started

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--batch-size", "8", "--precision", "fp32"]
SHORT = ["--cycles", "1@1e-3"]
LONG = ["--cycles", "12@1e-3", "--evaluate-every", "100"]  # the first two epochs are not evaluated


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "tiny.tar.gz", train=25, test=10, classes=5)


def arguments(archive: Path, run: Path | str) -> list[str]:
    cache = str(archive.parent / "cache")
    return [*TINY, "--data", str(archive), "--cache", cache, "--run", str(run)]


@pytest.fixture
def micronet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command line here, from its words to its exit code."""

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["micronet", *words])
        return cli._run()

    return run


def report_of(run: Path) -> dict[str, Any]:
    assert (run / "report.html").stat().st_size > 10_000
    return dict(json.loads((run / "report.json").read_bytes()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_comes_to_its_report_in_every_precision(archive: Path, tmp_path: Path, precision: str) -> None:
    done = process("train", *arguments(archive, tmp_path), *SHORT, "--precision", precision)
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path)["training"]["precision"] == precision


@pytest.mark.parametrize(
    "options",
    [
        ["--cycles", "1@1e-300"],
        ["--cycles", "1@1e-3,1@1e-4,1@1e-5"],
        ["--depth", "16"],
        ["--width", "2"],
        ["--batch-size", "1", "--cycles", "1@1e-4"],
        ["--batch-size", "25"],
        ["--weight-decay", "0"],
        ["--weight-decay", "1e300", "--cycles", "1@1e-305"],
        ["--mixup-alpha", "0"],
        ["--mixup-alpha", "1e-300"],
        ["--mixup-alpha", "1000"],
        ["--crop-padding", "0"],
        ["--crop-padding", "15"],
        ["--holdout", "1"],
        ["--holdout", "17"],
        ["--seed", "0"],
        ["--seed", str(2**32)],
        ["--evaluate-every", "1"],
        ["--evaluate-every", "1000000000"],
        ["--checkpoint-every", "0.001s"],
        ["--checkpoint-every", "1000h"],
        ["--storage-budget", "0.001s"],
        ["--grace", "0.001s"],
        ["--exact"],
        ["--accept-drift"],
        ["--store-cache", "none"],
    ],
    ids=" ".join,
)
def test_a_run_comes_to_its_report_with_every_option_at_its_bounds(
    micronet: Any, archive: Path, tmp_path: Path, options: list[str]
) -> None:
    assert micronet("train", *arguments(archive, tmp_path), *SHORT, *options) == 0
    report_of(tmp_path)


def test_without_deterministic_algorithms_a_run_comes_to_its_report(archive: Path, tmp_path: Path) -> None:
    done = process("train", *arguments(archive, tmp_path), *SHORT, "--no-deterministic")
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path)["training"]["deterministic"] is False


@pytest.mark.parametrize("name", ["", "\n", "\udcff", "x" * 100_000, "\u202e<b>&\0"], ids=ascii)
def test_a_run_comes_to_its_report_whatever_the_device_is_called(
    micronet: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("job.machine.device._processor", lambda: name)
    assert micronet("train", *arguments(archive, tmp_path), *SHORT) == 0
    assert name in report_of(tmp_path)["training"]["device"]


@pytest.fixture(scope="module")
def killed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LONG, killed in its second epoch or later, with a checkpoint in one of them. For copies."""
    run = tmp_path_factory.mktemp("killed") / "run"
    with started([*arguments(archive, run), *LONG, "--checkpoint-every", "0.01s"]) as child:
        assert child.until(named("epoch"))
        assert child.until(named("checkpoint"))
        child.until(lambda event: event["event"] == "checkpoint" and event["epoch"] >= 2)
        child.signal(signal.SIGKILL)
        child.end()
    return run


@pytest.mark.parametrize(
    "options",
    [
        ["--cycles", "5@2e-3,5@1e-4"],
        ["--batch-size", "16"],
        ["--batch-size", "16", "--cycles", "11@1e-3"],
        ["--weight-decay", "0"],
        ["--mixup-alpha", "0"],
        ["--crop-padding", "0"],
        ["--holdout", "8"],
        ["--seed", "1"],
        ["--precision", "bf16", "--cycles", "4@1e-3"],
        ["--precision", "fp16", "--cycles", "4@1e-3"],
        ["--evaluate-every", "1"],
        ["--no-deterministic"],
    ],
    ids=" ".join,
)
def test_a_run_comes_to_its_report_with_every_option_that_may_change(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path, options: list[str]
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    words = ["train", *arguments(archive, run), *LONG]
    assert micronet(*words, *options) == 78
    assert micronet(*words, *options, "--accept-drift") == 0
    changed = {change["field"] for change in report_of(run)["lineage"]["drift"]}
    names = [option.removeprefix("--").removeprefix("no-") for option in options if option.startswith("--")]
    assert changed == {f"recipe.{name.replace('-', '_')}" for name in names}


@pytest.mark.parametrize(("before", "now"), [("8", "0"), ("0", "8"), ("8", "16")])
def test_a_run_comes_to_its_report_when_its_holdout_changes(
    micronet: Any, archive: Path, tmp_path: Path, before: str, now: str
) -> None:
    words = [*arguments(archive, tmp_path), *LONG[:2], "--evaluate-every", "1", "--holdout"]
    with started([*words, before, "--checkpoint-every", "0.01s"]) as child:
        assert child.until(lambda event: event["event"] == "checkpoint" and event["epoch"] >= 3)
        child.signal(signal.SIGKILL)
        child.end()
    assert micronet("train", *words, now, "--accept-drift") == 0
    best = report_of(tmp_path)["accuracy"]["best"]
    assert best["selected_on"] == ("holdout" if before != "0" != now else "test")


def test_a_run_comes_to_its_report_when_its_cycles_end_where_it_is(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    newest = claims.latest(open_store(str(run)))
    assert newest
    cycles = f"{newest.epoch}@1e-3"
    assert micronet("train", *arguments(archive, run), *LONG[2:], "--cycles", cycles, "--accept-drift") == 0
    assert report_of(run)["accuracy"]["best"]["epoch"] == newest.epoch
    last = (run / "history.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["accuracy"] == report_of(run)["accuracy"]["best"]["value"]


def test_other_data_of_the_same_shape_is_accepted_to_the_report(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    other = write_archive(tmp_path / "other.tar.gz", train=25, test=15, classes=5, seed=3)
    words = arguments(archive, run)
    words[words.index(str(archive))] = str(other)
    assert micronet("train", *words, *LONG, "--accept-drift") == 0
    assert report_of(run)["data"]["test"] == 15


def worker(store: Store) -> dict[str, Any]:
    """What the first attempt's claim says of it."""
    return Claim.read(store, layout.claim(1)).attempt.model_dump()


def reclaim(store: Store, about: dict[str, Any]) -> None:
    claim = Claim.read(store, layout.claim(1))
    claims.save(store, claim.model_copy(update={"attempt": Worker.parse(about, "the test")}))


@pytest.mark.parametrize("ahead_hours", [1, 24, -24])
def test_the_clock_of_an_earlier_machine_stops_no_report(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path, capsys: Any, ahead_hours: int
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    store = open_store(str(run))
    began = datetime.fromisoformat(worker(store)["started"]) + timedelta(hours=ahead_hours)
    reclaim(store, worker(store) | {"started": began.isoformat()})
    assert micronet("train", *arguments(archive, run), *LONG) == 0
    training = report_of(run)["training"]
    assert 0 < training["trained_seconds"] < 3600
    if ahead_hours > 0:
        assert "wall_seconds" not in training
        assert "wall_seconds" in capsys.readouterr().err
    else:
        assert training["wall_seconds"] >= training["trained_seconds"]


def named_archive(path: Path, **names: list[str]) -> Path:
    files = contents(train=40, test=20, classes=5)
    files["meta"] |= names
    return write_tar(path, {name: pickle.dumps(content, 2) for name, content in files.items()})


@pytest.mark.parametrize("field", ["fine_label_names", "coarse_label_names"])
@pytest.mark.parametrize("name", ["\udcff", "x" * 4_000_000], ids=["lone surrogate", "4 million characters"])
def test_a_class_name_that_no_page_can_hold_is_bad_data_before_the_first_step(
    tmp_path: Path, field: str, name: str
) -> None:
    rest = ["b", "c", "d", "e"] if field == "fine_label_names" else []
    archive = named_archive(tmp_path / "named.tar.gz", **{field: [name, *rest]})
    done = process("train", *arguments(archive, tmp_path / "run"), *SHORT)
    assert done.returncode == 65, done.stderr[-500:]
    last = done.stderr.splitlines()[-1]
    assert field in last
    assert len(last) < 500
    assert not (tmp_path / "run").exists()


def test_class_names_at_their_bounds_come_to_the_report(micronet: Any, tmp_path: Path) -> None:
    names = ["x" * 200, "\x1b[31m", "\u202e</script>", " ", "\0"]
    archive = named_archive(tmp_path / "named.tar.gz", fine_label_names=names, coarse_label_names=["\n"])
    assert micronet("train", *arguments(archive, tmp_path / "run"), *SHORT) == 0
    report_of(tmp_path / "run")


def test_a_run_whose_path_is_not_utf8_is_refused_before_anything_is_done(
    archive: Path, tmp_path: Path
) -> None:
    run = tmp_path / os.fsdecode(b"run-\xff")
    done = process("train", *arguments(archive, run), *SHORT)
    assert done.returncode == 2, done.stderr
    assert "not UTF-8" in done.stderr.splitlines()[-1]
    assert not run.exists()


def test_an_archive_whose_path_is_not_utf8_comes_to_the_report(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / os.fsdecode(b"data-\xff.tar.gz")
    shutil.copy(archive, other)
    words = arguments(archive, tmp_path / "run")
    words[words.index(str(archive))] = str(other)
    done = process("train", *words, *SHORT)
    assert done.returncode == 0, done.stderr
    report_of(tmp_path / "run")


def test_a_page_or_card_that_cannot_be_written_does_not_take_the_exit_code(
    micronet: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as broken:
        broken.setattr(page, "render", lambda runs: 1 / 0)
        broken.setattr(card, "encode", lambda run: 1 / 0)
        for _ in range(2):  # the run, and the run that is finished
            assert micronet("train", *arguments(archive, run), *SHORT) == 0
            events = capsys.readouterr().err
            assert "page_failed" in events
            assert "card_failed" in events
    assert not (run / "report.html").exists()
    assert micronet("report", str(run), "--output", str(run / "report.html")) == 0
    report_of(run)


@dataclass(frozen=True)
class LaterRecipe(Recipe):
    """The recipe of a later program, which has a field that older runs lack."""

    label_smoothing: float = setting(0.0, "Label smoothing.", before=0.0)


def test_a_run_of_an_older_program_comes_to_its_report_when_the_recipe_has_a_new_field(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    monkeypatch.setitem(RECIPES, "entry", LaterRecipe())
    assert micronet("train", *arguments(archive, run), *LONG, "--exact") == 0
    newest = claims.last(open_store(str(run)))
    assert newest is not None
    assert newest.attempt.recipe is not None
    assert newest.attempt.recipe["label_smoothing"] == 0.0
    lineage = report_of(run)["lineage"]
    assert len(lineage["attempts"]) == 2
    assert lineage["drift"] == []


@pytest.fixture
def another(killed: Path, tmp_path: Path) -> Any:
    """Return a function that copies the killed run as if another machine had begun it."""

    def copy(**differs: str | None) -> Path:
        run = shutil.copytree(killed, tmp_path / "another")
        store = open_store(str(run))
        reclaim(store, worker(store) | differs)
        return run

    return copy


SETTINGS = {
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "OMP_DYNAMIC": "true",
}


def test_each_setting_that_changes_the_bits_is_drift(archive: Path, killed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    words = ["train", *arguments(archive, run), *LONG]
    before = {variable: os.environ.get(variable) for variable in SETTINGS}
    done = process(*words, "--exact", **SETTINGS)
    assert done.returncode == 78, done.stderr
    for variable, value in SETTINGS.items():
        assert f"{variable} {before[variable]!r} -> '{value}'" in done.stderr.splitlines()[-1]
    done = process(*words, **SETTINGS)
    assert done.returncode == 0, done.stderr
    changes = {change["field"]: change for change in report_of(run)["lineage"]["drift"]}
    for variable, value in SETTINGS.items():
        assert f"{variable}='{before[variable]} -> {value}'" in done.stderr
        assert changes[variable] == {
            "generation": 2, "field": variable, "before": before[variable], "now": value,
        }  # fmt: skip


def test_another_version_of_each_thing_that_makes_the_bits_is_drift(
    micronet: Any, archive: Path, another: Any, capsys: Any
) -> None:
    fields = ("code", "torch", "torchvision", "numpy", "fastai")
    run = another(**dict.fromkeys(fields, "0.0"))
    assert micronet("train", *arguments(archive, run), *LONG, "--exact") == 78
    refusal = capsys.readouterr().err
    assert all(f"{field} '0.0' -> " in refusal for field in fields)
    assert micronet("train", *arguments(archive, run), *LONG) == 0
    changes = report_of(run)["lineage"]["drift"]
    assert [(change["field"], change["before"]) for change in changes] == [
        (field, "0.0") for field in sorted(fields)
    ]


def test_other_hardware_is_refused_for_another_machine_to_retry(
    micronet: Any, archive: Path, another: Any
) -> None:
    assert micronet("train", *arguments(archive, another(device="a GPU")), *LONG, "--exact") == 74


def test_an_attempt_that_did_not_record_a_field_is_no_drift(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    store = open_store(str(run))
    old = {name: worker(store)[name] for name in ("host", "started", "device", "torch", "recipe")}
    reclaim(store, old)
    assert micronet("train", *arguments(archive, run), *LONG, "--exact") == 0
    assert report_of(run)["lineage"]["drift"] == []


def fresh(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `micronet` in a process that imports the code itself."""
    return subprocess.run(
        [sys.executable, "-m", "job.cli", *words],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},  # not the folder it is called from
        check=False,
    )


def test_a_finished_run_names_the_code_that_made_it_and_the_code_that_is_here(
    archive: Path, killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    shutil.copytree(Path(cli.__file__).parent, tmp_path / "code" / "job")
    words = ["train", *arguments(archive, run), *LONG]
    done = fresh(*words, "--exact", PYTHONPATH=str(tmp_path / "code"))  # the same code at another place
    assert done.returncode == 0, done.stderr
    augment = tmp_path / "code" / "job" / "train" / "augment.py"
    augment.write_text(augment.read_text().replace("MAX_ROTATE = 10.0", "MAX_ROTATE = 45.0"))
    done = fresh(*words, PYTHONPATH=str(tmp_path / "code"))
    assert done.returncode == 0, done.stderr
    assert "made_by" in done.stderr
    assert "code_changed" in done.stderr


def test_an_attempt_that_left_no_checkpoint_is_named_when_the_next_begins(
    micronet: Any, archive: Path, tmp_path: Path, capsys: Any
) -> None:
    words = [*arguments(archive, tmp_path), *LONG]
    with started([*words, "--checkpoint-every", "1h"]) as child:
        assert child.until(named("first_step"))
        child.signal(signal.SIGKILL)
        child.end()
    assert micronet("train", *words) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no_checkpoint_left" in line]
    assert "by_attempt=1" in line
    assert "reason=vanished" in line


def test_an_attempt_that_left_a_checkpoint_is_not_named_so(
    micronet: Any, archive: Path, killed: Path, tmp_path: Path, capsys: Any
) -> None:
    assert micronet("train", *arguments(archive, shutil.copytree(killed, tmp_path / "run")), *LONG) == 0
    assert "no_checkpoint_left" not in capsys.readouterr().err


def test_the_first_step_is_counted_from_the_start_of_the_program_not_of_what_came_before(
    archive: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "job.cli", "--log-format", "json", "train", *arguments(archive, tmp_path)]
    done = subprocess.run(
        ["/bin/sh", "-c", 'sleep 2; date +%s.%N; exec "$@"', "sh", *words, *SHORT],  # as setup.sh does
        capture_output=True,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (first,) = [event for event in events if event["event"] == "first_step"]
    ended = datetime.fromisoformat(first["time"]).timestamp()
    assert 0 < first["after_seconds"] <= ended - float(done.stdout.split()[0])


def test_a_demo_is_saved_every_few_seconds(monkeypatch: pytest.MonkeyPatch, micronet: Any) -> None:
    placements: list[Placement] = []

    def train(recipe: Recipe, placement: Placement, preemption: Preemption) -> NoReturn:
        placements.append(placement)
        raise ZeroDivisionError

    monkeypatch.setattr("job.train.job.train", train)
    for words in (["--demo"], ["--demo", "--checkpoint-every", "60s"], []):
        micronet("train", "--device", "cpu", *words)
    assert [placement.attempt.checkpoint_every for placement in placements] == [5.0, 60.0, 60.0]


LITTLE_MEMORY = """
import pathlib, resource
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
"""


def test_too_little_memory_of_the_processor_names_the_batch_size(archive: Path, tmp_path: Path) -> None:
    """A convolution of 4096 channels has 604 MB of weights, and the process may have 268 MB more."""
    words = [*arguments(archive, tmp_path / "run"), *SHORT, "--width", "64"]
    done = process("train", *words, before=LITTLE_MEMORY)
    assert done.returncode == 78, done.stderr[-500:]
    last = done.stderr.splitlines()[-1]
    assert "the processor has too little memory" in last
    assert "Lower --batch-size, now 8" in last


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_too_little_memory_elsewhere_is_the_machines_fault(
    allocate: Any, monkeypatch: pytest.MonkeyPatch, micronet: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("job.score.source.subject", lambda *arguments: allocate(2**50))
    assert micronet("score") == 74
    assert "the machine has too little memory" in capfd.readouterr().err.splitlines()[-1]
