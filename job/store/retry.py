"""A store that tries again, so that nothing above it has to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from job import events
from job.store.base import ConflictError, Entry, Item, Part, Service, Store, TransientError

LONGEST_PAUSE_SECONDS = 10.0

T = TypeVar("T")


def patiently(
    call: Callable[[], T], seconds: float, report: Callable[[RetryCallState], None] | None = None
) -> T:
    """Return what `call` returns, repeated after a TransientError until `seconds` are over.

    `report` is told before each pause.
    """
    return Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_SECONDS),
        before_sleep=report,
        sleep=time.sleep,
        reraise=True,
    )(call)


class RetryingStore:
    """The store `inner`, each of its calls repeated after a TransientError until `budget_seconds` are over.

    The pauses are random and double up to 10 s; a call that has begun is let finish. A conditional put
    whose response was lost is recognised by its content when the repetition meets a conflict.
    """

    def __init__(self, inner: Store, budget_seconds: float) -> None:
        self._inner = inner
        self._budget_seconds = budget_seconds

    @property
    def uri(self) -> str:
        """Return the inner store's."""
        return self._inner.uri

    def service(self) -> Service | None:
        """See `base.Store`."""
        return self._inner.service()

    def get(self, key: str) -> Item:
        """See `base.Store`."""
        return self._retry(lambda: self._inner.get(key))

    def get_range(self, key: str, offset: int, length: int) -> Part:
        """See `base.Store`."""
        return self._retry(lambda: self._inner.get_range(key, offset, length))

    def put(self, key: str, data: bytes) -> None:
        """See `base.Store`."""
        self._retry(lambda: self._inner.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `base.Store`."""
        return self._retry_conditional(key, data, lambda: self._inner.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        """See `base.Store`."""
        return self._retry_conditional(key, data, lambda: self._inner.put_if_match(key, data, version))

    def delete(self, key: str) -> None:
        """See `base.Store`."""
        self._retry(lambda: self._inner.delete(key))

    def list(self, folder: str = "") -> list[Entry]:
        """See `base.Store`."""
        return self._retry(lambda: self._inner.list(folder))

    def _retry_conditional(self, key: str, data: bytes, put: Callable[[], str]) -> str:
        maybe_written = False

        def attempt() -> str:
            nonlocal maybe_written
            try:
                return put()
            except TransientError:
                maybe_written = True
                raise
            except ConflictError:
                if not maybe_written:
                    raise
                item = self._inner.get(key)
                if item.data != data:
                    raise
                return item.version

        return self._retry(attempt)

    def _retry(self, call: Callable[[], T]) -> T:
        return patiently(call, self._budget_seconds, self._report)

    def _report(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        events.warn(
            "store_retry",
            store=self.uri,
            reason=str(error),
            attempt=state.attempt_number,
            pause_seconds=round(state.upcoming_sleep, 2),
        )
