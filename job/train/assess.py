"""Accuracy of saved weights: the audit of a report's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from job.data.dataset import prepare
from job.errors import ConfigurationError
from job.machine import device as devices
from job.machine import faults
from job.network import weights
from job.run import layout
from job.store import open_store
from job.train.evaluate import predict
from job.train.loader import Images, Normalisation


def assess(uri: str, sources: tuple[str, ...], cache: str, requested_device: str) -> dict[str, Any]:
    """Return {weights, accuracy, correct, total} on the test set the weights' own data set has.

    `uri` is a run or a .safetensors file. Raises ConfigurationError when the data is another's.
    """
    folder, name = weights.locate(uri, layout.WEIGHTS)
    network, info = weights.load(open_store(folder).get(name).data)
    device = devices.choose(requested_device)
    devices.configure(deterministic=True)
    dataset = prepare(sources, Path(cache)).dataset
    if dataset.sha256 != info.data_sha256:
        raise ConfigurationError(
            f"the weights were trained on the data with SHA-256 {info.data_sha256}, this is {dataset.sha256}",
            "Name the run's own data with --data or --demo",
        )
    with faults.explained("Use --device cpu, or a device with more memory"):
        network.to(device).to(memory_format=torch.channels_last)
        test = Images.of(dataset.test, device)
        predictions = predict(network, test, Normalisation(info.mean, info.std, device))
    return {
        "weights": uri,
        "accuracy": predictions.accuracy,
        "correct": predictions.correct,
        "total": len(predictions.labels),
    }
