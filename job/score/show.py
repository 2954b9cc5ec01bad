"""The score as a table for people; `Scores.to_json` is the one for programs."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from job.score.rules import Scores
from job.score.tally import BASELINE_OPERATIONS, BASELINE_PARAMETERS, Tally

NOTES = {
    "writeup": "convolutions, linear layers without bias, average pools; a multiplication counts 1/2",
    "leaderboard": "as writeup, and the ReLU modules: what was listed in 2019",
    "official": "everything the network does, batch norms folded where they may",
}


WIDTH = 200
"""Columns to lay out in: a table takes what it needs, and no number is ever cut short."""


def text(scores: Scores, per_layer: bool = False) -> str:
    """Return one table for each rule set."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    for name, tally in scores.rule_sets.items():
        freebie = "; 16-bit freebie" if name == "official" and scores.freebie else ""
        title = f"{name}: {tally.score:.7f}\n{NOTES[name]}{freebie}"
        console.print(_table(title, tally, tally.layers_json() if per_layer else []))
    for operator in scores.unknown:
        console.print(f"not counted: {operator.operator} in {operator.layer or '(model)'}, {operator.where}")
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).strip("\n")


def _table(title: str, tally: Tally, layers: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    if layers:
        table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for column in ("multiplications", "additions", "counted", "parameters", "share of score"):
        table.add_column(column, justify="right")
    lead = [""] if layers else []
    for row in layers:
        operations, parameters = Fraction(row["counted"]), Fraction(row["parameters"])
        table.add_row(
            row["layer"] or "(model)",
            row["kind"],
            *_numbers(row),
            f"{float(parameters):,.0f}" if parameters else "",
            _share(tally, operations, parameters),
        )
    if layers:
        table.add_section()
    summary = tally.to_json()
    for kind, row in summary["operations"].items():
        table.add_row(*lead, kind, *_numbers(row), "", _share(tally, Fraction(row["counted"]), Fraction()))
    table.add_section()
    total = f"{float(tally.total):,.0f}"
    table.add_row(*lead, "operations", "", "", total, "", _share(tally, tally.total, Fraction()))
    stored = f"{float(tally.parameters):,.0f}"
    table.add_row(*lead, "parameters", "", "", "", stored, _share(tally, Fraction(), tally.parameters))
    return table


def _numbers(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:,.0f}" for name in ("multiplications", "additions", "counted")]


def _share(tally: Tally, operations: Fraction, parameters: Fraction) -> str:
    part = float(operations) / BASELINE_OPERATIONS + float(parameters) / BASELINE_PARAMETERS
    return f"{100 * part / tally.score:.3f} %" if tally.score else ""
