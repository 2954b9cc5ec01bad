"""Accuracy of saved weights: the audit of a report's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from job.data.archive import CIFAR100, place
from job.data.dataset import prepare, recall
from job.errors import ConfigurationError
from job.machine import device as devices
from job.machine import faults
from job.network import weights
from job.run import documents, layout
from job.settings import DEMO_DATA
from job.store import Store, local_path, open_store
from job.store.base import AbsentError
from job.train.evaluate import predict
from job.train.loader import Images, Normalisation
from job.view import evidence


def assess(uri: str, sources: tuple[str, ...], cache: str, requested_device: str) -> dict[str, Any]:
    """Return {weights, accuracy, correct, total} on the test set the weights' own data set has.

    `uri` is a run or a .safetensors file in one. Without `sources` the data is what the run's report names.
    Raises ConfigurationError when the data is another's, or cannot be found out.
    """
    folder, name = weights.locate(uri, layout.WEIGHTS)
    store = open_store(folder)
    network, info = weights.load(store.get(name).data)
    device = devices.choose(requested_device)
    devices.configure(deterministic=True)
    if sources:
        dataset = prepare(sources, Path(cache)).dataset
    else:
        source = _recorded_source(store, info.data_sha256)
        dataset = recall(info.data_sha256, source, Path(cache), place(None, store.uri)).dataset
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


def _recorded_source(store: Store, sha256: str) -> str:
    """Return where the run in `store` had its data from.

    A path of this machine is believed only of a run on this machine, not of whoever may write to a bucket.
    """
    fix = "Name it with --data"
    try:
        data = documents.fetch(store, layout.REPORT, evidence.MAX_BYTES).data
    except AbsentError as error:
        if sha256 == CIFAR100[0].sha256:
            return CIFAR100[0].uri
        raise ConfigurationError(f"{store.uri} has no report that names its data", fix) from error
    source = str(evidence.parse_report(data, f"{store.uri}/{layout.REPORT}")["data"]["source"])
    if source != DEMO_DATA and local_path(source) is not None and local_path(store.uri) is None:
        raise ConfigurationError(f"the run's data is {source!r} on the machine that trained it", fix)
    return source
