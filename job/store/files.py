"""Local files: scratch folders, locks, durable writes, and the JobError for an OSError."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from job import events
from job.errors import ConfigurationError, JobError, MachineError, PermissionRefusedError
from job.store.base import TransientError

SCRATCH_PREFIX = ".scratch-"
ALIVE = ".alive"

ABANDONED_SECONDS = 3600.0
"""What is being written changes every second; an hour is beyond any pause of a machine that comes back."""

DIRECT_BYTES = CHUNK_BYTES = 2**20
BLOCK_BYTES = 4096  # a multiple of what any disk asks of a direct write
POLL_SECONDS = 0.02
ANNOUNCE_AFTER_SECONDS = 2.0

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SHORT = _FULL | {errno.EIO, errno.EROFS, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors of a machine that has run out of something or has failed: not the program's fault."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISUSED = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EEXIST, errno.ELOOP}


def explain(error: OSError, path: Path | str) -> JobError:
    """Return the JobError for `error` at `path`."""
    cause = f"{path}: {error.strerror or error}"
    if error.errno in _FULL:
        return MachineError(f"no space left for {path}", "Free some, or choose a folder on another disk")
    if error.errno in _REFUSED:
        return PermissionRefusedError(cause, "Give this user the right, or choose another folder")
    if error.errno in _MISUSED:
        return ConfigurationError(cause, "Name another path")
    return MachineError(cause, "Check the disk or the network it hangs on")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; ConfigurationError for a pipe, socket or device, whose reading could block.

    Raises OSError as `open` does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise ConfigurationError(f"{path} is not a regular file", "Remove it, or name another folder")
    return os.fdopen(descriptor, "rb")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex; raises what `open_regular` raises."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk, so that they survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents so that their names survive a power loss."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync(folder.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file whose content survives a power loss.

    Large data bypasses the page cache: a checkpoint is not read soon, and copying its 116 MB into the cache
    takes 35 to 290 ms of the processor that trains, a direct write 20 ms.
    """
    with path.open("xb") as file:
        if len(data) < DIRECT_BYTES or not _write_directly(file.fileno(), data):
            file.write(data)
            file.flush()
        os.fsync(file.fileno())


def _write_directly(descriptor: int, data: bytes) -> bool:
    """Write to an empty file with O_DIRECT; return False, with the file empty, where that is impossible."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        with mmap.mmap(-1, CHUNK_BYTES) as chunk, memoryview(chunk) as aligned:
            offset = 0
            while offset < len(data):
                part = data[offset : offset + CHUNK_BYTES]
                aligned[: len(part)] = part
                offset += os.write(descriptor, aligned[: -(-len(part) // BLOCK_BYTES) * BLOCK_BYTES])
        os.ftruncate(descriptor, len(data))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        return False
    return True


@contextlib.contextmanager
def exclusive(path: Path, timeout_seconds: float = float("inf")) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, against threads and processes; it ends with the process.

    Raises TransientError when another process holds it longer than `timeout_seconds`. The file stays: if it
    were removed, two processes could hold the lock at once.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        start, announced = time.monotonic(), False
        while not _try_lock(descriptor):
            waited = time.monotonic() - start
            if waited > timeout_seconds:
                raise TransientError(f"another process has held {path} for {timeout_seconds:g} s")
            if waited > ANNOUNCE_AFTER_SECONDS and not announced:
                events.emit("waiting_for_another_process", lock=str(path))
                announced = True
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a new folder in `parent` (itself made if missing), and remove it with its content afterwards.

    It is on its parent's file system, so that a rename out of it is atomic; the parent's name survives a
    power loss. The next call removes the folders that killed processes left: here, those whose file ALIVE
    nobody has locked; of other machines, whose locks may not be seen here, those in which nothing has changed
    for ABANDONED_SECONDS either. Raises TransientError for a folder that was removed nevertheless.
    """
    make_folder(parent)
    _sweep(parent)
    folder, descriptor = _new_locked_folder(parent)
    try:
        yield folder
    except FileNotFoundError as error:
        if folder.exists():
            raise
        raise TransientError(f"{folder} was removed while it was in use", "Try again") from error
    finally:
        os.close(descriptor)  # before the removal: NFS keeps a file that is open, and with it the folder
        _remove(folder)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, with the folders above it, whole or not at all, also after a power loss.

    Raises JobError where that fails.
    """
    try:
        with scratch(path.parent) as work:
            write_durably(work / "file", data)
            (work / "file").replace(path)
        fsync(path.parent)
    except OSError as error:
        raise explain(error, path) from error


def _new_locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock its file ALIVE; make another if a sweep removes it before it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{_lock_domain(parent)}-", dir=parent))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), (folder / ALIVE).stat()):
                return folder, descriptor
            os.close(descriptor)


def _sweep(parent: Path) -> None:
    here = f"{SCRATCH_PREFIX}{_lock_domain(parent)}-"
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        if folder.is_symlink():  # it could lead out of the parent
            continue
        with contextlib.suppress(OSError):  # removed by another sweep, or another user's
            if folder.name.startswith(here) or _unchanged_seconds(folder) > ABANDONED_SECONDS:
                _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    # A pipe of that name would block the opening, and a link could lead out of the parent.
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(ALIVE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=within)
    finally:
        os.close(within)
    try:
        if _try_lock(descriptor):
            _remove(folder)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder with its content, as far as that is possible."""
    # A signal's exception between two lines of rmtree has it close a descriptor twice (Python 3.11). Its
    # OSError would take the place of the PreemptedError, which is raised again at the next check.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)


def _lock_domain(folder: Path) -> str:
    """Return 8 hex digits that are the same wherever a lock in `folder` is certain to be seen.

    That is on this kernel, through this mount: NFS, Lustre and FUSE may keep locks to one machine or mount.
    """
    return hashlib.sha256(f"{_boot()} {folder.stat().st_dev}".encode()).hexdigest()[:8]


@functools.cache
def _boot() -> str:
    """Return what only one kernel has; where it is unknown, what only this process has."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return uuid4().hex


def _unchanged_seconds(folder: Path) -> float:
    """Return the time since the last change in `folder`, by its file system's clock: machines' may differ."""
    newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    with tempfile.TemporaryFile(dir=folder.parent) as file:
        return os.fstat(file.fileno()).st_mtime - newest


def _try_lock(descriptor: int) -> bool:
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int, how: int) -> None:
    """Lock as `flock` does; raise ConfigurationError on a file system without locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        raise ConfigurationError(
            f"{path}: the file system has no locks ({error.strerror})",
            "Mount it with locks that all its machines share (NFS 4, or Lustre with -o flock), or name a "
            "folder on another",
        ) from error
