"""Lost answers, a failing network, SIGKILL at any instant, and a store that refuses to delete."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from job.errors import ConfigurationError, MachineError, PreemptedError
from job.run import checkpoints, layout
from job.run.checkpoints import Checkpoints
from job.run.lineage import lineage
from job.run.records import Worker
from job.store import Store, open_store
from job.store.base import ConflictError, Part, TransientError
from tests.run.checkpoint_runs import (
    claim,
    commit,
    contents,
    document,
    needs,
    objects_of,
    quick_folder,
    resumed,
    seeded,
    skipped,
    write_run,
)
from tests.servers import FaultProxy


@pytest.fixture
def local() -> Iterator[Store]:
    with quick_folder() as folder:
        yield open_store(str(folder / "run"))


def requests_of(proxy: FaultProxy, work: Any) -> list[str]:
    """Return the first lines of the requests that `work()` makes."""
    start = len(proxy.heads)
    work()
    return [head.split("\r\n")[0] for head in proxy.heads[start:]]


def test_a_commit_costs_few_requests(s3_uri: str, proxy: FaultProxy) -> None:
    run = write_run(open_store(s3_uri), 5)
    methods = [line.split()[0] for line in requests_of(proxy, lambda: commit(run, 6))]
    # two objects, the manifest and HEAD; then the oldest manifest and its two objects
    assert methods == ["PUT"] * 4 + ["DELETE"] * 3


def test_any_answer_of_a_commit_may_be_lost(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri, retry_seconds=5)
    run = write_run(store, 3)
    with capture_logs():
        for position in range(4, 11):  # a commit of seven requests each
            proxy.faults = [("pass", 0)] * (position - 4) + [("lose", 0)]
            commit(run, position)
            assert proxy.faults == []
            assert document(store, "HEAD.json")["position"] == position
    _, found = resumed(store)
    assert found.manifest.position == 10
    assert len([key for key in contents(store) if key.startswith("manifests/")]) == 3


def test_any_answer_of_a_claim_may_be_lost(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri, retry_seconds=5)
    write_run(store, 2)
    count = len(requests_of(proxy, lambda: claim(store)))
    assert count == 12
    with capture_logs():
        for number in range(count):
            proxy.faults = [("pass", 0)] * number + [("lose", 0)]
            run, found = resumed(store)
            assert (found.manifest.position, run.generation) == (2, number + 3)
            assert proxy.faults == []
    commit(run, 3)


def test_after_a_commit_that_failed_the_next_one_goes_on(s3_uri: str, proxy: FaultProxy) -> None:
    """Without retries: an answer is lost or a request never arrives; the attempt does not know which."""
    store = open_store(s3_uri, retry_seconds=0)
    run = write_run(store, 3)
    position = 3
    with capture_logs():
        for fault in ("lose", "refuse"):
            for number in range(4):
                proxy.faults = [("pass", 0)] * number + [(fault, 0)]
                position += 1
                with pytest.raises(TransientError) as caught:
                    commit(run, position)
                assert isinstance(caught.value, MachineError)
                position += 1
                commit(run, position)
                assert document(store, "HEAD.json")["position"] == position
    keys = set(contents(store))
    manifests = {key for key in keys if key.startswith("manifests/")}
    assert len(manifests) == 3
    assert len({key for key in keys if key.startswith("objects/")}) == 3 * 2 + 1
    _, found = resumed(store)
    assert found.manifest.position == position


def test_a_bit_that_flips_on_the_way_does_not_cost_a_checkpoint(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri, retry_seconds=5)
    write_run(store, 2)
    lines = requests_of(proxy, lambda: claim(store))
    reads = [number for number, line in enumerate(lines) if "manifests/1-" in line or "objects/" in line]
    assert len(reads) == 4
    for number in reads:
        proxy.faults = [("pass", 0)] * number + [("flip", 3)]
        with skipped() as told:
            _, found = resumed(store)
        assert (found.manifest.position, told, proxy.faults) == (2, {}, [])


def test_an_outage_during_the_claim_is_not_a_fresh_run(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri, retry_seconds=0)
    write_run(store, 2)
    before = contents(store)
    count = len(requests_of(proxy, lambda: claim(store)))
    for number in range(count):
        proxy.faults = [("pass", 0)] * number + [("unavailable", 0)]
        with pytest.raises(TransientError):
            claim(store)
    after = contents(store)
    assert {key for key in after if not key.startswith("claims/")} == {
        key for key in before if not key.startswith("claims/")
    }
    _, found = resumed(store)
    assert found.manifest.position == 2


class Echo:
    """A store behind something that sends every conditional put twice and passes on the second answer."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: bytes) -> str:
        self._inner.put_if_absent(key, data)
        return self._inner.put_if_absent(key, data)

    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        self._inner.put_if_match(key, data, version)
        return self._inner.put_if_match(key, data, version)


