"""`bench/first_hour.sh`: its quick form runs here, and the stages for a GPU have the right predictions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import first_hour, runs
from bench.first_hour import TIMED_OUT, Hour, execute, perform
from bench.predictions import PREDICTIONS, Prediction, compare, exactly, line
from job.checks.laboratory import write_data
from tests.forked import PATIENT_DOCTOR, Process, micronet, module_code, started

SCRIPT = Path(__file__).parents[2] / "bench" / "first_hour.sh"
STAGES = [
    "doctor",
    "smoke",
    "selftest",
    "demo",
    "bench",
    "variants",
    "parallel",
    "fashion",
    "epoch",
    "profile",
    "sanitizer",
]


def hour(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)


def assert_done(out: Path, due: list[str]) -> None:
    """Check that these stages have passed, with all results that are predicted."""
    found = {stage: json.loads((out / f"{stage}.json").read_text()) for stage in due}
    assert {stage: content["exit_code"] for stage, content in found.items()} == dict.fromkeys(due, 0)
    lines = (out / "lines.txt").read_text().splitlines()
    assert sorted(text.partition(":")[0] for text in lines) == sorted(due)
    assert found["smoke"]["results"]["smoke"]["bf16"]["same_bits"] is True
    measured = {each["figure"] for content in found.values() for each in content["predictions"]}
    assert measured == {each.figure for stage in due for each in PREDICTIONS.get(stage, [])}


@pytest.mark.soak
def test_the_quick_form_does_every_stage(tmp_path: Path) -> None:
    done = hour("--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_done(tmp_path, STAGES)


def test_it_does_every_stage_that_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs here, and what it starts is forked. Other tests do the stages that are left out."""
    due = ["smoke", "bench", "profile", "sanitizer"]
    for stage in set(STAGES) - set(due):
        (tmp_path / f"{stage}.json").write_text('{"exit_code": 0}')

    def forked(command: list[str], output: Path, log: Path, seconds: float) -> int | None:
        if command[0] != sys.executable:
            return execute(command, output, log, seconds)
        with Path(os.devnull).open("rb") as nothing, output.open("wb") as stdout, log.open("wb") as stderr:
            streams = [nothing.fileno(), stdout.fileno(), stderr.fileno()]
            _, _, module, *words = command
            return Process([], dict(os.environ), streams, module_code(module, words)).wait(seconds)

    monkeypatch.setattr(first_hour, "execute", forked)
    monkeypatch.setattr(sys, "argv", ["first_hour", "--quick", "--out", str(tmp_path)])
    first_hour.main()
    assert_done(tmp_path, due)


def test_the_stages_of_whole_runs_and_of_the_doctor_have_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their programs, here; and what they start is forked."""

    def forked(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        done = micronet(*words[words.index("job.cli") + 1 :], before=PATIENT_DOCTOR)
        assert done.returncode == 0, done.stderr
        return done

    monkeypatch.setattr(runs, "started", lambda options, preemption: started(options))
    monkeypatch.setattr("bench.runs.subprocess.run", forked)
    write_data(tmp_path / "data.tar.gz")
    stages = Hour(tmp_path, "cpu", quick=True, data=str(tmp_path / "data.tar.gz")).stages()
    (doctor,) = stages["doctor"].values()
    results = {"doctor": {"doctor": json.loads(forked(doctor).stdout)}}
    for stage in ("demo", "fashion"):
        ((part, command),) = stages[stage].items()
        assert command[:3] == [sys.executable, "-m", "bench.runs"]
        monkeypatch.setattr(sys, "argv", command[2:])
        runs.main()
        results[stage] = {part: json.loads(capsys.readouterr().out)}
    assert results["demo"]["stopped"]["exit_code"] == 75
    assert results["demo"]["stopped"]["resumed"] is True
    assert list(results["fashion"]["seeds"]["accuracy"]) == ["22"]
    for stage, found in results.items():
        compared = compare(PREDICTIONS.get(stage, []), found, "")
        assert all(each["result"] is not None and each["held"] is not False for each in compared)


def test_the_environment_of_setup_is_the_default(tmp_path: Path) -> None:
    script = tmp_path / "bench" / "first_hour.sh"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    interpreters = {name: tmp_path / name for name in (".venv/bin/python", "path/python3", "own")}
    for name, path in interpreters.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {name} $*\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/path:{os.environ['PATH']}"}
    environment.pop("PYTHON", None)

    def called(**more: str) -> str:
        done = subprocess.run([script], env=environment | more, capture_output=True, text=True, check=True)
        return done.stdout

    assert called() == ".venv/bin/python -m bench.first_hour\n"
    assert called(PYTHON=str(interpreters["own"])) == "own -m bench.first_hour\n"
    interpreters[".venv/bin/python"].unlink()
    assert called() == "path/python3 -m bench.first_hour\n"


def test_a_stage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = hour("--out", str(tmp_path), "smoke", "nonsense")
    assert done.returncode == 2
    assert "no stage nonsense" in done.stderr


def test_each_prediction_is_of_a_part_of_its_stage(tmp_path: Path) -> None:
    stages = Hour(tmp_path, "cuda", quick=False, data=None).stages()
    assert list(stages) == STAGES
    for stage, predictions in PREDICTIONS.items():
        for prediction in predictions:
            assert prediction.figure.split(".")[0] in stages[stage], prediction
            assert prediction.low <= prediction.high


def test_several_gpus_prove_their_bits(tmp_path: Path) -> None:
    def parts(gpus: int) -> dict[str, list[str]]:
        return Hour(tmp_path, "cuda", quick=False, data=None, gpus=gpus).stages()["parallel"]

    assert list(parts(1)) == ["bench"]
    assert parts(4)["selftest"][-2:] == ["--processes", "4"]


def test_a_failed_command_fails_its_stage_and_not_the_next_command(tmp_path: Path) -> None:
    parts = {"bad": [sys.executable, "-c", "raise SystemExit(7)"], "good": ["printf", '{"value": 3}']}
    assert perform(tmp_path, "stage", parts, "") == 7
    content = json.loads((tmp_path / "stage.json").read_text())
    assert content["exit_codes"] == {"bad": 7, "good": 0}
    assert content["results"]["good"] == {"value": 3}
    assert not first_hour.passed(tmp_path, "stage")


def test_a_prediction_that_must_hold_everywhere_fails_the_stage(tmp_path: Path) -> None:
    parts = {"smoke": ["printf", '{"same_bits": false}']}
    assert perform(tmp_path, "smoke", parts, "") == 1
    assert "same_bits 0, predicted 1 to 1 (!)" in (tmp_path / "lines.txt").read_text()


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo $$ >&2; exec sleep 600'])"
    command = [sys.executable, "-c", script]
    assert execute(command, tmp_path / "out", tmp_path / "log", 5.0) == TIMED_OUT
    child = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("gpu", "value", "held"),
    [("NVIDIA H100 80GB HBM3", 5, True), ("NVIDIA H100 80GB HBM3", 9, False), ("", 5, None)],
)
def test_a_figure_is_judged_on_the_gpu_it_was_predicted_for(
    gpu: str, value: float, held: bool | None
) -> None:
    results = {"part": {"rate": value, "text": "5"}}
    predictions = [Prediction("part.rate", 4, 6), exactly("part.text", 5), exactly("part.absent", 5)]
    compared = compare(predictions, results, gpu)
    assert [each["held"] for each in compared] == [held, None, None]
    assert [each["result"] for each in compared] == [value, None, None]
    assert line("s", 0, 1.2, compared).startswith(f"s: ok in 1 s; part.rate {value}, predicted 4 to 6")
