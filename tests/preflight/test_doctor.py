"""`micronet doctor`: every row, in time, with the right exit code; the data's check; the start of `train`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from job.commands.doctor import doctor
from job.data.archive import fetch, parse_source
from job.errors import ConfigurationError, DataError, JobError, MachineError, PermissionRefusedError
from job.network import weights
from job.preflight import gpu
from job.preflight.check import Finding
from job.preflight.doctor import check_data, check_storage, exit_code
from job.recipe import DEMO
from job.run import layout
from job.settings import DEMO_DATA, DataSettings
from job.store import open_store
from tests.servers import FaultProxy, RangeServer, free_ports
from tests.store.careless import CarelessS3

Serve = Callable[[dict[str, bytes]], RangeServer]
CPU = torch.device("cpu")
DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()

PROCESS = (
    "import os, sys; from job import events; from job.commands.doctor import doctor; events.configure();"
    "code = doctor.main(sys.argv[1:], standalone_mode=False); sys.stdout.flush(); os._exit(code)"
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store that answers do so on a machine that other tests keep busy."""
    monkeypatch.setattr("job.preflight.doctor.NETWORK_SECONDS", 60.0)


def examine(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = doctor.main([*map(str, arguments), "--json"], standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == code
    return code, {check["name"]: check for check in report["checks"]}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 0], 0), ([0, 78], 78), ([74], 74), ([74, 77], 77), ([77, 78], 77), ([78, 77, 74], 78)],
)
def test_a_failure_that_another_machine_would_have_too_comes_first(codes: list[int], expected: int) -> None:
    findings = [Finding("x", "failed" if code else "ok", "", "", code) for code in codes]
    assert exit_code(findings) == expected


