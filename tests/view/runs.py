"""Runs as they are in a store, written without training: 600 epochs in a tenth of a second."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from job.data.cifar import CIFAR100_SHA256
from job.recipe import Recipe
from job.run import claims, layout, records
from job.run.outputs import Run
from job.run.records import Beat, Claim, End, Worker
from job.run.report import SCHEMA, Accuracy, BestEpoch, Report
from job.store import Store
from job.view.stored_run import StoredRun

FIXTURES = Path(__file__).parents[1] / "run" / "fixtures"
COMPACT, DENSE = FIXTURES / "compact-report.json", FIXTURES / "dense-report.json"
START = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)

SUPERCLASSES = [
    *("aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables", "reptiles", "trees"),
    *("household electrical devices", "household furniture", "insects", "large carnivores", "people"),
    *("large man-made outdoor things", "large natural outdoor scenes", "large omnivores and herbivores"),
    *("medium-sized mammals", "non-insect invertebrates", "small mammals", "vehicles 1", "vehicles 2"),
]

RULES = {
    "parameters": 9693108,
    "operations": {"conv": {"multiplications": 1384562688, "additions": 1383342080, "counted": 2075623424}},
    "total": 2075976028,
    "parameter_term": 0.26556,
    "operation_term": 0.19790,
    "score": 0.46346508205335807,
}


WORKER = Worker(host="here", device="cpu", started="2026-01-02T03:04:05+00:00")


def beat(**changes: Any) -> Beat:
    """A heartbeat of now."""
    fields: dict[str, Any] = {
        "phase": "training", "epoch": 3, "epochs": 10, "step": 50, "steps_per_epoch": 100, "batch_size": 256,
        "accuracy": 0.25, "images_per_second": 1280.0, "unsaved_seconds": 4.0, "time": records.now(),
    }  # fmt: skip
    return Beat(**fields | changes)


def record(epoch: int, epochs: int, attempt: int, seed: int = 0) -> dict[str, Any]:
    """A line of history.jsonl as a real run's looks."""
    wobble = math.sin(12.9898 * (epoch + 977 * seed)) * 0.01
    share = epoch / epochs
    return {
        "epoch": epoch,
        "train_loss": 3.6 * math.exp(-3 * share) + 0.9 + wobble,
        "lr": 5e-3 * (0.5 + 0.5 * math.cos(math.pi * share)) + 2e-8,
        "momentum": 0.85 + 0.1 * share,
        "images_per_second": 810.0 + 900 * wobble,
        "test_loss": 3.4 * math.exp(-3 * share) + 0.75 - wobble,
        "accuracy": max(0.01, 0.805 * (1 - math.exp(-5 * share)) + wobble * (1 - share)),
        "attempt": attempt,
    }


def predictions(
    classes: Sequence[str], superclasses: Sequence[str], accuracy: float = 0.8, each: int = 100, seed: int = 0
) -> bytes:
    """A predictions.npz in which mistakes mostly stay in the superclass."""
    generator = np.random.default_rng(seed)
    label = np.tile(np.arange(len(classes)), each)
    near = label // 5 * 5 + generator.integers(0, 5, len(label))
    far = generator.integers(0, len(classes), len(label))
    wrong = np.where(generator.random(len(label)) < 0.6, np.minimum(near, len(classes) - 1), far)
    # Some classes are harder than others.
    threshold = accuracy + 0.15 * np.cos(label)
    prediction = np.where(generator.random(len(label)) < threshold, label, wrong)
    mistakes = np.flatnonzero(label != prediction)[:24]
    names: dict[str, Any] = {"classes": np.array(classes)} if classes else {}
    if superclasses:
        names["superclasses"] = np.array(superclasses)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        mistakes=mistakes,
        mistake_images=generator.integers(0, 256, (len(mistakes), 3, 32, 32), np.uint8),
        label=label,
        prediction=prediction,
        top_five=np.repeat(prediction[:, None], 5, 1),
        **names,
    )
    return buffer.getvalue()


