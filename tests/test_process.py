"""The process: streams that are closed, full or unread, signals during the imports, too few threads."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.archives import write_archive
from tests.forked import Process
from tests.limits import limited

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "2@1e-3", "--batch-size", "16"]
MICRONET = [sys.executable, "-m", "job.cli"]
DRY_RUN = ["submit", "aws", "--run", "s3://bucket/run", "--dry-run"]  # a result, in a moment
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("data") / "tiny.tar.gz", train=40, test=20, classes=5)


def train(archive: Path, folder: Path, log_format: str = "human") -> list[str]:
    where = ["--data", str(archive), "--cache", str(folder / "cache"), "--run", str(folder / "run")]
    return [*MICRONET, "--log-format", log_format, "train", *TINY, *where]


def redirected(command: list[str], redirections: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with a shell's redirections: `subprocess` cannot leave a descriptor closed."""
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("redirections", "log_format"),
    [
        pytest.param("2>&-", "json", marks=pytest.mark.soak),
        ("<&- >&- 2>&-", "json"),
        pytest.param("2>/dev/full", "human", marks=pytest.mark.soak),
        (">/dev/full", "human"),
    ],
)
def test_a_training_ends_with_its_report_whatever_its_streams_do(
    archive: Path, tmp_path: Path, redirections: str, log_format: str
) -> None:
    done = redirected(train(archive, tmp_path, log_format), redirections)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["training"]["epochs"] == 2
    assert '"event"' not in done.stdout
    if redirections == ">/dev/full":
        assert "summary_not_printed" in done.stderr
    for path in tmp_path.rglob("*"):  # a file that is opened must not get the number of a closed stream
        if path.is_file() and path.name != "tiny.tar.gz":
            assert b'"event"' not in path.read_bytes(), path


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
@pytest.mark.parametrize("end", ["unread", "full"])
def test_a_training_ends_with_its_report_when_a_stream_takes_no_more(
    archive: Path, tmp_path: Path, number: int, end: str
) -> None:
    reader, writer = os.pipe()
    with Path(os.devnull).open("rb+") as nothing, Path("/dev/full").open("wb") as full:
        streams = [nothing.fileno()] * 3
        streams[number] = full.fileno() if end == "full" else writer
        process = Process(train(archive, tmp_path)[len(MICRONET) :], dict(os.environ), streams, "")
    os.close(writer)
    if end == "unread" and number == 2:
        os.read(reader, 100)  # its first event
    os.close(reader)
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "report.json").exists()


def full_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that is full and does not block."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(2**16)):
            pass
    return reader, writer


def test_a_training_ends_with_its_report_when_stdout_is_full_and_does_not_block(
    archive: Path, tmp_path: Path
) -> None:
    reader, writer = full_pipe()
    with Path(os.devnull).open("rb+") as nothing, (tmp_path / "log").open("wb") as log:
        streams = [nothing.fileno(), writer, log.fileno()]
        process = Process(train(archive, tmp_path)[len(MICRONET) :], dict(os.environ), streams, "")
    os.close(writer)
    assert process.wait(120) == 0
    os.close(reader)
    assert "summary_not_printed" in (tmp_path / "log").read_text()


def test_a_failure_keeps_its_code_without_a_log(tmp_path: Path) -> None:
    assert redirected([*MICRONET, "train", "--no-such-option"], "2>/dev/full").returncode == 2
    missing = [*MICRONET, "status", str(tmp_path)]
    assert redirected(missing, "2>&- >&-").returncode == 65


def test_results_that_cannot_be_written_are_the_machines_fault() -> None:
    done = redirected([*MICRONET, *DRY_RUN], ">/dev/full")
    assert done.returncode == 74
    assert done.stderr.strip().splitlines()[-1].startswith("micronet: standard output: No space left")
    assert "Traceback" not in done.stderr


def test_results_for_a_pipe_that_is_full_and_does_not_block_are_the_machines_fault() -> None:
    reader, writer = full_pipe()
    done = subprocess.run(
        [*MICRONET, *DRY_RUN], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(reader)
    os.close(writer)
    assert done.returncode == 74
    assert done.stderr.strip().splitlines()[-1].startswith("micronet: standard output: ")
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_read_enough_is_no_failure() -> None:
    with subprocess.Popen([*MICRONET, *DRY_RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_what_the_encoding_of_stdout_cannot_hold_is_escaped(archive: Path, tmp_path: Path) -> None:
    run = os.fsencode(tmp_path) + "/r\u2603n".encode()
    done = subprocess.run(
        [*train(archive, tmp_path), "--run", run],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_no_control_character_of_a_cause_reaches_the_terminal(log_format: str, tmp_path: Path) -> None:
    code = (
        "import sys; from job import events; events.configure(sys.argv[1]);"
        "events.warn('x', reason='a\\x1b]0;title\\x07b\\x9bc\\r', whole='two\\nlines\\u202e');"
        "events.stopped('cause\\x1b[2J\\n', 'fix\\x9b', 74)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, log_format], capture_output=True, text=True, check=True
    )
    assert len(done.stderr.splitlines()) == 2
    assert not CONTROL.search(done.stderr)
    assert "\u202e" not in done.stderr
    assert "x1b" in done.stderr or "u001b" in done.stderr


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_too_few_threads_are_the_machines_fault(archive: Path, tmp_path: Path, processes: int) -> None:
    tmp_path.chmod(0o777)
    done = limited(train(archive, tmp_path), processes)
    assert done.returncode == 74, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("micronet: no more threads can be started")
    assert "Traceback" not in done.stderr


def test_the_handlers_stand_before_anything_large_is_imported() -> None:
    code = (
        "import sys; import job.cli;"
        "print(sorted({'click', 'structlog', 'asyncio', 'rich', 'traceback', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_is_a_preemption(count: int, number: int, tmp_path: Path) -> None:
    """From the handlers on: before, Python itself starts and a signal ends it in the system's way (143)."""
    seed = int(os.environ.get("MICRONET_TEST_SEED") or int.from_bytes(os.urandom(4), "big"))
    print("MICRONET_TEST_SEED", seed)
    generator = random.Random(seed)
    command = [*MICRONET, "train", "--demo", "--run", str(tmp_path / "run"), "--cache", str(tmp_path)]
    for part in range(count):
        delay = (part + generator.random()) / count * 0.2
        with subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores it
        ) as process:
            while not catches(process.pid, signal.SIGTERM):
                assert process.poll() is None
            time.sleep(delay)
            process.send_signal(number)
            _, words = process.communicate(timeout=120)
        assert process.returncode == 75, f"after {delay} s: {words}"
        assert words.splitlines() == [
            f"micronet: stopped by {signal.Signals(number).name}. Run the same command again (exit code 75)"
        ]


def catches(process: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)
