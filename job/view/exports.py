"""A run's epochs for other tools: each export is made whole from the history, without gaps or repeats.

A run's history holds every epoch once, however often it was killed: a checkpoint holds it too.
"""

from __future__ import annotations

import csv as comma
import io
import re
from collections.abc import Sequence

from job.errors import ConfigurationError
from job.view.comparison import labels
from job.view.stored_run import StoredRun

COLUMNS = ("epoch", "train_loss", "test_loss", "accuracy", "holdout_accuracy", "lr", "momentum",
           "images_per_second", "attempt")  # fmt: skip

TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "accuracy": "accuracy/test",
    "holdout_accuracy": "accuracy/holdout",
    "lr": "schedule/learning_rate",
    "momentum": "schedule/momentum",
    "images_per_second": "images_per_second",
}

EVENT_FILE = "events.out.tfevents.0.micronet"
"""One name whenever it is written, so that a later export takes an earlier one's place."""


def csv(runs: Sequence[StoredRun]) -> bytes:
    """Return a line an epoch, the run's label and hash first; what was not measured in an epoch is empty."""
    text = io.StringIO()
    writer = comma.writer(text, lineterminator="\n")
    writer.writerow(["run", "id", *COLUMNS])
    for label, run in zip(labels(runs), runs, strict=True):
        about = [_no_formula(label), _no_formula(run.identity)]
        epochs = [record.to_json() for record in run.history]
        writer.writerows([*about, *(values.get(name, "") for name in COLUMNS)] for values in epochs)
    return text.getvalue().encode("utf-8", "backslashreplace")


def tensorboard(runs: Sequence[StoredRun]) -> dict[str, bytes]:
    """Return an event file for each run by its path, a folder for each.

    Raises ConfigurationError where the `tensorboard` package is not installed.
    """
    names = [re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-")[:100] or "run" for label in labels(runs)]
    folders = [
        name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, start=1)
    ]
    return {f"{folder}/{EVENT_FILE}": _events(run) for folder, run in zip(folders, runs, strict=True)}


def _no_formula(text: str) -> str:
    """Return `text` so that a spreadsheet does not take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _events(run: StoredRun) -> bytes:
    """Return TensorBoard's records; their wall time is 0, since the history knows no clock."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ConfigurationError(
            f"TensorBoard's package is not installed ({error})",
            "Install it: ./setup.sh install tensorboard",
        ) from error
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    for record in run.history:
        measured = record.to_json()
        values = [
            Summary.Value(tag=tag, simple_value=measured[name])
            for name, tag in TAGS.items()
            if name in measured
        ]
        writer.write(Event(step=record.epoch, summary=Summary(value=values)).SerializeToString())
    return buffer.getvalue()
