"""The arithmetic of a training step: autocast around the network, and fp16's loss scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
