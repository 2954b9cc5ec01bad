"""The arithmetic of a training step up to its gradients: autocast, loss, fp16's loss scale, backward.

With `--graph` it is recorded once as a CUDA graph and launched as one. That is an option of how a step is
executed and no part of the recipe: a replay runs the recorded kernels on other numbers. The first step checks
that on its own batch, where algorithms are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from job.errors import ConfigurationError
from job.recipe import Recipe

WARM_UP = 3  # plain steps on a stream of their own before the recording, as PyTorch's documentation asks
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(nn.Module):
    """Run a network under autocast (bf16, fp16) or as it is (fp32); logits come out in float32."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self.dtype = REDUCED.get(precision)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, W] float32 to [N, classes] float32."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.network(images)
        return logits.float()


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of fp16's small gradients; for other precisions one that does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


class Gradients:
    """Puts the gradients of a batch's mean cross-entropy into the model's parameters, in place of the last.

    In fp16 they are those of the scaled loss, as `GradScaler.step` expects them.
    """

    def __init__(self, model: nn.Module, scaler: torch.amp.GradScaler) -> None:
        self.model, self.scaler = model, scaler
        self.parameters = list(model.parameters())

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images [N, 3, H, W] and soft targets [N, classes], detached, on their device."""
        self.clear()
        loss = F.cross_entropy(self.model(images), targets)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()  # without its autograd graph (16 MB, batches of 256)

    def clear(self) -> None:
        """Drop the gradients, so that the next ones are written and not added."""
        for parameter in self.parameters:
            parameter.grad = None


class GraphRecorder(Protocol):
    """What records a function's work on a device and repeats it; only its CUDA form needs a GPU."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run the function."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Record the function without running its work; return where each replay leaves its result."""

    def replay(self) -> None:
        """Do the recorded work again, reading and writing the memory that was recorded."""


class CudaRecorder:
    """A CUDA graph."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run the function on a stream of its own."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Capture the function; calls of other threads are neither captured nor refused."""
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        """Launch the graph."""
        self.graph.replay()


def check_graph(recipe: Recipe, device: torch.device) -> None:
    """Raise ConfigurationError where a step cannot be recorded."""
    if device.type != "cuda":
        raise ConfigurationError(
            f"--graph records CUDA graphs, and the device is {device.type}", "Leave --graph out"
        )
    if recipe.compile:
        raise ConfigurationError(
            "--graph records the plain step, and --compile replaces it", "Leave one of them out"
        )


class RecordedGradients:
    """`Gradients` that are recorded at the first batch and replayed from then on; all have one shape.

    Inputs, loss and gradients stay where they were recorded, so nobody else may drop a parameter's `grad`.
    The optimizer is not recorded: its fused step takes the momentum as a plain number, which a graph would
    freeze. The fp16 loss scale is a tensor, so it is recorded.
    """

    def __init__(self, gradients: Gradients, recorder: GraphRecorder) -> None:
        self.gradients, self.recorder = gradients, recorder
        self.images: Tensor | None = None

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, in memory that the next call overwrites."""
        if self.images is None:
            self._record(images, targets)
        else:
            self.images.copy_(images)
            self.targets.copy_(targets)
        self.recorder.replay()
        return self.loss

    def _record(self, images: Tensor, targets: Tensor) -> None:
        """Record the step on copies of a batch; the network's buffers end as they began."""
        buffers = list(self.gradients.model.buffers())
        kept = [buffer.clone() for buffer in buffers]  # batch norm's statistics
        inputs = self.images, self.targets = images.clone(), targets.clone()

        def warm_up() -> None:
            for _ in range(WARM_UP):
                self.gradients(*inputs)

        self.recorder.warm_up(warm_up)
        loss = self.gradients(*inputs)
        expected = [loss.clone(), *(gradient.clone() for gradient in self._results())]
        self.gradients.clear()
        self.loss = self.recorder.record(lambda: self.gradients(*inputs))
        self.recorder.replay()
        found = [self.loss, *self._results()]
        if torch.are_deterministic_algorithms_enabled() and not all(map(_same_bits, expected, found)):
            raise ConfigurationError(
                "the recorded step's gradients are not to the bit those of the plain step on this device",
                "Leave --graph out",
            )
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)

    def _results(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.gradients.parameters if parameter.grad is not None]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two float32 tensors have the same bits, also those of an overflow's NaN."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
