"""What every scheduler is given: the command of the image, its variables and its bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.cloud.array import SIZE
from job.errors import UsageError
from job.text import has_credentials, redact

CACHE = "/data"
"""The image's folder for unpacked data."""

SHARED_MEMORY_MIB = 1024
"""Of /dev/shm, where a container gets 64 MiB by itself: https://github.com/pytorch/pytorch/issues/5040."""

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_SECRET = re.compile(
    r"(?!.*_(FILE|PATH|ID|URI)$|GOOGLE_APPLICATION_CREDENTIALS$)"  # these say where a secret is, or whose
    r"(.*(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY)|(.*_)?(PASS|PWD|KEY|AUTH|PAT|SIGNATURE)S?(_|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Task:
    """A training run, or with `seeds` an array of them, as a scheduler sees it."""

    name: str
    run: str  # s3:// address; of an array, the prefix its runs are under
    arguments: tuple[str, ...]  # of the image's entry point
    environment: Mapping[str, str]
    gpu: bool
    seeds: int | None
    grace_seconds: int | None
    timeout_seconds: int | None


def train_task(
    run: str,
    recipe: Mapping[str, Any],
    *,
    data: Sequence[str] = (),
    demo: bool = False,
    device: str = "auto",
    seeds: int | None = None,
    grace_seconds: int | None = None,
    timeout_seconds: int | None = None,
    variables: Mapping[str, str] | None = None,
    image: str | None = None,
) -> Task:
    """Return the task that trains at `run`, with the fields of `recipe` instead of the defaults.

    A grace or a time-out of None is left to the scheduler's job definition. Raises UsageError for what no
    job should be given.
    """
    variables = dict(variables or {})
    _check(run, image, variables, data)
    arguments = ["train", "--run", run, "--cache", CACHE, "--device", device, *recipe_arguments(recipe)]
    arguments += [part for source in data for part in ("--data", source)]
    arguments += ["--demo"] if demo else []
    arguments += [] if grace_seconds is None else ["--grace", str(grace_seconds)]
    environment = {"MICRONET_LOG_FORMAT": "json"}
    environment |= {} if image is None else {"MICRONET_IMAGE": image}
    environment |= {} if seeds is None else {SIZE: str(seeds)}
    return Task(
        name=_name(run),
        run=run,
        arguments=tuple(arguments),
        environment=environment | variables,
        gpu=device != "cpu",
        seeds=seeds,
        grace_seconds=grace_seconds,
        timeout_seconds=timeout_seconds,
    )


def recipe_arguments(recipe: Mapping[str, Any]) -> list[str]:
    """Return the options of `train` that stand for these fields of the recipe."""
    arguments = []
    for name, value in recipe.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif name == "cycles":
            arguments += [f"--{option}", ",".join(map(str, value))]
        else:
            arguments += [f"--{option}", str(value)]
    return arguments


def _check(run: str, image: str | None, variables: Mapping[str, str], data: Sequence[str]) -> None:
    if not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*/.*[^/]", run):
        raise UsageError(
            f"--run: {redact(run)!r} is not s3://bucket/prefix",
            "A job's machine and its disk go away: name a bucket",
        )
    if image is not None and not _DIGEST.fullmatch(image):
        raise UsageError(
            f"--image: {image!r} has no digest, and a tag may move between two attempts",
            "Write NAME@sha256:DIGEST, as pushing the image prints it",
        )
    for name, value in variables.items():
        if _SECRET.match(name) or has_credentials(value):
            raise UsageError(
                f"--env {name}: whoever may read the job could read it",
                "Give the job a role, or use --secret",
            )
    for address in data:
        if has_credentials(address):
            raise UsageError(
                f"--data {redact(address)}: whoever may read the job could read its credentials",
                "Name an address without them, or give it as MICRONET_DATA with --secret",
            )


def _name(run: str) -> str:
    """Name the job after the run: at most 40 of a-z, 0-9 and -, which leaves schedulers room for a suffix."""
    last = re.sub(r"[^a-z0-9]+", "-", run.rpartition("/")[2].lower())
    return f"micronet-{last}"[:40].strip("-")
