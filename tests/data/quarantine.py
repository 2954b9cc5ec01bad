"""Where archives are read that may eat time and memory: a process each, with a bound on both.

As a program: reads paths of archives from stdin and answers each with a line of JSON. Each is unpacked and
loaded in a fork that has CPU_SECONDS and, over what it began with and the file's size, MEMORY_BYTES.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.data.archive import Archive
from job.data.cifar import load
from job.data.extract import unpack
from job.errors import DataError

CPU_SECONDS = 5
MEMORY_BYTES = 2**30
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Answer:
    """`end` is "read", "refused" (a DataError: `message`) or what went wrong (`message` has a traceback)."""

    end: str
    message: str


class Quarantine:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def read(self, archive: bytes) -> Answer:
        path = self._folder / "archive"
        path.write_bytes(archive)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))


@contextmanager
def quarantine() -> Iterator[Quarantine]:
    with (
        tempfile.TemporaryDirectory(prefix="micronet-quarantine-") as folder,
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        ) as process,
    ):
        yield Quarantine(process, Path(folder))


def _serve() -> None:
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _confine(Path(line.strip()))
            answer = _answer(Path(line.strip()))
            with os.fdopen(writer, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = {"end": f"ended by signal {os.WTERMSIG(status)}", "message": ""}
        print(json.dumps(killed) if os.WIFSIGNALED(status) else text, flush=True)


def _confine(archive: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = used + archive.stat().st_size + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))  # a fork begins at 0
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(archive: Path) -> dict[str, str]:
    cache = archive.parent / "cache"
    try:
        load(unpack(Archive(archive, "0" * 64, "hostile"), cache), "0" * 64)
    except DataError as error:
        return {"end": "refused", "message": str(error)}
    except BaseException:
        return {"end": "failed", "message": traceback.format_exc()}
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return {"end": "read", "message": ""}


if __name__ == "__main__":
    _serve()
