"""The job's errors for those of boto3."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from job.errors import ConfigurationError, JobError, MachineError
from job.store.base import AbsentError, ConflictError, RefusedError, TransientError


class ForeignAnswerError(boto.BotoCoreError):
    """An answer that no S3 service gives: a proxy's, a load balancer's, a captive portal's."""

    fmt = "HTTP {status} with {kind}, which is not an answer of S3"


ERRORS = (boto.BotoCoreError, boto.ClientError, HTTPError)
"""Everything that boto3 raises, and what urllib3 raises while a body is read."""

FOREIGN = (ForeignAnswerError, ResponseParserError)

_TRANSIENT = {
    "ExpiredToken",  # the next request asks the credentials' source again
    "ExpiredTokenException",
    "RequestTimeout",
    "RequestThrottled",
    "SlowDown",
    "ThrottlingException",
    "ConditionalRequestConflict",
    "OperationAborted",
    "BadDigest",  # this and the next three: the body was damaged on its way
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}
_NO_KEYS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.SSOError, boto.ProfileNotFound)
_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    ForeignAnswerError,
    ResponseParserError,
    HTTPError,
)


def explain(error: Exception, where: str) -> JobError:
    """Return the JobError for one of ERRORS, raised by a request about `where`."""
    if isinstance(error, boto.ClientError):
        return _explain_answer(error, where)
    if isinstance(error, _NO_KEYS):
        return RefusedError(
            f"{where}: {error}", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigurationError(f"{where}: {error}", "Name the authority's certificate in AWS_CA_BUNDLE")
    if isinstance(error, _UNREACHABLE):
        return TransientError(f"{where}: {error}", "Check the network and AWS_ENDPOINT_URL_S3")
    return ConfigurationError(f"{where}: {error}", "Check the bucket's name and the AWS variables")


def _explain_answer(error: boto.ClientError, where: str) -> JobError:
    code = str(error.response["Error"].get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    said = f"{where}: HTTP {status} {code}: {error.response['Error'].get('Message', '')}"
    if code == "NoSuchKey":  # not any 404: it is also the answer of what is not S3
        return AbsentError(f"there is no {where}")
    if code == "NoSuchBucket":
        return ConfigurationError(
            f"{where}: there is no such bucket", "Create it, or correct its name or AWS_ENDPOINT_URL_S3"
        )
    if code == "RequestTimeTooSkewed":
        return MachineError(said, "Set this machine's clock")
    if code == "NotImplemented":  # 501, which would otherwise be retried
        return ConfigurationError(said, "Use a store that knows this request, such as AWS S3 or SeaweedFS")
    if code in _TRANSIENT or status >= 500 or status == 429:
        return TransientError(said, "Try later")
    if status == 412:
        return ConflictError(f"{where} has been written by someone else")
    if code in _WRONG_KEYS:
        return RefusedError(said, "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN")
    if status in (401, 403):
        return RefusedError(
            said, "Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket for this prefix"
        )
    return ConfigurationError(said, "Check the bucket's name, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3")
