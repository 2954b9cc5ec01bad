"""Google Batch: the document is the official client's, and is sent by it over real HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import batch_v1

from job.cloud import google
from job.cloud.submission import training
from job.errors import JobError, MachineError, PermissionRefusedError, UsageError
from tests.cloud.documents import (
    IMAGE,
    INFRA,
    ROOT,
    assert_one_clear_line,
    google_job,
    micronet,
    refusal,
    rendered,
)
from tests.cloud.servers import Recorder, nobody

OPTIONS = (
    "gcp", "--run", "s3://my-bucket/runs/first", "--image", IMAGE, "--project", "my-project",
    "--region", "us-central1",
)  # fmt: skip


def test_the_document_parses_strictly() -> None:
    job = batch_v1.Job.from_json((INFRA / "google/micronet.json").read_text(), ignore_unknown_fields=False)
    (group,) = job.task_groups
    spec = group.task_spec
    assert (group.task_count, group.task_count_per_node) == (1, 1)  # a machine has one GPU
    assert (spec.max_retry_count, spec.max_run_duration.total_seconds()) == (10, 86400)
    assert spec.lifecycle_policies[0].action == batch_v1.LifecyclePolicy.Action.RETRY_TASK
    (instance,) = job.allocation_policy.instances
    assert instance.policy.provisioning_model == batch_v1.AllocationPolicy.ProvisioningModel.SPOT
    assert instance.install_gpu_drivers
    (runnable,) = spec.runnables
    assert runnable.container.image_uri == IMAGE
    assert runnable.container.commands[:3] == ["train", "--run", "gs://my-bucket/runs/first"]
    assert "--read-only" in runnable.container.options
    assert "--shm-size=1024m" in runnable.container.options
    assert not spec.environment.secret_variables  # the machine's identity is enough
    assert job.allocation_policy.service_account.email == "micronet@my-project.iam.gserviceaccount.com"
    assert job.logs_policy.destination == batch_v1.LogsPolicy.Destination.CLOUD_LOGGING


def test_a_misspelt_field_would_be_noticed() -> None:
    job = google_job()
    job["taskGroups"][0]["taskSpec"]["maxRetryCounts"] = 3
    with pytest.raises(Exception, match="maxRetryCounts"):
        batch_v1.Job.from_json(json.dumps(job), ignore_unknown_fields=False)


def test_an_array_and_a_run_without_a_gpu() -> None:
    job = json.loads(rendered(*OPTIONS, "--array", "3", "--device", "cpu", "--demo", "--grace", "25s"))
    (group,) = job["taskGroups"]
    assert (group["taskCount"], group["parallelism"]) == (3, 3)
    assert group["taskSpec"]["environment"]["variables"]["MICRONET_ARRAY"] == "3"
    commands = group["taskSpec"]["runnables"][0]["container"]["commands"]
    assert commands[-3:] == ["--demo", "--grace", "25"]
    (instance,) = job["allocationPolicy"]["instances"]
    assert instance["installGpuDrivers"] is False
    assert instance["policy"]["machineType"] == "n2-standard-4"
    chosen = rendered(*OPTIONS, "--device", "cpu", "--machine-type", "c3-standard-8")
    assert '"machineType": "c3-standard-8"' in chosen


def policy(*options: str) -> dict[str, Any]:
    """Return the policy of a job's instances; the official client knows all its fields."""
    job = rendered(*OPTIONS, *options)
    batch_v1.Job.from_json(job, ignore_unknown_fields=False)
    return json.loads(job)["allocationPolicy"]["instances"][0]["policy"]


def test_a_driver_and_a_gpu_are_named() -> None:
    assert "accelerators" not in policy()
    l4 = {"type": "nvidia-l4", "count": 1, "driverVersion": "580.95.05"}
    assert policy("--driver=580.95.05")["accelerators"] == [l4]
    t4 = policy("--machine-type=n1-standard-4", "--accelerator=nvidia-tesla-t4")
    assert (t4["machineType"], t4["accelerators"]) == (
        "n1-standard-4",
        [{"type": "nvidia-tesla-t4", "count": 1}],
    )


