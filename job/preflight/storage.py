"""Where the run is stored: credentials, conditional writes, the clock, and room on the disks."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from job.data.archive import CIFAR100_SOURCES, parse_source
from job.data.download import kept
from job.errors import MachineError, PermissionRefusedError
from job.preflight.check import NETWORK, Check, Finding, ok, warning
from job.recipe import Recipe
from job.run.manifests import KEPT
from job.settings import DEMO_DATA, DataSettings
from job.store import Store, local_path, service
from job.store.base import RefusedError, probe
from job.store.files import explain, scratch
from job.store.local import LocalStore

if TYPE_CHECKING:
    from job.store.s3 import S3Service

RUNS = "runs"
"""The folder of runs without --run."""

REFUSED_SKEW_SECONDS = 900.0
"""S3 answers RequestTimeTooSkewed if the clocks differ by more than 15 minutes."""

SKEW_SECONDS = 60.0
KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
A_ROLE = "Give the job a role, or keys that do not expire before the run ends"

DISK = "The file system does not answer: check its server, or use another disk"

FIXED = ("env", "shared-credentials-file", "config-file")
"""Sources of credentials that somebody has written; botocore renews those of other sources."""

MOUNTS = Path("/proc/self/mountinfo")
ONE_MACHINE = (
    "Let only one machine at a time work on the run, or use NFS 4, Lustre with -o flock, or a bucket"
)

_OCTAL = re.compile(r"\\([0-7]{3})")

MB = 10**6
UNPACKED = 1.1  # bytes for each of the archive: 186 MB for CIFAR-100's 169 MB
STATE_BYTES = 12  # for each parameter: weights and two moments in fp32
WEIGHTS_BYTES = 4


def checks(run: str | None, store: Store | None) -> list[Check]:
    """Return the checks of the run's store, in order; `store` is that of `run`, None without one."""
    path = local_path(run or RUNS)
    if store is None or path is not None:
        return [Check("store", lambda: check_folder(path or Path(RUNS)), DISK)]
    if store.uri.startswith("gs://"):  # its client renews the credentials, and its requests have no time
        return [Check("store", lambda: check_store(store), "Check the network and the machine's identity")]
    return [
        Check("credentials", lambda: check_credentials(service(store), datetime.now(UTC)), NETWORK),
        Check("store", lambda: check_store(store), NETWORK),
        Check("clock", lambda: check_clock(service(store)), NETWORK),
    ]


def space_check(recipe: Recipe, run: str | None, data: DataSettings) -> Check:
    """Return the check of the space on the disks."""
    return Check("disk", lambda: check_space(recipe, run, data), DISK)


def check_store(store: Store) -> Finding:
    """Check that the store can be written, read and honours conditional writes; raise what `probe` raises."""
    probe(store)
    text = f"{store.uri} can be read and written and honours conditional writes"
    found = service(store)
    if found:
        text += f"; {found.addressing} addressing, checksums {found.checksums}, at {found.endpoint}"
    return ok("store", text)


def check_folder(path: Path) -> Finding:
    """Check the same next to the run's folder, or in it if it exists, and leave nothing; raise JobError.

    A folder that may be shared with machines whose locks are not seen here is a warning.
    """
    existing = _existing(path)
    try:
        with scratch(existing) as work:
            probe(LocalStore(work))
    except OSError as error:
        raise explain(error, path) from error
    text = f"{path} can be read and written and honours conditional writes"
    if kind := file_system_with_local_locks(existing.resolve(), os.fsdecode(MOUNTS.read_bytes())):
        return warning(
            "store", f"{text} of this machine: its locks on {kind} may not reach others", ONE_MACHINE
        )
    return ok("store", text)


def file_system_with_local_locks(path: Path, mounts: str) -> str | None:
    """Return the kind of the file system at `path` if others that mount it may not see its locks, else None.

    `mounts` is as in proc_pid_mountinfo(5). NFS and Lustre name the way they lock in their options, FUSE not.
    """
    depth, kind, options = 0, "", ""
    for fields in (line.split(" ") for line in mounts.splitlines()):
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        if (
            path.is_relative_to(point) and len(point.parts) >= depth
        ):  # of several at one place the last is on top
            depth, (kind, _, options) = len(point.parts), fields[fields.index("-") + 1 :]
    found = set(options.split(","))
    nfs = kind.startswith("nfs") and bool(found & {"local_lock=all", "local_lock=flock"})
    lustre = kind == "lustre" and "localflock" in found
    return kind if nfs or lustre or kind.split(".")[0] == "fuse" else None


