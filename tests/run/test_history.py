import json

import pytest

from job.errors import ConfigurationError
from job.run.outputs import History
from job.run.report import BestEpoch


def figures(accuracy: float, **more: float) -> dict[str, float]:
    trained = {"train_loss": 1.0, "lr": 0.1, "momentum": 0.9, "images_per_second": 100.0}
    return {**trained, "test_loss": 1.0, "accuracy": accuracy, **more}


def test_best_epoch_is_the_first_of_the_highest_on_the_test_set() -> None:
    history = History()
    for accuracy in (0.1, 0.5, 0.5, 0.4):
        history.add(figures(accuracy), attempt=1)
    assert history.best() == BestEpoch(value=0.5, epoch=2, selected_on="test")


def test_with_a_holdout_the_epoch_is_chosen_there_and_the_value_is_the_test_sets() -> None:
    history = History()
    for holdout, accuracy in ((0.2, 0.9), (0.7, 0.3), (0.6, 0.8)):
        history.add(figures(accuracy, holdout_accuracy=holdout), attempt=1)
    assert history.best() == BestEpoch(value=0.3, epoch=2, selected_on="holdout")


@pytest.mark.parametrize("name", ["train_loss", "test_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_epoch(name: str, value: float) -> None:
    history = History()
    history.add(figures(0.1), attempt=1)
    with pytest.raises(ConfigurationError, match=r"epoch 2 is not finite.*epoch 1 was the last good"):
        history.add(figures(0.1) | {name: value}, attempt=1)
    assert len(history.records) == 1


def test_lines_are_json_objects() -> None:
    history = History()
    history.add(figures(0.25), attempt=1)
    history.add(figures(0.5), attempt=2)
    assert [json.loads(line)["accuracy"] for line in history.encode().splitlines()] == [0.25, 0.5]
