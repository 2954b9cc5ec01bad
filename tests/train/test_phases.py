"""The phases after the dense one: schedule, exact resume in and between them, teacher, statistics."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from job.checks.child import Event
from job.checks.laboratory import Result, differences
from job.errors import ConfigurationError, DataError, JobError, UsageError
from job.machine.preemption import Preemption
from job.network import compressed, weights
from job.phases import DENSE, PRUNE, QUANTISE, STATISTICS, Cycle, Phase
from job.recipe import RECIPES, Recipe
from job.run import layout
from job.run.state import TrainingState, largest
from job.score.rules import score
from job.settings import PretrainedSettings
from job.store import open_store
from job.train import job
from job.train.compression import Teacher, sparsity_at
from job.train.evaluate import assess
from job.train.target_score import Sample, choose_sparsity
from job.train.trainer import Trainer
from tests.archives import write_archive
from tests.forked import micronet, started
from tests.train.test_job import place
from tests.train.test_trainer import STEPS, assert_same_bits, batches, run
from tests.view.runs import COMPACT as COMPACT_REPORT

RECIPE = Recipe(
    depth=10,
    width=1,
    cycles=(Cycle(1, 5e-3),),
    prune_cycles=(Cycle(2, 1e-3),),
    quantise_cycles=(Cycle(2, 1e-3),),
    batch_size=4,
    precision="fp32",
)
CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(22)
    return compressed.build(10, 1, 7).to(memory_format=torch.channels_last)


MOST = largest(network().state_dict())


def teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher(compressed.build(10, 1, 7), 0.5, "fp32", CPU)


def trainer(recipe: Recipe = RECIPE, after_step: Any = lambda: None) -> Trainer:
    return Trainer(network(), batches(recipe), recipe, after_step, teach=teacher)


def test_phases_follow_one_another() -> None:
    assert [(phase.name, phase.first, phase.epochs) for phase in RECIPES["compact"].phases] == [
        (DENSE, 0, 600), (PRUNE, 600, 200), (QUANTISE, 800, 150), (STATISTICS, 950, 1),
    ]  # fmt: skip
    assert [RECIPE.phase_at(epoch).name for epoch in (0, 1, 2, 3, 4, 5, 6)] == [
        DENSE, PRUNE, PRUNE, QUANTISE, QUANTISE, STATISTICS, STATISTICS,
    ]  # fmt: skip
    assert all(RECIPES["compact"].evaluates(phase.end) for phase in RECIPES["compact"].phases)
    assert [phase.name for phase in replace(RECIPE, quantise_cycles=()).phases] == [DENSE, PRUNE, STATISTICS]
    assert [phase.name for phase in Recipe().phases] == [DENSE]


def test_sparsity_grows_by_a_cubic_and_then_stays() -> None:
    phase = Phase(PRUNE, 10, (Cycle(8, 1e-3),))
    expected = [0.8 * (1 - (1 - share) ** 3) for share in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1)]
    assert [sparsity_at(phase, 10 + epoch, 0.8) for epoch in range(8)] == pytest.approx(expected)
    assert sparsity_at(Phase(PRUNE, 0, (Cycle(1, 1e-3),)), 0, 0.8) == 0.8


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Trainer, list[bytes]]:
    """A trainer at its end, and its state after each step and each epoch."""
    states: list[bytes] = []

    def keep() -> None:
        states.append(whole.state([]).encode())

    whole = trainer(after_step=keep)
    while whole.epoch < RECIPE.epochs:
        whole.train_epoch()
        whole.next_epoch()
        keep()
    return whole, states


def test_states_in_and_between_the_phases_resume_to_the_same_bits(
    undisturbed: tuple[Trainer, list[bytes]],
) -> None:
    whole, states = undisturbed
    assert len(states) == RECIPE.epochs * (STEPS + 1)
    inside = [phase.first * (STEPS + 1) + 1 for phase in RECIPE.phases]
    between = [phase.first * (STEPS + 1) - 1 for phase in RECIPE.phases[1:]]
    for index in inside + between:
        state = TrainingState.decode(states[index], MOST)
        resumed = trainer()
        resumed.restore(state)
        run(resumed)
        assert_same_bits(whole, resumed)


def test_a_state_at_a_phases_start_may_be_taken_before_or_after_it_begins(
    undisturbed: tuple[Trainer, list[bytes]],
) -> None:
    whole, states = undisturbed
    for phase in RECIPE.phases[1:]:
        began = trainer()
        began.restore(TrainingState.decode(states[phase.first * (STEPS + 1) - 1], MOST))
        began._begin_epoch()
        resumed = trainer()
        resumed.restore(TrainingState.decode(began.state([]).encode(), MOST))
        run(resumed)
        assert_same_bits(whole, resumed)


def test_zeros_are_zeros_after_every_step(undisturbed: tuple[Trainer, list[bytes]]) -> None:
    _, states = undisturbed
    shares = []
    for encoded in states:
        state = TrainingState.decode(encoded, MOST).network
        masks = {name: mask for name, mask in state.items() if name.endswith("mask")}
        for name, mask in masks.items():
            assert (state[name.replace("mask", "weight")][~mask] == 0).all()
        shares.append(1 - float(masks["block2.conv1.mask"].float().mean()))
    per_epoch = shares[:: STEPS + 1]
    assert per_epoch == [0, pytest.approx(0.75, abs=1e-3), *[per_epoch[1]] * 4]


def test_statistics_are_the_plain_mean_over_the_epoch_without_mixup(
    undisturbed: tuple[Trainer, list[bytes]],
) -> None:
    whole, states = undisturbed
    before = trainer()
    before.restore(TrainingState.decode(states[-STEPS - 2], MOST))
    loader = batches(RECIPE)
    loader.mixes = False
    loader.seek(RECIPE.epochs - 1, 0)
    before.network.train()
    norm = before.network.get_submodule("block1.bn1")
    means: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, read: means.append(read[0].mean((0, 2, 3))))
    with torch.no_grad():
        for images, targets in loader:
            assert targets.max(1).values.min() == 1  # one label each
            before.network(images)
    found = whole.network.get_buffer("block1.bn1.running_mean")
    torch.testing.assert_close(found, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
    parameters = zip(whole.network.parameters(), before.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in parameters)


def test_the_teachers_targets_have_the_gradient_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    targets = torch.rand(6, 7, generator=generator).softmax(1)
    taught = teacher()
    logits = torch.randn(6, 7, generator=generator, requires_grad=True)
    F.cross_entropy(logits, taught(images, targets)).backward()
    mixed, logits.grad = logits.grad, None
    with torch.no_grad():
        answers = taught.model(images).log_softmax(1)
    divergence = F.kl_div(logits.log_softmax(1), answers, log_target=True, reduction="batchmean")
    (0.5 * F.cross_entropy(logits, targets) + 0.5 * divergence).backward()
    torch.testing.assert_close(mixed, logits.grad)
    assert not any(parameter.requires_grad for parameter in taught.model.parameters())


@pytest.mark.parametrize("bits", [(4, 4), (8, 8), None])
def test_a_target_gets_the_least_sparsity_that_reaches_it(bits: tuple[int, int] | None) -> None:
    recipe = replace(RECIPE, weight_bits=bits[0], activation_bits=bits[1]) if bits else RECIPE
    recipe = recipe if bits else replace(recipe, quantise_cycles=())
    sample = Sample(recipe, 7, (3, 32, 32))
    target = 0.4 * sample.score(0.0) + 0.6 * sample.score(0.9)
    chosen = choose_sparsity(replace(recipe, target_score=target), dataset()).sparsity
    assert sample.score(chosen) <= target < sample.score(chosen - 1e-4)
    assert 0.4 < chosen < 0.7


def dataset() -> Any:
    class Dataset:
        classes = tuple("abcdefg")

        class train:  # noqa: N801
            images = np.zeros((1, 3, 32, 32), np.uint8)

    return Dataset


def test_a_target_that_no_sparsity_reaches_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--target-score 1e-05: with 99% zeros"):
        choose_sparsity(replace(RECIPE, target_score=1e-5), dataset())
    assert choose_sparsity(replace(RECIPE, target_score=1.0), dataset()).sparsity == 0


# The whole job.

OPTIONS = (
    "--depth", "10", "--width", "1", "--batch-size", "4", "--precision", "fp32", "--device", "cpu",
)  # fmt: skip
COMPACT = ("--cycles", "1@5e-3", "--prune-cycles", "1@1e-3", "--quantise-cycles", "1@1e-3")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "tiny.tar.gz", train=18, test=10, classes=5)


def train(archive: Path, run: Path, *words: str) -> Any:
    return micronet(
        "train", "--run", run, "--data", archive, "--cache", archive.parent / "cache", *OPTIONS, *words
    )


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("runs") / "compact"
    done = train(archive, run, *COMPACT)
    assert not done.returncode, done.stderr
    return run, json.loads((run / "report.json").read_bytes())


def form(value: Any) -> Any:
    """The names in JSON, in order, without its values; of a list, and of a network's kinds, the first's."""
    if isinstance(value, list):
        return [form(part) for part in value[:1]]
    if not isinstance(value, dict):
        return None
    return [
        (name, form(list(part.values()) if name == "operations" else part)) for name, part in value.items()
    ]


def test_the_report_has_the_form_that_older_versions_wrote(finished: tuple[Path, dict[str, Any]]) -> None:
    assert form(finished[1]) == form(json.loads(COMPACT_REPORT.read_bytes()))


@pytest.fixture(scope="module")
def dense(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "dense"
    done = train(archive, run, "--cycles", "1@5e-3")
    assert not done.returncode, done.stderr
    return run


def test_the_report_has_each_phase(finished: tuple[Path, dict[str, Any]], archive: Path) -> None:
    run, report = finished
    names = [phase["name"] for phase in report["phases"]]
    assert names == [DENSE, PRUNE, QUANTISE, STATISTICS]
    bits = [(phase["weight_bits"], phase["activation_bits"]) for phase in report["phases"]]
    assert bits == [(32, 32), (32, 32), (4, 4), (4, 4)]
    zeros = [phase["zeros"] for phase in report["phases"]]
    assert zeros[0] == 0
    assert zeros[1] == pytest.approx(0.75, abs=1e-3)
    assert zeros[2] >= 0.75
    for phase in report["phases"]:
        uri = phase["weights"]["uri"]
        assert Path(uri).is_file()
        assert assess(uri, (str(archive),), str(archive.parent / "cache"), "cpu").correct == phase["correct"]
        found = score(weights.load(Path(uri).read_bytes())[0]).rule_sets
        assert {name: tally.score for name, tally in found.items()} == phase["score"]
    last = report["phases"][-1]
    assert last["weights"] == report["weights"]
    assert (last["correct"], last["accuracy"]) == (report["accuracy"]["correct"], report["accuracy"]["final"])
    assert last["score"]["official"] == report["score"]["official"]["score"]
    layers = {layer["name"]: layer for layer in last["layers"]}
    assert (layers["stem"]["weight_bits"], layers["linear"]["activation_bits"]) == (8, 8)
    assert layers["block1.conv1"]["weight_bits"] == 4
    assert layers["block2.shortcut"]["zeros"] >= 0.7
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    kept = [record.get("weights") for record in history]
    assert kept == [*(phase["weights"]["sha256"] for phase in report["phases"][:-1]), None]
    assert history[-1]["lr"] == 0


def test_the_dense_phase_is_the_dense_run_to_the_bit(
    finished: tuple[Path, dict[str, Any]], dense: Path
) -> None:
    report = json.loads((dense / "report.json").read_bytes())
    assert "phases" not in report
    assert finished[1]["phases"][0]["weights"]["sha256"] == report["weights"]["sha256"]


def test_a_run_starts_from_a_finished_ones_weights(archive: Path, dense: Path, tmp_path: Path) -> None:
    words = ("--from", str(dense), *COMPACT[2:])
    assert not train(archive, tmp_path / "run", *words).returncode
    report = json.loads((tmp_path / "run" / "report.json").read_bytes())
    assert [phase["name"] for phase in report["phases"]] == [PRUNE, QUANTISE, STATISTICS]
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_bytes())
    assert recipe["from_sha256"] == json.loads((dense / "report.json").read_bytes())["weights"]["sha256"]
    assert recipe["cycles"] == "none"


def test_a_damaged_teacher_is_noticed(archive: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--run", str(run), "--data", str(archive), "--cache", str(archive.parent / "cache"), *OPTIONS]
    with started([*words, *COMPACT, "--checkpoint-every", "0.01s"]) as child:
        child.until(lambda event: event["event"] == "checkpoint" and event["epoch"] >= 2)
        child.signal(9)
        child.end()
    (kept,) = (run / layout.PHASES).glob("dense-*")
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    done = train(archive, run, *COMPACT)
    assert done.returncode == DataError.exit_code
    assert "has been changed" in done.stderr


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of other classes."""
    run = tmp_path_factory.mktemp("runs") / "foreign"
    run.mkdir()
    info = weights.NetworkInfo(10, 1, ("a", "b"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "0" * 64)
    (run / layout.WEIGHTS).write_bytes(weights.save(info.build(), info))
    return run


def refused(recipe: Recipe, archive: Path, run: Path, pretrained: PretrainedSettings) -> JobError:
    with pytest.raises(JobError) as caught:
        job.train(recipe, replace(place(archive, run), pretrained=pretrained), Preemption(10))
    assert not run.exists()
    return caught.value


def test_weights_that_cannot_be_built_on_are_refused_before_training(
    archive: Path, dense: Path, foreign: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    noise, empty = str(tmp_path / "noise.safetensors"), str(tmp_path / "empty")
    pruning, plain = replace(RECIPE, cycles=()), replace(RECIPE, prune_cycles=(), quantise_cycles=())
    cases = [
        (65, "--from: .* has no weights.safetensors", pruning, PretrainedSettings(start=empty)),
        (78, "has 2 classes", pruning, PretrainedSettings(start=str(foreign))),
        (78, "has 2 classes", RECIPE, PretrainedSettings(teacher=str(foreign))),
        (65, "--teacher: there is no ", RECIPE, PretrainedSettings(teacher=str(tmp_path / "none"))),
        (
            65,
            "--from: these are not weights that this program saved",
            pruning,
            PretrainedSettings(start=noise),
        ),
        (
            78,
            "--from: .* is of depth 10 and width 1",
            replace(pruning, width=2),
            PretrainedSettings(start=str(dense)),
        ),
        (2, "nothing in this recipe has a teacher", plain, PretrainedSettings(teacher=str(dense))),
        (78, "--target-score 1e-05", replace(RECIPE, target_score=1e-5), PretrainedSettings()),
    ]
    for code, message, recipe, pretrained in cases:
        error = refused(recipe, archive, tmp_path / "run", pretrained)
        assert error.exit_code == code, error.message
        assert re.search(message, error.message)
        assert error.fix


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Leave --cycles out", ("--from", "runs/first", *COMPACT)),
        ("--from", ("--cycles", "none", *COMPACT[2:])),
        ("Use --recipe compact", ("--from", "runs/first")),
        ("does not prune", ("--target-score", "0.1")),
        ("--weight-bits", ("--weight-bits", "9", *COMPACT)),
        ("--activation-bits", ("--activation-bits", "0", *COMPACT)),
        ("--recipe", ("--recipe", "tiny")),
    ],
)
def test_options_that_contradict_each_other_are_refused(message: str, words: tuple[str, ...]) -> None:
    done = micronet("train", *words)
    assert done.returncode == UsageError.exit_code
    assert message in done.stderr


