"""The background saver with commits that the test lets through, one by one."""

import threading
import time
from collections.abc import Callable

import pytest

from job.errors import FencedError, JobError, MachineError
from job.run import saver as saver_module
from job.run.saver import Saver
from job.run.state import TrainingState
from job.store.base import TransientError
from tests.run.test_state import STATE


class Store:
    """A commit that waits until it may go on, and then may fail."""

    def __init__(self) -> None:
        self.begun, self.allowed = threading.Semaphore(0), threading.Semaphore(0)
        self.committed: list[int] = []
        self.failure: JobError | None = None

    def commit(self, state: TrainingState) -> None:
        self.begun.release()
        assert self.allowed.acquire(timeout=20)
        if self.failure is not None:
            raise self.failure
        self.committed.append(state.step)


@pytest.fixture
def store() -> Store:
    return Store()


def start(commit: Callable[[TrainingState], None], budget_seconds: float = 60) -> Saver:
    saver = Saver(commit, every_seconds=0.2, budget_seconds=budget_seconds)
    saver.start()
    return saver


def at(step: int) -> TrainingState:
    return STATE.model_copy(update={"step": step})


def test_one_is_in_flight_the_newest_waits_and_the_others_are_dropped(store: Store) -> None:
    saver = start(store.commit)
    saver.offer(at(1))
    assert store.begun.acquire(timeout=20)
    for step in (2, 3, 4):
        saver.offer(at(step))  # returns although the first hangs
    assert not saver.flush(deadline=time.monotonic() + 0.05)
    durable = saver.durable
    assert durable is None
    store.allowed.release(2)
    assert saver.flush(deadline=time.monotonic() + 20)
    assert store.committed == [1, 4]
    assert saver.durable is not None
    assert saver.durable.step == 4
    saver.close()


def test_due_follows_the_interval(store: Store) -> None:
    saver = start(store.commit)
    due = [saver.due]
    time.sleep(0.25)
    due.append(saver.due)
    saver.offer(at(1))
    due.append(saver.due)
    assert due == [False, True, False]
    store.allowed.release()
    saver.close()


def test_an_outage_is_waited_out_with_the_newest_state(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "RETRY_SECONDS", 0.05)
    saver = start(store.commit)
    store.failure = TransientError("no answer")
    saver.offer(at(1))
    assert store.begun.acquire(timeout=20)
    saver.offer(at(2))
    store.allowed.release(3)
    for _ in range(3):
        assert store.begun.acquire(timeout=20)
    store.failure = None
    saver.check()
    store.allowed.release()
    assert saver.flush(deadline=time.monotonic() + 20)
    assert store.committed == [2]
    saver.close()


def test_past_the_budget_the_outage_is_the_jobs_error(store: Store) -> None:
    saver = start(store.commit, budget_seconds=0)
    store.failure = TransientError("no answer")
    store.allowed.release()
    saver.offer(at(1))
    assert not saver.flush(deadline=time.monotonic() + 20)
    with pytest.raises(MachineError, match="nothing could be saved"):
        saver.check()


def test_the_time_before_the_first_failure_is_not_an_outage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "RETRY_SECONDS", 0.01)
    saver = start(store.commit, budget_seconds=0.5)
    for step in (1, 2):  # the second outage is counted anew
        time.sleep(0.6)
        store.failure = TransientError("no answer")
        saver.offer(at(step))
        store.allowed.release()
        assert store.begun.acquire(timeout=20)
        assert store.begun.acquire(timeout=20)  # it is tried again
        saver.check()
        store.failure = None
        store.allowed.release()
        assert saver.flush(deadline=time.monotonic() + 20)
    assert store.committed == [1, 2]
    saver.close()


def test_any_other_error_stops_at_once(store: Store) -> None:
    saver = start(store.commit)
    store.failure = FencedError("generation 2 has taken over")
    store.allowed.release()
    saver.offer(at(1))
    assert not saver.flush(deadline=time.monotonic() + 20)
    with pytest.raises(FencedError):
        saver.check()


def test_a_bug_in_saving_does_not_go_unseen() -> None:
    def commit(state: TrainingState) -> None:
        raise KeyError("bug")

    saver = start(commit)
    saver.offer(at(1))
    assert not saver.flush(deadline=time.monotonic() + 20)
    with pytest.raises(KeyError, match="bug"):
        saver.check()
