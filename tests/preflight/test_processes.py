"""What several processes on one machine need, by plain values where the machine has no GPUs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from job.errors import ConfigurationError
from job.preflight import processes
from job.preflight.doctor import examine, exit_code
from job.preflight.processes import GIB, MIB, Gpu
from job.recipe import DEMO
from job.settings import DEMO_DATA, DataSettings, DeviceSettings, Placement

L4, H100 = Gpu("NVIDIA L4", 22 * GIB), Gpu("NVIDIA H100", 79 * GIB)


@pytest.mark.parametrize(("shards", "count"), [(1, 1), (8, 1), (8, 2), (8, 8), (2, 2)])
def test_shards_are_divided(shards: int, count: int) -> None:
    assert f", {shards // count} for each" in processes.check_shards(shards, count).text


@pytest.mark.parametrize(
    ("shards", "count", "words"),
    [(8, 3, "3 processes .* the 8"), (4, 8, "8 processes .* the 4"), (1, 2, "2 processes .* the 1")],
)
def test_shards_that_cannot_be_divided_are_refused(shards: int, count: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        processes.check_shards(shards, count)
    assert caught.value.exit_code == 78
    assert caught.value.fix


def test_equal_gpus_are_well() -> None:
    assert processes.check_gpus(2, [L4, L4, H100]).text == "2 of 3, each NVIDIA L4 (22.0 GiB)"


@pytest.mark.parametrize(
    ("count", "gpus", "words"),
    [
        (4, [L4, L4], r"4 GPUs, .* sees 2: cuda:0 NVIDIA L4 \(22.0 GiB\), cuda:1 NVIDIA L4"),
        (2, [], "sees 0: none"),
        (2, [L4, H100], "not all of one kind.*cuda:0 NVIDIA L4.*cuda:1 NVIDIA H100"),
        (2, [H100, replace(H100, memory=93 * GIB)], "not all of one kind.*79.0 GiB.*93.0 GiB"),
    ],
)
def test_too_few_and_unequal_gpus_are_refused_by_name(count: int, gpus: list[Gpu], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        processes.check_gpus(count, gpus)
    assert caught.value.exit_code == 78
    assert caught.value.fix


def test_the_way_between_the_gpus_is_reported() -> None:
    assert "directly" in processes.describe_peers([]).text
    found = processes.describe_peers([(0, 1), (0, 2)])
    assert (found.status, found.fix) == ("ok", "")
    assert "through the host's memory" in found.text
    assert "cuda:0 and cuda:1, cuda:0 and cuda:2" in found.text


@pytest.mark.parametrize(
    ("free", "count", "status"),
    [(64, 1, "warning"), (900, 1, "warning"), (1000, 1, "ok"), (1024, 8, "warning"), (8192, 8, "ok")],
)
def test_little_shared_memory_is_a_warning(
    free: int, count: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free * MIB))
    found = processes.check_shared_memory(Path("/dev/shm"), count)
    assert found.status == status
    assert f"{free:,} MiB free" in found.text
    assert (f"--shm-size={1024 * count}m or --ipc=host" in found.fix) == (status == "warning")


def test_no_shared_memory_is_a_warning(tmp_path: Path) -> None:
    found = processes.check_shared_memory(tmp_path / "none", 2)
    assert (found.status, "No such file" in found.text) == ("warning", True)


def test_this_pytorch_can_exchange_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.check_backend("cpu").text == "gloo, part of PyTorch"
    assert processes.check_backend("cuda").text.startswith("NCCL 2.")
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    for device, name in (("cpu", "gloo"), ("cuda", "nccl")):
        with pytest.raises(ConfigurationError, match=f"built without {name}"):
            processes.check_backend(device)


def test_a_single_process_needs_none_of_it() -> None:
    assert processes.checks(8, 1, "cuda") == []


def test_on_gpus_more_is_checked_than_on_a_processor() -> None:
    names = [check.name for check in processes.checks(8, 2, "cuda")]
    assert names == ["shards", "gpus", "peers", "shared-memory", "backend"]
    assert [check.name for check in processes.checks(8, 2, "cpu")] == ["shards", "backend"]


def test_the_doctor_reports_them(tmp_path: Path) -> None:
    data = DataSettings((DEMO_DATA,), str(tmp_path))
    placement = Placement(str(tmp_path / "run"), data, DeviceSettings("cpu"))
    findings = examine(replace(DEMO, shards=4), placement, None, count=2)
    assert exit_code(findings) == 0, [each.text for each in findings]
    found = {each.name: each for each in findings}
    assert found["shards"].text == "4 shards, 2 for each of 2 processes"
    assert found["backend"].status == "ok"
    findings = examine(replace(DEMO, shards=8), placement, None, count=3)
    assert exit_code(findings) == 78


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs here")
def test_the_gpus_of_this_machine_are_seen() -> None:
    for check in processes.checks(2, 2, "cuda"):
        assert check.run().status == "ok", check.name
