"""What is S3's own: who is refused and why, how the service is found, and a network that fails."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from job.errors import ConfigurationError, JobError, MachineError, PermissionRefusedError
from job.store import answers, open_store
from job.store import service as service_of
from job.store.base import AbsentError, ConflictError, RefusedError, TransientError
from job.store.s3_client import from_boto
from tests.limits import limited
from tests.servers import ACCESS_KEY, DOMAIN, SECRET_KEY, FaultProxy, RangeServer, SeaweedFS, free_ports
from tests.store.careless import CarelessS3

OPERATIONS: list[Callable[[Any], Any]] = [
    lambda store: store.get("key"),
    lambda store: store.get_range("key", 0, 1),
    lambda store: store.put("key", b"x"),
    lambda store: store.put_if_absent("key", b"x"),
    lambda store: store.put_if_match("key", b"x", '"0"'),
    lambda store: store.delete("key"),
    lambda store: store.list(),
]


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_keys_are_refused(s3_uri: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    store = open_store(s3_uri)
    for operation in OPERATIONS:
        with pytest.raises(RefusedError, match="Check AWS_ACCESS_KEY_ID") as caught:
            operation(store)
        assert caught.value.exit_code == 77
        assert isinstance(caught.value, PermissionRefusedError)


def test_no_keys_are_refused(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RefusedError, match="a profile or a role"):
        open_store(s3_uri).get("key")


def test_an_unknown_profile_is_refused(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(RefusedError, match="nobody"):
        open_store(s3_uri).get("key")


def test_a_missing_bucket_is_not_absence(s3_uri: str) -> None:
    store = open_store("s3://no-such-bucket/run")
    for operation in OPERATIONS:
        with pytest.raises(ConfigurationError, match="there is no such bucket") as caught:
            operation(store)
        assert caught.value.exit_code == 78


def test_a_web_server_is_not_an_empty_store(
    s3_uri: str, serve: Callable[[dict[str, bytes]], RangeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "FIRST_ANSWER_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", serve({}).uri)
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL_S3"):
        open_store(s3_uri).get("key")


@pytest.mark.parametrize(
    ("proxy", "address", "named"),
    [
        (None, "not an endpoint", "AWS_ENDPOINT_URL_S3"),
        (None, "user:s3cret@localhost:9", "AWS_ENDPOINT_URL_S3"),
        (None, "http://user:s3cret@[localhost:9", "AWS_ENDPOINT_URL_S3"),
        (None, "http://user:s3cret@localhost:9x", "AWS_ENDPOINT_URL_S3"),
        (None, "http://user:s3 s3cret@localhost:9", "AWS_ENDPOINT_URL_S3"),
        ("http://user:s3cret@local host:9", "http://localhost:9", "a proxy's address"),
        ("user:s3cret@localhost:9x", "http://localhost:9", "a proxy's address"),
    ],
)
def test_an_address_that_is_not_a_url_is_named_and_not_printed(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, proxy: str | None, address: str, named: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigurationError) as caught:
        open_store(s3_uri, retry_seconds=0.1).get("key")
    assert named in str(caught.value)
    assert "is not a URL. Write https://HOST[:PORT]" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "localhost" not in str(caught.value)


def test_an_endpoint_without_a_server_is_transient(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransientError) as caught:
        open_store(s3_uri, retry_seconds=0.1).get("key")
    assert caught.value.exit_code == 74
    assert isinstance(caught.value, MachineError)


def test_credentials_are_renewed(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys that end within the quarter of an hour are renewed before each request: never a frozen copy."""
    keys, script = tmp_path / "secret", tmp_path / "keys.py"
    ends = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    script.write_text(
        f"import json, pathlib; print(json.dumps({{'Version': 1, 'AccessKeyId': {ACCESS_KEY!r}, "
        f"'SecretAccessKey': pathlib.Path({str(keys)!r}).read_text(), 'Expiration': {ends!r}}}))"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    store = open_store(s3_uri, retry_seconds=1)
    keys.write_text(SECRET_KEY)
    store.put("key", b"x")
    keys.write_text("revoked")
    with pytest.raises(RefusedError):
        store.get("key")
    keys.write_text(SECRET_KEY)
    assert store.get("key").data == b"x"


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_is_that_of_the_environment(
    s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(variable, "eu-north-1")
    open_store(s3_uri).list()
    assert all("/eu-north-1/s3/aws4_request" in head for head in proxy.heads)


def test_a_store_that_takes_only_host_names_is_found(
    seaweedfs: SeaweedFS, s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def resolve_domain(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith(DOMAIN) else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_domain)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.uri.replace("127.0.0.1", DOMAIN))
    proxy.refused = re.compile(rf"^\w+ /{s3_uri.split('/')[2]}")
    store = open_store(s3_uri)
    store.put("key", b"x")
    assert store.get("key").data == b"x"
    assert f"host: {s3_uri.split('/')[2]}.{DOMAIN}:" in proxy.heads[-1].lower()


def test_what_may_be_read_and_not_listed_is_read(s3_uri: str, proxy: FaultProxy) -> None:
    open_store(s3_uri).put("key", b"x")
    proxy.refused = re.compile("list-type=2")
    assert open_store(s3_uri).get("key").data == b"x"


def test_a_store_that_refuses_boto3s_checksums_is_written_without(s3_uri: str, proxy: FaultProxy) -> None:
    proxy.refused = re.compile("x-amz-sdk-checksum-algorithm|x-amz-checksum-crc", re.IGNORECASE)
    store = open_store(s3_uri)
    store.put("key", b"x")
    assert store.get("key").data == b"x"
    assert [entry.key for entry in store.list()] == ["key"]  # nothing of the probe is left


def test_a_store_that_returns_other_bytes_is_not_written_to(s3_uri: str, proxy: FaultProxy) -> None:
    proxy.refused = re.compile("x-amz-sdk-checksum-algorithm|x-amz-checksum-crc", re.IGNORECASE)
    store = open_store(s3_uri)
    store.list()
    proxy.faults = [("pass", 0), ("pass", 0), ("flip", 0)]  # a list, the put without checksum, and its get
    with pytest.raises(ConfigurationError, match="other bytes"):
        store.put("key", b"x")
    proxy.refused = None
    assert store.list() == []


def test_a_store_that_hangs_is_given_up(
    s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "READ_SECONDS", 0.5)
    proxy.default = ("stall", 0)
    start = time.monotonic()
    with pytest.raises(TransientError):
        open_store(s3_uri, retry_seconds=0).get("key")
    assert time.monotonic() - start < 3


def test_a_body_that_drips_is_given_up(
    s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BODY_SECONDS", 1)
    store = open_store(s3_uri, retry_seconds=0)
    store.put("key", bytes(5000))
    proxy.default = ("drip", 0)
    start = time.monotonic()
    with pytest.raises(TransientError):
        store.get("key")
    assert 1 < time.monotonic() - start < 5


def test_a_slow_upload_may_take_longer_than_a_connection(
    s3_uri: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CONNECT_SECONDS", 0.5)
    store = open_store(s3_uri, retry_seconds=0)
    store.put("key", b"x")
    proxy.faults = [("throttle", 4_000_000)]
    start = time.monotonic()
    store.put("key", bytes(4_000_000))
    assert time.monotonic() - start > 0.8
    assert store.get("key").data == bytes(4_000_000)


def test_what_requests_have_shown_of_the_service_is_returned(s3_uri: str, seaweedfs: SeaweedFS) -> None:
    store = open_store(s3_uri)
    before = service_of(store)
    assert before
    assert (before.addressing, before.checksums, before.clock_ahead_seconds) == (None, None, None)
    store.put("key", b"x")
    after = service_of(store)
    assert after
    assert (after.endpoint, after.addressing, after.checksums) == (
        seaweedfs.endpoint,
        "path",
        "when_supported",
    )
    assert abs(after.clock_ahead_seconds or 99) < 3
    assert (after.credentials, after.expires, after.temporary) == ("env", None, False)


def test_the_checksum_mode_of_the_service_is_returned(s3_uri: str, proxy: FaultProxy) -> None:
    proxy.refused = re.compile("x-amz-sdk-checksum-algorithm|x-amz-checksum-crc", re.IGNORECASE)
    store = open_store(s3_uri)
    store.put("key", b"x")
    service = service_of(store)
    assert service
    assert service.checksums == "when_required"


@pytest.mark.parametrize("ahead", [-3600, 120])
def test_the_clock_is_compared_with_the_stores(
    monkeypatch: pytest.MonkeyPatch, s3_uri: str, ahead: int
) -> None:
    server = CarelessS3(ahead_seconds=-ahead)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.uri)
    store = open_store("s3://bucket/run")
    assert store.list() == []
    server.stop()
    service = service_of(store)
    assert service
    assert service.clock_ahead_seconds == pytest.approx(ahead, abs=3)


def test_the_end_of_credentials_is_returned(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    service = service_of(open_store(s3_uri))
    assert service
    assert (service.temporary, service.expires) == (True, None)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2031-02-03T04:05:06Z")
    service = service_of(open_store(s3_uri))
    assert service
    assert (service.temporary, service.expires) == (True, datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC))


def test_credentials_that_have_ended_may_be_renewed(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2021-02-03T04:05:06Z")
    with pytest.raises(TransientError, match="still expired"):
        open_store(s3_uri, retry_seconds=0.1).get("key")


def test_a_folder_has_no_service(tmp_path: Path) -> None:
    assert service_of(open_store(str(tmp_path))) is None


ANSWERS = [  # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    ("NoSuchKey", 404, AbsentError, 65),
    ("404", 404, ConfigurationError, 78),
    ("NoSuchBucket", 404, ConfigurationError, 78),
    ("AccessDenied", 403, RefusedError, 77),
    ("403", 403, RefusedError, 77),
    ("InvalidAccessKeyId", 403, RefusedError, 77),
    ("InvalidToken", 400, RefusedError, 77),
    ("ExpiredToken", 400, TransientError, 74),
    ("RequestTimeTooSkewed", 403, MachineError, 74),
    ("PreconditionFailed", 412, ConflictError, 76),
    ("ConditionalRequestConflict", 409, TransientError, 74),
    ("SlowDown", 503, TransientError, 74),
    ("503", 503, TransientError, 74),
    ("InternalError", 500, TransientError, 74),
    ("TooManyRequests", 429, TransientError, 74),
    ("RequestTimeout", 400, TransientError, 74),
    ("BadDigest", 400, TransientError, 74),
    ("PermanentRedirect", 301, ConfigurationError, 78),
    ("AuthorizationHeaderMalformed", 400, ConfigurationError, 78),
    ("NotImplemented", 501, ConfigurationError, 78),
    ("501", 501, TransientError, 74),  # said by something in between
]


@pytest.mark.parametrize(("code", "status", "kind", "exit_code"), ANSWERS)
def test_each_answer_is_of_its_kind(code: str, status: int, kind: type[JobError], exit_code: int) -> None:
    answer: Any = {
        "Error": {"Code": code, "Message": "so it is"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = from_boto(ClientError(answer, "GetObject"), "s3://bucket/key")
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert "s3://bucket/key" in str(error)


def test_a_large_file_is_not_held_in_memory(s3_uri: str, tmp_path: Path) -> None:
    """Peak memory of a process that puts 64 MB is that of one that puts 1 MB, within 32 MB."""
    code = (
        "import resource, sys; from pathlib import Path; from job.store import open_store;"
        "open_store(sys.argv[1]).put('large', Path(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # KiB
    )
    peaks = []
    for size in (2**20, 2**26):
        with (tmp_path / "file").open("wb") as file:
            file.truncate(size)
        command = [sys.executable, "-c", code, s3_uri, str(tmp_path / "file")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 2**15, peaks


def test_a_file_is_read_again_for_each_try(s3_uri: str, proxy: FaultProxy, tmp_path: Path) -> None:
    store = open_store(s3_uri)
    store.put("warm", b"")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4000)
    proxy.faults = [("flip_request", 500_000), ("unavailable", 0), ("lose", 0)]
    store.put("key", tmp_path / "file")
    assert not proxy.faults
    assert store.get("key").data == (tmp_path / "file").read_bytes()


def test_a_machine_without_a_thread_left_is_transient(s3_uri: str) -> None:
    """A real limit, reached after the store has been found: each read needs a thread for its deadline."""
    code = """
import sys, threading
from job.store import open_store
from job.store.base import TransientError
store = open_store(sys.argv[1], retry_seconds=0)
store.put("key", b"x")
forever = threading.Event()
try:
    while True:
        threading.Thread(target=forever.wait, daemon=True).start()
except RuntimeError:
    pass
try:
    store.get("key")
except TransientError as error:
    print(error.message)
"""
    done = limited([sys.executable, "-c", code, s3_uri], 30)
    assert "can't start new thread" in done.stdout, done.stderr
