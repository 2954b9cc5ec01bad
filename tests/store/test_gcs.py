"""What is the Google store's own: identity, the bucket, limits of time, and the kinds of its answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from google.api_core.exceptions import from_http_response

from job.errors import ConfigurationError, JobError
from job.store import answers, gcs, open_store
from job.store.base import ConflictError, RefusedError, TransientError
from job.store.gcs_client import from_google
from tests.metadata import GOOGLE_VARIABLE, MetadataServer
from tests.servers import FaultProxy, RangeServer, free_ports

TOKEN = "ya29.hush-hush"
OPERATIONS: list[Callable[[Any], Any]] = [
    lambda store: store.get("key"),
    lambda store: store.get_range("key", 0, 1),
    lambda store: store.put("key", b"x"),
    lambda store: store.put_if_absent("key", b"x"),
    lambda store: store.put_if_match("key", b"x", "1"),
    lambda store: store.delete("key"),
    lambda store: store.list(),
]


class TokenServer(MetadataServer):
    """Google's metadata service, whose tokens end within `seconds`; `broken` answers 502."""

    seconds = 3600
    broken = False

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        flavour = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
        if self.broken:
            return 502, flavour, b""
        if "/token" in path:
            token = {"access_token": TOKEN, "expires_in": self.seconds, "token_type": "Bearer"}
            return 200, flavour, json.dumps(token).encode()
        if "/universe" in path:
            return 404, flavour, b""  # the usual one
        account = {"email": "job@project.iam.gserviceaccount.com", "scopes": [], "aliases": ["default"]}
        return 200, flavour, json.dumps(account).encode()


@pytest.fixture
def nobody_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials in the environment, in a file or in the machine's metadata service."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    _point(monkeypatch, f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    monkeypatch.setattr(answers, "FIRST_ANSWER_SECONDS", 0.1)