def several(gpus: int, *machine: str | None) -> dict[str, Any]:
    """Return a job on so many GPUs; `machine` are the fields of google.Machine."""
    submission = training("s3://my-bucket/runs/first", {"shards": 8}, gpus=gpus, timeout_seconds=60)
    job = google.document(submission, IMAGE, "us-central1", google.Machine(*machine), None, {})
    batch_v1.Job.from_json(json.dumps(job), ignore_unknown_fields=False)
    return job


def test_several_gpus_take_as_many_shares_of_their_machine() -> None:
    (group,) = several(4)["taskGroups"]
    spec = group["taskSpec"]
    assert spec["computeResource"] == {"cpuMilli": 14000, "memoryMib": 49152}
    (runnable,) = spec["runnables"]
    assert "--shm-size=4096m" in runnable["container"]["options"]
    assert runnable["container"]["commands"][-2:] == ["--processes", "4"]


@pytest.mark.parametrize(
    ("gpus", "machine", "policy"),
    [
        (2, (), ("g2-standard-24", None)),
        (8, (), ("g2-standard-96", None)),
        (8, ("a3-megagpu-8g", None, "580.95.05"), ("a3-megagpu-8g", ("nvidia-h100-mega-80gb", 8))),
        (4, ("n1-standard-16", "nvidia-tesla-t4"), ("n1-standard-16", ("nvidia-tesla-t4", 4))),
        (4, ("g4-standard-192",), ("g4-standard-192", None)),
    ],
)
def test_the_machine_has_the_gpus(
    gpus: int, machine: tuple[str | None, ...], policy: tuple[str, tuple[str, int] | None]
) -> None:
    found = several(gpus, *machine)["allocationPolicy"]["instances"][0]["policy"]
    gpu = next(((one["type"], one["count"]) for one in found.get("accelerators", [])), None)
    assert (found["machineType"], gpu) == policy


@pytest.mark.parametrize(
    ("gpus", "machine", "has"),
    [(1, "a3-megagpu-8g", 8), (4, "g2-standard-4", 1), (2, "g2-standard-96", 8), (8, "a2-highgpu-4g", 4)],
)
def test_a_machine_of_other_gpus_is_refused(gpus: int, machine: str, has: int) -> None:
    with pytest.raises(UsageError, match=f"{machine} has {has} GPUs and --gpus is {gpus}") as caught:
        several(gpus, machine)
    assert f"--gpus {has}" in caught.value.fix


def test_a_driver_for_an_unknown_gpu_is_refused() -> None:
    error = refusal(*OPTIONS, "--machine-type=n1-standard-4", "--driver=580.95.05", "--dry-run")
    assert error.exit_code == 2
    assert "n1-standard-4" in error.message
    assert "--accelerator" in error.fix


def test_a_run_in_another_store_has_its_address_and_its_keys() -> None:
    key = "projects/my-project/secrets/s3-key/versions/latest"
    store = "AWS_ENDPOINT_URL_S3=https://s3.example.com"
    (group,) = json.loads(rendered(*OPTIONS, "--env", store, "--secret", f"AWS_ACCESS_KEY_ID={key}"))[
        "taskGroups"
    ]
    environment = group["taskSpec"]["environment"]
    assert environment["variables"]["AWS_ENDPOINT_URL_S3"] == "https://s3.example.com"
    assert environment["secretVariables"] == {"AWS_ACCESS_KEY_ID": key}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A service account's key, made here; the client signs its tokens with it itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("google") / "account.json"
    document = {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "1",
        "private_key": key.decode(),
        "client_email": "tests@my-project.iam.gserviceaccount.com",
        "token_uri": nobody(),
    }
    path.write_text(json.dumps(document))
    return str(path)


