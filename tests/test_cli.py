"""The command as a user meets it: real processes, their output and exit codes."""

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from job.store import open_store
from tests.archives import contents, write_archive, write_tar
from tests.forked import micronet
from tests.view.runs import write_run

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "1@1e-3", "--batch-size", "16"]


def fresh(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `micronet` from an interpreter of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "job.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def assert_one_clear_line(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), last


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "tiny.tar.gz", train=40, test=20, classes=5)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from job.commands import cli; cli.main(['train', '--help'], standalone_mode=False);"
        "heavy = {'torch', 'boto3', 'fastai', 'numpy', 'google', 'requests'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--cycles" in done.stdout
    assert done.stderr.strip() == "[]"


def test_train_and_evaluate(archive: Path, tmp_path: Path) -> None:
    where: list[str | Path] = ["--data", archive, "--cache", tmp_path / "cache"]
    done = fresh("--log-format", "json", "train", *TINY, *where, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1]
    assert f"{report['accuracy']['correct']} of 20" in done.stdout
    assert f"{report['score']['leaderboard']['score']:.5f}" in done.stdout

    archive.unlink()
    for weights in ("run", "run/weights.safetensors"):  # on the run's own data, which the cache has
        done = micronet(
            "evaluate", tmp_path / weights, "--json", "--device", "cpu", "--cache", tmp_path / "cache"
        )
        assert json.loads(done.stdout)["accuracy"] == report["accuracy"]["final"]
    done = micronet("evaluate", tmp_path / "run", "--device", "cpu", "--cache", tmp_path / "empty")
    assert_one_clear_line(done, 65, str(archive))


def test_a_run_is_evaluated_on_the_demo_it_was_trained_on(tmp_path: Path) -> None:
    where: list[str | Path] = ["--run", tmp_path / "run", "--cache", tmp_path / "cache"]
    small = "from job.data import demo; demo.TRAIN_PER_CLASS = demo.TEST_PER_CLASS = 2"
    done = micronet("train", "--demo", *TINY, *where, before=small)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    words: list[str | Path] = [
        "evaluate", tmp_path / "run", "--json", "--device", "cpu", "--cache", tmp_path / "new",
    ]  # fmt: skip
    done = micronet(*words, before=small)
    assert json.loads(done.stdout)["accuracy"] == report["accuracy"]["final"]


@pytest.mark.parametrize("address", ["s3:/bucket/run", "gs:/bucket/run"])
def test_an_address_that_lost_a_slash_is_no_folder(tmp_path: Path, address: str) -> None:
    run = ["train", "--device", "cpu", "--cache", str(tmp_path), "--run", address]
    for command in (run, ["status", address]):
        assert_one_clear_line(micronet(*command), 2, address, "s3://")


def test_the_log_format_may_stand_behind_the_command(tmp_path: Path) -> None:
    done = micronet("status", tmp_path, "--log-format", "json")
    assert done.returncode == 65
    assert json.loads(done.stderr)["event"] == "stopped"


