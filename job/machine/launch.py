"""Several processes for one run, on one machine or several: torchrun's agent starts and ends them."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence

from job.errors import (
    BEFORE_OTHERS,
    SUCCESS,
    ConfigurationError,
    JobError,
    MachineError,
    PreemptedError,
    UsageError,
)
from job.machine.preemption import Preemption

AUTO = "auto"
LOOPBACK = "127.0.0.1"
AGENT = "MICRONET_AGENT_PID"  # the agent's number, for the processes that it starts
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What torchrun's agent passes on by default; it would handle those that `nohup` has it ignore, too."""

CRASHES = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE)

NODES, MEETING_PLACE, MEETING, LOCAL_ADDRESS = (
    "PET_NNODES",
    "PET_RDZV_ENDPOINT",
    "PET_RDZV_ID",
    "PET_LOCAL_ADDR",
)
"""torchrun's variables: how many machines, where they meet and for which job, and this one's address."""

SHARED_MEMORY_MIB = 1024
"""MiB of /dev/shm that a container gets for each process with a GPU.

A container gets 64 by itself; NCCL's documentation recommends --shm-size=1g:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/runtime_and_mpi_issues.html
"""

MEETING_SECONDS = 900
"""How long the agents of several machines wait for one another: for a node, an image, a start."""


def under_torchrun() -> bool:
    """Return whether torchrun's agent has started this process."""
    return {"TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def local_rank() -> int | None:
    """Return the number of this process on this machine, from 0; None without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else None


def end_with_agent() -> None:
    """Have the kernel send SIGTERM when the agent ends, however it does (Linux).

    Raises PreemptedError where it ended while this process started.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(AGENT, str(os.getppid())) != str(os.getppid()):
        raise PreemptedError("the agent has ended", "Run the same command again")


def require_divisible(shards: int, count: int) -> None:
    """Raise ConfigurationError where `count` processes cannot share a step's shards equally."""
    if count < 1 or shards % count:  # a divisor of a power of two is one
        possible = ", ".join(str(2**power) for power in range(shards.bit_length()))
        raise ConfigurationError(
            f"{count} processes cannot share the {shards} of --shards equally",
            f"Give --processes {possible}, or another --shards",
        )


def machines() -> int:
    """Return how many machines train together; raise ConfigurationError for what is not a number of them."""
    text = os.environ.get(NODES, "1")
    if not text.isdecimal() or text == "0":
        raise ConfigurationError(
            f"{NODES}={text} is not a number of machines", f"Unset {NODES}, or correct it"
        )
    if int(text) > 1 and MEETING_PLACE not in os.environ:
        raise ConfigurationError(
            f"{NODES}={text} and no {MEETING_PLACE}", f"Set {MEETING_PLACE}=HOST:PORT to one of the machines"
        )
    return int(text)


def resolve(requested: str, shards: int, device: str) -> int:
    """Return how many processes to start here for `--processes` on the device that --device asks for.

    `auto` is as many as there are GPUs, on a processor cores, and as can share the shards. Raises
    ConfigurationError for a number that cannot or has too few GPUs, UsageError for several with one GPU.
    """
    nodes, count = machines(), 0 if requested == AUTO else int(requested)
    if count:
        require_divisible(shards, nodes * count)
    if count != 1:
        import torch

        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if count > gpus > 0:
            raise ConfigurationError(
                f"--processes {count} takes as many GPUs, and this process sees {gpus}",
                f"Give --processes {AUTO}, or the container more GPUs",
            )
        most = max(1, min(shards // nodes, gpus or len(os.sched_getaffinity(0))))
        count = count or 1 << (most.bit_length() - 1)  # the largest power of two among them
        require_divisible(shards, nodes * count)
    if count > 1 and device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU for {count} processes", "Give --device cuda")
    return count


def run(count: int, arguments: Sequence[str], grace_seconds: float, preemption: Preemption) -> int:
    """Run Python with `arguments` in `count` processes of each machine; return the job's exit code.

    When one fails or the agent gets a signal, all here get SIGTERM, and SIGKILL after `grace_seconds`. Raises
    MachineError where the machines do not meet.
    """
    with preemption.deferred():  # torn imports leave modules that cannot be used
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # of the agent's own: each process logs why it ends
    os.environ[AGENT] = str(os.getpid())
    heard = [number for number in AGENT_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", ",".join(number.name for number in heard))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # without a stack trace for each process that ends
    nodes = machines()
    if nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # by default gloo looks up the machine's own name
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=count,
        run_id=os.environ.get(MEETING, "micronet") if nodes > 1 else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=os.environ[MEETING_PLACE] if nodes > 1 else f"{LOOPBACK}:0",
        rdzv_configs={"read_timeout": MEETING_SECONDS, "join_timeout": MEETING_SECONDS} if nodes > 1 else {},
        local_addr=os.environ.get(LOCAL_ADDRESS) if nodes > 1 else LOOPBACK,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        shutdown_timeout=math.ceil(grace_seconds),
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except SignalException:
        return PreemptedError.exit_code
    except ChildFailedError as error:
        return job_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    except RendezvousError as error:
        raise MachineError(
            f"the {nodes} machines do not meet at {config.rdzv_endpoint} ({error})",
            "Start the same command on each of them; the place must be one of them",
        ) from error
    return SUCCESS.code


def job_code(codes: Mapping[int, int]) -> int:
    """Return the exit code of a job whose processes ended with `codes`, by number; below 0 they are signals.

    Raises MachineError, or JobError for a crash, where a signal ended a process, which could not log that.
    """
    ended = set(codes.values())
    first = next((row.code for row in BEFORE_OTHERS if row.code in ended), MachineError.exit_code)
    if first not in (PreemptedError.exit_code, MachineError.exit_code) or not min(ended) < 0:
        return first
    rank, number = next((rank, -code) for rank, code in codes.items() if code < 0)
    if number == signal.SIGTERM:
        return PreemptedError.exit_code
    if number in CRASHES:
        raise JobError(f"process {rank} has crashed with {_signal_name(number)}", "Report it")
    raise MachineError(
        f"process {rank} was ended by {_signal_name(number)}",
        "Run the same command again; a machine that is out of memory sends SIGKILL",
    )


def _signal_name(number: int) -> str:
    """Return a signal's name; most of the real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
