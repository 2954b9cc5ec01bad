"""The claim of an attempt: what it reads at the start, what it refuses, that failures are recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from job.errors import ConfigurationError, DataError, FencedError, JobError
from job.machine.preemption import Preemption
from job.network.wide_resnet import wide_resnet
from job.recipe import Recipe
from job.run import claims, layout
from job.run.checkpoints import Checkpoints
from job.run.lineage import lineage
from job.run.outputs import Run
from job.run.records import Worker
from job.settings import AttemptSettings
from job.store import Store, open_store
from job.train.attempt import Attempt

RECIPE = Recipe(depth=10, width=1, batch_size=16, precision="fp32", data_sha256="ab")
NETWORK = wide_resnet(10, 1, 4)
MACHINE: dict[str, str | None] = {"device": "here"}


class Counting:
    """A store that counts the reads of each folder's keys."""

    def __init__(self, inner: Store) -> None:
        self._inner, self.read = inner, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("get", "get_range"):
            return found

        def counted(key: str, *arguments: Any) -> Any:
            self.read[key.partition("/")[0]] += 1
            return found(key, *arguments)

        return counted


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"))


@pytest.fixture
def claim(store: Store, tmp_path: Path) -> Callable[..., AbstractContextManager[Attempt]]:
    def start(recipe: Recipe = RECIPE, on: Any = store, **options: Any) -> AbstractContextManager[Attempt]:
        settings = AttemptSettings(**options)
        run = Run.open(on, recipe, settings.accept_drift)
        return Attempt.claim(run, NETWORK, MACHINE, settings, tmp_path / "cache", Preemption(30))

    return start


def earlier(store: Store, objects: dict[str, bytes], recipe: Recipe = RECIPE, **how: Any) -> None:
    """Leave one checkpoint of an attempt that then vanished."""
    run = Run.open(store, RECIPE)
    worker = Worker.parse({"host": "there", "recipe": recipe.to_json()}, "worker")
    checkpoints, _ = Checkpoints.claim(store, run.identity, worker)
    checkpoints.commit(objects, epoch=0, step=3, position=3, checkpoints=1, **how)


def reasons(store: Store) -> list[str | None]:
    return [turn.reason for turn in lineage(store)]


@pytest.mark.parametrize(
    ("objects", "how", "message"),
    [
        ({layout.STATE: b"no state"}, {}, "no training state"),
        ({"other": b"x"}, {}, r"1-1\.json is a checkpoint without state\.pt"),
        (
            {layout.REPORT: b"{}"},
            {"finished": True},
            "missing: history.jsonl, predictions.npz, .*unexpected: none",
        ),
        (
            dict.fromkeys((*layout.OUTPUTS, layout.RECIPE), b"{}"),
            {"finished": True},
            "is marked finished; missing: none; unexpected: recipe.json",
        ),
        (dict.fromkeys(layout.OUTPUTS, b"{}"), {"finished": True}, "the report of manifests/1-1.json"),
    ],
    ids=["state", "no state", "no outputs", "other outputs", "report"],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused_and_the_end_recorded(
    store: Store,
    claim: Callable[..., AbstractContextManager[Attempt]],
    objects: dict[str, bytes],
    how: dict[str, Any],
    message: str,
) -> None:
    earlier(store, objects, **how)
    with pytest.raises(DataError, match=message), claim():
        pytest.fail("it was claimed")
    assert (reasons(store)[1] or "").startswith("failed: ")
    assert store.get(layout.RECIPE).data.startswith(b"{")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigurationError("the cycles have 1"), "failed: the cycles have 1"),
        (FencedError("another attempt"), "fenced"),
        (ZeroDivisionError(), "failed: ZeroDivisionError"),
        (JobError("\x1b[2J"), r"failed: \x1b[2J"),
    ],
)
def test_whatever_ends_the_block_is_the_attempts_end(
    store: Store, claim: Callable[..., AbstractContextManager[Attempt]], error: Exception, reason: str
) -> None:
    with pytest.raises(type(error)), claim():
        raise error
    assert reasons(store) == [reason]


def test_a_network_whose_state_no_checkpoint_holds_is_refused_before_the_claim(
    store: Store, tmp_path: Path
) -> None:
    run = Run.open(store, RECIPE)
    with torch.device("meta"):  # 4 GiB and more without their memory
        network = wide_resnet(28, 40, 100)
    message = r"takes 7\.0 GB, .*holds 4\.3 GB.*--width or --depth"
    with (
        pytest.raises(ConfigurationError, match=message) as caught,
        Attempt.claim(run, network, MACHINE, AttemptSettings(), tmp_path / "cache", Preemption(30)),
    ):
        pytest.fail("it was claimed")
    assert caught.value.exit_code == 78
    assert claims.generations(store) == []


