"""`micronet bench`: what it counts is right, and each part gives the figures it promises."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from job.checks.bench.floor import Traffic
from job.checks.bench.loops import excess, full
from job.checks.bench.rounds import interleave, ratio, spread
from job.checks.bench.show import lines
from job.settings import Recipe


def test_three_subjects_have_all_their_orders_in_six_rounds() -> None:
    called = []

    def subject(name: str) -> float:
        called.append(name)
        return 1.0

    interleave({name: lambda name=name: subject(name) for name in "abc"}, 6)  # type: ignore[misc]
    assert "".join(called) == "abc" + "abc" + "acb" + "cab" + "cba" + "bca" + "bac"


def test_a_ratio_is_paired_by_round() -> None:
    measured = {"one": [2.0, 9.0, 4.0], "other": [1.0, 3.0, 4.0]}
    found = ratio(measured, "one", "other")
    assert (found["median"], found["low"], found["high"], found["n"]) == (2.0, 1.0, 3.0, 3)
    assert found["mean"] == pytest.approx(2.0)
    assert found["half_width"] == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)  # t with 2 degrees
    assert spread([3.0, 1.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 2}


def test_operations_and_bytes_of_a_linear_layer() -> None:
    layer, images = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    with torch.no_grad(), Traffic() as traffic:
        layer(images)
    assert traffic.operators == [(2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))]


@pytest.fixture(scope="module")
def results() -> dict[str, object]:
    """The result of the smallest bench, by the command line."""
    parts = ("loop", "augmentation", "operators", "determinism", "floor")
    options = [
        "--json",
        "--depth",
        "10",
        "--width",
        "1",
        "--batch-size",
        "8",
        "--rounds",
        "2",
        "--seconds",
        "0.1",
        "--price",
        "2",
    ]
    command = [sys.executable, "-m", "job.cli", "bench"]
    done = subprocess.run(
        [*command, *options, "--seconds", "0.1", "--price", "2", *(f"--part={part}" for part in parts)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_comparison_has_its_rounds_and_its_ratio(results: dict) -> None:
    for part, names in {
        "loop": ("job", "bare", "stock"),
        "augmentation": ("job", "fastai", "torchvision", "grid_sample"),
        "determinism": ("on", "off"),
    }.items():
        rates = results[part]["images_per_second"]
        assert tuple(rates) == names
        for rate in rates.values():
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]
            assert rate["n"] == 2
    hours = results["loop"]["hours_of_600_epochs"]
    rate = results["loop"]["images_per_second"]["job"]["median"]
    assert hours == pytest.approx(600 * 50_000 / rate / 3600)
    assert results["loop"]["cost_of_600_epochs"] == pytest.approx(2 * hours)


def test_a_step_of_the_job_dispatches_a_third_of_stocks_and_reads_nothing(results: dict) -> None:
    counted = results["operators"]
    assert counted["job"]["reads"] == counted["bare"]["reads"] == 0
    assert counted["stock"]["reads"] > 0
    assert counted["bare"]["operators"] < counted["job"]["operators"] <= counted["stock"]["operators"] / 3


def test_what_a_checkpoint_takes_is_told_by_the_steps_beside_it(tmp_path: Path) -> None:
    assert excess([1.0, 1.5, 1.25, 0.75, 1.0], [False, True, True, False, False]) == 0.5 + 0.25
    recipe = Recipe(depth=10, width=1, batch_size=16, precision="fp32")
    with full(recipe, torch.device("cpu"), steps=60, every_seconds=0.2, store=str(tmp_path)) as saving:
        saving()
    assert len(saving._beside) == len(saving.step_seconds) == 60
    assert sum(saving._beside) >= len(saving.blocked_seconds) > 0


def test_the_text_names_every_part(results: dict) -> None:
    text = "\n".join(lines(results))
    for part in ("loop", "augmentation", "determinism", "operators", "floor"):
        assert f"\n{part} " in text
    assert "600 epochs" in text
