"""Kubernetes: the manifest of a Job, alone or in a Kueue queue, and its creation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from job.cloud.submission import CACHE, Submission, explain_answer
from job.errors import (
    PREEMPTED,
    RETRYABLE,
    ConfigurationError,
    MachineError,
    UsageError,
)
from job.machine.launch import SHARED_MEMORY_MIB

BACKOFF_LIMIT = 10
"""Retries of failures that count; lost nodes, evictions and exit code 75 do not."""

CPU, MEMORY_GIB = 3, 12
"""Processors and GiB that a pod requests for each GPU.

They are what a node's own programs leave of 4 vCPU and 16 GiB.
"""

USER = 1000
"""The image's user; any other works too."""

KEPT_SECONDS = 7 * 24 * 3600
"""How long a finished Job and its logs stay."""

_CONTAINER = "micronet"
_TIMEOUT_SECONDS = (10, 20)  # to connect, to read


_TAINT = re.compile(
    r"(?P<key>[A-Za-z0-9][\w./-]*)(=(?P<value>[\w.-]*))?(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)


@dataclass(frozen=True)
class PodSettings:
    """Where a pod may run, as whom, and with what.

    The keys of `secret` become variables, `queue` is a local queue of Kueue, a toleration is written
    KEY[=VALUE][:EFFECT]. `cpu` and `memory` are quantities, None what the pod's GPUs need; `gpu` is the name
    of a resource.
    """

    service_account: str | None
    secret: str | None
    image_pull_secret: str | None
    queue: str | None
    node_selector: tuple[tuple[str, str], ...]
    toleration: tuple[str, ...]
    runtime_class: str | None
    priority_class: str | None
    cpu: str | None
    memory: str | None
    gpu: str


def manifest(submission: Submission, image: str, settings: PodSettings) -> dict[str, Any]:
    """Return the Job. Raises UsageError for a toleration that is not KEY[=VALUE][:EFFECT]."""
    spec: dict[str, Any] = {
        "activeDeadlineSeconds": submission.timeout_seconds,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "podReplacementPolicy": "Failed",  # not while the pod before it is still saving
        "podFailurePolicy": {"rules": failure_rules(submission.seeds is not None)},
        **_completions(submission.seeds),
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "micronet"}},
            "spec": _pod(submission, image, settings),
        },
    }
    labels = {"app.kubernetes.io/name": "micronet"}
    if settings.queue:
        labels["kueue.x-k8s.io/queue-name"] = settings.queue
        spec = {"suspend": True, **spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        # A new name each time, so that the same command submits again when the attempts are used up.
        "metadata": {"generateName": f"{submission.name}-", "labels": labels},
        "spec": spec,
    }


def failure_rules(array: bool) -> list[dict[str, Any]]:
    """Return the rules, tried in order; in an array a failure without retry fails only its own index."""
    counted = sorted(set(RETRYABLE) - {PREEMPTED.code})
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        _on_exit_codes("Ignore", "In", [PREEMPTED.code]),
        _on_exit_codes("Count", "In", counted),
        _on_exit_codes("FailIndex" if array else "FailJob", "NotIn", sorted(RETRYABLE)),
    ]


def _on_exit_codes(action: str, operator: str, values: list[int]) -> dict[str, Any]:
    condition = {"containerName": _CONTAINER, "operator": operator, "values": values}
    return {"action": action, "onExitCodes": condition}


def _completions(seeds: int | None) -> dict[str, Any]:
    if seeds is None:
        return {"backoffLimit": BACKOFF_LIMIT}
    return {
        "completionMode": "Indexed",
        "completions": seeds,
        "parallelism": seeds,
        "backoffLimitPerIndex": BACKOFF_LIMIT,
        "maxFailedIndexes": seeds,
    }


def _pod(submission: Submission, image: str, settings: PodSettings) -> dict[str, Any]:
    share = max(1, submission.gpus)
    memory = settings.memory or f"{MEMORY_GIB * share}Gi"
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": image,
        "args": list(submission.arguments),
        "env": [{"name": name, "value": value} for name, value in submission.environment.items()],
        "resources": {
            "requests": {"cpu": settings.cpu or str(CPU * share), "memory": memory},
            "limits": {"memory": memory} | ({settings.gpu: str(share)} if submission.gpus else {}),
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": CACHE},
            {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 - of the container
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": submission.grace_seconds,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "temporary", "emptyDir": {}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_MIB * share}Mi"},
            },
        ],
    }
    tolerations = [_toleration(text) for text in settings.toleration]
    if submission.gpus:  # a cluster's GPU nodes are tainted so
        tolerations.insert(0, {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    placed = {
        "tolerations": tolerations,
        "nodeSelector": dict(settings.node_selector),
        "runtimeClassName": settings.runtime_class,
        "priorityClassName": settings.priority_class,
        "imagePullSecrets": [{"name": settings.image_pull_secret}] if settings.image_pull_secret else None,
        "serviceAccountName": settings.service_account,
    }
    return pod | {name: value for name, value in placed.items() if value}


def _toleration(text: str) -> dict[str, str]:
    """Return the toleration of a taint as `kubectl taint` writes it; without an effect, of each effect."""
    taint = _TAINT.fullmatch(text)
    if not taint:
        raise UsageError(
            f"--toleration: {text!r} is not KEY[=VALUE][:EFFECT]",
            "Write it as kubectl describe node shows the taint, such as "
            "kubernetes.azure.com/scalesetpriority=spot:NoSchedule",
        )
    value = taint["value"]
    toleration = {"key": taint["key"], "operator": "Exists"}
    if value is not None:
        toleration |= {"operator": "Equal", "value": value}
    return toleration | ({"effect": taint["effect"]} if taint["effect"] else {})


def submit(job: dict[str, Any], namespace: str) -> tuple[str, str]:
    """Create the Job; return its name and the command that shows its logs. Raises JobError."""
    try:
        from kubernetes import client, config
        from urllib3.exceptions import HTTPError
        from yaml import YAMLError
    except ImportError as error:
        raise ConfigurationError(
            f"the client of Kubernetes is not installed ({error})", "Run ./setup.sh install kubernetes"
        ) from error

    body: Any = job  # the client takes dictionaries too
    try:
        config.load_kube_config()  # type: ignore[no-untyped-call]
    except (config.ConfigException, YAMLError, OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise ConfigurationError(
            f"no cluster is configured: {message}",
            "Name a file that this user can read in KUBECONFIG, as for kubectl",
        ) from error
    try:
        created: Any = client.BatchV1Api().create_namespaced_job(
            namespace, body, field_validation="Strict", _request_timeout=_TIMEOUT_SECONDS
        )
    except client.ApiException as error:
        raise explain_answer(
            error.status,
            f"{namespace}: {error.reason}: {_message(error.body)}",
            renew="Log in to the cluster again: kubectl get jobs must succeed with the same KUBECONFIG",
            permit="Ask for the right to create Jobs in this namespace",
            correct="Check the options, --namespace and the cluster's version: arrays need 1.33",
        ) from error
    except HTTPError as error:
        raise MachineError(
            f"the cluster does not answer: {error}", "Check the network and KUBECONFIG"
        ) from error
    name = created.metadata.name
    return f"{namespace}/{name}", f"kubectl --namespace {namespace} logs --follow job/{name}"


def _message(body: str | None) -> str:
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return "no explanation"
