"""Random generators as pure functions of (seed, epoch, step), so that no random state is ever stored."""

from __future__ import annotations

import hashlib

import torch

EPOCH = -1
"""The step number under which an epoch draws what it draws once."""


def generator(device: torch.device, seed: int, epoch: int, step: int) -> torch.Generator:
    """Return the generator of one step (or, with step `EPOCH`, of the epoch itself) on `device`."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
