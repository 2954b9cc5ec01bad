"""`micronet score`."""

from __future__ import annotations

import gc
import json
from functools import partial
from typing import IO

import click

from job.commands.options import json_option, option
from job.settings import ATTENDED_RETRY_SECONDS

EXAMPLES = """\b
Examples:
  micronet score --per-layer
  micronet score --checkpoint runs/first
  micronet score --model torchvision.models:resnet18 --input 3,224,224 --baseline imagenet
"""


@click.command(epilog=EXAMPLES)
@option(
    "--checkpoint",
    metavar="URI",
    help="Saved weights, of a run or in a .safetensors file: a path, file://, s3:// or gs:// address.",
)
@option(
    "--model",
    metavar="MODULE:FACTORY",
    help="A function of yours that makes the model; it is imported and called without arguments.",
)
@option("--input", "shape", default="3,32,32", metavar="C,H,W", help="Shape of one image.")
@option(
    "--baseline",
    metavar="NAME",
    help="What the score is relative to: cifar100, imagenet or PARAMETERS,OPERATIONS. Default: cifar100 for"
    " images of 3,32,32; others get no score without it.",
)
@option("--rules", default="writeup,leaderboard,official", metavar="NAME,...", help="Rule sets to count by.")
@option(
    "--bits",
    type=click.File("rb"),
    metavar="FILE",
    help="JSON with the bits of what is quantised by simulation.",
)
@option(
    "--rule",
    "own",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A function of yours that counts operators that no rule counts; it is imported and called.",
)
@option("--allow-unknown", is_flag=True, help="List operators that no rule counts instead of failing.")
@option("--per-layer", is_flag=True, help="Add a row for each layer.")
@json_option
def score(
    checkpoint: str | None,
    model: str | None,
    shape: str,
    baseline: str | None,
    rules: str,
    bits: IO[bytes] | None,
    own: tuple[str, ...],
    allow_unknown: bool,
    per_layer: bool,
    as_json: bool,
) -> None:
    """Score a network by the MicroNet Challenge's rules.

    It is the default network, saved weights or any model of yours.
    """
    gc.disable()  # torch's modules stay: to search them for garbage as they load takes 0.2 s
    from job.run.outputs import read_weights
    from job.score import report, source, tally
    from job.score.bits import Declared
    from job.score.rules import score as count

    gc.enable()
    source.use_one_thread()
    image = source.input_shape(shape)
    relative_to = tally.Baseline.parse(baseline) if baseline else tally.usual_baseline(image)
    subject = source.subject(checkpoint, model, partial(read_weights, retry_seconds=ATTENDED_RETRY_SECONDS))
    scores = count(
        subject.network,
        image,
        rules.split(","),
        allow_unknown=allow_unknown,
        declared=Declared.parse(bits.read()) if bits else None,
        baseline=relative_to,
        own_rules=[source.own_rule(name) for name in own],
    )
    if as_json:
        click.echo(json.dumps(scores.to_json(per_layer), indent=2))
    else:
        click.echo(report.header(subject.name, image, relative_to) + "\n")
        click.echo(report.text(scores, per_layer))
