"""A run's network for other tools, checked: they must predict what PyTorch predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from job.errors import ConfigurationError
from job.network import onnx_model, weights
from job.run import layout
from job.store import open_store
from job.train.evaluate import BATCH_SIZE, predict, trained_on
from job.train.loader import Images, Normalisation

TIE = 1e-4
"""Two logits that are nearer than this are a tie, which rounding decides."""


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
    folder, name = weights.locate(uri, layout.WEIGHTS)
    store = open_store(folder)
    network, info = weights.load(store.get(name).data)
    data = onnx_model.encode(network, info)
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return OnnxExport(data, len(info.classes), None)
    dataset = trained_on(store, info, sources, Path(cache))
    host = torch.device("cpu")
    expected = predict(network, Images.of(dataset.test, host), Normalisation(info.mean, info.std, host))
    return OnnxExport(
        data, len(info.classes), compare(expected.logits, onnx_logits(data, dataset.test.images))
    )


def onnx_logits(model: bytes, images: NDArray[np.uint8]) -> Tensor:
    """Return onnxruntime's logits [N, classes] for `images` [N, 3, S, S], computed on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    starts = range(0, len(images), BATCH_SIZE)
    batches = [session.run(None, {"pixels": images[start : start + BATCH_SIZE]})[0] for start in starts]
    return torch.from_numpy(np.concatenate(batches))


def compare(pytorch: Tensor, onnx: Tensor) -> Comparison:
    """Compare logits [N, classes]; raise ConfigurationError where a prediction differs that is no tie."""
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
    wrong = [one for one in differences if not one.gap <= TIE]
    if wrong:
        first = wrong[0]
        raise ConfigurationError(
            f"onnxruntime predicts another class than PyTorch for {len(wrong)} of {len(ours)} test images "
            f"(image {first.image}: {first.onnx}, not {first.pytorch}, whose logit is {first.gap:.1g} more)",
            "Try another version of onnxruntime",
        )
    return Comparison(len(ours), float((pytorch - onnx).abs().max()), differences)