WRONG = [
    ["train", "--log-format", "json", "--depth", "x"],
    ["train", "--depth", "x", "--log-format", "json"],
    ["--log-format", "json", "train", "--no-such-option"],
    ["train", "--no-such-option", "--log-format=json"],
    ["--log-format", "json", "no-such-command"],
    ["train", "--cycles", "200", "--log-format", "json"],
    ["submit", "aws", "--log-format", "json"],
    ["submit", "gcp", "--run", "s3://bucket/run", "--log-format", "json", "--gpus", "0"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_command_line_is_an_event_where_events_are_json(arguments: list[str]) -> None:
    done = micronet(*arguments)
    assert done.returncode == 2
    (event,) = map(json.loads, done.stderr.splitlines())
    assert (event["event"], event["exit_code"]) == ("stopped", 2)
    assert event["cause"]


def test_the_environment_asks_for_json_too() -> None:
    done = micronet("train", "--depth", "x", MICRONET_LOG_FORMAT="json")
    assert json.loads(done.stderr)["exit_code"] == 2


def test_each_scheduler_takes_the_log_format_behind_it() -> None:
    run = ["--run", "s3://bucket/run", "--dry-run"]
    done = micronet("submit", "aws", *run, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_cache_is_the_same_wherever_a_command_is_called_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        done = micronet("data", "--demo", XDG_CACHE_HOME=str(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        folders.add(done.stdout)
        assert not list((tmp_path / name).iterdir())
    (folder,) = folders
    assert folder.startswith(str(tmp_path / "home" / "micronet"))


def test_a_command_that_somebody_waits_for_gives_a_dead_endpoint_up_in_seconds() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # not listening: refused
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        commands = (["status"], ["report"], ["evaluate"], ["export"], ["score", "--checkpoint"])
        began = time.monotonic()
        with ThreadPoolExecutor(len(commands)) as pool:
            started = [
                pool.submit(micronet, *command, "s3://bucket/run", **keys, AWS_ENDPOINT_URL_S3=endpoint)
                for command in commands
            ]
        for each in started:
            assert_one_clear_line(each.result(), 74, endpoint)
        assert time.monotonic() - began < 60  # the retries of a training take 120 s


def test_a_page_goes_into_its_run_or_into_the_folder_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_run(open_store(str(tmp_path / "runs" / name)), epochs=3, seed=ord(name))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    report = partial(micronet, "report")
    runs = tmp_path / "runs"
    cases: list[tuple[list[str | Path], Path]] = [
        ([runs / "a"], runs / "a" / "report.html"),
        ([runs], runs / "report.html"),
        ([runs / "a", runs / "b"], runs / "report.html"),
        ([tmp_path], tmp_path / "report.html"),
        ([runs, "--output", "told.html"], here / "told.html"),
    ]
    for words, page in cases:
        page.unlink(missing_ok=True)
        done = report(*words)
        assert done.returncode == 0, done.stderr
        assert Path(here, done.stdout.strip()) == page
        text = page.read_text()
        assert ("seed 98" in text) == (len(words) != 1 or words[0] != runs / "a"), words
    assert [path.name for path in here.iterdir()] == ["told.html"]
    (runs / "README.md").write_text("my runs")  # nor does a note next to the runs make one of their folder
    done = report(runs)
    assert (done.returncode, done.stdout.strip()) == (0, str(runs / "report.html")), done.stderr
    done = report(runs / "a", tmp_path / "else" / "b")
    assert done.returncode in (2, 65)
    assert_one_clear_line(report(here), 65, str(here), "no run")


def test_options_come_from_the_environment_too(archive: Path, tmp_path: Path) -> None:
    done = micronet(
        "train", *TINY, "--data", archive, "--cache", tmp_path, MICRONET_BATCH_SIZE="99", MICRONET_SEED="x"
    )
    assert_one_clear_line(done, 2, "MICRONET_SEED")
    done = micronet("train", *TINY[:-2], "--data", archive, "--cache", tmp_path, MICRONET_BATCH_SIZE="99")
    assert_one_clear_line(done, 78, "one batch of 99", "--batch-size")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--cycles", "200"], ["'200'", "EPOCHS@LEARNING_RATE", "--cycles 200@5e-3"]),
        (["train", "--no-such-option"], ["--no-such-option"]),
        (["train", "--width", "0"], ["--width"]),
        (["train", "--depth", "23", "--device", "cpu"], ["--depth", "6n + 4", "22"]),
        (["train", "--weight-decay", "nan"], ["--weight-decay"]),
        (["train", "--checkpoint-every", "0s"], ["--checkpoint-every", "90s"]),
        (["train", "--demo", "--data", "x.tar.gz"], ["--demo"]),
        (["train", "--data", "ftp://host/x.tar.gz", "--device", "cpu"], ["ftp://host/x.tar.gz"]),
        (["train", "--device", "gpu1"], ["gpu1", "cuda:N"]),
        (["no-such-command"], ["no-such-command"]),
        (["submit", "aws"], ["--run"]),
        (["submit", "kubernetes", "--image", f"micronet@sha256:{'0' * 64}"], ["--run"]),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], words: list[str]) -> None:
    assert_one_clear_line(micronet(*arguments), 2, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("arguments", [[], ["--device", "cuda"], ["--device", "cuda:1"]])
def test_without_a_gpu_train_refuses_and_says_how_to_go_on(arguments: list[str]) -> None:
    assert_one_clear_line(micronet("train", *arguments), 78, "no GPU", "--gpus all", "--device cpu", "--demo")


def test_a_pickle_that_calls_a_command_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    files = {name: pickle.dumps(content) for name, content in contents().items()}
    archive = write_tar(tmp_path / "hostile.tar.gz", files | {"train": pickle.dumps(Hostile())})
    done = micronet(
        "train", *TINY, "--data", archive, "--cache", tmp_path / "cache", "--run", tmp_path / "run"
    )
    assert_one_clear_line(done, 65, "system")
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def test_a_truncated_archive_is_bad_data(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-1000])
    done = micronet(
        "train", *TINY, "--data", archive, "--cache", tmp_path / "cache", "--run", tmp_path / "run"
    )
    assert_one_clear_line(done, 65, "tiny.tar.gz", "cut short")
    assert not (tmp_path / "run").exists()


def test_an_archive_with_another_hash_is_bad_data(archive: Path, tmp_path: Path) -> None:
    done = micronet("data", "--data", f"{archive}#sha256={'0' * 64}", "--cache", tmp_path / "cache")
    assert_one_clear_line(done, 65, "SHA-256")


def test_a_run_folder_that_cannot_be_written_is_refused_before_training(
    archive: Path, tmp_path: Path
) -> None:
    where: list[str | Path] = ["--data", archive, "--cache", tmp_path / "cache", "--run", "/proc/run"]
    done = micronet("train", *TINY, *where)
    assert_one_clear_line(done, 78, "/proc/run")
    assert "epoch" not in done.stderr


def test_what_is_not_a_run_has_nothing_to_evaluate(tmp_path: Path) -> None:
    done = micronet("evaluate", tmp_path, "--demo", "--cache", tmp_path)
    assert_one_clear_line(done, 65, str(tmp_path), "weights.safetensors", "Name a finished run")


def test_export_writes_class_folders(archive: Path, tmp_path: Path) -> None:
    done = micronet("data", "--data", archive, "--cache", tmp_path / "cache", "--export", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*.png")}
    assert folders == {
        Path(kind) / f"class_{index}" for kind in ("train_data", "valid_data") for index in range(5)
    }
