"""The exit codes of PyTorch's errors about a device; the watchdog, in processes that wait for ever in C."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from job.errors import ConfigurationError, JobError
from job.machine.faults import DeviceLostError, explained

FASTAI = "Exception occured in `LossSum` when calling event `after_loss`:\n\t"


def accelerator_error(code: int, message: str) -> torch.AcceleratorError:
    error = torch.AcceleratorError(message)
    error.error_code = code  # type: ignore[attr-defined]
    return error


ECC = "CUDA error: uncorrectable ECC error encountered"
HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
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
        (RuntimeError(FASTAI + HOST), ConfigurationError, 78, "DefaultCPUAllocator: can't allocate memory"),
        (MemoryError("Unable to allocate 8.00 PiB"), ConfigurationError, 78, "8.00 PiB). Use fewer"),
        (MemoryError(), ConfigurationError, 78, "the processor has too little memory (MemoryError)"),
        (RuntimeError(CUBLAS.format("EXECUTION_FAILED")), DeviceLostError, 74, "CUBLAS_STATUS"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLostError, 74, "CUDNN_STATUS"),
    ],
)
def test_an_error_of_the_device_has_its_exit_code(
    error: Exception, kind: type[JobError], exit_code: int, words: str
) -> None:
    with pytest.raises(kind) as caught, explained("Use fewer"):
        raise error
    assert caught.value.exit_code == exit_code
    assert words in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_processors_own_allocator_reports_too_little_memory_so() -> None:
    with pytest.raises(ConfigurationError, match="processor has too little memory"), explained("Use fewer"):
        torch.empty(2**55)


@pytest.mark.parametrize("message", ["mat1 and mat2 cannot be multiplied", CUBLAS.format("INVALID_VALUE")])
def test_any_other_error_stays_as_it_is(message: str) -> None:
    with pytest.raises(RuntimeError, match=message.partition("(")[0]) as caught, explained("Use fewer"):
        raise RuntimeError(message)
    assert not isinstance(caught.value, JobError)


ROOT = Path(__file__).parents[2]
MACHINE = 74  # the README's table

FRAME = """
import ctypes, threading, time
from job import events
from job.machine.faults import Watchdog

events.configure("json")

def hang():
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

def settle(cause):
    print("settled:", cause, flush=True)

LIMIT = 0.5
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FRAME + textwrap.dedent(body)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said, words = process.communicate("\n", timeout=20)
    finally:
        process.kill()
    return process.returncode, said, words


def test_it_settles_and_ends_what_waits_in_c() -> None:
    code, said, words = finish(start("with Watchdog(LIMIT, settle) as dog, dog.watching(): hang()"))
    assert code == MACHINE
    assert said == "settled: no step has ended for 0.5 s: the device does not answer\n"
    stuck, stopped = map(json.loads, words.splitlines())
    assert (stuck["event"], stopped["event"], stopped["exit_code"]) == ("stuck", "stopped", MACHINE)
    assert "--step-timeout" in words


def test_it_ends_what_waits_in_c_although_settling_fails() -> None:
    code, said, words = finish(
        start("""
            def settle(cause):
                raise RuntimeError("can't start new thread")

            with Watchdog(LIMIT, settle) as dog, dog.watching():
                hang()
        """)
    )
    assert (code, said) == (MACHINE, "")
    _, failed, stopped = map(json.loads, words.splitlines())
    assert (failed["event"], failed["error"]) == ("settle_failed", "RuntimeError")
    assert (stopped["event"], stopped["exit_code"]) == ("stopped", MACHINE)


def test_steps_and_batches_keep_it_quiet_and_so_does_what_is_not_watched() -> None:
    code, said, words = finish(
        start("""
            with Watchdog(LIMIT, settle) as dog:
                time.sleep(1)
                with dog.watching():
                    for _ in range(6):
                        dog.step(), time.sleep(0.1), dog.progress(), time.sleep(0.1)
                time.sleep(1)
            with dog.watching():
                time.sleep(1)
            with Watchdog(0, settle) as dog, dog.watching():
                time.sleep(1)
            print("end")
        """)
    )
    assert (code, said, words) == (0, "end\n", "")


def test_the_first_step_of_a_compiled_run_may_take_its_time() -> None:
    code, said, _ = finish(
        start("""
            with Watchdog(LIMIT, settle, compiling=True) as dog, dog.watching():
                dog.progress()  # of an evaluation before the first step
                time.sleep(1.5)
                print("compiled", flush=True)
                dog.step()
                hang()
        """)
    )
    assert code == MACHINE
    assert said.startswith("compiled\nsettled:")


def test_a_pause_of_the_process_is_not_idle_time() -> None:
    process = start("""
        with Watchdog(2, settle) as dog, dog.watching():
            print("ready", flush=True)
            input()
        print("end")
    """)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    code, said, words = finish(process)
    assert (code, said, words) == (0, "end\n", "")
