"""A folder as a store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from job.errors import ConfigurationError, MachineError
from job.store.base import AbsentError, ConflictError, Entry, Item, Part, Store, check_key, is_key
from job.store.files import (
    exclusive,
    explain,
    fsync,
    make_folder,
    open_regular,
    scratch,
    sha256_of,
    write_durably,
)

LOCK = ".lock"
LOCK_TIMEOUT_SECONDS = 10.0
"""The lock is held for a comparison and a rename; only a writer that is paused holds it longer."""


class LocalStore(Store):
    """The store contract (see `base.Store`) over the folder `root`, which the first put makes.

    Needs a file system with rename and flock. Machines may share one where each sees the others' locks, as on
    NFS 4 and on Lustre with -o flock. A version is the SHA-256 of the content.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._has_written = False

    @property
    @override
    def uri(self) -> str:
        """Return the folder's absolute path."""
        return str(self._root)

    @property
    @override
    def conditions(self) -> tuple[str, str]:
        return ("absence", "version")

    @override
    def get(self, key: str) -> Item:
        with self._reading(key), open_regular(self._path(key)) as file:
            data = file.read()
        return Item(data, hashlib.sha256(data).hexdigest())

    @override
    def get_range(self, key: str, offset: int, length: int) -> Part:
        """Return a part of a file, all of which is read for its version."""
        with self._reading(key), open_regular(self._path(key)) as file:
            version = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(offset)
            return Part(file.read(length), version, size)

    @override
    def put(self, key: str, data: bytes | Path) -> None:
        with self._replacing(key, data):
            pass

    @override
    def put_if_absent(self, key: str, data: bytes) -> str:
        with self._replacing(key, data) as path:
            if path.exists():
                raise ConflictError(f"{path} exists already")
            return hashlib.sha256(data).hexdigest()

    @override
    def put_if_match(self, key: str, data: bytes, version: str) -> str:
        with self._replacing(key, data) as path:
            if not path.exists() or sha256_of(path) != version:
                raise ConflictError(f"{path} has been changed by someone else")
            return hashlib.sha256(data).hexdigest()

    @override
    def delete(self, key: str) -> None:
        """Remove the file; empty folders stay."""
        with self._writing(key):
            path = self._path(key)
            if path.exists():
                with self._locked():
                    path.unlink(missing_ok=True)
                fsync(path.parent)

    @override
    def list(self, folder: str = "") -> list[Entry]:
        top = self._path(folder) if folder else self._root
        entries = []
        with self._reading(folder):
            for parent, folders, names in os.walk(top, onerror=_raise_unless_absent):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(parent, name)
                    key = path.relative_to(self._root).as_posix()
                    with contextlib.suppress(FileNotFoundError):  # deleted since
                        if is_key(key) and path.is_file():
                            entries.append(Entry(key, path.stat().st_size))
        return entries

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _replacing(self, key: str, data: bytes | Path) -> Iterator[Path]:
        """Write a new file, run the block under the lock, where it checks its condition, and rename."""
        path = self._path(key)
        with self._writing(key), scratch(self._root) as work:
            new = work / "new"
            if isinstance(data, Path):
                shutil.copyfile(data, new)
                fsync(new)
            else:
                write_durably(new, data)
            make_folder(path.parent)
            with self._locked():
                if path.is_dir():  # it exists and cannot be read: a retry would not help
                    raise ConfigurationError(f"{path} is a folder", "Remove it, or choose another folder")
                yield path
                new.rename(path)
            fsync(path.parent)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self._root / LOCK, LOCK_TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise AbsentError(f"there is no {self._root / key}") from error
        except OSError as error:
            raise explain(error, self._root / key) from error

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """Raise the JobError for an OSError: MachineError for a folder that is read-only after a write."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EROFS and self._has_written:
                raise MachineError(
                    f"{self._root / key}: the file system has become read-only",
                    "Check the disk, and run the same command again",
                ) from error
            raise explain(error, self._root / key) from error
        self._has_written = True


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
