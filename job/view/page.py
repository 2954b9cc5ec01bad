"""One self-contained HTML page about a run, or about several in comparison.

Nothing is loaded from anywhere, and the page's own policy forbids it. All that was read from a bucket is
escaped by the templates; what is drawn comes from checked numbers alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from job.recipe import PRECISIONS
from job.run import layout
from job.run.report import Environment, RuleSet
from job.settings import DEMO_DATA
from job.store.base import Store
from job.text import duration, ordinal, percent
from job.view import curves, standing
from job.view.comparison import Group, groups, labels, recipe_differences
from job.view.frontier import frontier
from job.view.plots import Timeline, timeline
from job.view.predictions import ClassResult, Heat, Mistake, heat
from job.view.standing import BlockShare, Standings, shares, standings
from job.view.stored_run import StoredRun, downtimes, read

WORST = 12  # classes shown


class Column(NamedTuple):
    """A column of the table of epochs: a key of the history's records and how its values are written."""

    key: str
    title: str
    text: Callable[[float], str]


COLUMNS = (
    Column("accuracy", "Accuracy", percent),
    Column("holdout_accuracy", "Hold-out", percent),
    Column("test_loss", "Test loss", "{:.4f}".format),
    Column("train_loss", "Training loss", "{:.4f}".format),
    Column("images_per_second", "images/s", "{:,.0f}".format),
    Column("lr", "Learning rate", "{:.3g}".format),
    Column("momentum", "Momentum", "{:.4g}".format),
)


@dataclass(frozen=True)
class RunView:
    """A run and what is drawn of it."""

    number: int  # from 1, in the order they were named
    label: str
    run: StoredRun
    timeline: Timeline | None
    downtimes: list[float | None]
    worst: list[ClassResult]
    heat: Heat | None
    shares: list[BlockShare]
    mistakes: list[Mistake] | None  # None where the run stored no images of them
    samples: bytes | None  # a PNG

    @classmethod
    def of(cls, number: int, label: str, run: StoredRun, alone: bool) -> RunView:
        """Draw a run; what would make a page of many too heavy (images, layers) only where it is `alone`."""
        classes = run.predictions.per_class() if run.predictions else []
        confusion = run.predictions.confusion() if run.predictions else None
        return cls(
            number=number,
            label=label,
            run=run,
            timeline=timeline(run.attempts),
            downtimes=downtimes(run.attempts),
            worst=classes[:WORST],
            heat=heat(confusion) if confusion else None,
            shares=_shares(run) if alone else [],
            mistakes=run.predictions.worst_mistakes() if alone and run.predictions else None,
            samples=run.samples if alone else None,
        )


def publish(store: Store) -> str:
    """Write the page of the run in `store` next to its report; return its address."""
    store.put(layout.PAGE, encode([read(store)]))
    return f"{store.uri}/{layout.PAGE}"


def encode(runs: Sequence[StoredRun]) -> bytes:
    """Return the page of `runs` as a file; what UTF-8 cannot write, as in some paths, is escaped."""
    return render(runs).encode("utf-8", "backslashreplace")


def render(runs: Sequence[StoredRun]) -> str:
    """Return the page of `runs`, in their order."""
    style, script = _own("page.css"), _own("page.js")
    return (
        _templates()
        .get_template("page.html")
        .render(
            views=[
                RunView.of(number, label, run, alone=len(runs) == 1)
                for number, (label, run) in enumerate(zip(labels(runs), runs, strict=True), start=1)
            ],
            charts=curves.charts(runs),
            columns=_columns(runs),
            epochs=max((len(run.history) for run in runs), default=0),
            groups=_groups(runs),
            recipe_rows=_recipe(runs),
            finished=any(run.report for run in runs),
            frontier=frontier(runs),
            standings=_standings(runs),
            scores=_scores(runs),
            low_precisions=_low_precisions(runs),
            leaderboard=standing,
            environment_rows=_environment(runs),
            style=style,
            script=script,
            policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
            f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'",
        )
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("job.view"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "ordinal": ordinal,
        "data_uri": _data_uri,
    }
    return environment


def _columns(runs: Sequence[StoredRun]) -> list[Column]:
    keys = {key for run in runs for record in run.history for key in record.to_json()}
    return [column for column in COLUMNS if column.key in keys]


def _groups(runs: Sequence[StoredRun]) -> list[Group]:
    return groups(runs) if len(runs) > 1 else []


def _standings(runs: Sequence[StoredRun]) -> Standings | None:
    """Return the places of the finished runs on CIFAR-100, the leaderboard's data set."""
    return standings(
        [
            (label, run.report.headline[1].score, run.report.accuracy.passed)
            for label, run in zip(labels(runs), runs, strict=True)
            if run.report and run.on_cifar100
        ]
    )


def _scores(runs: Sequence[StoredRun]) -> list[tuple[list[str], dict[str, RuleSet]]]:
    """Return (labels, rule sets) of the finished runs; those of one score are together."""
    found: list[tuple[list[str], dict[str, RuleSet]]] = []
    for label, run in zip(labels(runs), runs, strict=True):
        if run.report:
            score = run.report.score.rule_sets()
            same = next((names for names, other in found if other == score), None)
            if same is None:
                found.append(([label], score))
            else:
                same.append(label)
    return found


def _low_precisions(runs: Sequence[StoredRun]) -> list[str]:
    """Return the precisions but fp32 in which `runs` train and evaluate their epochs."""
    known = {str(run.recipe.get("precision", "fp32")) for run in runs}
    return sorted(known & set(PRECISIONS) - {"auto", "fp32"})


def _recipe(runs: Sequence[StoredRun]) -> list[tuple[str, list[str], bool]]:
    """Return (field, its value in each run, whether they differ); the differences come first."""
    differences = recipe_differences(runs)
    fields = dict.fromkeys((*differences, *(name for run in runs for name in run.recipe)))
    return [
        (name, [_shown(run.recipe.get(name)) for run in runs], name in differences)
        for name in fields
        if name != "identity"
    ]


def _environment(runs: Sequence[StoredRun]) -> list[tuple[str, list[str]]]:
    """Return (name, the value in each finished run), for what at least one of them knows."""
    reports = [run.report for run in runs if run.report]
    rows: list[tuple[str, list[Any]]] = [
        ("device", [report.training.device for report in reports]),
        ("precision", [report.training.precision for report in reports]),
        ("deterministic", [report.training.deterministic for report in reports]),
        ("data", [_source(report.data.source) for report in reports]),
        ("data, SHA-256", [report.data.sha256 for report in reports]),
        ("weights, SHA-256", [report.weights.sha256 for report in reports]),
    ]
    rows += [
        (name, [getattr(report.environment, name) for report in reports]) for name in Environment.model_fields
    ]
    return [
        (name, [_shown(value) for value in values])
        for name, values in rows
        if any(value is not None for value in values)
    ]


def _source(uri: str) -> str:
    return "generated, as train --demo does" if uri == DEMO_DATA else uri


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def _own(name: str) -> Markup:
    """Return a file of this package, which needs no escaping."""
    return Markup(files("job.view").joinpath("templates", name).read_text("utf-8"))  # noqa: S704 - our own


def _digest(text: str) -> str:
    """Return what lets exactly this inline text run under the page's policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _shares(run: StoredRun) -> list[BlockShare]:
    """Return the score by layer of a finished run whose number of classes is known."""
    if run.report is None or run.predictions is None or not run.predictions.classes:
        return []
    return shares(run.report, run.recipe, len(run.predictions.classes))
