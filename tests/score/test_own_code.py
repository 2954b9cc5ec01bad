"""`micronet score` with the user's own code: factories, rules, checkpoints, and whose fault an error is."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from job.commands import cli
from job.errors import DataError, JobError, UsageError
from job.network import weights
from job.network.wide_resnet import wide_resnet
from job.run import layout
from job.score.operations import OwnRule
from job.score.rules import score

MODELS = """
import torch
from torch import nn

not_a_factory = 3
instance = nn.ReLU()

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

def lazily():
    from helper_of_models import layer
    return nn.Sequential(nn.Flatten(), layer())

def sized(outputs):
    return nn.Linear(12, outputs)

def broken():
    return deeper({})

def deeper(settings):
    return settings["width"]

def quits():
    raise SystemExit(3)

class Failing(nn.Module):
    def forward(self, x):
        return {}["logits"]

class Wrong(nn.Module):
    def forward(self, x):
        return torch.mm(x[0, 0], torch.ones(3, 3))

class Sinc(nn.Module):
    def forward(self, x):
        return torch.sinc(x).relu()

class EarlyExit(nn.Module):
    def forward(self, x):
        y = x.relu()
        if y.mean() > 0.5:
            return y
        return y + 1

class Selecting(nn.Module):
    def forward(self, x):
        return x[x > 0]

def sinc_rule(operation):
    if operation.name != "aten.sinc":
        return None
    return 2 * operation.output.numel, 0

def wrong_rule(operation):
    return 7

def failing_rule(operation):
    return operation.no_such_thing
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange_models.py").write_text(MODELS)
    (tmp_path / "helper_of_models.py").write_text(
        "from torch import nn\ndef layer(): return nn.Linear(12, 5)\n"
    )
    (tmp_path / "half_written.py").write_text("from torch import nn\nwidth = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("strange_models", "helper_of_models", "half_written"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def failure(*arguments: str) -> JobError:
    error = CliRunner().invoke(cli, ["score", "--input", "3,2,2", *arguments]).exception
    assert isinstance(error, JobError), error
    return error


def output(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["score", "--input", "3,2,2", *arguments])
    assert result.exception is None, result.exception
    return result.output


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        ("strange_models", "not PACKAGE.MODULE:FUNCTION"),
        ("no_such_module:tiny", "No module named 'no_such_module'"),
        ("strange_models:absent", "strange_models has no 'absent'"),
        ("strange_models:not_a_factory", "is a value of type int, not a function"),
        ("strange_models:instance", "is a module"),
        ("strange_models:sized", "called without arguments: missing a required argument: 'outputs'"),
        ("strange_models:quits", "raised SystemExit: 3"),
        (
            "strange_models:broken",
            "raised KeyError: 'width', at strange_models.py:22 in deeper,"
            " called at strange_models.py:19 in broken",
        ),
        ("half_written:width", "raised ZeroDivisionError: division by zero, at half_written.py:2"),
    ],
)
def test_an_invalid_factory_is_one_line_and_exit_code_2(factory: str, cause: str) -> None:
    error = failure("--model", factory)
    assert isinstance(error, UsageError)
    assert cause in error.message
    assert "\n" not in str(error)


def test_the_message_of_the_process_has_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "job.cli", "score", "--model", "strange_models:broken"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "micronet: --model: strange_models:broken raised KeyError: 'width', at strange_models"
    )


def test_a_factory_may_import_from_the_working_folder_when_it_is_called() -> None:
    assert "linear" in output("--model", "strange_models:lazily")


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        ("Failing", "KeyError: 'logits', at strange_models.py:29 in forward"),
        ("Wrong", "at strange_models.py:33 in forward"),  # what an operator raises is the model's too
    ],
)
def test_what_a_model_raises_is_reported_as_its_own(factory: str, cause: str) -> None:
    error = failure("--model", f"strange_models:{factory}")
    assert isinstance(error, DataError)
    assert cause in error.message
    assert "--input" in error.fix


def test_a_fault_of_the_counter_is_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("job.score.recorder.Recorder._record", lambda *_: broken())
    # The patch stands in this file; a bug stands in the package.
    monkeypatch.setattr("job.score.trace.NOT_THE_MODEL", ("/nowhere", str(Path(__file__).parent)))
    with pytest.raises(KeyError, match="a bug"):
        score(nn.ReLU(), (3, 2, 2))


def test_an_early_exit_is_named_as_such() -> None:
    error = failure("--model", "strange_models:EarlyExit")
    assert isinstance(error, UsageError)
    assert "aten._local_scalar_dense" in error.message
    assert "strange_models.py:42 in forward" in error.message
    assert "early exit or another data-dependent branch" in error.message
    assert "Score each path as a model of its own" in error.fix
    shown = output("--model", "strange_models:EarlyExit", "--allow-unknown")
    assert "branch: aten._local_scalar_dense in (model), strange_models.py:42 in forward (depends" in shown
    # That of zeros is the longer one here: 12 ReLUs, the mean, a comparison, 12 additions.
    assert "add " in shown


def test_a_selection_by_value_is_a_branch_too() -> None:
    error = failure("--model", "strange_models:Selecting")
    assert "data-dependent branch" in error.message
    assert "strange_models.py:48 in forward" in error.message