def _point(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Point Google's clients to a metadata service; they have read the variable when they were imported."""
    monkeypatch.setenv(GOOGLE_VARIABLE, address)
    monkeypatch.setenv("GCE_METADATA_IP", address)
    monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", address)


@pytest.fixture
def machine(nobody_here: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    """A machine with a service account."""
    server = TokenServer()
    _point(monkeypatch, server.address)
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", False)
    yield server
    server.stop()


def test_the_machines_own_identity_is_used_and_renewed(
    machine: TokenServer, gs_proxy: FaultProxy, gs_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", gs_proxy.uri)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing is asked outside
    machine.seconds = 1  # a token that is about to end is renewed before each request
    store = open_store(gs_uri, retry_seconds=0.1)
    store.put("key", b"x")
    assert all(f"authorization: bearer {TOKEN}" in head.lower() for head in gs_proxy.heads)
    asked = len(machine.requests)
    assert store.get("key").data == b"x"
    assert len(machine.requests) > asked
    gs_proxy.default = ("denied", 0)
    with pytest.raises(RefusedError) as refused:
        open_store(gs_uri).get("key")
    assert refused.value.exit_code == 77
    machine.broken = True
    with pytest.raises(TransientError) as caught:
        store.get("key")
    assert caught.value.exit_code == 74
    assert TOKEN not in f"{refused.value} {caught.value}"


@pytest.mark.parametrize("body", [b"not JSON", b"[1]", b""])
def test_an_answer_without_what_it_must_have_is_transient(
    gs_uri: str, gs_proxy: FaultProxy, body: bytes
) -> None:
    store = open_store(gs_uri, retry_seconds=0)
    assert store.list() == []
    gs_proxy.replaced = body
    for operation in (store.list, lambda: store.put("key", b"x")):
        with pytest.raises(TransientError):
            operation()


def test_no_identity_is_refused(nobody_here: None) -> None:
    with pytest.raises(RefusedError, match="Give the machine a service account") as caught:
        open_store("gs://bucket/run").get("key")
    assert caught.value.exit_code == 77


def test_a_missing_bucket_is_not_absence(gs_uri: str) -> None:
    store = open_store("gs://no-such-bucket/run")
    for operation in OPERATIONS:
        with pytest.raises(ConfigurationError, match="there is no such bucket") as caught:
            operation(store)
        assert caught.value.exit_code == 78


def test_what_may_be_read_and_not_listed_is_read(gs_uri: str, gs_proxy: FaultProxy) -> None:
    open_store(gs_uri).put("key", b"x")
    gs_proxy.faults = [("denied", 0)]
    store = open_store(gs_uri)
    assert store.get("key").data == b"x"
    with pytest.raises(
        ConfigurationError, match="no such bucket"
    ):  # where Google answers 403 for an absent key
        store.get("absent")


def test_a_web_server_is_not_an_empty_store(
    serve: Callable[[dict[str, bytes]], RangeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "FIRST_ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", serve({}).uri)
    with pytest.raises(ConfigurationError, match="STORAGE_EMULATOR_HOST"):
        open_store("gs://bucket/run").get("key")


@pytest.mark.parametrize(
    ("address", "kind"), [("http://127.0.0.1:9", TransientError), ("http://[", ConfigurationError)]
)
def test_an_endpoint_without_a_server_is_transient_and_one_that_is_no_url_wrong(
    monkeypatch: pytest.MonkeyPatch, address: str, kind: type[JobError]
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    with pytest.raises(kind):
        open_store("gs://bucket/run", retry_seconds=0.1).get("key")


@pytest.mark.parametrize(
    ("proxy", "address", "named"),
    [
        (None, "user:s3cret@localhost:9", "STORAGE_EMULATOR_HOST"),
        (None, "http://user:s3cret@localhost:9x", "STORAGE_EMULATOR_HOST"),
        ("http://user:s3cret@local host:9", "http://localhost:9", "a proxy's address"),
        ("user:s3cret@localhost:9x", "http://localhost:9", "a proxy's address"),
        ("sock://user:s3cret@localhost:9", "http://localhost:9", "a proxy's address"),
    ],
)
def test_an_address_that_is_not_a_url_is_named_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, proxy: str | None, address: str, named: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigurationError) as caught:
        open_store("gs://bucket/run", retry_seconds=0.1).get("key")
    assert named in str(caught.value)
    assert "is not a URL. Write https://HOST[:PORT]" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "localhost" not in str(caught.value)


@pytest.mark.parametrize(("limit", "fault"), [("READ_SECONDS", "stall"), ("BODY_SECONDS", "drip")])
def test_an_answer_that_hangs_or_drips_is_given_up(
    gs_uri: str, gs_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, limit: str, fault: str
) -> None:
    monkeypatch.setattr(answers, limit, 1)
    store = open_store(gs_uri, retry_seconds=0)
    store.put("key", bytes(5000))
    gs_proxy.default = (fault, 0)
    start = time.monotonic()
    with pytest.raises(TransientError):
        store.get("key")
    assert 0.9 < time.monotonic() - start < 5


def test_what_is_sent_in_several_requests_is_whole(
    gs_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 2**22)
    store, data = open_store(gs_uri), bytes(range(256)) * 2**16 + b"and a little"  # 16 MiB, four times 4 MiB
    store.put("key", data)
    assert store.get("key").data == data
    (tmp_path / "file").write_bytes(data[::-1])
    store.put("key", tmp_path / "file")
    assert store.get("key").data == data[::-1]


ANSWERS = [  # https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes
    (400, "invalid", "Invalid argument", ConfigurationError, 78),
    (400, "invalid", 'Provided CRC32C "a" doesn\'t match calculated CRC32C "b".', TransientError, 74),
    (401, "required", "Anonymous caller does not have storage.objects.get access", RefusedError, 77),
    (403, "forbidden", "job@x does not have storage.objects.get access", RefusedError, 77),
    (403, "rateLimitExceeded", "Slow down", TransientError, 74),
    (404, "notFound", "The specified bucket does not exist.", ConfigurationError, 78),
    (408, "requestTimeout", "Too slow", TransientError, 74),
    (409, "conflict", "Two at one instant", TransientError, 74),
    (412, "conditionNotMet", "At least one of the pre-conditions did not hold", ConflictError, 76),
    (429, "rateLimitExceeded", "The object exceeded the rate limit", TransientError, 74),
    (500, "backendError", "We encountered an internal error", TransientError, 74),
    (503, "backendError", "Try again", TransientError, 74),
]


@pytest.mark.parametrize(("status", "reason", "message", "kind", "exit_code"), ANSWERS)
def test_each_answer_is_of_its_kind(
    status: int, reason: str, message: str, kind: type[JobError], exit_code: int
) -> None:
    address = f"https://storage.googleapis.com/x?upload_id={TOKEN}"
    lost = from_google(requests.ConnectionError(f"no answer from {address}"), "gs://bucket/key")
    assert (type(lost), TOKEN in str(lost)) == (TransientError, False)
    response = requests.Response()
    response.status_code = status
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    response._content = json.dumps({"error": error}).encode()
    response.request = requests.Request("GET", address).prepare()
    found = from_google(from_http_response(response), "gs://bucket/key")
    assert type(found) is kind
    assert found.exit_code == exit_code
    assert "gs://bucket/key" in str(found)
    assert TOKEN not in str(found)
