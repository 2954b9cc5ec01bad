"""The place where the run lives: who we are there, and what it can do."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import MachineError
from job.preflight.check import Check, Look, ok, warning
from job.store import Store, local_path, service
from job.store.base import RefusedError, probe
from job.store.files import explain, scratch
from job.store.local import LocalStore

if TYPE_CHECKING:
    from job.store.s3 import S3Service

RUNS = "runs"
"""The folder of the runs that are given no place."""

REFUSED_SKEW_SECONDS = 900.0
"""S3 answers RequestTimeTooSkewed beyond 15 minutes."""

SKEW_SECONDS = 60.0
KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
A_ROLE = "Give the job a role, or keys that do not end before the run does"


FIXED = ("env", "shared-credentials-file", "config-file")
"""Sources of credentials that hold what somebody has written there; botocore renews the others."""


def looks(run: str | None, store: Store | None) -> list[Look]:
    """Return what to look at where the run lives, in this order; `store` is that of `run`, if it has one."""
    path = local_path(run or RUNS)
    if store is None or path is not None:
        return [Look("store", lambda: check_folder(path or Path(RUNS)))]
    return [
        Look("credentials", lambda: check_credentials(service(store), datetime.now(UTC))),
        Look("store", lambda: check_store(store)),
        Look("clock", lambda: check_clock(service(store))),
    ]


def check_store(store: Store) -> Check:
    """Read and write there, and try conditional writes; raise what `probe` raises."""
    probe(store)
    text = f"{store.uri} can be read and written and honours conditional writes"
    found = service(store)
    if found:
        text += f"; {found.addressing} addressing, checksums {found.checksums}, at {found.endpoint}"
    return ok("store", text)


def check_folder(path: Path) -> Check:
    """Try the same beside the run, or in it when it is there, and leave nothing; raise JobError."""
    beside = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    try:
        with scratch(beside) as work:
            probe(LocalStore(work))
    except OSError as error:
        raise explain(error, path) from error
    return ok("store", f"{path} can be read and written and honours conditional writes")


def check_credentials(service: S3Service | None, now: datetime) -> Check:
    """Say whose they are and when they end; RefusedError where there are none or they have ended."""
    if service is None or service.credentials is None:
        raise RefusedError("there are no credentials for the store", KEYS)
    source, expires = f"from {service.credentials}", service.expires
    if not service.temporary:
        return ok("credentials", f"{source}, without an end")
    if expires is None and service.credentials not in FIXED:
        return ok("credentials", f"{source}, renewed when they end")
    if expires is None:
        return warning("credentials", f"{source}, temporary, and nothing says until when", A_ROLE)
    until = f"{expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if service.credentials not in FIXED:
        return ok("credentials", f"{source}, until {until} and then renewed")
    if expires <= now:
        raise RefusedError(f"the credentials {source} ended at {until}", "Renew them")
    return warning("credentials", f"{source}, until {until}, and nothing renews them", A_ROLE)


def check_clock(service: S3Service | None) -> Check:
    """Compare this machine's clock with the store's; MachineError where S3 would refuse it."""
    ahead = service.clock_ahead_seconds if service else None
    if ahead is None:
        return ok("clock", "the store states no time")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's"
    if abs(ahead) > REFUSED_SKEW_SECONDS:
        raise MachineError(f"this machine's clock is {text}, and S3 refuses 15 minutes", "Set the clock")
    if abs(ahead) > SKEW_SECONDS:
        return warning("clock", text, "Set the clock: S3 refuses 15 minutes")
    return ok("clock", text)
