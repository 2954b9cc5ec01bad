"""Who owns a run: HEAD, its one mutable key, and the claims, one for each attempt."""

from __future__ import annotations

from dataclasses import dataclass

from job.errors import DataError, JobError
from job.run import documents, layout
from job.run.documents import NewerSchemaError
from job.run.records import Claim, Head, Manifest, Worker
from job.store.base import AbsentError, ConflictError, Store


@dataclass(frozen=True)
class Seen:
    """HEAD as read from the store. `head` is None if it is missing or unreadable, `version` if it is missing.

    `problem` is the reason why it is unreadable.
    """

    head: Head | None
    version: str | None
    problem: str | None = None


def read_head(store: Store) -> Seen:
    """Return HEAD as it is now, in whatever state; NewerSchemaError when a later program owns the run."""
    try:
        part = documents.fetch(store, layout.HEAD)
    except AbsentError:
        return Seen(None, None)
    try:
        return Seen(Head.decode(part.data, layout.HEAD), part.version)
    except DataError as error:
        return Seen(None, part.version, error.message)


def swap_head(store: Store, head: Head, version: str | None) -> str:
    """Replace HEAD if it still has `version` (None: if it does not exist); return the new version.

    Raises ConflictError where it has another.
    """
    data = head.encode()
    if version is None:
        return store.put_if_absent(layout.HEAD, data)
    return store.put_if_match(layout.HEAD, data, version)


def latest(store: Store) -> Manifest | None:
    """Return the manifest that HEAD names, None when it names none; DataError when either is unreadable.

    Claims nothing and checks no objects.
    """
    seen = read_head(store)
    if seen.problem:
        raise DataError(seen.problem)
    return Manifest.read(store, seen.head.manifest) if seen.head and seen.head.manifest else None


def take_next(store: Store, owner: str, worker: Worker) -> Claim:
    """Claim the generation after the largest of HEAD, claims and manifests."""
    seen = read_head(store).head
    orders = [layout.order_of(entry.key) for entry in store.list(layout.MANIFESTS)]
    largest = max(
        [seen.generation if seen else 0, *generations(store), *(order[0] for order in orders if order)]
    )
    while largest < layout.MAX_COUNT:
        claim = Claim(generation=largest + 1, owner=owner, attempt=worker)
        try:
            _take(store, claim)
        except ConflictError:
            largest += 1
        else:
            return claim
    raise DataError(f"{store.uri} has a claim of generation {largest}", "Choose another --run")


def save(store: Store, claim: Claim) -> None:
    """Write over what the claim's own attempt wrote before."""
    store.put(claim.key, claim.encode())


def generations(store: Store) -> list[int]:
    """Return the generations that have been claimed, in order."""
    found = (layout.generation_of(entry.key) for entry in store.list(layout.CLAIMS))
    return sorted(generation for generation in found if generation)


def find(store: Store, generation: int) -> Claim | None:
    """Return a claim, None where it cannot be read."""
    key = layout.claim(generation)
    try:
        claim = Claim.read(store, key)
    except (DataError, NewerSchemaError):
        return None
    return claim if claim.key == key else None


def is_taken(store: Store, generation: int, owner: str) -> bool:
    """Return whether an attempt of that owner took that generation of this run."""
    claim = find(store, generation)
    return claim is not None and claim.owner == owner


def last(store: Store) -> Claim | None:
    """Return the newest claim, None where there is none or it cannot be read. Reads no other."""
    taken = generations(store)
    return find(store, taken[-1]) if taken else None


def host(store: Store, generation: int) -> str:
    """Return the host that claimed `generation`, or that it is not known."""
    try:
        claim = find(store, generation)
    except JobError:  # it is for a message only
        claim = None
    return (claim.attempt.host if claim else None) or "an unknown host"


def _take(store: Store, claim: Claim) -> None:
    """Write it if nobody has claimed that generation yet, else ConflictError."""
    data = claim.encode()
    try:
        store.put_if_absent(claim.key, data)
    except ConflictError:
        if documents.fetch(store, claim.key).data != data:  # ours: the answer was lost
            raise
