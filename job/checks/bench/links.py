"""A model of a step that several GPUs share, made from a step of one; several GPUs can check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

LINKS = {
    "PCIe 3.0 x16": 15.75e9,
    "PCIe 4.0 x16": 31.5e9,
    "PCIe 5.0 x16": 63.0e9,
    "NVLink, A100": 300e9,
}
"""Bytes a second that a GPU can send while it receives as many.

PCIe: 8, 16 and 32 GT/s on 16 lanes, 128 of 130 bits (PCI Express Base Specification 3.0, 4.0, 5.0).
NVLink: half of the 600 GB/s that NVIDIA's A100 datasheet gives for both directions.
"""

ATTAINED = 0.7
"""Assumed share of a link's bandwidth that is reached, by GPUs that need no host memory for it."""

COLLECTIVE_SECONDS = 30e-6
"""Assumed seconds from calling a collective to its first byte."""

BACKWARD = 2 / 3
"""Share of a shard's time that is its backward pass, which has twice the forward pass's operations.

Gradients can be exchanged meanwhile.
"""


class Modelled(TypedDict):
    """A step of `processes` GPUs, and how it compares with the median that was measured here with as many."""

    link: str
    processes: int
    exchange_seconds: float
    exposed_seconds: float
    images_per_second: float
    measured_to_modelled: float | None


def sent_bytes(size: int, processes: int) -> int:
    """Return what a process sends to the others for a bucket of `size` bytes: its slices, then its sum."""
    return 2 * size * (processes - 1) // processes


def modelled(
    step_seconds: float, images: int, shards: int, buckets: Sequence[int], processes: int
) -> list[Modelled]:
    """Return a row for each link: a step takes `step_seconds` / `processes` and what is not hidden.

    `step_seconds` are one GPU's for all `shards`. `buckets` are bytes in the order of their exchange: the
    last two, of the first layers and of the statistics, are complete when nothing is left to compute; the
    others are hidden as far as the last shard's backward pass lasts, as if their gradients came at its start.
    That each GPU makes the optimizer's step and draws the epoch's plan for itself is left out.
    """
    rows: list[Modelled] = []
    for link, rate in LINKS.items():
        taken = [sent_bytes(size, processes) / (ATTAINED * rate) + 2 * COLLECTIVE_SECONDS for size in buckets]
        exposed = sum(taken[-2:]) + max(0.0, sum(taken[:-2]) - BACKWARD * step_seconds / shards)
        rows.append(
            {
                "link": link,
                "processes": processes,
                "exchange_seconds": sum(taken),
                "exposed_seconds": exposed,
                "images_per_second": images / (step_seconds / processes + exposed),
                "measured_to_modelled": None,
            }
        )
    return rows
