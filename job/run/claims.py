"""Who took which generation of a run, and how that attempt ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from job.errors import DataError, JobError
from job.run import documents, head
from job.run.manifest import MANIFESTS, MAX_COUNT, OWNER, order_of
from job.store.base import ConflictError, Store

CLAIMS = "claims"
SCHEMA = "micronet.claim/1"


@dataclass(frozen=True)
class Claim:
    """One attempt: whose, what it says of itself, the position it went on from, and its end if it told.

    `resumed` is None until HEAD has been moved to it, `end` is {reason, ended, position}.
    """

    generation: int
    owner: str
    attempt: dict[str, Any]
    resumed: int | None = None
    end: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Where the claim lies."""
        return f"{CLAIMS}/{self.generation}"

    def save(self, store: Store) -> None:
        """Write over what its own attempt wrote before."""
        store.put(self.key, self._encode())

    def take(self, store: Store) -> None:
        """Write it if nobody has claimed that generation yet, else ConflictError."""
        data = self._encode()
        try:
            store.put_if_absent(self.key, data)
        except ConflictError:
            if documents.read(store, self.key).data != data:  # ours: the answer was lost
                raise

    def ended(self, reason: str, position: int) -> Claim:
        """Return it with its end, now."""
        return replace(self, end={"reason": reason, "ended": now(), "position": position})

    def _encode(self) -> bytes:
        return documents.encode(SCHEMA, asdict(self))


def take_next(store: Store, owner: str, attempt: dict[str, Any]) -> Claim:
    """Claim the generation after the largest of HEAD, claims and manifests."""
    seen = head.read(store).head
    orders = [order_of(entry.key) for entry in store.list(MANIFESTS)]
    largest = max(
        [seen.generation if seen else 0, *generations(store), *(order[0] for order in orders if order)]
    )
    while largest < MAX_COUNT:
        claim = Claim(largest + 1, owner, attempt)
        try:
            claim.take(store)
        except ConflictError:
            largest += 1
        else:
            return claim
    raise DataError(f"{store.uri} has a claim of generation {largest}", "Choose another --run")


def generations(store: Store) -> list[int]:
    """Return the generations that have been claimed, in order."""
    names = [entry.key.removeprefix(f"{CLAIMS}/") for entry in store.list(CLAIMS)]
    return sorted(int(name) for name in names if _is_count(name))


def read(store: Store, generation: int) -> Claim:
    """Return a claim; DataError when it is absent or damaged."""
    key = f"{CLAIMS}/{generation}"
    content = documents.decode(documents.read(store, key).data, SCHEMA, key)
    end = None if content.get("end") is None else documents.mapping(content, "end")
    if end is not None:
        documents.number(end, "position")
    return Claim(
        generation=documents.number(content, "generation", generation, generation),
        owner=documents.text(content, "owner", OWNER),
        attempt=documents.mapping(content, "attempt"),
        resumed=None if content.get("resumed") is None else documents.number(content, "resumed"),
        end=end,
    )


def lineage(store: Store) -> list[dict[str, Any]]:
    """Return every attempt in order: what it said of itself, and `generation`, `ended`, `reason`, `position`.

    `resumed` is the position it went on from, `position` that of the newest checkpoint it left behind.
    `reason` is "vanished" where an earlier attempt never told, None where the last has not told yet, and
    "unreadable" where the claim itself is damaged.
    """
    seen = head.read(store).head
    following = seen.position if seen else None
    attempts: list[dict[str, Any]] = []
    for generation in reversed(generations(store)):
        try:
            claim = read(store, generation)
        except (DataError, documents.NewerSchemaError):
            attempts.append(_attempt(Claim(generation, "", {}), "unreadable", None))
            continue
        attempts.append(_attempt(claim, "vanished" if attempts else None, following))
        following = following if claim.resumed is None else claim.resumed
    return attempts[::-1]


def host(store: Store, generation: int) -> str:
    """Return the host that claimed `generation`, or that it is not known."""
    try:
        return str(read(store, generation).attempt.get("host", "an unknown host"))[:100]
    except JobError:  # it is for a message only
        return "an unknown host"


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _attempt(claim: Claim, silent: str | None, following: int | None) -> dict[str, Any]:
    end = claim.end or {"reason": silent, "ended": None, "position": following}
    return {
        **dict.fromkeys(("started", "host", "device")),
        **claim.attempt,
        "generation": claim.generation,
        "resumed": claim.resumed,
        "ended": end.get("ended"),
        "reason": end.get("reason"),
        "position": end["position"],
    }


def _is_count(name: str) -> bool:
    return name.isascii() and name.isdigit() and name[0] != "0" and len(name) <= len(str(MAX_COUNT))
