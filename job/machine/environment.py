"""What a report says about the software and the machine it was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from job.machine import driver


def environment() -> dict[str, str | None]:
    """Return the report's environment section; what cannot be known is None.

    The image's build sets MICRONET_REVISION and MICRONET_IMAGE; outside one, the checkout
    has the revision.
    """
    return {
        "micronet": version("micronet"),
        "git": os.environ.get("MICRONET_REVISION") or _revision(),
        "image": os.environ.get("MICRONET_IMAGE"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastai": version("fastai"),
        "cuda": torch.version.cuda,
        "driver": driver.version(),
    }


def _revision() -> str | None:
    return _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - the words are this module's own
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
