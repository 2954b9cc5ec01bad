"""The built image, for the tests of this folder. They need root, podman and room on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container import base
from tests.container.engine import Engine

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/micronet-base:ci", "localhost/micronet:ci"
FREE_GB = 20
PROGRAMS = ("podman", "runc", "mmdebstrap")


@dataclass(frozen=True)
class Image:
    """The image under test."""

    tag: str
    revision: str
    build_seconds: float


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine for the session. All it stores is removed, unless MICRONET_CONTAINER_FOLDER says where."""
    kept = os.environ.get("MICRONET_CONTAINER_FOLDER")
    parent = Path(kept).parent if kept else Path("/var/tmp")  # /tmp is in memory on some machines
    if missing := _missing(parent):
        if os.environ.get("MICRONET_CONTAINER_REQUIRED"):
            pytest.fail(f"the container tests are required here, and {missing}")
        pytest.skip(f"no container is built or run: {missing}")
    folder = Path(kept or tempfile.mkdtemp(prefix="micronet-container-", dir=parent))
    engine = Engine(folder, base.mounts(base.PipSettings.of_host()))
    try:
        yield engine
    finally:
        if not kept:
            engine.remove()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Image:
    """The image, built from the working tree on a base of the host's distribution."""
    if engine.podman("image", "exists", BASE).code:
        base.make(engine, BASE, base.PipSettings.of_host())
    began = time.monotonic()
    revision = _revision()
    arguments = {"BASE_IMAGE": BASE, "REVISION": revision, "IMAGE": IMAGE}
    layers = f"--layers={'true' if os.environ.get('MICRONET_CONTAINER_FOLDER') else 'false'}"
    engine.build(ROOT, IMAGE, arguments, layers).expect(0)
    return Image(IMAGE, revision, time.monotonic() - began)


def _missing(parent: Path) -> str:
    """Return what this machine lacks for building and running containers; nothing where it is all there."""
    if os.geteuid() != 0:
        return "this user is not root"
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{', '.join(absent)} not found (apt-get install --no-install-recommends {' '.join(PROGRAMS)})"
    if (free := shutil.disk_usage(parent).free / 1e9) < FREE_GB:
        return f"{parent} has {free:.0f} GB free of the {FREE_GB} GB it takes"
    return ""


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
