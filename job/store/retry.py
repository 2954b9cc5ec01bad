"""Retries with backoff, and a store that retries its requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_random_exponential,
)
from tenacity.stop import stop_base
from typing_extensions import override

from job import events
from job.store.base import ConflictError, DoubtfulError, Entry, Item, Part, Store, TransientError

LONGEST_PAUSE_SECONDS = 10.0

T = TypeVar("T")


class _Budget(stop_base):
    """Stops after `seconds`, or when a DoubtfulError has been repeated for its own `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.doubtful_since: float | None = None

    def __call__(self, retry_state: RetryCallState) -> bool:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        now = retry_state.seconds_since_start or 0.0
        if not isinstance(error, DoubtfulError):
            self.doubtful_since = None
            return now >= self.seconds
        if self.doubtful_since is None:
            self.doubtful_since = now
        return now >= self.seconds or now - self.doubtful_since >= error.seconds


def patiently(
    call: Callable[[], T], seconds: float, report: Callable[[RetryCallState], None] | None = None
) -> T:
    """Return what `call` returns, retried after a TransientError until `seconds` are over.

    The backoff is random and doubles up to 10 s; `report` is called before each pause. Raises the last error;
    for a DoubtfulError, its verdict.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=_Budget(seconds),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_SECONDS),
        before_sleep=report,
        sleep=time.sleep,
        reraise=True,
    )
    try:
        return retrying(call)
    except DoubtfulError as error:
        raise error.verdict from error


class RetryingStore(Store):
    """The store `inner`, each of its calls retried after a TransientError until `budget_seconds` are over.

    A call that has started may take longer. A conditional put whose response was lost is recognised by its
    content when the retry gets a conflict.
    """

    def __init__(self, inner: Store, budget_seconds: float) -> None:
        self.inner = inner
        self._budget_seconds = budget_seconds

    @property
    @override
    def uri(self) -> str:
        """Return the inner store's address."""
        return self.inner.uri

    @property
    @override
    def conditions(self) -> tuple[str, str]:
        return self.inner.conditions

    @override
    def get(self, key: str) -> Item:
        return self._retry(lambda: self.inner.get(key))

    @override
    def get_range(self, key: str, offset: int, length: int) -> Part:
        return self._retry(lambda: self.inner.get_range(key, offset, length))

    @override
    def put(self, key: str, data: bytes | Path) -> None:
        self._retry(lambda: self.inner.put(key, data))

    @override
    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._retry_conditional(key, data, lambda: self.inner.put_if_absent(key, data))

    @override
    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        return self._retry_conditional(key, data, lambda: self.inner.put_if_match(key, data, version))

    @override
    def delete(self, key: str) -> None:
        self._retry(lambda: self.inner.delete(key))

    @override
    def list(self, folder: str = "") -> list[Entry]:
        return self._retry(lambda: self.inner.list(folder))

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
                found = self.inner.get_range(key, 0, len(data) + 1)
                if found.data != data:
                    raise
                return found.version

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
