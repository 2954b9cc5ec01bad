"""Fixtures that several test folders share: real servers, and a folder that refuses its user."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.google_storage import DENIED as GOOGLE_DENIED
from tests.google_storage import FakeGoogle
from tests.metadata import nowhere
from tests.servers import FaultProxy, RangeServer, SeaweedFS
from tests.store.careless import CarelessS3

BUCKET = "micronet-tests"

LONGEST_FIRST = (
    "run/test_agent.py",
    "run/test_processes.py",
    "train/test_gpu_phases.py",
    "train/test_gpu_runs.py",
    "run/test_runs.py",
    "checks/test_first_hour.py",
    "test_ends.py",
    "checks/test_selftest.py",
    "train/test_compile.py",
    "checks/test_bench.py",
    "train/test_graph.py",
    "test_process.py",
    "run/test_bad_moments.py",
    "test_cli.py",
    "run/test_old_run.py",
)
"""Files of a minute and more: begun last, one would keep a single process busy when the other is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of the longest files to the front."""
    rank = {str(Path(__file__).parent / name): number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


def pytest_collection_finish() -> None:
    """Exempt what is imported from garbage collection: each full collection would take 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_cloud() -> Iterator[None]:
    """Point the watch for preemption notices at nobody, whatever cloud the tests run in."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in nowhere().items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def same_torch() -> Iterator[None]:
    """Undo, after a test that trained in this process, that torch now refuses what is not deterministic."""
    torch = sys.modules.get("torch")
    before = torch is not None and torch.are_deterministic_algorithms_enabled()
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.are_deterministic_algorithms_enabled() != before:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """One S3 server for the session, with the bucket `micronet-tests`; do not stop or kill this one."""
    server = SeaweedFS(Path(tempfile.mkdtemp(prefix="micronet-seaweedfs-")))
    try:
        server.start()
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3_uri(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own on the S3 server, which the environment points to."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex[:12]}"


@pytest.fixture
def proxy(seaweedfs: SeaweedFS, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy between the environment's S3 endpoint and the server; use it with `s3_uri`."""
    proxy = FaultProxy(seaweedfs.endpoint)
    proxy.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.uri)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGoogle]:
    """One server of Google's storage for the session, with the bucket `micronet-tests`."""
    server = FakeGoogle(tmp_path_factory.mktemp("google"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def gs_uri(google: FakeGoogle, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own on Google's server, which the environment points to."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.endpoint)
    return f"gs://{BUCKET}/{uuid4().hex[:12]}"


@pytest.fixture
def gs_proxy(google: FakeGoogle, gs_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy between the environment's client of Google's storage and its server."""
    proxy = FaultProxy(google.endpoint)
    proxy.denial = ("application/json", GOOGLE_DENIED)
    proxy.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.uri)
    yield proxy
    proxy.stop()


@pytest.fixture
def careless(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    """The environment's S3 server, whose bucket is `bucket`; it can be told to be careless."""
    server = CarelessS3()
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.uri)
    yield server
    server.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, bytes]], RangeServer]]:
    """Start file servers: `serve({"/a.tar.gz": data})`."""
    servers = []

    def start(files: dict[str, bytes]) -> RangeServer:
        server = RangeServer(files)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A folder that can be read and not written by the user the test then runs as (root may do anything).

    Make what is needed in `tmp_path` before: this user has no right there.
    """
    with tempfile.TemporaryDirectory(prefix="micronet-readonly-") as name:
        folder = Path(name)
        (folder / "locked").mkdir()
        (folder / "locked" / "secret").write_bytes(b"secret")
        (folder / "locked" / "secret").chmod(0o000)
        (folder / "locked" / "closed").mkdir(mode=0o000)
        (folder / "locked").chmod(0o555)
        folder.chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder / "locked"
        finally:
            os.seteuid(user)
            (folder / "locked").chmod(0o755)
            (folder / "locked" / "closed").chmod(0o755)
