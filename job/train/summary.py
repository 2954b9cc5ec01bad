"""The outputs of a finished run: weights, predictions, history, and the report that speaks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from job import events
from job.data.dataset import PreparedData
from job.machine import device as devices
from job.machine.environment import environment
from job.network import weights
from job.network.weights import NetworkInfo
from job.run import layout
from job.run.outputs import History, Run
from job.run.records import Epoch
from job.score import report as reports
from job.score.rules import score
from job.settings import Recipe
from job.train import preview
from job.train.evaluate import Predictions


def conclude(
    run: Run,
    recipe: Recipe,
    data: PreparedData,
    info: NetworkInfo,
    network: nn.Module,
    history: History,
    predictions: Predictions,
    lineage: dict[str, Any],
    device: torch.device,
) -> dict[str, bytes]:
    """Return the output files by name; the report (schema `micronet.score-report/1`) is among them."""
    dataset = data.dataset
    files = {
        layout.WEIGHTS: weights.save(network, info),
        layout.PREDICTIONS: predictions.encode(dataset.classes, dataset.superclasses, dataset.test.images),
        layout.HISTORY: history.encode(),
        layout.SAMPLES: preview.sheet(dataset.train, len(dataset.classes), recipe),
    }
    shape = dataset.train.images.shape[1:]
    images = (len(dataset.train) - recipe.holdout) // recipe.batch_size * recipe.batch_size
    times = durations(history.records, images, lineage["attempts"][0]["started"])
    report = {
        "schema": reports.SCHEMA,
        "run": {"id": run.identity, "uri": run.store.uri},
        "model": {
            "name": f"WideResNet-{recipe.depth}-{recipe.width}",
            "widths": [16 * recipe.width * 2**group for group in range(3)],
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "input_shape": list(shape),
        },
        "accuracy": reports.accuracy(predictions.correct, len(predictions.labels), history.best()),
        "score": score(network, shape).to_json(),
        "training": {
            "epochs": recipe.epochs,
            "cycles": ",".join(map(str, recipe.cycles)),
            "batch_size": recipe.batch_size,
            **times,
            "device": devices.describe(device),
            "precision": recipe.precision,
            "deterministic": recipe.deterministic,
            "history": run.uri(layout.HISTORY),
        },
        "data": {
            "source": data.source,
            "sha256": dataset.sha256,
            "train": len(dataset.train.labels),
            "test": len(dataset.test.labels),
        },
        "weights": run.describe(layout.WEIGHTS, files[layout.WEIGHTS]),
        "predictions": run.describe(layout.PREDICTIONS, files[layout.PREDICTIONS]),
        "lineage": lineage,
        "environment": environment(),
    }
    return files | {layout.REPORT: reports.encode(report)}


def durations(records: Sequence[Epoch], images: int, started: str | None) -> dict[str, float]:
    """Return the report's speed and times for epochs of `images` images; an unknown time is logged, left out.

    images_per_second and trained_seconds are of the training alone, by the clocks of those who trained;
    wall_seconds is since the first attempt's start, which another machine's clock may have stamped: it is not
    known where it is less than what was trained.
    """
    rates = [record.images_per_second for record in records]
    speed = len(rates) / sum(1 / rate for rate in rates) if all(rates) else 0.0
    times = {"images_per_second": round(speed, 1)}
    if speed:
        times["trained_seconds"] = round(len(rates) * images / speed, 1)
    try:
        wall = (datetime.now(UTC) - datetime.fromisoformat(started or "")).total_seconds()
    except (TypeError, ValueError):  # unreadable, or without its time zone
        wall = -math.inf
    if wall >= times.get("trained_seconds", 0.0):
        times["wall_seconds"] = round(wall, 1)
    else:
        events.warn("figure_left_out", figure="wall_seconds", first_attempt_started=started)
    return times
