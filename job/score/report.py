"""The score for people, as a table."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

from job.score.tally import ACCUMULATORS, Baseline, LayerRow, OperationTotals, Tally

if TYPE_CHECKING:
    from rich.table import Table

    from job.score.rules import Scores

NOTES = {
    "writeup": "convolutions, linear layers (no bias), average pools; a multiplication is 1/2",
    "leaderboard": "as writeup, and the ReLU modules: what was listed in 2019",
    "official": "everything the network does, batch norms folded where they may",
}

WIDTH = 200
"""Columns of the widest table, so that no number is cut short."""


def header(name: str, input_shape: tuple[int, ...], baseline: Baseline | None) -> str:
    """Return what was counted, and what the score is relative to."""
    shape = ",".join(map(str, input_shape))
    if baseline is None:
        relative = "no score: --baseline cifar100, imagenet or PARAMETERS,OPERATIONS sets a baseline"
    else:
        relative = (
            f"relative to {baseline.name}: {baseline.parameters:,.0f} parameters,"
            f" {baseline.operations:,.0f} operations"
        )
    return f"{name}, one image of {shape}; {relative}"


def text(scores: Scores, per_layer: bool = False) -> str:
    """Return one table for each rule set."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False, emoji=False)
    for name, tally in scores.rule_sets.items():
        figure = f": {tally.score:.7f}" if tally.baseline else ""
        freebie = "; 16-bit freebie" if name == "official" and scores.freebie else ""
        console.print(f"{name}{figure}\n{NOTES[name]}{freebie}\n")
        console.print(_table(tally, tally.layers() if per_layer else []), "")
        if name == "official" and scores.accumulators:
            console.print(_accumulators(tally.with_accumulators()))
    for operator in scores.unknown:
        console.print(f"{'branch' if operator.branches else 'not counted'}: {operator}")
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).strip("\n")


def _accumulators(tally: Tally) -> str:
    figure = f", score {tally.score:.7f}" if tally.baseline else ""
    return f"with the declared accumulators: {float(tally.total):,.0f} operations{figure}\n{ACCUMULATORS}\n"


def _table(tally: Tally, layers: list[LayerRow]) -> Table:
    from rich import box
    from rich.table import Table

    # 80 columns wide for the default network.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    if layers:
        table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for column in ("multiplications", "additions", "counted", "parameters"):
        table.add_column(column, justify="right")
    if tally.baseline:
        table.add_column("share", justify="right")
    lead = [""] if layers else []
    for row in layers:
        operations, parameters = Fraction(row.counted), Fraction(row.parameters)
        table.add_row(
            row.layer or "(model)",
            row.kind,
            *_numbers(row),
            f"{float(parameters):,.0f}" if parameters else "",
            *_share(tally, operations=operations, parameters=parameters),
        )
    if layers:
        table.add_section()
    for kind, sums in tally.operations().items():
        table.add_row(*lead, kind, *_numbers(sums), "", *_share(tally, operations=Fraction(sums.counted)))
    table.add_section()
    total = f"{float(tally.total):,.0f}"
    table.add_row(*lead, "operations", "", "", total, "", *_share(tally, operations=tally.total))
    stored = f"{float(tally.parameters):,.0f}"
    table.add_row(*lead, "parameters", "", "", "", stored, *_share(tally, parameters=tally.parameters))
    return table


def _numbers(row: LayerRow | OperationTotals) -> list[str]:
    return [f"{number:,.0f}" for number in (row.multiplications, row.additions, row.counted)]


def _share(tally: Tally, operations: Fraction = Fraction(), parameters: Fraction = Fraction()) -> list[str]:
    """Return the cell of the column `share`; none without a baseline."""
    if tally.baseline is None:
        return []
    return [f"{100 * tally.part(parameters, operations) / tally.score:.3f} %" if tally.score else ""]
