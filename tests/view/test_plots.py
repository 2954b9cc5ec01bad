import re

import pytest

from job.view.plots import Series, epoch_ticks, line_chart, linear_ticks, log_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.12, 0.8, [0.0, 0.2, 0.4, 0.6, 0.8]),
        (0, 100, [0, 25, 50, 75, 100]),
        (0.85, 0.95, [0.85, 0.875, 0.9, 0.925, 0.95]),
        (801, 819, [800, 805, 810, 815, 820]),
        (2, 2, [1, 1.5, 2, 2.5, 3]),
        (0, 0, [-0.5, -0.25, 0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_around_the_values(low: float, high: float, expected: list[float]) -> None:
    assert linear_ticks(low, high) == expected


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    assert log_ticks(2e-8, 5e-3) == pytest.approx([1e-8, 1e-6, 1e-4, 1e-2])
    assert log_ticks(0.5, 0.5) == pytest.approx([0.1, 1])


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (600, [1, 200, 400, 600]),
        (12, [1, 5, 10, 12]),
        (6, [1, 2, 3, 4, 5, 6]),
        (3, [1, 2, 3]),
        (2, [1, 2]),
        (1, [1]),
    ],
)
def test_epochs_are_whole_and_the_ends_are_named(last: int, expected: list[int]) -> None:
    assert epoch_ticks(1, last) == expected


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_a_curve_goes_through_its_values() -> None:
    chart = line_chart(
        "t",
        "alt",
        [Series("a", [1, 2, 5], [0.0, 100.0, 50.0])],
        column="c",
        threshold=(75, "x"),
        breaks=[3.5],
    )
    assert points(chart.curves[0].path) == [(0, 1000), (250, 0), (1000, 500)]
    assert chart.threshold is not None
    assert chart.threshold.at == 25
    assert chart.breaks == [62.5]
    assert [(tick.at, tick.label) for tick in chart.x_ticks] == [
        (25 * index, str(index + 1)) for index in range(5)
    ]


def test_a_logarithmic_curve() -> None:
    chart = line_chart("t", "alt", [Series("a", [1, 2, 3], [1.0, 10.0, 0.0])], column="c", logarithmic=True)
    assert points(chart.curves[0].path) == [(0, 1000), (500, 0), (1000, 1000)]  # 0 has no logarithm


def test_mean_and_interval_over_the_epochs_that_all_have() -> None:
    series = [
        Series("a", [1, 2, 3], [0.0, 2.0, 9.0]),
        Series("b", [1, 2], [10.0, 4.0]),
        Series("c", [1, 2], [5.0, 3.0]),
    ]
    chart = line_chart("t", "alt", series, column="c", interval=series)
    top, bottom = (float(tick.label) for tick in (chart.y_ticks[-1], chart.y_ticks[0]))
    mean = next(curve for curve in chart.curves if curve.name == "mean")
    heights = [top + y / 1000 * (bottom - top) for _, y in points(mean.path)]
    assert heights == pytest.approx([5, 3], abs=0.02)
    assert chart.band is not None
    upper = points(chart.band.path)[1]
    half = 4.303 / 3**0.5  # t(2) times the standard error, the values being 2, 3 and 4
    assert top + upper[1] / 1000 * (bottom - top) == pytest.approx(3 + half, abs=0.1)
    assert len(points(chart.band.path)) == 4


def test_one_epoch_is_drawn_too() -> None:
    chart = line_chart("t", "alt", [Series("a", [1], [0.5])], column="c")
    assert len(points(chart.curves[0].path)) == 1


TINY = [5e-324, 1e-310, 1e-13]


@pytest.mark.parametrize("tiny", TINY)
def test_what_is_too_small_to_draw_is_drawn_as_nothing(tiny: float) -> None:
    for values in ([tiny, tiny], [0.0, tiny], [0.5, tiny], [-tiny, tiny]):
        assert linear_ticks(min(values), max(values)) == linear_ticks(
            round(min(values), 9), round(max(values), 9)
        )
        for logarithmic in (False, True):
            chart = line_chart("t", "alt", [Series("a", [1, 2], values)], column="c", logarithmic=logarithmic)
            nothing = [Series("a", [1, 2], [round(value, 9) for value in values])]
            expected = line_chart("t", "alt", nothing, column="c", logarithmic=logarithmic)
            assert points(chart.curves[0].path) == points(expected.curves[0].path)
            assert chart.y_ticks == expected.y_ticks
