"""A thread that polls EC2, Google Cloud or Azure for the notice that this machine will be taken away."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol

from job import events
from job.machine import metadata
from job.machine.metadata import Answer, UnreachableError, UnreadableError, UnusableError

LINK_LOCAL = "http://169.254.169.254"
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Notice:
    """The machine will be taken away: `kind` is what happens to it, `source` the cloud."""

    kind: str  # terminate, stop, hibernate or preempt
    gone: float  # when, by time.monotonic()
    source: str  # ec2, gcp or azure


class MetadataService(Protocol):
    """One cloud's metadata service. Both methods raise UnreadableError."""

    source: str
    endpoint: str
    interval_seconds: float

    def present(self) -> bool:
        """Return whether the machine is in this cloud."""

    def notice(self) -> Notice | None:
        """Return the notice for this machine, if there is one."""


class EC2:
    """IMDSv2. A rebalance recommendation announces only a risk and is not a notice.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    source = "ec2"
    interval_seconds = 5.0  # what AWS recommends; the notice comes 120 s ahead

    def __init__(self) -> None:
        self.endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL
        self._token = ""

    def present(self) -> bool:
        """Return whether EC2's metadata service issues a session token, which is kept."""
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return False
        try:
            return self._renew_token()
        except UnreachableError:
            raise
        except UnreadableError:
            self._explain_silence()
            raise

    def notice(self) -> Notice | None:
        """Read `spot/instance-action`: 404 until the instance is marked for interruption."""
        answer = self._get("spot/instance-action")
        if answer.status == 401 and self._renew_token():
            answer = self._get("spot/instance-action")
        if answer.status == 404:
            return None
        document = metadata.json_object(metadata.expect_200(answer))
        action, when = document.get("action"), document.get("time")
        if not (isinstance(action, str) and isinstance(when, str)):
            raise UnreadableError(f"no action and time in {answer.body[:200]!r}")
        try:
            moment = datetime.fromisoformat(when)
        except ValueError as error:
            raise UnreadableError(f"time: {error}") from error
        return Notice(action, metadata.to_monotonic(moment, answer), self.source)

    def _renew_token(self) -> bool:
        answer = metadata.ask(
            self.endpoint,
            "/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": "21600"},
            method="PUT",
            timeout=PROBE_SECONDS,
        )
        if answer.status != 200:
            return False
        self._token = metadata.text(answer)
        return self._token != ""

    def _get(self, path: str) -> Answer:
        headers = {"X-aws-ec2-metadata-token": self._token}
        return metadata.ask(self.endpoint, f"/latest/meta-data/{path}", headers)

    def _explain_silence(self) -> None:
        """Raise UnusableError if EC2 answers a GET: a container's bridge drops its answer to the PUT."""
        answer = metadata.ask(self.endpoint, "/latest/meta-data/instance-id", {}, timeout=PROBE_SECONDS)
        if answer.status == 401 or metadata.text(answer).startswith("i-"):
            raise UnusableError(
                "no answer to the PUT for a token: give the instance the metadata option "
                "HttpPutResponseHopLimit=2, or the container the host's network"
            )


class Google:
    """`instance/preempted` turns TRUE when the shutdown begins.

    https://docs.cloud.google.com/compute/docs/instances/create-use-spot#handle-preemption
    """

    source = "gcp"
    interval_seconds = 1.0
    shutdown_seconds = 30.0  # of a Spot VM between ACPI soft off and mechanical off
    _headers: ClassVar = {"Metadata-Flavor": "Google"}

    def __init__(self) -> None:
        # By address: outside Google's network, resolving the name may take until the resolver's timeout.
        host = os.environ.get("GCE_METADATA_HOST")
        self.endpoint = f"http://{host}" if host else LINK_LOCAL

    def present(self) -> bool:
        """Return whether the answer has the header that all of Google's have."""
        answer = metadata.ask(self.endpoint, "/", self._headers, timeout=PROBE_SECONDS)
        return answer.headers.get("Metadata-Flavor") == "Google"

    def notice(self) -> Notice | None:
        """Read `instance/preempted`: TRUE or FALSE."""
        answer = metadata.ask(self.endpoint, "/computeMetadata/v1/instance/preempted", self._headers)
        text = metadata.text(metadata.expect_200(answer))
        if text not in ("TRUE", "FALSE"):
            raise UnreadableError(f"{text[:200]!r} is neither TRUE nor FALSE")
        return (
            Notice("preempt", time.monotonic() + self.shutdown_seconds, self.source)
            if text == "TRUE"
            else None
        )


