"""`micronet score`."""

from __future__ import annotations

import json
from typing import IO

import click

from job.commands.options import json_option, option

EXAMPLES = """\b
Examples:
  micronet score --per-layer
  micronet score --checkpoint runs/first/weights.safetensors
  micronet score --model torchvision.models:resnet18 --input 3,224,224
"""


@click.command(epilog=EXAMPLES)
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
