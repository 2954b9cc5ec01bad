"""The software and the machine that a report records."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from job import VERSION
from job.machine import driver

SOURCES = (".py", ".json", ".html", ".css", ".js")


def environment() -> dict[str, str | None]:
    """Return the report's environment section; None for what is unknown.

    The image's build sets MICRONET_REVISION and MICRONET_IMAGE; elsewhere the revision is the checkout's.
    """
    return {
        "micronet": VERSION,
        "git": revision(),
        "code": source_hash(),
        "image": os.environ.get("MICRONET_IMAGE") or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastai": version("fastai"),
        "cuda": torch.version.cuda,
        "driver": driver.version(),
    }


@functools.cache  # of the code as it was loaded, even if its files change later
def source_hash() -> str:
    """Return twelve hex digits of the SHA-256 over the installed package's sources."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in SOURCES:
            data = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]


def revision() -> str | None:
    """Return the image's or the checkout's revision; None where neither is known."""
    return os.environ.get("MICRONET_REVISION") or _output(
        "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"
    )


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - the command is this module's own
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
