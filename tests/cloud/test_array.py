"""A task of an array finds its seed and its run."""

import pytest

from job.cloud.array import member
from job.errors import ConfigurationError

ELSEWHERE = {"AWS_BATCH_JOB_ARRAY_INDEX": "3", "BATCH_TASK_INDEX": "3", "JOB_COMPLETION_INDEX": "3"}


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize(("index", "seed"), [("0", 22), ("4", 26)])
def test_index_of_each_scheduler(name: str, index: str, seed: int) -> None:
    environment = {"MICRONET_ARRAY": "5", name: index}
    assert member(environment, 22, "s3://b/runs/first/") == (seed, f"s3://b/runs/first/seed-{seed}")


@pytest.mark.parametrize("environment", [{}, ELSEWHERE, {"MICRONET_ARRAY": "", **ELSEWHERE}])
def test_no_array(environment: dict[str, str]) -> None:
    assert member(environment, 22, None) == (22, None)
    assert member(environment, 22, "runs/first") == (22, "runs/first")


@pytest.mark.parametrize(
    ("environment", "run", "words"),
    [
        ({"MICRONET_ARRAY": "5"}, "s3://b/p", "no index"),
        ({"MICRONET_ARRAY": "5", "BATCH_TASK_INDEX": "5"}, "s3://b/p", "index 5 .* array of 5"),
        ({"MICRONET_ARRAY": "5", "BATCH_TASK_INDEX": "-1"}, "s3://b/p", "index -1"),
        ({"MICRONET_ARRAY": "yes", "BATCH_TASK_INDEX": "0"}, "s3://b/p", "array of yes"),
        ({"MICRONET_ARRAY": "5", "BATCH_TASK_INDEX": "1"}, None, "no --run"),
    ],
)
def test_refused(environment: dict[str, str], run: str | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        member(environment, 22, run)
