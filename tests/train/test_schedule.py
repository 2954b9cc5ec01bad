import pytest

from job.phases import Cycle
from job.recipe import Recipe
from job.train.schedule import one_cycle

STEPS = 195  # an epoch of 50,000 images in batches of 256, the last partial batch dropped


@pytest.mark.parametrize(
    ("epoch", "step", "lr", "momentum"),
    [
        # 200 epochs are 39,000 steps: 11,700 up (60 epochs), 27,300 down.
        (0, 0, 5e-3 / 25, 0.95),
        (15, 0, 5e-3 - 4.8e-3 / 2 * (1 + 2**-0.5), 0.85 + 0.05 * (1 + 2**-0.5)),  # a quarter up
        (30, 0, 2.6e-3, 0.90),  # half way up
        (60, 0, 5e-3, 0.85),  # the peak
        (130, 0, (5e-3 + 2e-8) / 2, 0.90),  # half way down
        (199, 194, 2e-8 + (5e-3 - 2e-8) * 3.3106e-9, 0.95),  # one step before the end: (1 - cos(pi/27300))/2
        (200, 0, 5e-4 / 25, 0.95),  # the second cycle starts anew
        (260, 0, 5e-4, 0.85),
        (400, 0, 5e-4 / 25, 0.95),
        (599, 194, 2e-9 + (5e-4 - 2e-9) * 3.3106e-9, 0.95),
    ],
)
def test_default_cycles_follow_fastai_v1(epoch: int, step: int, lr: float, momentum: float) -> None:
    assert one_cycle(Recipe().cycles, STEPS, epoch, step) == pytest.approx((lr, momentum), rel=1e-6)


def test_peak_of_a_cycle_whose_third_is_not_whole() -> None:
    # 7 steps: int(0.3 * 7) = 2 up, 5 down.
    rates = [one_cycle([Cycle(1, 1.0)], 7, 0, step)[0] for step in range(7)]
    assert rates.index(max(rates)) == 2
    assert rates[1] == pytest.approx((1 + 1 / 25) / 2)


def test_a_cycle_too_short_to_rise_starts_at_its_peak() -> None:
    assert one_cycle([Cycle(1, 1.0)], 3, 0, 0)[0] == 1.0


def test_past_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        one_cycle([Cycle(2, 1.0)], 7, 2, 0)
