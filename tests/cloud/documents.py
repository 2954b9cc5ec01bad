"""The documents under test: those of infra/, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from job.commands import cli
from job.errors import JobError

ROOT = Path(__file__).parent.parent.parent
INFRA = ROOT / "infra"
IMAGE = "registry.example.com/micronet@sha256:" + "0123456789abcdef" * 4


class _Template(yaml.SafeLoader):
    """CloudFormation's short forms: `!Sub x` is {"Fn::Sub": "x"}."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.ScalarNode)
        value = loader.construct_scalar(node)
    return {name if name == "Ref" else f"Fn::{name}": value}


_Template.add_multi_constructor("!", _function)


def aws_template() -> dict[str, Any]:
    return yaml.load((INFRA / "aws/micronet.yaml").read_text(), _Template)


def google_job() -> dict[str, Any]:
    return json.loads((INFRA / "google/micronet.json").read_text())


def kubernetes_job(name: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / f"kubernetes/{name}.yaml").read_text())


def micronet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; an empty variable is removed."""
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "job.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value},
        timeout=60,
        check=False,
    )


def rendered(*arguments: str) -> str:
    """Return what `--dry-run` prints; runs in this process."""
    done = CliRunner().invoke(cli, ["submit", *arguments, "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert done.stderr == ""
    return done.stdout


def refusal(*arguments: str) -> JobError:
    """Return the error that `submit` raises for these options; runs in this process."""
    done = CliRunner().invoke(cli, ["submit", *arguments])
    assert isinstance(done.exception, JobError), done.exception
    assert done.output == ""
    return done.exception


def assert_one_clear_line(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in words), line
