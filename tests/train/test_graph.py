"""`--graph`: a step that is recorded once and replayed has the plain step's bits; where it cannot be, 78."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from job.errors import ConfigurationError
from job.network import compressed
from job.phases import Cycle
from job.recipe import Recipe
from job.run.state import TrainingState
from job.train.step import check_graph
from job.train.trainer import Trainer
from tests.forked import micronet
from tests.train.tape import Tape
from tests.train.test_phases import MOST, teacher
from tests.train.test_phases import network as compressible
from tests.train.test_trainer import RECIPE, STEPS, assert_same_bits, batches, network, run

CONFIGURATION = 78  # the README's table


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


class StoppedError(Exception):
    """Ends an epoch between two steps."""


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replays_train_to_the_plain_steps_bits(precision: str) -> None:
    """Over two cycles, in which momentum and learning rate change at each step; and after a resume."""
    recipe = replace(RECIPE, precision=precision)
    plain = Trainer(network(), batches(recipe), recipe, lambda: None)
    expected = run(plain)
    model = network()
    tape = Tape(model)
    recorded = Trainer(model, batches(recipe), recipe, lambda: None, lambda: tape)
    found = run(recorded)
    assert tape.replays == 2 * STEPS + 1  # one to compare with the plain step
    assert_same_bits(plain, recorded)
    assert [record["train_loss"] for record in found] == [record["train_loss"] for record in expected]

    def stop() -> None:
        if stopped.step == 2:
            raise StoppedError("between two steps")

    stopped = Trainer(model := network(), batches(recipe), recipe, stop, lambda: Tape(model))
    with contextlib.suppress(StoppedError):
        stopped.train_epoch()
    resumed = Trainer(model := network(), batches(recipe), recipe, lambda: None, lambda: Tape(model))
    resumed.restore(stopped.state(history=[]))
    run(resumed)
    assert_same_bits(plain, resumed)


def test_an_overflow_in_the_first_step_is_recorded_too() -> None:
    recipe = replace(RECIPE, precision="fp16")
    trainers = []
    for recorded in (False, True):
        model = network()
        with torch.no_grad():
            model.get_parameter("linear.weight").mul_(1e4)  # overflows fp16 under the first loss scale
        trainers.append(
            Trainer(model, batches(recipe), recipe, lambda: None, partial(Tape, model) if recorded else None)
        )
        trainers[-1].train_epoch()
    assert trainers[0].scaler.get_scale() < 65536
    assert_same_bits(*trainers)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_phase_that_trains_is_recorded_anew(precision: str) -> None:
    """With its quantisers, and with the zeros put back after each replay; in fp32 also after a resume.

    In fp16, which takes a processor long, it only quantises.
    """
    one = (Cycle(1, 1e-3),)
    before = () if precision == "fp16" else one
    recipe = Recipe(
        10, 1, cycles=before, prune_cycles=before, quantise_cycles=one, batch_size=4, precision=precision
    )

    def compact(after_step: Callable[[], None] = lambda: None, records: bool = True) -> Trainer:
        trained = compressible()

        def recorder() -> Tape:
            tapes.append(Tape(trained))
            return tapes[-1]

        return Trainer(
            trained, batches(recipe), recipe, after_step, recorder if records else None, teach=teacher
        )

    states: list[bytes] = []
    tapes: list[Tape] = []
    plain = compact(lambda: states.append(plain.state([]).encode()), records=False)
    run(plain)
    recorded = compact()
    run(recorded)
    assert_same_bits(plain, recorded)
    trains = len(recipe.phases) - 1
    assert [tape.replays for tape in tapes] == [STEPS + 1] * trains  # one to compare with the plain step
    rounds = [sum("round" in str(function) for function, *_ in tape.calls) for tape in tapes]
    quantisers = 2 * len(list(compressed.layers(recorded.network)))
    assert rounds == [0] * (trains - 1) + [2 * quantisers]  # forward and backward
    for phase in recipe.phases if precision == "fp32" else ():
        resumed = compact()
        resumed.restore(TrainingState.decode(states[phase.first * STEPS + 1], MOST))
        run(resumed)
        assert_same_bits(plain, resumed)


def test_the_tape_freezes_a_momentum_as_a_graph_does() -> None:
    """Or the tests above would not see an optimizer that is recorded with the rest."""
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.5, 0.99), fused=True)
    tape = Tape(torch.nn.Module())

    def step() -> Tensor:
        optimizer.step()
        return parameter.detach()

    step()  # makes the moments
    tape.record(step)
    moment = optimizer.state[parameter]["exp_avg"]
    moment.fill_(2.0)
    optimizer.param_groups[0]["betas"] = (0.25, 0.99)
    tape.replay()
    assert torch.equal(moment, torch.full((3,), 1.5))  # 0.5 * 2 + 0.5 * 1, and not 0.25 * 2 + 0.75 * 1


class OneBitOff(Tape):
    """A graph whose kernels are not the plain step's."""

    def replay(self) -> None:
        super().replay()
        gradient = next(self.network.parameters()).grad
        assert gradient is not None
        gradient.view(torch.int32)[(0,) * gradient.ndim].add_(1)


def test_a_replay_with_other_bits_is_refused() -> None:
    model = network()
    trainer = Trainer(model, batches(), RECIPE, lambda: None, lambda: OneBitOff(model))
    with pytest.raises(ConfigurationError, match="not to the bit"):
        trainer.train_epoch()


@pytest.mark.parametrize(
    ("device", "compiled", "cause"), [("cpu", False, "device is cpu"), ("cuda", True, "--compile replaces")]
)
def test_it_is_refused_where_nothing_can_be_recorded(device: str, compiled: bool, cause: str) -> None:
    with pytest.raises(ConfigurationError, match=cause):
        check_graph(Recipe(compile=compiled), torch.device(device))
    check_graph(Recipe(), torch.device("cuda"))


@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_processor_is_told_so_in_a_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = micronet(command, "--graph", "--device", "cpu", HOME=str(tmp_path))
    assert done.returncode == CONFIGURATION, done.stderr
    assert "--graph records CUDA graphs" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
