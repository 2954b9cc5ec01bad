"""`--compile`: the same keys are saved, the same bits after a kill, and a plain word without a compiler."""

import hashlib
import json
import signal
import sys
from pathlib import Path

import pytest

from job.checks.child import Child, named
from tests.archives import write_archive
from tests.forked import started

CONFIGURATION = 78  # the README's table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    write_archive(folder / "tiny.tar.gz", train=64, test=20, classes=5)
    return folder


def options(folder: Path, run: str) -> list[str]:
    where = [
        "--run",
        str(folder / run),
        "--data",
        str(folder / "tiny.tar.gz"),
        "--cache",
        str(folder / "cache"),
    ]
    recipe = [
        "--depth",
        "10",
        "--width",
        "1",
        "--batch-size",
        "16",
        "--cycles",
        "3@5e-3",
        "--precision",
        "bf16",
    ]
    return [*where, *recipe, "--compile", "--device", "cpu", "--checkpoint-every", "0.1s"]


def finish(child: Child) -> None:
    assert child.end() == 0, child.last_words()


def test_a_killed_compiled_run_ends_with_the_same_bits(folder: Path) -> None:
    with started(options(folder, "whole")) as child:
        finish(child)
    with started(options(folder, "killed")) as child:
        assert child.until(named("checkpoint"))
        child.signal(signal.SIGKILL)
        child.end()
    with started(options(folder, "killed")) as child:
        finish(child)
    assert "resume" in [event["event"] for event in child.events]
    whole, killed = ((folder / run / "weights.safetensors").read_bytes() for run in ("whole", "killed"))
    assert hashlib.sha256(whole).digest() == hashlib.sha256(killed).digest()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert "stem.weight" in header
    assert not any("_orig_mod" in name for name in header)
    assert list((folder / "cache" / "compiled").iterdir())
    assert not [path for path in (folder / "whole").rglob("*") if path.suffix in (".so", ".cpp", ".py")]


def test_without_a_compiler_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.delenv("CXX", raising=False)
    with started(options(folder, "none")) as child:
        assert child.end() == CONFIGURATION
    assert "there is no C++ compiler (g++ was not found)" in child.last_words()
