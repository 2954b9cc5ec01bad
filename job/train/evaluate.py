"""The network's answers: in fp32 for a report, whatever the training precision was; TF32 is off."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from job.train.loader import Images, Normalisation
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
