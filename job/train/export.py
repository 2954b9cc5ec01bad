"""A run's network for other tools, checked: they must predict what PyTorch predicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from job.errors import ConfigurationError
from job.network import onnx_model, weights
from job.run.outputs import read_weights
from job.settings import ATTENDED_RETRY_SECONDS
from job.train.evaluate import BATCH_SIZE, predict, trained_on
from job.train.loader import Images, Normalisation

TIE = 1e-4
"""Two logits that are nearer than this are a tie, which rounding decides."""

LAST_BITS = 2.0**-22  # of a number in fp32, which has 23 behind its first


@dataclass(frozen=True)
class Tie:
    """A test image that is predicted as two classes; PyTorch's logits of them are `gap` apart."""

    image: int
    pytorch: int
    onnx: int
    gap: float


@dataclass(frozen=True)
class Comparison:
    """How onnxruntime's answers to `images` test images differ from PyTorch's."""

    images: int
    largest_difference: float  # of a logit
    ties: list[Tie]


@dataclass(frozen=True)
class OnnxExport:
    """The file's content, and its check: None where onnxruntime is not installed."""

    data: bytes
    classes: int
    checked: Comparison | None


def export_onnx(uri: str, sources: Sequence[str], cache: str) -> OnnxExport:
    """Return the network of a run, or of a .safetensors file, as an ONNX file, checked on its test images.

    The data is found as `evaluate.assess` finds it, and only where there is something to check it with.
    Raises ConfigurationError where a package is missing, or a prediction differs that is no tie.
    """
    network, info = weights.load(read_weights(uri, ATTENDED_RETRY_SECONDS))
    data = onnx_model.encode(network, info)
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return OnnxExport(data, len(info.classes), None)
    dataset = trained_on(uri, info, sources, Path(cache))
    host = torch.device("cpu")
    test, normalise = Images.of(dataset.test, host), Normalisation(info.mean, info.std, host)
    expected = predict(network, test, normalise).logits

    def sensitivity() -> float:
        moved = predict(perturbed(network), test, normalise).logits
        return float((moved - expected).abs().max())

    checked = compare(expected, onnx_logits(data, dataset.test.images), sensitivity)
    return OnnxExport(data, len(info.classes), checked)


def onnx_logits(model: bytes, images: NDArray[np.uint8]) -> Tensor:
    """Return onnxruntime's logits [N, classes] for `images` [N, 3, S, S], computed on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    starts = range(0, len(images), BATCH_SIZE)
    batches = [session.run(None, {"pixels": images[start : start + BATCH_SIZE]})[0] for start in starts]
    return torch.from_numpy(np.concatenate(batches))


def perturbed(network: nn.Module) -> nn.Module:
    """Return a copy of `network` in which the last bits of the batch norms' weights are others.

    Simulates a different summation order.
    """
    moved = copy.deepcopy(network)
    with torch.no_grad():
        for module in moved.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::2].mul_(1 + LAST_BITS)
                module.weight[1::2].mul_(1 - LAST_BITS)
    return moved


def compare(pytorch: Tensor, onnx: Tensor, sensitivity: Callable[[], float]) -> Comparison:
    """Compare logits [N, classes]; raise ConfigurationError where a prediction differs that is no tie.

    `sensitivity` returns how far PyTorch's own logits move when the last bits inside the network do. In a
    quantised one that is more than TIE, since a value at the edge between two levels becomes the other one.
    """
    ours, theirs = pytorch.argmax(1), onnx.argmax(1)
    different = (ours != theirs).nonzero().flatten()
    differences = [
        Tie(
            image=image,
            pytorch=int(ours[image]),
            onnx=int(theirs[image]),
            gap=float(pytorch[image, ours[image]] - pytorch[image, theirs[image]]),
        )
        for image in different.tolist()
    ]
    limit = TIE
    if any(not one.gap <= TIE for one in differences):
        limit = max(TIE, 2 * sensitivity())
    wrong = [one for one in differences if not one.gap <= limit]
    if wrong:
        first = wrong[0]
        raise ConfigurationError(
            f"onnxruntime predicts another class than PyTorch for {len(wrong)} of {len(ours)} test images "
            f"(image {first.image}: {first.onnx}, not {first.pytorch}, whose logit is {first.gap:.1g} more)",
            "Try another version of onnxruntime",
        )
    return Comparison(len(ours), float((pytorch - onnx).abs().max()), differences)
