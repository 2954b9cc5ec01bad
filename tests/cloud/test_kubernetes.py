"""Kubernetes: the manifests are valid by the published schemas, and are sent by the official client."""

import json
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes.config import kube_config

from job.cloud import kubernetes
from job.cloud.submission import training
from job.errors import JobError
from tests.cloud.documents import (
    IMAGE,
    INFRA,
    assert_one_clear_line,
    kubernetes_job,
    micronet,
    refusal,
    rendered,
)
from tests.cloud.servers import Recorder, nobody
from tests.cloud.test_google import without

OPTIONS = ("kubernetes", "--run", "s3://my-bucket/runs/first", "--image", IMAGE)
NAMES = ("job", "array", "kueue")
OLDEST = "1.33"  # with arrays whose indexes fail one by one


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", NAMES)
def test_the_manifests_validate_strictly(name: str, version: str) -> None:
    kubernetes_validate.validate(kubernetes_job(name), version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backoffLimits"), 3),
        (("spec", "podFailurePolicy", "rules", 0, "onPodCondition"), []),
        (("spec", "podFailurePolicy", "rules", 2, "onExitCodes", "values"), ["74"]),
        (("spec", "template", "spec", "terminationGracePeriod"), 30),
        (("spec", "template", "spec", "containers", 0, "securityContext", "readOnlyRootFileSystem"), True),
    ],
)
def test_a_mistake_would_be_noticed(path: tuple[Any, ...], value: object) -> None:
    manifest = kubernetes_job("job")
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, OLDEST, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_is_harmless_and_has_what_it_needs(name: str) -> None:
    spec = kubernetes_job(name)["spec"]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["activeDeadlineSeconds"] == 86400
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["envFrom"] == [{"secretRef": {"name": "micronet"}}]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted == {"/data": {}, "/tmp": {}, "/dev/shm": {"medium": "Memory", "sizeLimit": "1024Mi"}}


