"""What PyTorch's errors about a device mean for a run: a machine at fault, too little memory, or a bug."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from job.errors import ConfigurationError, JobError, MachineError

BUGS = {
    700: "an illegal memory access",
    710: "a device-side assertion that failed",
    716: "a misaligned address",
    717: "an address of the wrong space",
}
"""Of CUDA's errors (driver_types.h) those that a program causes: another machine would raise them too."""

LIBRARY_FAULT = re.compile(r"CU[A-Z]+_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)")
"""How cuBLAS and cuDNN report a fault of the device, in a plain RuntimeError."""


class DeviceLostError(MachineError):
    """The device is at fault (ECC, Xid, off the bus): nothing can be read from it any more."""


@contextmanager
def explained(memory_fix: str) -> Iterator[None]:
    """Raise what the block's errors about the device mean.

    DeviceLostError (74), ConfigurationError (78) with `memory_fix` for too little memory, JobError (1) for a
    bug; an error that is not about the device stays as it is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"the device has too little memory: {_first_line(error)}", memory_fix
        ) from error
    except torch.AcceleratorError as error:
        code = getattr(error, "error_code", None)
        if code in BUGS:
            raise JobError(
                f"the device reports {BUGS[code]} (CUDA error {code}): a bug, or memory that is damaged",
                "Report it, with what CUDA_LAUNCH_BLOCKING=1 prints",
            ) from error
        raise _lost(error) from error
    except RuntimeError as error:
        if LIBRARY_FAULT.search(str(error)):
            raise _lost(error) from error
        raise


def _lost(error: RuntimeError) -> DeviceLostError:
    return DeviceLostError(
        f"the device is at fault: {_first_line(error)}", "Run the same command on another machine"
    )


def _first_line(error: RuntimeError) -> str:
    """Return the line that names the error; fastai puts one of its own above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "CUDA" in line or "CUDNN" in line), lines[0] if lines else "")
