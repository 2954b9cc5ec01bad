"""A training as every scheduler gets it: command, variables and bounds; and the task of an array in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.errors import ConfigurationError, JobError, MachineError, PermissionRefusedError, UsageError
from job.phases import format_cycles
from job.settings import DEMO_DATA
from job.text import has_credentials, redact

CACHE = "/data"
"""The image's folder for unpacked data."""

ARRAY_SIZE = "MICRONET_ARRAY"
"""Set by `submit --array` and infra/slurm; the schedulers set their own variables for other jobs too."""

PROCESSES = "MICRONET_PROCESSES"
"""The variable of `train --processes`, by which --env gives another number than that of the GPUs."""

ARRAY_INDICES = (
    "AWS_BATCH_JOB_ARRAY_INDEX",
    "BATCH_TASK_INDEX",
    "JOB_COMPLETION_INDEX",
    "SLURM_ARRAY_TASK_ID",
)
"""The index of a task, from 0: AWS Batch, Google Batch, Kubernetes, Slurm."""

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_SECRET = re.compile(
    r"(?!.*_(FILE|PATH|ID|URI)$|GOOGLE_APPLICATION_CREDENTIALS$)"  # a place or an owner, no secret
    r"(.*(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY)|(.*_)?(PASS|PWD|KEY|AUTH|PAT|SIGNATURE)S?(_|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Submission:
    """A training run, or with `seeds` an array of them, as it is submitted to a scheduler."""

    name: str
    run: str  # s3:// or gs:// address; of an array, the prefix its runs are under
    arguments: tuple[str, ...]  # of the image's entry point
    environment: Mapping[str, str]
    gpus: int  # of one machine; 0 where a processor trains
    seeds: int | None
    grace_seconds: int | None
    timeout_seconds: int | None


def training(
    run: str,
    recipe: Mapping[str, Any],
    *,
    data: Sequence[str] = (),
    demo: bool = False,
    recipe_name: str | None = None,
    start_run: str | None = None,
    teacher: str | None = None,
    device: str = "auto",
    gpus: int = 1,
    seeds: int | None = None,
    grace_seconds: int | None = None,
    timeout_seconds: int | None = None,
    variables: Mapping[str, str] | None = None,
    image: str | None = None,
) -> Submission:
    """Return the submission that trains at `run`, with the fields of `recipe` in place of the named one's.

    A grace or a timeout of None is left to the scheduler's job definition. Raises UsageError for a run
    outside a bucket, a local path, an image without digest, a secret in `variables` or `data`, a GPU that the
    job will not see, and GPUs that the recipe's shards cannot be divided among.
    """
    variables = dict(variables or {})
    _check(run, image, variables, data)
    _check_places(data, start_run, teacher)
    _check_device(device, gpus)
    processes = gpus > 1 and PROCESSES not in variables
    if processes:
        _check_gpus(gpus, device, recipe.get("shards", 1))
    arguments = ["train", "--run", run, "--cache", CACHE, "--device", device, *recipe_arguments(recipe)]
    arguments += [part for source in data for part in ("--data", source)]
    arguments += ["--demo"] if demo else []
    for option, value in (("--recipe", recipe_name), ("--from", start_run), ("--teacher", teacher)):
        arguments += [option, value] if value else []
    arguments += ["--processes", str(gpus)] if processes else []
    arguments += [] if grace_seconds is None else ["--grace", str(grace_seconds)]
    environment = {"MICRONET_LOG_FORMAT": "json"}
    environment |= {} if image is None else {"MICRONET_IMAGE": image}
    environment |= {} if seeds is None else {ARRAY_SIZE: str(seeds)}
    return Submission(
        name=_name(run),
        run=run,
        arguments=tuple(arguments),
        environment=environment | variables,
        gpus=0 if device == "cpu" else gpus,
        seeds=seeds,
        grace_seconds=grace_seconds,
        timeout_seconds=timeout_seconds,
    )


def array_member(environment: Mapping[str, str], seed: int, run: str | None) -> tuple[int, str | None]:
    """Return the seed and the run of this task: `seed` plus its index, and `run`/seed-SEED.

    Returns both unchanged where the environment is of no array. Raises ConfigurationError for an array
    without an index, or without a run to put its members under.
    """
    size = environment.get(ARRAY_SIZE)
    if not size:
        return seed, run
    found = next((environment[name] for name in ARRAY_INDICES if name in environment), None)
    if found is None:
        raise ConfigurationError(
            f"{ARRAY_SIZE} is {size}, and the scheduler gave no index ({', '.join(ARRAY_INDICES)})",
            f"Submit with --array, or unset {ARRAY_SIZE}",
        )
    if not (size.isdecimal() and found.isdecimal() and int(found) < int(size)):
        raise ConfigurationError(f"the index {found} lies outside an array of {size}", f"Unset {ARRAY_SIZE}")
    if run is None:
        raise ConfigurationError(
            f"{ARRAY_SIZE} is {size}, and there is no --run", "Give the prefix of the runs"
        )
    own = seed + int(found)
    return own, f"{run.rstrip('/')}/seed-{own}"


def recipe_arguments(recipe: Mapping[str, Any]) -> list[str]:
    """Return the options of `train` for these fields of the recipe."""
    arguments = []
    for name, value in recipe.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif name.endswith("cycles"):
            arguments += [f"--{option}", format_cycles(value)]
        else:
            arguments += [f"--{option}", str(value)]
    return arguments


def _check(run: str, image: str | None, variables: Mapping[str, str], data: Sequence[str]) -> None:
    if not re.fullmatch(r"(s3|gs)://[A-Za-z0-9][A-Za-z0-9._-]*/.*[^/]", run):
        raise UsageError(
            f"--run: {redact(run)!r} is not s3://bucket/prefix or gs://bucket/prefix",
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
                "Name an address without them, or on Google and Kubernetes use --secret for MICRONET_DATA",
            )


def _check_places(data: Sequence[str], start_run: str | None, teacher: str | None) -> None:
    from job.data.archive import (
        parse_source,  # not at the top: `train` needs this module, and --help no numpy
    )
    from job.store import local_path

    places: list[tuple[str, str | None, str | None]] = [
        ("--data", source, parse_source(source).uri) for source in data if source != DEMO_DATA
    ]
    places += [("--from", start_run, start_run), ("--teacher", teacher, teacher)]
    for option, place, uri in places:
        if uri and local_path(uri) is not None:
            raise UsageError(
                f"{option}: {place} is on this machine, which the job cannot read",
                f"Copy it to the bucket and name it there; a path in the image is --env "
                f"MICRONET_{option[2:].upper()}=PATH",
            )


def _check_device(device: str, gpus: int) -> None:
    number = device.partition(":")[2]
    if number and int(number) >= gpus:
        raise UsageError(
            f"--device {device}: of {gpus} GPUs the last is cuda:{gpus - 1}"
            if gpus > 1
            else f"--device {device}: the job sees one GPU, cuda:0",
            "Leave --device out",
        )


def _check_gpus(gpus: int, device: str, shards: int) -> None:
    if device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {gpus}: --device {device} uses one at most", "Leave --device out")
    if shards % gpus:
        raise UsageError(
            f"--gpus {gpus}: a recipe with --shards {shards} cannot be divided among {gpus} processes",
            "Give --shards, a power of two that --gpus divides, such as --shards 8 for 2, 4 or 8 GPUs; it is "
            "part of the recipe",
        )


def explain_answer(status: int | None, message: str, *, renew: str, permit: str, correct: str) -> JobError:
    """Return the JobError for the HTTP status of a scheduler's answer, None for one without a status.

    The fixes: `renew` for credentials that are not valid (401), `permit` for a right that is missing (403),
    `correct` for a request that cannot be fulfilled.
    """
    if status in (401, 403):
        return PermissionRefusedError(message, renew if status == 401 else permit)
    if status is None or status >= 500 or status == 429:
        return MachineError(message, "Try later")
    return ConfigurationError(message, correct)


def _name(run: str) -> str:
    """Return a name after the run's: at most 40 of a-z, 0-9 and -, which leaves room for a suffix."""
    last = re.sub(r"[^a-z0-9]+", "-", run.rpartition("/")[2].lower())
    return f"micronet-{last}"[:40].strip("-")
