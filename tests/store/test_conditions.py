"""The check of conditional writes on throw-away keys, and that none of the keys is left."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.errors import ConfigurationError
from job.store import Store, open_store
from job.store.base import RefusedError, probe
from tests.servers import FaultProxy
from tests.store.careless import CarelessS3

HEX = "0123456789abcdef" * 2


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    kind = request.param
    return open_store(str(tmp_path) if kind == "local" else request.getfixturevalue(f"{kind}_uri"))


def test_a_store_that_honours_conditions_passes_and_is_left_as_it_was(store: Store) -> None:
    store.put("HEAD.json", b"x")
    probe(store)
    assert [entry.key for entry in store.list()] == ["HEAD.json"]


def test_many_at_once_do_not_disturb_one_another(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: probe(open_store(store.uri)), range(8)))
    assert store.list() == []


def test_the_careless_server_passes_when_it_is_careful(careless: CarelessS3) -> None:
    probe(open_store("s3://bucket/run"))
    assert not careless.objects


@pytest.mark.parametrize("condition", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(careless: CarelessS3, condition: str) -> None:
    careless.conditions[condition] = "ignore"
    with pytest.raises(ConfigurationError, match="two attempts could overwrite each other") as caught:
        probe(open_store("s3://bucket/run"))
    assert caught.value.exit_code == 78
    assert f"ignores {condition}:" in caught.value.message
    assert all(word in caught.value.fix for word in ("AWS S3", "SeaweedFS", "folder"))
    assert not careless.objects


@pytest.mark.parametrize("condition", ["If-None-Match", "If-Match"])
def test_a_store_whose_condition_never_holds_is_refused(careless: CarelessS3, condition: str) -> None:
    careless.conditions[condition] = "never"
    with pytest.raises(ConfigurationError, match=rf"refuses a conditional write \({condition}\)"):
        probe(open_store("s3://bucket/run"))
    assert not careless.objects


def test_a_store_that_does_not_know_conditions_is_refused_at_once(careless: CarelessS3) -> None:
    careless.conditions["If-None-Match"] = "unknown"
    start = time.monotonic()
    with pytest.raises(ConfigurationError, match="501") as caught:
        probe(open_store("s3://bucket/run"))
    assert time.monotonic() - start < 5  # it is not tried again
    assert "SeaweedFS" in caught.value.fix
    assert not careless.objects


@pytest.mark.parametrize(
    ("stripped", "condition"), [(r"&ifGenerationMatch=\d+", "=0"), (r"&ifGenerationMatch=[1-9]\d*", "")]
)
def test_a_store_of_googles_that_ignores_a_condition_is_refused(
    gs_uri: str, gs_proxy: FaultProxy, stripped: str, condition: str
) -> None:
    gs_proxy.stripped = re.compile(stripped)
    with pytest.raises(ConfigurationError, match="two attempts could overwrite each other") as caught:
        probe(open_store(gs_uri))
    assert caught.value.exit_code == 78
    assert f"ignores ifGenerationMatch{condition}:" in caught.value.message
    assert open_store(gs_uri).list() == []


def test_a_prefix_that_may_not_be_written_is_refused_and_not_absent(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RefusedError) as caught:
        probe(open_store(s3_uri))
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_what_a_killed_process_left_is_swept_after_an_hour(request: pytest.FixtureRequest, kind: str) -> None:
    uri = request.getfixturevalue(f"{kind}_uri")
    now, store = int(time.time()), open_store(uri)
    keys = {
        f"probes/{now - 3700}-{HEX}": True,
        f"probes/{now - 3500}-{HEX}": False,  # another attempt may be using it
        f"probes/{now + 600}-{HEX}": False,  # made by a machine whose clock is ahead
        f"probes/{now - 3700}-notes": False,  # not ours
        f"elsewhere/probes/{now - 3700}-{HEX}": False,
    }
    for key in keys:
        store.put(key, b"micronet")
    open_store(uri).put("HEAD.json", b"x")  # a new process, whose first write is a probe
    left = {entry.key for entry in store.list()}
    assert left == {key for key, swept in keys.items() if not swept} | {"HEAD.json"}


def test_what_may_be_written_and_not_listed_is_written(careless: CarelessS3) -> None:
    careless.lists = False
    probe(open_store("s3://bucket/run"))
    open_store("s3://bucket/run").put("key", b"x")
    assert careless.objects == {"run/key": b"x"}
