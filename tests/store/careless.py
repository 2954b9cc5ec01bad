"""An S3 server that keeps objects in memory, checks no signature, and treats conditions as it is told to."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit

NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"


@dataclass
class CarelessS3:
    """`conditions` says of If-None-Match and If-Match: honour, ignore, never (always 412), unknown (501)."""

    conditions: dict[str, str] = field(default_factory=dict)
    ahead_seconds: float = 0.0  # of its clock
    lists: bool = True  # else it is forbidden
    objects: dict[str, bytes] = field(default_factory=dict)
    uri: str = ""

    def start(self) -> None:
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.get(self)

            def do_PUT(self) -> None:
                owner.put(self)

            def do_DELETE(self) -> None:
                owner.objects.pop(owner.key(self), None)
                owner.answer(self, 204)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + owner.ahead_seconds, usegmt=True)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def key(self, handler: http.server.BaseHTTPRequestHandler) -> str:
        return unquote(urlsplit(handler.path).path).removeprefix("/bucket/")

    def get(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        if "list-type" in query and not self.lists:
            self.answer(handler, 403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        elif "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            listed = "".join(
                f"<Contents><Key>{key}</Key><Size>{len(data)}</Size></Contents>"
                for key, data in self.objects.items()
                if key.startswith(prefix)
            )
            self.answer(
                handler,
                200,
                f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode(),
            )
        elif (data := self.objects.get(self.key(handler))) is None:
            self.answer(handler, 404, NO_SUCH_KEY)
        else:
            self.answer(handler, 200, data, self.tag(data))

    def put(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        there = self.objects.get(self.key(handler))
        holds = {
            "If-None-Match": there is None,
            "If-Match": there is not None and self.tag(there) == handler.headers.get("If-Match"),
        }
        for name in holds:
            how = self.conditions.get(name, "honour")
            if name in handler.headers and how == "unknown":
                self.answer(handler, 501, b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
                return
            if name in handler.headers and (how == "never" or (how == "honour" and not holds[name])):
                self.answer(handler, 412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
        self.objects[self.key(handler)] = data
        self.answer(handler, 200, tag=self.tag(data))

    def tag(self, data: bytes) -> str:
        return f'"{hashlib.md5(data).hexdigest()}"'

    def answer(
        self, handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", tag: str = ""
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        if tag:
            handler.send_header("ETag", tag)
        handler.end_headers()
        handler.wfile.write(body)
