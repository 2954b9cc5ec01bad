import pytest

from job.view.standing import ENTRIES, QUALIFIED, REPRODUCED, place, standings


def test_the_list_is_whole_and_in_order() -> None:
    assert (len(ENTRIES), len(QUALIFIED)) == (30, 29)
    assert [entry.score for entry in ENTRIES] == sorted(entry.score for entry in ENTRIES)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.46346508205335807, 28),  # the reproduced entry's own place: 27 qualified ones are better
        (0.4636, 29),
        (0.0043, 1),
        (0.0044, 1),
        (0.2, 26),  # PunyNet's 0.1906 does not count: it missed the accuracy
        (0.9, 30),
    ],
)
def test_place(score: float, expected: int) -> None:
    assert place(score) == expected


def test_a_run_stands_where_its_score_is() -> None:
    found = standings([("mine", 0.46346508, True)])
    assert found is not None
    names = [row.name for row in found.rows]
    assert names.index("mine") == names.index(REPRODUCED) + 1
    assert [row.name for row in found.rows if row.marked] == ["mine"]
    positions = [tick.at for tick in found.entries]
    assert positions == sorted(positions)
    assert positions[-2] < found.runs[0].at + 0.02 < positions[-1]
    assert "28 of 29" in found.alt


def test_without_a_finished_run_there_are_none() -> None:
    assert standings([]) is None
