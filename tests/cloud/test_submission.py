"""A job gets what the user asked for, and nothing that must not be in it."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.cloud.submission import array_member, recipe_arguments, training
from job.commands.options import chosen_recipe
from job.commands.train import train
from job.errors import ConfigurationError, UsageError
from job.phases import Cycle
from job.recipe import PRECISIONS, RECIPES, Recipe
from tests.cloud.documents import IMAGE, INFRA, ROOT, assert_one_clear_line, micronet, refusal, rendered

RUN = "s3://my-bucket/runs/first"

cycles = st.lists(st.builds(Cycle, st.integers(1, 900), st.floats(1e-9, 10)), min_size=1, max_size=3).map(
    tuple
)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "depth": st.integers(1, 20).map(lambda n: 6 * n + 4),
        "width": st.integers(1, 20),
        "cycles": cycles,
        "prune_cycles": st.just(()) | cycles,
        "sparsity": st.floats(0, 0.99),
        "quantise_cycles": st.just(()) | cycles,
        "weight_bits": st.integers(1, 8),
        "distillation": st.floats(0, 1),
        "batch_size": st.integers(1, 4096),
        "weight_decay": st.floats(0, 10),
        "mixup_alpha": st.floats(0, 10),
        "crop_padding": st.integers(0, 15),
        "holdout": st.integers(0, 10_000),
        "seed": st.integers(0, 2**32),
        "precision": st.sampled_from(PRECISIONS),
        "deterministic": st.booleans(),
    },
)


@given(recipes, st.booleans(), st.sampled_from((None, *RECIPES)))
@settings(max_examples=200, deadline=None)
def test_train_reads_the_recipe_that_was_meant(values: dict[str, Any], demo: bool, named: str | None) -> None:
    context = train.make_context("train", recipe_arguments(values))
    names = {field.name for field in fields(Recipe)} & set(context.params)
    read = chosen_recipe(context, demo, named, {name: context.params[name] for name in names})
    base = RECIPES[named or ("demo" if demo else "entry")]
    for field in fields(Recipe):
        assert getattr(read, field.name) == values.get(field.name, getattr(base, field.name)), field.name


def test_train_gets_the_recipe_and_what_it_builds_on() -> None:
    submission = training(
        RUN, {}, recipe_name="compact", start_run="s3://my-bucket/dense", teacher="s3://my-bucket/large"
    )
    read = train.make_context("train", list(submission.arguments[1:])).params
    found = {name: read[name] for name in ("named", "start", "teacher")}
    assert found == {"named": "compact", "start": "s3://my-bucket/dense", "teacher": "s3://my-bucket/large"}


def test_train_reads_the_rest() -> None:
    submission = training(
        RUN,
        {"seed": 7},
        data=("s3://my-bucket/cifar.tar.gz", "https://example.com/cifar.tar.gz"),
        device="cuda",
        grace_seconds=25,
        seeds=3,
        variables={"AWS_DEFAULT_REGION": "eu-central-1"},
        image=IMAGE,
    )
    assert submission.arguments[0] == "train"
    read = train.make_context("train", list(submission.arguments[1:])).params
    expected = {
        "run": RUN,
        "cache": "/data",
        "device": "cuda",
        "seed": 7,
        "data": ("s3://my-bucket/cifar.tar.gz", "https://example.com/cifar.tar.gz"),
        "grace": 25.0,
        "demo": False,
    }
    assert {name: read[name] for name in expected} == expected
    assert submission.environment == {
        "MICRONET_LOG_FORMAT": "json",
        "MICRONET_IMAGE": IMAGE,
        "MICRONET_ARRAY": "3",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }


def test_several_gpus_get_a_process_each() -> None:
    submission = training(RUN, {"shards": 8}, gpus=4)
    words = list(submission.arguments)
    assert submission.gpus == 4
    assert words[words.index("--shards") + 1] == "8"
    assert words[words.index("--processes") + 1] == "4"
    single = training(RUN, {"shards": 8})
    assert (single.gpus, training(RUN, {}, device="cpu").gpus) == (1, 0)
    assert "--processes" not in single.arguments


def test_a_number_of_processes_that_is_given_is_kept() -> None:
    submission = training(RUN, {}, gpus=8, variables={"MICRONET_PROCESSES": "1"})
    assert submission.gpus == 8
    assert "--processes" not in submission.arguments


@pytest.mark.parametrize(("recipe", "gpus"), [({}, 2), ({"shards": 4}, 8), ({"shards": 8}, 3)])
def test_gpus_that_cannot_share_the_shards_are_refused(recipe: dict[str, int], gpus: int) -> None:
    with pytest.raises(UsageError, match=f"--gpus {gpus}: .* --shards {recipe.get('shards', 1)} ") as caught:
        training(RUN, recipe, gpus=gpus)
    assert "--shards 8" in caught.value.fix


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_one_device_is_not_several_gpus(device: str) -> None:
    with pytest.raises(UsageError, match=f"--gpus 2: --device {device}"):
        training(RUN, {"shards": 2}, gpus=2, device=device)


@pytest.mark.parametrize("scheduler", ["aws", "gcp", "kubernetes"])
def test_several_gpus_without_shards_end_with_one_line(scheduler: str) -> None:
    options = {
        "aws": (),
        "gcp": ("--image", IMAGE, "--project", "my-project", "--region", "us-central1"),
        "kubernetes": ("--image", IMAGE),
    }
    error = refusal(scheduler, "--run", RUN, "--gpus", "4", *options[scheduler], "--dry-run")
    assert error.exit_code == 2
    assert "--gpus 4" in error.message


def test_a_grace_left_open_is_not_passed() -> None:
    assert "--grace" not in training(RUN, {}).arguments
    assert "MICRONET_ARRAY" not in training(RUN, {}).environment


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("s3://b/runs/first", "micronet-first"),
        ("s3://b/Runs_2026.ö", "micronet-runs-2026"),
        ("s3://b/" + "x" * 90, "micronet-" + "x" * 31),
        ("s3://b/...", "micronet"),
    ],
)
def test_names_are_such_as_every_scheduler_takes(run: str, name: str) -> None:
    assert training(run, {}).name == name
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)


@pytest.mark.parametrize(
    "run", ["runs/first", "file:///runs/first", "s3://bucket", "s3://bucket/", "s3:///a", "gs://bucket"]
)
def test_a_run_must_outlive_its_machine(run: str) -> None:
    with pytest.raises(UsageError, match="s3://bucket/prefix"):
        training(run, {})


def test_a_run_may_be_in_googles_storage() -> None:
    assert training("gs://bucket/runs/first", {}).arguments[:3] == (
        "train",
        "--run",
        "gs://bucket/runs/first",
    )


@pytest.mark.parametrize("option", ["--data", "--from", "--teacher"])
@pytest.mark.parametrize("path", ["runs/first", "./a.tar.gz", "/home/me/a", "file:///home/me/a"])
def test_a_place_on_this_machine_is_refused(option: str, path: str) -> None:
    error = refusal("aws", "--run", RUN, "--recipe", "compact", option, path, "--dry-run")
    assert error.exit_code == 2
    assert error.message == f"{option}: {path} is on this machine, which the job cannot read"
    assert f"MICRONET_{option[2:].upper()}=PATH" in error.fix


def test_places_that_a_job_can_read_and_a_path_in_the_image_are_taken() -> None:
    sha256 = "#sha256=" + "0" * 64
    for address in ("s3://b/a.tar.gz", f"https://example.com/a{sha256}", "gs://b/a", "demo:"):
        assert address in rendered("aws", "--run", RUN, "--data", address)
    document = rendered("aws", "--run", RUN, "--env", "MICRONET_DATA=/opt/cifar.tar.gz")
    assert "/opt/cifar.tar.gz" in document


@pytest.mark.parametrize(("device", "gpus"), [("cuda:1", 1), ("cuda:8", 8)])
def test_a_gpu_that_the_job_will_not_see_is_refused(device: str, gpus: int) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: .* cuda:{gpus - 1}"):
        training(RUN, {}, gpus=gpus, device=device, variables={"MICRONET_PROCESSES": "1"})
    seen = training(RUN, {}, gpus=8, device="cuda:7", variables={"MICRONET_PROCESSES": "1"})
    assert "cuda:7" in seen.arguments
    assert "cuda:0" in training(RUN, {}, device="cuda:0").arguments


@pytest.mark.parametrize("image", ["micronet", "micronet:latest", IMAGE[:-1], IMAGE + "0"])
def test_an_image_is_named_by_its_digest(image: str) -> None:
    with pytest.raises(UsageError, match="digest"):
        training(RUN, {}, image=image)


SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "my_password",
    "DB_PASS",
    "API_KEY",
    "APIKEY",
    "GITHUB_PAT",
]
SECRETS += ["PGPASSWORD", "MYSQL_PWD", "SSH_PRIVATE_KEY", "BASIC_AUTH", "AZURE_CREDENTIALS", "PASSPHRASE"]


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_gets_into_a_document(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        training(RUN, {}, variables={name: "hidden"})
    error = refusal("aws", "--run", RUN, "--env", f"{name}=hidden", "--dry-run")
    assert error.exit_code == 2
    assert name in error.message
    assert "--secret" in error.fix
    assert "hidden" not in str(error)


ADDRESSES = [
    "https://user:hidden@host/a",
    "https://host/a?X-Amz-Signature=hidden",
    "ftp://u:hi#hidden@host/a",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_secret_of_an_address_gets_into_a_document(address: str) -> None:
    for option, name in (("--data", "--data"), ("--env", "DATABASE")):
        value = address if option == "--data" else f"DATABASE={address}"
        error = refusal("aws", "--run", RUN, option, value, "--dry-run")
        assert name in error.message
        assert "--secret" in error.fix
        assert "hidden" not in str(error)
    done = micronet("submit", "aws", "--run", address, "--dry-run")
    assert_one_clear_line(done, 2, "--run")
    assert "hidden" not in done.stderr


@pytest.mark.parametrize("pair", ["DB-PASS=hidden", "novalue"])
def test_a_usage_error_names_the_pair_without_its_value(pair: str) -> None:
    done = micronet("submit", "aws", "--run", RUN, "--env", pair)
    assert done.returncode == 2
    assert f"'{pair.partition('=')[0]}' is not NAME=VALUE" in done.stderr
    assert "hidden" not in done.stderr


def test_where_a_secret_is_kept_is_no_secret() -> None:
    variables = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
        "GOOGLE_APPLICATION_CREDENTIALS": "/var/run/key.json",
        "AWS_ENDPOINT_URL_S3": "http://minio:9000",
    }
    assert training(RUN, {}, variables=variables).environment.items() >= variables.items()


def test_options_from_the_environment_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRONET_SEED", "5")
    monkeypatch.setenv("MICRONET_WIDTH", "2")
    document = rendered("aws", "--run", RUN)
    assert '"--seed",\n      "5"' in document
    assert '"--width",\n      "2"' in document


def test_a_recipe_that_makes_no_network_is_not_submitted() -> None:
    done = micronet("submit", "aws", "--run", RUN, "--depth", "23", "--dry-run")
    assert_one_clear_line(done, 2, "--depth", "6n + 4")


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'boto3', 'google.cloud', 'kubernetes', 'yaml'}"
    code = (
        "import sys; from job.commands import cli;"
        "cli.main(['submit', 'aws', '--help'], standalone_mode=False);"
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--array" in done.stdout
    assert done.stderr.strip() == "[]"


def test_the_documents_are_what_the_readme_s_commands_print(tmp_path: Path) -> None:
    commands = re.findall(r"```\n(.*?)```", (INFRA / "README.md").read_text(), re.DOTALL)[-1]
    for folder in ("google", "kubernetes"):
        (tmp_path / "infra" / folder).mkdir(parents=True)
    script = f'micronet() {{ "{sys.executable}" -m job.cli "$@"; }}\n{commands}'
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": path})
    printed = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.*")}
    assert len(printed) == 4
    assert printed == {path: (ROOT / path).read_text() for path in printed}


ELSEWHERE = {
    "AWS_BATCH_JOB_ARRAY_INDEX": "3",
    "BATCH_TASK_INDEX": "3",
    "JOB_COMPLETION_INDEX": "3",
    "SLURM_ARRAY_TASK_ID": "3",
}


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize(("index", "seed"), [("0", 22), ("4", 26)])
def test_a_task_of_an_array_finds_its_index_seed_and_run(name: str, index: str, seed: int) -> None:
    environment = {"MICRONET_ARRAY": "5", name: index}
    assert array_member(environment, 22, "s3://b/runs/first/") == (seed, f"s3://b/runs/first/seed-{seed}")


@pytest.mark.parametrize("environment", [{}, ELSEWHERE, {"MICRONET_ARRAY": "", **ELSEWHERE}])
def test_without_an_array_seed_and_run_stay(environment: dict[str, str]) -> None:
    assert array_member(environment, 22, None) == (22, None)
    assert array_member(environment, 22, "runs/first") == (22, "runs/first")


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
def test_an_array_without_index_or_run_is_refused(
    environment: dict[str, str], run: str | None, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        array_member(environment, 22, run)
