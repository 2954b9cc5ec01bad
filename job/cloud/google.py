"""Google Batch: the document of a job on Spot VMs, and its submission."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from job.cloud.submission import Submission, explain_answer
from job.errors import (
    RETRYABLE,
    ConfigurationError,
    JobError,
    MachineError,
    PermissionRefusedError,
    UsageError,
)
from job.machine.launch import SHARED_MEMORY_MIB

RETRIES = 10
"""The most that Google Batch allows."""

HOST_LOST = (50001, 50002, 50003, 50004, 50006)
"""Batch's own exit codes: the VM was preempted, unreachable, rebooted, hung, recreated. 50005, the time
limit, is not retried: https://cloud.google.com/batch/docs/troubleshooting#reserved-exit-codes."""

CPU_MILLI, MEMORY_MIB = 3500, 12288
"""Thousandths of a vCPU and MiB that a task requests for each GPU.

The smallest machine with an L4 has 4 vCPU and 16 GiB.
"""

MACHINE_TYPES = {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}
"""The smallest machine with so many L4s."""

WITHOUT_GPU = "n2-standard-4"
"""The machine of a task without a GPU: 4 vCPU and 16 GiB."""

COUNTS = {
    "g2-standard": {24: 2, 48: 4, 96: 8},
    "g4-standard": {96: 2, 192: 4, 384: 8},
}
"""GPUs of the machine types with several whose names do not end with their number, by their vCPUs:
https://cloud.google.com/compute/docs/gpus."""

GPUS = {
    "g2-": "nvidia-l4",
    "g4-": "nvidia-rtx-pro-6000",
    "a2-highgpu-": "nvidia-tesla-a100",
    "a2-ultragpu-": "nvidia-a100-80gb",
    "a3-highgpu-": "nvidia-h100-80gb",
    "a3-megagpu-": "nvidia-h100-mega-80gb",
    "a3-ultragpu-": "nvidia-h200-141gb",
}
"""The GPUs of machine types that have their own: https://cloud.google.com/compute/docs/gpus."""

DISK_GB = 60
"""Enough for the image of 7 GB and its layers while they are unpacked."""

_CONNECT_SECONDS = 20
_ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_BATCH"
"""The variable that overrides the address of the API, for gcloud too."""


@dataclass(frozen=True)
class Machine:
    """The kind of VM: its machine type, the GPU added to it, and the driver that Batch is to install.

    A `type` of None is the smallest of MACHINE_TYPES that has the GPUs, or WITHOUT_GPU.
    """

    type: str | None = None
    accelerator: str | None = None
    driver: str | None = None

    def policy(self, gpus: int) -> dict[str, Any]:
        """Return the fields of the instance policy for `gpus` GPUs, 0 where a processor trains.

        Raises UsageError for a driver of an unknown GPU, and for a machine type of another number of GPUs.
        """
        machine_type = self.type or (MACHINE_TYPES.get(gpus) if gpus else WITHOUT_GPU)
        if machine_type is None:
            raise UsageError(f"--gpus {gpus}: no G2 machine has so many", "Name another with --machine-type")
        count = gpus_of(machine_type)
        if gpus and count not in (None, gpus):
            raise UsageError(
                f"--machine-type {machine_type} has {count} GPUs and --gpus is {gpus}",
                f"Give --gpus {count}, or a machine type with {gpus}",
            )
        if not (self.accelerator or self.driver):
            return {"machineType": machine_type}
        gpu = self.accelerator or next(
            (gpu for prefix, gpu in GPUS.items() if machine_type.startswith(prefix)), None
        )
        if gpu is None:
            raise UsageError(
                f"--driver: the GPU of {machine_type} is not known here", "Name it with --accelerator"
            )
        accelerator = {"type": gpu, "count": max(1, gpus)}
        accelerator |= {"driverVersion": self.driver} if self.driver else {}
        return {"machineType": machine_type, "accelerators": [accelerator]}


def gpus_of(machine_type: str) -> int | None:
    """Return how many GPUs a machine type has of its own; None where its name does not say."""
    family, _, size = machine_type.rpartition("-")
    if size.endswith("g") and size[:-1].isdecimal():  # a3-highgpu-8g
        return int(size[:-1])
    if family in COUNTS and size.isdecimal():
        return COUNTS[family].get(int(size), 1)
    return None


