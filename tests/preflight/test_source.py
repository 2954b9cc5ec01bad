"""Where the data would come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from job.data.archive import fetch, parse_source
from job.errors import DataError, MachineError, PermissionRefusedError
from job.preflight.source import check_data
from job.settings import DEMO_DATA
from job.store import open_store
from tests.servers import RangeServer, free_ports

Serve = Callable[[dict[str, bytes]], RangeServer]
DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def home(serve: Serve) -> RangeServer:
    return serve({"/a.tar.gz": DATA})


def test_a_source_that_answers_is_named_with_its_size(tmp_path: Path, home: RangeServer) -> None:
    check = check_data((f"{home.uri}/a.tar.gz",), tmp_path / "cache", None)
    assert (check.status, check.text) == ("ok", f"{home.uri}/a.tar.gz answers, 1,024,000 bytes")
    assert not (tmp_path / "cache").exists()


def test_a_cached_archive_needs_no_source(tmp_path: Path, home: RangeServer) -> None:
    uri = f"{home.uri}/a.tar.gz#sha256={SHA256}"
    fetch([parse_source(uri)], tmp_path)
    asked = len(home.requests)
    assert check_data((uri,), tmp_path, None).status == "ok"
    assert len(home.requests) == asked


def test_a_copy_in_the_store_needs_no_source(tmp_path: Path, home: RangeServer, s3_uri: str) -> None:
    sources = (f"{home.uri}/a.tar.gz#sha256={SHA256}",)
    assert "answers" in check_data(sources, tmp_path, s3_uri).text
    open_store(s3_uri).put(SHA256, DATA)
    asked = len(home.requests)
    assert check_data(sources, tmp_path, s3_uri).text.endswith(f"{s3_uri}/{SHA256}")
    assert len(home.requests) == asked


def test_a_file_and_the_demo_are_here(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(DATA)
    assert check_data((str(tmp_path / "a.tar.gz"),), tmp_path, None).status == "ok"
    assert check_data((DEMO_DATA,), tmp_path, None).text == "generated here"


def test_an_s3_source_is_looked_at(tmp_path: Path, s3_uri: str) -> None:
    open_store(s3_uri).put("a.tar.gz", DATA)
    assert "1,024,000 bytes" in check_data((f"{s3_uri}/a.tar.gz",), tmp_path, None).text


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [(404, DataError, 65), (403, PermissionRefusedError, 77), (503, MachineError, 74)],
)
def test_a_source_that_does_not_answer_is_a_failure_of_its_kind(
    tmp_path: Path, home: RangeServer, status: int, kind: type[Exception], exit_code: int
) -> None:
    home.faults = [("status", status)]
    with pytest.raises(kind, match=f"{home.uri}/a.tar.gz: .*{status}") as caught:
        check_data((f"{home.uri}/a.tar.gz",), tmp_path, None)
    assert getattr(caught.value, "exit_code", None) == exit_code


def test_when_none_answers_the_most_hopeful_kind_is_told(tmp_path: Path, home: RangeServer) -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/a"
    with pytest.raises(MachineError) as caught:
        check_data((f"{home.uri}/none", nobody, str(tmp_path / "none")), tmp_path, None)
    assert all(word in str(caught.value) for word in ("404", nobody, str(tmp_path / "none")))


def test_a_source_that_fails_before_one_that_answers_is_a_warning(tmp_path: Path, home: RangeServer) -> None:
    check = check_data((f"{home.uri}/none", f"{home.uri}/a.tar.gz"), tmp_path, None)
    assert (check.status, check.exit_code) == ("warning", 0)
    assert "404" in check.text
    assert f"{home.uri}/a.tar.gz answers" in check.text
