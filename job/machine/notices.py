"""Watching for the cloud's notice that this machine will be taken away, in a thread of its own."""

from __future__ import annotations

import threading
import time

from job import events
from job.machine.clouds import SERVICES, Notice, Service
from job.machine.metadata import AbsentError, UnreadableError, UnusableError


class NoticePoller:
    """A thread that finds the cloud's metadata service and asks it every second to five for a notice.

    It ends with the first notice, or at once where there is no service; nothing ever waits for it but
    `first_answer`. What cannot be read is no notice: the event `notices_unreadable` tells it, once.
    """

    def __init__(self) -> None:
        self.notice: Notice | None = None
        self._answered = threading.Event()
        self._stopped = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Start the thread; early, so that the first answer is there when it is asked for."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; do not wait for a service that hangs."""
        self._stopped.set()

    def first_answer(self, timeout: float) -> Notice | None:
        """Return the notice that is active already; wait at most `timeout` seconds for the service's word."""
        self._answered.wait(timeout)
        return self.notice

    def _run(self) -> None:
        try:
            service = self._find()
            if service is not None:
                self._poll(service)
        finally:
            self._answered.set()

    def _find(self) -> Service | None:
        silent = set()  # addresses: the three services share one, unless the environment says otherwise
        for service in (kind() for kind in SERVICES):
            if service.endpoint in silent:
                continue
            try:
                if service.present():
                    return service
            except AbsentError:
                silent.add(service.endpoint)
            except UnusableError as error:
                self._warn(service, error)
            except UnreadableError:
                continue
        return None

    def _poll(self, service: Service) -> None:
        while not self._stopped.is_set():
            try:
                self.notice = service.notice()
            except UnreadableError as error:
                self._warn(service, error)
            self._answered.set()
            if self.notice is not None:
                seconds_left = round(self.notice.gone - time.monotonic(), 1)
                events.warn("notice", source=service.source, kind=self.notice.kind, seconds_left=seconds_left)
                return
            self._stopped.wait(service.interval_seconds)

    def _warn(self, service: Service, error: UnreadableError) -> None:
        if not self._warned and not self._stopped.is_set():
            self._warned = True
            events.warn("notices_unreadable", source=service.source, reason=str(error))
