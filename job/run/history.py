"""What happened in each epoch, as the lines of `history.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from job.errors import ConfigurationError

Record = dict[str, Any]


class History:
    """One record an epoch.

    Each holds epoch (from 1), train_loss, lr and momentum of the last step, images_per_second of the training
    part, attempt; where `Recipe.evaluates` says so also test_loss, accuracy on the test set and, with a
    hold-out, holdout_accuracy.
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.records = list(records)

    def add(self, record: Record) -> None:
        """Append the next epoch's record; raise ConfigurationError when its loss is not finite."""
        losses = {name: record[name] for name in ("train_loss", "test_loss") if name in record}
        if not all(map(math.isfinite, losses.values())):
            last = len(self.records)
            raise ConfigurationError(
                f"the loss of epoch {record['epoch']} is not finite "
                f"({', '.join(f'{name} {loss}' for name, loss in losses.items())}); "
                + (f"epoch {last} was the last good one" if last else "no epoch was good"),
                "Lower the learning rate in --cycles, or use --precision fp32",
            )
        self.records.append(record)

    def best(self) -> dict[str, Any]:
        """Return the report's best epoch: {value: test accuracy, epoch, selected_on}; the first of equals."""
        evaluated = [record for record in self.records if "accuracy" in record]
        selected_on = "holdout" if "holdout_accuracy" in evaluated[0] else "test"
        key = "holdout_accuracy" if selected_on == "holdout" else "accuracy"
        best = max(evaluated, key=lambda record: (record[key], -record["epoch"]))
        return {"value": best["accuracy"], "epoch": best["epoch"], "selected_on": selected_on}

    def encode(self) -> bytes:
        """Return one JSON object a line."""
        return b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in self.records)
