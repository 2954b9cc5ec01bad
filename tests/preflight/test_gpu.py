"""The device and its arithmetic."""

from __future__ import annotations

import pytest
import torch

from job.machine import device as devices
from job.preflight.gpu import check_device, check_precision, runs_on

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
    assert all(word in found.text for word in (torch.cuda.get_device_name(0), "GiB", "driver", "CUDA"))


def test_the_precision_is_told() -> None:
    assert check_precision("fp32", CPU).text == "fp32, as asked for"
    assert check_precision("auto", CPU).text.startswith(devices.resolve_precision("auto", CPU) + ",")
