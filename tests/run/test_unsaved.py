from pathlib import Path

import torch
from structlog.testing import capture_logs

from job.run.saver import Unsaved
from job.run.state import TrainingState

RECIPE, MOST = "0123456789ab", 10**6
A, B = "a" * 16, "b" * 16


def state(epoch: int, step: int) -> TrainingState:
    return TrainingState(
        epoch=epoch,
        step=step,
        steps_per_epoch=12,
        network={"weight": torch.ones(2)},
        optimizer=[],
        scaler={},
        loss_total=torch.zeros(()),
        epoch_seconds=0.0,
        history=[],
    )


def unsaved(folder: Path, generation: int, owner: str, recipe: str = RECIPE) -> Unsaved:
    """The states of the run whose attempts all have one owner."""
    return Unsaved(folder, recipe, generation, owner, lambda _, found: found == owner)


def test_the_furthest_state_of_the_run_is_found_by_a_later_attempt_and_dropped(tmp_path: Path) -> None:
    for generation, (epoch, step) in enumerate([(1, 3), (2, 1), (1, 9)], start=1):
        unsaved(tmp_path, generation, A).keep(state(epoch, step))
    later = unsaved(tmp_path, 4, A)
    found = later.find(MOST)
    assert found
    assert (found[0], found[1].epoch, found[1].step) == (unsaved(tmp_path, 2, A).path, 2, 1)
    later.drop(2, 2)
    assert list(tmp_path.glob("unsaved-*")) == []


def test_what_another_run_or_recipe_kept_is_neither_found_nor_dropped(tmp_path: Path) -> None:
    unsaved(tmp_path, 1, A).keep(state(1, 3))
    for other in (unsaved(tmp_path, 1, B), unsaved(tmp_path, 2, A, recipe="ba9876543210")):
        assert other.find(MOST) is None
        other.drop(9, 0)
    assert unsaved(tmp_path, 2, A).find(MOST)


def test_a_damaged_state_is_none(tmp_path: Path) -> None:
    kept = unsaved(tmp_path, 1, A)
    kept.keep(state(1, 3))
    Path(kept.path).write_bytes(b"x" + Path(kept.path).read_bytes()[1:])
    assert kept.find(MOST) is None


def test_what_an_older_version_kept_for_any_run_of_the_recipe_is_named_and_left(tmp_path: Path) -> None:
    kept = unsaved(tmp_path, 1, A)
    kept.keep(state(1, 3))
    old = tmp_path / f"unsaved-{RECIPE}.pt"
    Path(kept.path).rename(old)
    with capture_logs() as logs:
        assert kept.find(MOST) is None
    kept.drop(9, 0)
    assert old.exists()
    assert [(log["event"], log["file"]) for log in logs] == [("unsaved_state_ignored", str(old))]


def test_a_state_that_was_kept_while_an_older_one_was_being_saved_stays(tmp_path: Path) -> None:
    kept = unsaved(tmp_path, 1, A)
    kept.keep(state(1, 3))
    kept.drop(1, 2)
    assert Path(kept.path).exists()
    kept.drop(1, 3)
    assert not Path(kept.path).exists()