def test_a_demo_in_a_bucket_is_well(s3_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = examine(capsys, "--demo", "--device", "cpu", "--run", s3_uri, "--cache", tmp_path)
    assert code == 0
    assert list(checks) == [
        "gpu", "kernel", "precision", "credentials", "store", "clock", "disk", "data",
    ]  # fmt: skip
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["data"]["text"] == "generated here"


def test_a_demo_in_googles_storage_is_well(
    gs_uri: str, gs_proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str | Path] = ["--demo", "--device", "cpu", "--run", gs_uri, "--cache", tmp_path]
    code, checks = examine(capsys, *words)
    assert (code, checks["store"]["status"]) == (0, "ok")
    assert f"{gs_uri} can be read and written and honours conditional writes" in checks["store"]["text"]
    assert not {"credentials", "clock"} & set(checks)
    gs_proxy.default = ("denied", 0)
    code, checks = examine(capsys, *words)
    assert (code, checks["store"]["exit_code"]) == (77, 77)
    assert "roles/storage.objectUser" in checks["store"]["fix"]


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
    assert checks["kernel"]["fix"] == "The GPU does not answer: use another machine"
    assert "precision" not in checks
    assert checks["store"]["status"] == checks["data"]["status"] == "ok"


@pytest.mark.parametrize(
    ("check", "raised", "exit_code", "text", "fix"),
    [
        (
            "check_device",
            torch.AcceleratorError("CUDA error: device busy"),
            74,
            "device busy",
            "another machine",
        ),
        (
            "check_device",
            torch.OutOfMemoryError("CUDA out of memory"),
            78,
            "too little memory",
            "other programs",
        ),
        ("check_precision", RuntimeError("CUDA is wrong"), 1, "RuntimeError: CUDA is wrong", "Report it"),
        ("check_work", TypeError("no such operand"), 1, "TypeError: no such operand", "Report it"),
    ],
)
def test_what_a_check_of_the_device_raises_is_its_finding(
    check: str,
    raised: Exception,
    exit_code: int,
    text: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(gpu, check, fails)
    monkeypatch.setattr("job.preflight.doctor.DEVICE_SECONDS", 20.0)
    code, checks = examine(
        capsys, "--demo", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path
    )
    found = checks[{"check_device": "gpu", "check_work": "kernel", "check_precision": "precision"}[check]]
    assert (code, found["exit_code"]) == (exit_code, exit_code)
    assert text in found["text"]
    assert fix in found["fix"]
    assert set(checks) >= {"gpu", "kernel", "precision"}  # what comes after it has run


def test_a_bug_in_a_check_of_the_store_or_the_data_is_its_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("job.preflight.storage.check_folder", lambda path: 1 // 0)
    monkeypatch.setattr("job.preflight.storage.check_space", lambda *arguments: 1 // 0)
    code, checks = examine(
        capsys, "--demo", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path
    )
    assert code == 1
    assert checks["store"]["text"].startswith("ZeroDivisionError: ")
    assert checks["disk"]["text"].startswith("ZeroDivisionError: ")
    assert checks["data"]["status"] == "ok"


def test_a_device_that_cannot_be_chosen_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(requested: str) -> None:
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr("job.machine.device.choose", busy)
    code, checks = examine(
        capsys, "--demo", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path
    )
    assert (code, checks["gpu"]["exit_code"], checks["store"]["status"]) == (74, 74, "ok")
    assert "busy or unavailable" in checks["gpu"]["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_rest_is_reported_too(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, checks = examine(capsys, "--data", tmp_path / "none", "--run", s3_uri, "--cache", tmp_path)
    assert code == 78
    failed = {name: check["exit_code"] for name, check in checks.items() if check["status"] == "failed"}
    assert failed == {"gpu": 78, "store": 77, "data": 65}
    assert all(checks[name]["fix"] for name in failed)


def test_what_a_compiled_run_needs_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str | Path] = [
        "--demo", "--compile", "--device", "cpu", "--run", tmp_path / "run", "--cache", tmp_path,
    ]  # fmt: skip
    code, checks = examine(capsys, *words)
    assert (code, checks["compile"]["status"]) == (0, "ok")
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, checks = examine(capsys, *words)
    assert (code, checks["compile"]["exit_code"]) == (78, 78)
    assert "no-such-compiler was not found" in checks["compile"]["text"]


def test_the_weights_that_a_recipe_builds_on_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "first"
    run.mkdir()
    info = weights.NetworkInfo(10, 1, ("a", "b"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "0" * 64)
    (run / layout.WEIGHTS).write_bytes(weights.save(info.build(), info))
    words: list[str | Path] = ["--recipe", "demo-compact", "--device", "cpu"]
    words += ["--cache", tmp_path, "--run", tmp_path / "run"]
    code, checks = examine(capsys, *words, "--from", run, "--cycles", "none")
    assert (code, checks["from"]["text"]) == (0, f"{run}, WideResNet-10-1 of 2 classes")
    assert "teacher" not in checks
    code, checks = examine(capsys, *words, "--from", run, "--teacher", tmp_path / "none")
    assert (code, checks["from"]["status"], checks["teacher"]["exit_code"]) == (65, "ok", 65)
    assert checks["teacher"]["fix"] == "Name a finished run or a .safetensors file"


def test_the_table_shows_cause_fix_and_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--run", tmp_path / "run", "--cache", tmp_path, "--data", tmp_path / "none"]
    assert doctor.main(["--device", "cpu", *map(str, places)], standalone_mode=False) == 65
    shown = " ".join(capsys.readouterr().out.split())  # without the table's own line breaks
    for words in ("store", "failed (65)", "no such file", "Name another with --data", "disk"):
        assert words in shown


def test_a_store_that_hangs_is_reported_in_time(s3_uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.default = ("stall", 0)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "--demo", "--device", "cpu", "--run", s3_uri, "--json",
         "--cache", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "AWS_ENDPOINT_URL_S3": proxy.uri}, check=False,
    )  # fmt: skip
    # 10 s for the network, next to 2 to 3 s of imports; the store's own client has a timeout of 20 s
    assert time.monotonic() - start < 18
    assert done.returncode == 74, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["store"]["text"] == "no answer within 10 s"
    assert checks["disk"]["status"] == checks["data"]["status"] == "ok"


@pytest.fixture
def home(serve: Serve) -> RangeServer:
    return serve({"/a.tar.gz": DATA})


def test_a_source_that_answers_is_named_with_its_size(tmp_path: Path, home: RangeServer) -> None:
    found = check_data((f"{home.uri}/a.tar.gz",), tmp_path / "cache", None)
    assert (found.status, found.text) == ("ok", f"{home.uri}/a.tar.gz answers, 1,024,000 bytes")
    assert not (tmp_path / "cache").exists()


def test_a_cached_archive_needs_no_source(tmp_path: Path, home: RangeServer) -> None:
    uri = f"{home.uri}/a.tar.gz#sha256={SHA256}"
    fetch([parse_source(uri)], tmp_path)
    asked = len(home.requests)
    assert check_data((uri,), tmp_path, None).status == "ok"
    assert len(home.requests) == asked


def test_a_copy_in_the_store_needs_no_source(tmp_path: Path, home: RangeServer, s3_uri: str) -> None:
    sources = (f"{home.uri}/a.tar.gz#sha256={SHA256}",)
    assert "answers" in check_data(sources, tmp_path, s3_uri).text
    open_store(s3_uri).put(SHA256, DATA)
    asked = len(home.requests)
    assert check_data(sources, tmp_path, s3_uri).text.endswith(f"{s3_uri}/{SHA256}")
    assert len(home.requests) == asked


def test_a_file_and_the_demo_are_here(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(DATA)
    assert check_data((str(tmp_path / "a.tar.gz"),), tmp_path, None).status == "ok"
    assert check_data((DEMO_DATA,), tmp_path, None).text == "generated here"


def test_an_s3_source_is_checked(tmp_path: Path, s3_uri: str) -> None:
    open_store(s3_uri).put("a.tar.gz", DATA)
    assert "1,024,000 bytes" in check_data((f"{s3_uri}/a.tar.gz",), tmp_path, None).text


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [(404, DataError, 65), (403, PermissionRefusedError, 77), (503, MachineError, 74)],
)
def test_a_source_that_does_not_answer_is_a_failure_of_its_kind(
    tmp_path: Path, home: RangeServer, status: int, kind: type[Exception], exit_code: int
) -> None:
    home.faults = [("status", status)]
    with pytest.raises(kind, match=f"{home.uri}/a.tar.gz: .*{status}") as caught:
        check_data((f"{home.uri}/a.tar.gz",), tmp_path, None)
    assert getattr(caught.value, "exit_code", None) == exit_code


def test_when_none_answers_the_kind_that_a_retry_may_fix_is_raised(tmp_path: Path, home: RangeServer) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/a"
    with pytest.raises(MachineError) as caught:
        check_data((f"{home.uri}/none", nobody, str(tmp_path / "none")), tmp_path, None)
    assert all(word in str(caught.value) for word in ("404", nobody, str(tmp_path / "none")))


def test_a_source_that_fails_before_one_that_answers_is_a_warning(tmp_path: Path, home: RangeServer) -> None:
    found = check_data((f"{home.uri}/none", f"{home.uri}/a.tar.gz"), tmp_path, None)
    assert (found.status, found.exit_code) == ("warning", 0)
    assert "404" in found.text
    assert f"{home.uri}/a.tar.gz answers" in found.text


def begin(run: str, cache: Path, retry_seconds: float = 20) -> None:
    check_storage(DEMO, run, DataSettings((DEMO_DATA,), str(cache)), open_store(run, retry_seconds))


def test_the_store_is_checked_once(tmp_path: Path, s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    check_storage(DEMO, s3_uri, DataSettings((DEMO_DATA,), str(tmp_path)), store)
    # addressing 1, sweep 1, checksums 3 (put, get, delete), conditions 4, delete 1
    assert len(proxy.heads) == 10
    store.put_if_absent("recipe.json", b"{}")
    assert len(proxy.heads) == 11
    assert [entry.key for entry in store.list()] == ["recipe.json"]


def test_googles_storage_is_checked_once(tmp_path: Path, gs_uri: str, gs_proxy: FaultProxy) -> None:
    store = open_store(gs_uri)
    check_storage(DEMO, gs_uri, DataSettings((DEMO_DATA,), str(tmp_path)), store)
    # bucket 1, sweep 1, conditions 4, delete 1
    assert len(gs_proxy.heads) == 7
    store.put_if_absent("recipe.json", b"{}")
    assert len(gs_proxy.heads) == 8
    assert [entry.key for entry in store.list()] == ["recipe.json"]


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    begin(str(tmp_path / "run"), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_short_outage_of_the_store_is_retried(tmp_path: Path, s3_uri: str, proxy: FaultProxy) -> None:
    proxy.faults = [("unavailable", 0), ("refuse", 0), ("unavailable", 0)]
    begin(s3_uri, tmp_path)
    assert not proxy.faults


def test_a_long_outage_of_the_store_is_the_machines_fault(
    tmp_path: Path, s3_uri: str, proxy: FaultProxy
) -> None:
    proxy.default = ("unavailable", 0)
    with pytest.raises(MachineError, match="503"):
        begin(s3_uri, tmp_path, retry_seconds=0.5)


@pytest.mark.parametrize(("trouble", "exit_code"), [("keys", 77), ("bucket", 78)])
def test_what_is_refused_or_wrong_is_not_retried(
    tmp_path: Path,
    s3_uri: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    exit_code: int,
) -> None:
    if trouble == "keys":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(JobError) as caught:
        begin("s3://no-such-bucket/run" if trouble == "bucket" else s3_uri, tmp_path)
    assert caught.value.exit_code == exit_code
    assert len(proxy.heads) < 6


def test_a_store_without_conditions_is_refused(tmp_path: Path, careless: CarelessS3) -> None:
    careless.conditions["If-Match"] = "ignore"
    with pytest.raises(ConfigurationError, match="two attempts could overwrite each other"):
        begin("s3://bucket/run", tmp_path)


def test_a_warning_is_an_event(
    tmp_path: Path, careless: CarelessS3, capsys: pytest.CaptureFixture[str]
) -> None:
    begin("s3://bucket/run", tmp_path)
    assert "preflight" not in "".join(capsys.readouterr())
    careless.ahead_seconds = 300
    begin("s3://bucket/run", tmp_path)
    logged = "".join(capsys.readouterr())
    assert all(word in logged for word in ("preflight", "clock", "behind the store's", "Set the clock"))
