"""`micronet doctor`: every row, in time, with the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from job.commands.doctor import doctor
from job.preflight import gpu
from job.preflight.check import Check
from job.preflight.doctor import exit_code
from tests.servers import FaultProxy

PROCESS = (
    "import os, sys; from job import events; from job.commands.doctor import doctor; events.configure();"
    "code = doctor.main(sys.argv[1:], standalone_mode=False); sys.stdout.flush(); os._exit(code)"
)


def examine(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = doctor.main([*map(str, arguments), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    return code, {check["name"]: check for check in told["checks"]}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 0], 0), ([0, 78], 78), ([74], 74), ([74, 77], 77), ([77, 78], 77), ([78, 77, 74], 78)],
)
def test_what_no_other_machine_mends_comes_before_what_one_might(codes: list[int], expected: int) -> None:
    checks = [Check("x", "failed" if code else "ok", "", "", code) for code in codes]
    assert exit_code(checks) == expected


def test_a_demo_in_a_bucket_is_well(s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = examine(capsys, "--demo", "--device", "cpu", "--run", s3_uri, "--cache", tmp_path)
    assert code == 0
    assert list(checks) == [
        "gpu", "kernel", "precision", "credentials", "store", "clock", "disk", "shared memory", "data",
    ]  # fmt: skip
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["data"]["text"] == "generated here"


def test_a_kernel_that_hangs_is_reported_and_what_comes_after_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    monkeypatch.setattr(gpu, "check_work", lambda device: released.wait())
    monkeypatch.setattr("job.preflight.doctor.DEVICE_SECONDS", 0.5)
    code, checks = examine(
        capsys, "--demo", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path
    )
    released.set()
    assert (code, checks["kernel"]["exit_code"]) == (74, 74)
    assert checks["kernel"]["text"] == "no answer within 0.5 s"
    assert "use another machine" in checks["kernel"]["fix"]
    assert "precision" not in checks
    assert checks["store"]["status"] == checks["data"]["status"] == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_rest_is_told_too(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, checks = examine(capsys, "--data", tmp_path / "none", "--run", s3_uri, "--cache", tmp_path)
    assert code == 78
    failed = {name: check["exit_code"] for name, check in checks.items() if check["status"] == "failed"}
    assert failed == {"gpu": 78, "store": 77, "data": 65}
    assert all(checks[name]["fix"] for name in failed)


def test_a_compiled_run_asks_for_what_compiling_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--demo", "--compile", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path]
    code, checks = examine(capsys, *words)
    assert (code, checks["compile"]["status"]) == (0, "ok")
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, checks = examine(capsys, *words)
    assert (code, checks["compile"]["exit_code"]) == (78, 78)
    assert "no-such-compiler was not found" in checks["compile"]["text"]


def test_the_table_shows_cause_fix_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--run", tmp_path / "run", "--cache", tmp_path, "--data", tmp_path / "none"]
    assert doctor.main(["--device", "cpu", *map(str, places)], standalone_mode=False) == 65
    shown = " ".join(capsys.readouterr().out.split())  # without the table's own line breaks
    for words in ("store", "failed (65)", "no such file", "Name another with --data", "shared memory"):
        assert words in shown


def test_a_store_that_hangs_is_reported_in_time(s3_uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.default = ("stall", 0)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "--demo", "--device", "cpu", "--run", s3_uri, "--json",
         "--cache", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "AWS_ENDPOINT_URL_S3": proxy.uri}, check=False,
    )  # fmt: skip
    # 3 s for the network, beside 2 to 3 s of imports; the store itself is given 20 s by its client
    assert time.monotonic() - start < 15
    assert done.returncode == 74, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["store"]["text"] == "no answer within 3 s"
    assert checks["disk"]["status"] == checks["data"]["status"] == "ok"
