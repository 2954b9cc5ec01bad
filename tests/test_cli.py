"""The command as a user meets it: real processes, their output and exit codes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.archives import contents, write_archive, write_tar

TINY = ["--device", "cpu", "--depth", "10", "--width", "1", "--cycles", "1@1e-3", "--batch-size", "16"]


def micronet(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "job.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
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
        "print(sorted({'torch', 'boto3', 'fastai', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--cycles" in done.stdout
    assert done.stderr.strip() == "[]"


def test_train_and_evaluate(archive: Path, tmp_path: Path) -> None:
    where = ["--data", archive, "--cache", tmp_path / "cache"]
    done = micronet("--log-format", "json", "train", *TINY, *where, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1]
    assert f"{report['accuracy']['correct']} of 20" in done.stdout
    assert f"{report['score']['leaderboard']['score']:.5f}" in done.stdout

    done = micronet("evaluate", tmp_path / "run", "--json", "--device", "cpu", *where)
    assert json.loads(done.stdout)["accuracy"] == report["accuracy"]["final"]


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
    where = ["--data", archive, "--cache", tmp_path / "cache", "--run", "/proc/run"]
    done = micronet("train", *TINY, *where)
    assert_one_clear_line(done, 78, "/proc/run")
    assert "epoch" not in done.stderr


def test_what_is_not_a_run_has_nothing_to_evaluate(tmp_path: Path) -> None:
    done = micronet("evaluate", tmp_path, "--demo", "--cache", tmp_path)
    assert_one_clear_line(done, 65, str(tmp_path), "weights.safetensors")


def test_export_writes_class_folders(archive: Path, tmp_path: Path) -> None:
    done = micronet("data", "--data", archive, "--cache", tmp_path / "cache", "--export", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*.png")}
    assert folders == {
        Path(kind) / f"class_{index}" for kind in ("train_data", "valid_data") for index in range(5)
    }
