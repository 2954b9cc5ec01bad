"""AWS Batch: the stack is made on a real HTTP server, and jobs are queued in it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from job.cloud import aws
from job.cloud.submission import training
from job.errors import JobError
from job.machine.launch import SHARED_MEMORY_MIB
from tests.cloud.documents import (
    IMAGE,
    INFRA,
    assert_one_clear_line,
    aws_template,
    micronet,
    refusal,
    rendered,
)
from tests.cloud.servers import KEYS, MASKED, Moto, Recorder, nobody

RUN = "s3://my-bucket/runs/first"
CREATE_SECONDS = 30


@pytest.fixture(scope="module")
def stack(moto: Moto) -> dict[str, str]:
    return make(moto, "micronet")


def make(moto: Moto, name: str, **values: str) -> dict[str, str]:
    """Create the stack with these parameters; return its outputs."""
    ec2, formation = moto.client("ec2"), moto.client("cloudformation")
    subnets = ec2.describe_subnets()["Subnets"][:2]
    values = {
        "Image": IMAGE,
        "Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        "Subnets": ",".join(subnet["SubnetId"] for subnet in subnets),
        **values,
    }
    # moto knows of no service-linked role and requires one that it can find.
    plain, role = "      ReplaceComputeEnvironment:", "      ServiceRole: !GetAtt InstanceRole.Arn\n"
    template = (INFRA / "aws/micronet.yaml").read_text().replace(plain, role + plain)
    formation.create_stack(
        StackName=name,
        TemplateBody=template,
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
    )
    deadline = time.monotonic() + CREATE_SECONDS
    while True:
        (made,) = formation.describe_stacks(StackName=name)["Stacks"]
        if made["StackStatus"] != "CREATE_IN_PROGRESS" or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert made["StackStatus"] == "CREATE_COMPLETE", made
    return {output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}


def test_lint() -> None:
    linter = Path(sys.executable).parent / "cfn-lint"
    done = subprocess.run(
        [str(linter), str(INFRA / "aws/micronet.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stack_has_a_queue_on_spot_instances_of_one_type(moto: Moto, stack: dict[str, str]) -> None:
    batch = moto.client("batch")
    (queue,) = batch.describe_job_queues(jobQueues=[stack["Queue"]])["jobQueues"]
    assert (queue["state"], queue["status"]) == ("ENABLED", "VALID")
    (order,) = queue["computeEnvironmentOrder"]
    (environment,) = batch.describe_compute_environments(computeEnvironments=[order["computeEnvironment"]])[
        "computeEnvironments"
    ]
    resources = environment["computeResources"]
    assert (resources["type"], resources["instanceTypes"]) == ("SPOT", ["g5.xlarge"])
    assert resources["allocationStrategy"] == "SPOT_PRICE_CAPACITY_OPTIMIZED"
    assert (resources["minvCpus"], resources["maxvCpus"]) == (0, 16)


def test_the_stack_has_a_job_definition_for_the_image(moto: Moto, stack: dict[str, str]) -> None:
    (definition,) = moto.client("batch").describe_job_definitions(jobDefinitionName=stack["Definition"])[
        "jobDefinitions"
    ]
    container = definition["containerProperties"]
    assert container["image"] == IMAGE
    assert container["readonlyRootFilesystem"]
    assert not container["privileged"]
    assert container["linuxParameters"]["sharedMemorySize"] == 8 * SHARED_MEMORY_MIB
    assert {"type": "GPU", "value": "1"} in container["resourceRequirements"]
    assert container["logConfiguration"]["options"]["awslogs-group"] == stack["Logs"]
    (group,) = moto.client("logs").describe_log_groups(logGroupNamePrefix=stack["Logs"])["logGroups"]
    assert group["retentionInDays"] == 30


def test_a_tag_is_no_image() -> None:
    pattern = aws_template()["Parameters"]["Image"]["AllowedPattern"]
    assert re.search(pattern, IMAGE)
    assert not re.search(pattern, "registry.example.com/micronet:latest")
    assert not re.search(pattern, IMAGE[:-1])


def test_the_bucket_is_closed_and_keeps_what_is_current(moto: Moto, stack: dict[str, str]) -> None:
    bucket = stack["Runs"].removeprefix("s3://").partition("/")[0]
    s3 = moto.client("s3")
    encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"

    made = aws_template()["Resources"]["Bucket"]
    assert made["DeletionPolicy"] == made["UpdateReplacePolicy"] == "Retain"
    # moto drops these three.
    assert made["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    public = ["BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"]
    assert made["Properties"]["PublicAccessBlockConfiguration"] == dict.fromkeys(public, True)
    rules = made["Properties"]["LifecycleConfiguration"]["Rules"]
    actions = {key for rule in rules for key in rule} - {"Id", "Status"}
    assert actions == {
        "NoncurrentVersionExpiration", "ExpiredObjectDeleteMarker", "AbortIncompleteMultipartUpload",
    }  # fmt: skip
    assert all(rule["Status"] == "Enabled" for rule in rules)


def test_what_moto_drops() -> None:
    resources = aws_template()["Resources"]
    definition = resources["JobDefinition"]["Properties"]
    assert definition["Timeout"] == {"AttemptDurationSeconds": {"Ref": "Timeout"}}
    assert aws_template()["Parameters"]["Timeout"]["Default"] == 86400
    launch = resources["LaunchTemplate"]["Properties"]["LaunchTemplateData"]
    assert launch["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    assert launch["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    (user_data,) = launch["UserData"].values()
    script = user_data["Fn::Sub"]
    assert script.startswith("MIME-Version: 1.0\n")  # Batch takes nothing else
    assert "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true\n" in script
    assert "ECS_CONTAINER_STOP_TIMEOUT=${Grace}s\n" in script
    variables = {item["Name"]: item["Value"] for item in definition["ContainerProperties"]["Environment"]}
    assert variables["MICRONET_GRACE"] == {"Ref": "Grace"}


def test_the_queue_gives_up_on_what_can_never_be_placed() -> None:
    actions = aws_template()["Resources"]["JobQueue"]["Properties"]["JobStateTimeLimitActions"]
    assert {action["Reason"]: action["MaxTimeSeconds"] for action in actions} == {
        "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE": 600,
        "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT": 600,
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY": 86400,
    }
    assert {(action["State"], action["Action"]) for action in actions} == {("RUNNABLE", "CANCEL")}


def test_the_machine_image_is_updated_in_place_by_batch_s_own_role() -> None:
    environment = aws_template()["Resources"]["ComputeEnvironment"]["Properties"]
    assert "ServiceRole" not in environment
    assert environment["ReplaceComputeEnvironment"] is False
    assert environment["ComputeResources"]["UpdateToLatestImageVersion"] is True


def test_an_endpoint_for_s3_is_made_for_route_tables(moto: Moto, stack: dict[str, str]) -> None:
    ec2 = moto.client("ec2")
    assert ec2.describe_vpc_endpoints()["VpcEndpoints"] == []
    (table, *_) = ec2.describe_route_tables()["RouteTables"]
    make(moto, "routed", RouteTables=table["RouteTableId"])
    (endpoint,) = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    assert endpoint["RouteTableIds"] == [table["RouteTableId"]]
    assert endpoint["ServiceName"] == "com.amazonaws.eu-central-1.s3"
    assert endpoint["VpcEndpointType"] == "Gateway"


def test_a_job_may_touch_its_prefix_only() -> None:
    (policy,) = aws_template()["Resources"]["JobRole"]["Properties"]["Policies"]
    allowed: dict[str, Any] = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            allowed[action] = (statement["Resource"], statement.get("Condition"))
    objects = ({"Fn::Sub": "${Bucket.Arn}/${Prefix}/*"}, None)
    # IfExists, since the question whether a missing object is 404 or 403 has no prefix.
    listed = {"StringLikeIfExists": {"s3:prefix": {"Fn::Sub": "${Prefix}/*"}}}
    assert allowed == {
        "s3:GetObject": objects,
        "s3:PutObject": objects,
        "s3:DeleteObject": objects,
        "s3:ListBucket": ({"Fn::GetAtt": "Bucket.Arn"}, listed),
    }


def surround(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set these variables, remove the empty ones, and forget what boto3 has read from others."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in {**KEYS, **MASKED, **variables}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)


def test_submit(moto: Moto, stack: dict[str, str]) -> None:
    run = f"{stack['Runs']}/first"
    done = micronet(
        "submit", "aws", "--run", run, "--seed", "7", "--timeout", "2h", "--env", "MICRONET_EXACT=1",
        **moto.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.splitlines()[0].split()[-1]
    assert f"micronet status {run}\n" in done.stdout
    assert f"region=eu-central-1#jobs/detail/{job_id}" in done.stdout

    (job,) = moto.client("batch").describe_jobs(jobs=[job_id])["jobs"]
    assert job["jobQueue"].endswith("job-queue/micronet")
    assert job["jobDefinition"].endswith("job-definition/micronet:1")
    assert job["container"]["command"] == [
        "train", "--run", run, "--cache", "/data", "--device", "auto", "--seed", "7",
    ]  # fmt: skip
    assert {"name": "MICRONET_EXACT", "value": "1"} in job["container"]["environment"]


def test_submit_again_is_the_same_command(
    moto: Moto, stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, **moto.environment())
    request = aws.request(training(f"{stack['Runs']}/again", {}), stack["Queue"], stack["Definition"])
    (first, _), (second, _) = aws.submit(request), aws.submit(request)
    assert first != second


def test_submit_an_array(moto: Moto, stack: dict[str, str]) -> None:
    done = micronet("submit", "aws", "--run", RUN, "--array", "3", **moto.environment())
    assert done.returncode == 0, done.stderr
    assert f"micronet status {RUN}/seed-SEED\n" in done.stdout
    job_id = done.stdout.splitlines()[0].split()[-1]
    children = [f"{job_id}:{index}" for index in range(3)]
    assert len(moto.client("batch").describe_jobs(jobs=children)["jobs"]) == 3


def test_the_request() -> None:
    request = json.loads(
        rendered("aws", "--run", RUN, "--array", "3", "--timeout", "90s", "--grace", "45s", "--queue", "q")
    )
    assert request["jobName"] == "micronet-first"
    assert (request["jobQueue"], request["jobDefinition"]) == ("q", "micronet")
    assert request["arrayProperties"] == {"size": 3}
    assert request["timeout"] == {"attemptDurationSeconds": 90}
    overrides = request["containerOverrides"]
    assert overrides["command"][-2:] == ["--grace", "45"]
    assert {"name": "MICRONET_ARRAY", "value": "3"} in overrides["environment"]
    assert "timeout" not in json.loads(rendered("aws", "--run", RUN))


def test_several_gpus_take_as_many_shares_of_their_machine(
    moto: Moto, stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, **moto.environment())
    four = aws.request(training(RUN, {"shards": 4}, gpus=4), stack["Queue"], stack["Definition"])
    assert {"type": "GPU", "value": "4"} in four["containerOverrides"]["resourceRequirements"]
    job_id, _ = aws.submit(four)
    (job,) = moto.client("batch").describe_jobs(jobs=[job_id])["jobs"]
    assert job["container"]["command"][-2:] == ["--processes", "4"]
    asked = {item["type"]: int(item["value"]) for item in four["containerOverrides"]["resourceRequirements"]}
    parameters = aws_template()["Parameters"]
    assert asked == {
        "GPU": 4,
        "VCPU": 4 * parameters["Vcpus"]["Default"],
        "MEMORY": 4 * parameters["Memory"]["Default"],
    }
    one = aws.request(training(RUN, {"shards": 4}), "micronet", "micronet")
    assert "resourceRequirements" not in one["containerOverrides"]


def test_no_such_queue_and_no_such_definition(
    moto: Moto, stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, **moto.environment())
    for option in ("--queue", "--definition"):
        error = refusal("aws", "--run", RUN, option, "absent")
        assert error.exit_code == 78
        assert "absent" in error.message
        assert "--queue and --definition" in error.fix


@pytest.mark.parametrize(
    ("variables", "exit_code", "named"),
    [
        ({"AWS_ENDPOINT_URL": "nowhere"}, 78, "AWS_ENDPOINT_URL"),
        ({"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}, 78, "AWS_DEFAULT_REGION"),
        (dict.fromkeys((*KEYS, "AWS_PROFILE", "AWS_SESSION_TOKEN"), ""), 77, "AWS_ACCESS_KEY_ID"),
    ],
    ids=["no endpoint", "no region", "no credentials"],
)
def test_without_what_the_client_needs(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], exit_code: int, named: str
) -> None:
    surround(monkeypatch, **{"AWS_ENDPOINT_URL": nobody(), **variables})
    error = refusal("aws", "--run", RUN)
    assert error.exit_code == exit_code
    assert named in str(error)


def test_nobody_answers() -> None:
    done = micronet("submit", "aws", "--run", RUN, **KEYS, **MASKED, AWS_ENDPOINT_URL=nobody())
    assert_one_clear_line(done, 74, "AWS_ENDPOINT_URL")


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "fix"),
    [
        (403, "AccessDeniedException", 77, "Allow batch:SubmitJob"),
        (400, "AccessDeniedException", 77, "Allow batch:SubmitJob"),
        (403, "UnrecognizedClientException", 77, "aws sso login"),
        (403, "InvalidSignatureException", 77, "aws sso login"),
        (403, "SignatureDoesNotMatch", 77, "aws sso login"),
        (400, "ExpiredTokenException", 77, "aws sso login"),
        (401, "Unauthorized", 77, "aws sso login"),
        (400, "ThrottlingException", 74, "Try later"),
        (503, "ServerException", 74, "Try later"),
        (400, "ClientException", 78, "--queue and --definition"),
    ],
)
def test_refusals(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, status: int, code: str, exit_code: int, fix: str
) -> None:
    surround(monkeypatch, AWS_ENDPOINT_URL=recorder.uri)
    monkeypatch.setattr(aws, "_CONFIG", Config(retries={"total_max_attempts": 1}))
    recorder.status, recorder.answer = status, {"__type": code, "message": "the reason given"}
    with pytest.raises(
        JobError, match=f"the queue micronet: HTTP {status} {code}: the reason given"
    ) as caught:
        aws.submit(aws.request(training(RUN, {}), "micronet", "micronet"))
    assert caught.value.exit_code == exit_code
    assert fix in caught.value.fix
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_login_that_has_expired_is_to_be_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = "[default]\nsso_start_url = https://example.com\nsso_region = eu-central-1\n"
    config += "sso_account_id = 1\nsso_role_name = trainer\n"
    (tmp_path / "config").write_text(config)
    without_keys = dict.fromkeys((*KEYS, "AWS_PROFILE", "AWS_SESSION_TOKEN"), "")
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "HOME": str(tmp_path)}
    surround(monkeypatch, AWS_ENDPOINT_URL=nobody(), **without_keys, **files)
    error = refusal("aws", "--run", RUN)
    assert error.exit_code == 77
    assert "aws sso login" in error.fix


def test_the_grace_s_bound_is_in_the_help() -> None:
    shown = " ".join(micronet("submit", "aws", "--help").stdout.split())
    assert "At most the stack's parameter Grace, which ends the container." in shown
    assert "parameter Grace" not in micronet("submit", "gcp", "--help").stdout
