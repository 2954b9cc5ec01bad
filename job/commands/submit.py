"""`micronet submit aws|gcp|kubernetes`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from job.commands.options import (
    SECONDS,
    Pair,
    chosen_recipe,
    data_option,
    demo_option,
    device_option,
    is_default,
    option,
    recipe_option,
    recipe_options,
    setting_option,
    sources,
    start_option,
    teacher_option,
)
from job.settings import AttemptSettings, Placement

if TYPE_CHECKING:
    from job.cloud.submission import Submission

Command = TypeVar("Command", bound=Callable[..., Any])

ARRAY_MAX = 10_000  # of AWS Batch and of Google Batch
TIMEOUT = "24h"
STACK_GRACE = "Time from SIGTERM. At most the stack's parameter Grace, which ends the container."

VARIABLE = Pair(r"[A-Za-z_]\w*")
LABEL = Pair(r"[A-Za-z0-9][\w./-]*")


@click.group()
def submit() -> None:
    """Queue the training as a batch job. It is retried when its machine goes away.

    When the scheduler has used up its attempts, the same command resumes the run.
    """


def task_options(own_bounds: bool) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of `_submission`; with `own_bounds` times have defaults."""
    options = [
        setting_option(
            Placement, "run", required=True, help="s3://bucket/prefix or gs://bucket/prefix of the run."
        ),
        option(
            "--gpus",
            type=click.IntRange(min=1),
            default=1,
            metavar="N",
            help="GPUs of one machine, which share the recipe's --shards: train --processes N.",
        ),
        option(
            "--array",
            type=click.IntRange(2, ARRAY_MAX),
            metavar="N",
            help="Train N seeds, --seed and those after it, each in RUN/seed-SEED.",
        ),
        setting_option(
            AttemptSettings, "grace", **({} if own_bounds else {"default": None, "help": STACK_GRACE})
        ),
        option(
            "--timeout",
            type=SECONDS,
            default=TIMEOUT if own_bounds else None,
            metavar="TIME",
            help="Time after which an attempt (on Kubernetes: the Job) is ended and not retried.",
        ),
        option(
            "--env",
            type=VARIABLE,
            multiple=True,
            metavar="NAME=VALUE",
            help="A variable for the job, such as AWS_ENDPOINT_URL_S3 or an option's MICRONET_<OPTION>.",
        ),
        option("--dry-run", is_flag=True, help="Print the job's document and submit nothing."),
        data_option,
        demo_option,
        recipe_option,
        start_option,
        teacher_option,
        device_option,
        recipe_options,
    ]

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


image_option = option("--image", required=True, metavar="NAME@sha256:HEX", help="Image, by its digest.")
account_option = option("--service-account", metavar="NAME", help="Service account that the job acts as.")


@submit.command()
@task_options(own_bounds=False)
@option("--queue", default="micronet", help="Job queue: the stack's name.")
@option("--definition", default="micronet", help="Job definition: the stack's name.")
@click.pass_context
def aws(context: click.Context, /, queue: str, definition: str, dry_run: bool, **values: Any) -> None:
    """Submit to AWS Batch, to the stack of infra/aws/micronet.yaml.

    Image and a single GPU come from the job definition, as do grace and timeout unless they are given.
    """
    from job.cloud import aws as batch

    submission = _submission(context, **values)
    document = batch.request(submission, queue, definition)
    if dry_run:
        click.echo(json.dumps(document, indent=2))
    else:
        _report(submission, *batch.submit(document))


@submit.command()
@task_options(own_bounds=True)
@image_option
@option("--project", required=True, help="Google Cloud project.")
@option("--region", required=True, help="Region of the machines, such as us-central1.")
@option(
    "--machine-type",
    metavar="TYPE",
    help="Machine, with its GPUs. Default: the smallest with --gpus L4s, n2-standard-4 for --device cpu.",
)
@option("--accelerator", metavar="TYPE", help="GPU added to a machine type that has none of its own.")
@option("--driver", metavar="VERSION", help="NVIDIA driver to install. Default: that of Batch's image.")
@account_option
@option(
    "--secret",
    type=VARIABLE,
    multiple=True,
    metavar="NAME=VERSION",
    help="A variable from the Secret Manager, as projects/PROJECT/secrets/SECRET/versions/VERSION.",
)
@click.pass_context
def gcp(
    context: click.Context,
    /,
    image: str,
    project: str,
    region: str,
    machine_type: str | None,
    accelerator: str | None,
    driver: str | None,
    service_account: str | None,
    secret: tuple[tuple[str, str], ...],
    dry_run: bool,
    **values: Any,
) -> None:
    """Submit to Google Batch, on Spot VMs."""
    from job.cloud import google as batch

    submission = _submission(context, image, **values)
    machine = batch.Machine(machine_type, accelerator, driver)
    document = batch.document(submission, image, region, machine, service_account, dict(secret))
    if dry_run:
        click.echo(json.dumps(document, indent=2))
    else:
        _report(submission, *batch.submit(document, submission.name, project, region))


