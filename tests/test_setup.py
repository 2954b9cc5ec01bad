"""setup.sh refuses what it cannot do before it installs anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "setup.sh"


@pytest.mark.parametrize(
    ("arguments", "python", "code", "words"),
    [
        (["test", "--fast"], None, 2, "--fast"),
        (["install", "numpy"], None, 2, "numpy"),
        (["install"], None, 2, "tensorboard or dev, not nothing"),
        (["install", "google", "kubernetes"], None, 2, "google kubernetes"),
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
