"""What every store promises: a folder, a real S3 server, a real server of Google's API."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import DataError, JobError
from job.store import Store, open_store
from job.store.base import AbsentError, ConflictError, Entry, Item

HOSTILE_KEYS = [
    "", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "/a", ".", "./a", "a/./b", ".lock",
    "a\\b", "a\nb", "a\0b", "x" * 201, "/".join(["x" * 99] * 6),
]  # fmt: skip


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    kind = request.param
    uri = str(tmp_path / "store") if kind == "local" else request.getfixturevalue(f"{kind}_uri")
    return open_store(uri, retry_seconds=5)


def test_a_key_that_was_never_put_is_absent(store: Store) -> None:
    with pytest.raises(AbsentError) as caught:
        store.get("a/b")
    assert caught.value.exit_code == 65
    with pytest.raises(AbsentError):
        store.get_range("a/b", 0, 10)


def test_what_is_put_is_read_back(store: Store) -> None:
    store.put("a/b.json", b"one")
    first = store.get("a/b.json")
    assert first.data == b"one"
    store.put("a/b.json", b"two")
    second = store.get("a/b.json")
    assert second.data == b"two"
    assert second.version != first.version


def test_a_part_of_a_path_is_no_key(store: Store) -> None:
    store.put("a/b/c", b"x")
    for key in ("a", "a/b", "a/b/c/d"):
        with pytest.raises(AbsentError):
            store.get(key)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 2**15])  # 8 MiB: boto3 would split it
def test_any_content_survives(store: Store, data: bytes) -> None:
    store.put("content", data)
    assert store.get("content").data == data
    assert store.list() == [Entry("content", len(data))]


def test_a_file_is_put_from_its_path(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(bytes(range(256)) * 2**15)
    store.put("archive", path)
    assert store.get("archive").data == path.read_bytes()
    with pytest.raises((OSError, JobError)):
        store.put("archive", tmp_path / "missing")
    assert store.get("archive").data == path.read_bytes()


def test_ranges_cover_the_content_and_end_with_it(store: Store) -> None:
    version = store.put_if_absent("content", b"0123456789")
    parts = [store.get_range("content", offset, 4) for offset in (0, 4, 8)]
    assert [part.data for part in parts] == [b"0123", b"4567", b"89"]
    assert {(part.version, part.size) for part in parts} == {(version, 10)}
    past = store.get_range("content", 10, 4)
    assert (past.data, past.size) == (b"", 10)
    store.put("empty", b"")
    assert store.get_range("empty", 0, 4).data == b""


def test_put_if_absent_writes_once(store: Store) -> None:
    version = store.put_if_absent("claim", b"mine")
    with pytest.raises(ConflictError) as caught:
        store.put_if_absent("claim", b"yours")
    assert caught.value.exit_code == 76
    assert store.get("claim") == Item(b"mine", version)
    store.delete("claim")
    store.put_if_absent("claim", b"yours")
    assert store.get("claim").data == b"yours"


def test_put_if_match_needs_the_version_that_is_there(store: Store) -> None:
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"1", '"0123456789abcdef0123456789abcdef"')
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"1", "0")
    first = store.put_if_absent("HEAD.json", b"1")
    second = store.put_if_match("HEAD.json", b"2", first)
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"3", first)
    assert store.get("HEAD.json") == Item(b"2", second)
    store.delete("HEAD.json")
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"3", second)
    with pytest.raises(AbsentError):
        store.get("HEAD.json")


def test_delete_needs_nothing_to_be_there(store: Store) -> None:
    store.delete("never/there")
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")
    with pytest.raises(AbsentError):
        store.get("a")


def test_a_listing_is_of_whole_folders(store: Store) -> None:
    assert store.list() == []
    for key in ("manifests/1-5.json", "manifests/2/x", "manifests-old", "HEAD.json"):
        store.put(key, key.encode())
    assert {entry.key for entry in store.list("manifests")} == {"manifests/1-5.json", "manifests/2/x"}
    assert {(entry.key, entry.size) for entry in store.list()} == {
        ("manifests/1-5.json", 18), ("manifests/2/x", 13), ("manifests-old", 13), ("HEAD.json", 9),
    }  # fmt: skip
    assert store.list("none") == []


def test_a_listing_longer_than_a_page_is_whole(store: Store) -> None:
    keys = {f"many/{number}" for number in range(1003)}  # S3 gives 1,000 at a time
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert {entry.key for entry in store.list("many")} == keys


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_key_cannot_leave_its_place(store: Store, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.put(key, b"x"),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.put_if_match(key, b"x", "v"),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(DataError) as caught:
            call()
        assert not isinstance(caught.value, AbsentError)


def test_odd_keys_that_are_allowed_work(store: Store) -> None:
    keys = {"a b+c%20d&e=f", "ümlaut/ß", "x" * 200, "-", "a..b", "#sha256=1", "?versionId=2", "~"}
    for key in keys:
        store.put(key, key.encode())
    assert {store.get(key).data.decode() for key in keys} == keys
    assert {entry.key for entry in store.list()} == keys


def test_stores_below_one_another_share_keys(store: Store) -> None:
    store.put("runs/a/HEAD.json", b"x")
    assert open_store(f"{store.uri}/runs/").get("a/HEAD.json").data == b"x"


CONTENDERS = 16


def test_of_many_threads_that_claim_one_succeeds(store: Store) -> None:
    for round_number in range(3):
        outcomes = _claim_in_threads(store, f"claims/{round_number}")
        assert sorted(outcomes)[:-1] == [-1] * (CONTENDERS - 1)
        assert store.get(f"claims/{round_number}").data == str(max(outcomes)).encode()


def _claim_in_threads(store: Store, key: str) -> list[int]:
    def claim(number: int) -> int:
        try:
            store.put_if_absent(key, str(number).encode())
        except ConflictError:
            return -1
        return number

    with ThreadPoolExecutor(CONTENDERS) as pool:
        return list(pool.map(claim, range(CONTENDERS)))


def test_of_many_processes_each_swap_succeeds_once(store: Store) -> None:
    """Every process adds 1 ten times by compare-and-swap: a lost or doubled swap shows in the sum."""
    store.put("counter", b"0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(store.uri, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert store.get("counter").data == b"30"


def _count(uri: str, times: int) -> None:
    store = open_store(uri, retry_seconds=20)
    for _ in range(times):
        while True:
            item = store.get("counter")
            try:
                store.put_if_match("counter", str(int(item.data) + 1).encode(), item.version)
                break
            except ConflictError:
                continue


def test_a_reader_never_sees_a_part(store: Store) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    generator = random.Random(seed)
    contents = [bytes([value]) * generator.randrange(1, 200_000) for value in range(8)]
    store.put("content", contents[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(store.put, "content", contents[index % 8]) for index in range(40)]
        reads = 0
        while not all(write.done() for write in writes):
            assert store.get("content").data in contents
            reads += 1
    assert reads > 0
    for write in writes:
        write.result()
