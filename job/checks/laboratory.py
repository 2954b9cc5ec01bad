"""Small runs below a throw-away prefix: their data, attempts and results, and how two runs differ."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from job import events
from job.checks.child import Child, Event, started
from job.data import demo
from job.data.pack import write_archive
from job.errors import DataError, JobError
from job.machine.preemption import Preemption
from job.run import layout
from job.run.documents import json_object
from job.run.records import Epoch
from job.run.report import Report
from job.store import Store, local_path, open_store

ARCHIVE = "data.tar.gz"
SEED = 2019
TRAIN_PER_CLASS, TEST_PER_CLASS = 1, 1  # of 100 classes; 0.6 MB
DEPTH, BATCH_SIZE = 10, 8  # 12 steps an epoch
CHECKPOINT_EVERY = "0.1s"
SHARDS = 4  # of a step that processes share, or as many as these; each shard has two images or more

COMPRESSED_EPOCHS = 3
"""Number of last epochs that prune, quantise and average statistics, one each."""

MEASURED = (
    "report.run",
    "report.lineage",
    "report.environment",
    "report.training.images_per_second",
    "report.training.trained_seconds",
    "report.training.wall_seconds",
    "report.training.history",
    "report.weights.uri",
    "report.predictions.uri",
    "report.phases[].weights.uri",
)
"""What may differ between two equal runs: place, time and speed."""

SHOWN = 5  # differences in one error
MEASURED_IN_EPOCH = ("images_per_second", "attempt")


@dataclass(frozen=True)
class Result:
    """A finished run's report and the records of its history, in the file's order."""

    report: Report
    history: list[Epoch]

    @classmethod
    def read(cls, store: Store) -> Result:
        """Read a run's published files; DataError where one is absent or not of the report's SHA-256."""
        report = Report.read(store)
        if report is None:
            raise DataError(f"{store.uri} has no report")
        for file, key in ((report.weights, layout.WEIGHTS), (report.predictions, layout.PREDICTIONS)):
            if hashlib.sha256(store.get(key).data).hexdigest() != file.sha256:
                raise DataError(f"{store.uri}/{key} does not have the SHA-256 that its report states")
        lines = store.get(layout.HISTORY).data.splitlines()
        return cls(report, [Epoch.parse(json_object(line, layout.HISTORY), layout.HISTORY) for line in lines])


def differences(reference: Result, other: Result) -> list[str]:
    """Return a line for each value, except those MEASURED, that differs between `reference` and `other`.

    A history that does not have each epoch once and in order is one line.
    """
    epochs = [record.epoch for record in other.history]
    if epochs != list(range(1, reference.report.training.epochs + 1)):
        return [f"the history has the epochs {epochs}"]
    mine, theirs = _values(reference), _values(other)
    return [
        f"{path} is {theirs.get(path, 'absent')!r} and not {mine.get(path, 'absent')!r}"
        for path in sorted(mine.keys() | theirs.keys())
        if (path in mine, mine.get(path)) != (path in theirs, theirs.get(path))
    ]


def require_same(reference: Result, other: Result, run: str) -> None:
    """Raise JobError with the first differences where two runs differ."""
    if found := differences(reference, other):
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise JobError(
            f"the run {run!r} differs from the undisturbed one: {'; '.join(found[:SHOWN])}{more}",
            "Run it again with the same --seed and --keep, and report it with the objects that are kept",
        )


def _values(result: Result) -> dict[str, object]:
    values = _flat("report", result.report.to_json())
    for record in result.history:
        kept = {name: value for name, value in record.to_json().items() if name not in MEASURED_IN_EPOCH}
        values |= _flat(f"epoch {record.epoch}", kept)
    return values


def _flat(path: str, value: object) -> dict[str, object]:
    """Return every plain value in `value` by its path."""
    if re.sub(r"\[\d+\]", "[]", path) in MEASURED:
        return {}
    if isinstance(value, dict):
        parts = [(f"{path}.{name}", part) for name, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    return {name: plain for part in parts for name, plain in _flat(*part).items()}


class Laboratory:
    """Starts attempts at runs of one recipe below `uri`, each with an empty cache, as on a new machine.

    `options` are those of `train` for the device, the precision and the width. An attempt's number of
    processes is drawn for the seed, of the powers of two up to `processes`, each as often as the others;
    `shared` counts the attempts by it.
    """

    def __init__(
        self,
        uri: str,
        folder: Path,
        epochs: int,
        options: Sequence[str],
        preemption: Preemption,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        self.uri, self.folder, self.epochs, self.preemption = uri, folder, epochs, preemption
        dense = epochs - COMPRESSED_EPOCHS  # at least 1
        half = dense // 2
        counts = [2**power for power in range(processes.bit_length())]
        shards = max(SHARDS, counts[-1]) if processes > 1 else 1
        self.options = (
            "--depth", str(DEPTH), "--batch-size", str(max(BATCH_SIZE, 2 * shards)), "--shards", str(shards),
            "--cycles", ",".join([f"{dense - half}@5e-3", *([f"{half}@5e-4"] if half else [])]),
            "--prune-cycles", "1@1e-3", "--quantise-cycles", "1@1e-3", *options,
            "--data", f"{uri}/{ARCHIVE}", "--checkpoint-every", CHECKPOINT_EVERY,
        )  # fmt: skip
        generator = np.random.default_rng(seed)
        self._counts = chain.from_iterable(generator.permutation(each).tolist() for each in repeat(counts))
        self.shared = Counter[int]()

    def store(self, run: str) -> Store:
        """Return the store of a run."""
        return open_store(f"{self.uri}/{run}")

    @contextmanager
    def attempt(self, run: str) -> Iterator[Child]:
        """Start an attempt at a run; it is killed at the end of the block."""
        cache, count = str(self.folder / str(self.shared.total())), next(self._counts)
        self.shared[count] += 1
        options = ["--run", f"{self.uri}/{run}", "--cache", cache, *self.options, "--processes", str(count)]
        with started(options, self.preemption) as child:
            yield child

    def finish(self, run: str) -> list[Event]:
        """Run an undisturbed attempt and return its events; raise JobError where it fails."""
        with self.attempt(run) as child:
            code = child.end()
        if code:
            raise JobError(f"an undisturbed attempt ended with {code}: {child.last_words()}")
        return child.events

    def result(self, run: str) -> Result:
        """Return the results of a finished run."""
        return Result.read(self.store(run))


@contextmanager
def laboratory(
    uri: str,
    epochs: int,
    options: Sequence[str],
    keep: bool,
    preemption: Preemption,
    processes: int = 1,
    seed: int = 0,
) -> Iterator[Laboratory]:
    """Make a laboratory in a new prefix below `uri`, which is removed afterwards unless `keep`."""
    home = open_store(uri).uri  # absolute
    prefix = f"{home}/selftest-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="micronet-selftest-") as folder:
        try:
            archive = Path(folder, ARCHIVE)
            write_data(archive)
            open_store(prefix).put(ARCHIVE, archive)
            yield Laboratory(prefix, Path(folder), epochs, options, preemption, processes, seed)
        finally:
            if keep:
                events.emit("kept", prefix=prefix)
            else:
                _remove(prefix)


def write_data(archive: Path) -> None:
    """Write a data set of 100 training and 100 test images, one of each class."""
    generator = np.random.default_rng(SEED)
    train, test = demo.generate(TRAIN_PER_CLASS, generator), demo.generate(TEST_PER_CLASS, generator)
    coarse = [shape for shape in demo.SHAPES for _ in demo.HUES]
    classes = [f"{hue} {shape}" for shape in demo.SHAPES for hue in demo.HUES]
    write_archive(archive, train, test, classes, coarse)


def _remove(prefix: str) -> None:
    path = local_path(prefix)
    if path is not None:
        shutil.rmtree(path)
        return
    store = open_store(prefix)
    while entries := store.list():  # again, since a request of a killed process may arrive late
        for entry in entries:
            store.delete(entry.key)
