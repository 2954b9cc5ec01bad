"""AWS Batch: the request for a job in the queue that infra/aws/micronet.yaml makes."""

from __future__ import annotations

from typing import Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from job.cloud.submission import Submission
from job.errors import RETRYABLE, ConfigurationError, JobError, MachineError, PermissionRefusedError
from job.store.s3_client import NO_CREDENTIALS, UNREACHABLE

ATTEMPTS = 10
"""The most that AWS Batch allows."""

VCPUS, MEMORY_MIB = 4, 13312
"""For each GPU of several; the defaults of infra/aws/micronet.yaml, which fit any machine of several GPUs."""

HOST_LOST = "Host EC2*"
"""How AWS Batch's status reason begins when the instance is gone, interrupted or broken:
https://aws.amazon.com/blogs/compute/introducing-retry-strategies-for-aws-batch/."""

_CONFIG = Config(connect_timeout=10, read_timeout=20, retries={"mode": "standard", "max_attempts": 3})
_REFUSED = ("AccessDenied", "ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch", "Unrecognized")


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
    said = f"{where}: {error}".rstrip(".")
    if isinstance(error, NO_CREDENTIALS):
        return PermissionRefusedError(
            said, "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        )
    if isinstance(error, boto.NoRegionError):
        return ConfigurationError(said, "Set AWS_DEFAULT_REGION to the stack's region")
    if isinstance(error, UNREACHABLE):
        return MachineError(said, "Check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL")
    return ConfigurationError(said, "Check the options and the AWS variables")


def _explain_answer(error: boto.ClientError, where: str) -> JobError:
    code = str(error.response["Error"].get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    said = f"{where}: HTTP {status} {code}: {error.response['Error'].get('Message', '')}".rstrip(".")
    if status in (401, 403) or code.startswith(_REFUSED):
        return PermissionRefusedError(said, "Allow batch:SubmitJob for the queue and the job definition")
    if status >= 500 or status == 429 or code.startswith(("Throttling", "TooManyRequests")):
        return MachineError(said, "Try later")
    return ConfigurationError(
        said, "Name the stack's queue and job definition with --queue and --definition, in its region"
    )
