"""Every document's retry rules, interpreted, do what was designed for each way an attempt can end."""

import json
from typing import Any

import pytest

from job import errors
from tests.cloud import schedulers
from tests.cloud.documents import aws_template, google_job, kubernetes_job, rendered

DESIGNED = {
    0: "done", 1: "fail", 2: "fail", 65: "fail", 74: "retry", 75: "retry", 76: "fail", 77: "fail", 78: "fail",
    137: "retry", 143: "fail",
}  # fmt: skip
INTERRUPTED = "Host EC2 (instance i-0f3a9c2d) terminated."


@pytest.fixture(scope="module")
def aws_rules() -> dict[str, Any]:
    return {
        "template": aws_template()["Resources"]["JobDefinition"]["Properties"]["RetryStrategy"],
        "request": json.loads(rendered("aws", "--run", "s3://my-bucket/runs/first"))["retryStrategy"],
    }


def test_every_code_of_the_table_is_covered() -> None:
    assert set(DESIGNED) == {row.code for row in errors.TABLE + errors.BY_SIGNAL}


@pytest.mark.parametrize("code", DESIGNED)
@pytest.mark.parametrize("where", ["template", "request"])
def test_aws(aws_rules: dict[str, Any], where: str, code: int) -> None:
    assert schedulers.aws(aws_rules[where], code) == DESIGNED[code]


@pytest.mark.parametrize("code", [None, 1, 137, 143])
@pytest.mark.parametrize("where", ["template", "request"])
def test_aws_retries_when_the_host_is_lost(aws_rules: dict[str, Any], where: str, code: int | None) -> None:
    assert schedulers.aws(aws_rules[where], code, INTERRUPTED) == "retry"


@pytest.mark.parametrize("where", ["template", "request"])
def test_aws_gives_up_on_an_image_it_cannot_pull(aws_rules: dict[str, Any], where: str) -> None:
    assert schedulers.aws(aws_rules[where], None, "CannotPullContainerError: not found") == "fail"


def test_aws_tries_as_often_as_it_may(aws_rules: dict[str, Any]) -> None:
    assert aws_rules["template"]["Attempts"] == aws_rules["request"]["attempts"] == 10


@pytest.mark.parametrize("code", DESIGNED)
def test_google(code: int) -> None:
    assert schedulers.google(_task_spec(), code) == DESIGNED[code]


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (50001, "retry"),
        (50002, "retry"),
        (50003, "retry"),
        (50004, "retry"),
        (50005, "fail"),
        (50006, "retry"),
    ],
)
def test_google_retries_when_the_machine_is_lost_and_not_after_a_time_out(code: int, action: str) -> None:
    assert schedulers.google(_task_spec(), code) == action


def _task_spec() -> dict[str, Any]:
    (group,) = google_job()["taskGroups"]
    return group["taskSpec"]


@pytest.mark.parametrize("code", DESIGNED)
@pytest.mark.parametrize("name", ["job", "array", "kueue"])
def test_kubernetes(name: str, code: int) -> None:
    assert schedulers.kubernetes(kubernetes_job(name)["spec"], code) == DESIGNED[code]


@pytest.mark.parametrize("code", [None, 1, 137, 143])
@pytest.mark.parametrize("name", ["job", "array", "kueue"])
def test_kubernetes_retries_when_the_node_is_lost(name: str, code: int | None) -> None:
    spec = kubernetes_job(name)["spec"]
    assert schedulers.kubernetes(spec, code, disrupted=True) == "retry"
    assert schedulers.kubernetes_action(spec, code, disrupted=True) == "Ignore"


@pytest.mark.parametrize(("code", "action"), [(75, "Ignore"), (74, "Count"), (137, "Count")])
@pytest.mark.parametrize("name", ["job", "array", "kueue"])
def test_kubernetes_counts_all_but_preemptions(name: str, code: int, action: str) -> None:
    assert schedulers.kubernetes_action(kubernetes_job(name)["spec"], code, disrupted=False) == action


def test_kubernetes_ends_one_seed_without_the_others() -> None:
    array, single = kubernetes_job("array")["spec"], kubernetes_job("job")["spec"]
    assert schedulers.kubernetes_action(array, 78, disrupted=False) == "FailIndex"
    assert array["maxFailedIndexes"] >= array["completions"] == 5
    assert schedulers.kubernetes_action(single, 78, disrupted=False) == "FailJob"
