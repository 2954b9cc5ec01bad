"""Several processes for one run on this machine: torchrun's agent starts, watches and ends them together."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence

from job.errors import BEFORE_OTHERS, SUCCESS, JobError, MachineError, PreemptedError, UsageError
from job.machine.preemption import Preemption
from job.machine.processes import AGENT, require_divisible

AUTO = "auto"
LOOPBACK = "127.0.0.1"
CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE)


def resolve(requested: str, shards: int, device: str) -> int:
    """Return how many processes to start for `--processes` on the device that --device asks for.

    `auto` is as many as there are GPUs, on a processor cores, and as can share the shards. Raises
    ConfigurationError for a number that cannot, UsageError for several with one GPU.
    """
    if requested == AUTO:
        import torch

        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        most = min(shards, gpus or len(os.sched_getaffinity(0)))
        count = 1 << (most.bit_length() - 1)  # the largest power of two among them
    else:
        count = int(requested)
    require_divisible(shards, count)
    if count > 1 and device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU for {count} processes", "Give --device cuda")
    return count


def run(count: int, arguments: Sequence[str], grace_seconds: float, preemption: Preemption) -> int:
    """Run this program with `arguments` in `count` processes; return the job's exit code.

    When one fails or the agent gets a signal, all get SIGTERM, and SIGKILL after `grace_seconds`.
    """
    with preemption.deferred():  # torn imports leave modules that cannot be used
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # of the agent's own: each process logs why it ends
    os.environ[AGENT] = str(os.getpid())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # by default gloo looks up the machine's own name
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # a process that ends is no reason for a stack trace
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        shutdown_timeout=math.ceil(grace_seconds),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "job.cli", *arguments)
    except SignalException:
        return PreemptedError.exit_code
    except ChildFailedError as error:
        return job_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    return SUCCESS.code


def job_code(codes: Mapping[int, int]) -> int:
    """Return the exit code of a job whose processes ended with `codes`, by number; below 0 they are signals.

    Raises MachineError, or JobError for a crash, where a signal ended a process, which could not log that.
    """
    ended = set(codes.values())
    first = next((row.code for row in BEFORE_OTHERS if row.code in ended), MachineError.exit_code)
    if first not in (PreemptedError.exit_code, MachineError.exit_code) or not min(ended) < 0:
        return first
    rank, number = next((rank, signal.Signals(-code)) for rank, code in codes.items() if code < 0)
    if number is signal.SIGTERM:
        return PreemptedError.exit_code
    if number in CRASHES:
        raise JobError(f"process {rank} has crashed with {number.name}", "Report it")
    raise MachineError(
        f"process {rank} was ended by {number.name}",
        "Run the same command again; a machine that is out of memory sends SIGKILL",
    )
