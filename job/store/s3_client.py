"""The connection to an S3 service: which requests it takes, and the job's errors for those of boto3."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import OperationModel
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError, LocationParseError

from job.errors import NO_THREAD, NO_THREAD_FIX, ConfigurationError, JobError, MachineError
from job.store import answers
from job.store.answers import Answers
from job.store.base import AbsentError, ConflictError, DoubtfulError, RefusedError, TransientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UNTYPED = {
    "credentials are still expired": "Renew the credentials at their source",
    NO_THREAD: NO_THREAD_FIX,
}
"""The fix for a RuntimeError of botocore or Python that has no type of its own, by its text."""

ENDPOINT = "AWS_ENDPOINT_URL_S3"
REQUEST_ID = "x-amz-request-id"

Checksums = Literal["when_supported", "when_required"]
CHECKSUM_MODES: tuple[Checksums, ...] = ("when_supported", "when_required")
Style = Literal["auto", "path", "virtual"]
STYLES: tuple[Style, ...] = ("path", "virtual")


class ForeignAnswerError(boto.BotoCoreError):
    """An answer that is not S3's: a proxy's, a load balancer's, a captive portal's."""

    fmt = "HTTP {status} with {kind}, which is not an answer of S3"


ERRORS = (boto.BotoCoreError, boto.ClientError, HTTPError)
"""The errors of boto3, and those of urllib3 while a body is read."""

FOREIGN = (ForeignAnswerError, ResponseParserError)

_TRANSIENT = {
    "ExpiredToken",  # the next request renews the credentials
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
NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.SSOError, boto.ProfileNotFound)
UNREACHABLE = (
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


@cache
def service_descriptions() -> Loader:
    """Return what reads botocore's descriptions of its services: a megabyte of JSON, once a process."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


