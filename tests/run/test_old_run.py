"""A run that an older version left is resumed to that version's own bits; see fixtures/README.md."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from job.store import Store, open_store
from job.view import page, status, stored_run
from tests.forked import started

COMMAND = (
    "--depth", "10", "--width", "1", "--cycles", "4@5e-3,2@1e-3", "--batch-size", "16", "--holdout", "16",
    "--precision", "fp32", "--device", "cpu", "--checkpoint-every", "1h",
)  # fmt: skip
BITS = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}
"""What makes the bits those of any x86-64 processor."""

FIXTURE = Path(__file__).parent / "fixtures" / "old-run.tar.xz"


@dataclass(frozen=True)
class OldRun:
    """The archive's content: the data set, the objects by key (of a folder and of a bucket), the SHA-256."""

    data: bytes
    objects: dict[str, dict[str, bytes]]
    reached: str

    @classmethod
    def read(cls) -> OldRun:
        data, reached = b"", ""
        objects: dict[str, dict[str, bytes]] = {"folder": {}, "bucket": {}}
        with tarfile.open(FIXTURE) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file
                content = file.read()
                kind, _, key = member.name.partition("/")
                if key:
                    objects[kind][key] = content
                elif kind == "reached":
                    reached = content.decode()
                else:
                    data = content
        return cls(data, objects, reached)

    def put(self, kind: str, store: Store) -> None:
        for key, content in self.objects[kind].items():
            store.put(key, content)


@pytest.fixture(scope="module")
def old() -> OldRun:
    return OldRun.read()


@pytest.fixture(params=["folder", "bucket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(request: pytest.FixtureRequest, old: OldRun, kind: str, tmp_path: Path) -> Store:
    uri = str(tmp_path / "run") if kind == "folder" else request.getfixturevalue("s3_uri")
    store = open_store(uri)
    old.put(kind, store)
    return store


def test_it_is_resumed_to_the_bits_of_the_version_that_left_it(
    old: OldRun, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in BITS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data.tar.gz").write_bytes(old.data)
    where = ["--run", store.uri, "--data", str(tmp_path / "data.tar.gz"), "--cache", str(tmp_path / "cache")]
    with started([*where, *COMMAND]) as child:
        assert child.end() == 0, child.last_words()
    (skipped,) = [event for event in child.events if event["event"] == "checkpoint_skipped"]
    assert skipped["manifest"] == "manifests/2-1.json"
    (resumed,) = [event for event in child.events if event["event"] == "resume"]
    assert (resumed["attempt"], resumed["epoch"], resumed["step"]) == (5, 2, 11)
    assert hashlib.sha256(store.get("weights.safetensors").data).hexdigest() == old.reached
    lineage = json.loads(store.get("report.json").data)["lineage"]
    assert [attempt["reason"] for attempt in lineage["attempts"]] == [
        "preempted", "preempted", "vanished", "vanished", "finished",
    ]  # fmt: skip
    assert len(store.get("history.jsonl").data.splitlines()) == 6
    assert b"<html" in store.get("report.html").data
    assert status.read(store).phase == "finished"


def test_its_status_and_page_are_read(store: Store) -> None:
    seen = status.read(store)
    assert (seen.phase, seen.attempts, seen.checkpoint_epoch, seen.checkpoint_step) == ("silent", 4, 3, 11)
    run = stored_run.read(store)
    assert [attempt.reason for attempt in run.attempts] == ["preempted", "preempted", "vanished", None]
    assert run.attempts[2].lost_seconds
    assert run.recipe["batch_size"] == 16
    assert [record.epoch for record in run.history] == [1, 2]
    assert "batch" in page.render([run]) or "Attempts" in page.render([run])
