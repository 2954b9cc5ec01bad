import json

import pytest

from job.errors import ConfigurationError
from job.run.history import History


def record(epoch: int, accuracy: float, **more: float) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1.0, "test_loss": 1.0, "accuracy": accuracy, **more}


def test_best_epoch_is_the_first_of_the_highest_on_the_test_set() -> None:
    history = History()
    for epoch, accuracy in enumerate([0.1, 0.5, 0.5, 0.4], start=1):
        history.add(record(epoch, accuracy))
    assert history.best() == {"value": 0.5, "epoch": 2, "selected_on": "test"}


def test_with_a_holdout_the_epoch_is_chosen_there_and_the_value_is_the_test_sets() -> None:
    history = History()
    for epoch, (holdout, accuracy) in enumerate([(0.2, 0.9), (0.7, 0.3), (0.6, 0.8)], start=1):
        history.add(record(epoch, accuracy, holdout_accuracy=holdout))
    assert history.best() == {"value": 0.3, "epoch": 2, "selected_on": "holdout"}


@pytest.mark.parametrize("name", ["train_loss", "test_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_epoch(name: str, value: float) -> None:
    history = History()
    history.add(record(1, 0.1))
    with pytest.raises(ConfigurationError, match=r"epoch 2 is not finite.*epoch 1 was the last good"):
        history.add(record(2, 0.1) | {name: value})
    assert len(history.records) == 1


def test_lines_are_json_objects() -> None:
    history = History()
    history.add(record(1, 0.25))
    history.add(record(2, 0.5))
    assert [json.loads(line)["accuracy"] for line in history.encode().splitlines()] == [0.25, 0.5]
