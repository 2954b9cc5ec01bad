"""Run several users of a store one store operation at a time, in any order the test likes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from job.store.base import Store


class KilledError(BaseException):
    """The process is gone: nothing in it may catch this."""


class Turns:
    """A store that parks its caller before each operation until the test lets it go on."""

    def __init__(self, inner: Store, actor: Actor) -> None:
        self._inner, self._actor = inner, actor

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def operation(*arguments: Any) -> Any:
            self._actor.park(f"{name} {arguments[0] if arguments else ''}")
            return found(*arguments)

        return operation


class Actor:
    """A thread that runs `work(store)`, one operation of the store at each `step`.

    `waiting` says which operation comes next. `error` is what ended the work, None when it just ended.
    """

    def __init__(self, store: Store, work: Callable[[Store], None]) -> None:
        self.waiting = ""
        self.alive = True
        self.error: BaseException | None = None
        self._killed = False
        self._go, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._store = Turns(store, self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._parked.acquire()

    def park(self, operation: str) -> None:
        self.waiting = operation
        self._parked.release()
        self._go.acquire()
        if self._killed:
            raise KilledError

    def step(self) -> None:
        """Carry out the operation it waits for, and stop before the next."""
        self._go.release()
        self._parked.acquire()

    def until(self, operation: str) -> None:
        """Go on until the next operation starts with that."""
        while self.alive and not self.waiting.startswith(operation):
            self.step()
        assert self.alive, f"it never came to {operation}"

    def finish(self) -> None:
        while self.alive:
            self.step()

    def kill(self) -> None:
        self._killed = True
        self.finish()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self._store)
        except BaseException as error:
            self.error = error
        finally:
            self.alive = False
            self._parked.release()
