"""bench/SCORES.md holds what is counted now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

spec = importlib.util.spec_from_file_location("score_table", BENCH / "score_table.py")
assert spec is not None
assert spec.loader is not None
score_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(score_table)


@pytest.mark.parametrize("depth_and_width", [(22, 6), (28, 10)])
def test_the_wide_resnets_of_the_table(depth_and_width: tuple[int, int]) -> None:
    lines = score_table.TABLE.read_text().splitlines()
    for row in score_table.wide(*depth_and_width):
        assert row in lines


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_networks_of_torchvision_in_the_table(name: str) -> None:
    lines = score_table.TABLE.read_text().splitlines()
    for row in score_table.of_torchvision(name):
        assert row in lines


def test_every_network_has_two_rows() -> None:
    names = re.findall(r"^\| (\S+) \| \d+ x", score_table.TABLE.read_text(), re.MULTILINE)
    wides = ["WideResNet-22-6", "WideResNet-28-10"]
    assert names == [name for name in (*wides, *score_table.IMAGENET_NETWORKS) for _ in range(2)]
