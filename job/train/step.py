"""The arithmetic of a training step up to its gradients: autocast, loss, fp16's loss scale, backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        return loss.detach()  # without the graph that it hangs on (16 MB, batches of 256)

    def clear(self) -> None:
        """Drop the gradients, so that the next ones are written and not added."""
        for parameter in self.parameters:
            parameter.grad = None
