"""The archive's copy in the store: asked before its home, verified, repaired, and never in the way."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.data import archive, remote
from job.data import download as downloads
from job.data.archive import Source, fetch, place
from job.data.dataset import prepare
from job.errors import DataError, MachineError, UsageError
from job.store import open_store
from tests.archives import write_archive
from tests.servers import FaultProxy, RangeServer, free_ports

Serve = Callable[[dict[str, bytes]], RangeServer]
DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(archive, "STORE_RETRY_SECONDS", 0.5)


@pytest.fixture
def home(serve: Serve) -> RangeServer:
    return serve({"/a.tar.gz": DATA})


def source(home: RangeServer) -> Source:
    return Source(f"{home.uri}/a.tar.gz", SHA256, len(DATA))


@pytest.mark.parametrize(
    ("chosen", "run", "store"),
    [
        (None, "s3://bucket/prefix/name", "s3://bucket/prefix/data"),
        (None, "s3://bucket/a/b/name/", "s3://bucket/a/b/data"),
        (None, "s3://bucket/name", "s3://bucket/data"),
        (None, "s3://bucket", "s3://bucket/data"),
        (None, "gs://bucket/prefix/name", "gs://bucket/prefix/data"),
        (None, "runs/name", None),
        (None, "file:///runs/name", None),
        (None, None, None),
        ("none", "s3://bucket/prefix/name", None),
        ("s3://other/cache/", "s3://bucket/prefix/name", "s3://other/cache"),
        ("s3://other/cache", "runs/name", "s3://other/cache"),
        ("/shared/cache", "runs/name", "/shared/cache"),
    ],
)
def test_the_cache_is_beside_a_run_in_a_bucket(
    chosen: str | None, run: str | None, store: str | None
) -> None:
    assert place(chosen, run) == store


def test_what_is_no_store_is_a_wrong_usage() -> None:
    with pytest.raises(UsageError):
        place("ftp://bucket/cache", None)


@pytest.mark.parametrize("kind", ["s3", "gs", "folder"])
def test_the_next_machine_does_not_ask_the_home(
    tmp_path: Path, home: RangeServer, kind: str, request: pytest.FixtureRequest
) -> None:
    store = str(tmp_path / "shared") if kind == "folder" else request.getfixturevalue(f"{kind}_uri")
    for machine in ("first", "second"):
        archive = fetch([source(home)], tmp_path / machine, store)
        assert (archive.path.read_bytes(), archive.sha256) == (DATA, SHA256)
        assert archive.uri == f"{home.uri}/a.tar.gz"  # the report names the same source either way
        assert archive.path.parent == tmp_path / machine
    assert len(home.requests) == 1
    assert [(entry.key, entry.size) for entry in open_store(store).list()] == [(SHA256, len(DATA))]


def test_the_home_may_be_gone(tmp_path: Path, home: RangeServer, s3_uri: str) -> None:
    open_store(s3_uri).put(SHA256, DATA)
    home.faults = [("status", 503)] * 10
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA
    assert not home.requests


def test_the_machines_own_copy_comes_first(
    tmp_path: Path, home: RangeServer, s3_uri: str, proxy: FaultProxy
) -> None:
    fetch([source(home)], tmp_path, s3_uri)
    seen = len(proxy.heads)
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA
    assert len(proxy.heads) == seen
    assert len(home.requests) == 1


@pytest.mark.parametrize("bad", [DATA[:-1] + b"x", DATA[:1000], b""])
def test_a_damaged_copy_is_logged_and_replaced(
    tmp_path: Path, home: RangeServer, s3_uri: str, bad: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(s3_uri)
    store.put(SHA256, bad)
    archive = fetch([source(home)], tmp_path, s3_uri)
    assert archive.path.read_bytes() == store.get(SHA256).data == DATA
    assert "data_cache_damaged" in "".join(capsys.readouterr())
    assert len(home.requests) == 1


def test_a_byte_that_flips_on_the_way_costs_a_fetch_from_home(
    tmp_path: Path, home: RangeServer, s3_uri: str, proxy: FaultProxy
) -> None:
    open_store(s3_uri).put(SHA256, DATA)
    proxy.faults = [("pass", 0), ("flip", 5000)]  # the listing, and the first part
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA


@pytest.mark.parametrize("trouble", ["keys", "bucket", "nobody there"])
def test_a_cache_that_cannot_be_read_is_logged_and_left_alone(
    tmp_path: Path,
    home: RangeServer,
    s3_uri: str,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if trouble == "keys":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if trouble == "nobody there":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
        monkeypatch.setattr(remote, "RETRY_SECONDS", 0.1)
    store = "s3://no-such-bucket/data" if trouble == "bucket" else s3_uri
    assert fetch([source(home)], tmp_path, store).path.read_bytes() == DATA
    said = "".join(capsys.readouterr())
    assert said.count("data_cache_failed") == 1
    assert "data_cached" not in said


def test_a_cache_that_cannot_be_written_is_logged(
    tmp_path: Path, home: RangeServer, s3_uri: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.refused = re.compile(r"^PUT ")
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA
    said = "".join(capsys.readouterr())
    assert "data_cache_failed" in said
    assert "data_cached" not in said


def test_a_slow_upload_is_not_waited_for(
    tmp_path: Path,
    home: RangeServer,
    s3_uri: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(archive, "UPLOAD_SECONDS", 0.5)
    proxy.default = ("throttle", 150_000)
    start = time.monotonic()
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA
    assert time.monotonic() - start < 6 < len(DATA) / 150_000  # what the upload takes
    assert "data_cache_slow" in "".join(capsys.readouterr())
    proxy.default = ("pass", 0)
    deadline = time.monotonic() + 15
    store = open_store(s3_uri)
    while not store.list():  # the upload continues
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert store.get(SHA256).data == DATA


def test_a_large_copy_comes_in_parts_and_resumes_where_it_was_cut(
    tmp_path: Path, home: RangeServer, s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 300_000)
    open_store(s3_uri).put(SHA256, DATA)
    proxy.faults = [("pass", 0)] * 2 + [("truncate", 1000), ("pass", 0), ("unavailable", 0)]
    assert fetch([source(home)], tmp_path, s3_uri).path.read_bytes() == DATA
    assert not proxy.faults
    assert not home.requests


def test_only_what_has_a_hash_and_comes_over_http_is_kept(
    tmp_path: Path, home: RangeServer, s3_uri: str
) -> None:
    cache = f"{s3_uri}/data"
    open_store(s3_uri).put("a.tar.gz", DATA)
    (tmp_path / "a.tar.gz").write_bytes(DATA)
    fetch([Source(f"{home.uri}/a.tar.gz")], tmp_path / "without", cache)
    fetch([Source(f"{s3_uri}/a.tar.gz", SHA256)], tmp_path / "s3", cache)
    fetch([Source(str(tmp_path / "a.tar.gz"), SHA256)], tmp_path / "file", cache)
    assert open_store(cache).list() == []


def test_a_home_that_fails_leaves_nothing_in_the_store(
    tmp_path: Path, home: RangeServer, s3_uri: str
) -> None:
    home.faults = [("flip", 500)]
    with pytest.raises(DataError):
        fetch([source(home)], tmp_path, s3_uri)
    home.faults = [("status", 503)] * 10
    with pytest.raises(MachineError):
        fetch([source(home)], tmp_path, s3_uri)
    assert open_store(s3_uri).list() == []


def test_a_data_set_is_prepared_through_the_store(tmp_path: Path, serve: Serve, s3_uri: str) -> None:
    data = write_archive(tmp_path / "archive.tar.gz").read_bytes()
    server = serve({"/a.tar.gz": data})
    sources = (f"{server.uri}/a.tar.gz#sha256={hashlib.sha256(data).hexdigest()}",)
    first, second = (prepare(sources, tmp_path / name, s3_uri) for name in ("first", "second"))
    assert (first.source, first.dataset.sha256) == (second.source, second.dataset.sha256)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [200, 302, 403, 404])
def test_one_answer_that_is_not_s3s_does_not_stop_a_download_from_a_bucket(
    tmp_path: Path, s3_uri: str, proxy: FaultProxy, status: int
) -> None:
    open_store(s3_uri).put("a.tar.gz", DATA)
    proxy.faults = [("html", status)]  # the first answer that a new process gets
    assert fetch([Source(f"{s3_uri}/a.tar.gz", SHA256)], tmp_path, None).path.read_bytes() == DATA
    proxy.faults = [("html", status)]
    assert remote.size_of(f"{s3_uri}/a.tar.gz") == len(DATA)
    assert not proxy.faults
