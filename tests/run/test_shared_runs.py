"""Several processes at one run: what they start from, and a store that only process 0 talks to."""

import time
from pathlib import Path

from job.checks.child import named
from tests.run.test_processes import MACHINE, codes, finish, options, reference, together, weights
from tests.servers import FaultProxy

__all__ = ["options", "reference"]  # fixtures

OUTAGE_SECONDS, STEP_TIMEOUT = 9.0, "3s"


def test_given_weights_and_a_given_teacher_end_with_the_same_bits(options: list[str], tmp_path: Path) -> None:
    """The first phase has a teacher then, which each process reads."""
    dense = [*options, "--cycles", "1@5e-3", "--prune-cycles", "none", "--quantise-cycles", "none"]
    finish(tmp_path / "dense", dense, 1)
    given = ["--from", str(tmp_path / "dense"), "--teacher", str(tmp_path / "dense"), "--cycles", "none"]
    for count in (1, 2):
        finish(tmp_path / f"of {count}", [*options, *given], count)
    assert weights(tmp_path / "of 1") == weights(tmp_path / "of 2")


def test_the_others_wait_for_process_0_while_its_store_is_out_of_reach(
    options: list[str], reference: bytes, s3_uri: str, proxy: FaultProxy
) -> None:
    """Longer than the timeout of a step: at the end of a phase it waits until the weights are stored."""
    with together(2, ["--run", s3_uri, *options, "--step-timeout", STEP_TIMEOUT]) as children:
        assert children[0].until(named("first_step")), [child.last_words() for child in children]
        proxy.default = ("refuse", 0)
        time.sleep(OUTAGE_SECONDS)
        proxy.default = ("pass", 0)
        assert codes(children) == [0, 0], [child.last_words() for child in children]
    assert weights(s3_uri) == reference


def test_a_store_that_stays_out_of_reach_ends_all(
    options: list[str], reference: bytes, s3_uri: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The state is kept on process 0's machine, and several processes resume from it."""
    several = ["--run", s3_uri, *options, "--cache", str(tmp_path)]
    with together(2, [*several, "--storage-budget", "2s"]) as children:
        assert children[0].until(named("checkpoint")), [child.last_words() for child in children]
        proxy.default = ("refuse", 0)
        assert codes(children) == [MACHINE, MACHINE], [child.last_words() for child in children]
    assert "the state is kept in" in children[0].last_words()
    assert children[1].last_words() == "it logged nothing"
    proxy.default = ("pass", 0)
    (again, _) = finish(s3_uri, several, 2)
    assert "unsaved_state" in [event["event"] for event in again.events]
    assert weights(s3_uri) == reference