class Connection:
    """Clients for one bucket, made when they are first needed; nothing is sent before the first request.

    Endpoint, region and credentials come from the standard AWS variables, files and roles; credentials are
    renewed when they expire. `addressing` (path, virtual, or auto on AWS), `checksums` and
    `clock_ahead_seconds` are None until a request has shown them.
    """

    def __init__(self, bucket: str, folder: str) -> None:
        self.uri = f"s3://{bucket}/{folder}".rstrip("/")
        self._bucket, self._folder = bucket, folder
        self._connecting = threading.Lock()
        self.addressing: Style | None = None
        self.checksums: Checksums | None = None
        self.clock_ahead_seconds: float | None = None
        self._answers = Answers()

    @property
    def endpoint(self) -> str:
        """The service's URL."""
        return self._client("auto").meta.endpoint_url

    def credentials(self) -> Credentials | None:
        """Return the credentials in use, if there are any; raise RefusedError where their source fails."""
        with self.errors():
            return self._session.get_credentials()

    @cached_property
    def reader(self) -> S3Client:
        """The client for requests without a body."""
        return self._client(self._style())

    def writer(self, try_out: Callable[[S3Client], None]) -> S3Client:
        """Return a client whose checksums the service accepts: some refuse them, some store them as content.

        `try_out` writes and reads with a client and raises JobError where that fails.
        """
        refusals: list[JobError] = []
        for checksums in CHECKSUM_MODES:
            client = self._client(self._style(), checksums)
            try:
                try_out(client)
            except JobError as error:
                if isinstance(error, TransientError) and not isinstance(error, DoubtfulError):
                    raise
                refusals.append(error)
            else:
                self.checksums = checksums
                return client
        raise refusals[-1]

    @contextlib.contextmanager
    def errors(self, key: str = "") -> Iterator[None]:
        """Raise the JobError for what boto3 raises in the block, in a request about `key`."""
        try:
            yield
        except ERRORS as error:
            raise self._explain(error, f"{self.uri}/{key}".rstrip("/")) from error
        except ValueError as error:  # boto3's for an endpoint that is not a URL
            raise answers.not_a_url(ENDPOINT, self.uri) from error
        except RuntimeError as error:
            fix = next((fix for words, fix in UNTYPED.items() if words in str(error)), None)
            if fix is None:
                raise
            raise TransientError(f"{self.uri}: {error}", fix) from error

    def _explain(self, error: Exception, where: str) -> JobError:
        known = from_boto(error, where)
        if isinstance(error, FOREIGN):
            no_s3 = ConfigurationError(known.message, "Check AWS_ENDPOINT_URL_S3 and the bucket's name")
            return self._answers.not_the_service(known, no_s3)
        return self._answers.doubted_if_allowed_before(known, getattr(error, "operation_name", None))

    def _style(self) -> Style:
        """Return how buckets are addressed: on AWS boto3 knows it, elsewhere the service is tried."""
        if self.addressing is None:
            host = urlsplit(self.endpoint).hostname or ""
            on_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
            self.addressing = "auto" if on_aws else self._answering_style()
        return self.addressing

    def _answering_style(self) -> Style:
        for style in STYLES:
            try:
                with self.errors():
                    client = self._client(style)
                    client.list_objects_v2(Bucket=self._bucket, Prefix=self._folder, MaxKeys=1)
            except DoubtfulError:
                continue
            except TransientError:
                if style == "path":
                    raise
            except JobError:
                continue
            else:
                return style
        # Listing may be forbidden where reading is allowed; any other error comes with the next request.
        return "path"

    def _client(self, style: Style, checksums: Checksums = "when_supported") -> S3Client:
        config = Config(
            connect_timeout=answers.CONNECT_SECONDS,
            read_timeout=answers.READ_SECONDS,  # boto3's own are 60 s each, three times
            retries={"total_max_attempts": 1, "mode": "standard"},  # RetryingStore does that
            s3={"addressing_style": style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )
        with self._connecting, self.errors():  # a session may be used by one thread at a time
            # AWS's services set AWS_REGION, which boto3 does not read. A wrong region gets a redirect.
            region = self._session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
            client = self._session.client("s3", region_name=region, config=config)
            if re.search(r"\s", client.meta.endpoint_url):  # boto3 would send requests to its host
                raise ValueError(client.meta.endpoint_url)
        client.meta.events.register("before-parse.s3", self._inspect)
        return client

    @cached_property
    def _session(self) -> boto3.session.Session:
        core = botocore.session.Session()
        core.register_component("data_loader", service_descriptions())
        return boto3.session.Session(botocore_session=core)

    def _inspect(self, operation_model: OperationModel, response_dict: dict[str, Any], **_: Any) -> None:
        """Read the service's clock; raise ForeignAnswerError for an answer that is not an S3 service's."""
        status, headers = response_dict["status_code"], response_dict["headers"]
        with contextlib.suppress(ValueError, TypeError):  # no date, or an invalid one
            self.clock_ahead_seconds = time.time() - parsedate_to_datetime(headers.get("date")).timestamp()
        if status >= 500 or status == 429:  # retried, whoever it is from
            return
        if not self._is_genuine(status, headers, response_dict["body"]):
            kind = headers.get("content-type") or "no type"
            raise ForeignAnswerError(status=status, kind=kind)
        self._answers.seen(REQUEST_ID in headers)
        if status < 300:
            self._answers.allowed.add(operation_model.name)

    def _is_genuine(self, status: int, headers: Any, body: Any) -> bool:
        if REQUEST_ID in headers:
            return True
        if status >= 300:
            return b"<Code>" in body  # of S3's error document
        return not self._answers.send_ids and "html" not in headers.get("content-type", "")


def from_boto(error: Exception, where: str) -> JobError:
    """Return the JobError for one of ERRORS; `where` is the URI of the request."""
    if isinstance(error, boto.ClientError):
        return _from_answer(error, where)
    if isinstance(error, NO_CREDENTIALS):
        return RefusedError(
            f"{where}: {error}", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigurationError(f"{where}: {error}", "Name the authority's certificate in AWS_CA_BUNDLE")
    if isinstance(error, boto.HTTPClientError) and isinstance(error.__context__, LocationParseError):
        return answers.not_a_url(answers.PROXY, where)
    if isinstance(error, boto.EndpointResolutionError):
        return answers.not_a_url(ENDPOINT, where)
    if isinstance(error, UNREACHABLE):
        return TransientError(f"{where}: {error}", "Check the network and AWS_ENDPOINT_URL_S3")
    return ConfigurationError(f"{where}: {error}", "Check the bucket's name and the AWS variables")


def _from_answer(error: boto.ClientError, where: str) -> JobError:
    code = str(error.response["Error"].get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    answer = f"{where}: HTTP {status} {code}: {error.response['Error'].get('Message', '')}"
    if code == "NoSuchKey":  # not any 404: others than S3 answer that too
        return AbsentError(f"there is no {where}")
    if code == "NoSuchBucket":
        return ConfigurationError(
            f"{where}: there is no such bucket", "Create it, or correct its name or AWS_ENDPOINT_URL_S3"
        )
    if code == "RequestTimeTooSkewed":
        return MachineError(answer, "Set this machine's clock")
    if code == "NotImplemented":  # 501, which would otherwise be retried
        return ConfigurationError(answer, "Use a store with this request, such as AWS S3 or SeaweedFS")
    if code in _TRANSIENT or status >= 500 or status == 429:
        return TransientError(answer, "Try later")
    if status == 412:
        return ConflictError(f"{where} has been written by someone else")
    if code in _WRONG_KEYS:
        return RefusedError(answer, "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN")
    if status in (401, 403):
        return RefusedError(
            answer, "Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket for this prefix"
        )
    return ConfigurationError(answer, "Check the bucket's name, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3")
