"""Whole runs to their report, as a user starts them: real processes on a few random images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from job import settings
from job.score import report as reports
from tests.archives import write_archive

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "2@1e-3", "--batch-size", "16"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "tiny.tar.gz", train=40, test=20, classes=5)


def train(archive: Path, run: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `micronet train` on the archive, with the last of an option that is given twice."""
    where = ["--data", str(archive), "--cache", str(archive.parent / "cache"), "--run", str(run)]
    return subprocess.run(
        [sys.executable, "-m", "job.cli", "train", *TINY, *where, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def report_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_bytes()))


def test_the_reports_schema_knows_every_precision() -> None:
    text = Path(reports.__file__).with_name("score-report.schema.json").read_text("utf-8")
    known = json.loads(text)["properties"]["training"]["properties"]["precision"]["enum"]
    assert sorted(known) == sorted(set(settings.PRECISIONS) - {"auto"})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_comes_to_its_report_in_every_precision(archive: Path, tmp_path: Path, precision: str) -> None:
    done = train(archive, tmp_path, "--precision", precision)
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path)["training"]["precision"] == precision
    assert (tmp_path / "report.html").is_file()
