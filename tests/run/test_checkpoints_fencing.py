"""Several attempts on one run: the newest owns it, the others stop, and nothing that HEAD needs is lost."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from job.errors import DataError, FencedError
from job.run.checkpoints import Checkpoints
from job.store import Store, open_store
from tests.run.checkpoint_runs import (
    claim,
    commit,
    contents,
    document,
    flip,
    needs,
    objects_of,
    payload,
    quick_folder,
    resumed,
    seeded,
    skipped,
    write_run,
)
from tests.run.turns import Actor, KilledError

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def local() -> Iterator[Store]:
    with quick_folder() as folder:
        yield open_store(str(folder / "run"))


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "local":
        return request.getfixturevalue("local")
    return open_store(request.getfixturevalue(f"{request.param}_uri"), retry_seconds=5)


def test_an_old_owner_can_neither_move_head_nor_delete(store: Store) -> None:
    old = write_run(store, 4)
    new, _ = claim(store, "the-new-host")
    before = contents(store)
    for position in (5, 6):
        with pytest.raises(FencedError, match="generation 2 on the-new-host") as caught:
            commit(old, position)
        assert caught.value.exit_code == 76
    after = contents(store)
    assert {key: after.get(key) for key in before} == before
    commit(new, 5)
    with pytest.raises(FencedError):
        commit(old, 7)
    assert document(store, "HEAD.json")["generation"] == 2
    _, found = resumed(store)
    assert found.manifest.position == 5


def test_what_a_fenced_attempt_wrote_is_no_checkpoint_and_goes(local: Store) -> None:
    old = write_run(local, 2)
    new, _ = claim(local)
    with pytest.raises(FencedError):
        commit(old, 99)
    assert "manifests/1-3.json" in contents(local)
    _, found = resumed(local)
    assert found.manifest.position == 2
    for position in (3, 4, 5):
        new = commit_as_newest(local, position)
    objects = {key for key in contents(local) if key.startswith(f"objects/1-{old.owner}")}
    assert objects == set()
    assert new.generation == 6


def commit_as_newest(store: Store, position: int) -> Checkpoints:
    run, _ = claim(store)
    commit(run, position)
    return run


def test_the_last_commit_sweeps_up_after_fenced_attempts(local: Store) -> None:
    old = write_run(local, 1)
    new, _ = claim(local)
    for position in (2, 3, 4):
        commit(new, position)
    with pytest.raises(FencedError):
        commit(old, 99)
    new.commit(payload(5), epoch=0, step=0, position=5, finished=True)
    assert not any(key.startswith(("manifests/1-", "objects/1-")) for key in contents(local))


@pytest.mark.parametrize("content", [None, b"?", b"earlier"])
def test_a_head_that_is_lost_or_put_back_is_taken_again_by_the_newest(
    local: Store, content: bytes | None
) -> None:
    old = write_run(local, 2)
    earlier = local.get("HEAD.json").data
    new, _ = claim(local)
    commit(new, 3)

    def damage() -> None:
        if content is None:
            local.delete("HEAD.json")
        else:
            local.put("HEAD.json", earlier if content == b"earlier" else content)

    damage()
    commit(new, 4)
    assert document(local, "HEAD.json")["manifest"] == "manifests/2-2.json"
    damage()
    if content != b"earlier":  # that one is the old attempt's own again
        with pytest.raises(FencedError, match="generation 2"):
            commit(old, 3)


def test_a_live_attempt_does_not_outrun_a_slow_claim(local: Store) -> None:
    """While a claim reads, the other commits four times and prunes what is being read; only once, though."""
    old = write_run(local, 1)
    result: list[int] = []
    actor = Actor(local, lambda store: resumed_into(result, store))
    actor.until("get_range objects")
    for position in (2, 3, 4, 5):
        commit(old, position)
    with skipped() as told:
        actor.step()
        actor.until("get_range objects")
        with pytest.raises(FencedError):
            commit(old, 6)
        actor.finish()
    assert actor.error is None
    assert told == {}
    assert result == [5]


def resumed_into(result: list[int], store: Store) -> None:
    _, found = resumed(store)
    result.append(found.manifest.position)


def test_a_claim_may_be_overtaken_at_any_of_its_operations(local: Store) -> None:
    """One attempt starts a fresh run; after each of its first operations, in turn, another comes between."""
    for steps in range(9):
        store = open_store(f"{local.uri}/{steps}")
        result: list[int | None] = []
        actor = Actor(store, partial(claimed_into, result))
        for _ in range(steps):
            if actor.alive:
                actor.step()
        with skipped() as told:
            run, _ = claim(store)
            commit(run, 1)
            actor.finish()
        assert told == {}
        if actor.error:
            assert isinstance(actor.error, FencedError)
            commit(run, 2)
        elif run.generation == 2:
            assert result == [None]  # it had the run before
            commit(run, 2)
        else:
            assert result == [1]
            with pytest.raises(FencedError):
                commit(run, 2)


def claimed_into(result: list[int | None], store: Store) -> None:
    _, found = claim(store)
    result.append(found.manifest.position if found else None)


def test_a_paused_deletion_cannot_reach_what_a_fallback_chose(local: Store) -> None:
    """An attempt is paused when it is about to delete the very checkpoint that the next falls back to."""
    old = write_run(local, 3)

    def work(store: Store) -> None:
        old._store = store
        commit(old, 4)

    actor = Actor(local, work)
    actor.until("delete manifests/1-1.json")
    for number in (2, 3, 4):
        flip(local, objects_of(local, f"manifests/1-{number}.json")["state.pt"])
    run, found = resumed(local)
    assert found.manifest.position == 1
    actor.finish()
    assert "manifests/1-1.json" not in contents(local)
    assert needs(local) <= set(contents(local))
    _, found = resumed(local)
    assert found.manifest.position == 1
    assert run.generation == 2


# What is killed may be the thread in which a refused attempt records its end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("sabotage", [False, True])
def test_any_schedule_keeps_what_head_needs(sabotage: bool) -> None:
    """Attempts start, pause anywhere, die anywhere, wake up; what HEAD needs is there after each step."""
    generator = seeded()
    with capture_logs():
        for _ in range(3):
            with quick_folder() as folder:
                Schedule(open_store(str(folder)), generator, sabotage).run()


class Schedule:
    """Up to three attempts at a time on one store, a random one of which does its next store operation."""

    def __init__(self, store: Store, generator: random.Random, sabotage: bool) -> None:
        self.store, self.generator, self.sabotage = store, generator, sabotage
        self.actors: list[Actor] = []
        self.returned: list[tuple[int, int]] = []  # (generation, number) of commits that have returned
        self.generation = self.position = 0
        self.hurt = False

    def run(self) -> None:
        for _ in range(100):
            choice = self.generator.random()
            if len(self.actors) < 1 or (choice < 0.02 and len(self.actors) < 3):
                self.actors.append(Actor(self.store, self.attempt))
            actor = self.generator.choice(self.actors)
            if choice > 0.99:
                actor.kill()
            elif self.sabotage and choice > 0.98:
                self.spoil()
            else:
                for _ in range(self.generator.choice([1, 1, 5, 30])):
                    if actor.alive:
                        actor.step()
                        self.check()
            self.bury()
        for actor in self.actors:
            actor.finish()
            self.check()
        self.bury()
        self.check_end()

    def attempt(self, store: Store) -> None:
        run, found = claim(store)
        position = found.manifest.position if found else 0
        if found:
            assert found.objects == payload(position)
        for _ in range(self.generator.randrange(8)):
            position += 1
            manifest = commit(run, position)
            self.returned.append(manifest.order)

    def bury(self) -> None:
        for actor in [actor for actor in self.actors if not actor.alive]:
            self.actors.remove(actor)
            allowed = (KilledError, FencedError, DataError) if self.hurt else (KilledError, FencedError)
            if actor.error is not None and not isinstance(actor.error, allowed):
                raise actor.error

    def spoil(self) -> None:
        """Flip a byte in each of the newest objects, up to all but one of the manifests' states."""
        manifests = [entry.key for entry in self.store.list("manifests")]
        for key in self.generator.sample(manifests, max(0, len(manifests) - 1)):
            state = objects_of(self.store, key)["state.pt"]
            if any(entry.key == state for entry in self.store.list("objects")):
                flip(self.store, state)
                self.hurt = True

    def check(self) -> None:
        keys = {entry.key for entry in self.store.list()}
        if "HEAD.json" not in keys:
            return
        head = document(self.store, "HEAD.json")
        assert head["generation"] >= self.generation, "an old attempt has moved HEAD"
        assert head["position"] >= self.position or self.hurt, "what was committed was not gone on from"
        self.generation, self.position = head["generation"], head["position"]
        missing = needs(self.store) - keys
        assert not missing

    def check_end(self) -> None:
        if self.hurt or not self.returned:
            return
        _, found = resumed(self.store)
        assert found.manifest.order >= max(self.returned)


