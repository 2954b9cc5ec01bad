"""The engine and the image for the tests of this folder. They need root, podman and room on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import base
from tests.container.engine import Engine
from tests.container.image import Image, build

FREE_GB = 25  # measured with podman 4.3: 24.7 while it builds
PROGRAMS = ("podman", "runc", "mmdebstrap")
KEPT = os.environ.get("MICRONET_CONTAINER_FOLDER")
"""Folder to keep images and layers in between runs, for whoever works on them; else all is removed."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine for the session; where there can be none the tests are skipped, or fail where required."""
    parent = Path(KEPT).parent if KEPT else Path("/var/tmp")  # /tmp is in memory on some machines
    if missing := _missing(parent):
        if "container" in os.environ.get("MICRONET_REQUIRE", "").split(","):
            pytest.fail(f"the container tests are required here, and {missing}")
        pytest.skip(f"no container is built or run: {missing}")
    folder = Path(KEPT or tempfile.mkdtemp(prefix="micronet-container-", dir=parent))
    engine = Engine(folder, base.mounts(base.PipSettings.of_host()))
    try:
        yield engine
    finally:
        if not KEPT:
            engine.remove()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Image:
    """The image, built once."""
    return build(engine, "--layers=true")


def _missing(parent: Path) -> str:
    """Return what this machine lacks for building and running containers; nothing where it is all there."""
    if os.geteuid() != 0:
        return "this user is not root"
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{', '.join(absent)} not found (apt-get install --no-install-recommends {' '.join(PROGRAMS)})"
    if (free := shutil.disk_usage(parent).free / 1e9) < FREE_GB:
        return f"{parent} has {free:.0f} GB free of the {FREE_GB} GB it takes"
    return ""
