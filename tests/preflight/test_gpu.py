"""The device and its arithmetic."""

from __future__ import annotations

import pytest
import torch

from job.errors import MachineError
from job.machine import device as devices
from job.machine.driver import Health
from job.preflight import gpu
from job.preflight.gpu import bus_address, check_device, check_precision, check_work, describe_health, runs_on

CPU = torch.device("cpu")
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 0), CUDA_13, True),  # A100
        ((8, 9), CUDA_13, True),  # L4: sm_80 code runs on 8.9
        ((9, 0), CUDA_13, True),  # H100
        ((7, 5), CUDA_13, True),  # T4
        ((7, 0), CUDA_13, False),  # V100: older than 7.5, and no other 7.x
        ((6, 0), CUDA_13, False),  # P100
        ((12, 1), CUDA_13, True),
        ((11, 0), CUDA_13, False),  # machine code of one major version does not run on another
        ((11, 0), [*CUDA_13, "compute_90"], True),  # but PTX does on any later one
        ((8, 0), ["compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], False),
    ],
)
def test_code_runs_where_nvidia_says_it_does(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert runs_on(capability, built_for) == runs


def test_a_processor_is_described() -> None:
    found = check_device(CPU)
    assert (found.status, found.exit_code) == ("ok", 0)
    assert devices.describe(CPU) in found.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_is_described() -> None:
    found = check_device(torch.device("cuda", 0))
    assert found.status == "ok"
    words = (torch.cuda.get_device_name(0), "GiB free", "driver", "CUDA", "cuDNN", "ECC", "MIG")
    assert all(word in found.text for word in words), found.text


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_works_is_found_to(device: str) -> None:
    found = check_work(torch.device(device))
    assert (found.status, found.name) == ("ok", "kernel")


def test_a_device_that_cannot_be_reached_is_the_machines_fault() -> None:
    with pytest.raises(MachineError, match="a small kernel fails on meta") as caught:
        check_work(torch.device("meta"))  # takes tensors and gives none back
    assert caught.value.exit_code == 74


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_device_that_computes_wrong_is_the_machines_fault(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = gpu._work, []

    def failing(images: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        answer = right(images, filters)
        if len(calls) == 2:
            answer[1, 2] *= 1 + wrong
        return answer

    monkeypatch.setattr(gpu, "_work", failing)
    with pytest.raises(MachineError, match="wrong numbers"):
        check_work(CPU)


@pytest.mark.parametrize(
    ("health", "text"),
    [
        (Health(True, 0, False), "ECC on, 0 uncorrected errors, MIG off"),
        (Health(True, 2, True), "ECC on, 2 uncorrected errors, MIG on (this process uses one instance)"),
        (Health(None, None, None), "ECC not there, MIG not there"),
    ],
)
def test_the_state_of_a_gpu_is_described(health: Health, text: str) -> None:
    assert describe_health(health) == text
    assert "does not answer" in describe_health(None)


def test_a_bus_address_is_written_as_nvml_takes_it() -> None:
    assert bus_address(0, 0x3B, 0) == "00000000:3b:00.0"


def test_the_precision_is_reported() -> None:
    assert check_precision("fp32", CPU).text == "fp32, as asked for"
    assert check_precision("auto", CPU).text.startswith(devices.resolve_precision("auto", CPU) + ",")
