"""Run a copy of a model once and return the graph of what it did with the image."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from job.errors import DataError, JobError
from job.score.graph import Graph
from job.score.recorder import NOT_THE_MODEL, Recorder
from job.score.stored import plain_copy

FRAMES = 3
"""Frames of the user's own code that are named when it raises."""

IMPORTS = importlib.__file__


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Run a copy of `model`, in eval mode, on one image of zeros of `input_shape` and return its graph.

    What reads no activation is computed ahead of time and makes no operation. A constant that was only
    moved is still the stored values it was made of; one that was computed is a stored value of its own.
    The model is only read.

    Raises UsageError if the model cannot be copied, DataError if it does not run on such an image or if its
    result does not come from the image by torch's operators.
    """
    replica, stored = plain_copy(model)
    recorder = Recorder(stored)
    recorder.follow(replica)
    image = _image(replica, input_shape)
    recorder.begin(image)
    shape = ",".join(map(str, input_shape))
    try:
        with torch.no_grad(), recorder, _Functions(recorder):
            result = replica(image)
    except JobError:
        raise
    except Exception as error:
        if _is_of_the_counter(error):
            raise
        raise DataError(
            f"the model does not run on an image of {shape}: {described(error)}",
            "Give its shape with --input",
        ) from error
    graph = recorder.graph(result)
    if not graph.results:
        raise DataError(
            "the model's result does not come from its input by torch's operators, which alone are counted"
        )
    return graph


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return zeros [1, *shape] of the dtype and on the device of the model's first floating-point tensor."""
    tensors = [*model.parameters(), *model.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def described(error: BaseException) -> str:
    """Return in one line what a user's code raised and its last frames, the innermost first."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*NOT_THE_MODEL, IMPORTS, "<"))
    ]
    message = " ".join(str(error).split())
    places = ", called at ".join(reversed(frames[-FRAMES:]))
    return f"{type(error).__name__}: {message}" + (f", at {places}" if places else "")


def _is_of_the_counter(error: Exception) -> bool:
    """Return whether the counter raised `error`, rather than the model or an operator that it called."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    called = last.name in ("observe", "__torch_function__")  # an operator without Python frames of its own
    return last.filename.startswith(NOT_THE_MODEL[1]) and not called


class _Functions(TorchFunctionMode):
    """Records a call of attention as one operator, however many the kernel chosen for it consists of.

    That a function mode is active also keeps nn.MultiheadAttention and the transformer layers off their
    own fused kernels, which would hide what they compute. What they call inside is out of its sight: there
    attention is what the CPU runs, its one fused kernel or the steps one by one.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            operator = torch.ops.aten.scaled_dot_product_attention.default
            return self.recorder.observe(operator, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