def test_a_start_reads_the_newest_claim_alone(
    store: Store, claim: Callable[..., AbstractContextManager[Attempt]]
) -> None:
    for _ in range(20):
        with claim():
            pass
    counting = Counting(store)
    with claim(on=counting) as attempt:
        assert attempt.generation == 21
    assert counting.read["claims"] == 1


def test_an_attempt_that_lost_the_run_cannot_change_its_recipe(
    store: Store, claim: Callable[..., AbstractContextManager[Attempt]]
) -> None:
    """It is paused before it writes recipe.json, fenced meanwhile, and wakes up."""
    other = replace(RECIPE, batch_size=32)
    earlier(store, {layout.STATE: b"x"})
    paused = Run.open(store, other, accept_drift=True)
    late = paused.recipe_copy()
    assert late
    earlier(store, {layout.STATE: b"y"})
    late.write(paused.encode_recipe())
    assert json.loads(store.get(layout.RECIPE).data)["batch_size"] == 32
    run = Run.open(store, RECIPE)  # the owner's own command is still right
    with pytest.raises(ConfigurationError, match="batch_size 16 -> 32"):
        Run.open(store, other)
    copy = run.recipe_copy()
    assert copy
    copy.write(run.encode_recipe())
    assert json.loads(store.get(layout.RECIPE).data)["batch_size"] == 16


def test_the_recipe_is_the_one_that_the_newest_checkpoint_was_trained_with(store: Store) -> None:
    other = replace(RECIPE, batch_size=32)
    earlier(store, {layout.STATE: b"x"}, other)
    Run.open(store, other)
    with pytest.raises(ConfigurationError, match="batch_size 32 -> 16"):
        Run.open(store, RECIPE)
    assert json.loads(store.get(layout.RECIPE).data)["batch_size"] == 16  # killed before it was copied


def test_a_run_of_a_newer_program_is_refused_with_the_field_that_this_one_lacks(store: Store) -> None:
    newer = RECIPE.to_json() | {"label_smoothing": 0.1}
    run = Run.open(store, RECIPE)
    worker = Worker.parse({"host": "there", "recipe": newer}, "worker")
    checkpoints, _ = Checkpoints.claim(store, run.identity, worker)
    checkpoints.commit({layout.STATE: b"x"}, epoch=0, step=3, position=3, checkpoints=1)
    with pytest.raises(ConfigurationError, match=r"label_smoothing .* a field of a newer") as caught:
        Run.open(store, RECIPE)
    assert caught.value.fix == "Resume with the version that wrote it, or a newer one"
    Run.open(store, RECIPE, accept_drift=True)


def test_a_recipe_that_changed_between_opening_and_claim_is_refused_without_fencing(
    store: Store, tmp_path: Path
) -> None:
    run = Run.open(store, RECIPE)
    earlier(store, {layout.STATE: b"x"}, replace(RECIPE, batch_size=32))
    head = store.get(layout.HEAD).data
    with (
        pytest.raises(ConfigurationError, match="batch_size"),
        Attempt.claim(run, NETWORK, MACHINE, AttemptSettings(), tmp_path / "cache", Preemption(30)),
    ):
        pytest.fail("it was claimed")
    assert store.get(layout.HEAD).data == head
    assert reasons(store) == ["vanished", "refused"]


def test_an_unreadable_claim_is_named_in_the_lineage(
    store: Store, claim: Callable[..., AbstractContextManager[Attempt]]
) -> None:
    for _ in range(2):
        with claim():
            pass
    for damage in (b"", b"{}", store.get("claims/2").data):  # the last is another attempt's
        store.put("claims/1", damage)
        with claim() as attempt:
            attempt.saver.start()
            section = attempt.lineage().model_dump()
        first = section["attempts"][0]
        assert (first["reason"], first["started"], first["host"]) == ("unreadable", None, None)
        assert section["attempts"][-1]["reason"] == "finished"


def test_the_fixture_of_these_tests_is_claimed(
    store: Store, claim: Callable[..., AbstractContextManager[Attempt]]
) -> None:
    with claim() as attempt:
        assert attempt.state is None
        assert attempt.checkpoints.worker.recipe == RECIPE.to_json()
    assert claims.generations(store) == [1]
