"""A simulated GPU that fails, runs out of memory or hangs: exit code, what is saved, and the next attempt."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.simulated_gpu import Fault
from tests.simulated_gpu.attempts import Device
from tests.simulated_gpu.bench import (
    BATCH_SIZE,
    EACH_STEP,
    EPOCHS,
    IN_STEP,
    STEPS,
    Bench,
    at,
    durable,
    outcome,
)

BUG, MACHINE, PREEMPTED, CONFIGURATION = 1, 74, 75, 78  # the README's table
OPTIONS = ("--precision", "fp32", *EACH_STEP)
IN_THIRD_STEP = at(epoch=2, step=3)  # of the second epoch


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def reference(bench: Bench) -> dict[str, Any]:
    bench.finish(bench.folder / "reference", "--precision", "fp32")
    return outcome(bench.folder / "reference")


PHASES = {
    "training": (IN_STEP, IN_THIRD_STEP, (2, 2)),
    "saving": ("Trainer.state", 300, (1, 1)),  # a state takes 243 operators
    "evaluation": ("predict", 60, (2, STEPS)),
    "scoring": ("conclude", 1, (EPOCHS, STEPS)),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_device_that_fails_costs_nothing_that_is_on_the_host(
    bench: Bench, reference: dict[str, Any], phase: str, tmp_path: Path
) -> None:
    within, operator, saved = PHASES[phase]
    run = tmp_path / "run"
    with bench.attempt(run, *OPTIONS, device=Device(Fault("error", within, operator))) as attempt:
        assert attempt.end() == MACHINE, attempt.last_words()
    assert "the device is at fault: CUDA error: uncorrectable ECC error" in attempt.last_words()
    assert "Traceback" not in attempt.last_words()
    assert durable(attempt) == saved
    bench.finish(run, "--precision", "fp32")
    assert outcome(run) == reference
    (first, _) = json.loads((run / "report.json").read_bytes())["lineage"]["attempts"]
    assert first["reason"].startswith("failed: the device is at fault")


def test_publishing_asks_nothing_of_the_device(
    bench: Bench, reference: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    bench.finish(run, *OPTIONS, device=Device(Fault("error", within="present", operator=1)))
    assert outcome(run) == reference


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (710, "CUDA error: device-side assert triggered", "a device-side assertion that failed"),
        (700, "CUDA error: an illegal memory access was encountered", "an illegal memory access"),
    ],
)
def test_what_the_program_did_wrong_is_not_retried(
    bench: Bench, tmp_path: Path, code: int, message: str, words: str
) -> None:
    fault = Fault("error", IN_STEP, IN_THIRD_STEP, code, message)
    with bench.attempt(tmp_path / "run", *OPTIONS, device=Device(fault)) as attempt:
        assert attempt.end() == BUG
    assert f"the device reports {words} (CUDA error {code})" in attempt.last_words()
    assert "Traceback" not in attempt.last_words()
    assert durable(attempt) == (2, 2)


@pytest.mark.parametrize(
    "device",
    [
        Device(Fault("memory", IN_STEP, IN_THIRD_STEP)),
        Device(memory=150_000),  # the network alone has more
    ],
    ids=["training", "start"],
)
def test_too_little_memory_names_the_batch_size(bench: Bench, tmp_path: Path, device: Device) -> None:
    with bench.attempt(tmp_path / "run", *OPTIONS, device=device) as attempt:
        assert attempt.end() == CONFIGURATION
    assert "the device has too little memory: CUDA out of memory" in attempt.last_words()
    assert f"Lower --batch-size, now {BATCH_SIZE}" in attempt.last_words()


def test_a_last_save_on_a_dead_device_names_what_is_lost(bench: Bench, tmp_path: Path) -> None:
    """The device fails in the copy that follows SIGTERM."""
    device = Device(Fault("error", within="Checkpointing._last_save", operator=1))
    with bench.attempt(tmp_path / "run", *OPTIONS, "--cycles", "500@5e-3", device=device) as attempt:
        attempt.until(lambda event: event["event"] == "checkpoint")
        attempt.signal(signal.SIGTERM)
        assert attempt.end() == PREEMPTED
    assert "device_lost" in [event["event"] for event in attempt.events]
    epoch, step = durable(attempt)
    assert f"durable is epoch {epoch} step {step}, and the steps up to epoch" in attempt.last_words()
    assert "are lost" in attempt.last_words()


@pytest.fixture(scope="module")
def hung(bench: Bench) -> Path:
    """A run whose device hangs in the third step of the second epoch; the watchdog ended it. For copies."""
    run = bench.folder / "hung"
    device = Device(Fault("hang", IN_STEP, IN_THIRD_STEP))
    with bench.attempt(run, *OPTIONS, "--step-timeout", "5s", device=device) as attempt:
        assert attempt.end() == MACHINE, attempt.last_words()
    assert "no step has ended for 5 s: the device does not answer" in attempt.last_words()
    assert durable(attempt) == (2, 2)
    return run


def test_a_step_that_does_not_end_is_given_up(
    bench: Bench, reference: dict[str, Any], hung: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(hung, tmp_path / "run")
    bench.finish(run, "--precision", "fp32")
    assert outcome(run) == reference
    (first, _) = json.loads((run / "report.json").read_bytes())["lineage"]["attempts"]
    assert first["reason"].startswith("failed: no step has ended")


def test_an_evaluation_that_does_not_end_is_given_up(bench: Bench, tmp_path: Path) -> None:
    device = Device(Fault("hang", "predict", 60))
    with bench.attempt(tmp_path / "run", *OPTIONS, "--step-timeout", "5s", device=device) as attempt:
        assert attempt.end() == MACHINE, attempt.last_words()
    assert durable(attempt) == (2, STEPS)


def test_sigterm_during_a_step_that_does_not_end_keeps_the_grace(bench: Bench, tmp_path: Path) -> None:
    """The main thread is in C and runs no handler."""
    device = Device(Fault("hang", IN_STEP, IN_THIRD_STEP))
    options = (*OPTIONS, "--step-timeout", "0", "--grace", "2s")
    with bench.attempt(tmp_path / "run", *options, device=device) as attempt:
        attempt.until(lambda event: event["event"] == "checkpoint" and durable(attempt) == (2, 2))
        attempt.signal(signal.SIGTERM)
        assert attempt.end() == PREEMPTED
    assert "the grace of 2 s is over: stopped with what is durable" in attempt.last_words()
