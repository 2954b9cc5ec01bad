"""Trying again, through a proxy that makes the faults."""

from __future__ import annotations

import time

import pytest

from job.store import open_store
from job.store.base import AbsentError, ConflictError, TransientError
from tests.servers import FaultProxy

DATA = bytes(range(256)) * 40


@pytest.mark.parametrize(
    "fault", [("refuse", 0), ("unavailable", 0), ("truncate", 100), ("flip", 5000), ("lose", 0)]
)
def test_a_read_gets_over_each_fault(s3_uri: str, proxy: FaultProxy, fault: tuple[str, int]) -> None:
    store = open_store(s3_uri)
    store.put("key", DATA)
    proxy.faults = [fault, fault]
    assert store.get("key").data == DATA
    assert not proxy.faults


@pytest.mark.parametrize(
    "fault", [("refuse", 0), ("unavailable", 0), ("truncate", 0), ("flip_request", 5000), ("lose", 0)]
)
def test_a_write_gets_over_each_fault(s3_uri: str, proxy: FaultProxy, fault: tuple[str, int]) -> None:
    store = open_store(s3_uri)
    version = store.put_if_absent("key", b"old")
    proxy.faults = [fault, fault]
    store.put("other", DATA)
    proxy.faults = [fault, fault]
    store.put_if_match("key", DATA, version)
    assert store.get("other").data == store.get("key").data == DATA


def test_the_first_call_gets_over_faults_of_its_probes(s3_uri: str, proxy: FaultProxy) -> None:
    proxy.faults = [("unavailable", 0), ("pass", 0), ("refuse", 0), ("pass", 0), ("truncate", 3)]
    store = open_store(s3_uri)
    store.put("key", DATA)
    assert [entry.key for entry in store.list()] == ["key"]


def test_a_claim_whose_answer_was_lost_is_ours(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    store.list()
    store.put("warm", b"")
    proxy.faults = [("lose", 0)]
    version = store.put_if_absent("claim", b"ours")
    assert store.get("claim") == (item := store.get("claim"))
    assert (item.data, item.version) == (b"ours", version)
    with pytest.raises(ConflictError):
        store.put_if_absent("claim", b"ours")  # nothing was lost: this is another writer with equal words


def test_a_claim_that_failed_and_was_taken_is_not_ours(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    store.put("claim", b"theirs")
    proxy.faults = [("unavailable", 0)]
    with pytest.raises(ConflictError):
        store.put_if_absent("claim", b"ours")
    assert store.get("claim").data == b"theirs"


def test_a_swap_whose_answer_was_lost_is_ours(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    first = store.put_if_absent("HEAD.json", b"1")
    proxy.faults = [("lose", 0), ("unavailable", 0)]
    second = store.put_if_match("HEAD.json", b"2", first)
    assert store.put_if_match("HEAD.json", b"3", second)
    proxy.faults = [("lose", 0)]
    with pytest.raises(ConflictError):
        store.put_if_match("HEAD.json", b"4", first)
    assert store.get("HEAD.json").data == b"3"


def test_absence_is_not_tried_again(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    store.list()
    before = len(proxy.heads)
    with pytest.raises(AbsentError):
        store.get("key")
    assert len(proxy.heads) == before + 1


def test_an_outage_longer_than_the_budget_is_reported(
    s3_uri: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.default = ("unavailable", 0)
    start = time.monotonic()
    with pytest.raises(TransientError, match="503") as caught:
        open_store(s3_uri, retry_seconds=1.5).get("key")
    assert 1.5 <= time.monotonic() - start < 10
    assert caught.value.exit_code == 74
    assert "store_retry" in "".join(capsys.readouterr())


def test_an_outage_shorter_than_the_budget_costs_time_only(s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri, retry_seconds=20)
    store.put("key", DATA)
    proxy.faults = [("unavailable", 0)] * 3
    assert store.get("key").data == DATA