def test_of_two_that_start_at_one_instant_one_goes_on(store: Store) -> None:
    generator = seeded()
    rounds = 12 if store.uri.startswith("/") else 4
    delays = [(generator.random() * 0.02, generator.random() * 0.02) for _ in range(rounds)]
    barrier = SPAWN.Barrier(2)
    pipes, processes = [], []
    for place in range(2):
        ours, theirs = SPAWN.Pipe()
        mine = [pair[place] for pair in delays]
        processes.append(SPAWN.Process(target=_start_together, args=(store.uri, mine, barrier, theirs)))
        processes[-1].start()
        pipes.append(ours)
    for number in range(rounds):
        outcomes = [pipe.recv() for pipe in pipes]
        assert sorted(outcome for outcome, _ in outcomes) == ["committed", "fenced"]
        _, found = resumed(open_store(f"{store.uri}/{number}"))
        assert found.manifest.generation == max(generation for _, generation in outcomes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


def _start_together(uri: str, delays: list[float], barrier: Barrier, pipe: Connection) -> None:
    for number, delay in enumerate(delays):
        store = open_store(f"{uri}/{number}", retry_seconds=5)
        barrier.wait(60)
        time.sleep(delay)
        generation = 0
        try:
            run, _ = claim(store)
            generation = run.generation
            barrier.wait(60)
            commit(run, 1)
            commit(run, 2)
            pipe.send(("committed", generation))
        except FencedError:
            if not generation:
                barrier.wait(60)
            pipe.send(("fenced", generation))
        barrier.wait(60)


def test_a_paused_process_that_wakes_up_stops(store: Store) -> None:
    """SIGSTOP at a random instant, a new attempt that commits and prunes, SIGCONT."""
    generator = seeded()
    for round_number in range(3 if store.uri.startswith("/") else 1):
        run_store = open_store(f"{store.uri}/{round_number}", retry_seconds=5)
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_commit_until_fenced, args=(run_store.uri, theirs))
        process.start()
        assert ours.recv() == 1
        time.sleep(generator.random() * 0.2)
        _stop_outside_the_lock(process.pid or 0, run_store)
        new, found = resumed(run_store, "waker")
        position = found.manifest.position
        for step in range(1, 5):
            commit(new, position + step)
        head = run_store.get("HEAD.json").data
        needed = {key: run_store.get(key).data for key in needs(run_store)}
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join(30)
        assert process.exitcode == 76
        assert run_store.get("HEAD.json").data == head
        assert {key: run_store.get(key).data for key in needed} == needed
        _, found = resumed(run_store)
        assert found.manifest.position == position + 4


def _commit_until_fenced(uri: str, pipe: Connection) -> None:
    run, _ = claim(open_store(uri, retry_seconds=5))
    position = 0
    while True:
        position += 1
        try:
            commit(run, position)
        except FencedError as error:
            raise SystemExit(error.exit_code) from None
        if position == 1:
            pipe.send(1)


def _stop_outside_the_lock(process: int, store: Store) -> None:
    """A folder's lock is held for a rename; stopped within, a process keeps all others out."""
    while True:
        os.kill(process, signal.SIGSTOP)
        if not store.uri.startswith("/"):
            return
        descriptor = os.open(Path(store.uri) / ".lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.kill(process, signal.SIGCONT)
            time.sleep(0.003)
        else:
            return
        finally:
            os.close(descriptor)
