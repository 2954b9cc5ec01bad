"""The connection to Google Cloud Storage: which answers it takes, and the job's errors for its client's.

The client is google-cloud-storage, whose session shows each answer before it is believed. obstore 0.12.1
raises FileNotFoundError for the 404 of any server, such as a captive portal's page; "cannot read" taken for
"absent" would restart a run from zero.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import cached_property
from http.client import responses as REASONS
from typing import Any

import google.auth
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from job.errors import NO_THREAD, NO_THREAD_FIX, ConfigurationError, JobError
from job.store import answers
from job.store.answers import Answers
from job.store.base import AbsentError, ConflictError, DoubtfulError, RefusedError, TransientError
from job.text import innermost

ENDPOINT = "STORAGE_EMULATOR_HOST"
"""The client's variable that names another server, which is sent no credentials."""

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
REQUEST_ID = "x-guploader-uploadid"

_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 409, 429}  # 409 is of two writes at one instant
_PASSING = ("ateLimitExceeded", "match calculated")
"""Words in refusals that pass: rateLimitExceeded, userRateLimitExceeded; and a body damaged on its way."""

_ROLE = "Give this identity the role roles/storage.objectUser on the bucket"
_IDENTITY = "Give the machine a service account, or run gcloud auth application-default login"

# Without it the client asks for the bucket's own properties in a thread, a right that no job needs.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


class ForeignAnswerError(Exception):
    """An answer that is not Google's: a proxy's, a captive portal's."""

    def __init__(self, response: requests.Response, what: str = "") -> None:
        what = what or response.headers.get("Content-Type", "no type")
        super().__init__(
            f"HTTP {response.status_code} with {what}, which is not an answer of Google's storage"
        )


ERRORS = (
    ForeignAnswerError,
    api.GoogleAPICallError,
    auth.GoogleAuthError,
    DataCorruption,
    InvalidResponse,
    requests.RequestException,
    HTTPError,
    ConnectionError,
)
"""The errors of the client, and those of its libraries that it lets through."""


