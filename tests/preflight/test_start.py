"""What a run begins with: it costs little, waits for a store, and refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from job.errors import ConfigurationError, JobError, MachineError
from job.preflight.start import check
from job.settings import DEMO, DEMO_DATA, DataSettings
from job.store import open_store
from tests.servers import FaultProxy
from tests.store.careless import CarelessS3

CPU = torch.device("cpu")


def begin(run: str, cache: Path, retry_seconds: float = 20) -> None:
    check(DEMO, run, DataSettings((DEMO_DATA,), str(cache)), CPU, open_store(run, retry_seconds))


def test_the_store_is_tried_out_once(tmp_path: Path, s3_uri: str, proxy: FaultProxy) -> None:
    store = open_store(s3_uri)
    check(DEMO, s3_uri, DataSettings((DEMO_DATA,), str(tmp_path)), CPU, store)
    # addressing 1, sweep 1, checksums 3 (put, get, delete), conditions 4, delete 1
    assert len(proxy.heads) == 10
    store.put_if_absent("recipe.json", b"{}")
    assert len(proxy.heads) == 11
    assert [entry.key for entry in store.list()] == ["recipe.json"]


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    begin(str(tmp_path / "run"), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_hiccup_of_the_store_is_waited_out(tmp_path: Path, s3_uri: str, proxy: FaultProxy) -> None:
    proxy.faults = [("unavailable", 0), ("refuse", 0), ("unavailable", 0)]
    begin(s3_uri, tmp_path)
    assert not proxy.faults


def test_a_store_that_stays_away_is_the_machines_fault(
    tmp_path: Path, s3_uri: str, proxy: FaultProxy
) -> None:
    proxy.default = ("unavailable", 0)
    with pytest.raises(MachineError, match="503"):
        begin(s3_uri, tmp_path, retry_seconds=0.5)


@pytest.mark.parametrize(("trouble", "exit_code"), [("keys", 77), ("bucket", 78)])
def test_what_is_refused_or_wrong_is_not_waited_for(
    tmp_path: Path,
    s3_uri: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    exit_code: int,
) -> None:
    if trouble == "keys":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(JobError) as caught:
        begin("s3://no-such-bucket/run" if trouble == "bucket" else s3_uri, tmp_path)
    assert caught.value.exit_code == exit_code
    assert len(proxy.heads) < 6


def test_a_store_without_conditions_is_refused(tmp_path: Path, careless: CarelessS3) -> None:
    careless.conditions["If-Match"] = "ignore"
    with pytest.raises(ConfigurationError, match="two attempts could overwrite each other"):
        begin("s3://bucket/run", tmp_path)


def test_a_warning_is_an_event(
    tmp_path: Path, careless: CarelessS3, capsys: pytest.CaptureFixture[str]
) -> None:
    begin("s3://bucket/run", tmp_path)
    assert "preflight" not in "".join(capsys.readouterr())
    careless.ahead_seconds = 300
    begin("s3://bucket/run", tmp_path)
    said = "".join(capsys.readouterr())
    assert all(word in said for word in ("preflight", "clock", "behind the store's", "Set the clock"))