@submit.command()
@task_options(own_bounds=True)
@image_option
@option("--namespace", default="default", help="Namespace of the Job.")
@account_option
@option("--secret", metavar="NAME", help="A Secret whose keys become variables, such as AWS_ACCESS_KEY_ID.")
@option("--image-pull-secret", metavar="NAME", help="A Secret with the credentials of the image's registry.")
@option("--queue", metavar="NAME", help="Local queue of Kueue, which then decides when the Job starts.")
@option("--node-selector", type=LABEL, multiple=True, metavar="LABEL=VALUE", help="Label of the nodes.")
@option(
    "--toleration",
    multiple=True,
    metavar="KEY[=VALUE][:EFFECT]",
    help="Taint of the nodes to tolerate, as kubectl taint writes it; nvidia.com/gpu is one by itself.",
)
@option("--runtime-class", metavar="NAME", help="Runtime class, such as nvidia on k3s.")
@option("--priority-class", metavar="NAME", help="Priority class.")
@option("--cpu", metavar="QUANTITY", help="Processors to request. Default: 3 for each GPU.")
@option(
    "--memory",
    metavar="QUANTITY",
    help="Memory to request, which is also the limit. Default: 12Gi for each GPU.",
)
@option(
    "--gpu", default="nvidia.com/gpu", metavar="RESOURCE", help="The resource that is one GPU or a slice."
)
@click.pass_context
def kubernetes(context: click.Context, /, image: str, namespace: str, dry_run: bool, **values: Any) -> None:
    """Create a Kubernetes Job in the cluster that kubectl uses."""
    import yaml

    from job.cloud import kubernetes as cluster

    pod = cluster.PodSettings(**{field.name: values.pop(field.name) for field in fields(cluster.PodSettings)})
    submission = _submission(context, image, **values)
    document = cluster.manifest(submission, image, pod)
    if dry_run:
        click.echo(yaml.safe_dump(document, sort_keys=False, width=100), nl=False)
    else:
        _report(submission, *cluster.submit(document, namespace))


def _submission(
    context: click.Context,
    image: str | None = None,
    *,
    run: str,
    gpus: int,
    array: int | None,
    grace: float | None,
    timeout: float | None,
    env: tuple[tuple[str, str], ...],
    data: tuple[str, ...],
    demo: bool,
    named: str | None,
    start: str | None,
    teacher: str | None,
    device: str,
    **recipe: Any,
) -> Submission:
    from job.cloud.submission import training

    sources(data, demo)
    chosen = chosen_recipe(context, demo, named, recipe, start)
    given = [name for name in recipe if not is_default(context, name)]
    if array:
        replace(chosen, seed=chosen.seed + array - 1)  # raises if the last seed is out of range
    return training(
        run,
        {name: getattr(chosen, name) for name in given},
        data=data,
        demo=demo,
        recipe_name=named,
        start_run=start,
        teacher=teacher,
        device=device,
        gpus=gpus,
        seeds=array,
        grace_seconds=_whole(grace),
        timeout_seconds=_whole(timeout),
        variables=dict(env),
        image=image,
    )


def _whole(seconds: float | None) -> int | None:
    """Round down, but not to 0: a grace must not be promised longer than it is."""
    return None if seconds is None else max(1, int(seconds))


def _report(submission: Submission, job: str, logs: str) -> None:
    run = submission.run if submission.seeds is None else f"{submission.run}/seed-SEED"
    click.echo(f"job       {job}")
    click.echo(f"logs      {logs}")
    click.echo(f"status    micronet status {run}")
    click.echo("again     when its attempts are used up, the same command resumes the run")
