"""What EC2, Google Cloud and Azure say about the end of this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol

from job.machine import metadata
from job.machine.metadata import AbsentError, Answer, UnreadableError, UnusableError

LINK_LOCAL = "http://169.254.169.254"
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Notice:
    """The machine will be taken away: `kind` is what happens to it, `source` who says so."""

    kind: str  # terminate, stop, hibernate or preempt
    gone: float  # when, by time.monotonic()
    source: str  # ec2, gcp or azure


class Service(Protocol):
    """One cloud's metadata service. Both calls raise UnreadableError."""

    source: str
    endpoint: str
    interval_seconds: float

    def present(self) -> bool:
        """Say whether this is the cloud the machine is in."""

    def notice(self) -> Notice | None:
        """Return the notice for this machine, if there is one."""


class EC2:
    """IMDSv2. A rebalance recommendation speaks of a risk only and is no notice.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    source = "ec2"
    interval_seconds = 5.0  # what AWS recommends; the notice comes 120 s ahead

    def __init__(self) -> None:
        self.endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL
        self._token = ""

    def present(self) -> bool:
        """Fetch the session token that only EC2 gives."""
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return False
        try:
            return self._renew_token()
        except AbsentError:
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
        document = metadata.document(metadata.expect_200(answer))
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
        """Raise UnusableError if EC2 answers a GET: the PUT's answer may not pass a container's bridge."""
        answer = metadata.ask(self.endpoint, "/latest/meta-data/instance-id", {}, timeout=PROBE_SECONDS)
        if answer.status == 401 or metadata.text(answer).startswith("i-"):
            raise UnusableError(
                "no answer to the token's PUT: give the instance the metadata option "
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
        # By address: where this is not Google's network, looking the name up may take a resolver's time-out.
        host = os.environ.get("GCE_METADATA_HOST")
        self.endpoint = f"http://{host}" if host else LINK_LOCAL

    def present(self) -> bool:
        """Look for the header that Google signs its answers with."""
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
    """Scheduled Events. They are told to every machine of a scale set: `Resources` names those they are for.

    https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
    The variable is the one azure-identity reads for the same service.
    """

    source = "azure"
    interval_seconds = 1.0  # what Microsoft recommends; an eviction is told 30 s ahead
    first_answer_seconds = 120.0  # the first request turns the service on, which may take two minutes

    def __init__(self) -> None:
        self.endpoint = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or LINK_LOCAL
        self._machine = ""

    def present(self) -> bool:
        """Fetch the machine's name."""
        path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        answer = metadata.ask(self.endpoint, path, {"Metadata": "true"}, timeout=PROBE_SECONDS)
        if answer.status != 200:
            return False
        self._machine = metadata.text(answer).lower()
        return self._machine != ""

    def notice(self) -> Notice | None:
        """Look for a Preempt or Terminate event that names this machine; the first in time."""
        path = "/metadata/scheduledevents?api-version=2020-07-01"
        answer = metadata.ask(self.endpoint, path, {"Metadata": "true"}, timeout=self.first_answer_seconds)
        events = metadata.document(metadata.expect_200(answer)).get("Events")
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


SERVICES: tuple[type[Service], ...] = (EC2, Google, Azure)