def test_an_operator_of_ones_own_is_counted_by_ones_own_rule() -> None:
    shown = output(
        "--model", "strange_models:Sinc", "--rule", "strange_models:sinc_rule", "--rules", "official"
    )
    (row,) = [line.split() for line in shown.splitlines() if line.strip().startswith("own rule")]
    assert row == ["own", "rule", "24", "0", "12"]  # 12 values, two multiplications each; 16-bit freebie
    assert "not counted" not in shown


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("strange_models:wrong_rule", "strange_models:wrong_rule returned 7 for aten.sinc"),
        ("strange_models:failing_rule", "raised AttributeError: 'Operation' object has no attribute"),
        ("strange_models:absent", "strange_models has no 'absent'"),
    ],
)
def test_a_rule_that_is_wrong_is_a_usage_error(rule: str, cause: str) -> None:
    error = failure("--model", "strange_models:Sinc", "--rule", rule)
    assert isinstance(error, UsageError)
    assert error.message.startswith("--rule: ")
    assert cause in error.message


def test_a_rule_that_does_not_know_the_operator_leaves_it_unknown() -> None:
    rule = "strange_models:sinc_rule"
    assert "no rule counts" in failure("--model", "strange_models:EarlyExit", "--rule", rule).message


class Sinc(nn.Module):
    """An operator that no rule of the table counts, called with 4 values and then with 2 of them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinc(torch.sinc(x)[:, :2])


def of_size(size: int) -> OwnRule:
    """A rule that knows results of that size alone."""
    return lambda operation: (100 * size, 0) if operation.output.numel == size else None


def test_each_operation_is_counted_by_the_first_rule_that_knows_it() -> None:
    scores = score(Sinc(), (4,), ["official"], freebie=False, own_rules=[of_size(2), of_size(4)])
    assert scores.rule_sets["official"].total == 600
    assert not scores.unknown


def test_an_operation_that_no_rule_knows_is_unknown_though_another_of_its_operator_is_known() -> None:
    with pytest.raises(UsageError, match=r"no rule counts the operator aten\.sinc"):
        score(Sinc(), (4,), own_rules=[of_size(4)])
    scores = score(Sinc(), (4,), ["official"], freebie=False, own_rules=[of_size(4)], allow_unknown=True)
    assert scores.rule_sets["official"].total == 400
    assert [operator.operator for operator in scores.unknown] == ["aten.sinc"]


def pickled(state: dict[str, Tensor], legacy: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["tiny.pth", "tiny.pt", "renamed.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_checkpoint_gets_the_line_that_converts_it(tmp_path: Path, name: str, legacy: bool) -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    (tmp_path / name).write_bytes(pickled(layer.state_dict(), legacy))
    error = failure("--model", "strange_models:tiny", "--checkpoint", name)
    assert isinstance(error, DataError)
    assert "is a pickled checkpoint, which could run code" in error.message
    # The line does what it says.
    interpreter, _, command = shlex.split(error.fix.partition(": ")[2])
    assert interpreter == "python"
    if name == "renamed.safetensors":
        (tmp_path / name).rename(tmp_path / "renamed.pth")
        command = command.replace("'renamed.safetensors'", "'renamed.pth'", 1)
    exec(command, {})
    converted = f"{Path(name).stem}.safetensors"
    assert "linear" in output("--model", "strange_models:tiny", "--checkpoint", converted)


INFO = weights.NetworkInfo(10, 1, ("a", "b", "c"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "0" * 64)


def test_a_checkpoint_is_a_run_or_its_weights_as_for_evaluate(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / layout.WEIGHTS).write_bytes(weights.save(wide_resnet(10, 1, 3), INFO))
    whole = CliRunner().invoke(cli, ["score", "--checkpoint", "runs/first", "--json"])
    assert whole.exception is None
    of_file = CliRunner().invoke(cli, ["score", "--checkpoint", f"runs/first/{layout.WEIGHTS}", "--json"])
    assert of_file.output == whole.output


def test_a_folder_that_exists_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "odd.safetensors").mkdir()
    error = failure("--checkpoint", "unfinished")
    assert error.message == "unfinished has no weights.safetensors"
    assert failure("--checkpoint", "odd.safetensors").message == "odd.safetensors is a folder"
    assert "there is no" in failure("--checkpoint", "nowhere").message
    assert "Name a finished run" in failure("--checkpoint", "nowhere").fix


def test_the_header_names_model_image_and_baseline() -> None:
    default = CliRunner().invoke(cli, ["score", "--rules", "official"]).output.splitlines()[0]
    assert default == (
        "WideResNet-22-6, one image of 3,32,32; relative to CIFAR-100: 36,500,000 parameters,"
        " 10,490,000,000 operations"
    )
    own = output("--model", "strange_models:tiny").splitlines()[0]
    assert own.startswith("strange_models:tiny, one image of 3,2,2; no score: --baseline cifar100, imagenet")


def test_another_image_has_a_score_only_with_a_baseline() -> None:
    arguments = ["--model", "strange_models:tiny", "--rules", "official"]
    bare = output(*arguments)
    assert "share" not in bare
    assert "official\n" in bare
    assert '"score"' not in output(*arguments, "--json")
    # 60 products at half, 60 additions; 65 parameters at half.
    for baseline, parameters, operations in (
        ("imagenet", 6.9e6, 1.17e9),
        ("cifar100", 36.5e6, 10.49e9),
        ("1000,400", 1000, 400),
    ):
        expected = 32.5 / parameters + 90 / operations
        assert f"official: {expected:.7f}" in output(*arguments, "--baseline", baseline)


@pytest.mark.parametrize("baseline", ["cifar10", "1000", "0,5", "1,nan", "1,2,3"])
def test_an_invalid_baseline_is_a_usage_error(baseline: str) -> None:
    error = failure("--baseline", baseline)
    assert isinstance(error, UsageError)
    assert "--baseline" in error.message