def submit(account: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    return micronet(
        "submit", *OPTIONS,
        GOOGLE_APPLICATION_CREDENTIALS=account, CLOUDSDK_API_ENDPOINT_OVERRIDES_BATCH=endpoint,
    )  # fmt: skip


def test_submit(recorder: Recorder, account: str) -> None:
    done = submit(account, recorder.uri)
    assert done.returncode == 0, done.stderr
    job = done.stdout.splitlines()[0].split()[-1]
    parent, _, job_id = job.partition("/jobs/")
    assert parent == "projects/my-project/locations/us-central1"
    assert f"/us-central1/jobs/{job_id}/details?project=my-project" in done.stdout

    ((path, authorization, body),) = recorder.requests
    assert path.partition("?")[0] == f"/v1/{parent}/jobs"
    assert f"jobId={job_id}" in path
    assert authorization.startswith("Bearer ")
    sent = batch_v1.Job.from_json(json.dumps(body), ignore_unknown_fields=False)
    assert sent == batch_v1.Job.from_json(rendered(*OPTIONS))


def called(monkeypatch: pytest.MonkeyPatch, account: str, endpoint: str) -> str:
    """Submit the job in this process; return its id."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", account)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_BATCH", endpoint)
    return google.submit(google_job(), "micronet-first", "my-project", "us-central1")[0]


def test_submit_again_is_the_same_command(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    assert called(monkeypatch, account, recorder.uri) != called(monkeypatch, account, recorder.uri)
    assert len(recorder.requests) == 2


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 77), (403, 77), (404, 78), (400, 78), (429, 74), (503, 74), (504, 74)]
)
def test_refusals(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, account: str, status: int, exit_code: int
) -> None:
    recorder.status = status
    recorder.answer = {"error": {"code": status, "message": "the reason given"}}
    with pytest.raises(
        JobError, match=r"projects/my-project/locations/us-central1.*the reason given"
    ) as caught:
        called(monkeypatch, account, recorder.uri)
    assert caught.value.exit_code == exit_code
    assert caught.value.fix
    assert ("gcloud auth application-default login" in caught.value.fix) == (status == 401)
    assert "PRIVATE KEY" not in str(caught.value)


def test_refused_on_the_command_line(recorder: Recorder, account: str) -> None:
    recorder.status, recorder.answer = 403, {"error": {"code": 403, "message": "the reason given"}}
    assert_one_clear_line(submit(account, recorder.uri), 77, "the reason given", "roles/batch.jobsEditor")


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        (
            "Permission 'iam.serviceaccounts.actAs' denied on service account x",
            "roles/iam.serviceAccountUser",
        ),
        (
            "Permission 'batch.jobs.create' denied on 'projects/p/locations/l/jobs/j'",
            "roles/batch.jobsEditor",
        ),
        ("Batch API has not been used in project 1 before or it is disabled", "gcloud services enable"),
    ],
)
def test_a_refusal_names_the_role_that_is_missing(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, account: str, message: str, fix: str
) -> None:
    recorder.status, recorder.answer = 403, {"error": {"code": 403, "message": message}}
    with pytest.raises(PermissionRefusedError) as caught:
        called(monkeypatch, account, recorder.uri)
    assert fix in caught.value.fix


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, account: str) -> None:
    with pytest.raises(MachineError) as caught:
        called(monkeypatch, account, nobody())
    assert "CLOUDSDK_API_ENDPOINT_OVERRIDES_BATCH" in caught.value.fix


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PermissionRefusedError, match=r"absent\.json") as caught:
        called(monkeypatch, str(tmp_path / "absent.json"), nobody())
    assert "gcloud auth application-default login" in caught.value.fix


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter that has no such module."""
    code = f"import sys; sys.modules[{module!r}] = None; from job.cli import main; main()"
    environment: dict[str, Any] = {**os.environ}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=False,
    )  # fmt: skip


def test_without_the_client() -> None:
    done = without("google.cloud.batch_v1", "submit", *OPTIONS)
    assert_one_clear_line(done, 78, "./setup.sh install google")
    done = without("google.cloud.batch_v1", "submit", *OPTIONS, "--dry-run")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(rendered(*OPTIONS))
