"""Who we are in the store, what it can do, and whose clock is right."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from job.errors import ConfigurationError, MachineError, PermissionRefusedError
from job.preflight.check import Check
from job.preflight.storage import check_clock, check_credentials, check_folder, check_store, looks
from job.store import open_store
from job.store import service as service_of
from job.store.base import RefusedError
from job.store.s3 import S3Service
from tests.store.careless import CarelessS3

NOW = datetime(2031, 2, 3, 12, 0, tzinfo=UTC)


def found(run: str) -> dict[str, Check]:
    return {look.name: look.safely() for look in looks(run, open_store(run, retry_seconds=1))}


def service(
    credentials: str | None = "env",
    expires: datetime | None = None,
    temporary: bool = False,
    ahead: float | None = 0.0,
) -> S3Service:
    return S3Service("http://host", "path", "when_supported", ahead, credentials, expires, temporary)


def test_a_good_store_is_described(s3_uri: str) -> None:
    checks = found(s3_uri)
    assert list(checks) == ["credentials", "store", "clock"]
    assert {check.status for check in checks.values()} == {"ok"}
    for words in (s3_uri, "conditional writes", "path addressing", "when_supported", "http://127.0.0.1"):
        assert words in checks["store"].text
    assert open_store(s3_uri).list() == []


@pytest.mark.parametrize(
    ("trouble", "exit_code", "words"),
    [
        ("keys", 77, "AWS_SECRET_ACCESS_KEY"),
        ("bucket", 78, "no such bucket"),
        ("endpoint", 78, "AWS_ENDPOINT_URL_S3"),
        ("port", 74, "AWS_ENDPOINT_URL_S3"),
    ],
)
def test_each_trouble_has_its_cause_fix_and_exit_code(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, trouble: str, exit_code: int, words: str
) -> None:
    if trouble == "keys":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if trouble == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not an endpoint")
    if trouble == "port":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    check = found("s3://no-such-bucket/run" if trouble == "bucket" else s3_uri)["store"]
    assert (check.status, check.exit_code) == ("failed", exit_code)
    assert words in check.text + check.fix
    assert check.fix


def test_no_credentials_are_named(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    check = found(s3_uri)["credentials"]
    assert (check.status, check.exit_code) == ("failed", 77)
    assert "AWS_ACCESS_KEY_ID" in check.fix


def test_a_store_that_ignores_conditions_is_refused(careless: CarelessS3) -> None:
    careless.conditions["If-None-Match"] = "ignore"
    check = found("s3://bucket/run")["store"]
    assert (check.status, check.exit_code) == ("failed", 78)
    assert "two attempts could overwrite each other" in check.text


def test_a_clock_that_is_far_off_is_a_failure_and_a_little_a_warning(careless: CarelessS3) -> None:
    statuses = {}
    for ahead in (0, -120, 120, 1200):
        careless.ahead_seconds = ahead
        statuses[ahead] = found("s3://bucket/run")["clock"]
    assert [check.status for check in statuses.values()] == ["ok", "warning", "warning", "failed"]
    assert "120 s ahead of the store's" in statuses[-120].text.replace("119", "120").replace("121", "120")
    assert "behind the store's" in statuses[120].text
    assert statuses[1200].exit_code == 74
    assert "Set the clock" in statuses[1200].fix


@pytest.mark.parametrize(
    ("ahead", "status"), [(59, "ok"), (-59, "ok"), (-61, "warning"), (899, "warning"), (None, "ok")]
)
def test_the_bounds_of_the_clock(ahead: float | None, status: str) -> None:
    assert check_clock(service(ahead=ahead)).status == status


@pytest.mark.parametrize("ahead", [-901, 901])
def test_s3_refuses_fifteen_minutes(ahead: float) -> None:
    with pytest.raises(MachineError, match="901 s"):
        check_clock(service(ahead=ahead))


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (service(), "ok", ["env", "without an end"]),
        (service("iam-role", datetime(2031, 2, 3, 18, 0, tzinfo=UTC), True), "ok", ["18:00", "renewed"]),
        (service("iam-role", datetime(2031, 2, 3, 11, 0, tzinfo=UTC), True), "ok", ["renewed"]),
        (service("assume-role", None, True), "ok", ["renewed"]),  # not asked for yet
        (service("env", None, True), "warning", ["temporary"]),
        (service("env", datetime(2031, 2, 3, 12, 30, tzinfo=UTC), True), "warning", ["12:30", "nothing"]),
    ],
)
def test_the_end_of_credentials_is_told(given: S3Service, status: str, words: list[str]) -> None:
    check = check_credentials(given, NOW)
    assert check.status == status
    assert all(word in check.text for word in words), check.text
    assert bool(check.fix) == (status == "warning")


@pytest.mark.parametrize(
    "given", [service(None), service("env", datetime(2031, 2, 3, 11, 59, tzinfo=UTC), True)]
)
def test_credentials_that_are_none_or_over_are_refused(given: S3Service) -> None:
    with pytest.raises(RefusedError) as caught:
        check_credentials(given, NOW)
    assert caught.value.exit_code == 77


def test_keys_that_have_ended_are_refused_before_anything_is_asked(
    careless: CarelessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2021-02-03T04:05:06Z")
    careless.lists = False
    check = found("s3://bucket/run")["credentials"]
    assert (check.status, check.exit_code) == ("failed", 77)
    assert "2021-02-03 04:05" in check.text


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "run").status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "HEAD.json").write_text("{}")
    assert check_folder(tmp_path / "run").status == "ok"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["HEAD.json"]


def test_a_folder_that_cannot_be_written_is_named(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError, match=f"{nobody}/run") as refused:
        check_folder(nobody / "run")
    assert refused.value.exit_code == 77


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="/proc/run"):
        check_folder(Path("/proc/run"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="file"):
        check_folder(tmp_path / "file" / "run")


def test_a_run_without_a_place_is_in_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (look,) = looks(None, None)
    assert look.at().text.startswith("runs ")
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_found_out_about_once(s3_uri: str) -> None:
    store = open_store(s3_uri)
    check_store(store)
    service = service_of(store)
    assert service
    assert (service.addressing, service.checksums) == ("path", "when_supported")
