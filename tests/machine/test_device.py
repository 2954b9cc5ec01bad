"""What a process is set to before it trains."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from job.errors import ConfigurationError
from job.machine import device as devices
from job.machine.device import pick, require_ieee
from job.machine.environment import environment
from job.run.lineage import drift
from job.run.records import Worker

CONFIGURED = """
import resource
import torch
from job.machine import device

def steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

backends = torch.backends
backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = True
device.configure(deterministic=True)
print(backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32)
print(backends.fp32_precision, backends.cuda.matmul.fp32_precision)
print(backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision)
steps()  # the heap finds its shape: the first five at most grow it
print(steps())
"""


@pytest.fixture(scope="module")
def configured() -> list[str]:
    """What a new process prints that is configured."""
    command = [sys.executable, "-c", CONFIGURED]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_step_uses_the_memory_that_the_one_before_freed(configured: list[str]) -> None:
    pages_of_one = 10_000_000 * 4 / 4096
    assert int(configured[3]) < pages_of_one  # returned to the system, each of the 20 has its own cleared


def test_tf32_is_off_by_the_old_flags_and_the_new_ones(configured: list[str]) -> None:
    assert configured[:3] == ["False False", "ieee ieee", "ieee ieee"]


def test_a_flag_that_does_not_hold_is_named() -> None:
    # as PyTorch 2.11.0 reads back after `torch.backends.fp32_precision = "ieee"` alone
    flags: dict[str, str | bool] = {
        "cudnn.allow_tf32": True,
        "cuda.matmul.allow_tf32": False,
        "fp32_precision": "ieee",
        "cudnn.conv.fp32_precision": "tf32",
    }
    with pytest.raises(ConfigurationError) as caught:
        require_ieee(flags)
    assert caught.value.exit_code == 78
    assert "cudnn.allow_tf32 is True, torch.backends.cudnn.conv.fp32_precision is 'tf32'" in str(caught.value)
    assert "matmul" not in str(caught.value)
    require_ieee(dict.fromkeys(flags, "ieee"))


GPUS = ["NVIDIA L4", "NVIDIA H100"]


@pytest.mark.parametrize(
    ("requested", "number"), [("auto", 0), ("any", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)]
)
def test_a_gpu_is_chosen_by_its_number(requested: str, number: int) -> None:
    assert pick(requested, GPUS, None) == number


def test_a_number_without_a_gpu_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"there is no cuda:2; .*cuda:0 .NVIDIA L4., cuda:1"
    ) as caught:
        pick("cuda:2", GPUS, None)
    assert "CUDA_VISIBLE_DEVICES" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES=3"):
        pick("cuda:3", GPUS[:1], "3")


def test_a_gpu_of_another_size_is_drift_but_not_where_the_older_attempt_lacks_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def machine(multiprocessors: int) -> dict[str, Any]:
        properties = SimpleNamespace(major=9, minor=0, multi_processor_count=multiprocessors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
        return devices.machine(torch.device("cuda", 0))

    first, second = machine(114), machine(132)
    assert first.keys() == set(devices.MACHINE)
    assert first["compute_capability"] == "9.0"
    (change,) = drift([(1, Worker(**first)), (2, Worker(**second))])
    assert (change.field, change.before, change.now) == ("multiprocessors", "114", "132")
    older = {name: first[name] for name in ("device", "torch", "cuda", "cudnn")}
    assert drift([(1, Worker(**older)), (2, Worker(**second))]) == []


def test_a_processor_has_no_compute_capability() -> None:
    assert devices.machine(torch.device("cpu"))["compute_capability"] is None


@pytest.mark.parametrize(("stated", "image"), [("", None), ("registry/net:1", "registry/net:1")])
def test_an_image_that_its_build_did_not_name_is_unknown(
    stated: str, image: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICRONET_IMAGE", stated)
    assert environment()["image"] == image
