"""What each scheduler makes of its retry rules, after its documentation: "done", "retry" or "fail"."""

from __future__ import annotations

import re
from typing import Any

Document = dict[str, Any]


def aws(
    strategy: Document, exit_code: int | None, status_reason: str = "Essential container in task exited"
) -> str:
    """AWS Batch. `strategy` in the API's or in CloudFormation's spelling; a lost host leaves no exit code.

    The first condition holds of which everything given matches; if none does, the job is retried. Five at
    most; a pattern may end with * and holds nothing else that is special.
    https://docs.aws.amazon.com/batch/latest/APIReference/API_EvaluateOnExit.html
    """
    if exit_code == 0:
        return "done"
    rules = [_lower(rule) for rule in _lower(strategy)["evaluateOnExit"]]
    assert len(rules) <= 5
    seen = {
        "onExitCode": None if exit_code is None else str(exit_code),
        "onStatusReason": status_reason,
        "onReason": None,  # the container's own, such as OutOfMemoryError; usually none
    }
    for rule in rules:
        patterns = {name: rule[name] for name in seen if name in rule}
        assert patterns, rule
        assert set(rule) <= {*seen, "action"}
        if all(_matches(pattern, seen[name], name) for name, pattern in patterns.items()):
            return {"RETRY": "retry", "EXIT": "fail"}[rule["action"].upper()]
    return "retry"


def _matches(pattern: str, value: str | None, name: str) -> bool:
    allowed = r"[0-9]*\*?" if name == "onExitCode" else r"[A-Za-z0-9.:\s]*\*?"
    assert re.fullmatch(allowed, pattern), pattern
    if pattern == "*":
        return True
    if value is None:
        return False
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def _lower(document: Document) -> Document:
    return {key[0].lower() + key[1:]: value for key, value in document.items()}


def google(task_spec: Document, exit_code: int) -> str:
    """Google Batch. One policy is supported; exit codes it does not list get the opposite of its action.

    https://cloud.google.com/batch/docs/automate-task-retries
    """
    if exit_code == 0:
        return "done"
    assert 0 < task_spec["maxRetryCount"] <= 10
    (policy,) = task_spec["lifecyclePolicies"]
    listed = exit_code in policy["actionCondition"]["exitCodes"]
    return "retry" if listed == {"RETRY_TASK": True, "FAIL_TASK": False}[policy["action"]] else "fail"


def kubernetes(job_spec: Document, exit_code: int | None, disrupted: bool = False) -> str:
    """Kubernetes: as `kubernetes_action`, with what a fresh Job does about it."""
    if exit_code == 0:
        return "done"
    action = kubernetes_action(job_spec, exit_code, disrupted)
    limit: Any = job_spec.get("backoffLimitPerIndex", job_spec.get("backoffLimit", 6))
    return "retry" if action == "Ignore" or (action == "Count" and limit > 0) else "fail"


def kubernetes_action(job_spec: Document, exit_code: int | None, disrupted: bool) -> str:
    """Return Ignore, Count, FailJob or FailIndex for a pod that failed.

    The first rule that matches holds, and without one the failure counts. `disrupted`: the pod has the
    condition DisruptionTarget. https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
    """
    assert job_spec["template"]["spec"]["restartPolicy"] == "Never"  # the policy is refused otherwise
    (container,) = job_spec["template"]["spec"]["containers"]
    conditions = {"DisruptionTarget": "True"} if disrupted else {}
    rules = job_spec["podFailurePolicy"]["rules"]
    assert len(rules) <= 20
    for rule in rules:
        assert rule["action"] in {"Ignore", "Count", "FailJob", "FailIndex"}
        assert rule["action"] != "FailIndex" or "backoffLimitPerIndex" in job_spec
        assert len({"onExitCodes", "onPodConditions"} & set(rule)) == 1
        if "onPodConditions" in rule:
            matched = any(
                conditions.get(pattern["type"]) == pattern.get("status", "True")
                for pattern in rule["onPodConditions"]
            )
        else:
            matched = _matches_exit_codes(rule["onExitCodes"], exit_code, container["name"])
        if matched:
            return str(rule["action"])
    return "Count"


def _matches_exit_codes(condition: Document, exit_code: int | None, container: str) -> bool:
    values = condition["values"]
    assert values == sorted(set(values))
    assert 1 <= len(values) <= 255
    assert condition.get("containerName", container) == container
    if not exit_code:
        return False
    if condition["operator"] == "In":
        assert 0 not in values
        return exit_code in values
    assert condition["operator"] == "NotIn"
    return exit_code not in values
