"""`micronet score`: what it prints, where it takes the network from, and how it fails."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from job.commands import cli
from job.errors import DataError, JobError, UsageError
from job.network import weights
from job.network.wide_resnet import wide_resnet
from job.score import report
from job.score.rules import score
from job.store import open_store

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["score", *arguments])


def printed(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exception is None, result.output
    document: dict[str, Any] = json.loads(result.output)
    return document


def failure(*arguments: str) -> JobError:
    error = run(*arguments).exception
    assert isinstance(error, JobError)
    return error


def half_pruned(depth: int = 10, width: int = 1) -> nn.Module:
    network = wide_resnet(depth, width, 3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
            prune.remove(module, "weight")
    return network


INFO = weights.NetworkInfo(10, 1, ("a", "b", "c"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "0" * 64)

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

number = int
"""

ODD_MODELS = """import torch

class Odd(torch.nn.Module):
    def forward(self, x):
        return torch.sinc(x).relu()
"""


def test_the_default_network_takes_under_6_seconds_imports_included() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "job.cli", "score", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(process.stdout)
    assert document["leaderboard"]["score"] == 0.46346508205335807
    assert document["writeup"]["total"] == 2_075_705_692
    # Torchstat's package would import it, which takes 0.5 s.
    assert "pandas" not in {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert list(document) == ["writeup", "leaderboard", "official"]
    # Processor time, which a busy machine does not stretch; alone on the machine it is the wall clock's.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6


def test_the_table_shows_each_kind_its_share_and_the_score() -> None:
    output = run("--rules", "leaderboard").output
    assert "leaderboard: 0.4634651" in output
    (conv,) = [line.split() for line in output.splitlines() if line.strip().startswith("conv ")]
    # 2,075,623,424 / 10.49e9 / 0.46346508...
    assert conv == ["conv", "1,384,562,688", "1,383,342,080", "2,075,623,424", "42.693", "%"]
    assert "9,693,108" in output
    assert "writeup" not in output.splitlines()[0]
    assert max(len(line) for line in output.splitlines()[1:]) <= 80


def test_per_layer_adds_a_row_for_each_layer() -> None:
    output = run("--rules", "official", "--per-layer").output
    (stem,) = [line.split() for line in output.splitlines() if line.strip().startswith("stem ")]
    # 16 filters of 27 weights at 1024 positions; the folded batch norm is the addition that makes up 27.
    assert stem[:6] == ["stem", "conv", "442,368", "442,368", "663,552", "224"]
    layers = printed("--rules", "official", "--per-layer")["official"]["layers"]
    assert layers[0]["layer"] == "stem"
    assert sum(row["counted"] for row in layers) == 2_078_052_416


def test_a_checkpoint_is_scored_with_its_zeros(tmp_path: Path) -> None:
    network = half_pruned()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.save(network, INFO))
    from_path = printed("--checkpoint", str(path))
    assert printed("--checkpoint", path.as_uri()) == from_path
    dense = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d))
    rest = from_path["official"]["parameters"] - dense * (8 + 1) / 32
    # Besides the convolutions, at 16 bits: the linear layer, a value a channel for the four folded batch
    # norms (16, 16, 32, 64) and two for the three standing ones (16, 32, 64).
    assert rest == (64 * 3 + 3 + 128 + 2 * 112) / 2
    assert from_path["writeup"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())


def test_a_checkpoint_is_read_from_s3(s3_uri: str) -> None:
    open_store(s3_uri).put("weights.safetensors", weights.save(wide_resnet(10, 1, 3), INFO))
    assert printed("--checkpoint", f"{s3_uri}/weights.safetensors")["writeup"]["parameters"] > 0


def test_any_factory_is_scored_on_any_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    tiny = printed("--model", "my_models:tiny", "--input", "3,2,2")
    assert tiny["official"]["operations"]["linear"]["multiplications"] == 60
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    prune.l1_unstructured(layer[1], "weight", 0.5)
    prune.remove(layer[1], "weight")
    (tmp_path / "tiny.safetensors").write_bytes(save(layer.state_dict()))
    pruned = printed("--model", "my_models:tiny", "--input", "3,2,2", "--checkpoint", "tiny.safetensors")
    assert pruned["official"]["operations"]["linear"]["multiplications"] == 30
    (tmp_path / "bits.json").write_text('{"parameters": {"1.weight": 4}}')
    declared = printed("--model", "my_models:tiny", "--input", "3,2,2", "--bits", "bits.json")
    assert declared["official"]["parameters"] == 60 * 4 / 32 + 5
    assert "returned a value of type int" in failure("--model", "my_models:number").message
    assert isinstance(failure("--model", "my_models:absent"), UsageError)


def test_unknown_operators_fail_unless_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_models.py").write_text(ODD_MODELS)
    monkeypatch.chdir(tmp_path)
    assert "aten.sinc" in failure("--model", "odd_models:Odd").message
    assert "odd_models.py:5" in failure("--model", "odd_models:Odd").message
    allowed = run("--model", "odd_models:Odd", "--allow-unknown")
    assert allowed.exit_code == 0
    assert "not counted: aten.sinc in (model), odd_models.py:5 in forward" in allowed.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rules", "strict"],
        ["--input", "3x32x32"],
        ["--input", "3,0,32"],
        ["--model", "torch.nn"],
        ["--model", "no_such_module:factory"],
    ],
)
def test_wrong_options_are_usage_errors(arguments: list[str]) -> None:
    assert failure(*arguments).exit_code == 2


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", save({}), None])
def test_an_unreadable_checkpoint_is_bad_data(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    error = failure("--checkpoint", str(path))
    assert isinstance(error, DataError)
    assert error.exit_code == 65


def test_a_checkpoint_of_another_model_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "linear.safetensors"
    path.write_bytes(save(nn.Linear(2, 2).state_dict()))
    error = failure("--checkpoint", str(path), "--model", "torchvision.models:resnet18")
    assert error.exit_code == 65
    assert "Missing key(s)" in str(error)
    assert "Name a state dict of that model" in str(error)
    assert len(str(error)) < 600
    assert not re.search(r"\n|\t|\.\s*\.", str(error))


def test_a_layer_whose_name_looks_like_markup_is_named() -> None:
    class Named(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            return self["[/a]:smile:"](x) % 2

    scores = score(Named({"[/a]:smile:": nn.ReLU()}), (4,), allow_unknown=True)
    scores = replace(scores, unknown=(replace(scores.unknown[0], layer="[/b]"),))
    text = report.text(scores, per_layer=True)
    assert "[/a]:smile: " in text
    assert "not counted: aten.remainder in [/b], " in text
