"""setup.sh refuses what it cannot do before it installs anything, and installs what the lock names."""

import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parents[1] / "setup.sh"


@pytest.mark.parametrize(
    ("arguments", "python", "code", "words"),
    [
        (["test", "--fast"], None, 2, "--fast"),
        (["install", "numpy"], None, 2, "numpy"),
        (["install"], None, 2, "tensorboard or dev, not nothing"),
        (["install", "google", "kubernetes"], None, 2, "google kubernetes"),
        (["install", "torch"], None, 2, "google, kubernetes, onnx, tensorboard or dev"),
        (["test", "--soak", "--container"], None, 2, "--soak --container"),
        (["status", "x"], "/no/such/python3", 78, "/no/such/python3"),
        ([], "no-such-python", 78, "no-such-python"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_installed(
    tmp_path: Path, arguments: list[str], python: str | None, code: int, words: str
) -> None:
    script = shutil.copy(SCRIPT, tmp_path)
    environment = {"PATH": "/usr/bin:/bin", **({"PYTHON": python} if python else {})}
    done = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == [tmp_path / "setup.sh"]


PIP = """#!/bin/sh
while [ "$1" != --constraint ]; do shift; done
cat "$2" >"$(dirname "$0")/constraints"
exit 1
"""


def test_an_extra_is_constrained_to_one_version_of_each_package(tmp_path: Path) -> None:
    """The lock has some packages in two versions, each for the Pythons that its marker names."""
    root, bin_ = SCRIPT.parent, tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    for name in ("setup.sh", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(root / name, tmp_path)
    installed = (root / "requirements.lock").read_bytes() + (root / "pyproject.toml").read_bytes()
    stamp = f"{hashlib.sha256(installed).hexdigest()}  -\n"
    (tmp_path / ".venv" / "requirements.lock.installed").write_text(stamp)
    (bin_ / "python").symlink_to(sys.executable)
    (bin_ / "pip").write_text(PIP)
    (bin_ / "pip").chmod(0o755)
    done = subprocess.run([tmp_path / "setup.sh", "install", "tensorboard"], check=False)
    assert done.returncode == 1  # the stand-in's
    found = [Requirement(line) for line in (bin_ / "constraints").read_text().splitlines()]
    for python in ("3.11.9", "3.12.9", "3.13.9"):
        here = {"python_full_version": python, "python_version": python[:4]}
        names = Counter(one.name for one in found if one.marker is None or one.marker.evaluate(here))
        assert names["numpy"] == 1
        assert names.most_common(1)[0][1] == 1
