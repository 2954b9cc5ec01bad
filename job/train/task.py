"""A data set as one recipe uses it, resident on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from job.data.dataset import PreparedData
from job.errors import ConfigurationError
from job.settings import Recipe
from job.train.evaluate import Predictions, predict
from job.train.loader import Images, Normalisation, TrainingBatches


class Task:
    """Training batches, hold-out and test images of a data set under `recipe`.

    Raises ConfigurationError where the hold-out or the batch is larger than the data.
    """

    def __init__(self, data: PreparedData, recipe: Recipe, device: torch.device) -> None:
        self.data, self.device = data, device
        dataset = data.dataset
        training, holdout = Images.of(dataset.train, device).split(recipe.holdout, recipe.seed)
        if len(training) < recipe.batch_size:
            raise ConfigurationError(
                f"{len(training)} training images are less than one batch of {recipe.batch_size}",
                "Lower --batch-size or --holdout",
            )
        self.test, self.holdout = Images.of(dataset.test, device), holdout
        self.normalise = Normalisation(data.mean, data.std, device)
        self.precision = recipe.precision
        self.after_batch: Callable[[], None] = lambda: None  # is called for each batch that is evaluated
        self.batches = TrainingBatches(training, len(dataset.classes), self.normalise, recipe)

    def evaluate(self, network: nn.Module) -> Predictions:
        """Run `network` over the test images, in fp32."""
        return predict(network, self.test, self.normalise, after_batch=self.after_batch)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Return {test_loss, accuracy} and, with a hold-out, its accuracy, in the training's own precision.

        To watch a run by: 10,000 images cost a fifteenth of an epoch's arithmetic, in fp32 a multiple.
        """
        test = predict(network, self.test, self.normalise, self.precision, self.after_batch)
        figures = {"test_loss": test.loss, "accuracy": test.accuracy}
        if len(self.holdout):
            holdout = predict(network, self.holdout, self.normalise, self.precision, self.after_batch)
            figures["holdout_accuracy"] = holdout.accuracy
        return figures
