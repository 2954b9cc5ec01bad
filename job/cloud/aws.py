"""AWS Batch: the request for a job in the queue that infra/aws/micronet.yaml makes."""

from __future__ import annotations

from typing import Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from job.cloud.submission import Submission, explain_answer
from job.errors import RETRYABLE, ConfigurationError, JobError, MachineError, PermissionRefusedError
from job.store.s3_client import NO_CREDENTIALS, UNREACHABLE

ATTEMPTS = 10
"""The most that AWS Batch allows."""

VCPUS, MEMORY_MIB = 4, 13312
"""vCPUs and MiB that a job of several GPUs requests for each GPU.

They are the defaults of infra/aws/micronet.yaml, and fit any machine of several GPUs.
"""

HOST_LOST = "Host EC2*"
"""How AWS Batch's status reason begins when the instance is gone, interrupted or broken:
https://aws.amazon.com/blogs/compute/introducing-retry-strategies-for-aws-batch/."""

_CONFIG = Config(connect_timeout=10, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
_MEANINGS = {
    401: (
        "ExpiredToken",
        "InvalidClientTokenId",
        "InvalidSignature",
        "SignatureDoesNotMatch",
        "Unrecognized",
    ),
    403: ("AccessDenied",),
    429: ("Throttling", "TooManyRequests"),
}
"""The HTTP status that codes stand for, by how they begin; AWS sends many with 400 or 403."""

_RENEW = "Renew the credentials (aws sso login, or a new key), and check this machine's clock"


def request(submission: Submission, queue: str, definition: str) -> dict[str, Any]:
    """Return the SubmitJob request; image, a single GPU and unset times come from the job definition."""
    variables = [{"name": name, "value": value} for name, value in submission.environment.items()]
    document: dict[str, Any] = {
        "jobName": submission.name,
        "jobQueue": queue,
        "jobDefinition": definition,
        "containerOverrides": {"command": list(submission.arguments), "environment": variables},
        "retryStrategy": retry_strategy(),
    }
    if submission.gpus > 1:
        document["containerOverrides"]["resourceRequirements"] = [
            {"type": "GPU", "value": str(submission.gpus)},
            {"type": "VCPU", "value": str(VCPUS * submission.gpus)},
            {"type": "MEMORY", "value": str(MEMORY_MIB * submission.gpus)},
        ]
    if submission.seeds is not None:
        document["arrayProperties"] = {"size": submission.seeds}
    if submission.timeout_seconds is not None:
        document["timeout"] = {"attemptDurationSeconds": submission.timeout_seconds}
    return document


def retry_strategy() -> dict[str, Any]:
    """Return the conditions, tried in order; at most five are allowed, and without a match Batch retries."""
    conditions = [{"onStatusReason": HOST_LOST, "action": "RETRY"}]
    conditions += [{"onExitCode": str(code), "action": "RETRY"} for code in RETRYABLE]
    conditions += [{"onReason": "*", "action": "EXIT"}]
    return {"attempts": ATTEMPTS, "evaluateOnExit": conditions}


def submit(document: dict[str, Any]) -> tuple[str, str]:
    """Queue the job; return its id and the console's page for it. Raises JobError."""
    where = f"the queue {document['jobQueue']}"
    try:
        client = boto3.client("batch", config=_CONFIG)
    except ValueError as error:  # boto3's error for an invalid endpoint
        raise ConfigurationError(f"{where}: {error}", "Correct AWS_ENDPOINT_URL") from error
    except boto.BotoCoreError as error:
        raise explain(error, where) from error
    try:
        job = client.submit_job(**document)
    except (boto.BotoCoreError, boto.ClientError) as error:
        raise explain(error, where) from error
    region = client.meta.region_name
    console = f"https://{region}.console.aws.amazon.com/batch/home?region={region}#jobs"
    return job["jobId"], f"{console}/detail/{job['jobId']}"


def explain(error: Exception, where: str) -> JobError:
    """Return the JobError for what boto3 raised at a request to `where`."""
    if isinstance(error, boto.ClientError):
        return _explain_answer(error, where)
    message = f"{where}: {error}".rstrip(".")
    if isinstance(error, boto.SSOError):
        return PermissionRefusedError(message, _RENEW)
    if isinstance(error, NO_CREDENTIALS):
        return PermissionRefusedError(
            message, "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        )
    if isinstance(error, boto.NoRegionError):
        return ConfigurationError(message, "Set AWS_DEFAULT_REGION to the stack's region")
    if isinstance(error, UNREACHABLE):
        return MachineError(message, "Check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL")
    return ConfigurationError(message, "Check the options and the AWS variables")


def _explain_answer(error: boto.ClientError, where: str) -> JobError:
    code = str(error.response["Error"].get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    message = f"{where}: HTTP {status} {code}: {error.response['Error'].get('Message', '')}".rstrip(".")
    for meaning, codes in _MEANINGS.items():
        if code.startswith(codes):
            status = meaning
    return explain_answer(
        status,
        message,
        renew=_RENEW,
        permit="Allow batch:SubmitJob for the queue and the job definition",
        correct="Name the stack's queue and job definition with --queue and --definition, in its region",
    )
