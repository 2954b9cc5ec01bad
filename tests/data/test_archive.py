"""Sources, failover, verification, and unpacking that is all or nothing."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from job.data import download as downloads
from job.data.archive import CIFAR100_SOURCES, Archive, Source, fetch, parse_source
from job.data.cifar import FOLDER, load
from job.data.extract import unpack
from job.errors import (
    ConfigurationError,
    DataError,
    JobError,
    MachineError,
    PermissionRefusedError,
    UsageError,
)
from tests.archives import calling_pickle, write_archive, write_tar
from tests.disks import tiny_disk
from tests.servers import RangeServer, free_ports

Serve = Callable[[dict[str, bytes]], RangeServer]
HASH = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FIRST_PAUSE_SECONDS", 0.01)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("data/a.tar.gz", Source("data/a.tar.gz")),
        (f"/data/a.tar.gz#sha256={HASH}", Source("/data/a.tar.gz", HASH)),
        (f"/data/a#1.tar.gz#sha256={HASH.upper()}", Source("/data/a#1.tar.gz", HASH)),
        ("/data/a#1.tar.gz", Source("/data/a#1.tar.gz")),
        ("file:///data/a.tar.gz", Source("file:///data/a.tar.gz")),
        ("HTTPS://host/a.tar.gz", Source("https://host/a.tar.gz")),
        (f"https://host/a?b=c#sha256={HASH}", Source("https://host/a?b=c", HASH)),
        (f"s3://bucket/a/b.tar.gz#sha256={HASH}", Source("s3://bucket/a/b.tar.gz", HASH)),
    ],
)
def test_a_source_is_read(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://host/a",
        "az://bucket/a",
        "a#sha256=",
        f"a#sha256={'g' * 64}",
        "http://[::1/a",
        "http://host:port/a",
        "http://user:pass#word@host/a",
        "http:///a",
        f"#sha256={HASH}",
    ],
)
def test_what_is_no_source_is_a_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a#sha256=12", "'a' has a #sha256= that is not a SHA-256"),
        ("ftp://host/a", "file://, http://, https://, s3:// or gs://"),
        ("s3://bucket", "'s3://bucket' names a bucket and no file.*s3://BUCKET/KEY"),
        ("S3://bucket/", "names a bucket and no file"),
        ("gs://bucket/folder/", "names a bucket and no file.*gs://BUCKET/KEY"),
    ],
)
def test_a_message_says_what_of_a_source_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_source(text)


def test_sources_that_are_all_misspelt_are_a_wrong_usage_with_each_reason(tmp_path: Path) -> None:
    failing = [Source(f"s3://not_a_bucket{number}!/key") for number in range(2)]
    with pytest.raises(UsageError, match=r"no source gave the data: .*not_a_bucket0!.*not_a_bucket1!"):
        fetch(failing, tmp_path)


def test_the_default_source_is_the_home_of_cifar_100() -> None:
    assert CIFAR100_SOURCES[0].size == 169_001_437
    assert CIFAR100_SOURCES[0].sha256 == "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_local_archive_is_used_where_it_is(tmp_path: Path, as_uri: bool) -> None:
    path = write_archive(tmp_path / "my archive.tar.gz")
    text = path.as_uri() if as_uri else str(path)
    right = sha256(path.read_bytes())
    archive = fetch([parse_source(f"{text}#sha256={right}")], tmp_path / "cache")
    assert archive == Archive(path, right, text)
    assert not (tmp_path / "cache").exists()


def test_a_local_archive_of_another_hash_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.tar.gz")
    with pytest.raises(DataError, match=HASH):
        fetch([Source(str(path), HASH)], tmp_path / "cache")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.tar.gz"):
        with pytest.raises(DataError, match=re.escape(str(path))):
            fetch([Source(str(path))], tmp_path / "cache")


def test_a_file_that_may_not_be_read_is_refused_as_such(nobody: Path, tmp_path: Path) -> None:
    for path in (nobody / "secret", nobody / "closed" / "archive"):
        with pytest.raises(PermissionRefusedError, match=str(path)):
            fetch([Source(str(path))], tmp_path / "cache")


def test_the_next_source_is_taken_when_one_fails(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_archive(tmp_path / "archive.tar.gz").read_bytes()
    server = serve({"/good": data, "/altered": data[:1000] + b"x" + data[1001:]})
    nobody_there = f"http://127.0.0.1:{free_ports(1)[0]}/archive"
    sources = [
        Source(uri, sha256(data))
        for uri in (nobody_there, f"{server.uri}/missing", f"{server.uri}/altered", f"{server.uri}/good")
    ]
    archive = fetch(sources, tmp_path / "cache")
    assert (archive.uri, archive.sha256) == (f"{server.uri}/good", sha256(data))
    assert archive.path.read_bytes() == data
    said = "".join(capsys.readouterr())
    assert said.count("source_failed") == 3
    assert "refused" in said


def test_when_all_fail_each_reason_is_named(tmp_path: Path, serve: Serve) -> None:
    server = serve({"/altered": b"x"})
    server.faults = [("status", 403)]
    sources = [
        Source(f"{server.uri}/forbidden"),
        Source(f"{server.uri}/missing"),
        Source(f"{server.uri}/altered", HASH),
        Source(str(tmp_path / "none")),
    ]
    with pytest.raises(JobError) as caught:
        fetch(sources, tmp_path / "cache")
    for part in ("/forbidden", "403", "/missing", "404", "/altered", HASH, "/none"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ([404, 503, 403], MachineError),  # a later try may succeed
        ([404, 403], PermissionRefusedError),
        ([404, 404], DataError),
    ],
)
def test_the_kind_of_the_error_is_the_most_hopeful(
    tmp_path: Path, serve: Serve, statuses: list[int], kind: type[JobError]
) -> None:
    server = serve({})
    server.faults = [("status", code) for code in statuses for _ in range(4 if code == 503 else 1)]
    with pytest.raises(kind):
        fetch([Source(f"{server.uri}/{number}") for number in range(len(statuses))], tmp_path / "cache")


def test_no_source_is_a_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fetch([], tmp_path)


def test_secrets_in_an_address_are_not_repeated(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_archive(tmp_path / "archive.tar.gz").read_bytes()
    server = serve({"/good": data})
    address = server.uri.replace("http://", "http://user:hush@")
    archive = fetch([Source(f"{address}/good?signature=hush")], tmp_path / "cache")
    assert archive.uri == f"{server.uri}/good"
    server.faults = [("status", 503)] * 4
    with pytest.raises(MachineError) as caught:
        fetch([Source(f"{address}/bad?signature=hush")], tmp_path / "cache")
    address = f"http://user:hush@127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(MachineError) as unreachable:
        fetch([Source(f"{address}/bad?signature=hush")], tmp_path / "cache")
    assert "hush" not in "".join([*capsys.readouterr(), str(caught.value), str(unreachable.value)])
    assert "hush" not in "".join(path.read_text() for path in (tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize(
    "target", ["ftp://user:hush@host/a", "http://user:hush@127.0.0.1:1/a", "http://[hush"]
)
def test_secrets_in_a_redirect_are_not_repeated(tmp_path: Path, serve: Serve, target: str) -> None:
    server = serve({})
    server.redirects = {"/a": target}
    with pytest.raises(JobError) as caught:
        fetch([Source(f"{server.uri}/a")], tmp_path / "cache")
    assert f"{server.uri}/a" in caught.value.message
    assert "hush" not in str(caught.value)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return fetch([Source(str(write_archive(tmp_path / "archive.tar.gz")))], tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_unpacking_twice_gives_the_same_folder(tmp_path: Path, archive: Archive) -> None:
    cache = tmp_path / "cache"
    folder = unpack(archive, cache)
    assert folder == cache / archive.sha256
    assert names(folder / FOLDER) == {"train", "test", "meta"}
    times = [(folder / FOLDER / name).stat().st_mtime_ns for name in ("train", "test", "meta")]
    assert unpack(archive, cache) == folder
    assert times == [(folder / FOLDER / name).stat().st_mtime_ns for name in ("train", "test", "meta")]
    assert names(cache) == {archive.sha256}


@pytest.mark.parametrize("change", ["altered", "truncated", "removed", "unlisted"])
def test_a_cache_that_has_changed_is_made_anew(tmp_path: Path, archive: Archive, change: str) -> None:
    cache = tmp_path / "cache"
    folder = unpack(archive, cache)
    train = folder / FOLDER / "train"
    right = train.read_bytes()
    if change == "altered":
        train.write_bytes(right[:-100] + b"x" + right[-99:])
    elif change == "truncated":
        train.write_bytes(right[:1000])
    elif change == "removed":
        train.unlink()
    else:
        (folder / "SHA256SUMS").unlink()
    assert unpack(archive, cache) == folder
    assert train.read_bytes() == right
    assert names(cache) == {archive.sha256}


def test_an_archive_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "bad.tar.gz", {"train": b"x" * 100_000, "test": b"x"})
    bad = fetch([Source(str(path))], tmp_path)
    with pytest.raises(DataError):
        unpack(bad, tmp_path / "cache")
    assert names(tmp_path / "cache") == set()


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "large.tar.gz", train=800)  # 2.4 MB of noise
    large = fetch([Source(str(path))], tmp_path)
    with tiny_disk(tmp_path / "disk") as disk:
        with pytest.raises(MachineError, match="no space left") as caught:
            unpack(large, disk)
        assert caught.value.exit_code == 74
        assert names(disk) == set()


def test_a_cache_that_may_not_be_written_is_refused(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError):
        unpack(Archive(Path("/dev/null"), HASH, ""), nobody / "cache")


def test_a_cache_that_is_a_file_is_named(tmp_path: Path, archive: Archive) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="file"):
        unpack(archive, tmp_path / "file")


def test_processes_at_once_unpack_once(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.tar.gz", train=2000)
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    start, inodes = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_unpack_and_load, args=(path, cache, start, inodes)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert inodes.get(timeout=60) == inodes.get(timeout=60)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 2
    assert names(cache) == {sha256(path.read_bytes())}


def _unpack_and_load(path: Path, cache: Path, start: Barrier, inodes: Queue[int]) -> None:
    archive = fetch([Source(str(path))], cache)
    start.wait(30)
    folder = unpack(archive, cache)
    inodes.put((folder / FOLDER / "train").stat().st_ino)
    assert len(load(folder, archive.sha256).train) == 2000


def test_a_hostile_archive_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = calling_pickle("os", "system", f"touch {marker}")
    path = write_tar(tmp_path / "hostile.tar.gz", {"train": hostile, "test": hostile, "meta": hostile})
    archive = fetch([Source(str(path))], tmp_path / "cache")
    with pytest.raises(DataError, match=r"os\.system") as caught:
        load(unpack(archive, tmp_path / "cache"), archive.sha256)
    assert caught.value.exit_code == 65
    assert not marker.exists()
