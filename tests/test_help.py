"""What the command line shows by itself: examples, the option one meant, and words for the shell."""

import os
import re
import subprocess
import sys

import pytest


def micronet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # As the installed script, whose name the shell's completion goes by.
    code = "import sys; sys.argv[0] = 'micronet'; from job.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "--cycels", "1@1"], "--cycles"),
        (["train", "--batchsize", "1"], "--batch-size"),
        (["status", "run", "--wacth"], "--watch"),
        (["data", "--previw", "x.png"], "--preview"),
        (["trian"], "train"),
    ],
)
def test_an_error_suggests_what_was_meant(arguments: list[str], meant: str) -> None:
    done = micronet(*arguments)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr
    assert f"'{meant}'" in done.stderr


NAMES = ("train", "data", "doctor", "status", "report", "evaluate", "export", "score", "selftest", "bench")


@pytest.mark.parametrize("command", NAMES)
def test_help_has_examples_on_lines_of_their_own(command: str) -> None:
    lines = [line.strip() for line in micronet(command, "--help").stdout.splitlines()]
    assert sum(line.startswith(f"micronet {command} ") for line in lines) >= 2


def test_each_summary_fits_in_80_columns() -> None:
    lines = micronet("--help", COLUMNS="80").stdout.partition("Commands:")[2].splitlines()
    summaries = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.strip()}
    assert summaries.keys() == {*NAMES, "submit"}
    assert [summary for summary in summaries.values() if not re.fullmatch(r"[A-Z].*[^.]\.", summary)] == []


@pytest.mark.parametrize("command", NAMES)
def test_each_default_and_each_option_is_explained(command: str) -> None:
    text = " ".join(micronet(command, "--help").stdout.split())
    assert "(dynamic)" not in text
    assert "As before" not in text
    assert "default: (" not in text


def test_evaluate_says_that_it_takes_the_runs_own_data() -> None:
    text = " ".join(micronet("evaluate", "--help", COLUMNS="80").stdout.split())
    assert "Default: what the run's report names." in text
    assert "CIFAR-100 from its home" not in text
    assert "recipe" not in text


def test_the_shell_completes_options() -> None:
    words = {"COMP_WORDS": "micronet train --cy", "COMP_CWORD": "2", "_MICRONET_COMPLETE": "bash_complete"}
    assert micronet(**words).stdout.split() == ["plain,--cycles"]
    assert "_micronet_completion" in micronet(_MICRONET_COMPLETE="bash_source").stdout
