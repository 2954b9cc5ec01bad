"""The image under test: built from the working tree, on a base of the host's distribution."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.container import base
from tests.container.engine import Engine

ROOT = Path(__file__).parents[2]
BASE, TAG = "localhost/micronet-base:ci", "localhost/micronet:ci"


@dataclass(frozen=True)
class Image:
    """A built image."""

    tag: str
    revision: str
    build_seconds: float


def build(engine: Engine, *options: str) -> Image:
    """Build the image, and its base where the engine has none yet."""
    if engine.podman("image", "exists", BASE).code:
        base.make(engine, BASE, base.PipSettings.of_host())
    began = time.monotonic()
    revision = _revision()
    engine.build(ROOT, TAG, {"BASE_IMAGE": BASE, "REVISION": revision, "IMAGE": TAG}, *options).expect(0)
    return Image(TAG, revision, time.monotonic() - began)


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
