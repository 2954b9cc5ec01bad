"""The outputs of a finished run: weights, predictions, history, the report on them, page and model card."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import torch

from job import events
from job.data.dataset import PreparedData
from job.errors import DataError
from job.machine import device as devices
from job.machine.environment import environment
from job.phases import format_cycles
from job.run import layout
from job.run.manifests import Checkpoint
from job.run.outputs import History, Run
from job.run.records import Epoch
from job.run.report import (
    SCHEMA,
    Accuracy,
    Data,
    Environment,
    Lineage,
    Model,
    PhaseResult,
    Report,
    RunName,
    Score,
    Training,
)
from job.score.rules import score
from job.store import Store
from job.train import preview
from job.train.phases import Final
from job.view import card, page

NEEDED = set(layout.OUTPUTS) - {layout.SAMPLES}


def conclude(
    run: Run,
    data: PreparedData,
    final: Final,
    phases: list[PhaseResult],
    history: History,
    lineage: Lineage,
    device: torch.device,
) -> dict[str, bytes]:
    """Return the output files by name; the report is among them."""
    recipe, dataset, predictions = run.recipe, data.dataset, final.predictions
    files = {
        layout.WEIGHTS: final.data,
        layout.PREDICTIONS: predictions.encode(dataset.classes, dataset.superclasses, dataset.test.images),
        layout.HISTORY: history.encode(),
        layout.SAMPLES: preview.sheet(dataset.train, len(dataset.classes), recipe),
    }
    shape = dataset.train.images.shape[1:]
    images = (len(dataset.train) - recipe.holdout) // recipe.batch_size * recipe.batch_size
    times = durations(history.records, images, lineage.attempts[0].started)
    report = Report(
        schema=SCHEMA,
        run=RunName(id=run.identity, uri=run.store.uri),
        model=Model(
            name=f"WideResNet-{recipe.depth}-{recipe.width}",
            widths=[16 * recipe.width * 2**group for group in range(3)],
            parameters=sum(parameter.numel() for parameter in final.network.parameters()),
            input_shape=list(shape),
        ),
        accuracy=Accuracy.of(predictions.correct, len(predictions.labels), history.best()),
        score=Score.parse(score(final.network, shape).to_json(), "the score"),
        **({"phases": phases} if phases else {}),
        training=Training(
            epochs=recipe.epochs,
            cycles=format_cycles(recipe.all_cycles),
            batch_size=recipe.batch_size,
            **times,
            device=devices.describe(device),
            precision=recipe.precision,
            deterministic=recipe.deterministic,
            history=run.uri(layout.HISTORY),
        ),
        data=Data(
            source=data.source,
            sha256=dataset.sha256,
            train=len(dataset.train.labels),
            test=len(dataset.test.labels),
        ),
        weights=run.describe(layout.WEIGHTS, files[layout.WEIGHTS]),
        predictions=run.describe(layout.PREDICTIONS, files[layout.PREDICTIONS]),
        lineage=lineage,
        environment=_environment(),
    )
    return files | {layout.REPORT: report.encode()}


def durations(records: Sequence[Epoch], images: int, started: str | None) -> dict[str, float]:
    """Return the report's speed and times for epochs of `images` images; an unknown time is logged, left out.

    images_per_second and trained_seconds are of the training alone, by the clocks of those who trained;
    wall_seconds is since the first attempt's start, which another machine's clock may have stamped: it is not
    known where it is less than what was trained.
    """
    speed = statistics.harmonic_mean(record.images_per_second for record in records)
    trained = round(len(records) * images / speed, 1)
    times = {"images_per_second": round(speed, 1), "trained_seconds": trained}
    try:
        wall = (datetime.now(UTC) - datetime.fromisoformat(started or "")).total_seconds()
    except (TypeError, ValueError):  # unreadable, or without its time zone
        wall = -math.inf
    if wall >= trained:
        times["wall_seconds"] = round(wall, 1)
    else:
        events.warn("figure_left_out", figure="wall_seconds", first_attempt_started=started)
    return times


def finished_outputs(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the outputs that a finished run's checkpoint holds; DataError where it holds something else."""
    key, objects = checkpoint.manifest.key, checkpoint.objects
    missing, more = NEEDED - objects.keys(), objects.keys() - set(layout.OUTPUTS)
    if missing or more:
        raise DataError(f"{key} is marked finished; missing: {_names(missing)}; unexpected: {_names(more)}")
    Report.decode(objects[layout.REPORT], f"the report of {key}")
    return objects


def _names(objects: Iterable[str]) -> str:
    return ", ".join(sorted(objects)) or "none"


def published_report(run: Run) -> Report | None:
    """Return a finished run's report, else None; log which code made it and which is here."""
    report = Report.read(run.store)
    if report is None:
        return None
    made_by, here = report.environment, _environment()
    events.emit("finished", report=run.uri(layout.REPORT), made_by=made_by.code_name, here=here.code_name)
    if made_by.code not in (None, here.code):
        events.warn("code_changed", fix="Train it with this code in its own --run, if that matters")
    return report


def draw_page(store: Store) -> None:
    """Put the page and the model card of a finished run next to its report.

    A failure is logged, since the result is durable.
    """
    for name, publish, fix in (
        ("page", page.publish, f"Draw it with: micronet report {store.uri}"),
        ("card", card.publish, "The same command writes it again"),
    ):
        try:
            events.emit(name, uri=publish(store))
        except Exception as error:
            events.warn(f"{name}_failed", reason=str(error), fix=fix)


def _environment() -> Environment:
    return Environment.parse(environment(), "this environment")