def samples() -> bytes:
    """A PNG of noise, as large as a sheet of samples."""
    pixels = np.random.default_rng(0).integers(0, 256, (280, 316, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def altered(run: StoredRun, changes: dict[str, Any]) -> StoredRun:
    """The finished run with other values in its report, by their path: `{"data.sha256": "00"}`."""
    assert run.report
    content = run.report.to_json()
    for path, value in changes.items():
        *parts, last = path.split(".")
        section = content
        for part in parts:
            section = section[part]
        section[last] = value
    return replace(run, report=Report.parse(content, "report.json"))


def write_attempts(store: Store, kills: int, hours: float, finished: bool) -> list[dict[str, Any]]:
    """Write claims and heartbeats of `kills` vanished attempts and one more; return the lineage."""
    length = timedelta(hours=hours / (kills + 1))
    attempts = []
    for index in range(kills + 1):
        begin = START + index * (length + timedelta(minutes=25))
        last = index == kills
        stop = begin + length
        end = End(reason="finished", ended=stop.isoformat(), position=100)
        ending = end if last and finished else None
        worker = Worker(host=f"worker-{index}", device="NVIDIA H100 80GB HBM3", started=begin.isoformat())
        claims.save(store, Claim(generation=index + 1, owner="0" * 16, attempt=worker, resumed=0, end=ending))
        if not (last and finished):
            stop -= timedelta(seconds=4)
            seen = beat(epochs=600, unsaved_seconds=300.0 + index, time=stop.isoformat())
            store.put(layout.heartbeat(index + 1), seen.encode())
        attempts.append(
            {
                "generation": index + 1,
                "started": worker.started,
                "ended": stop.isoformat() if last else None,
                "reason": "finished" if last else "vanished",
                "host": worker.host,
                "device": worker.device,
            }
        )
    return attempts


def write_run(
    store: Store,
    *,
    epochs: int = 600,
    kills: int = 0,
    seed: int = 22,
    finished: bool = True,
    accuracy: float | None = None,
    classes: Sequence[str] | None = None,
    superclasses: Sequence[str] | None = None,
    run_id: str | None = None,
    compressed: bool = False,
    data_sha256: str = CIFAR100_SHA256,
) -> dict[str, Any]:
    """Write a run of the default recipe with `seed`; return its report ({} where it is not finished).

    That of a `compressed` run has the phases, accuracy and score of a sample report.
    """
    recipe = Recipe(seed=seed, precision="bf16", data_sha256=data_sha256)
    Run.open(store, recipe)
    attempts = write_attempts(store, kills, 10.7, finished)
    done = epochs if finished else epochs // 2
    parts = kills + 1
    history = [record(epoch, epochs, 1 + (epoch - 1) * parts // done, seed) for epoch in range(1, done + 1)]
    store.put("history.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in history))
    if not finished:
        return {}
    classes = (
        [f"{name} {index}" for name in SUPERCLASSES for index in range(5)] if classes is None else classes
    )
    superclasses = (
        [SUPERCLASSES[index // 5 % 20] for index in range(len(classes))]
        if superclasses is None
        else superclasses
    )
    answers = predictions(classes, superclasses, seed=seed)
    store.put("predictions.npz", answers)
    store.put("samples.png", samples())
    correct = round(10_000 * (history[-1]["accuracy"] if accuracy is None else accuracy))
    best = max(history, key=lambda line: float(line["accuracy"]))
    report = {
        "schema": SCHEMA,
        "run": {"id": run_id or recipe.fingerprint, "uri": store.uri},
        "model": {
            "name": "WideResNet-22-6",
            "widths": [96, 192, 384],
            "parameters": 9693108,
            "input_shape": [3, 32, 32],
        },
        "accuracy": Accuracy.of(
            correct, 10_000, BestEpoch(value=best["accuracy"], epoch=best["epoch"], selected_on="test")
        ).model_dump(),
        "score": {
            "writeup": RULES | {"score": 0.4634393},
            "leaderboard": RULES,
            "official": RULES | {"score": 0.330853},
        },
        "training": {
            "epochs": epochs,
            "cycles": "200@0.005,200@0.0005,200@0.0005",
            "batch_size": 256,
            "images_per_second": 810.3,
            "wall_seconds": 38520.0 + 1500 * kills,
            "device": "NVIDIA H100 80GB HBM3",
            "precision": "bf16",
            "deterministic": True,
            "history": f"{store.uri}/history.jsonl",
        },
        "data": {
            "source": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "sha256": data_sha256,
            "train": 50_000,
            "test": 10_000,
        },
        "weights": {
            "uri": f"{store.uri}/weights.safetensors",
            "sha256": hashlib.sha256(f"{seed}".encode()).hexdigest(),
        },
        "predictions": {
            "uri": f"{store.uri}/predictions.npz",
            "sha256": hashlib.sha256(answers).hexdigest(),
        },
        "lineage": {
            "attempts": attempts,
            "drift": [],
            "checkpoints": 642,
            "lost_seconds": sum(300.0 + index for index in range(kills)),
        },
        "environment": {
            "micronet": "0.1.0",
            "git": "5229080",
            "image": None,
            "python": "3.12.9",
            "torch": "2.14.1",
            "fastai": "2.8.12",
            "cuda": "13.0",
            "driver": "590.44",
        },
    }
    if compressed:
        sample = json.loads(COMPACT.read_text())
        report |= {name: sample[name] for name in ("phases", "accuracy", "score")}
    store.put("report.json", Report.parse(report, "report.json").encode())
    return report
