"""Disks that are soon full, become read-only, or are shared by machines."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

TINY_BYTES = 2**20
LARGEST_FILE_BYTES = 2500


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path]:
    """Make `folder` a disk of 1 MiB; without the right to mount, let no file be larger than 2,500 bytes."""
    folder.mkdir(parents=True)
    if os.geteuid() == 0 and _mount(folder):
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE_BYTES, limits[1]))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def read_only_later(folder: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Make `folder` a disk, and a function that makes it read-only; needs the right to mount, as root has."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    try:
        yield folder, lambda: _remount_read_only(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Mount one folder twice, as two machines have it that do not see each other's locks."""
    back, one, two = (folder / name for name in ("back", "one", "two"))
    with contextlib.ExitStack() as stack:
        for path in (back, one, two):
            path.mkdir(parents=True)
        for path in (one, two):
            options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
            subprocess.run(["bindfs", "-o", options, str(back), str(path)], check=True)
            stack.callback(subprocess.run, ["umount", str(path)], check=True)
        yield one, two


def _remount_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={TINY_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