class Azure:
    """Scheduled Events. Every machine of a scale set gets them: `Resources` names those they are for.

    https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
    The environment variable is the one that azure-identity reads for the same service.
    """

    source = "azure"
    interval_seconds = 1.0  # what Microsoft recommends; an eviction is announced 30 s ahead
    first_answer_seconds = 120.0  # the first request turns the service on, which may take two minutes

    def __init__(self) -> None:
        self.endpoint = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or LINK_LOCAL
        self._machine = ""

    def present(self) -> bool:
        """Return whether Azure's metadata service names the machine; the name is kept."""
        path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        answer = metadata.ask(self.endpoint, path, {"Metadata": "true"}, timeout=PROBE_SECONDS)
        if answer.status != 200:
            return False
        self._machine = metadata.text(answer).lower()
        return self._machine != ""

    def notice(self) -> Notice | None:
        """Return the earliest Preempt or Terminate event that names this machine, if there is one."""
        path = "/metadata/scheduledevents?api-version=2020-07-01"
        answer = metadata.ask(self.endpoint, path, {"Metadata": "true"}, timeout=self.first_answer_seconds)
        events = metadata.json_object(metadata.expect_200(answer)).get("Events")
        if not (isinstance(events, list) and all(isinstance(event, dict) for event in events)):
            raise UnreadableError(f"no list of Events in {answer.body[:200]!r}")
        notices = [self._read(event, answer) for event in events if self._ends_this_machine(event)]
        return min(notices, key=lambda notice: notice.gone, default=None)

    def _ends_this_machine(self, event: dict[str, Any]) -> bool:
        resources = event.get("Resources")
        return (
            event.get("EventType") in ("Preempt", "Terminate")
            and isinstance(resources, list)
            and self._machine in [str(name).lower() for name in resources]
        )

    def _read(self, event: dict[str, Any], answer: Answer) -> Notice:
        kind, when = event["EventType"].lower(), event.get("NotBefore")
        if when == "" and event.get("EventStatus") == "Started":
            return Notice(kind, time.monotonic(), self.source)
        try:
            moment = parsedate_to_datetime(str(when))
        except (ValueError, TypeError, OverflowError) as error:
            raise UnreadableError(f"NotBefore {when!r}: {error}") from error
        return Notice(kind, metadata.to_monotonic(moment, answer), self.source)


SERVICES: tuple[type[MetadataService], ...] = (EC2, Google, Azure)


class NoticePoller:
    """A thread that finds the cloud's metadata service and polls it for a notice every 1 to 5 s.

    It ends with the first notice, or at once where there is no service; only `first_answer` waits for it. An
    answer that cannot be read is not a notice: the first is logged as the event `notices_unreadable`.
    """

    def __init__(self) -> None:
        self.notice: Notice | None = None
        self._answered = threading.Event()
        self._stopped = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Start the thread; call it early, so that the first answer is there when it is needed."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; does not wait for a service that hangs."""
        self._stopped.set()

    def first_answer(self, timeout: float) -> Notice | None:
        """Return the notice that is active already, after waiting at most `timeout` seconds for an answer."""
        self._answered.wait(timeout)
        return self.notice

    def _run(self) -> None:
        try:
            service = self._find()
            if service is not None:
                self._poll(service)
        finally:
            self._answered.set()

    def _find(self) -> MetadataService | None:
        silent = set()  # addresses, which all three services share unless the environment changes them
        for service in (kind() for kind in SERVICES):
            if service.endpoint in silent:
                continue
            try:
                if service.present():
                    return service
            except UnreachableError:
                silent.add(service.endpoint)
            except UnusableError as error:
                self._warn(service, error)
            except UnreadableError:
                continue
        return None

    def _poll(self, service: MetadataService) -> None:
        while not self._stopped.is_set():
            try:
                self.notice = service.notice()
            except UnreadableError as error:
                self._warn(service, error)
            self._answered.set()
            if self.notice is not None:
                seconds_left = round(self.notice.gone - time.monotonic(), 1)
                events.warn("notice", source=service.source, kind=self.notice.kind, seconds_left=seconds_left)
                return
            self._stopped.wait(service.interval_seconds)

    def _warn(self, service: MetadataService, error: UnreadableError) -> None:
        if not self._warned and not self._stopped.is_set():
            self._warned = True
            events.warn("notices_unreadable", source=service.source, reason=str(error))
