"""A bucket that somebody else writes to: nothing in it leaves the run's prefix or is believed unseen."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import DataError, JobError
from job.run.records import Manifest
from job.store import Store, open_store
from tests.run.checkpoint_runs import (
    claim,
    contents,
    document,
    objects_of,
    quick_folder,
    reseal,
    resumed,
    seal,
    skipped,
    write_run,
)

NEWEST = "manifests/1-3.json"
HUGE = 10**40


@pytest.fixture
def outer() -> Iterator[Store]:
    """The store around a run at `run`, with a secret beside it."""
    with quick_folder() as folder:
        store = open_store(str(folder))
        store.put("secret", b"same")
        yield store


@pytest.fixture
def run(outer: Store) -> Store:
    store = open_store(f"{outer.uri}/run")
    write_run(store, 3)
    return store


def _object(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["objects"]["same"].update(changes)


def _field(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def _renamed(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["objects"].update({name: content["objects"].pop("same")})


SHA256 = "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"  # of b"same"
HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "leaves the prefix": _object(key="../secret"),
    "leaves it within objects": _object(key="objects/../../secret"),
    "absolute": _object(key="/etc/passwd"),
    "not an object": _object(key="HEAD.json"),
    "a manifest": _object(key="manifests/1-2.json"),
    "no owner": _object(key=f"objects/1/{SHA256}"),
    "another writer": _object(key=f"objects/1-{'0' * 16}/{SHA256}"),
    "another generation": lambda content: _object(key=f"objects/2-{content['owner']}/{SHA256}")(content),
    "not its hash": lambda content: _object(key=f"objects/1-{content['owner']}/{'0' * 64}")(content),
    "a newline": lambda content: _object(key=f"objects/1-{content['owner']}/{SHA256}\n")(content),
    "key a list": _object(key=["objects"]),
    "huge size": _object(bytes=HUGE),
    "size past the limit": _object(bytes=2**32),
    "negative size": _object(bytes=-1),
    "size a float": _object(bytes=4.0),
    "size true": _object(bytes=True),
    "hash in capitals": _object(sha256=SHA256.upper()),
    "hash missing": lambda content: content["objects"]["same"].pop("sha256"),
    "name with a slash": _renamed("../../etc/cron.d/x"),
    "name with a dot": _renamed(".bashrc"),
    "name too long": _renamed("x" * 65),
    "empty name": _renamed(""),
    "object null": lambda content: content["objects"].update(same=None),
    "objects a list": _field(objects=[]),
    "65 objects": lambda content: content["objects"].update(
        {f"o{number}": content["objects"]["same"] for number in range(65)}
    ),
    "huge epoch": _field(epoch=HUGE),
    "negative step": _field(step=-1),
    "position a string": _field(position="3"),
    "position missing": lambda content: content.pop("position"),
    "number zero": _field(number=0),
    "generation a float": _field(generation=1.0),
    "finished a number": _field(finished=0),
    "metrics a list": _field(metrics=[1]),
    "fingerprint a path": _field(fingerprint="../x"),
    "owner a path": _field(owner="../../../../../x"),
    "parent outside": _field(parent="../manifests/1-2.json"),
    "saved no time": _field(saved="2026-99-99T00:00:00+00:00"),
    "saved without a zone": _field(saved="2026-01-01T00:00:00"),
    "another document": _field(schema="micronet.head/1"),
    "no schema": _field(schema=None),
    "a schema of nobody": _field(schema="micronet.checkpoint/x"),
    "larger than allowed": _field(metrics={"padding": "x" * 2**20}),
    "checkpoints a float": _field(metrics={"checkpoints": 1.0}),
    "recipe nested": _field(recipe={"depth": {"depth": 1}}),
    "recipe a list": _field(recipe=[]),
    "a number of 65 bits": _field(recipe={"seed": 2**64}),
    "text that no encoding has": _field(recipe={"seed": "\ud800"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_skipped(outer: Store, run: Store, name: str) -> None:
    content = document(run, NEWEST)
    HOSTILE[name](content)
    run.put(NEWEST, seal(content))
    with skipped() as told:
        _, found = resumed(run)
    assert found.manifest.position == 2
    assert set(told) == {NEWEST}
    assert len(told[NEWEST]) < 400
    assert not any(reason in told[NEWEST] for reason in ("there is no", "has been changed", "does not have"))
    assert {key for key in contents(outer) if not key.startswith("run/")} == {"secret"}


def test_the_seal_of_these_tests_is_accepted(run: Store) -> None:
    run.put(NEWEST, seal(document(run, NEWEST)))
    _, found = resumed(run)
    assert found.manifest.position == 3


BYTES = {
    "nested": b"[" * 100_000,
    "nested object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"position": ' + b"9" * 500_000 + b"}",
    "infinity": b'{"position": 1e999}',
    "nan": b'{"position": NaN}',
    "not text": b"\xff\xfe\x00",
    "surrogate": b'{"position": "\\ud800"}',
    "array": b"[]",
    "null": b"null",
    "megabytes": b" " * 2**22,
    "pickle": b"\x80\x04\x95\x15\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("key", [NEWEST, "HEAD.json"])
def test_bytes_that_are_no_document_are_skipped(run: Store, key: str, data: bytes) -> None:
    run.put(key, data)
    with skipped() as told:
        _, found = resumed(run)
    assert found.manifest.position == (2 if key == NEWEST else 3)
    assert set(told) == {key}


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "../secret"},
        {"manifest": "manifests/../HEAD.json"},
        {"manifest": "manifests/1-2.json\n"},
        {"manifest": 7},
        {"generation": HUGE},
        {"generation": True},
        {"generation": 0},
        {"owner": "x"},
        {"position": -1},
    ],
)
def test_a_hostile_head_is_skipped(run: Store, changes: dict[str, Any]) -> None:
    reseal(run, "HEAD.json", **changes)
    with skipped() as told:
        attempt, found = resumed(run)
    assert (found.manifest.position, attempt.generation) == (3, 2)
    assert set(told) == {"HEAD.json"}


def test_generations_that_cannot_be_counted_on_are_an_error(run: Store) -> None:
    run.put("claims/999999999", b"")
    with pytest.raises(DataError, match="999999999"):
        claim(run)


def test_an_object_that_has_grown_is_not_read_whole(run: Store) -> None:
    """What lies under an object's key may be of any size; no more is read than the manifest states."""
    key = objects_of(run, NEWEST)["state.pt"]
    size = len(run.get(key).data)
    (Path(run.uri) / key).write_bytes(bytes(2**28))
    tracemalloc.start()
    _, found = resumed(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.manifest.position == 2
    assert size < peak < 2**24


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "fingerprint", "generation", "number", "owner", "epoch", "step", "position", "finished", "objects",
    "parent", "metrics", "saved", "schema",
]  # fmt: skip
VALID = {
    "schema": "micronet.checkpoint/1", "fingerprint": "ab", "generation": 1, "number": 1, "owner": "0" * 16,
    "epoch": 0, "step": 0, "position": 0, "finished": False, "parent": None, "metrics": {},
    "saved": "2026-01-01T00:00:00+00:00",
    "objects": {"same": {"key": f"objects/1-{'0' * 16}/{SHA256}", "sha256": SHA256, "bytes": 4}},
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), plain, min_size=1), st.sampled_from(["", *FIELDS]))
def test_any_manifest_is_either_valid_or_a_named_error(changes: dict[str, Any], removed: str) -> None:
    assert Manifest.decode(seal(VALID), "manifests/1-1.json").objects["same"].bytes == 4
    content = {key: value for key, value in {**VALID, **changes}.items() if key != removed}
    try:
        read = Manifest.decode(seal(content), "manifests/1-1.json")
    except JobError:
        return
    assert {stored.key for stored in read.objects.values()} <= {f"objects/1-{'0' * 16}/{SHA256}"}
    assert 0 <= read.position <= 10**12


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(offset: int, change: int) -> None:
    data = bytearray(seal(VALID))
    data[offset % len(data)] ^= change
    try:
        read = json.loads(data)
    except ValueError:
        read = None
    if read == json.loads(seal(VALID)):
        return  # a space became another
    with pytest.raises(DataError):
        Manifest.decode(bytes(data), "manifests/1-1.json")
