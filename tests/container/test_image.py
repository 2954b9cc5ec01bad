"""What is in the image, and what a container of it may do and says of itself."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.container.engine import HARDENED, Engine
from tests.container.image import BASE, ROOT, Image

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

SIZE_GB = 6.1  # measured: 5.97, of which 4.3 are PyTorch's and NVIDIA's wheels

LARGEST_LAYER_GB = 1.3
CODE_MB = 5

AS_ROOT = ("--user=0:0",)

ENVIRONMENT = {
    "HOME": "/tmp",
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "NVIDIA_DISABLE_REQUIRE": "true",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "TORCH_DISABLE_NATIVE_JIT": "1",
}

STALE = """
import importlib.util, pathlib, sys
for folder in ("/opt/micronet", sys.prefix + "/lib"):
    for source in pathlib.Path(folder).rglob("*.py"):
        compiled = pathlib.Path(importlib.util.cache_from_source(source))
        head = compiled.read_bytes()[4:12] if compiled.exists() else b""
        by_time = bytes(4) + int(source.stat().st_mtime).to_bytes(4, "little")
        if head != by_time and head[:4] != b"\\1\\0\\0\\0":
            print(source)
"""
"""Prints the modules whose byte code is absent or would be made anew: PEP 552 has the format."""


LOADED = """
import ctypes, pathlib, site
import torch
for root in map(pathlib.Path, site.getsitepackages()):
    for path in [*root.glob("nvidia/**/*.so*"), *root.glob("torch/lib/*.so*")]:
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            print(error)
"""

OUTSIDE = re.compile(r"lib(cuda|mlx5|mpi|pmix|oshmem|fabric|ucs)\.so")
"""Of the driver and of clusters; no wheel has brought them."""


def inside(engine: Engine, image: Image, *command: str, options: Sequence[str] = HARDENED) -> list[str]:
    """Run another program than the entry point in a container of the image; return its lines."""
    program, *words = command
    done = engine.run(image.tag, *words, options=[*options, f"--entrypoint={program}"])
    return done.expect(0).out.splitlines()


def inspect(engine: Engine, image: Image) -> Any:
    return json.loads(engine.podman("image", "inspect", image.tag).expect(0).out)[0]


def test_says_what_it_was_built_from(engine: Engine, image: Image) -> None:
    config = inspect(engine, image)["Config"]
    assert config["Labels"]["org.opencontainers.image.revision"] == image.revision
    assert config["Labels"]["org.opencontainers.image.title"] == "micronet"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    environment = dict(line.split("=", 1) for line in config["Env"])
    assert environment | ENVIRONMENT == environment
    assert (environment["MICRONET_REVISION"], environment["MICRONET_IMAGE"]) == (image.revision, image.tag)
    assert re.fullmatch(
        r"[1-9]\d*:[1-9]\d*", config["User"]
    )  # by number: a scheduler can tell it is not root
    assert config["Volumes"] == {"/data": {}}


def test_is_as_small_as_the_wheels_allow(engine: Engine, image: Image) -> None:
    size = inspect(engine, image)["Size"] / 1e9
    print(f"{size:.2f} GB, built in {image.build_seconds:.0f} s")
    assert size < SIZE_GB


def test_the_wheels_are_split_and_the_code_is_a_layer_of_its_own(engine: Engine, image: Image) -> None:
    history = engine.podman("history", "--format=json", image.tag).expect(0).out
    sizes = [layer["size"] for layer in json.loads(history)]  # newest first
    print([f"{size / 1e6:.1f} MB" for size in sizes if size])
    wheels = next(place for place, size in enumerate(sizes) if size > 100e6)
    assert sum(sizes[:wheels]) < CODE_MB * 1e6
    assert max(sizes) < LARGEST_LAYER_GB * 1e9


def test_every_library_that_is_left_finds_those_it_names(engine: Engine, image: Image) -> None:
    failures = inside(engine, image, "/opt/venv/bin/python", "-c", LOADED)
    assert [line for line in failures if not OUTSIDE.search(line)] == []


def test_holds_neither_data_nor_what_only_the_build_needed(engine: Engine, image: Image) -> None:
    everything = inside(engine, image, "/usr/bin/find", "/", "-xdev", options=AS_ROOT)
    assert "/opt/micronet/bin/micronet" in everything
    left = re.compile(
        r"/(data|runs|build|dist)/|/root/\.cache/.|/var/lib/apt/lists/.|/opt/pip"
        r"|/opt/venv/lib/[^/]*/[^/]*/(pip|spacy|thinc|blis)$|.*/cifar[^/]*\.(tar|gz|zip)$|.*\.whl$|.*/\.git$"
    )
    assert [path for path in everything if left.match(path)] == []


def test_holds_every_file_of_the_package(engine: Engine, image: Image) -> None:
    wanted = {path.relative_to(ROOT) for path in (ROOT / "job").rglob("*") if "__pycache__" not in path.parts}
    there = inside(engine, image, "/usr/bin/find", "/opt/micronet/job")
    assert wanted - {Path(line).relative_to("/opt/micronet") for line in there} == set()


def test_no_program_changes_its_user(engine: Engine, image: Image) -> None:
    command = ("/usr/bin/find", "/", "-xdev", "-type", "f", "-perm", "/6000")
    assert inside(engine, image, *command, options=AS_ROOT) == []


def test_only_the_folders_for_it_are_writable(engine: Engine, image: Image) -> None:
    words = ["/", "-xdev", "-writable", "-not", "-type", "l", "-prune", "-print"]
    options = ["--user=54321:54321", "--cap-drop=all", "--entrypoint=/usr/bin/find"]
    found = engine.run(image.tag, *words, options=options).out.split()
    assert set(found) - {"/data", "/run/lock", "/var/tmp"} == {"/runs", "/tmp"}


def test_nothing_is_compiled_at_the_start(engine: Engine, image: Image) -> None:
    stale = inside(engine, image, "/opt/venv/bin/python", "-c", STALE)
    assert [path for path in stale if "/tests/" not in path and "/testing/" not in path] == []


def test_help_is_what_a_container_says_without_a_command(engine: Engine, image: Image) -> None:
    said = engine.run(image.tag, options=HARDENED).expect(0)
    assert "Usage: micronet" in said.out
    assert "train" in said.out
    assert said.err == ""


def test_other_requirements_can_be_given_and_their_hashes_hold(
    engine: Engine, image: Image, tmp_path: Path
) -> None:
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    entry = re.search(r"^six==.*(?:\n    .*)+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert entry
    arguments = {"BASE_IMAGE": BASE, "REQUIREMENTS": "requirements-six.lock"}
    options = ("--target=dependencies", "--layers=true")

    (tmp_path / "requirements-six.lock").write_text(entry[0])
    engine.build(tmp_path, "localhost/micronet-six:ci", arguments, *options).expect(0)
    listed = engine.run(
        "localhost/micronet-six:ci", "/opt/venv/bin/python", "-c", "import six; print(six.__version__)"
    )
    assert f"six=={listed.expect(0).out.strip()} " in entry[0]

    forged = re.sub(r"sha256:.{8}", "sha256:00000000", entry[0])
    (tmp_path / "requirements-six.lock").write_text(forged)
    refused = engine.build(tmp_path, "localhost/micronet-forged:ci", arguments, *options)
    assert refused.code != 0
    assert "DO NOT MATCH THE HASHES" in refused.out + refused.err
