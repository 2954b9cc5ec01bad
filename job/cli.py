"""The command line: parse, call, exit code. Heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any, NoReturn

import click

from job import settings
from job.errors import JobError, MachineError, PreemptedError
from job.options import (
    SECONDS,
    cache_option,
    data_option,
    demo_option,
    device_option,
    json_option,
    option,
    recipe_options,
)
from job.resume.preemption import Preemption

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    default="human",
    help="Events on stderr as text or as a JSON object a line.",
)
@click.version_option(package_name="micronet")
def cli(log_format: str) -> None:
    """Train, evaluate and score a small CIFAR-100 network as one batch job."""
    from job import events

    events.configure(log_format)


@cli.command()
@option("--run", metavar="URI", help="Folder of the run's outputs. Default: runs/<fingerprint>.")
@data_option
@demo_option
@cache_option
@device_option
@option(
    "--checkpoint-every",
    type=SECONDS,
    default=settings.Placement.checkpoint_every,
    metavar="TIME",
    help="Time between checkpoints, such as 60s or 5m.",
)
@option(
    "--storage-budget",
    type=SECONDS,
    default=settings.Placement.storage_budget,
    metavar="TIME",
    help="How long training goes on while nothing can be saved.",
)
@option(
    "--grace", type=SECONDS, default=30.0, metavar="TIME", help="Time from SIGTERM until the machine is gone."
)
@option("--exact", is_flag=True, help="Stop with 74 on a machine that is not like the one before.")
@recipe_options
@click.pass_context
def train(
    context: click.Context,
    /,
    run: str | None,
    data: tuple[str, ...],
    demo: bool,
    cache: str,
    device: str,
    checkpoint_every: float,
    storage_budget: float,
    grace: float,
    exact: bool,
    **values: Any,
) -> None:
    """Fetch the data, train, evaluate and write the score report; go on where an earlier attempt stopped."""
    recipe = _recipe(context, settings.DEMO if demo else settings.Recipe(), values)
    placement = settings.Placement(
        run,
        _sources(data, demo),
        cache,
        checkpoint_every,
        storage_budget,
        exact,
        device="any" if demo and device == "auto" else device,
    )
    preemption: Preemption = context.obj
    preemption.grace_seconds = grace
    with preemption.deferred():  # torn imports leave modules that cannot be used
        from job.train.job import train as run_job

    report = run_job(recipe, placement, preemption)
    accuracy, score = report["accuracy"], report["score"]["leaderboard"]["score"]
    click.echo(
        f"accuracy  {accuracy['final']:.4f}  ({accuracy['correct']} of {accuracy['total']} test images)"
    )
    click.echo(f"score     {score:.5f}  (MicroNet Challenge, as listed)")
    click.echo(f"report    {report['run']['uri']}/report.json")


@cli.command()
@data_option
@demo_option
@cache_option
@option("--export", metavar="DIR", help="Also write the images there as PNG class folders.")
def data(data: tuple[str, ...], demo: bool, cache: str, export: str | None) -> None:
    """Fetch, verify and unpack the data set."""
    from pathlib import Path

    from job.data.dataset import prepare

    prepared = prepare(_sources(data, demo), Path(cache))
    click.echo(prepared.folder)
    if export:
        from job.data.export import export as write_folders

        write_folders(prepared.dataset, Path(export))
        click.echo(export)


@cli.command()
@click.argument("uri")
@data_option
@demo_option
@cache_option
@device_option
@json_option
def evaluate(uri: str, data: tuple[str, ...], demo: bool, cache: str, device: str, as_json: bool) -> None:
    """Measure the test accuracy of the weights of the run (or the .safetensors file) at URI."""
    from job.train.assess import assess

    result = assess(uri, _sources(data, demo), cache, "any" if device == "auto" else device)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo("accuracy  {accuracy:.4f}  ({correct} of {total} test images)".format(**result))


@cli.command()
@option("--checkpoint", metavar="URI", help="Saved weights (.safetensors): a path, file:// or s3:// address.")
@option(
    "--model",
    metavar="MODULE:FACTORY",
    help="A function of yours that makes the model; it is imported and run.",
)
@option("--input", "shape", default="3,32,32", metavar="C,H,W", help="Shape of one image.")
@option("--rules", default="writeup,leaderboard,official", metavar="NAME,...", help="Rule sets to count by.")
@option(
    "--bits",
    type=click.File("rb"),
    metavar="FILE",
    help="JSON with the bits of what is quantised by simulation.",
)
@option("--allow-unknown", is_flag=True, help="List operators that no rule counts instead of failing.")
@option("--per-layer", is_flag=True, help="Add a row for each layer.")
@json_option
def score(
    checkpoint: str | None,
    model: str | None,
    shape: str,
    rules: str,
    bits: IO[bytes] | None,
    allow_unknown: bool,
    per_layer: bool,
    as_json: bool,
) -> None:
    """Score the default network, saved weights or any model by the MicroNet Challenge's rules."""
    from job.score import show, source
    from job.score.bits import Declared
    from job.score.rules import score as count

    source.use_one_thread()
    scores = count(
        source.network(checkpoint, model),
        source.input_shape(shape),
        rules.split(","),
        allow_unknown=allow_unknown,
        declared=Declared.parse(bits.read()) if bits else None,
    )
    click.echo(json.dumps(scores.to_json(per_layer), indent=2) if as_json else show.text(scores, per_layer))


