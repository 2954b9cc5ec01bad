"""Podman with its settings and storage in a folder of its own: builds images and runs containers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",  # podman's own; Docker has no such folders
    "--tmpfs=/tmp",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--user=54321:54321",
)
"""Options of a container with no privilege and a user without a name, that may write to /tmp and mounts."""

BUILD_SECONDS, RUN_SECONDS = 1500, 600
LIMIT = 8192  # processes, and open files

SETTINGS = """\
[containers]
default_ulimits = {limits}
log_driver = "k8s-file"
netns = "{network}"
volumes = {volumes}

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "{folder}/run"
"""


@dataclass(frozen=True)
class Done:
    """What a finished container said, and its exit code."""

    code: int
    out: str
    err: str

    def expect(self, code: int) -> Done:
        """Return itself; fail with the end of what was said unless the exit code is `code`."""
        assert self.code == code, f"exit code {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return self


class Engine:
    """Podman with runc on kernel overlay, for root. All it stores is in `folder`; on no network unless told.

    Containers of a build are on the host's network and see the host's folders `build_mounts`, read-only.
    """

    def __init__(self, folder: Path, build_mounts: Iterable[Path]) -> None:
        self.folder = folder
        (folder / "temporary").mkdir(parents=True, exist_ok=True)
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        volumes = [f"{mount}:{mount}:ro" for mount in build_mounts]
        for name, network, mounts in (("build", "host", volumes), ("run", "none", [])):
            text = SETTINGS.format(limits=json.dumps(_limits()), network=network, volumes=json.dumps(mounts))
            (folder / f"{name}.conf").write_text(text)

    def build(self, context: Path, tag: str, arguments: dict[str, str], *options: str) -> Done:
        """Build the Dockerfile of the folder `context`."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        command = ["build", "--pull=never", f"--tag={tag}", *given, *options, str(context)]
        return self.podman(*command, settings="build", timeout=BUILD_SECONDS)

    def run(self, image: str, *words: str, options: Sequence[str] = ()) -> Done:
        """Run a container to its end; `words` are the arguments of the image's entry point."""
        command = ("run", "--rm", f"--timeout={RUN_SECONDS}", *options, image, *words)
        return self.podman(*command, timeout=RUN_SECONDS + 60)

    def start(self, image: str, *words: str, options: Sequence[str] = ()) -> Container:
        """Start a container in the background."""
        name = f"micronet-{uuid4().hex[:12]}"
        self.podman("run", "--detach", f"--name={name}", *options, image, *words).expect(0)
        return Container(self, name)

    def podman(self, *arguments: str, settings: str = "run", timeout: float = 60) -> Done:
        """Call podman; `timeout` is in seconds."""
        environment = {
            **os.environ,
            "BUILDAH_FORMAT": "docker",
            "CONTAINERS_CONF": str(self.folder / f"{settings}.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "TMPDIR": str(self.folder / "temporary"),
        }
        done = subprocess.run(
            ["podman", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def remove(self) -> None:
        """Remove the containers and, in the background, the folder: it can take minutes."""
        self.podman("rm", "--all", "--force", "--volumes", "--time=0")
        # The storage driver has mounted this folder on itself.
        subprocess.run(
            ["umount", "--lazy", self.folder / "images" / "overlay"], capture_output=True, check=False
        )
        subprocess.Popen(["rm", "-rf", str(self.folder)], start_new_session=True)


@dataclass(frozen=True)
class Container:
    """A container that was started in the background."""

    engine: Engine
    name: str

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._ask("{{.State.Running}}") == "true"

    def stop(self, grace_seconds: int) -> Done:
        """Send SIGTERM, after the grace SIGKILL, as `podman stop` does, and return how it ended."""
        self.engine.podman("stop", f"--time={grace_seconds}", self.name, timeout=grace_seconds + 60).expect(0)
        return self.done()

    def kill(self) -> Done:
        """Send SIGKILL and return how it ended."""
        self.engine.podman("kill", "--signal=KILL", self.name).expect(0)
        return self.done()

    def done(self) -> Done:
        """Wait for its end and return what it said; the container is removed."""
        code = int(self.engine.podman("wait", self.name, timeout=RUN_SECONDS).expect(0).out)
        logs = self.engine.podman("logs", self.name)
        self.engine.podman("rm", "--volumes", self.name).expect(0)
        return Done(code, logs.out, logs.err)

    def _ask(self, template: str) -> str:
        return self.engine.podman("inspect", f"--format={template}", self.name).expect(0).out.strip()


def _limits() -> list[str]:
    """Return limits that the host allows: podman asks for higher ones, and lowers its own before."""
    hard = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    allowed = {name: resource.getrlimit(kind)[1] for name, kind in hard.items()}
    chosen = {n: LIMIT if most == resource.RLIM_INFINITY else min(most, LIMIT) for n, most in allowed.items()}
    return [f"{name}={limit}:{limit}" for name, limit in chosen.items()]