def check_credentials(service: S3Service | None, now: datetime) -> Finding:
    """Return the source of the credentials and when they expire; RefusedError without valid ones."""
    if service is None or service.credentials is None:
        raise RefusedError("there are no credentials for the store", KEYS)
    source, expires = f"from {service.credentials}", service.expires
    if not service.temporary:
        return ok("credentials", f"{source}, which do not expire")
    if expires is None and service.credentials not in FIXED:
        return ok("credentials", f"{source}, renewed when they expire")
    if expires is None:
        return warning("credentials", f"{source}, temporary, without a stated expiry", A_ROLE)
    until = f"{expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if service.credentials not in FIXED:
        return ok("credentials", f"{source}, valid until {until} and then renewed")
    if expires <= now:
        raise RefusedError(f"the credentials {source} expired at {until}", "Renew them")
    return warning("credentials", f"{source}, valid until {until}, and nothing renews them", A_ROLE)


def check_clock(service: S3Service | None) -> Finding:
    """Compare this machine's clock with the store's; MachineError where S3 would refuse requests."""
    ahead = service.clock_ahead_seconds if service else None
    if ahead is None:
        return ok("clock", "the store states no time")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's"
    if abs(ahead) > REFUSED_SKEW_SECONDS:
        raise MachineError(f"this machine's clock is {text}, and S3 refuses 15 minutes", "Set the clock")
    if abs(ahead) > SKEW_SECONDS:
        return warning("clock", text, "Set the clock: S3 refuses a difference of 15 minutes")
    return ok("clock", text)


def check_space(recipe: Recipe, run: str | None, data: DataSettings) -> Finding:
    """Compare the space that the run will need with what is free on each disk.

    Counted is what is known beforehand and not there yet: a download of unknown size is checked when it
    starts. Raises MachineError, and PermissionRefusedError for a cache that cannot be written.
    """
    cache = Path(data.cache)
    folder = _existing(cache)
    if not os.access(folder, os.W_OK, effective_ids=True):
        raise PermissionRefusedError(
            f"{cache} cannot be written", "Give this user the right, or name another folder with --cache"
        )
    needs = [(folder, data_bytes(data.data, cache)), *_run_needs(recipe, run)]
    disks: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, needed in needs:
        disks[folder.stat().st_dev].append((folder, needed))
    return ok("disk", "; ".join(_compare(needs) for needs in disks.values()))


def _run_needs(recipe: Recipe, run: str | None) -> list[tuple[Path, int]]:
    path = local_path(run or RUNS)
    if path is None:
        return []
    there = sum(entry.size for entry in LocalStore(path).list("objects")) if run else 0
    return [(_existing(path), max(0, run_bytes(recipe) - there))]


def _compare(needs: Sequence[tuple[Path, int]]) -> str:
    """Return the free and the needed space of one disk as text; MachineError where too little is free."""
    folders = " and ".join(dict.fromkeys(str(folder) for folder, _ in needs))
    free, needed = shutil.disk_usage(needs[0][0]).free, sum(needed for _, needed in needs)
    text = f"{folders}: {free / MB:,.0f} MB free, {needed / MB:,.0f} MB will be needed"
    if needed > free:
        raise MachineError(
            f"no space left for the run in {text}", "Free some, or use another disk with --cache and --run"
        )
    return text


def data_bytes(sources: Sequence[str], cache: Path) -> int:
    """Return the bytes still to be downloaded and unpacked into `cache`; 0 where they are unknown."""
    if tuple(sources) == (DEMO_DATA,):
        return 0
    source = parse_source(sources[0]) if sources else CIFAR100_SOURCES[0]
    if not source.sha256 or not source.size:
        return 0
    download = 0 if kept(source.sha256, cache).exists() else source.size
    return download + (0 if (cache / source.sha256).exists() else round(source.size * UNPACKED))


def run_bytes(recipe: Recipe) -> int:
    """Return the bytes that a run's folder grows to, for 100 classes.

    They are the checkpoints that are kept, one more, the final weights and their published copy, and the
    weights of earlier phases. A mask of zeros has a byte a parameter.
    """
    state = STATE_BYTES + recipe.compresses
    return parameters(recipe) * ((KEPT + 1) * state + (1 + len(recipe.phases)) * WEIGHTS_BYTES)


def parameters(recipe: Recipe) -> int:
    """Return the number of the network's parameters, for 100 classes.

    By formula: on the meta device the network counts them itself, after 2 s of imports (torch 2.14.1).
    """
    blocks = (recipe.depth - 4) // 6
    inputs, total = 16, 3 * 16 * 9
    for group in range(3):
        outputs = 16 * recipe.width * 2**group
        for _ in range(blocks):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs**2
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs + 100 * inputs + 100


def _existing(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
