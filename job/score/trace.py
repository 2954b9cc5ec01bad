"""Run a copy of a model once and return the graph of what it executed."""

from __future__ import annotations

import copy
import importlib
import math
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

from job.errors import DataError, JobError, UsageError
from job.score.graph import Graph, InputQuantisation, Stored, dtype_bits
from job.score.recorder import NOT_THE_MODEL, Recorder

FRAMES = 3
"""Frames of the user's own code that are named when it raises."""

IMPORTS = importlib.__file__


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Run a copy of `model`, in eval mode, on one image of zeros of `input_shape` and return its graph.

    What reads no activation is computed ahead of time and makes no operation. A constant that was only
    moved is still the stored values it was made of; one that was computed is a stored value of its own.
    The model is only read.

    Raises UsageError if the model cannot be copied, DataError if no memory holds such an image, the model
    does not run on it, or its result does not come from the image by torch's operators.
    """
    replica, stored = plain_copy(model)
    recorder = Recorder(stored)
    recorder.follow(replica)
    shape = ",".join(map(str, input_shape))
    try:
        image = _image(replica, input_shape)
    except (RuntimeError, TypeError) as error:  # TypeError for a size beyond 64 bits
        raise DataError(
            f"an image of {shape} does not fit in memory", "Give a smaller one with --input"
        ) from error
    recorder.begin(image)
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


def plain_copy(model: nn.Module) -> tuple[nn.Module, dict[int, Stored]]:
    """Return a copy of `model`, in eval mode on the CPU, and by id of its tensors what is stored for each.

    In the copy pruned weights are only the weights, and tensors of a quantised subclass (`torchao` and the
    like) plain floating-point ones, so that it executes plain operators; what they store is described
    next to it. Tensors on the meta device stay there. `model` is only read.

    Raises UsageError if the model cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    # Tensors that are no parameters or buffers: deepcopy refuses those that autograd computed (the `weight`
    # that pruning leaves behind), and `to` would leave them where they are.
    loose = {
        id(value): _on_cpu(value.detach().clone())
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    }
    try:
        replica = copy.deepcopy(model, dict[int, Any](loose)).eval()
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise  # the device's fault and not the model's
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"the model cannot be copied, and the score never runs the live one: {error}",
            "Give a model that copy.deepcopy accepts",
        ) from error
    replica._apply(_on_cpu)
    _finish_pruning(replica)
    stored: dict[int, Stored] = {}
    for path, module in replica.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) in stored:
                    continue
                full_name = f"{path}.{name}".lstrip(".")
                plain, description = _plain(full_name, tensor)
                tensors[name] = plain
                stored[id(plain)] = description
    return replica, stored


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.cpu()


def _finish_pruning(model: nn.Module) -> None:
    """Put the pruned weight in the place of the weight and mask that it is computed from."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _plain(name: str, tensor: Tensor) -> tuple[Tensor, Stored]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or not hasattr(tensor, "dequantize") or type(tensor) in (Tensor, nn.Parameter):
        return tensor, Stored.of(name, tensor)
    parts: list[Tensor] = [getattr(tensor, part) for part in flatten()[0]]
    data = max(parts, key=Tensor.numel)
    # Several values may share a byte (int4), or a byte hold fewer levels than it could.
    bits = math.ceil(data.numel() * dtype_bits(data.dtype) / tensor.numel())
    target = getattr(tensor, "target_dtype", None)
    if isinstance(target, torch.dtype):
        bits = min(bits, dtype_bits(target))
    overhead = sum(
        part.numel() * dtype_bits(part.dtype)
        for part in parts
        if part is not data and part.count_nonzero()  # zero points that are all 0 need not be stored
    )
    plain = tensor.dequantize().detach()
    return plain, Stored(name, plain, bits, overhead, input_quantisation=_input_quantisation(tensor))


def _input_quantisation(tensor: Any) -> InputQuantisation | None:
    """Return how the layer of a torchao int8 weight quantises its input; None where it does not."""
    how = getattr(tensor, "act_quant_kwargs", None)
    if how is None or type(tensor).__name__ != "Int8Tensor":
        return None
    finds_scale = tensor.act_quant_scale is None
    return InputQuantisation(finds_scale, finds_scale and how.mapping_type.name == "ASYMMETRIC")


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
    message = " ".join(str(error).split()).rstrip(".")
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
