"""Which store a URI opens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from job.errors import ConfigurationError, UsageError
from job.store import local_path, open_store


def test_a_path_and_a_file_uri_are_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c"
    open_store(str(folder)).put("key", b"x")
    assert open_store(f"file://{tmp_path}/a%20b%2520c").get("key").data == b"x"
    assert open_store(folder.as_uri()).get("key").data == b"x"
    assert open_store(str(folder)).uri == str(folder)


def test_nothing_is_made_before_the_first_put(tmp_path: Path) -> None:
    assert open_store(str(tmp_path / "new")).list() == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a?b#c", "s3://bucket/a?b#c"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        ("GS://bucket", "gs://bucket"),
    ],
)
def test_a_bucket_and_a_prefix_are_told_apart(uri: str, shown: str) -> None:
    assert open_store(uri).uri == shown


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///prefix",
        "gs://",
        "gs://bucket/a//b",
        "az://bucket",
        "http://host/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "file://host/x",
        "file://x",
    ],
)
def test_what_is_no_store_is_a_wrong_usage(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(uri)
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_only_local_uris_have_a_path() -> None:
    assert local_path("runs/x") == Path("runs/x")
    assert local_path("file:///runs/x") == Path("/runs/x")
    assert local_path("file://localhost/runs/x") == Path("/runs/x")
    assert local_path("s3://bucket/x") is None
    assert local_path("gs://bucket/x") is None
    assert local_path("https://host/x") is None


def test_a_missing_client_of_googles_storage_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("job.store.gcs", "job.store.gcs_client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)  # Python's own word for "not to be had"
    with pytest.raises(ConfigurationError, match="the client of Google's storage is not installed") as caught:
        open_store("gs://bucket/run")
    assert caught.value.exit_code == 78
    assert caught.value.fix.startswith("Run ./setup.sh install google")
