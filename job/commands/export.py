"""`micronet export`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from job.commands.options import (
    cache_option,
    demo_data_option,
    json_option,
    option,
    sources,
    trained_data_option,
)
from job.settings import ATTENDED_RETRY_SECONDS

EXAMPLES = """\b
Examples:
  micronet export runs/first
  micronet export s3://bucket/runs/first --output first.onnx
"""


@click.command(epilog=EXAMPLES)
@click.argument("uri")
@option(
    "--format",
    "file_format",
    type=click.Choice(["onnx"]),
    default="onnx",
    help="Format of the file. ONNX needs ./setup.sh install onnx.",
)
@option("--output", metavar="FILE", help="File to write. Default: model.onnx next to the weights.")
@trained_data_option
@demo_data_option
@cache_option
@json_option
def export(
    uri: str,
    file_format: str,
    output: str | None,
    data: tuple[str, ...],
    demo: bool,
    cache: str,
    as_json: bool,
) -> None:
    """Write a trained network for other tools. URI is a run or a .safetensors file.

    The file takes pixels (uint8, 0 to 255, red, green and blue) and gives logits: the normalisation is in it.
    It is written if onnxruntime predicts what PyTorch predicts for every test image. Images may differ, and
    are listed, if their logits are less than 1e-4 apart or, in a quantised network, less than rounding moves.
    """
    from pathlib import Path

    from job.network import onnx_model, weights
    from job.run import layout
    from job.store import open_store
    from job.store.files import write_whole
    from job.train.export import export_onnx

    exported = export_onnx(uri, sources(data, demo), cache)
    if output is None:
        store = open_store(weights.locate(uri, layout.WEIGHTS)[0], ATTENDED_RETRY_SECONDS)
        store.put(layout.ONNX, exported.data)
        output = f"{store.uri}/{layout.ONNX}"
    else:
        write_whole(Path(output), exported.data)
    checked = exported.checked
    if as_json:
        about = {
            "file": output,
            "format": file_format,
            "opset": onnx_model.OPSET,
            "classes": exported.classes,
        }
        click.echo(json.dumps(about | {"checked": asdict(checked) if checked else None}, indent=2))
        return
    click.echo(f"{file_format}      {output}")
    click.echo(f"opset     {onnx_model.OPSET}")
    click.echo(f"input     pixels, uint8 [images, 3, {onnx_model.SIZE}, {onnx_model.SIZE}]")
    click.echo(f"output    logits, float32 [images, {exported.classes}]")
    if checked is None:
        click.echo("checked   no: onnxruntime is not installed (./setup.sh install onnx)")
        return
    click.echo(
        f"checked   {checked.images} test images with onnxruntime: "
        f"{f'the predictions differ for {len(checked.ties)}' if checked.ties else 'the same predictions'}, "
        f"logits within {checked.largest_difference:.1g}"
    )
    for tie in checked.ties:
        click.echo(
            f"tie       image {tie.image}: {tie.onnx}, not {tie.pytorch}, whose logit is {tie.gap:.1g} more"
        )
