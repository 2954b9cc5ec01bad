"""Downloads over real HTTP and from a real S3 server, cut and resumed; bytes served are counted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.data import download as module
from job.data import remote
from job.data.archive import Source, fetch
from job.errors import DataError, MachineError, PermissionRefusedError
from job.store import open_store
from tests.disks import tiny_disk
from tests.servers import FaultProxy, RangeServer

Serve = Callable[[dict[str, bytes]], RangeServer]
DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(serve: Serve) -> RangeServer:
    return serve({"/a.tar.gz": DATA})


def source(server: RangeServer, sha256: str | None = SHA256, size: int | None = len(DATA)) -> Source:
    return Source(f"{server.uri}/a.tar.gz", sha256, size)


def test_a_download_is_verified_and_kept(tmp_path: Path, server: RangeServer) -> None:
    for _ in range(2):
        archive = fetch([source(server)], tmp_path)
        assert (archive.sha256, archive.path.read_bytes()) == (SHA256, DATA)
    assert len(server.requests) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_cut_download_resumes_where_it_was(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("cut", 300_000), ("cut", 0), ("cut", 200_000)]
    archive = fetch([source(server)], tmp_path)
    assert archive.path.read_bytes() == DATA
    assert server.served == len(DATA)
    assert [span for _, span in server.requests] == [None, "bytes=300000-", "bytes=300000-", "bytes=500000-"]


def test_the_next_call_resumes_too(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("cut", 400_000)] + [("status", 503)] * module.TRIES_WITHOUT_PROGRESS
    with pytest.raises(MachineError, match="503") as caught:
        fetch([source(server)], tmp_path)
    assert caught.value.exit_code == 74
    archive = fetch([source(server)], tmp_path)
    assert archive.path.read_bytes() == DATA
    assert server.served == len(DATA)


def test_a_killed_process_leaves_what_the_next_resumes(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("drip", 50_000)]
    script = (
        "import sys; from pathlib import Path; from job.data.archive import Source, fetch; "
        "fetch([Source(sys.argv[1], sys.argv[2])], Path(sys.argv[3]))"
    )
    uri = f"{server.uri}/a.tar.gz"
    child = subprocess.Popen([sys.executable, "-c", script, uri, SHA256, str(tmp_path)])
    while not any(path.stat().st_size >= 100_000 for path in tmp_path.glob("*.partial")):
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    kept = next(tmp_path.glob("*.partial")).stat().st_size
    archive = fetch([source(server)], tmp_path)
    assert archive.path.read_bytes() == DATA
    assert server.requests[-1] == ("/a.tar.gz", f"bytes={kept}-")


def test_a_file_that_changed_is_not_spliced(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("cut", 400_000)] + [("status", 503)] * module.TRIES_WITHOUT_PROGRESS
    with pytest.raises(MachineError):
        fetch([source(server, None, None)], tmp_path)
    server.files["/a.tar.gz"] = bytes(reversed(DATA))
    archive = fetch([source(server, None, None)], tmp_path)
    assert archive.path.read_bytes() == bytes(reversed(DATA))


def test_without_a_version_a_cut_download_starts_again(tmp_path: Path, server: RangeServer) -> None:
    server.validators = False
    server.faults = [("cut", 400_000)]
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA
    assert server.served == len(DATA) + 400_000
    assert all(span is None for _, span in server.requests)


def test_a_server_that_always_cuts_at_one_place_is_given_up(tmp_path: Path, server: RangeServer) -> None:
    server.validators = False
    server.faults = [("cut", 1000)] * 100
    with pytest.raises(MachineError):
        fetch([source(server)], tmp_path)
    assert len(server.requests) == 1 + module.TRIES_WITHOUT_PROGRESS


def test_without_a_hash_the_source_is_asked_whether_it_changed(tmp_path: Path, server: RangeServer) -> None:
    fetch([source(server, None)], tmp_path)
    served = server.served
    server.faults = [("status", 503), ("drip", 1000)]  # a second, or the socket would take it all
    assert fetch([source(server, None)], tmp_path).sha256 == SHA256
    assert server.served - served < len(DATA)  # asked, and not read to the end
    server.files["/a.tar.gz"] = b"new" * 1000
    assert fetch([source(server, None, None)], tmp_path).path.read_bytes() == b"new" * 1000


def test_a_cached_archive_that_was_damaged_is_fetched_again(tmp_path: Path, server: RangeServer) -> None:
    for sha256 in (SHA256, None):
        path = fetch([source(server, sha256)], tmp_path).path
        path.write_bytes(DATA[:-1] + b"x")
        assert fetch([source(server, sha256)], tmp_path).path.read_bytes() == DATA


def test_two_sources_of_one_hash_share_the_cached_copy(tmp_path: Path, serve: Serve) -> None:
    one, two = serve({"/a.tar.gz": DATA}), serve({"/a.tar.gz": DATA})
    fetch([source(one)], tmp_path)
    assert fetch([source(two)], tmp_path).path.read_bytes() == DATA
    assert not two.requests


def test_a_flipped_byte_is_refused_and_not_kept(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("flip", 500_000)]
    with pytest.raises(DataError, match=SHA256) as caught:
        fetch([source(server)], tmp_path)
    assert caught.value.exit_code == 65
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size > 0]
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA


def test_another_size_is_refused_before_a_byte_is_written(tmp_path: Path, server: RangeServer) -> None:
    with pytest.raises(DataError, match=f"{len(DATA)} bytes, not 5"):
        fetch([source(server, size=5)], tmp_path)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_beyond_the_bound_is_refused(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, lengths: bool
) -> None:
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 1000)
    server.lengths = lengths
    with pytest.raises(DataError, match="more than"):
        fetch([source(server)], tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_of_unstated_length_is_judged_when_it_is_there(tmp_path: Path, server: RangeServer) -> None:
    server.lengths = False
    with pytest.raises(DataError, match="bytes, not 5"):
        fetch([source(server, None, 5)], tmp_path)
    server.faults = [("cut", 1000)]
    with pytest.raises(DataError, match="SHA-256"):
        fetch([source(server)], tmp_path)
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA


STATUSES = [
    (404, DataError, 1),
    (410, DataError, 1),
    (400, DataError, 1),
    (401, PermissionRefusedError, 1),
    (403, PermissionRefusedError, 1),
    (416, DataError, 1),
    (429, MachineError, module.TRIES_WITHOUT_PROGRESS),
    (500, MachineError, module.TRIES_WITHOUT_PROGRESS),
]


@pytest.mark.parametrize(("status", "kind", "tries"), STATUSES)
def test_each_status_is_of_its_kind(
    tmp_path: Path, server: RangeServer, status: int, kind: type[Exception], tries: int
) -> None:
    server.faults = [("status", status)] * 10
    with pytest.raises(kind, match=f"a.tar.gz: .*{status}"):
        fetch([source(server)], tmp_path)
    assert len(server.requests) == tries


def test_a_server_that_drips_is_given_up(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WINDOW_SECONDS", 1)
    monkeypatch.setattr(module, "TRIES_WITHOUT_PROGRESS", 1)
    server.faults = [("drip", 100), ("status", 503)]
    with pytest.raises(MachineError):
        fetch([source(server)], tmp_path)
    assert server.requests[1][1] is not None  # it was left, and asked for the rest


def test_a_silent_server_is_given_up(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.3)
    server.faults = [("drip", 1000)]
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA
    assert server.requests[1][1] is not None


def test_a_partial_file_longer_than_the_whole_is_dropped(tmp_path: Path, server: RangeServer) -> None:
    server.faults = [("cut", 1000)] + [("status", 503)] * module.TRIES_WITHOUT_PROGRESS
    with pytest.raises(MachineError):
        fetch([source(server)], tmp_path)
    next(tmp_path.glob("*.partial")).write_bytes(DATA + b"more")
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA


@pytest.mark.parametrize("note", ["", "{", "[]", '{"a": 1}', '{"version": "x"}'])
def test_a_damaged_note_costs_the_partial_download_only(
    tmp_path: Path, server: RangeServer, note: str
) -> None:
    server.faults = [("cut", 1000)] + [("status", 503)] * module.TRIES_WITHOUT_PROGRESS
    with pytest.raises(MachineError):
        fetch([source(server)], tmp_path)
    next(tmp_path.glob("*.json")).write_text(note)
    assert fetch([source(server)], tmp_path).path.read_bytes() == DATA


def test_progress_is_reported(
    tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0)
    fetch([source(server)], tmp_path)
    said = "".join(capsys.readouterr())
    for field in ("download", "done_bytes", f"total_bytes={len(DATA)}", "bytes_per_second", "seconds_left"):
        assert field in said


def test_a_disk_that_is_too_small_is_named_before_the_download(tmp_path: Path, serve: Serve) -> None:
    server = serve({"/a.tar.gz": bytes(3_000_000)})
    with tiny_disk(tmp_path / "disk") as disk:
        with pytest.raises(MachineError, match=str(disk)) as caught:
            fetch([Source(f"{server.uri}/a.tar.gz")], disk)
        assert caught.value.exit_code == 74
        assert caught.value.fix
    assert len(server.requests) == 1


def test_processes_at_once_download_once(tmp_path: Path, server: RangeServer) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fetch, args=([source(server)], tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert server.served == len(DATA)


def test_an_s3_source_resumes_where_it_was_cut(
    tmp_path: Path, s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 300_000)
    open_store(s3_uri).put("a.tar.gz", DATA)
    del proxy.heads[:]
    proxy.faults = [("pass", 0)] * 2 + [("truncate", 1000), ("pass", 0), ("unavailable", 0)]
    archive = fetch([Source(f"{s3_uri}/a.tar.gz", SHA256)], tmp_path)
    assert archive.path.read_bytes() == DATA
    starts = [
        int(head.split("ange: bytes=")[1].split("-")[0]) for head in proxy.heads if "ange: bytes=" in head
    ]
    assert starts == [0, 300_000, 300_000, 600_000, 600_000, 900_000]  # no part twice that had come


def test_an_s3_source_that_changed_is_not_spliced(
    tmp_path: Path, s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 300_000)
    store = open_store(s3_uri)
    store.put("a.tar.gz", DATA)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.1)
    proxy.faults, proxy.default = [("pass", 0)] * 2, ("refuse", 0)
    with pytest.raises(MachineError):
        fetch([Source(f"{s3_uri}/a.tar.gz")], tmp_path)
    assert next(tmp_path.glob("*.partial")).stat().st_size == 300_000
    proxy.default = ("pass", 0)
    store.put("a.tar.gz", bytes(reversed(DATA)))
    assert fetch([Source(f"{s3_uri}/a.tar.gz")], tmp_path).path.read_bytes() == bytes(reversed(DATA))


def test_a_source_in_googles_storage_is_read(
    tmp_path: Path, gs_uri: str, gs_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 300_000)
    open_store(gs_uri).put("a.tar.gz", DATA)
    gs_proxy.faults = [("pass", 0)] * 2 + [("truncate", 1000), ("pass", 0), ("unavailable", 0)]
    assert fetch([Source(f"{gs_uri}/a.tar.gz", SHA256)], tmp_path).path.read_bytes() == DATA
    assert not gs_proxy.faults
    with pytest.raises(DataError, match=r"none\.tar\.gz"):
        fetch([Source(f"{gs_uri}/none.tar.gz")], tmp_path)


def test_an_s3_source_is_refused_or_missing_by_kind(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"none\.tar\.gz"):
        fetch([Source(f"{s3_uri}/none.tar.gz")], tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionRefusedError):
        fetch([Source(f"{s3_uri}/none.tar.gz")], tmp_path)


def test_the_note_holds_no_more_than_it_needs(tmp_path: Path, server: RangeServer) -> None:
    fetch([source(server)], tmp_path)
    note = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert note == {"version": f'"{SHA256[:8]}"', "size": len(DATA), "sha256": SHA256}
