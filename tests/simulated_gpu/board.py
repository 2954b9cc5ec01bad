"""What the simulated device counts, what it has still to copy, and what is to go wrong on it."""

from __future__ import annotations

import ctypes
import json
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

GARBAGE = 0xA5  # in each byte of a host tensor that the device has not yet written
MUTEX_BYTES = 256  # more than any pthread_mutex_t; zeros are an unlocked one


@dataclass
class Fault:
    """What goes wrong in the `operator`th operator (from 1) that runs inside the function `within`.

    `within` is a qualified name such as `Trainer.train_epoch`; an empty one is anywhere. `error` kills the
    device, as CUDA's sticky errors do: whatever comes after raises too. `code` is CUDA's number of it.
    """

    kind: Literal["error", "memory", "hang"]
    within: str = ""
    operator: int = 1
    code: int = 214  # cudaErrorECCUncorrectable
    message: str = "CUDA error: uncorrectable ECC error encountered"

    def is_met(self) -> bool:
        """Count this operator and return whether it is the one."""
        if self.operator > 0 and (not self.within or self.within in map(_name, _frames())):
            self.operator -= 1
            return self.operator == 0
        return False


class Allocation:
    """Bytes of the device's memory, shared by the tensors that view them; free when the last is gone."""

    def __init__(self, board: Board, size: int) -> None:
        self.board, self.size = board, size
        board.allocated += size

    def __del__(self) -> None:
        self.board.allocated -= self.size


class Board:
    """The device's state; the module's `BOARD` is the one there is."""

    def __init__(self) -> None:
        self.operators = 0
        self.reads: Counter[tuple[str, str]] = Counter()  # (operator, function of the job that waited)
        self.copies: Counter[str] = Counter()  # to the host, by function of the job
        self.allocated = 0  # bytes
        self.memory: int | None = None  # bytes there are; None for as many as wanted
        self.fault: Fault | None = None
        self.log: Path | None = None  # gets a JSON line for each read and each copy to the host
        self._dead: Fault | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []  # (host, what it will hold)
        self._allocations: weakref.WeakValueDictionary[int, Allocation] = weakref.WeakValueDictionary()

    def operator(self) -> None:
        """Count an operator; have it fail or hang if it is the one to."""
        self.operators += 1
        self._fail_if_dead()
        if self.fault and self.fault.is_met():
            if self.fault.kind == "hang":
                _hang()
            if self.fault.kind == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            self._dead = self.fault
            self._fail_if_dead()

    def read(self, operator: str) -> None:
        """Count a read that waits for the device."""
        where = _waiting()
        self.reads[operator, where] += 1
        self._write("read", operator, where)
        self.synchronise()

    def copy_to(self, host: Tensor, value: Tensor, non_blocking: bool) -> None:
        """Copy `value` to `host`; without blocking, `host` is garbage until the next synchronisation."""
        where = _waiting()
        self.copies[where] += 1
        self._write("asynchronous copy" if non_blocking else "copy", "copy", where)
        self._pending.append((host, value.clone()))
        host.untyped_storage().fill_(GARBAGE)  # type: ignore[attr-defined]
        if not non_blocking:
            self.synchronise()

    def synchronise(self) -> None:
        """Wait for the device: what it was to copy is there now."""
        self._fail_if_dead()
        pending, self._pending = self._pending, []
        for host, value in pending:
            host.copy_(value)

    def allocation(self, tensor: Tensor) -> Allocation:
        """Return the allocation of a tensor's storage; OutOfMemoryError where it does not fit."""
        storage = tensor.untyped_storage()
        found = self._allocations.get(storage.data_ptr())
        if found is None or found.size != storage.nbytes():
            if self.memory is not None and self.allocated + storage.nbytes() > self.memory:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes; "
                    f"{self.memory - self.allocated} are free."
                )
            found = self._allocations[storage.data_ptr()] = Allocation(self, storage.nbytes())
        return found

    def _fail_if_dead(self) -> None:
        if self._dead:
            error = torch.AcceleratorError(self._dead.message)
            error.error_code = self._dead.code  # type: ignore[attr-defined]
            raise error

    def _write(self, kind: str, operator: str, where: str) -> None:
        if self.log:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "operator": operator, "within": where}) + "\n")


BOARD = Board()


def _frames() -> list[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    frames = []
    while frame:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _name(frame: FrameType) -> str:
    return frame.f_code.co_qualname


def _waiting() -> str:
    """Return the innermost function of the job on the stack."""
    own = (frame for frame in _frames() if str(frame.f_globals.get("__name__", "")).startswith("job."))
    return next((_name(frame) for frame in own), "")


def _hang() -> None:
    """Never return, as a call of a hung driver: in C, without the interpreter's lock, deaf to signals."""
    mutex = ctypes.create_string_buffer(MUTEX_BYTES)
    library = ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
