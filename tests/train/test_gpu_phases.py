"""The phases on the simulated GPU: the CPU's bits, kills, overflows, and no read of the device in a step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from job.network import compressed
from job.phases import PRUNE, QUANTISE, Cycle
from job.recipe import Recipe
from job.run.state import TrainingState, largest
from job.train.compression import Teacher
from job.train.loader import Images, Normalisation, TrainingBatches
from job.train.trainer import Trainer
from tests.simulated_gpu import DEVICE, Fault
from tests.simulated_gpu.attempts import Device, Event, on_device
from tests.simulated_gpu.bench import COMPACT, COPIES, EACH_STEP, IN_STEP, PHASES, STEPS, Bench, at, outcome

CPU = torch.device("cpu")
RECIPE = Recipe(
    depth=10,
    width=1,
    cycles=(Cycle(1, 5e-3),),
    prune_cycles=(Cycle(1, 1e-3),),
    quantise_cycles=(Cycle(1, 1e-3),),
    batch_size=2,
)
BATCHES = 2
OVERFLOWING, USUAL = 2.0**40, 2.0**10  # loss scales


class StoppedError(Exception):
    """Ends an epoch after a step."""


def network() -> torch.nn.Sequential:
    torch.manual_seed(22)
    return compressed.build(10, 1, 5)


class Training(Trainer):
    """A trainer on `device`; `states` has its state and the hash of that after each step and each epoch."""

    def __init__(self, device: torch.device, recipe: Recipe) -> None:
        generator = torch.Generator().manual_seed(5)
        count = BATCHES * recipe.batch_size
        pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        images = Images(pixels.to(device), (torch.arange(count) % 5).to(device))
        normalise = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device)
        self.states: list[tuple[bytes, str]] = []
        self.stops = False
        super().__init__(
            network().to(device).to(memory_format=torch.channels_last),
            TrainingBatches(images, 5, normalise, recipe),
            recipe,
            self.keep,
            teach=lambda: Teacher(network(), 0.5, recipe.precision, device),
        )

    def keep(self) -> None:
        """Keep the state, in which zeros are zeros and step sizes positive; stop if that is asked for."""
        for _, layer in compressed.layers(self.network):
            assert (layer.weight[~layer.mask] == 0).all()
            assert layer.weight_step > 0
            assert layer.input_step > 0
        state = self.state([])
        moments = [moment for each in state.optimizer for moment in each.values()]
        tensors = [*state.network.values(), *moments]
        bits = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        self.states.append((state.encode(), f"{state.epoch}/{state.step} {bits}"))
        if self.stops:
            raise StoppedError(f"after {state.place}")

    def finish(self) -> list[str]:
        """Train to the end, or until it stops; return the hashes of the states."""
        with contextlib.suppress(StoppedError):
            while self.epoch < self.recipe.epochs:
                self.train_epoch()
                self.next_epoch()
                self.keep()
        return [bits for _, bits in self.states]


def trainings(precision: str) -> tuple[list[str], list[str], list[str], set[str]]:
    """Return the hashes of the states on the CPU, on the device, and of what follows each of those resumed.

    And the devices of networks and optimizers that have resumed.
    """
    recipe = replace(RECIPE, precision=precision)
    here, there = Training(CPU, recipe), Training(DEVICE, recipe)
    expected, found, resumed, devices = here.finish(), there.finish(), [], set()
    for state, _ in there.states[:-1]:
        again = Training(DEVICE, recipe)
        again.restore(TrainingState.decode(state, largest(network().state_dict())))
        again.stops = True
        resumed += again.finish()
        held = [value for each in again.optimizer.state.values() for value in each.values()]
        devices |= {str(tensor.device) for tensor in [*again.network.state_dict().values(), *held]}
    return expected, found, resumed, devices


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_state_of_every_phase_resumes_to_the_bits_of_the_cpu(precision: str) -> None:
    expected, found, resumed, devices = on_device(trainings, precision)
    assert len(expected) == len(RECIPE.phases) * (BATCHES + 1)
    assert found == expected
    assert resumed == expected[1:]
    assert devices == {"simgpu:0"}


def overflows() -> dict[str, list[bool]]:
    """Return by phase whether its parameters stayed: in an epoch of overflows, and in one without."""
    two = (Cycle(2, 1e-3),)
    recipe = replace(RECIPE, precision="fp16", prune_cycles=two, quantise_cycles=two)
    training = Training(DEVICE, recipe)
    found: dict[str, list[bool]] = {PRUNE: [], QUANTISE: []}
    while training.epoch < recipe.epochs:
        phase = recipe.phase_at(training.epoch)
        if phase.name in found:
            first = training.epoch == phase.first
            if first:  # what the phase begins with changes weights and step sizes
                training._enter(phase)
                training._begin_epoch()
            scale = OVERFLOWING if first else USUAL
            training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": scale})
            before = [parameter.detach().clone() for parameter in training.network.parameters()]
            training.train_epoch()
            pairs = zip(before, training.network.parameters(), strict=True)
            found[phase.name].append(all(torch.equal(*pair) for pair in pairs))
        else:
            training.train_epoch()
        training.next_epoch()
    return found


def test_an_overflow_of_fp16_leaves_out_a_step_of_pruning_and_of_quantisation() -> None:
    assert on_device(overflows) == {PRUNE: [True, False], QUANTISE: [True, False]}


# The whole job.


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def whole(bench: Bench) -> tuple[Path, Counter[tuple[str, str]]]:
    """A finished run with a checkpoint after each step, and what waited for the device: (kind, function)."""
    log, run = bench.folder / "log", bench.folder / "whole"
    bench.finish(run, *COMPACT, *EACH_STEP, device=Device(log=log))
    waits = Counter[tuple[str, str]]()
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        waits[entry["kind"], entry["within"].split(".<")[0]] += 1
    return run, waits


def phases(run: Path) -> Any:
    """Return the report's phases without the places of their weights."""
    found = json.loads((run / "report.json").read_bytes())["phases"]
    return [{**phase, "weights": phase["weights"]["sha256"]} for phase in found]


