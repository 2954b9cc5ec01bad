"""The image's entry point, without a container: when it warns that a run would be lost."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "entrypoint.sh"
WARNING = "nothing is mounted at /runs: the run will be gone with this container"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where a `micronet` is that prints its words."""
    command = tmp_path / "micronet"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    return tmp_path


def start(elsewhere: Path, folder: str, *words: str, **environment: str) -> str:
    """Return what the entry point, started in `folder`, printed on stderr."""
    variables = {"PATH": f"{elsewhere}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["sh", SCRIPT, *words], cwd=folder, env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout == " ".join(words) + "\n"
    return done.stderr


def test_warns_where_nothing_is_mounted(elsewhere: Path) -> None:
    assert WARNING in start(elsewhere, "/", "train", "--demo")


@pytest.mark.parametrize(
    "words", [["score"], ["train", "--help"], ["train", "--run", "s3://b/r"], ["train", "--run=r"]]
)
def test_is_silent_where_the_run_is_not_there(elsewhere: Path, words: list[str]) -> None:
    assert start(elsewhere, "/", *words) == ""
    assert start(elsewhere, "/", "train", MICRONET_RUN="s3://b/r") == ""


@pytest.mark.parametrize("folder", ["/dev", "/dev/shm"])
def test_is_silent_in_a_folder_of_the_host_as_apptainer_mounts_it(elsewhere: Path, folder: str) -> None:
    assert Path("/dev").is_mount()
    assert start(elsewhere, folder, "train") == ""
