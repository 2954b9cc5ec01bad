"""`micronet evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from job.commands.options import (
    any_device_option,
    cache_option,
    chosen_device,
    demo_data_option,
    json_option,
    sources,
    trained_data_option,
)

EXAMPLES = """\b
Examples:
  micronet evaluate runs/first
  micronet evaluate runs/first/weights.safetensors --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("uri")
@trained_data_option
@demo_data_option
@cache_option
@any_device_option
@json_option
def evaluate(uri: str, data: tuple[str, ...], demo: bool, cache: str, device: str, as_json: bool) -> None:
    """Measure the test accuracy of saved weights. URI is a run or a .safetensors file."""
    from job.train.evaluate import assess

    result = assess(uri, sources(data, demo), cache, chosen_device(device, gpu_required=False))
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2))
    else:
        click.echo(f"accuracy  {result.accuracy:.4f}  ({result.correct} of {result.total} test images)")
