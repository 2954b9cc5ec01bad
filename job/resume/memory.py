"""The C library's heap."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def release() -> None:
    """Give what glibc's heap keeps of freed tensors back to the system; elsewhere do nothing.

    Steps leave holes in it that later ones do not fill: 18 MB a step at batches of 256 (WRN-22-1, bf16),
    which made 5.9 GB of a run that needs 1.2. Each page used again costs a fault, so not for every step.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
