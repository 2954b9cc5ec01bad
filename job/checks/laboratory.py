"""A throw-away prefix with a tiny data set and attempts at tiny runs."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from job import events
from job.checks.child import Child, Event, started
from job.checks.compare import Result
from job.data import demo
from job.data.pack import write_archive
from job.errors import JobError
from job.machine.preemption import Preemption
from job.store import Store, local_path, open_store

ARCHIVE = "data.tar.gz"
SEED = 2019
TRAIN_PER_CLASS, TEST_PER_CLASS = 2, 2  # of 100 classes; 1.2 MB
RECIPE = ("--depth", "10", "--batch-size", "16")  # 12 steps an epoch
CHECKPOINT_EVERY = "0.1s"


class Laboratory:
    """Starts attempts at runs of one recipe below `uri`, each with an empty cache, as on a new machine.

    `options` of `train` name the device, the precision and the width.
    """

    def __init__(
        self, uri: str, folder: Path, epochs: int, options: Sequence[str], preemption: Preemption
    ) -> None:
        self.uri, self.folder, self.epochs, self.preemption = uri, folder, epochs, preemption
        half = epochs // 2
        self.options = (
            *RECIPE, "--cycles", f"{epochs - half}@5e-3,{half}@5e-4", *options,
            "--data", f"{uri}/{ARCHIVE}", "--checkpoint-every", CHECKPOINT_EVERY,
        )  # fmt: skip
        self.attempts = 0

    def store(self, run: str) -> Store:
        """Return the store of a run."""
        return open_store(f"{self.uri}/{run}")

    def attempt(self, run: str) -> AbstractContextManager[Child]:
        """Start an attempt at a run that does not outlive the block."""
        self.attempts += 1
        cache = str(self.folder / str(self.attempts))
        return started(["--run", f"{self.uri}/{run}", "--cache", cache, *self.options], self.preemption)

    def finish(self, run: str) -> list[Event]:
        """Run an attempt that nothing disturbs and return its events; JobError where it fails."""
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
    uri: str, epochs: int, options: Sequence[str], keep: bool, preemption: Preemption
) -> Iterator[Laboratory]:
    """Make a laboratory in a new prefix below `uri`, which is removed in the end unless `keep`."""
    home = open_store(uri).uri  # absolute
    prefix = f"{home}/selftest-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="micronet-selftest-") as folder:
        try:
            archive = Path(folder, ARCHIVE)
            write_data(archive)
            open_store(prefix).put(ARCHIVE, archive)
            yield Laboratory(prefix, Path(folder), epochs, options, preemption)
        finally:
            if keep:
                events.emit("kept", prefix=prefix)
            else:
                _remove(prefix)


def write_data(archive: Path) -> None:
    """Write a data set of 200 training and 200 test images in 100 classes."""
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
