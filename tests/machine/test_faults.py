"""What PyTorch's errors about a device come to."""

import pytest
import torch

from job.errors import ConfigurationError, JobError
from job.machine.faults import DeviceLostError, explained

FASTAI = "Exception occured in `LossSum` when calling event `after_loss`:\n\t"


def accelerator_error(code: int, message: str) -> torch.AcceleratorError:
    error = torch.AcceleratorError(message)
    error.error_code = code
    return error


ECC = "CUDA error: uncorrectable ECC error encountered"
CUBLAS = "CUDA error: CUBLAS_STATUS_{} when calling `cublasSgemm( handle, opa, opb, m, n, k)`"


@pytest.mark.parametrize(
    ("error", "kind", "exit_code", "words"),
    [
        (accelerator_error(214, f"{ECC}\nSearch for `cudaErrorECC'"), DeviceLostError, 74, ECC),
        (accelerator_error(214, FASTAI + ECC), DeviceLostError, 74, f"at fault: {ECC}. "),
        (
            accelerator_error(719, "CUDA error: unspecified launch failure"),
            DeviceLostError,
            74,
            "unspecified",
        ),
        (accelerator_error(710, "CUDA error: device-side assert triggered"), JobError, 1, "CUDA error 710"),
        (accelerator_error(700, "CUDA error: an illegal memory access"), JobError, 1, "CUDA error 700"),
        (torch.OutOfMemoryError("CUDA out of memory."), ConfigurationError, 78, "Use fewer"),
        (RuntimeError(CUBLAS.format("EXECUTION_FAILED")), DeviceLostError, 74, "CUBLAS_STATUS"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLostError, 74, "CUDNN_STATUS"),
    ],
)
def test_an_error_of_the_device_has_its_exit_code(
    error: RuntimeError, kind: type[JobError], exit_code: int, words: str
) -> None:
    with pytest.raises(kind) as caught, explained("Use fewer"):
        raise error
    assert caught.value.exit_code == exit_code
    assert words in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("message", ["mat1 and mat2 cannot be multiplied", CUBLAS.format("INVALID_VALUE")])
def test_any_other_error_stays_as_it_is(message: str) -> None:
    with pytest.raises(RuntimeError, match=message.partition("(")[0]) as caught, explained("Use fewer"):
        raise RuntimeError(message)
    assert not isinstance(caught.value, JobError)
