import re
from pathlib import Path
from typing import Any

import pytest

from job.store import open_store
from job.view import page
from job.view.frontier import KNOWN, Frontier, frontier
from job.view.stored_run import StoredRun, read
from tests.view.runs import altered, write_run

OTHER_DATA = "0" * 64


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    def stored(name: str, **how: Any) -> StoredRun:
        store = open_store(str(tmp_path / name))
        write_run(store, epochs=3, **how)
        return read(store)

    return stored


def drawn(*runs: StoredRun) -> Frontier:
    chart = frontier(runs)
    assert chart is not None
    return chart


def test_the_phases_of_a_run_are_a_path_to_what_it_ended_with(stored: Any) -> None:
    chart = drawn(stored("compact", compressed=True))
    assert [(row.phase, row.accuracy, round(row.score, 4)) for row in chart.rows if not row.entry] == [
        ("dense", 0.8093, 0.3309),
        ("prune", 0.8081, 0.0916),
        ("quantise", 0.8026, 0.0543),
        ("statistics", 0.8031, 0.0543),
    ]
    assert [dot.final for dot in chart.dots] == [False, False, False, True]
    assert chart.dots[0].x > chart.dots[1].x > chart.dots[2].x == chart.dots[3].x
    assert chart.dots[0].y < chart.dots[1].y < chart.dots[3].y < chart.dots[2].y
    (run,) = chart.runs
    corners = [float(figure) for pair in re.findall(r"([\d.]+) ([\d.]+)", run.path) for figure in pair]
    assert corners == pytest.approx([10 * place for dot in chart.dots for place in (dot.x, dot.y)], abs=0.1)
    assert "ends with 80.31 % at 0.0543, from 80.93 % at 0.3309" in chart.alt


def test_the_score_of_a_run_is_the_official_one(stored: Any) -> None:
    """And that of the entries is what was listed, which is another count: both are named."""
    run = stored("dense", accuracy=0.81)
    chart = drawn(run)
    assert [(row.accuracy, row.score) for row in chart.rows if not row.entry] == [(0.81, 0.330853)]
    assert chart.runs[0].path == ""
    listed = {row.name: (row.entry, row.accuracy, row.score) for row in chart.rows if row.entry}
    assert listed["RIAIR"] == (1, 0.8039, 0.0044)
    assert listed["HHI-MAL"] == (2, 0.8013, 0.0242)
    assert [entry.label for entry in chart.entries] == [str(number) for number in range(1, len(KNOWN) + 1)]
    html = page.render([run])
    assert "<td>as listed; with a bit of mask for every weight about 0.076</td>" in html
    assert "<td>official rules</td>" in html


def test_the_line_of_80_per_cent_is_where_its_accuracy_is(stored: Any) -> None:
    chart = drawn(stored("low", accuracy=0.70), stored("high", accuracy=0.90))
    assert chart.threshold is not None
    low, high = (dot.y for dot in chart.dots)
    assert chart.threshold.at == pytest.approx((low + high) / 2)


def test_what_was_not_trained_on_cifar100_is_not_compared_with_the_entries(stored: Any) -> None:
    assert frontier([stored("demo", data_sha256=OTHER_DATA)]) is None  # a single point
    chart = drawn(stored("demo-compact", data_sha256=OTHER_DATA, compressed=True))
    assert (chart.threshold, chart.entries, len(chart.dots)) == (None, [], 4)
    mixed = drawn(stored("cifar"), stored("other", data_sha256=OTHER_DATA))
    assert (mixed.threshold, mixed.entries, len(mixed.dots)) == (None, [], 2)


def test_an_unfinished_run_has_no_point(stored: Any) -> None:
    unfinished = stored("unfinished", finished=False)
    assert frontier([unfinished]) is None
    assert [run.name for run in drawn(unfinished, stored("done")).runs] != ["unfinished"]
    assert len(drawn(unfinished, stored("done")).dots) == 1


@pytest.mark.parametrize("accuracy", [0.0, 0.01, 1.0])
def test_every_point_is_inside_the_plot(stored: Any, accuracy: float) -> None:
    chart = drawn(stored("a", accuracy=accuracy), stored("b", compressed=True))
    for dot in (*chart.dots, *chart.entries):
        assert 0 <= dot.x <= 100
        assert 0 <= dot.y <= 100
    assert 2 <= len(chart.x_ticks) <= 7
    assert all(0 <= tick.at <= 100 for tick in (*chart.x_ticks, *chart.y_ticks))


def test_a_score_of_zero_is_drawn_at_the_edge(stored: Any) -> None:
    run = altered(stored("zero"), {"score.official.score": 0})
    assert 0 <= drawn(run).dots[0].x < 10


def test_a_hostile_name_is_text(stored: Any) -> None:
    html = page.render([stored("<b>x", accuracy=0.5), stored("y", compressed=True)])
    assert "<b>x" not in html
    assert "&lt;b&gt;x: 50.00 %, score 0.3309" in html
