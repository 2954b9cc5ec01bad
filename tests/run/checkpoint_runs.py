"""What the tests of checkpoints share: runs to write, an eye of their own on a store, damage."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from job.run.checkpoints import Checkpoints
from job.run.manifests import Checkpoint
from job.run.records import Manifest, Worker
from job.store import Store

FINGERPRINT = "0123456789ab"


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Make a folder that all may read, in memory where that can be: an fsync costs 20 ms on a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="micronet-", dir=memory if memory.is_dir() else None) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def seeded() -> random.Random:
    """Return a generator of a new seed, and print the seed; MICRONET_TEST_SEED repeats one."""
    seed = int(os.environ.get("MICRONET_TEST_SEED") or int.from_bytes(os.urandom(4), "big"))
    print("MICRONET_TEST_SEED", seed)
    return random.Random(seed)


def claim(store: Store, host: str = "here") -> tuple[Checkpoints, Checkpoint | None]:
    worker = Worker(host=host, started="2026-01-02T03:04:05+00:00")
    return Checkpoints.claim(store, FINGERPRINT, worker)


def resumed(store: Store, host: str = "here") -> tuple[Checkpoints, Checkpoint]:
    run, found = claim(store, host)
    assert found
    assert found.objects == payload(found.manifest.position)
    return run, found


def payload(position: int) -> dict[str, bytes]:
    """Return the objects of the checkpoint at `position`; `same` has the same bytes in all of them."""
    state = hashlib.sha256(str(position).encode()).digest() * 40
    return {"state.pt": state, "history.jsonl": f"history to {position}\n".encode(), "same": b"same"}


def commit(run: Checkpoints, position: int) -> Manifest:
    return run.commit(
        payload(position), epoch=position // 4, step=position % 4, position=position, checkpoints=1
    )


def write_run(store: Store, *commits: int) -> Checkpoints:
    """Write one attempt for each number, with that many commits; positions go on from attempt to attempt."""
    position = 0
    for count in commits:
        run, _ = claim(store)
        for _ in range(count):
            position += 1
            commit(run, position)
    return run


def contents(store: Store) -> dict[str, bytes]:
    return {entry.key: store.get(entry.key).data for entry in store.list()}


def document(store: Store, key: str) -> Any:
    return json.loads(store.get(key).data)


def needs(store: Store) -> set[str]:
    """Return the keys that HEAD needs, following what is written there."""
    key = document(store, "HEAD.json")["manifest"]
    return {key, *(stored["key"] for stored in document(store, key)["objects"].values())} if key else set()


def seal(content: dict[str, Any]) -> bytes:
    """Return `content` as a document that passes for whole."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def reseal(store: Store, key: str, **changes: Any) -> None:
    store.put(key, seal({**document(store, key), **changes}))


def flip(store: Store, key: str, offset: int = 0) -> None:
    data = bytearray(store.get(key).data)
    data[offset] ^= 1
    store.put(key, bytes(data))


def objects_of(store: Store, manifest: str) -> dict[str, str]:
    return {name: stored["key"] for name, stored in document(store, manifest)["objects"].items()}


@contextmanager
def skipped() -> Iterator[dict[str, str]]:
    """Collect the events about skipped checkpoints: what was skipped, and why."""
    told: dict[str, str] = {}
    with capture_logs() as logs:
        yield told
    for entry in logs:
        if entry["event"] == "checkpoint_skipped":
            assert entry["log_level"] == "warning"
            told[entry["manifest"]] = entry["reason"]
