"""The store: its credentials, conditional writes and clock; and room on the disks."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from job.data.cifar import CIFAR100_SHA256
from job.errors import ConfigurationError, MachineError, PermissionRefusedError
from job.network.wide_resnet import wide_resnet
from job.preflight.check import Finding
from job.preflight.storage import (
    check_clock,
    check_credentials,
    check_folder,
    check_space,
    check_store,
    checks,
    data_bytes,
    file_system_with_local_locks,
    parameters,
    run_bytes,
)
from job.recipe import Recipe
from job.settings import DEMO_DATA, DataSettings
from job.store import open_store
from job.store import service as service_of
from job.store.base import RefusedError
from job.store.s3 import S3Service
from tests.disks import tiny_disk, two_machines
from tests.servers import FaultProxy
from tests.store.careless import CarelessS3

ARCHIVE, UNPACKED = 169_001_437, 185_901_581  # 1.1 times
NOW = datetime(2031, 2, 3, 12, 0, tzinfo=UTC)


def found(run: str) -> dict[str, Finding]:
    return {check.name: check.finding() for check in checks(run, open_store(run, retry_seconds=1))}


def service(
    credentials: str | None = "env",
    expires: datetime | None = None,
    temporary: bool = False,
    ahead: float | None = 0.0,
) -> S3Service:
    return S3Service("http://host", "path", "when_supported", ahead, credentials, expires, temporary)


def test_a_good_store_is_described(s3_uri: str) -> None:
    findings = found(s3_uri)
    assert list(findings) == ["credentials", "store", "clock"]
    assert {finding.status for finding in findings.values()} == {"ok"}
    for words in (s3_uri, "conditional writes", "path addressing", "when_supported", "http://127.0.0.1"):
        assert words in findings["store"].text
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
def test_each_fault_has_its_cause_fix_and_exit_code(
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


def test_a_store_of_googles_that_ignores_conditions_is_refused(gs_uri: str, gs_proxy: FaultProxy) -> None:
    gs_proxy.stripped = re.compile(r"&ifGenerationMatch=\d+")
    check = found(gs_uri)["store"]
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
def test_s3_refuses_a_difference_of_fifteen_minutes(ahead: float) -> None:
    with pytest.raises(MachineError, match="901 s"):
        check_clock(service(ahead=ahead))


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        (service(), "ok", ["env", "do not expire"]),
        (service("iam-role", datetime(2031, 2, 3, 18, 0, tzinfo=UTC), True), "ok", ["18:00", "renewed"]),
        (service("iam-role", datetime(2031, 2, 3, 11, 0, tzinfo=UTC), True), "ok", ["renewed"]),
        (service("assume-role", None, True), "ok", ["renewed"]),  # not asked for yet
        (service("env", None, True), "warning", ["temporary"]),
        (
            service("env", datetime(2031, 2, 3, 12, 30, tzinfo=UTC), True),
            "warning",
            ["12:30", "nothing"],
        ),
    ],
)
def test_the_expiry_of_credentials_is_reported(given: S3Service, status: str, words: list[str]) -> None:
    check = check_credentials(given, NOW)
    assert check.status == status
    assert all(word in check.text for word in words), check.text
    assert bool(check.fix) == (status == "warning")


@pytest.mark.parametrize(
    "given", [service(None), service("env", datetime(2031, 2, 3, 11, 59, tzinfo=UTC), True)]
)
def test_missing_and_expired_credentials_are_refused(given: S3Service) -> None:
    with pytest.raises(RefusedError) as caught:
        check_credentials(given, NOW)
    assert caught.value.exit_code == 77


def test_expired_keys_are_refused_before_any_request(
    careless: CarelessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2021-02-03T04:05:06Z")
    careless.lists = False
    check = found("s3://bucket/run")["credentials"]
    assert (check.status, check.exit_code) == ("failed", 77)
    assert "2021-02-03 04:05" in check.text


def test_a_folder_is_checked_and_left_as_it_was(tmp_path: Path) -> None:
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


def test_a_run_without_a_uri_is_in_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (check,) = checks(None, None)
    assert check.run().text.startswith("runs ")
    assert list(tmp_path.iterdir()) == []


MOUNT = "36 35 98:0 / {where} rw,noatime shared:1 - {kind} host:/export rw,{options}\n"


@pytest.mark.parametrize(
    ("kind", "options", "alone"),
    [
        ("ext4", "rw", False),
        ("nfs4", "vers=4.2,hard,local_lock=none,addr=10.0.0.1", False),
        ("nfs", "vers=3,nolock,local_lock=all", True),
        ("nfs", "vers=3,local_lock=flock", True),
        ("lustre", "rw,flock,lazystatfs", False),
        ("lustre", "rw,localflock", True),
        ("fuse.gcsfuse", "rw,user_id=0", True),
        ("fuseblk", "rw,user_id=0", False),  # NTFS on a disk
    ],
)
def test_a_file_system_whose_locks_may_not_reach_others_is_found(
    kind: str, options: str, alone: bool
) -> None:
    root = MOUNT.format(where="/", kind="overlay", options="rw")
    below = MOUNT.format(where=r"/mnt/my\040data", kind=kind, options=options)
    assert file_system_with_local_locks(Path("/mnt/my data/run"), root + below) == (kind if alone else None)
    assert file_system_with_local_locks(Path("/mnt/my"), root + below) is None
    over = MOUNT.format(where=r"/mnt/my\040data", kind="tmpfs", options="rw")
    assert file_system_with_local_locks(Path("/mnt/my data/run"), root + below + over) is None


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("bindfs"), reason="needs bindfs and root")
def test_a_folder_on_such_a_file_system_is_a_warning(tmp_path: Path) -> None:
    with two_machines(tmp_path) as (here, _):
        found = check_folder(here / "run")
    assert (found.status, found.exit_code) == ("warning", 0)
    assert "its locks on fuse may not reach others" in found.text
    assert "only one machine at a time" in found.fix


def test_the_service_is_known_after_the_check(s3_uri: str) -> None:
    store = open_store(s3_uri)
    check_store(store)
    service = service_of(store)
    assert service
    assert (service.addressing, service.checksums) == ("path", "when_supported")


@pytest.mark.parametrize(("depth", "width"), [(22, 6), (10, 1), (16, 2), (28, 3)])
def test_parameters_are_counted_as_the_network_has_them(depth: int, width: int) -> None:
    network = wide_resnet(depth, width)
    assert parameters(Recipe(depth=depth, width=width)) == sum(
        weight.numel() for weight in network.parameters()
    )


def test_a_run_keeps_four_states_and_two_copies_of_its_weights() -> None:
    # 9,693,108 parameters in fp32: weights and two moments, 3 kept and 1 being written, and 2 x weights
    assert run_bytes(Recipe()) == 9_693_108 * (4 * 12 + 2 * 4)


def test_what_is_in_the_cache_needs_no_room(tmp_path: Path) -> None:
    assert data_bytes((), tmp_path) == ARCHIVE + UNPACKED
    (tmp_path / f"{CIFAR100_SHA256}.archive").write_bytes(b"")
    assert data_bytes((), tmp_path) == UNPACKED
    (tmp_path / CIFAR100_SHA256).mkdir()
    assert data_bytes((), tmp_path) == 0


def test_what_cannot_be_known_is_not_counted(tmp_path: Path) -> None:
    assert data_bytes((DEMO_DATA,), tmp_path) == 0
    assert data_bytes(("https://host/a.tar.gz",), tmp_path) == 0


def test_a_disk_that_will_be_full_is_named(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        if shutil.disk_usage(disk).total > 2**20:
            pytest.skip("a disk of its own needs the right to mount")
        data = DataSettings((), str(disk / "cache"))
        with pytest.raises(MachineError, match="no space left") as caught:
            check_space(Recipe(), "s3://bucket/run", data)
        assert caught.value.exit_code == 74
        assert str(disk) in caught.value.message
        assert " 355 MB will be needed" in caught.value.message  # the archive and what is in it
        assert check_space(Recipe(), "s3://bucket/run", replace(data, data=(DEMO_DATA,))).status == "ok"


def test_checkpoints_need_room_where_the_run_is_in_a_folder(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        if shutil.disk_usage(disk).total > 2**20:
            pytest.skip("a disk of its own needs the right to mount")
        recipe = Recipe(depth=10, width=1)  # 83,700 parameters: 4.7 MB
        run, data = str(disk / "run"), DataSettings((DEMO_DATA,), str(tmp_path / "cache"))
        with pytest.raises(MachineError, match=re.escape(f"{disk}:") + ".* 5 MB will be needed"):
            check_space(recipe, run, data)
        there = disk / "run" / "objects" / "1-ab"
        there.mkdir(parents=True)
        with (there / "one").open("wb") as file:
            file.truncate(4_000_000)  # sparse: 0.7 MB are still to come
        assert check_space(recipe, run, data).status == "ok"


def test_one_disk_holds_all_of_it(tmp_path: Path) -> None:
    text = check_space(Recipe(), str(tmp_path / "run"), DataSettings((), str(tmp_path / "cache"))).text
    assert text.count("will be needed") == 1
    assert f" {round((ARCHIVE + UNPACKED + 9_693_108 * 56) / 1e6)} MB will be needed" in text
    assert not list(tmp_path.iterdir())


def test_a_cache_that_may_not_be_written_is_refused(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError, match="--cache") as caught:
        check_space(Recipe(), "s3://bucket/run", DataSettings((), str(nobody / "cache")))
    assert caught.value.exit_code == 77
