"""The report of a finished run, put together from what it produced."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from job.data.dataset import PreparedData
from job.score import report as reports
from job.score.rules import score
from job.settings import Recipe
from job.train import device as devices
from job.train.environment import environment
from job.train.evaluate import Predictions
from job.train.history import History


@dataclass(frozen=True)
class Files:
    """Where the outputs of a run are: its URI, and {uri, sha256} of weights and predictions."""

    run: str
    history: str
    weights: dict[str, str]
    predictions: dict[str, str]


def compose(
    recipe: Recipe,
    data: PreparedData,
    network: nn.Module,
    history: History,
    predictions: Predictions,
    files: Files,
    device: torch.device,
    started: datetime,
) -> dict[str, Any]:
    """Return the report (schema `micronet.score-report/1`) of a run that started at `started`."""
    ended = datetime.now(UTC)
    dataset = data.dataset
    shape = dataset.train.images.shape[1:]
    rates = [record["images_per_second"] for record in history.records]
    return {
        "schema": reports.SCHEMA,
        "run": {"id": recipe.fingerprint, "uri": files.run},
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
            "images_per_second": round(len(rates) / sum(1 / rate for rate in rates), 1),
            "wall_seconds": round((ended - started).total_seconds(), 1),
            "device": devices.describe(device),
            "precision": recipe.precision,
            "deterministic": recipe.deterministic,
            "history": files.history,
        },
        "data": {
            "source": data.source,
            "sha256": dataset.sha256,
            "train": len(dataset.train.labels),
            "test": len(dataset.test.labels),
        },
        "weights": files.weights,
        "predictions": files.predictions,
        "lineage": {
            "attempts": [
                {
                    "generation": 1,
                    "started": started.isoformat(),
                    "ended": ended.isoformat(),
                    "reason": "finished",
                    "host": socket.gethostname(),
                    "device": devices.describe(device),
                }
            ],
            "checkpoints": 0,
            "lost_seconds": 0,
        },
        "environment": environment(),
    }