def document(
    submission: Submission,
    image: str,
    region: str,
    machine: Machine,
    service_account: str | None,
    secret_variables: Mapping[str, str],
) -> dict[str, Any]:
    """Return the job; `secret_variables` maps names to versions in the Secret Manager."""
    share = max(1, submission.gpus)
    container = {
        "imageUri": image,
        "commands": list(submission.arguments),
        # Batch adds what the GPU needs: https://github.com/GoogleCloudPlatform/batch-samples/issues/18
        "options": f"--read-only --tmpfs=/tmp --shm-size={SHARED_MEMORY_MIB * share}m --cap-drop=ALL "
        "--security-opt=no-new-privileges",
    }
    spec = {
        "runnables": [{"container": container}],
        "environment": {"variables": dict(submission.environment), "secretVariables": dict(secret_variables)},
        "computeResource": {"cpuMilli": CPU_MILLI * share, "memoryMib": MEMORY_MIB * share},
        "maxRunDuration": f"{submission.timeout_seconds}s",
        "maxRetryCount": RETRIES,
        "lifecyclePolicies": lifecycle_policies(),
    }
    instance = {
        "installGpuDrivers": submission.gpus > 0,
        "policy": {
            **machine.policy(submission.gpus),
            "provisioningModel": "SPOT",
            "bootDisk": {"sizeGb": DISK_GB},
        },
    }
    policy = {"instances": [instance], "location": {"allowedLocations": [f"regions/{region}"]}}
    if service_account:
        policy["serviceAccount"] = {"email": service_account}
    seeds = submission.seeds or 1
    return {
        "taskGroups": [
            {"taskCount": seeds, "parallelism": seeds, "taskCountPerNode": 1, "taskSpec": spec},
        ],
        "allocationPolicy": policy,
        "logsPolicy": {"destination": "CLOUD_LOGGING"},
        "labels": {"micronet": submission.name},
    }


def lifecycle_policies() -> list[dict[str, Any]]:
    """Return the one policy that Batch supports; exit codes that it does not list fail the task."""
    return [{"action": "RETRY_TASK", "actionCondition": {"exitCodes": [*RETRYABLE, *HOST_LOST]}}]


def submit(job: dict[str, Any], name: str, project: str, region: str) -> tuple[str, str]:
    """Create the job; return its id and the console's page for it. Raises JobError."""
    try:
        from google.api_core import client_options, exceptions
        from google.auth import exceptions as auth
        from google.cloud import batch_v1
        from requests import RequestException
    except ImportError as error:
        raise ConfigurationError(
            f"the client of Google Batch is not installed ({error})", "Run ./setup.sh install google"
        ) from error

    job_id = f"{name}-{secrets.token_hex(3)}"
    parent = f"projects/{project}/locations/{region}"
    try:
        client = batch_v1.BatchServiceClient(
            transport="rest",
            client_options=client_options.ClientOptions(api_endpoint=os.environ.get(_ENDPOINT)),
        )
        client.create_job(
            parent=parent,
            job=batch_v1.Job.from_json(json.dumps(job)),
            job_id=job_id,
            timeout=_CONNECT_SECONDS,
        )
    except RequestException as error:
        raise MachineError(f"{parent}: {error}", f"Check the network and {_ENDPOINT}") from error
    except (exceptions.GoogleAPIError, auth.GoogleAuthError) as error:
        raise _explain(error, parent) from error
    console = "https://console.cloud.google.com/batch/jobsDetail/regions"
    return f"{parent}/jobs/{job_id}", f"{console}/{region}/jobs/{job_id}/details?project={project}"


def _explain(error: Exception, where: str) -> JobError:
    from google.auth import exceptions as auth

    message = f"{where}: {error}".rstrip(".")
    if isinstance(error, auth.TransportError):
        return MachineError(message, f"Check the network and {_ENDPOINT}")
    if isinstance(error, auth.GoogleAuthError):
        return PermissionRefusedError(
            message, "Run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"
        )
    return explain_answer(
        getattr(error, "code", None),
        message,
        renew="Run gcloud auth application-default login, or renew the key in GOOGLE_APPLICATION_CREDENTIALS",
        permit=_missing_right(message),
        correct="Check --project, --region, --machine-type and --service-account",
    )


def _missing_right(message: str) -> str:
    """Return what to do about a 403, by what its message names."""
    if "SERVICE_DISABLED" in message or "has not been used in project" in message:
        return "Run gcloud services enable batch.googleapis.com"
    if "actAs" in message or "service account" in message.lower():
        return "Ask for the role roles/iam.serviceAccountUser on the job's service account"
    return "Ask for the role roles/batch.jobsEditor in the project"
