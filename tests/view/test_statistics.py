import numpy as np
import pytest
from scipy import stats

from job.view.statistics import estimate, student_quantile


@pytest.mark.parametrize(  # printed in every textbook's table, column 0.975
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_table(degrees: int, expected: float) -> None:
    assert student_quantile(0.95, degrees) == pytest.approx(expected, abs=5e-4)


def test_quantiles_agree_with_scipy() -> None:
    for degrees in range(1, 120):
        assert student_quantile(0.95, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def test_five_seeds_have_numpys_mean_and_interval() -> None:
    values = [0.8012, 0.8046, 0.8037, 0.7991, 0.8050]
    found = estimate(values)
    error = np.std(values, ddof=1) / np.sqrt(5)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert found.half_width == pytest.approx(2.7764451051977987 * error, rel=1e-12)
    assert found.count == 5


def test_one_value_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert (estimate([0.5]).mean, estimate([0.5]).half_width) == (0.5, None)
    assert estimate([0.5, 0.5]).half_width == 0