def test_a_conflict_with_oneself_is_success(local: Store) -> None:
    store: Any = Echo(local)
    with pytest.raises(ConflictError):
        store.put_if_absent("probe", b"x")
    run = write_run(store, 2, 3)
    assert run.generation == 2
    _, found = resumed(store)
    assert found.manifest.position == 5
    assert found.manifest.key == "manifests/2-3.json"


class Undeletable:
    """A store that refuses the deletions after the first `allowed`."""

    def __init__(self, inner: Store, allowed: int) -> None:
        self._inner, self.allowed = inner, allowed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def delete(self, key: str) -> None:
        self.allowed -= 1
        if self.allowed < 0:
            raise TransientError("no deletions today")
        self._inner.delete(key)


@pytest.mark.parametrize("allowed", range(4))
def test_a_prune_that_fails_is_told_and_made_good(local: Store, allowed: int) -> None:
    store: Any = Undeletable(local, allowed=100)
    run, _ = claim(store)
    for position in (1, 2, 3):
        commit(run, position)
    store.allowed = allowed
    with capture_logs() as logs:
        for position in (4, 1, 6):  # the bytes of the first come back: they may be half deleted
            commit(run, position)
            assert needs(local) <= set(contents(local))
    failures = [entry for entry in logs if entry["event"] == "prune_failed"]
    assert failures
    assert all("no deletions today" in entry["reason"] for entry in failures)
    store.allowed = 100
    commit(run, 7)
    keys = set(contents(local))
    manifests = {f"manifests/1-{number}.json" for number in (5, 6, 7)}
    assert {key for key in keys if key.startswith("manifests/")} == manifests
    assert {key for key in keys if key.startswith("objects/")} == {
        key for manifest in manifests for key in objects_of(local, manifest).values()
    }
    _, found = resumed(local)
    assert found.manifest.position == 7


KILLS = 60


def test_killed_at_any_instant_the_last_commit_that_returned_is_there() -> None:
    """SIGKILL in the middle of claims, commits and prunes, each time on what the one before left."""
    seed = seeded().randrange(2**32)
    process = multiprocessing.get_context("spawn").Process(target=_kill_many, args=(seed,))
    process.start()
    process.join(100)
    assert process.exitcode == 0


def _kill_many(seed: int) -> None:
    """Fork from a process without threads or heavy imports: a round takes milliseconds."""
    generator = random.Random(seed)
    with quick_folder() as folder, skipped() as told:
        store = open_store(str(folder / "run"))
        durable = 0
        for number in range(KILLS):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                try:
                    _commit_forever(store, writer)
                finally:
                    os._exit(1)  # not into what the parent has still to do
            os.close(writer)
            reported = os.read(reader, 4) if number % 2 else b""  # every other one commits at least once
            time.sleep(generator.random() * 0.03)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            with open(reader, "rb") as pipe:
                reported += pipe.read()
            durable = max([durable, *(value for (value,) in struct.iter_unpack("<I", reported))])
            if durable:
                assert needs(store) <= set(contents(store))
                _, found = resumed(store)
                assert found.manifest.position >= durable
                durable = found.manifest.position
    print("commits", durable)
    assert durable >= KILLS // 2
    assert told == {}


def _commit_forever(store: Store, pipe: int) -> None:
    run, found = claim(store)
    position = found.manifest.position if found else 0
    while True:
        position += 1
        commit(run, position)
        os.write(pipe, struct.pack("<I", position))


class Failing:
    """A store that does something else in a method, for keys of one folder."""

    def __init__(self, inner: Store, **instead: Any) -> None:
        self._inner, self._instead = inner, instead

    def __getattr__(self, name: str) -> Any:
        return self._instead.get(name) or getattr(self._inner, name)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PreemptedError("stopped by SIGTERM"), "preempted"),
        (ConfigurationError("no locks"), "refused"),
        (MachineError("the disk is full"), "failed: the disk is full"),
        (MemoryError(), "failed: MemoryError"),
    ],
)
def test_what_stops_a_claim_while_its_checkpoint_loads_is_its_end(
    local: Store, error: BaseException, reason: str
) -> None:
    write_run(local, 1)

    def get_range(key: str, offset: int, length: int) -> Part:
        if key.startswith(layout.OBJECTS):
            raise error
        return local.get_range(key, offset, length)

    with pytest.raises(type(error)) as caught:
        claim(Failing(local, get_range=get_range))
    assert caught.value is error
    assert [turn.reason for turn in lineage(local)] == ["vanished", reason]


@pytest.mark.parametrize("fault", ["fails", "hangs"])
def test_a_store_that_takes_no_end_neither_replaces_the_error_nor_delays_it(
    local: Store, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(local, 1)
    monkeypatch.setattr(checkpoints, "END_SECONDS", 0.2)
    resume = threading.Event()

    def put(key: str, data: bytes) -> None:
        if fault == "hangs":
            resume.wait(20)
        raise TransientError("no answer")

    worker, failing = Worker(), Failing(local, put=put)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="of recipe"):
        Checkpoints.claim(failing, "ba9876543210", worker)
    resume.set()
    assert time.monotonic() - began < 10
