"""What NVIDIA's management library says of a GPU: ECC, its errors, and MIG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from job.errors import MachineError


@dataclass(frozen=True)
class Health:
    """The state of one GPU; None is what this kind of GPU does not have, or this user may not know."""

    ecc: bool | None
    uncorrected: int | None  # memory errors that ECC could not mend since the driver was loaded
    mig: bool | None  # split into instances, of which CUDA uses one in a process


def health(bus: str) -> Health | None:
    """Return the state of the GPU with PCI address `bus`, such as 00000000:3b:00.0; None where NVML has none.

    Raises MachineError for a GPU that is gone from the bus.
    """
    with _library() as there:
        if not there:
            return None
        gpu = _ask(pynvml.nvmlDeviceGetHandleByPciBusId, bus.encode())
        if gpu is None:
            return None
        ecc = _ask(pynvml.nvmlDeviceGetEccMode, gpu)
        return Health(
            ecc=None if ecc is None else bool(ecc[0]),
            uncorrected=_ask(
                pynvml.nvmlDeviceGetTotalEccErrors,
                gpu,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            mig=_in_mig_mode(gpu),
        )


def all_in_mig_mode() -> bool:
    """Return whether there are GPUs and each is in MIG mode."""
    with _library() as there:
        if not there:
            return False
        gpus = [
            _ask(pynvml.nvmlDeviceGetHandleByIndex, number)
            for number in range(_ask(pynvml.nvmlDeviceGetCount) or 0)
        ]
        return bool(gpus) and all(gpu is not None and _in_mig_mode(gpu) for gpu in gpus)


def _in_mig_mode(gpu: Any) -> bool | None:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, gpu)
    return None if mode is None else bool(mode[0])


def _ask(question: Callable[..., Any], *about: Any) -> Any:
    """Return the answer, None where there is none."""
    try:
        return question(*about)
    except pynvml.NVMLError_GpuIsLost as error:
        raise MachineError("the GPU is gone from the bus", "Use another machine") from error
    except pynvml.NVMLError:
        return None


@contextmanager
def _library() -> Iterator[bool]:
    """Have the library loaded for the block, and say whether it is there and answers."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
