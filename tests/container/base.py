"""A base image made of the host's distribution, that reaches the package indexes the host reaches.

Stands in for the CUDA base where no image registry is in reach; nothing of it is in the Dockerfile.
"""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
import tempfile
from configparser import RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

from tests.container.engine import Engine

AUTHORITIES = Path("/usr/local/share/ca-certificates")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class PipSettings:
    """The host's settings of pip, those of its variables included, and the local paths they name."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of_host(cls) -> PipSettings:
        """Ask pip; what a variable says comes before what a file says."""
        command = [sys.executable, "-m", "pip", "config", "list"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        settings = cls()
        for line in sorted(lines, key=lambda line: line.startswith(":env:")):
            name, _, value = line.partition("=")
            section, _, option = name.rpartition(".")
            section = section.replace(":env:", "global")
            settings.sections.setdefault(section, {})[option] = str(ast.literal_eval(value))
        return settings

    def paths(self) -> list[Path]:
        """Return the files and folders that are there."""
        words = [
            word for options in self.sections.values() for value in options.values() for word in value.split()
        ]
        candidates = [Path(word.removeprefix("file://")) for word in words]
        return [path for path in candidates if path.is_absolute() and path.exists()]

    def write(self, path: Path) -> None:
        """Write them as a configuration file of pip."""
        parser = RawConfigParser()
        parser.read_dict(self.sections)
        with path.open("w", encoding="utf-8") as file:
            parser.write(file)


def mounts(settings: PipSettings) -> list[Path]:
    """Return the folders that a build must see; a simple index has its files beside itself."""
    folders = [path for path in settings.paths() if path.is_dir()]
    return [path.parent if path.name == "simple" else path for path in folders]


def make(engine: Engine, tag: str, settings: PipSettings) -> None:
    """Make the base image `tag`."""
    with tempfile.TemporaryDirectory(dir=engine.folder / "temporary") as name:
        folder = Path(name)
        settings.write(folder / "pip.conf")
        hooks = [_upload(folder / "pip.conf", Path("/etc/pip.conf"))]
        hooks += [_upload(path, path) for path in settings.paths() if path.is_file()]
        if AUTHORITIES.is_dir():
            hooks.append(f"copy-in {AUTHORITIES} {AUTHORITIES.parent}")
        hooks.append('chroot "$1" update-ca-certificates')
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"]
        command += [f"--customize-hook={hook}" for hook in hooks]
        archive = folder / "base.tar"
        done = subprocess.run(
            [*command, _suite(), str(archive)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        engine.podman("import", f"--change=ENV PATH={PATH}", str(archive), tag, timeout=120).expect(0)


def _upload(source: Path, target: Path) -> str:
    inside = shlex.quote(str(target.parent))
    return f'mkdir -p "$1"{inside} && cp {shlex.quote(str(source))} "$1"{inside}/{shlex.quote(target.name)}'


def _suite() -> str:
    """Return the name of the host's release, such as bookworm."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')
