"""The metadata services of EC2, Google Cloud and Azure, played on loopback."""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import threading
import time
from email.utils import formatdate
from typing import Any

from tests.servers import free_ports

EC2_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
GOOGLE_VARIABLE = "GCE_METADATA_HOST"
AZURE_VARIABLE = "AZURE_POD_IDENTITY_AUTHORITY_HOST"


def nowhere() -> dict[str, str]:
    """Return variables that point every cloud's client to ports where nobody listens."""
    ec2, google, azure = free_ports(3)
    return {
        "AWS_EC2_METADATA_DISABLED": "false",
        EC2_VARIABLE: f"http://127.0.0.1:{ec2}",
        GOOGLE_VARIABLE: f"127.0.0.1:{google}",
        AZURE_VARIABLE: f"http://127.0.0.1:{azure}",
    }


class MetadataServer:
    """A service that counts what it is asked, and can be slow, silent or talk nonsense about its notice.

    `delay_seconds` holds back every answer, `nonsense` (status, body) replaces the notice's.
    `clock_offset_seconds` moves its clock, which the `Date` header shows.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.delay_seconds = 0.0
        self.nonsense: tuple[int, bytes] | None = None
        self.clock_offset_seconds = 0.0
        self._stopping = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.requests.append(f"{self.command} {self.path}")
                service._stopping.wait(service.delay_seconds)
                status, headers, body = service.respond(self.command, self.path, dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_GET  # noqa: N815

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(service.now(), usegmt=True)

            def log_message(self, *arguments: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # a client that gave up
                    super().handle()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Return its clock's time."""
        return time.time() + self.clock_offset_seconds

    def stop(self) -> None:
        """End it and every answer it holds back."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Return variables that point its own clients here, and the other clouds' nowhere."""
        raise NotImplementedError

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        raise NotImplementedError


class EC2Server(MetadataServer):
    """IMDSv2: 401 without a token; `hop_limit` 1 is a container behind a bridge: no answer to the PUT."""

    def __init__(self) -> None:
        super().__init__()
        self.hop_limit = 2
        self.tokens: set[str] = set()
        self.action: dict[str, str] | None = None
        self.recommendation = False

    def environment(self) -> dict[str, str]:
        return {**nowhere(), EC2_VARIABLE: f"http://{self.address}/"}

    def interrupt(self, action: str, seconds: float) -> None:
        """Mark the instance for interruption in `seconds`."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now() + seconds))
        self.action = {"action": action, "time": when}

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if (method, path) == ("PUT", "/latest/api/token"):
            if self.hop_limit < 2:
                self._stopping.wait(30)
            if "x-aws-ec2-metadata-token-ttl-seconds" not in {name.lower() for name in headers}:
                return 400, {}, b""
            token = secrets.token_urlsafe(32) + "=="
            self.tokens.add(token)
            return 200, {}, token.encode()
        if method != "GET":
            return 405, {}, b""
        if {name.lower(): value for name, value in headers.items()}.get(
            "x-aws-ec2-metadata-token"
        ) not in self.tokens:
            return 401, {}, b""
        if path == "/latest/meta-data/spot/instance-action" and self.nonsense:
            return self.nonsense[0], {}, self.nonsense[1]
        if path == "/latest/meta-data/spot/instance-action" and self.action:
            return 200, {}, json.dumps(self.action).encode()
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.recommendation:
            return 200, {}, b'{"noticeTime": "2026-11-05T08:22:00Z"}'
        return 404, {}, b"<html>\xe9</html>"


class GoogleServer(MetadataServer):
    """403 without its header."""

    preempted = False

    def environment(self) -> dict[str, str]:
        return {**nowhere(), GOOGLE_VARIABLE: self.address}

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        flavor = {"Metadata-Flavor": "Google"}
        if headers.get("Metadata-Flavor") != "Google":
            return 403, flavor, b"<html>\xe9</html>"
        if (method, path) != ("GET", "/computeMetadata/v1/instance/preempted"):
            return 404, flavor, b"<html>\xe9</html>"
        if self.nonsense:
            return self.nonsense[0], flavor, self.nonsense[1]
        return 200, flavor, b"TRUE" if self.preempted else b"FALSE"


class AzureServer(MetadataServer):
    """400 without its header; `events` are told to every machine of the scale set."""

    def __init__(self, machine: str = "workers_7") -> None:
        super().__init__()
        self.machine = machine
        self.events: list[dict[str, Any]] = []

    def environment(self) -> dict[str, str]:
        return {**nowhere(), AZURE_VARIABLE: f"http://{self.address}"}

    def schedule(self, kind: str, seconds: float | None, machine: str = "workers_7") -> None:
        """Announce an event in `seconds`; None: it has started."""
        self.events.append(
            {
                "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
                "EventStatus": "Started" if seconds is None else "Scheduled",
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": ["workers_1", machine],
                "NotBefore": "" if seconds is None else formatdate(self.now() + seconds, usegmt=True),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Metadata") != "true":
            return 400, {}, b'{"error": "Bad request"}'
        if path == "/metadata/instance/compute/name?api-version=2021-02-01&format=text":
            return 200, {}, self.machine.encode()
        if path != "/metadata/scheduledevents?api-version=2020-07-01" or method != "GET":
            return 404, {}, b"<html>\xe9</html>"
        if self.nonsense:
            return self.nonsense[0], {}, self.nonsense[1]
        return 200, {}, json.dumps({"DocumentIncarnation": 2, "Events": self.events}).encode()