@cli.command()
@click.argument("uri")
@option("--watch", is_flag=True, help="Go on showing it every five seconds until the run is finished.")
@json_option
def status(uri: str, watch: bool, as_json: bool) -> None:
    """Show where the run at URI stands, from its objects alone."""
    import time

    from job import events
    from job.store import open_store
    from job.store.base import TransientError
    from job.view import status as view

    store, seen = open_store(uri), None
    while seen is None or (watch and seen.phase != "finished"):
        if seen is not None:
            time.sleep(5)
        try:
            seen = view.read(store)
            click.echo(json.dumps(seen.to_json()) if as_json else view.lines(seen) + "\n" * watch)
        except TransientError as error:
            if not watch:
                raise
            events.warn("store_unreachable", reason=error.message)


@cli.command()
@option(
    "--run",
    required=True,
    metavar="URI",
    help="Where runs live; all is done in a throw-away prefix below it.",
)
@option("--kills", type=click.IntRange(min=1), default=20, help="Attempts that are killed.")
@option("--seed", type=click.IntRange(min=0), help="Of the instants of the kills. Default: a new one.")
@option("--keep", is_flag=True, help="Leave the throw-away prefix for a look.")
@device_option
@click.pass_obj
def selftest(
    preemption: Preemption, /, run: str, kills: int, seed: int | None, keep: bool, device: str
) -> None:
    """Prove in your own store that kills, a pause and a damaged checkpoint change no bit of a run."""
    import secrets

    with preemption.deferred():
        from job.checks import selftest as checks
        from job.train import device as devices

    seed = secrets.randbelow(2**32) if seed is None else seed
    chosen = devices.choose("any" if device == "auto" else device)
    proof = checks.selftest(run, kills, seed, chosen.type, keep, preemption)
    for line in checks.lines(proof):
        click.echo(line)


def _recipe(context: click.Context, base: settings.Recipe, values: dict[str, Any]) -> settings.Recipe:
    """Return `base` with the options that were given, on the command line or in the environment."""
    given: dict[str, Any] = {
        name: settings.parse_cycles(value) if name == "cycles" else value
        for name, value in values.items()
        if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
    }
    return replace(base, **given)


def _sources(data: tuple[str, ...], demo: bool) -> tuple[str, ...]:
    if data and demo:
        raise click.UsageError("--demo generates its data: leave --data out")
    return (settings.DEMO_DATA,) if demo else data


def main() -> NoReturn:
    """Run the command line and exit with the code of the README's table."""
    code = _run()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # No interpreter teardown: under torch it takes 0.9 s of a grace, and now and then it aborts in a thread
    # that still runs (SIGABRT), which a scheduler would take for a failure.
    os._exit(code)


def _run() -> int:
    preemption = Preemption(grace_seconds=30)
    try:
        with preemption.installed():
            return cli.main(standalone_mode=False, obj=preemption) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (JobError, PreemptedError) as error:
        return _explain(error)
    except OSError as error:
        if error.errno in FULL:
            cause = f"{error.filename or 'the disk'}: {error.strerror}"
            return _explain(MachineError(cause, "Free some space or use another disk"))
        traceback.print_exc()
    except Exception:
        traceback.print_exc()
    return 1


def _explain(error: JobError | PreemptedError) -> int:
    from job import events

    events.stopped(error.message, error.fix, error.exit_code)
    return error.exit_code


if __name__ == "__main__":
    main()
