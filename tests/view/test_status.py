import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job.errors import ConfigurationError, DataError
from job.run import layout
from job.run.checkpoints import Checkpoints
from job.run.lineage import Heartbeat, unsaved_seconds
from job.store import Store, open_store
from job.view import status
from tests.run.checkpoint_runs import seal
from tests.view.runs import DENSE, WORKER, beat


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def begin(store: Store) -> Checkpoints:
    checkpoints, _ = Checkpoints.claim(store, "ab", WORKER)
    Heartbeat(store, checkpoints.generation, beat).write()
    return checkpoints


def commit(checkpoints: Checkpoints, finished: bool = False) -> None:
    checkpoints.commit({"state": b"x"}, epoch=2, step=40, position=240, finished=finished)


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_a_live_run_shows_its_checkpoint_and_what_is_unsaved(store: Store) -> None:
    commit(begin(store))
    seen = status.read(store, in_seconds(6))
    assert (seen.phase, seen.attempts, seen.epoch, seen.step) == ("training", 1, 3, 50)
    assert (seen.checkpoint_epoch, seen.checkpoint_step) == (3, 40)
    assert seen.checkpoint_age_seconds == pytest.approx(6, abs=2)
    assert seen.lost_if_killed_now_seconds == pytest.approx(4 + 6, abs=2)
    assert seen.seconds_left == 750 * 256 / 1280  # 7.5 epochs of 100 steps
    text = status.lines(seen)
    assert "epoch       3 of 10, step 50 of 100\n" in text
    assert re.search(r"^checkpoint  epoch 3, step 40; \d+ s old$", text, re.MULTILINE)
    assert re.search(
        r"^unsaved     \d+ s of training, repeated if the attempt is killed now$", text, re.MULTILINE
    )


def test_an_attempt_without_a_heartbeat_for_long_is_silent(store: Store) -> None:
    commit(begin(store))
    seen = status.read(store, in_seconds(3600))
    assert (seen.phase, seen.lost_if_killed_now_seconds, seen.seconds_left) == ("silent", None, None)
    assert seen.checkpoint_age_seconds == pytest.approx(3600, abs=2)
    assert "state       no heartbeat for 60 min\n" in status.lines(seen)


def test_a_heartbeat_older_than_the_checkpoint_is_no_step_back(store: Store) -> None:
    checkpoints = begin(store)  # its heartbeat is at step 50 of epoch 3
    checkpoints.commit({"state": b"x"}, epoch=2, step=60, position=260)
    seen = status.read(store)
    assert (seen.epoch, seen.step) == (seen.checkpoint_epoch, seen.checkpoint_step) == (3, 60)


def test_the_last_checkpoint_of_six_epochs_is_not_in_the_seventh(store: Store) -> None:
    checkpoints = begin(store)
    checkpoints.commit({"state": b"x"}, epoch=6, step=0, position=120)
    seen = status.read(store)
    assert (seen.checkpoint_epoch, seen.checkpoint_step) == (6, 20)


def test_an_attempt_that_ended_says_why(store: Store) -> None:
    checkpoints = begin(store)
    commit(checkpoints)
    checkpoints.end("preempted")
    assert status.read(store).phase == "preempted"


def test_a_finished_run_is_finished_whatever_came_after(store: Store) -> None:
    checkpoints = begin(store)
    commit(checkpoints, finished=True)
    assert status.read(store).accuracy is None  # not yet published
    store.put("report.json", DENSE.read_bytes())
    with pytest.raises(ConfigurationError):  # an attempt that is refused changes nothing
        Checkpoints.claim(store, "cd", WORKER)
    seen = status.read(store, in_seconds(3600))
    assert (seen.phase, seen.attempts, seen.accuracy, seen.epoch) == ("finished", 1, 0.1, None)


def test_before_the_first_checkpoint(store: Store) -> None:
    begin(store)
    seen = status.read(store)
    assert (seen.phase, seen.checkpoint_epoch) == ("training", None)


def test_no_run_is_an_error(store: Store) -> None:
    with pytest.raises(DataError, match="holds no run"):
        status.read(store)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema": "micronet.heartbeat/1"}'])
def test_a_damaged_heartbeat_is_none(store: Store, content: bytes) -> None:
    begin(store)
    store.put(layout.heartbeat(1), content)
    assert status.read(store).phase == "silent"


def test_what_a_vanished_attempt_lost_is_read_from_its_heartbeat(store: Store) -> None:
    begin(store)
    commit(begin(store))
    first, second = begin(store).attempts()[:2]
    assert (first.reason, unsaved_seconds(store, first)) == ("vanished", 4.0)
    assert unsaved_seconds(store, replace(second, reason="preempted")) == 0.0


def test_a_status_needs_no_torch() -> None:
    """It takes seconds to import, on the laptop of somebody who asks for it."""
    code = "import sys, job.view.status, job.commands.status; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def reclaim(store: Store, **end: object) -> None:
    content = json.loads(store.get("claims/1").data)
    content["end"] = {"reason": "preempted", "ended": "2026-01-01T00:00:00+00:00", "position": 1} | end
    store.put("claims/1", seal(content))


def test_what_an_attempt_says_is_shown_escaped_and_short(store: Store) -> None:
    begin(store)
    reclaim(store, reason="\x1b]0;title\x07\u202e" + "x" * 10_000)
    text = status.lines(status.read(store))
    assert r"state       \x1b]0;title\x07\u202exxx" in text
    assert len(text) < 1000


@pytest.mark.parametrize(
    "ended",
    ["now", "2026-01-01T00:00:00", "9999-12-31T23:59:59-23:59", None, 1, ["2026-01-01T00:00:00+00:00"]],
)
def test_a_claim_with_a_wrong_time_is_unreadable(store: Store, ended: object) -> None:
    begin(store)
    reclaim(store, ended=ended)
    assert status.read(store).phase == "unreadable"


@pytest.mark.parametrize("rate", [0, 1e-300])
def test_without_a_speed_no_time_left_is_shown(store: Store, rate: float) -> None:
    checkpoints, _ = Checkpoints.claim(store, "ab", WORKER)
    Heartbeat(store, checkpoints.generation, lambda: beat(images_per_second=rate)).write()
    assert status.read(store).seconds_left is None


def test_a_heartbeat_of_the_future_is_not_of_a_negative_age(store: Store) -> None:
    checkpoints, _ = Checkpoints.claim(store, "ab", WORKER)
    Heartbeat(store, checkpoints.generation, lambda: beat(time="9000-01-01T00:00:00+00:00")).write()
    assert status.read(store).lost_if_killed_now_seconds == 4.0
