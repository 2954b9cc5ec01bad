"""The selftest against a real S3 server, its ends by signals, and that it can fail."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job import cli, events
from job.checks.interruptions import (
    LATE,
    PHASES,
    Kill,
    Position,
    plan_kills,
    position,
    prove_pauses,
    prove_same_bits,
)
from job.checks.laboratory import Result, differences, laboratory
from job.errors import DataError
from job.machine.preemption import Preemption
from job.run.records import Epoch
from job.run.report import Report
from job.store import open_store
from tests.forked import started as forked
from tests.run.checkpoint_runs import seeded
from tests.servers import FaultProxy
from tests.view.runs import COMPACT

EPOCHS = 2
REPORT = json.loads(COMPACT.read_bytes())
REPORT["training"]["epochs"] = EPOCHS
HISTORY = [
    {"epoch": epoch, "train_loss": 4.5, "lr": 0.1, "momentum": 0.9, "images_per_second": 90.0, "attempt": 1}
    for epoch in range(1, EPOCHS + 1)
]


SEED_1221 = 2  # of attempts with 1, 2, 2 and 1 processes
AT_AGENT, AT_PROCESS_1 = 0.3, 0.9  # of: all, the agent, process 0, process 1
TRAINING = ("--device", "cpu", "--precision", "fp32", "--width", "1")


def run_selftest(uri: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "job.cli", "--log-format", "json", "selftest", "--run", uri, *options],
        capture_output=True,
        text=True,
        check=False,
    )


def assert_proved(done: subprocess.CompletedProcess[str], uri: str, kills: int) -> list[dict[str, Any]]:
    """Return where the kills came."""
    assert done.returncode == 0, done.stderr
    print(done.stderr, done.stdout)
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    places = [event for event in logged if event["event"] == "killed"]
    assert [event["number"] for event in places] == list(range(1, kills + 1))
    assert {event["event"] for event in logged} >= {"selftest", "paused", "fenced", "fell_back", "unread"}
    assert [event["number"] for event in logged if event["event"] == "pauses"][-1] == kills
    assert f"{kills} of attempts that contended" in done.stdout
    assert f"{kills} by SIGKILL" in done.stdout
    assert open_store(uri).list() == []
    return places


@pytest.mark.timeout(900)
def test_two_kills_the_fence_and_the_fallback_in_a_bucket(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here its attempts are forked; those below, and a signal's test, have interpreters of their own."""
    monkeypatch.setattr("job.checks.laboratory.started", lambda options, preemption: forked(options))
    words = ["micronet", "--log-format", "json", "selftest", "--run", s3_uri, "--kills", "2"]
    monkeypatch.setattr(sys, "argv", words)
    code = cli._run()
    events.configure("human")
    printed = capsys.readouterr()
    assert_proved(subprocess.CompletedProcess(words, code, printed.out, printed.err), s3_uri, 2)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_two_hundred_kills_and_pauses_change_no_bit(s3_uri: str) -> None:
    began = time.monotonic()
    places = assert_proved(run_selftest(s3_uri, "--kills", "200"), s3_uri, 200)
    print(f"{time.monotonic() - began:.0f} s")
    phases = Counter(event["phase"] for event in places)
    assert phases.keys() >= {"download", "training", "commit", "evaluation"}
    assert phases.keys() & set(LATE)
    assert len({event.get("epoch") for event in places}) > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_and_pauses_change_no_bit_in_googles_storage(gs_uri: str) -> None:
    assert_proved(run_selftest(gs_uri, "--kills", "20"), gs_uri, 20)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_bad_answers_under_kills_and_pauses_change_no_bit(
    s3_uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    generator = seeded()
    answers = [("html", status) for status in (200, 302, 400, 403, 404)]
    answers += [
        ("no_etag", 0),
        ("denied", 0),
        ("unavailable", 0),
        ("refuse", 0),
        ("lose", 0),
        ("truncate", 9),
    ]
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(generator.uniform(0.1, 1.5)):
            if not proxy.faults:
                proxy.faults.append(generator.choice(answers))

    with laboratory(s3_uri, 8, TRAINING, False, Preemption(10)) as lab:
        lab.finish("reference")
        reference = lab.result("reference")
        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        try:
            prove_same_bits(lab, reference, plan_kills(10, 8, generator.randrange(2**32)))
            prove_pauses(lab, reference, 20, generator.randrange(2**32))
        finally:
            over.set()
            disturbing.join()
            proxy.faults.clear()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_kill_that_comes_too_late_is_repeated_in_another_run(tmp_path: Path) -> None:
    with laboratory(str(tmp_path), 4, TRAINING, False, Preemption(10)) as lab:
        lab.finish("reference")
        late = Kill("publishing", epoch=4, delay_seconds=20)
        (killed,) = prove_same_bits(lab, lab.result("reference"), [late])
        assert killed.where.phase == "publishing"
        runs = {entry.key.split("/")[0] for entry in open_store(lab.uri).list()}
    assert runs == {"data.tar.gz", "reference", "killed-1", "killed-2"}


def test_kills_of_an_agent_and_of_a_process_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.checks.laboratory.started", lambda options, preemption: forked(options))
    with laboratory(str(tmp_path), 4, TRAINING, False, Preemption(10), processes=2, seed=SEED_1221) as lab:
        lab.finish("reference")
        kills = [Kill("training", 1, 0.1, aim) for aim in (AT_AGENT, AT_PROCESS_1)]
        killed = prove_same_bits(lab, lab.result("reference"), kills)
    assert [each.victim for each in killed] == ["agent", "process 1"]
    assert lab.shared == {1: 2, 2: 2}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_and_pauses_of_several_processes_change_no_bit(s3_uri: str) -> None:
    done = run_selftest(s3_uri, "--kills", "20", "--processes", "4")
    places = assert_proved(done, s3_uri, 20)
    assert {event.get("victim", "all") for event in places} >= {"all", "agent", "process 0", "process 1"}
    assert all(f"{count} in " in done.stdout for count in (1, 2, 4))


def test_a_bucket_that_is_missing_is_reported_before_anything_is_started(s3_uri: str) -> None:
    done = run_selftest("s3://no-such-bucket/x", "--kills", "1")
    assert done.returncode == 78, done.stderr
    assert "no-such-bucket" in done.stderr
    assert "killed" not in done.stderr


def test_sigterm_ends_it_with_75_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "job.cli", "selftest", "--run", str(tmp_path), "--kills", "1"]
    command += ["--precision", "bf16", "--width", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        await_(lambda: list(tmp_path.glob("selftest-*/reference/recipe.json")))
        (recipe,) = tmp_path.glob("selftest-*/reference/recipe.json")
        asked = json.loads(recipe.read_bytes())
        assert (asked["precision"], asked["width"]) == ("bf16", 2)
        assert processes_on(tmp_path)
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, words
    assert "Traceback" not in words
    assert list(tmp_path.iterdir()) == []
    assert processes_on(tmp_path) == []


def test_no_attempt_outlives_a_selftest_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from job.checks.child import Child;"
        "child = Child(['--run', sys.argv[1]]); print('started', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout
    with parent, parent.stdout:
        assert parent.stdout.readline() == b"started\n"
        assert len(processes_on(tmp_path)) == 2
        parent.kill()
    await_(lambda: processes_on(tmp_path) == [])


def await_(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300  # a start takes 12 s, and many times that on a machine that is busy
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_on(folder: Path) -> list[int]:
    """Return the processes with the folder among their arguments, without what has ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return [number for number in found if number != os.getpid()]


def result(changed: Callable[[dict[str, Any], list[dict[str, Any]]], object] = lambda *_: None) -> Result:
    report, history = copy.deepcopy(REPORT), copy.deepcopy(HISTORY)
    changed(report, history)
    return Result(Report.parse(report, "report"), [Epoch.parse(record, "history") for record in history])


def test_what_is_measured_may_differ() -> None:
    def elsewhere(report: dict[str, Any], history: list[dict[str, Any]]) -> None:
        report["run"]["uri"] = report["weights"]["uri"] = "s3://bucket/two"
        report["training"] |= {"images_per_second": 7.0, "wall_seconds": 70.0}
        report["lineage"]["attempts"] *= 3
        history[1] |= {"images_per_second": 7.0, "attempt": 3}

    assert differences(result(), result(elsewhere)) == []


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (
            lambda report, history: report["weights"].update(sha256="34" * 32),
            [f"report.weights.sha256 is '{'34' * 32}' and not '{REPORT['weights']['sha256']}'"],
        ),
        (
            lambda report, history: report["accuracy"]["best"].update(epoch=2),
            [f"report.accuracy.best.epoch is 2 and not {REPORT['accuracy']['best']['epoch']}"],
        ),
        (
            lambda report, history: report["score"]["official"].pop("freebie"),
            ["report.score.official.freebie is 'absent' and not False"],
        ),
        (
            lambda report, history: history[1].update(train_loss=4.25),
            ["epoch 2.train_loss is 4.25 and not 4.5"],
        ),
        (lambda report, history: history.pop(0), ["the history has the epochs [2]"]),
        (lambda report, history: history.append(history[1]), ["the history has the epochs [1, 2, 2]"]),
        (lambda report, history: history.reverse(), ["the history has the epochs [2, 1]"]),
    ],
    ids=["weights", "best", "absent", "loss", "gap", "duplicate", "order"],
)  # fmt: skip
def test_whatever_else_differs_is_reported(change: Callable[..., object], reported: list[str]) -> None:
    assert differences(result(), result(change)) == reported


def test_published_weights_must_have_the_hash_of_the_report(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc (FIPS 180-2)
    file = {"uri": "abc", "sha256": digest}
    store.put("report.json", json.dumps(REPORT | {"weights": file, "predictions": file}).encode())
    store.put("history.jsonl", "\n".join(map(json.dumps, HISTORY)).encode())
    store.put("weights.safetensors", b"abc")
    store.put("predictions.npz", b"abc")
    assert [record.epoch for record in Result.read(store).history] == [1, 2]
    store.put("weights.safetensors", b"abd")
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        Result.read(store)


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_kills_are_spread_evenly_over_the_phases_and_the_late_ones_come_last(count: int) -> None:
    for seed in range(20):
        kills = plan_kills(count, epochs=10, seed=seed)
        dealt = Counter(kill.phase for kill in kills)
        assert dealt.total() == count
        assert max(dealt.values()) - min(dealt[phase] for phase in PHASES) <= 1, f"seed {seed}"
        phases = [kill.phase for kill in kills]
        first_late = next((index for index, phase in enumerate(phases) if phase in LATE), count)
        assert all(phase in LATE for phase in phases[first_late:])
        early = [kill.epoch for kill in kills[:first_late]]
        assert early == sorted(early)
        assert all(1 <= epoch <= 10 for epoch in early)
        assert kills == plan_kills(count, epochs=10, seed=seed)


@pytest.mark.parametrize(
    ("names", "phase"),
    [
        ("", "start"),
        ("data", "download"),
        ("data resume train", "training"),
        ("data train saving", "saving"),
        ("data train saving evaluate", "evaluation"),
        ("data train saving evaluate epoch", "saving"),
        ("data train saving commit", "commit"),
        ("data train saving commit checkpoint", "training"),
        ("data train saving commit checkpoint evaluate", "evaluation"),
        ("data train evaluate epoch", "training"),
        ("data train evaluate epoch score", "scoring"),
        ("data train evaluate epoch score commit publish", "publishing"),
    ],
)
def test_the_phase_of_a_kill_is_read_from_the_events(names: str, phase: str) -> None:
    assert position([{"event": name} for name in names.split()]) == Position(phase)


def test_the_epoch_and_step_of_a_kill_are_the_last_that_were_named() -> None:
    events = [
        {"event": "train", "attempt": 2},
        {"event": "saving", "epoch": 3, "step": 8},
        {"event": "epoch", "epoch": 4},
    ]
    assert position(events[:1]).fields() == {"phase": "training"}
    assert position(events[:2]).fields() == {"phase": "saving", "epoch": 3, "step": 8}
    assert position(events).fields() == {"phase": "saving", "epoch": 4, "step": 8}
