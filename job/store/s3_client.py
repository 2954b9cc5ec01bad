"""The connection to an S3 service: what it turns out to need, and whether an answer is the service's own."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.model import OperationModel

from job.errors import ConfigurationError, JobError
from job.store.base import DoubtfulError, RefusedError, TransientError
from job.store.s3_errors import ERRORS, FOREIGN, ForeignAnswerError, explain
from job.text import redact

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 10  # also the most that 16 KiB of an upload may take
READ_SECONDS = 20  # boto3's own are 60 s each, three times

FIRST_ANSWER_SECONDS = 5.0
"""How long an endpoint that has never answered as S3 is retried: it may be a bad moment, or no S3 at all."""

REFUSED_SECONDS = 60.0
"""How long what was allowed before may be refused: rotated keys and changed policies take effect slowly."""

UNTYPED = {
    "credentials are still expired": "Renew the credentials at their source",
    "can't start new thread": "Raise the limit of processes (--pids-limit, ulimit -u)",
}
"""What to do about a RuntimeError of botocore or Python that has no type of its own, by its text."""

REQUEST_ID = "x-amz-request-id"

Checksums = Literal["when_supported", "when_required"]
CHECKSUM_MODES: tuple[Checksums, ...] = ("when_supported", "when_required")
Style = Literal["auto", "path", "virtual"]
STYLES: tuple[Style, ...] = ("path", "virtual")


@dataclass(frozen=True)
class Service:
    """What the requests of a store so far have shown of the service behind it; None is not known yet."""

    endpoint: str
    addressing: str | None  # path, virtual, or auto on AWS
    checksums: str | None  # boto3's request_checksum_calculation that the service takes
    clock_ahead_seconds: float | None  # of this machine's clock, by the last answer's Date (whole seconds)
    credentials: str | None  # botocore's name of their source, such as env or iam-role
    expires: datetime | None  # when they end, UTC; None also where they say no end
    temporary: bool  # they come with a session token, so they have an end


class Connection:
    """Clients for one bucket, made when they are first needed. Nothing is sent before the first request.

    Endpoint, region and credentials come from the standard AWS variables, files and roles, and are asked
    for again when they expire.
    """

    def __init__(self, bucket: str, folder: str) -> None:
        self.uri = f"s3://{bucket}/{folder}".rstrip("/")
        self._bucket, self._folder = bucket, folder
        self._connecting = threading.Lock()
        self._found_style: Style | None = None
        self._found_checksums: Checksums | None = None
        self._clock_ahead: float | None = None
        self._answered = False  # as S3 does
        self._sends_ids = False  # the service does, with each answer
        self._allowed: set[str] = set()  # operations that have succeeded

    def service(self) -> Service:
        """Return what is known of the service without asking it anything."""
        with self.errors():
            credentials = self._session.get_credentials()
        return Service(
            endpoint=redact(self._client("auto").meta.endpoint_url),
            addressing=self._found_style,
            checksums=self._found_checksums,
            clock_ahead_seconds=self._clock_ahead,
            credentials=credentials.method if credentials else None,
            expires=_expiry(credentials),
            temporary=isinstance(credentials, RefreshableCredentials)
            or bool(credentials and credentials.token),
        )

    @cached_property
    def reader(self) -> S3Client:
        """The client for requests without a body."""
        return self._client(self._style())

    def writer(self, try_out: Callable[[S3Client], None]) -> S3Client:
        """Return a client whose checksums the service takes: some refuse them, some keep them as content.

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
                self._found_checksums = checksums
                return client
        raise refusals[-1]

    @contextlib.contextmanager
    def errors(self, key: str = "") -> Iterator[None]:
        """Raise the JobError for what boto3 raises in the block, which is about `key`."""
        try:
            yield
        except ERRORS as error:
            raise self._explain(error, f"{self.uri}/{key}".rstrip("/")) from error
        except ValueError as error:  # boto3's for an endpoint that is no URL
            raise ConfigurationError(f"{self.uri}: {error}", "Check AWS_ENDPOINT_URL_S3") from error
        except RuntimeError as error:
            fix = next((fix for words, fix in UNTYPED.items() if words in str(error)), None)
            if fix is None:
                raise
            raise TransientError(f"{self.uri}: {error}", fix) from error

    def _explain(self, error: Exception, where: str) -> JobError:
        known = explain(error, where)
        if isinstance(error, FOREIGN) and self._answered:
            return DoubtfulError(known, math.inf)
        if isinstance(error, FOREIGN):
            no_s3 = ConfigurationError(known.message, "Check AWS_ENDPOINT_URL_S3 and the bucket's name")
            return DoubtfulError(no_s3, FIRST_ANSWER_SECONDS)
        if isinstance(known, RefusedError) and getattr(error, "operation_name", None) in self._allowed:
            return DoubtfulError(known, REFUSED_SECONDS)
        return known

    def _style(self) -> Style:
        """Find out how buckets are addressed: on AWS that is known, elsewhere by path or by host name."""
        if self._found_style is None:
            host = urlsplit(self._client("auto").meta.endpoint_url).hostname or ""
            on_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
            self._found_style = "auto" if on_aws else self._answering_style()
        return self._found_style

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
        # Listing may be forbidden where reading is not; otherwise the next request says what is wrong.
        return "path"

    def _client(self, style: Style, checksums: Checksums = "when_supported") -> S3Client:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # RetryingStore does that
            s3={"addressing_style": style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )
        with self._connecting, self.errors():  # a session may be used by one thread at a time
            # AWS's own services set AWS_REGION, which boto3 does not read; without any, S3 redirects.
            region = self._session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
            client = self._session.client("s3", region_name=region, config=config)
        client.meta.events.register("before-parse.s3", self._inspect)
        return client

    @cached_property
    def _session(self) -> boto3.session.Session:
        return boto3.session.Session()

    def _inspect(self, operation_model: OperationModel, response_dict: dict[str, Any], **_: Any) -> None:
        """Read the service's clock; raise ForeignAnswerError for an answer that is not an S3 service's."""
        status, headers = response_dict["status_code"], response_dict["headers"]
        with contextlib.suppress(ValueError, TypeError):  # no date, or none that can be read
            self._clock_ahead = time.time() - parsedate_to_datetime(headers.get("date")).timestamp()
        if status >= 500 or status == 429:  # anybody's, and asked again whoever it is from
            return
        if not self._is_genuine(status, headers, response_dict["body"]):
            kind = headers.get("content-type") or "no type"
            raise ForeignAnswerError(status=status, kind=kind)
        self._answered = True
        self._sends_ids |= REQUEST_ID in headers
        if status < 300:
            self._allowed.add(operation_model.name)

    def _is_genuine(self, status: int, headers: Any, body: Any) -> bool:
        if REQUEST_ID in headers:
            return True
        if status >= 300:
            return b"<Code>" in body  # of S3's error document
        return not self._sends_ids and "html" not in headers.get("content-type", "")


def _expiry(credentials: Credentials | None) -> datetime | None:
    """Return when credentials from the environment end; others are renewed, or do not say."""
    stated = os.environ.get("AWS_CREDENTIAL_EXPIRATION")
    if credentials is None or credentials.method != "env" or not stated:
        return None
    with contextlib.suppress(ValueError):
        expires = datetime.fromisoformat(stated)
        return expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    return None
