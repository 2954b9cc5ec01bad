"""What the first hour on a GPU is predicted to show, to be read next to what it shows.

Written before any of it had run on a GPU, from the step's 2.127 TFLOP and 11.5 GB (k = 6, batches of 256,
bf16) at an H100's rates. What is promised of bits and exit codes holds on every device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """A figure, `PART.key.key` of a stage's results, and the range it should lie in."""

    figure: str
    low: float
    high: float
    everywhere: bool = False  # not only on an H100


def exactly(figure: str, value: float) -> Prediction:
    """Return the prediction of a value that no device may change."""
    return Prediction(figure, value, value, everywhere=True)


RATE = "loop.images_per_second.job.median"
PREDICTIONS = {
    "doctor": [exactly("doctor.exit_code", 0)],
    "smoke": [
        exactly("smoke.same_bits", True),
        Prediction("smoke.fp32.gradient_error", 0, 1e-3, everywhere=True),
        Prediction("smoke.fp16.gradient_error", 0, 0.1),
        Prediction("smoke.bf16.gradient_error", 0, 0.5),
    ],
    "demo": [
        exactly("stopped.exit_code", 75),
        Prediction("stopped.accuracy", 0.95, 1.0),
        Prediction("stopped.first_step.after_seconds", 4, 15),
    ],
    "bench": [
        Prediction(f"bench.{RATE}", 18_000, 26_000),
        Prediction("bench.loop.job_to_bare.mean", 0.93, 1.01),
        Prediction("bench.loop.hours_of_600_epochs", 0.32, 0.47),
        Prediction("bench.host.overhead_seconds.job.median", 0, 0.2e-3),
        Prediction("bench.determinism.on_to_off.mean", 0.75, 0.95),
        Prediction("bench.checkpoints.blocked_seconds.median", 0.005, 0.060),
        Prediction("job.operations_per_second", 600e12, 800e12),
        Prediction("job.bytes_per_second", 2.5e12, 3.1e12),
        Prediction("job.roofline_images_per_second", 38_000, 48_000),
        exactly("job.reads", 0),
    ],
    "variants": [
        Prediction(f"graph.{RATE}", 18_000, 27_300),
        Prediction(f"fp16.{RATE}", 18_000, 26_000),
        Prediction(f"compile.{RATE}", 23_000, 34_000),
        Prediction(f"batch512.{RATE}", 19_000, 28_000),
    ],
    "parallel": [
        Prediction("bench.parallel.shards_to_one.4.mean", 0.7, 0.97),
        Prediction("bench.parallel.processes_to_one.2.mean", 1.8, 2.0),
        Prediction("bench.parallel.processes_to_one.4.mean", 3.3, 3.95),
        Prediction("bench.parallel.sent_bytes.2", 38.7e6, 39.2e6),
    ],
    "fashion": [Prediction("seeds.mean_accuracy", 0.875, 0.897)],
    "epoch": [Prediction("seeds.median_images_per_second", 15_000, 26_000)],
    "profile": [
        Prediction("profiler.device_ms", 8, 14),
        Prediction("profiler.host_ms", 4, 10),
    ],
}


def find(results: dict[str, Any], figure: str) -> float | None:
    """Return a figure of the results, None where it is missing."""
    value: Any = results
    for key in figure.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value if isinstance(value, int | float) else None


def compare(predictions: list[Prediction], results: dict[str, Any], gpu: str) -> list[dict[str, Any]]:
    """Return each prediction with its result and whether it held, None where this device cannot say."""
    compared = []
    for prediction in predictions:
        value = find(results, prediction.figure)
        known = value is not None and (prediction.everywhere or "H100" in gpu)
        held = prediction.low <= value <= prediction.high if known and value is not None else None
        compared.append({**asdict(prediction), "result": value, "held": held})
    return compared


def line(stage: str, code: int, seconds: float, compared: list[dict[str, Any]]) -> str:
    """Return what a stage found in one line."""
    verdicts = {True: "", False: " (!)", None: " (not for this device)"}
    figures = []
    for each in compared:
        result, low, high = (_short(each[name]) for name in ("result", "low", "high"))
        verdict = " (not measured)" if each["result"] is None else verdicts[each["held"]]
        figures.append(f"{each['figure']} {result}, predicted {low} to {high}{verdict}")
    outcome = "ok" if code == 0 else f"failed with {code}"
    return f"{stage}: {outcome} in {seconds:.0f} s" + "".join(f"; {figure}" for figure in figures)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
