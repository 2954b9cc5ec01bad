import io

import numpy as np
import torch
from torch import nn

from job.train.evaluate import BATCH_SIZE, MISTAKES, Predictions, predict
from job.train.loader import Images, Normalisation

UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"))


class Recorder(nn.Module):
    """Answers with the mean of each channel and remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool, torch.dtype]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(images), self.training, images.dtype))
        return images.mean((2, 3))


def test_every_image_is_seen_once_in_evaluation_mode_and_fp32() -> None:
    count = BATCH_SIZE + 7
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    network = Recorder().train()
    predictions = predict(network, Images(pixels, torch.arange(count)), UNIT)
    assert network.calls == [(BATCH_SIZE, False, torch.float32), (7, False, torch.float32)]
    assert network.training
    assert torch.allclose(predictions.logits, pixels.float().mean((2, 3)) / 255, atol=1e-5)


def test_accuracy_counts_whole_images() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    predictions = Predictions(torch.tensor([1, 1, 1]), logits)
    assert (predictions.correct, predictions.accuracy) == (2, 2 / 3)


def test_the_mistakes_of_the_largest_loss_are_kept_with_their_images() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, 9.0], [0.0, 3.0]])
    images = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    data = Predictions(torch.tensor([0, 0, 0, 0]), logits).encode(("a", "b"), (), images)
    with np.load(io.BytesIO(data)) as stored:
        assert stored["mistakes"].tolist() == [2, 3, 1]
        assert (stored["mistake_images"] == images[[2, 3, 1]]).all()


def test_few_mistakes_are_kept_of_many() -> None:
    labels = torch.zeros(500, dtype=torch.int64)
    images = np.zeros((500, 3, 32, 32), np.uint8)
    data = Predictions(labels, torch.tensor([[0.0, 1.0]]).repeat(500, 1)).encode((), (), images)
    with np.load(io.BytesIO(data)) as stored:
        assert stored["mistakes"].tolist() == list(range(MISTAKES))  # equal losses: the first images