def test_the_grace_of_the_pod_is_the_one_the_job_counts_on() -> None:
    pod = yaml.safe_load(rendered(*OPTIONS, "--grace", "90s"))["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    arguments = pod["containers"][0]["args"]
    assert arguments[arguments.index("--grace") + 1] == "90"


def test_an_array_is_indexed() -> None:
    spec = kubernetes_job("array")["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 5)
    assert spec["backoffLimitPerIndex"] == 10
    assert "backoffLimit" not in spec
    environment = spec["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MICRONET_ARRAY", "value": "5"} in environment


def test_kueue_starts_the_job() -> None:
    manifest, plain = kubernetes_job("kueue"), kubernetes_job("job")
    assert manifest["spec"].pop("suspend") is True
    assert manifest["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name") == "my-queue"
    assert manifest == plain


def test_without_a_gpu() -> None:
    pod = yaml.safe_load(rendered(*OPTIONS, "--device", "cpu"))["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    assert "tolerations" not in pod


def pod(*options: str) -> dict[str, Any]:
    """Return the pod of a job with these options; it is valid."""
    manifest = yaml.safe_load(rendered(*OPTIONS, *options))
    kubernetes_validate.validate(manifest, OLDEST, strict=True)
    return manifest["spec"]["template"]["spec"]


def test_a_pod_is_placed() -> None:
    placed = pod(
        "--node-selector=cloud.google.com/gke-spot=true",
        "--node-selector=cloud.google.com/gke-accelerator=nvidia-l4",
        "--runtime-class=nvidia",
        "--priority-class=low",
        "--image-pull-secret=registry",
        "--service-account=trainer",
    )
    assert placed["nodeSelector"] == {
        "cloud.google.com/gke-spot": "true",
        "cloud.google.com/gke-accelerator": "nvidia-l4",
    }
    assert (placed["runtimeClassName"], placed["priorityClassName"]) == ("nvidia", "low")
    assert placed["imagePullSecrets"] == [{"name": "registry"}]
    assert placed["serviceAccountName"] == "trainer"
    assert set(placed) - set(pod()) == {
        "nodeSelector", "runtimeClassName", "priorityClassName", "imagePullSecrets", "serviceAccountName",
    }  # fmt: skip


GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("taint", "toleration"),
    [
        (
            "kubernetes.azure.com/scalesetpriority=spot:NoSchedule",
            {
                "key": "kubernetes.azure.com/scalesetpriority",
                "operator": "Equal",
                "value": "spot",
                "effect": "NoSchedule",
            },
        ),
        ("dedicated:NoExecute", {"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}),
        ("sku=gpu", {"key": "sku", "operator": "Equal", "value": "gpu"}),
        ("sku=:NoSchedule", {"key": "sku", "operator": "Equal", "value": "", "effect": "NoSchedule"}),
        ("sku", {"key": "sku", "operator": "Exists"}),
    ],
)
def test_a_taint_is_tolerated_as_kubectl_writes_it(taint: str, toleration: dict[str, str]) -> None:
    assert pod("--toleration", taint)["tolerations"] == [GPU_TAINT, toleration]
    assert pod("--toleration", taint, "--device=cpu")["tolerations"] == [toleration]


@pytest.mark.parametrize("taint", ["sku=gpu:NoSchedul", ":NoSchedule", "sku = gpu", ""])
def test_what_is_no_taint_is_refused(taint: str) -> None:
    error = refusal(*OPTIONS, "--toleration", taint, "--dry-run")
    assert error.exit_code == 2
    assert "--toleration" in error.message


def test_a_pod_asks_for_what_it_was_told_to() -> None:
    (container,) = pod("--cpu=500m", "--memory=4Gi", "--gpu=nvidia.com/mig-1g.10gb")["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "4Gi"},
        "limits": {"memory": "4Gi", "nvidia.com/mig-1g.10gb": "1"},
    }


def test_several_gpus_take_as_many_shares_of_their_node() -> None:
    plain = {field.name: None for field in fields(kubernetes.PodSettings)}
    settings = kubernetes.PodSettings(
        **{**plain, "node_selector": (), "toleration": (), "gpu": "nvidia.com/gpu"}  # type: ignore[arg-type]
    )
    submission = training("s3://my-bucket/runs/first", {"shards": 4}, gpus=4)
    submission = replace(submission, grace_seconds=30, timeout_seconds=60)

    def spec(settings: kubernetes.PodSettings) -> dict[str, Any]:
        manifest = kubernetes.manifest(submission, IMAGE, settings)
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
        return manifest["spec"]["template"]["spec"]

    (container,) = spec(settings)["containers"]
    assert container["args"][-2:] == ["--processes", "4"]
    assert container["resources"] == {
        "requests": {"cpu": "12", "memory": "48Gi"},
        "limits": {"memory": "48Gi", "nvidia.com/gpu": "4"},
    }
    memory = {"medium": "Memory", "sizeLimit": "4096Mi"}
    assert {"name": "shared-memory", "emptyDir": memory} in spec(settings)["volumes"]
    (container,) = spec(replace(settings, cpu="8", memory="20Gi"))["containers"]
    assert container["resources"]["requests"] == {"cpu": "8", "memory": "20Gi"}


def several_nodes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Service and the Job of a training on several nodes."""
    service, job = yaml.safe_load_all((INFRA / "kubernetes/nodes.yaml").read_text())
    return service, job


def test_the_documents_for_several_nodes_validate_strictly() -> None:
    for document in several_nodes():
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)
    service, job = several_nodes()
    service["spec"]["publishNotReadyAddress"] = True
    job["spec"]["successPolicy"]["rules"][0]["succeededIndexs"] = "0"
    for document in (service, job):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, OLDEST, strict=True)


def test_several_nodes_find_each_other() -> None:
    service, job = several_nodes()
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables["PET_RDZV_ENDPOINT"] == f"{name}-0.{pod['subdomain']}:29400"
    assert (spec["completionMode"], spec["successPolicy"]["rules"]) == (
        "Indexed",
        [{"succeededIndexes": "0"}],
    )
    assert "MICRONET_ARRAY" not in variables  # the index is no seed's
    arguments = container["args"]
    shards, processes = (int(arguments[arguments.index(name) + 1]) for name in ("--shards", "--processes"))
    nodes = int(variables["PET_NNODES"])
    assert nodes == spec["completions"] == spec["parallelism"]
    assert str(processes) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert shards % (nodes * processes) == 0


def test_several_nodes_are_retried_and_confined_as_one_is() -> None:
    (_, several), single = several_nodes(), kubernetes_job("job")
    for name in set(single["spec"]) - {"template", "backoffLimit"}:
        assert several["spec"][name] == single["spec"][name], name
    pods = [job["spec"]["template"]["spec"] for job in (several, single)]
    containers = [pod["containers"][0] for pod in pods]
    for name in set(pods[1]) - {"containers", "volumes"}:
        assert pods[0][name] == pods[1][name], name
    for name in set(containers[1]) - {"args", "env", "resources"}:
        assert containers[0][name] == containers[1][name], name


def test_a_cluster_queue_covers_what_a_pod_requests() -> None:
    documents = list(yaml.safe_load_all((INFRA / "kubernetes/cluster-queue.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    assert {document["apiVersion"] for document in documents} == {"kueue.x-k8s.io/v1beta2"}
    queue, (group,) = kinds["ClusterQueue"], kinds["ClusterQueue"]["spec"]["resourceGroups"]
    (container,) = kubernetes_job("kueue")["spec"]["template"]["spec"]["containers"]
    requested = set(container["resources"]["requests"]) | set(container["resources"]["limits"])
    assert set(group["coveredResources"]) == requested
    (flavor,) = group["flavors"]
    quotas = {resource["name"]: str(resource["nominalQuota"]) for resource in flavor["resources"]}
    pods = kubernetes_job("array")["spec"]["parallelism"]  # which Kueue admits all or none of
    for name, amount in (container["resources"]["requests"] | container["resources"]["limits"]).items():
        assert int(quotas[name].removesuffix("Gi")) >= pods * int(amount.removesuffix("Gi")), name
    assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    assert flavor["name"] == kinds["ResourceFlavor"]["metadata"]["name"]
    local = kinds["LocalQueue"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    labels = kubernetes_job("kueue")["metadata"]["labels"]
    assert local["metadata"]["name"] == labels["kueue.x-k8s.io/queue-name"]


@pytest.fixture
def cluster(tmp_path: Path, recorder: Recorder) -> str:
    return kubeconfig(tmp_path, recorder.uri)


def kubeconfig(folder: Path, server: str) -> str:
    """Write the file that a user of this server has; the token is a secret."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "clusters": [{"name": "tests", "cluster": {"server": server}}],
        "users": [{"name": "tests", "user": {"token": "averysecrettoken"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def submit(config: str) -> subprocess.CompletedProcess[str]:
    return micronet("submit", *OPTIONS, "--namespace", "training", KUBECONFIG=config)


def test_submit(recorder: Recorder, cluster: str) -> None:
    recorder.status = 201
    recorder.answer = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "micronet-first-x7k2p"}}
    done = submit(cluster)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["job", "training/micronet-first-x7k2p"]
    assert "kubectl --namespace training logs --follow job/micronet-first-x7k2p\n" in done.stdout

    ((path, authorization, body),) = recorder.requests
    assert path == "/apis/batch/v1/namespaces/training/jobs?fieldValidation=Strict"
    assert authorization == "Bearer averysecrettoken"
    assert body == yaml.safe_load(rendered(*OPTIONS))
    assert body["metadata"]["generateName"] == "micronet-first-"  # so that it can be submitted again
    kubernetes_validate.validate(body, OLDEST, strict=True)


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 77), (403, 77), (404, 78), (422, 78), (429, 74), (500, 74)]
)
def test_refusals(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, cluster: str, status: int, exit_code: int
) -> None:
    # The client reads the variable when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", cluster)
    recorder.status, recorder.answer = status, {"kind": "Status", "message": "the reason given"}
    with pytest.raises(JobError, match=r"training: .*: the reason given") as caught:
        kubernetes.submit(kubernetes_job("job"), "training")
    assert caught.value.exit_code == exit_code
    assert caught.value.fix
    assert ("kubectl get jobs" in caught.value.fix) == (status == 401)
    assert "averysecrettoken" not in str(caught.value)


def test_refused_on_the_command_line(recorder: Recorder, cluster: str) -> None:
    recorder.status, recorder.answer = 403, {"kind": "Status", "message": "the reason given"}
    done = submit(cluster)
    assert_one_clear_line(done, 77, "the reason given", "create Jobs")
    assert "averysecrettoken" not in done.stderr


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig(tmp_path, nobody()))
    error = refusal(*OPTIONS)
    assert error.exit_code == 74
    assert "KUBECONFIG" in error.fix


@pytest.mark.parametrize("content", [None, b"a: [", b"\xff\xfe\xfd", "a folder"])
def test_without_a_valid_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    if isinstance(content, str):
        (tmp_path / "config").mkdir()
    elif content is not None:
        (tmp_path / "config").write_bytes(content)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    error = refusal(*OPTIONS)
    assert error.exit_code == 78
    assert "KUBECONFIG" in error.fix


def test_without_the_client() -> None:
    assert_one_clear_line(without("kubernetes", "submit", *OPTIONS), 78, "./setup.sh install kubernetes")
    done = without("kubernetes", "submit", *OPTIONS, "--dry-run")
    assert done.returncode == 0
    assert json.dumps(yaml.safe_load(done.stdout)) == json.dumps(yaml.safe_load(rendered(*OPTIONS)))
