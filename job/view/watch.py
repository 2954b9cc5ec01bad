"""A run looked at again and again, as long as it goes on and whether or not its store answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from job.events import printable
from job.store.base import Store, TransientError
from job.view import status
from job.view.status import Status

EVERY_SECONDS = 5.0
RETRY_SECONDS = 5.0  # for a call of the store, so that an outage is told while it lasts


class Look(NamedTuple):
    """What was seen last, None before the store first answered, and why it does not answer now."""

    seen: Status | None
    outage: str | None

    def text(self) -> str:
        """Return it for people."""
        seen = status.lines(self.seen) if self.seen else ""
        outage = (
            f"{'store':<10}cannot be reached, asking again: {printable(self.outage)}" if self.outage else ""
        )
        return "\n".join(filter(None, (seen, outage)))


def watch(store: Store, every_seconds: float = EVERY_SECONDS) -> Iterator[Look]:
    """Yield a look every so many seconds, until one at the finished run.

    A store out of reach is part of what is seen; raises its other errors.
    """
    seen: Status | None = None
    while True:
        try:
            seen = status.read(store)
            yield Look(seen, None)
        except TransientError as error:
            yield Look(seen, error.message)
        if seen is not None and seen.phase == "finished":
            return
        time.sleep(every_seconds)
