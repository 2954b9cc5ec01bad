"""Evaluate a network: during its training, for its report, and from saved weights as the report's audit.

A report's figures are of fp32 with TF32 off, whatever the training's precision was.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from job.data.archive import CIFAR100_SOURCES, place
from job.data.cifar import Dataset
from job.data.dataset import prepare, recall
from job.errors import ConfigurationError
from job.machine import device as devices
from job.machine import faults
from job.network import weights
from job.network.weights import NetworkInfo
from job.run import layout
from job.run.outputs import read_weights
from job.run.report import Report
from job.settings import ATTENDED_RETRY_SECONDS, DEMO_DATA
from job.store import Store, local_path, open_store
from job.train.loader import DeviceData, Images, Normalisation
from job.train.step import Precision

BATCH_SIZE = 500  # fixed, since the batch's shape can change the bits; 20 batches for 10,000 images
MISTAKES = 24  # misclassified images kept in predictions.npz: 74 kB before compression


@dataclass(frozen=True)
class Predictions:
    """The network's answers to N labelled images, on the host."""

    labels: Tensor  # [N] int64
    logits: Tensor  # [N, classes] float32

    @property
    def correct(self) -> int:
        """Images whose highest logit is the label's."""
        return int((self.logits.argmax(1) == self.labels).sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(F.cross_entropy(self.logits, self.labels))

    @property
    def accuracy(self) -> float:
        """Share of correct images."""
        return self.correct / len(self.labels)

    def encode(self, classes: Sequence[str], superclasses: Sequence[str], images: NDArray[np.uint8]) -> bytes:
        """Return an npz of label [N], prediction [N] and top_five [N, 5] (best first), all int64.

        classes [C] and superclasses [C] ([0] where unknown), as text, name what the numbers mean. mistakes
        [M] are the indices of the misclassified images with the largest loss, at most MISTAKES and the
        largest first; mistake_images [M, 3, S, S] are those of `images` [N, 3, S, S].
        """
        mistakes = self._mistakes().numpy()
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            label=self.labels.numpy(),
            prediction=self.logits.argmax(1).numpy(),
            top_five=self.logits.topk(min(5, self.logits.shape[1])).indices.numpy(),
            classes=np.array(classes, np.str_),
            superclasses=np.array(superclasses, np.str_),
            mistakes=mistakes,
            mistake_images=images[mistakes],
        )
        return buffer.getvalue()

    def _mistakes(self) -> Tensor:
        losses = F.cross_entropy(self.logits, self.labels, reduction="none")
        wrong = (self.logits.argmax(1) != self.labels).nonzero().flatten()
        return wrong[losses[wrong].argsort(descending=True, stable=True)][:MISTAKES]


def predict(
    network: nn.Module,
    images: Images,
    normalise: Normalisation,
    precision: str = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run `network` in evaluation mode over all `images`; its mode is put back afterwards.

    `after_batch` is called for each of its batches.
    """
    training, model = network.training, Precision(network, precision)
    network.eval()
    try:
        with torch.inference_mode():
            logits = []
            for pixels in torch.split(images.pixels, BATCH_SIZE):
                logits.append(model(normalise(pixels.float().div_(255))))
                after_batch()
    finally:
        network.train(training)
    return Predictions(images.labels.cpu(), torch.cat(logits).cpu())


class Evaluator:
    """Evaluates a network while and after it is trained; `after_batch` is called for each batch."""

    def __init__(
        self, network: nn.Module, data: DeviceData, precision: str, after_batch: Callable[[], None]
    ) -> None:
        self.network, self.data, self.precision, self.after_batch = network, data, precision, after_batch

    def predictions(self, network: nn.Module) -> Predictions:
        """Return the answers of `network`, moved to the device, to the test images, in fp32."""
        network.to(self.data.batches.device).to(memory_format=torch.channels_last)
        return self._predict(network, self.data.test, "fp32")

    def figures(self) -> dict[str, float]:
        """Return {test_loss, accuracy} and, with a hold-out, its accuracy, in the training's own precision.

        To watch a run by: 10,000 images cost a fifteenth of an epoch's arithmetic, in fp32 a multiple.
        """
        test = self._predict(self.network, self.data.test, self.precision)
        figures = {"test_loss": test.loss, "accuracy": test.accuracy}
        if len(self.data.holdout):
            figures["holdout_accuracy"] = self._predict(
                self.network, self.data.holdout, self.precision
            ).accuracy
        return figures

    def _predict(self, network: nn.Module, images: Images, precision: str) -> Predictions:
        return predict(network, images, self.data.normalise, precision, self.after_batch)


@dataclass(frozen=True)
class Assessment:
    """The test accuracy of saved weights, with the names of `micronet evaluate --json`."""

    weights: str
    accuracy: float
    correct: int
    total: int


def assess(uri: str, sources: tuple[str, ...], cache: str, requested_device: str) -> Assessment:
    """Return the accuracy of saved weights on the test set of the data that they were trained on.

    `uri` is a run or a .safetensors file in one; the data is that of `trained_on`.
    """
    network, info = weights.load(read_weights(uri, ATTENDED_RETRY_SECONDS))
    device = devices.choose(requested_device)
    devices.configure(deterministic=True)
    dataset = trained_on(uri, info, sources, Path(cache))
    with faults.explained("Use --device cpu, or a device with more memory"):
        network.to(device).to(memory_format=torch.channels_last)
        test = Images.of(dataset.test, device)
        predictions = predict(network, test, Normalisation(info.mean, info.std, device))
    return Assessment(uri, predictions.accuracy, predictions.correct, len(predictions.labels))


def trained_on(uri: str, info: NetworkInfo, sources: Sequence[str], cache: Path) -> Dataset:
    """Return the data of the weights at `uri`: `sources`, or without any what the run's report names.

    Raises ConfigurationError when the data is another's, or cannot be found out.
    """
    if sources:
        dataset = prepare(sources, cache).dataset
    else:
        store = open_store(weights.locate(uri, layout.WEIGHTS)[0], ATTENDED_RETRY_SECONDS)
        source = _recorded_source(store, info.data_sha256)
        dataset = recall(info.data_sha256, source, cache, place(None, store.uri)).dataset
    if dataset.sha256 != info.data_sha256:
        raise ConfigurationError(
            f"the weights were trained on the data with SHA-256 {info.data_sha256}, this is {dataset.sha256}",
            "Name the run's own data with --data or --demo",
        )
    return dataset


def _recorded_source(store: Store, sha256: str) -> str:
    """Return where the run in `store` had its data from.

    A path of this machine is believed only of a run on this machine, not of whoever may write to a bucket.
    """
    fix = "Name it with --data"
    report = Report.read(store)
    if report is None:
        if sha256 == CIFAR100_SOURCES[0].sha256:
            return CIFAR100_SOURCES[0].uri
        raise ConfigurationError(f"{store.uri} has no report that names its data", fix)
    source = report.data.source
    if source != DEMO_DATA and local_path(source) is not None and local_path(store.uri) is None:
        raise ConfigurationError(f"the run's data is {source!r} on the machine that trained it", fix)
    return source
