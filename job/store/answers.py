"""How long an answer of a service may take, and when one is doubted: what all clients share."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from urllib3 import HTTPResponse

from job.errors import ConfigurationError, JobError
from job.store.base import DoubtfulError, RefusedError

CONNECT_SECONDS = 10  # also the most that 16 KiB of an upload may take
READ_SECONDS = 20  # until an answer begins, and between two parts of it

BODY_SECONDS = 30
SLOWEST_BYTES_PER_SECOND = 10_000
"""A body may take 30 s and the time of its length at 10 kB/s: one that drips never times out by itself."""

FIRST_ANSWER_SECONDS = 5.0
"""How long an endpoint that has never answered as its service is retried: it may fail for a moment."""

PROXY = "a proxy's address (HTTPS_PROXY, HTTP_PROXY)"

REFUSED_SECONDS = 60.0
"""How long a refusal is retried after the same operation was allowed: rotated keys take effect slowly."""


@dataclass
class Answers:
    """What the answers so far have shown of a service: whether one was its own, and what was allowed."""

    known: bool = False  # there was an answer that only the service gives
    send_ids: bool = False  # its answers have request ids
    allowed: set[str] = field(default_factory=set)  # operations that have succeeded

    def seen(self, has_id: bool) -> None:
        """Note an answer of the service's own."""
        self.known = True
        self.send_ids |= has_id

    def not_the_service(self, verdict: JobError, stranger: JobError) -> DoubtfulError:
        """Return the error for an answer that is not the service's; `stranger` if none ever was."""
        if self.known:
            return DoubtfulError(verdict, math.inf)
        return DoubtfulError(stranger, FIRST_ANSWER_SECONDS)

    def doubted_if_allowed_before(self, verdict: JobError, operation: str | None) -> JobError:
        """Return `verdict`, doubted if it refuses an operation that was allowed before."""
        if isinstance(verdict, RefusedError) and operation in self.allowed:
            return DoubtfulError(verdict, REFUSED_SECONDS)
        return verdict


def not_a_url(what: str, where: str) -> ConfigurationError:
    """Return the error for an address that is not a URL; a library's would print it with its password."""
    return ConfigurationError(f"{where}: {what} is not a URL", "Write https://HOST[:PORT]")


def deadline(body: HTTPResponse, length: int) -> threading.Timer:
    """Return a started timer that breaks the reading of `body`, of `length` bytes, when it takes too long."""
    timer = threading.Timer(BODY_SECONDS + length / SLOWEST_BYTES_PER_SECOND, body.shutdown)
    timer.daemon = True
    timer.start()
    return timer