class Connection:
    """The client for one bucket, made at the first request; safe to use from several threads.

    The credentials are Google's application default ones: the machine's own service account, those of `gcloud
    auth application-default login`, or a file in GOOGLE_APPLICATION_CREDENTIALS. They are renewed in time.
    """

    def __init__(self, bucket: str, folder: str) -> None:
        self.uri = f"gs://{bucket}/{folder}".rstrip("/")
        self._name, self._folder = bucket, folder
        self._answers = Answers()
        self._latest = threading.local()  # of each thread: its last response, and the deadline of its body
        self._may_list = False

    @cached_property
    def bucket(self) -> storage.Bucket:
        """The bucket; a ConfigurationError if it is missing.

        Checked once, because Google answers 404 both for a missing bucket and for an absent key.
        """
        with self.errors("connect"):
            client = self._client()
            bucket = client.bucket(self._name)
        try:
            with self.errors("list"):
                list(client.list_blobs(bucket, prefix=self._folder, max_results=1, **self.limits()))
        except RefusedError:
            return bucket  # where listing is forbidden, an absent key is a 403 and a missing bucket a 404
        self._may_list = True
        return bucket

    @property
    def response(self) -> requests.Response:
        """The calling thread's last response."""
        found: requests.Response = self._latest.response
        return found

    def limits(self) -> dict[str, Any]:
        """Return the arguments that bound a request; RetryingStore repeats it."""
        return {"timeout": (answers.CONNECT_SECONDS, answers.READ_SECONDS), "retry": None}

    @contextlib.contextmanager
    def errors(self, operation: str, key: str = "") -> Iterator[None]:
        """Raise the JobError for what the client raises in the block, which does `operation` on `key`."""
        try:
            yield
            self._answers.allowed.add(operation)
        except ERRORS as error:
            raise self._explain(error, operation, f"{self.uri}/{key}".rstrip("/")) from error
        except ValueError as error:  # of the client for credentials of another cloud of Google's
            raise ConfigurationError(f"{self.uri}: {error}", "Check GOOGLE_CLOUD_UNIVERSE_DOMAIN") from error
        except RuntimeError as error:
            if str(error) != NO_THREAD:
                raise
            raise TransientError(f"{self.uri}: {error}", NO_THREAD_FIX) from error
        finally:
            self._end_deadline()

    def _client(self) -> storage.Client:
        credentials: Any = AnonymousCredentials()
        if not os.environ.get(ENDPOINT):
            credentials, _ = google.auth.default(scopes=[SCOPE])
        session = AuthorizedSession(credentials, refresh_timeout=answers.READ_SECONDS)
        session.hooks["response"].append(self._inspect)
        # A project is needed to make buckets only.
        return storage.Client(project="none", credentials=credentials, _http=session)

    def _inspect(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Start the deadline of a response's body, and read it but for a download's.

        Raises ForeignAnswerError for an answer that is not Google's.
        """
        self._end_deadline()
        self._latest.response = response
        length = response.headers.get("Content-Length", "")
        self._latest.deadline = answers.deadline(response.raw, int(length) if length.isdigit() else 0)
        if not _is_download(response):
            response.content  # noqa: B018
            self._end_deadline()
        if response.status_code >= 500 or response.status_code in _TRANSIENT:  # retried, whoever it is from
            return
        if not self._is_genuine(response):
            response.close()
            raise ForeignAnswerError(response)
        if _is_document(response) and not isinstance(_json(response), dict):
            raise ForeignAnswerError(response, "no JSON object")
        self._answers.seen(REQUEST_ID in response.headers)

    def _is_genuine(self, response: requests.Response) -> bool:
        kind = response.headers.get("Content-Type", "")
        if response.status_code in _REDIRECTS and "Location" in response.headers:
            return False
        if REQUEST_ID in response.headers:
            return True
        if self._answers.send_ids or "html" in kind:
            return False
        if response.status_code in (308, 416) or response.status_code < 300:
            return True
        if self._answers.known and response.status_code == 404:  # that of a download is plain text
            return kind.startswith(("text/plain", "application/json"))
        return bool(_error(response))

    def _end_deadline(self) -> None:
        timer = getattr(self._latest, "deadline", None)
        if timer:
            timer.cancel()

    def _explain(self, error: Exception, operation: str, where: str) -> JobError:
        if isinstance(error, ForeignAnswerError):
            known = from_google(error, where)
            stranger = ConfigurationError(known.message, f"Check the network and {ENDPOINT}")
            return self._answers.not_the_service(known, stranger)
        if isinstance(error, api.NotFound) and self._may_list and operation in ("get", "delete"):
            self._answers.allowed.add(operation)
            return AbsentError(f"there is no {where}")
        if isinstance(error, auth.DefaultCredentialsError):  # also where the metadata service was not reached
            return DoubtfulError(from_google(error, where), answers.FIRST_ANSWER_SECONDS)
        return self._answers.doubted_if_allowed_before(from_google(error, where), operation)


def from_google(error: Exception, where: str) -> JobError:
    """Return the JobError for one of ERRORS; `where` is the URI of the request."""
    if isinstance(error, (api.GoogleAPICallError, InvalidResponse)):
        return _from_answer(error, where)
    if isinstance(error, auth.GoogleAuthError):
        return _from_auth(error, where)
    if isinstance(error, ForeignAnswerError):
        return TransientError(f"{where}: {error}", "Check the network")
    message = f"{where}: {innermost(error)}"  # an address in the client's own words may be that of an upload
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigurationError(
            f"{message}: certificate verify failed", "Name the authority's certificate in REQUESTS_CA_BUNDLE"
        )
    if isinstance(error, ValueError) and not isinstance(error, requests.JSONDecodeError):  # an address's
        return answers.not_a_url(answers.PROXY if _is_endpoint_valid() else ENDPOINT, where)
    return TransientError(message, "Check the network")


def _is_endpoint_valid() -> bool:
    """Return whether requests takes the address in ENDPOINT, if there is one."""
    try:
        address = parse_url(os.environ.get(ENDPOINT) or "https://storage.googleapis.com")
    except LocationParseError:
        return False
    return address.scheme in ("http", "https") and bool(address.host)


def _from_answer(error: Any, where: str) -> JobError:
    response = error.response
    status, document = response.status_code, _error(response)
    message = str(document.get("message") or REASONS.get(status, ""))
    answer = f"{where}: HTTP {status}: {message}"
    if status == 404:
        return ConfigurationError(f"{where}: there is no such bucket", "Create it, or correct its name")
    if status == 412:
        return ConflictError(f"{where} has been written by someone else")
    if status >= 500 or status in _TRANSIENT or any(reason in str(document) for reason in _PASSING):
        return TransientError(answer, "Try later")
    if status in (401, 403):
        return RefusedError(answer, _ROLE)
    if status < 400:  # an answer without what it must have
        return TransientError(f"{where}: HTTP {status}: {error}", "Check the network")
    return ConfigurationError(answer, f"Check the bucket's name and {ENDPOINT}")


def _from_auth(error: auth.GoogleAuthError, where: str) -> JobError:
    message = " ".join(f"{where}: {error}".split()).rstrip(".")
    cut_off = isinstance(error, auth.TransportError) or isinstance(error.__cause__, auth.TransportError)
    # 404 says that the machine has no identity.
    if error.retryable or (cut_off and "status: 4" not in message):
        return TransientError(message, "Check the network and the machine's metadata service")
    return RefusedError(message, _IDENTITY)


def _is_download(response: requests.Response) -> bool:
    return "alt=media" in response.url and response.status_code in (200, 206)


def _is_document(response: requests.Response) -> bool:
    """Return whether a response must hold a JSON object: no download, deletion or start of a long upload."""
    if response.request.method == "DELETE":
        return False
    begins = "uploadType=resumable" in response.url and "upload_id" not in response.url
    return response.status_code == 200 and not _is_download(response) and not begins


def _error(response: requests.Response) -> dict[str, Any]:
    """Return what an error's answer says of it; nothing where that is not JSON of Google's."""
    found = _json(response)
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _json(response: requests.Response) -> Any:
    with contextlib.suppress(ValueError):
        return response.json()
    return None
