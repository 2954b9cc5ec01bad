"""Checkpoints in a folder and on a real S3 server: commit, resume, damage, pruning, lineage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job.errors import ConfigurationError, DataError, PermissionRefusedError
from job.run.checkpoints import Checkpoints
from job.run.claims import latest
from job.run.records import Worker
from job.store import Store, open_store
from tests.run.checkpoint_runs import (
    FINGERPRINT,
    claim,
    commit,
    contents,
    document,
    flip,
    needs,
    objects_of,
    payload,
    quick_folder,
    reseal,
    resumed,
    skipped,
    write_run,
)


@pytest.fixture
def local() -> Iterator[Store]:
    with quick_folder() as folder:
        yield open_store(str(folder / "run"))


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "local":
        return request.getfixturevalue("local")
    return open_store(request.getfixturevalue("s3_uri"), retry_seconds=5)


def test_a_fresh_run_has_no_checkpoint(store: Store) -> None:
    with skipped() as told:
        run, found = claim(store)
        assert (run.generation, found) == (1, None)
        again, found = claim(store)  # the first attempt died before its first commit
    assert (again.generation, found) == (2, None)
    assert again.owner != run.owner
    assert told == {}
    assert latest(store) is None


def test_what_is_committed_is_resumed(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    run, _ = claim(store)
    objects = {"state.pt": bytes(range(256)) * 4000, "empty": b""}
    manifest = run.commit(objects, epoch=7, step=11, position=706, checkpoints=642)
    again, found = claim(store)
    assert again.generation == 2
    assert found
    assert found.objects == objects
    read = found.manifest
    assert (read.epoch, read.step, read.position, read.finished) == (7, 11, 706, False)
    assert read.metrics.checkpoints == 642
    assert before <= datetime.fromisoformat(read.saved) <= datetime.now(UTC)
    assert (read.key, read.generation, read.owner, read.parent) == (manifest.key, 1, run.owner, None)
    assert latest(store) == read
    second = again.commit(objects, epoch=8, step=0, position=800, finished=True)
    assert (second.generation, second.owner, second.parent) == (2, again.owner, manifest.key)
    _, found = claim(store)
    assert found
    assert found.manifest.finished


def test_one_position_may_be_committed_twice(local: Store) -> None:
    run, _ = claim(local)
    commit(run, 5)
    run.commit({"report.json": b"{}"}, epoch=1, step=1, position=5, finished=True)
    _, found = claim(local)
    assert found
    assert found.objects == {"report.json": b"{}"}


def test_bytes_that_are_there_are_not_written_again(local: Store) -> None:
    run = write_run(local, 1)
    path = Path(local.uri) / objects_of(local, "manifests/1-1.json")["same"]
    inode = path.stat().st_ino
    for position in range(2, 8):
        commit(run, position)
    assert path.stat().st_ino == inode


def test_bytes_that_come_back_after_pruning_are_written_again(local: Store) -> None:
    run, _ = claim(local)
    for position in (1, 2, 3, 4, 1):
        commit(run, position)
    _, found = resumed(local)
    assert found.manifest.position == 1


def test_three_are_kept_in_the_order_of_integers(store: Store) -> None:
    run = write_run(store, 12)
    keys = set(contents(store))
    kept = {f"manifests/1-{number}.json" for number in (10, 11, 12)}
    named = {key for manifest in kept for key in objects_of(store, manifest).values()}
    assert keys == {"HEAD.json", "claims/1"} | kept | named
    assert len(named) == 3 * 2 + 1  # the object `same` is in all three
    again, _ = resumed(store)
    commit(again, 13)
    kept = {"manifests/1-11.json", "manifests/1-12.json", "manifests/2-1.json"}
    assert {key for key in contents(store) if key.startswith("manifests/")} == kept
    assert run.generation == 1


@pytest.mark.parametrize("commits", [(10,), (1,) * 10])
def test_ten_comes_after_nine(local: Store, commits: tuple[int, ...]) -> None:
    write_run(local, *commits)
    local.delete("HEAD.json")
    _, found = resumed(local)
    assert found.manifest.position == 10


def test_a_newest_manifest_that_cannot_be_named_is_an_error(local: Store) -> None:
    run = write_run(local, 1)
    assert latest(local) == resumed(local)[1].manifest
    local.put("HEAD.json", b"{")
    with pytest.raises(DataError, match="is not JSON"):
        latest(local)
    assert run.generation == 1


def test_orphans_of_earlier_attempts_go_and_all_else_stays(store: Store) -> None:
    write_run(store, 2)
    orphans = {f"objects/1-{'a' * 16}/{'0' * 64}", f"objects/2-{'b' * 16}/{'0' * 64}"}
    others = {
        f"objects/9-{'c' * 16}/{'0' * 64}", f"objects/9-{'c' * 16}/short", "objects/readme", "report.json",
        "recipe.json", "manifests/readme", "manifests/9-1.json", "claims/readme", "claims/0", "claims/01",
    }  # fmt: skip
    run, _ = resumed(store)
    assert run.generation == 2
    for key in orphans | others:
        store.put(key, b"x")
    commit(run, 3)
    keys = set(contents(store))
    assert others <= keys
    assert not orphans & keys


def _damage(*changes: Callable[[Store], None]) -> Callable[[Store], None]:
    def apply(store: Store) -> None:
        for change in changes:
            change(store)

    return apply


NEWEST, BEFORE = "manifests/2-4.json", "manifests/2-3.json"
DAMAGES: dict[str, tuple[Callable[[Store], object], dict[str, str], int]] = {
    # what is done to a run of 2 and 4 commits: what is skipped and why, and the position that is resumed
    "flipped object": (
        lambda store: flip(store, objects_of(store, NEWEST)["state.pt"], 500), {NEWEST: "SHA-256"}, 5,
    ),
    "truncated object": (
        lambda store: store.put(objects_of(store, NEWEST)["state.pt"], payload(6)["state.pt"][:-1]),
        {NEWEST: "size"}, 5,
    ),
    "longer object": (
        lambda store: store.put(objects_of(store, NEWEST)["state.pt"], payload(6)["state.pt"] + b"\0"),
        {NEWEST: "size"}, 5,
    ),
    "missing object": (
        lambda store: store.delete(objects_of(store, NEWEST)["history.jsonl"]), {NEWEST: "there is no"}, 5,
    ),
    "truncated manifest": (
        lambda store: store.put(NEWEST, store.get(NEWEST).data[:-100]), {NEWEST: "cut short"}, 5,
    ),
    "empty manifest": (lambda store: store.put(NEWEST, b""), {NEWEST: "not JSON"}, 5),
    "flipped digit in the manifest": (
        lambda store: store.put(NEWEST, store.get(NEWEST).data.replace(b'"position": 6', b'"position": 7')),
        {NEWEST: "SHA-256"}, 5,
    ),
    "another's manifest": (lambda store: store.put(NEWEST, store.get(BEFORE).data), {NEWEST: "2-3.json"}, 5),
    "missing manifest": (lambda store: store.delete(NEWEST), {NEWEST: "there is no"}, 5),
    "missing HEAD": (lambda store: store.delete("HEAD.json"), {"HEAD.json": "there is no HEAD.json"}, 6),
    "HEAD not JSON": (lambda store: store.put("HEAD.json", b"\0\1"), {"HEAD.json": "not JSON"}, 6),
    "empty HEAD": (lambda store: store.put("HEAD.json", b""), {"HEAD.json": "not JSON"}, 6),
    "flipped digit in HEAD": (
        lambda store: store.put("HEAD.json", store.get("HEAD.json").data.replace(b"2-4", b"2-5")),
        {"HEAD.json": "SHA-256"}, 6,
    ),
    "HEAD naming a missing manifest": (
        lambda store: reseal(store, "HEAD.json", manifest="manifests/2-5.json"),
        {"manifests/2-5.json": "there is no"}, 6,
    ),
    "HEAD naming none": (lambda store: reseal(store, "HEAD.json", manifest=None), {}, 6),
    "two things at once": (
        _damage(
            lambda store: store.delete("HEAD.json"),
            lambda store: flip(store, objects_of(store, NEWEST)["state.pt"]),
            lambda store: store.delete(objects_of(store, BEFORE)["state.pt"]),
        ),
        {"HEAD.json": "there is no HEAD.json", NEWEST: "SHA-256", BEFORE: "there is no"}, 4,
    ),
}  # fmt: skip


S3_DAMAGES = ("flipped object", "truncated manifest", "missing HEAD", "HEAD naming a missing manifest")


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_that_verifies_is_resumed_and_the_rest_named(local: Store, damage: str) -> None:
    check_damage(local, damage)


@pytest.mark.parametrize("damage", S3_DAMAGES)
def test_the_newest_that_verifies_is_resumed_from_s3(s3_uri: str, damage: str) -> None:
    check_damage(open_store(s3_uri, retry_seconds=5), damage)


def check_damage(store: Store, damage: str) -> None:
    write_run(store, 2, 4)
    inflict, reasons, position = DAMAGES[damage]
    inflict(store)
    with skipped() as told:
        run, found = resumed(store)
    assert found.manifest.position == position
    assert set(told) == set(reasons)
    for key, reason in reasons.items():
        assert reason in told[key]
    assert needs(store) <= set(contents(store))
    for later in (7, 8, 9):
        commit(run, later)
    with skipped() as told:
        _, found = resumed(store)
    assert (found.manifest.position, told) == (9, {})


def test_what_does_not_verify_is_not_one_of_the_three(local: Store) -> None:
    write_run(local, 2, 4)
    flip(local, objects_of(local, NEWEST)["state.pt"])
    run, _ = resumed(local)  # from 2-3, which it makes its own as 3-1
    commit(run, 6)
    assert {key for key in contents(local) if key.startswith("manifests/")} == {
        "manifests/3-2.json", "manifests/3-1.json", BEFORE,
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["object", "manifest"])
def test_what_is_not_whole_is_not_one_of_the_three(local: Store, damage: str) -> None:
    write_run(local, 3)
    middle = "manifests/1-2.json"
    if damage == "object":
        local.delete(objects_of(local, middle)["state.pt"])
    else:
        reseal(local, middle, schema="micronet.checkpoint/2")
    run, _ = resumed(local)
    commit(run, 4)
    assert {key for key in contents(local) if key.startswith("manifests/")} == {
        "manifests/2-1.json", "manifests/1-3.json", "manifests/1-1.json",
    }  # fmt: skip


def test_no_generation_is_given_twice(local: Store) -> None:
    write_run(local, 1, 1, 1)
    for generation in (1, 2, 3):
        local.delete(f"claims/{generation}")
    run, _ = resumed(local)
    assert run.generation == 4  # HEAD tells
    commit(run, 4)
    for key in ("claims/4", "HEAD.json"):
        local.delete(key)
    run, _ = resumed(local)
    assert run.generation == 5  # the manifests tell


def keys(store: Store, start: str = "") -> list[str]:
    return [key for key in contents(store) if key.startswith(start)]


def flip_objects(store: Store) -> None:
    for key in keys(store, "objects/"):
        flip(store, key)


def cut_manifests(store: Store) -> None:
    for key in keys(store, "manifests/"):
        store.put(key, b"{")


def delete_manifests(store: Store) -> None:
    for key in keys(store, "manifests/"):
        store.delete(key)


def leave_a_bad_head(store: Store) -> None:
    for key in keys(store):
        store.delete(key)
    store.put("HEAD.json", b"?")


def leave_a_strange_manifest(store: Store) -> None:
    for key in keys(store):
        store.delete(key)
    store.put("manifests/1-01.json", b"{}")


ALL_BAD: dict[str, Callable[[Store], None]] = {
    "objects": flip_objects,
    "manifests": cut_manifests,
    "no manifests": delete_manifests,
    "HEAD": leave_a_bad_head,
    "only strange manifests": leave_a_strange_manifest,
}


@pytest.mark.parametrize("bad", ALL_BAD)
def test_all_bad_is_an_error_and_changes_nothing(local: Store, bad: str) -> None:
    check_all_bad(local, bad)


def test_all_bad_in_s3_is_an_error_and_changes_nothing(s3_uri: str) -> None:
    check_all_bad(open_store(s3_uri, retry_seconds=5), "objects")


def check_all_bad(store: Store, bad: str) -> None:
    write_run(store, 2, 2)
    ALL_BAD[bad](store)
    before = contents(store)
    with pytest.raises(DataError, match="verifies") as caught:
        claim(store)
    assert caught.value.exit_code == 65
    after = contents(store)
    assert {key: after.get(key) for key in before} == before
    assert {key.split("/")[0] for key in after.keys() - before.keys()} == {"claims"}


def test_another_recipe_is_refused(store: Store) -> None:
    write_run(store, 2)
    before = contents(store)
    with pytest.raises(ConfigurationError) as caught:
        Checkpoints.claim(store, "ffff", Worker())
    assert caught.value.exit_code == 78
    assert FINGERPRINT in caught.value.message
    assert "ffff" in caught.value.message
    after = contents(store)
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize(
    ("key", "schema"), [("manifests/1-2.json", "micronet.checkpoint/2"), ("HEAD.json", "micronet.head/12")]
)
def test_a_newer_schema_is_refused_by_name(local: Store, key: str, schema: str) -> None:
    write_run(local, 2)
    reseal(local, key, schema=schema)
    with pytest.raises(ConfigurationError, match=f"{key} is of schema {schema}"):
        claim(local)


def test_forbidden_is_not_absent(local: Store) -> None:
    write_run(local, 2)
    before = contents(local)
    (Path(local.uri) / "HEAD.json").chmod(0o000)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read anything
    try:
        with pytest.raises(PermissionRefusedError):
            claim(local)
    finally:
        os.seteuid(user)
    (Path(local.uri) / "HEAD.json").chmod(0o644)
    assert contents(local) == before


def test_forbidden_in_s3_is_not_absent(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(open_store(s3_uri, retry_seconds=5), 2)
    before = contents(open_store(s3_uri))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(PermissionRefusedError):
            claim(open_store(s3_uri))
    assert contents(open_store(s3_uri)) == before


def test_the_lineage_tells_how_each_attempt_ended(store: Store) -> None:
    def attempts() -> list[tuple[object, ...]]:
        return [
            (turn.generation, turn.worker.host, turn.resumed, turn.position, turn.reason)
            for turn in run.attempts()
        ]

    run, _ = claim(store, "first")
    commit(run, 3)
    run, _ = claim(store, "second")
    assert attempts() == [(1, "first", 0, 3, "vanished"), (2, "second", 3, 3, None)]
    for position in range(4, 9):
        commit(run, position)
    run.end("preempted")
    fenced = run
    run, _ = claim(store, "third")
    commit(run, 9)
    fenced.end("fenced")  # an attempt may still say so after it has lost the run
    run.end("finished")
    assert attempts() == [
        (1, "first", 0, 3, "vanished"), (2, "second", 3, 8, "fenced"), (3, "third", 8, 9, "finished"),
    ]  # fmt: skip
    last = run.attempts()[-1]
    assert last.worker.started == "2026-01-02T03:04:05+00:00"
    assert last.worker.device is None
    assert datetime.now(UTC) - datetime.fromisoformat(last.ended or "") < timedelta(minutes=1)


def test_the_lineage_survives_a_damaged_claim_and_names_a_refused_one(local: Store) -> None:
    run = write_run(local, 2, 1)
    with pytest.raises(ConfigurationError):
        Checkpoints.claim(local, "ffff", Worker(host="wrong"))
    local.put("claims/1", b"{")
    told = [(turn.generation, turn.reason, turn.worker.host) for turn in run.attempts()]
    assert told == [(1, "unreadable", None), (2, "vanished", "here"), (3, "refused", "wrong")]
    assert document(local, "HEAD.json")["generation"] == 2
