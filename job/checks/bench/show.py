"""The results of `micronet bench` for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def lines(results: dict[str, Any]) -> list[str]:
    """Return what was measured, a line a figure: median, extremes and number of rounds."""
    machine, settings = results["machine"], results["settings"]
    network = f"WideResNet-{settings['depth']}-{settings['width']}, batches of {settings['batch_size']}"
    compiled = ", compiled" if settings["compile"] else ", as a CUDA graph" if settings["graph"] else ""
    shown = [
        f"machine      {machine['device']}, torch {machine['torch']}",
        f"settings     {network}, {settings['precision']}{compiled}",
    ]
    for part in ("loop", "augmentation", "checkpoints", "determinism"):
        if part in results:
            shown += _rates(part, results[part])
            shown += [f"{'':<13}{line}" for line in NOTES.get(part, lambda values: [])(results[part])]
    for name, overhead in results.get("host", {}).get("overhead_seconds", {}).items():
        head = "host" if name == "job" else ""
        milliseconds = {key: value if key == "n" else _thousandfold(value) for key, value in overhead.items()}
        shown.append(f"{head:<13}{name:<12}{_with_mean(milliseconds)} ms a step, besides its operators")
    return shown


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else value * 1e3


def _cost(loop: dict[str, Any]) -> list[str]:
    cost = loop["cost_of_600_epochs"]
    priced = "" if cost is None else f", which costs {cost:,.2f}"
    return [f"600 epochs of CIFAR-100 take {loop['hours_of_600_epochs']:,.1f} h{priced}"]


def _blocked(saving: dict[str, Any]) -> list[str]:
    blocked, copy = saving["blocked_seconds"], saving["copy_seconds"]
    return [
        f"{'seconds lost':<20}{_with_mean(saving['lost_seconds'])} a checkpoint, by the steps meanwhile",
        f"the training thread is blocked for {blocked['median'] * 1e3:.0f} ms "
        f"({blocked['low'] * 1e3:.0f} to {blocked['high'] * 1e3:.0f}, n = {blocked['n']}), "
        f"the copy alone takes {copy['median'] * 1e3:.0f} ms",
    ]


NOTES: dict[str, Callable[[dict[str, Any]], list[str]]] = {"loop": _cost, "checkpoints": _blocked}


def _rates(part: str, values: dict[str, Any]) -> list[str]:
    shown: list[str] = []
    for name, rate in values["images_per_second"].items():
        shown.append(f"{part if not shown else '':<13}{name:<12}{_spread(rate, ',.0f')} images/s")
    for name, compared in values.items():
        if "_to_" in name:
            shown.append(f"{'':<13}{name.replace('_to_', ' / '):<20}{_with_mean(compared)}")
    return shown


def _with_mean(values: dict[str, Any]) -> str:
    half = values["half_width"]
    interval = "" if half is None else f", mean {values['mean']:.3f} ± {half:.3f} (95 %)"
    return _spread(values, ".3f") + interval


def _spread(values: dict[str, Any], form: str) -> str:
    median, low, high = (format(values[name], form) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high}, n = {values['n']})"
