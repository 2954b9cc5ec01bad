"""All preconditions of a run: `micronet doctor` reports each in seconds, `train` stops at a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from job import events
from job.data.archive import CIFAR100_SOURCES, Source, all_failed, copy_of, parse_source
from job.data.download import kept
from job.data.remote import HTTP, size_of
from job.errors import DataError, JobError, MachineError
from job.machine import faults
from job.preflight import processes, storage
from job.preflight.check import NETWORK, OTHER_MACHINE, Check, Finding, failure, ok, warning
from job.recipe import Recipe
from job.settings import DEMO_DATA, DataSettings, Placement
from job.store import Store, local_path, open_store

if TYPE_CHECKING:
    import torch

NETWORK_SECONDS = 10.0
"""The timeout of the store's and the data's checks, each of about ten requests.

Round trips of 0.2 s make 2 s of those, and a busy machine took more than 3 s with the client's import.
"""

DEVICE_SECONDS = 60.0
"""The timeout of the device's checks; a first kernel loads a gigabyte of libraries from a disk."""

WEIGHTS_SECONDS = 60.0
"""The timeout of reading the weights that a recipe builds on, 40 MB each for the 2019 entry's network."""

RETRY_SECONDS = 1.0

FREE_MEMORY = "End the other programs on the GPU, or use another machine"


def examine(recipe: Recipe, placement: Placement, store_cache: str | None, count: int = 1) -> list[Finding]:
    """Return every finding, in the order of a `train` in `count` processes; raise UsageError."""
    store = open_store(placement.run, RETRY_SECONDS) if placement.run else None
    stored = _Background(storage.checks(placement.run, store), NETWORK_SECONDS)
    sources, cache = placement.data.data, Path(placement.data.cache)
    data_check = Check("data", lambda: check_data(sources, cache, store_cache), NETWORK)
    data = _Background([data_check], NETWORK_SECONDS)
    named = {"from": placement.pretrained.start, "teacher": placement.pretrained.teacher}
    given = _Background([_readable(name, uri) for name, uri in named.items() if uri], WEIGHTS_SECONDS)
    device = _check_device(recipe, placement.device.device, count)
    space = storage.space_check(recipe, placement.run, placement.data).finding()
    return [*device, *stored.findings(), space, *data.findings(), *given.findings()]


def _readable(name: str, uri: str) -> Check:
    """Return the check, called `name`, that the weights at `uri` can be used."""

    def read() -> Finding:
        from job.network import weights
        from job.run.outputs import read_weights  # imports torch, while the network's checks run

        info = weights.load(read_weights(uri, RETRY_SECONDS))[1]
        return ok(name, f"{uri}, WideResNet-{info.depth}-{info.width} of {len(info.classes)} classes")

    return Check(name, read, NETWORK)


def _check_device(recipe: Recipe, requested: str, count: int) -> list[Finding]:
    from job.machine import device as devices
    from job.preflight import gpu  # takes a second or two, while the network's checks run

    try:
        with faults.explained(FREE_MEMORY):
            device = devices.choose(requested)
    except Exception as error:
        return [failure("gpu", error)]
    checks = [
        *_basic_checks(device),
        Check("precision", lambda: gpu.check_precision(recipe.precision, device), OTHER_MACHINE),
    ]
    if recipe.compile:
        checks.append(Check("compile", lambda: gpu.check_compiler(device), OTHER_MACHINE))
    checks += processes.checks(recipe.shards, count, device.type)
    return _Background([_explained(check) for check in checks], DEVICE_SECONDS).findings()


def _basic_checks(device: torch.device) -> list[Check]:
    from job.preflight import gpu

    return [
        Check("gpu", lambda: gpu.check_device(device), OTHER_MACHINE),
        Check("kernel", lambda: gpu.check_work(device), OTHER_MACHINE),
    ]


def _explained(check: Check) -> Check:
    """Return the check with the JobErrors of `faults.explained` for what PyTorch raises about the device."""

    def run() -> Finding:
        with faults.explained(FREE_MEMORY):
            return check.run()

    return replace(check, run=run)


def check_device(device: torch.device) -> None:
    """Check the device; raise the first JobError, log warnings."""
    _require(*(_explained(check) for check in _basic_checks(device)))


def check_storage(recipe: Recipe, run: str | None, data: DataSettings, store: Store | None) -> None:
    """Check the store and the disks; raise the first JobError, log warnings.

    `store` is the run's own, so that its requests find out about its service only once; None for a run
    without --run. A store that does not answer is retried as in any other call. The data is not checked:
    fetching it comes next.
    """
    _require(*storage.checks(run, store), storage.space_check(recipe, run, data))


def _require(*checks: Check) -> None:
    for each in checks:
        finding = each.run()
        if finding.status == "warning":
            events.warn("preflight", check=finding.name, reason=finding.text, fix=finding.fix)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of the first failure that another machine has too, else of the first, else 0.

    So a scheduler does not retry (74) a job that is also refused (77) or misconfigured (78).
    """
    codes = [finding.exit_code for finding in findings if finding.status == "failed"]
    return next((code for code in codes if code != MachineError.exit_code), codes[0] if codes else 0)


def check_data(sources: Sequence[str], cache: Path, store_cache: str | None) -> Finding:
    """Check where the archive would come from; raise what `archive.fetch` would when no source answers.

    Nothing of it is downloaded. A source that fails before another that answers is a warning.
    """
    if tuple(sources) == (DEMO_DATA,):
        return ok("data", "generated here")
    failures: list[JobError] = []
    for source in [parse_source(text) for text in sources] or CIFAR100_SOURCES:
        try:
            location = _locate(source, cache, store_cache)
        except JobError as error:
            error.message = f"{source}: {error.message}"
            failures.append(error)
            continue
        if failures:
            reasons = "; ".join(error.message for error in failures)
            return warning("data", f"{location}; before it {reasons}", "Check the sources in --data")
        return ok("data", location)
    raise failures[0] if len(failures) == 1 else all_failed(failures)


def _locate(source: Source, cache: Path, store_cache: str | None) -> str:
    path = local_path(source.uri)
    if path is not None:
        if not path.is_file():
            raise DataError("there is no such file", "Name another with --data")
        return f"{path}, a file here"
    if source.sha256 and kept(source.sha256, cache).exists():
        return f"{source} is in {cache}"
    if store_cache and source.sha256 and source.uri.startswith(HTTP):
        copy = copy_of(source.sha256, store_cache)
        try:
            size_of(copy)
        except JobError:
            pass  # a run asks its source then
        else:
            return f"{source} is in {copy}"
    size = size_of(source.uri)
    return f"{source} answers" + (f", {size:,} bytes" if size is not None else "")


class _Background:
    """Runs checks, one after the other, in a thread that is abandoned at the timeout."""

    def __init__(self, checks: Sequence[Check], seconds: float) -> None:
        self._checks, self._seconds = checks, seconds
        self._deadline = time.monotonic() + seconds
        self._findings: list[Finding] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def findings(self) -> list[Finding]:
        """Wait and return the findings; a check that hangs has failed, and those after it are left out."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        waits = self._thread.is_alive()
        findings = list(self._findings)
        if waits and len(findings) < len(self._checks):
            check = self._checks[len(findings)]
            findings.append(
                failure(check.name, MachineError(f"no answer within {self._seconds:g} s", check.late))
            )
        return findings

    def _run(self) -> None:
        for check in self._checks:
            self._findings.append(check.finding())
