"""The workflow, the compose file and SkyPilot's are valid by their formats, and agree with the job."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import RETRYABLE
from tests.cloud.documents import INFRA, ROOT

WORKFLOW = ROOT / ".github/workflows/image.yaml"
COMPOSE = INFRA / "compose.yaml"
SKYPILOT = INFRA / "skypilot/micronet.yaml"


def check(schema: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", f"--builtin-schema=vendor.{schema}", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("schema", "file", "field"),
    [("github-workflows", WORKFLOW, "runs-on"), ("compose-spec", COMPOSE, "stop_grace_period")],
)
def test_the_schema_knows_every_field(schema: str, file: Path, field: str, tmp_path: Path) -> None:
    done = check(schema, file)
    assert done.returncode == 0, done.stdout + done.stderr
    misspelt = tmp_path / file.name
    misspelt.write_text(file.read_text().replace(f"{field}:", f"{field}s:"))
    assert check(schema, misspelt).returncode == 1


def steps() -> list[dict[str, Any]]:
    return [step for job in load(WORKFLOW)["jobs"].values() for step in job["steps"]]


def test_each_action_is_named_by_its_full_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert len(used) > 5
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", name)] == []


def test_scripts_of_the_workflow_are_sound_and_take_values_as_variables_only(tmp_path: Path) -> None:
    scripts = [step["run"] for step in steps() if "run" in step]
    assert [script for script in scripts if "${{" in script] == []
    script = tmp_path / "script.sh"
    script.write_text("\n".join(["#!/bin/bash", *scripts]))
    linter = Path(sys.executable).parent / "shellcheck"
    # The digests are words by intent; each script is a process of its own.
    done = subprocess.run(
        [linter, "--exclude=SC2046,SC2059,SC2153,SC2164", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_is_published_was_trained_with_and_is_signed() -> None:
    jobs = load(WORKFLOW)["jobs"]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("test", "build")
    (build,) = [step["with"] for step in jobs["build"]["steps"] if step.get("id") == "build"]
    assert (build["sbom"], build["provenance"]) == (True, "mode=max")
    assert "push-by-digest=true" in build["outputs"]  # the tag comes after the training
    (train,) = [step["run"] for step in jobs["build"]["steps"] if step.get("name") == "Train with it"]
    assert "train --demo --device cpu" in train
    assert "cosign sign" in jobs["publish"]["steps"][-1]["run"]
    assert load(WORKFLOW)["permissions"] == {"contents": "read"}


def test_compose_gives_the_container_what_it_needs() -> None:
    service = load(COMPOSE)["services"]["micronet"]
    mounts = dict(reversed(volume.split(":")) for volume in service["volumes"])
    assert mounts == {"/runs": "../runs", "/data": "../data"}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (service["stop_grace_period"], service["read_only"], service["tmpfs"]) == ("30s", True, "/tmp")


PARSE = """
import sys, sky, yaml
values = {"IMAGE": "registry.example.com/micronet", "RUN": "s3://my-bucket/runs/first"}
task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])), list(values.items()))
(resources,) = task.resources
print(resources.use_spot, resources.accelerators, resources.job_recovery["recover_on_exit_codes"])
"""


@pytest.mark.soak
def test_skypilot_parses_the_file(tmp_path: Path) -> None:
    """SkyPilot has an environment of its own: its requirements are many."""
    python = tmp_path / "environment/bin/python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "skypilot==0.14.1"], check=True)
    variables = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command: list[str | Path] = [python, "-c", PARSE, SKYPILOT]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "True {'L4': 1} [74, 75, 137]\n", done.stderr


def test_skypilot_recovers_what_deserves_another_attempt() -> None:
    task = load(SKYPILOT)
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == set(RETRYABLE)
    assert "image_id" not in task["resources"]
    assert task["resources"]["use_spot"] is True
    for name in task["envs"]:
        assert f'"${name}"' in task["run"]
