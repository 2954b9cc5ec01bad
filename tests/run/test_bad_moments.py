"""Whole runs whose store has a bad moment: foreign answers, a read-only disk, an outage before the report."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.disks import read_only_later
from tests.run.test_runs import (
    EPOCHS,
    MACHINE,
    Bench,
    bench,  # noqa: F401 - fixtures
    outcome,
    read_to,
    reference,  # noqa: F401
    the,
)
from tests.servers import FaultProxy

FOREIGN = [("html", status) for status in (200, 302, 400, 403, 404)]
BAD_ANSWERS = [*FOREIGN, ("no_etag", 0), ("wrong_range", 0), ("denied", 0)]


def test_single_bad_answers_in_mid_training_cost_time_only(
    bench: Bench,  # noqa: F811
    reference: dict[str, Any],  # noqa: F811
    s3_uri: str,
    proxy: FaultProxy,
) -> None:
    with bench.attempt(s3_uri) as child:
        read_to(child, "checkpoint")
        for answer in BAD_ANSWERS:
            proxy.faults.append(answer)
            child.until(lambda event: not proxy.faults)
        assert child.end() == 0, child.last_words()
    assert not proxy.faults
    reasons = [event["reason"] for event in child.events if event["event"] == "store_retry"]
    assert len(reasons) >= len(FOREIGN)
    for status in (302, 400, 403, 404):  # boto3 itself makes a 500 of a put's 200 with a page
        assert any(f"HTTP {status} with text/html" in reason for reason in reasons), (status, reasons)
    assert outcome(s3_uri) == reference


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_folder_that_becomes_read_only_in_mid_run_keeps_the_state_in_the_cache(
    bench: Bench,  # noqa: F811
    reference: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    cache = str(tmp_path / "cache")
    with read_only_later(tmp_path / "disk") as (disk, make_read_only):
        with bench.attempt(disk, cache=cache) as child:
            for _ in range(2):
                read_to(child, "checkpoint")
            make_read_only()
            assert child.end() == MACHINE, child.last_words()
        assert "has become read-only" in child.last_words()
        assert "the state is kept in" in child.last_words()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        events = bench.finish(disk, cache=cache)
        assert the("unsaved_state", events)
        assert outcome(disk) == reference


def test_an_outage_between_the_last_step_and_the_report_is_waited_for(
    bench: Bench,  # noqa: F811
    reference: dict[str, Any],  # noqa: F811
    s3_uri: str,
    proxy: FaultProxy,
) -> None:
    """The budget of a single call is shortened in the attempt, so that the outage is longer than it."""
    shorten = "import job.settings; job.settings.RETRY_SECONDS = 2.0"
    with bench.attempt(s3_uri, "--checkpoint-every", "1h", before=shorten) as child:
        read_to(child, "score")
        proxy.default = ("unavailable", 0)
        outage = time.monotonic()
        child.until(lambda event: time.monotonic() - outage > 6 and event["event"] == "store_retry")
        proxy.default = ("pass", 0)
        assert child.end() == 0, child.last_words()
    assert [event["epoch"] for event in child.events if event["event"] == "epoch"] == list(
        range(1, EPOCHS + 1)
    )
    assert outcome(s3_uri) == reference
