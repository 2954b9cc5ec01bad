"""Random generators as pure functions of (seed, epoch), so that no random state is ever stored."""

from __future__ import annotations

import hashlib

import torch

RUN = -1
"""The epoch number under which a run draws what it draws once."""


def generator(device: torch.device, seed: int, epoch: int) -> torch.Generator:
    """Return the generator of one epoch (or, with `RUN`, of the run itself) on `device`."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
