"""`status --watch` on a terminal and in a file, with a store that comes and goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from job.run.checkpoints import Checkpoints
from job.run.lineage import Heartbeat
from job.store import Store, open_store
from job.store.base import TransientError
from job.view import status
from tests.servers import FaultProxy
from tests.terminals import Terminal
from tests.view.runs import WORKER, beat

STATUS = [sys.executable, "-m", "job.cli", "status"]


def begin(store: Store) -> Checkpoints:
    checkpoints, _ = Checkpoints.claim(store, "ab", WORKER)
    Heartbeat(store, checkpoints.generation, beat).write()
    return checkpoints


def finish(checkpoints: Checkpoints) -> None:
    checkpoints.commit({"state": b"x"}, epoch=10, step=0, position=1000, finished=True)


def test_a_terminal_is_redrawn_and_a_file_gets_blocks_until_the_run_is_finished(tmp_path: Path) -> None:
    run = begin(open_store(str(tmp_path)))
    terminal = Terminal([*STATUS, str(tmp_path), "--watch"], 80)
    with subprocess.Popen(
        [*STATUS, str(tmp_path), "--watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as file:
        assert file.stdout
        assert file.stderr
        first = file.stdout.readline()
        terminal.read(lambda text: "3 of 10" in text)
        finish(run)
        assert terminal.read() == 0
        output, errors = first + file.stdout.read(), file.stderr.read()
    assert terminal.text.count("state ") == 1
    assert "state       finished" in terminal.text
    assert "training" not in terminal.text
    assert not terminal.screen.cursor.hidden
    blocks = output.strip().split("\n\n")
    states = [block.split("\n")[1] for block in blocks]
    assert states[0] == "state       training"
    assert states[-1] == "state       finished"
    assert all(block.startswith("run ") for block in blocks)
    assert "\x1b" not in output + errors


def test_a_store_out_of_reach_is_shown_and_retried(s3_uri: str, proxy: FaultProxy) -> None:
    run = begin(open_store(s3_uri))
    observations: list[status.Observation] = []
    for observation in status.watch(open_store(s3_uri, retry_seconds=0.2), every_seconds=0.05):
        observations.append(observation)
        if len(observations) == 1:
            proxy.default = ("unavailable", 0)
        elif observation.outage and proxy.default[0] == "unavailable":
            assert observation.seen is not None
            assert "epoch       3 of 10" in observation.text()
            assert "out of reach" in observation.text()
            proxy.default = ("pass", 0)
            finish(run)
        assert len(observations) < 50
    assert observations[0].outage is None
    assert sum(observation.outage is not None for observation in observations) == 1
    assert observations[-1].seen is not None
    assert observations[-1].seen.phase == "finished"


def test_without_watch_an_outage_is_an_error(s3_uri: str, proxy: FaultProxy) -> None:
    begin(open_store(s3_uri))
    proxy.default = ("unavailable", 0)

    with pytest.raises(TransientError):
        status.read(open_store(s3_uri, retry_seconds=0.2))


def test_each_line_of_json_is_a_whole_object(tmp_path: Path) -> None:
    run = begin(open_store(str(tmp_path)))
    finish(run)
    done = subprocess.run(
        [*STATUS, str(tmp_path), "--watch", "--json"], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["phase"] for line in done.stdout.splitlines()] == ["finished"]
