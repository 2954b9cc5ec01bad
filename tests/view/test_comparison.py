import numpy as np
import pytest
from scipy import stats

from job.view.comparison import estimate


@pytest.mark.parametrize("count", [3, 4, 5, 30, 120])
def test_the_interval_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(0.8, 0.01, count)
    interval = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    found = estimate(values.tolist())
    assert found.half_width == pytest.approx((interval[1] - interval[0]) / 2, rel=1e-10)


def test_five_seeds_have_numpys_mean_and_interval() -> None:
    values = [0.8012, 0.8046, 0.8037, 0.7991, 0.8050]
    found = estimate(values)
    error = np.std(values, ddof=1) / np.sqrt(5)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert found.half_width == pytest.approx(2.7764451051977987 * error, rel=1e-12)
    assert found.count == 5


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.75]])
def test_fewer_than_three_values_have_no_interval(values: list[float]) -> None:
    assert (estimate(values).mean, estimate(values).half_width) == (sum(values) / len(values), None)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert estimate([0.5, 0.5, 0.5]).half_width == 0
