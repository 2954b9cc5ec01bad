"""Retries, through a proxy that makes the faults."""

from __future__ import annotations

import re
import time

import pytest

from job import events
from job.store import answers, open_store
from job.store.base import AbsentError, ConflictError, RefusedError, TransientError
from tests.servers import FaultProxy

DATA = bytes(range(256)) * 40


FOREIGN = [("html", status) for status in (200, 302, 400, 401, 403, 404)]
ANSWERS = [("no_etag", 0), ("denied", 0), *FOREIGN]
OUTAGES = [("refuse", 0), ("unavailable", 0), ("lose", 0)]


@pytest.fixture(params=["s3", "gs"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_uri"))


@pytest.fixture
def network(request: pytest.FixtureRequest, uri: str) -> FaultProxy:
    """The fault proxy between the store's client and its server."""
    proxy: FaultProxy = request.getfixturevalue("proxy" if uri.startswith("s3") else "gs_proxy")
    return proxy


def test_a_read_succeeds_after_each_fault(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    store.put("key", DATA)
    for fault in [*OUTAGES, ("truncate", 100), ("flip", 5000), *ANSWERS]:
        network.faults = [fault, fault]
        assert store.get("key").data == DATA, fault
        assert not network.faults, fault


def test_a_write_succeeds_after_each_fault(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    faults = [*OUTAGES, ("denied", 0), *FOREIGN]
    if uri.startswith("s3"):  # fake-gcs-server compares no checksum, and has the version in its answer's body
        faults += [("flip_request", 5000), ("no_etag", 0)]
    for number, fault in enumerate(faults):
        version = store.put_if_absent(f"key-{number}", b"old")
        network.faults = [fault, fault]
        store.put(f"other-{number}", DATA)
        assert not network.faults, fault
        network.faults = [fault, fault]
        store.put_if_match(f"key-{number}", DATA, version)
        assert not network.faults, fault
        assert store.get(f"other-{number}").data == store.get(f"key-{number}").data == DATA, fault


def test_the_first_call_succeeds_after_faults_of_its_probes(uri: str, network: FaultProxy) -> None:
    network.faults = [("unavailable", 0), ("pass", 0), ("refuse", 0), ("pass", 0), ("truncate", 3)]
    store = open_store(uri)
    store.put("key", DATA)
    assert [entry.key for entry in store.list()] == ["key"]


def test_a_claim_whose_answer_was_lost_is_ours(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    store.list()
    store.put("warm", b"")
    network.faults = [("lose", 0)]
    version = store.put_if_absent("claim", b"ours")
    assert store.get("claim") == (item := store.get("claim"))
    assert (item.data, item.version) == (b"ours", version)
    with pytest.raises(ConflictError):
        store.put_if_absent("claim", b"ours")  # nothing was lost: this is another writer with equal words


def test_a_claim_that_failed_and_was_taken_is_not_ours(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    store.put("claim", b"theirs")
    network.faults = [("unavailable", 0)]
    with pytest.raises(ConflictError):
        store.put_if_absent("claim", b"ours")
    assert store.get("claim").data == b"theirs"


def test_a_swap_whose_answer_was_lost_is_ours(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    first = store.put_if_absent("HEAD.json", b"1")
    network.faults = [("lose", 0), ("unavailable", 0)]
    second = store.put_if_match("HEAD.json", b"2", first)
    assert store.put_if_match("HEAD.json", b"3", second)
    network.faults = [("lose", 0)]
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"4", first)
    assert store.get("HEAD.json").data == b"3"


def test_absence_is_not_retried(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    store.list()
    before = len(network.heads)
    with pytest.raises(AbsentError):
        store.get("key")
    assert len(network.heads) == before + 1


def test_an_outage_longer_than_the_budget_is_reported(
    uri: str, network: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    network.default = ("unavailable", 0)
    events.configure("human")  # another test of this process may have sent them elsewhere
    start = time.monotonic()
    with pytest.raises(TransientError, match="503") as caught:
        open_store(uri, retry_seconds=1.5).get("key")
    assert 1.5 <= time.monotonic() - start < 10
    assert caught.value.exit_code == 74
    assert "store_retry" in "".join(capsys.readouterr())


def test_an_outage_shorter_than_the_budget_costs_time_only(uri: str, network: FaultProxy) -> None:
    store = open_store(uri, retry_seconds=20)
    store.put("key", DATA)
    network.faults = [("unavailable", 0)] * 3
    assert store.get("key").data == DATA


def test_a_part_is_read_after_each_answer_that_is_not_its_own(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    version = store.put_if_absent("key", DATA)
    assert store.get_range("key", 7, 5).version == version
    for fault in [("wrong_range", 0), *ANSWERS]:
        network.faults = [fault, fault]
        assert store.get_range("key", 100, 50).data == DATA[100:150], fault
        assert not network.faults, fault


def test_a_listing_and_a_deletion_succeed_after_each_answer_that_is_not_theirs(
    uri: str, network: FaultProxy
) -> None:
    store = open_store(uri)
    for fault in [("denied", 0), *FOREIGN]:
        store.put("key", DATA)
        store.delete("other")
        network.faults = [fault, fault]
        assert [entry.key for entry in store.list()] == ["key"], fault  # never an empty one
        network.faults = [fault, fault]
        store.delete("key")
        assert not network.faults, fault
        assert store.list() == [], fault


def test_answers_that_are_not_the_services_are_the_machines_fault_in_the_end(
    uri: str, network: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(uri, retry_seconds=0.3)
    store.put("key", DATA)
    for status in (200, 302, 404):
        network.default = ("html", status)
        with pytest.raises(TransientError, match=f"HTTP {status} with text/html") as caught:
            store.get("key")
        assert caught.value.exit_code == 74
    events.configure("human")
    events.stopped(caught.value.message, caught.value.fix, 74)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", "".join(capsys.readouterr()))


def test_a_right_that_is_lost_is_a_refusal_in_the_end(
    uri: str, network: FaultProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "REFUSED_SECONDS", 0.3)
    store = open_store(uri)
    store.put("key", DATA)
    network.default = ("denied", 0)
    events.configure("human")
    with pytest.raises(RefusedError, match="AccessDenied") as caught:
        store.put("key", b"x")
    assert caught.value.exit_code == 77
    logged = "".join(capsys.readouterr())
    assert "store_retry" in logged
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", logged)


def test_what_was_never_allowed_is_refused_at_once(uri: str, network: FaultProxy) -> None:
    store = open_store(uri)
    store.list()
    network.default = ("denied", 0)
    before = len(network.heads)
    with pytest.raises(RefusedError):
        store.get("key")
    assert len(network.heads) == before + 1


def test_one_answer_that_is_not_the_services_does_not_stop_a_start(uri: str, network: FaultProxy) -> None:
    network.faults = [("html", 404), ("html", 200)]
    assert open_store(uri).list() == []