def test_no_step_of_any_phase_reads_the_device(whole: tuple[Path, Counter[tuple[str, str]]]) -> None:
    reads = {where: count for (kind, where), count in whole[1].items() if kind == "read"}
    layers = len(phases(whole[0])[0]["layers"])
    assert reads == {"Trainer.train_epoch": PHASES, "_result": PHASES * layers}  # the report's zeros
    copies = {where for kind, where in whole[1] if kind == "copy"}
    assert copies == {*COPIES, "_host", "pack"}
    assert {kind for kind, _ in whole[1]} == {"read", "copy"}


def saves(place: tuple[int, int], event: Event) -> bool:
    return event["event"] == "checkpoint" and (event["epoch"], event["step"]) == place


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_killed_in_each_phase_ends_with_the_same_bits(
    step: int, bench: Bench, whole: tuple[Path, Counter[tuple[str, str]]]
) -> None:
    """The device hangs in that step of each phase; where it is the first, the kill is between two phases."""
    run, operator = bench.folder / f"killed-{step}", at(epoch=1, step=step)
    for epoch in range(1, PHASES + 1):
        last = (epoch, step - 1) if step > 1 else (epoch - 1, STEPS)
        hang = Device(Fault("hang", within=IN_STEP, operator=operator))
        with bench.attempt(run, *COMPACT, *EACH_STEP, device=hang) as attempt:
            if last != (0, STEPS):
                attempt.until(partial(saves, last))
            attempt.signal(signal.SIGKILL)
            assert attempt.end() == -signal.SIGKILL
        operator = at(epoch=2, step=1)  # from one phase's step to the next phase's
    bench.finish(run, *COMPACT)
    assert outcome(run) == outcome(whole[0])
    assert phases(run) == phases(whole[0])


def test_given_weights_are_used_on_the_device(
    bench: Bench, whole: tuple[Path, Counter[tuple[str, str]]]
) -> None:
    """Of a dense network to start with, and of a quantised one as the teacher."""
    (dense,) = (whole[0] / "phases").glob("dense-*")
    given = ("--from", str(dense), "--teacher", str(whole[0]), "--cycles", "none")
    run = bench.folder / "given"
    bench.finish(run, *COMPACT[2:], *given, "--precision", "bf16")
    assert [phase["name"] for phase in phases(run)] == ["prune", "quantise", "statistics"]
    assert f"({outcome(run)['accuracy']['correct']} of 20 test images)" in bench.evaluate(run)
