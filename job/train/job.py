"""The job: data, network, training, evaluation, report."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from job import events
from job.data.dataset import prepare
from job.network import weights
from job.network.weights import NetworkInfo
from job.settings import Placement, Recipe
from job.train import device as devices
from job.train import outputs
from job.train.history import History
from job.train.learner import build_learner, train_epoch
from job.train.summary import Files, compose
from job.train.task import Task


def train(recipe: Recipe, placement: Placement) -> dict[str, Any]:
    """Train `recipe` from its data to its report; return the report.

    A finished run is not trained again. Raises JobError.
    """
    started = datetime.now(UTC)
    device = devices.choose(placement.device)
    devices.configure(recipe.deterministic)

    data = prepare(placement.data, Path(placement.cache))
    precision = devices.resolve_precision(recipe.precision, device)
    recipe = replace(recipe, precision=precision, data_sha256=data.dataset.sha256)
    task = Task(data, recipe, device)

    run = outputs.Run.open(placement.run or f"runs/{recipe.fingerprint}", recipe)
    if finished := run.report():
        events.emit("finished", report=run.uri(outputs.REPORT))
        return finished

    info = NetworkInfo(
        recipe.depth, recipe.width, data.dataset.classes, data.mean, data.std, recipe.data_sha256
    )
    network = initialise(info, recipe.seed).to(device).to(memory_format=torch.channels_last)
    history = History()
    events.emit("train", run=run.uri(""), device=devices.describe(device), precision=precision)
    with events.Progress(recipe.epochs, len(task.batches)) as progress:
        learner = build_learner(network, task.batches, recipe, after_step=progress.advance)
        for epoch in range(recipe.epochs):
            record = train_epoch(learner, epoch)
            predictions = task.evaluate(network)
            record |= {"test_loss": predictions.loss, "accuracy": predictions.accuracy, "attempt": 1}
            record |= task.holdout_accuracy(network)
            history.add(record)
            run.write(outputs.HISTORY, history.encode())
            progress.epoch(record)

    predictions = task.evaluate(network)
    files = Files(
        run=run.uri(""),
        history=run.uri(outputs.HISTORY),
        weights=run.write(outputs.WEIGHTS, weights.save(network, info)),
        predictions=run.write(outputs.PREDICTIONS, outputs.encode_predictions(predictions)),
    )
    report = compose(recipe, data, network, history, predictions, files, device, started)
    run.write_report(report)
    return report


def initialise(info: NetworkInfo, seed: int) -> nn.Sequential:
    """Return the network with the weights that `seed` gives, the same for every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return info.build()