def test_a_quantised_run_is_no_start_and_a_fine_teacher(
    finished: tuple[Path, dict[str, Any]], archive: Path, tmp_path: Path
) -> None:
    done = train(archive, tmp_path / "run", "--from", str(finished[0]), *COMPACT[2:])
    assert done.returncode == ConfigurationError.exit_code
    assert "quantised already" in done.stderr
    recipe = replace(RECIPE, prune_cycles=(Cycle(1, 1e-3),), quantise_cycles=())
    placement = replace(
        place(archive, tmp_path / "taught"), pretrained=PretrainedSettings(teacher=str(finished[0]))
    )
    report = job.train(recipe, placement, Preemption(10))
    assert report is not None
    assert [phase.name for phase in report.phases] == [DENSE, PRUNE, STATISTICS]


def reaches(epoch: int, event: Event) -> bool:
    return event.get("epoch", 0) >= epoch


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_kills_in_and_between_the_phases_give_the_same_bits(
    count: int, finished: tuple[Path, dict[str, Any]], archive: Path, tmp_path: Path
) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    reference, kills, runs = finished[0], 0, 0
    while kills < count:
        runs += 1
        run = tmp_path / f"run-{runs}"
        options = ["--run", str(run), "--cache", str(archive.parent / "cache"), "--data", str(archive)]
        for epoch in range(2, 5):  # once in or just before each phase but the first
            with started([*options, *OPTIONS, *COMPACT, "--checkpoint-every", "0.01s"]) as child:
                if child.until(partial(reaches, epoch)):
                    time.sleep(0.1 * generator.random())
                    child.signal(9)
                kills += child.end() == -9
        assert not train(archive, run, *COMPACT).returncode
        result, expected = (Result.read(open_store(str(each))) for each in (run, reference))
        assert differences(expected, result) == [], f"seed {seed}"


@pytest.mark.soak
def test_the_whole_network_reaches_the_leaderboards_range(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "whole.tar.gz", train=2000, test=100, classes=100)
    done = micronet(
        "train", "--run", tmp_path / "run", "--data", archive, "--cache", tmp_path / "cache",
        "--device", "cpu", "--recipe", "compact", *COMPACT,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_bytes())
    assert report["model"]["name"] == "WideResNet-22-6"
    assert report["score"]["official"]["score"] <= 0.07
    network, _ = weights.load((tmp_path / "run" / layout.WEIGHTS).read_bytes())
    assert score(network).rule_sets["official"].score == report["score"]["official"]["score"]
