"""A confusion matrix as cells whose opacity is the share of the row."""

from __future__ import annotations

from dataclasses import dataclass

from job.view.answers import Confusion


@dataclass(frozen=True)
class Cell:
    """Images of class `row` that were taken for `column`; `share` of the row, 0 to 1, `opacity` to draw."""

    row: int
    column: int
    count: int
    share: float
    opacity: float


@dataclass(frozen=True)
class Heat:
    """`size` per cent of the box are one cell's side; cells without images are left out."""

    names: tuple[str, ...]
    size: float
    cells: list[Cell]
    alt: str


def heat(confusion: Confusion) -> Heat:
    """Draw a confusion matrix: the diagonal on a scale up to 1, the errors on one up to the largest."""
    totals = confusion.counts.sum(1).clip(min=1)
    share = confusion.counts / totals[:, None]
    errors = [(share[row, column], row, column) for row in range(len(share)) for column in range(len(share))]
    errors = sorted((error for error in errors if error[1] != error[2] and error[0] > 0), reverse=True)
    largest = errors[0][0] if errors else 1.0
    cells = [
        Cell(
            row=row,
            column=column,
            count=int(confusion.counts[row, column]),
            share=float(value),
            opacity=round(float(value if row == column else value / largest), 3),
        )
        for row, values in enumerate(share)
        for column, value in enumerate(values)
        if value > 0
    ]
    return Heat(confusion.names, 100 / len(confusion.names), cells, _alt(confusion.names, errors))


def _alt(names: tuple[str, ...], errors: list[tuple[float, int, int]]) -> str:
    if not errors:
        return "Every image was given its superclass."
    told = "; ".join(f"{names[row]} for {names[column]}, {share:.1%}" for share, row, column in errors[:3])
    return f"Most often mistaken: {told}."
