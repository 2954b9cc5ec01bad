"""What several processes at one step cost and gain: shards, their exchange, and training together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from job.checks.bench.apart import Apart, answer
from job.checks.bench.links import Modelled, modelled
from job.checks.bench.loops import Full, default_network, full
from job.checks.bench.results import ParallelFigures
from job.checks.bench.timing import Subject, interleave, ratio, seconds, spread, with_mean
from job.machine import device as devices
from job.machine.launch import LOOPBACK
from job.machine.processes import ALONE, Group, Work
from job.recipe import Recipe
from job.settings import DeviceSettings
from job.train.exchange import ShardedStep

SHARDS = (1, 2, 4)
SHARED = SHARDS[-1]  # of a step of several processes
TRAIN, COMPUTE, EXCHANGE, SENT = "train", "compute", "exchange", "sent"
"""What a team measures: steps as in a run, the same without the exchange, that by itself, bytes a step."""


class CountedGroup(Group):
    """A group that counts the bytes that this process sends to the others in exchanges."""

    sent_bytes = 0

    def all_to_all(self, received: Tensor, sent: Tensor) -> Work:
        """Count all but the slice that stays here."""
        self.sent_bytes += sent.nbytes * (self.count - 1) // self.count
        return super().all_to_all(received, sent)

    def all_gather(self, received: Tensor, sent: Tensor) -> Work:
        """Count the slice once for each of the others."""
        self.sent_bytes += sent.nbytes * (self.count - 1)
        return super().all_gather(received, sent)


class Team:
    """Processes that train together, one a GPU; on a processor they have one thread each."""

    def __init__(self, count: int, recipe: Recipe, device: torch.device, steps: int) -> None:
        port = free_port()
        self.members = [
            Apart(f"rank {rank} of {count}", _serve, rank, count, port, recipe, device, steps)
            for rank in range(count)
        ]

    def __call__(self, subject: str) -> float:
        """Let all measure; return the slowest one's rate."""
        for member in self.members:
            member.ask(subject)
        return min([member.answer() for member in self.members])

    def close(self) -> None:
        """Let all end."""
        for member in self.members:
            member.close()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _serve(
    requests: Connection, rank: int, count: int, port: int, recipe: Recipe, device: torch.device, steps: int
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR=LOOPBACK, GLOO_SOCKET_IFNAME="lo", TORCHELASTIC_RUN_ID="bench")
    devices.configure(recipe.deterministic)
    here = devices.choose(device.type, rank)
    if here.type == "cpu":
        torch.set_num_threads(1)
    group = CountedGroup.join(here, DeviceSettings().step_timeout)
    assert isinstance(group, CountedGroup)
    with ExitStack() as stack:
        if count == 1:
            answer(requests, {
                str(shards): stack.enter_context(full(replace(recipe, shards=shards), here, steps))
                for shards in SHARDS
            })  # fmt: skip
        else:
            recipe, own = replace(recipe, shards=SHARED), group.own(SHARED)
            job = stack.enter_context(full(recipe, here, steps, group=group, own=own))
            alone = stack.enter_context(full(recipe, here, steps, own=own))
            exchange = exchange_of(recipe, here, group)
            answer(requests, {
                TRAIN: job,
                COMPUTE: alone,
                EXCHANGE: lambda: steps / seconds(lambda: [exchange() for _ in range(steps)], here),
                SENT: lambda: sent_in_a_step(job, group),
            })  # fmt: skip


def exchange_of(recipe: Recipe, device: torch.device, group: Group) -> Callable[[], object]:
    """Return a function that exchanges a step's gradients and statistics, of one shard a process."""
    network = default_network(recipe, device)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step = ShardedStep(network, list(network.parameters()), group, group.count, overlap=False)
    nothing = torch.zeros((), device=device)
    return lambda: step([(nothing, nothing)], lambda *_: nothing)


def sent_in_a_step(job: Full, group: CountedGroup) -> float:
    """Return how many bytes this process sends in a step."""
    before = group.sent_bytes
    job()
    return (group.sent_bytes - before) / len(job.trainer.batches)


def compare(recipe: Recipe, device: torch.device, steps: int, rounds: int, processes: int) -> ParallelFigures:
    """Compare 1, 2 and 4 shards in one process, and 4 shards in up to `processes`; model several GPUs."""
    with ExitStack() as stack:
        counts = [2**power for power in range(processes.bit_length())]
        teams = {count: stack.enter_context(closing(Team(count, recipe, device, steps))) for count in counts}
        subjects: dict[str, Subject] = {_shards(shards): partial(teams[1], str(shards)) for shards in SHARDS}
        for count in counts[1:]:
            for subject in (TRAIN, COMPUTE, EXCHANGE):
                subjects[f"{count} {subject}"] = partial(teams[count], subject)
        measured = interleave(subjects, rounds)
        sent = {str(count): teams[count](SENT) for count in counts[1:]}
    one, network = _shards(SHARED), default_network(recipe, torch.device("cpu"))
    rates = {name: spread(measured[name]) for name in map(_shards, SHARDS)}
    rates |= {f"{count} processes": spread(measured[f"{count} {TRAIN}"]) for count in counts[1:]}
    rows = _model(network, recipe, recipe.batch_size / rates[one]["median"])
    for row in rows if device.type == "cuda" else ():
        if row["processes"] in counts:
            here = rates[f"{row['processes']} processes"]["median"]
            row["measured_to_modelled"] = here / row["images_per_second"]
    return {
        "steps": steps,
        "images_per_second": rates,
        "shards_to_one": {str(shards): ratio(measured, _shards(shards), _shards(1)) for shards in SHARDS[1:]},
        "processes_to_one": {str(count): ratio(measured, f"{count} {TRAIN}", one) for count in counts[1:]},
        "exchange_share": {
            str(count): with_mean(
                [
                    1 - train / compute
                    for train, compute in zip(
                        measured[f"{count} {TRAIN}"], measured[f"{count} {COMPUTE}"], strict=True
                    )
                ]
            )
            for count in counts[1:]
        },
        "exchange_seconds": {
            str(count): spread([1 / rate for rate in measured[f"{count} {EXCHANGE}"]]) for count in counts[1:]
        },
        "sent_bytes": sent,
        "gradient_bytes": sum(parameter.nbytes for parameter in network.parameters()),
        "model": rows,
    }


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"


def _model(network: nn.Module, recipe: Recipe, step_seconds: float) -> list[Modelled]:
    """Return the modelled steps of all numbers of GPUs, for the buckets that the network's step has."""
    step = ShardedStep(network, list(network.parameters()), ALONE, SHARED, overlap=False)
    buckets = [4 * (bucket.size + -bucket.size % SHARED) for bucket in (*step.buckets, step.rest)]
    return [
        row
        for count in SHARDS[1:]
        for row in modelled(step_seconds, recipe.batch_size, SHARED, buckets, count)
    ]
